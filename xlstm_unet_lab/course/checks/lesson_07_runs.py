"""Lesson 07, fourth part: what ails a run."""

from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

# ------------------------------------------------------------------------------------------- 07.7, what ails a run


def diagnose(readings):
    exponent_limit = {"float16": 11.09, "float32": 88.72}[readings["precision"]]
    if readings["shared"] > 0:
        return "leak"
    if any(not 100 <= side <= 600 for side in readings["extent"]):
        return "wrong spacing"
    if readings["overflow"] and readings["largest gate"] > exponent_limit:
        return "gate overflow"
    if readings["overflow"] and readings["precision"] == "float16":
        return "float16 overflow"
    if readings["pull of empty patches"] == 0:
        return "empty class"
    return "healthy"


def _run(description: str, **changes: object) -> Case:
    """What the probes read of a run that is well, with changes; underscores in place of blanks."""
    well = {"precision": "float32", "overflow": "", "largest gate": 0.4, "shared": 0.0, "extent": ()}
    well |= {"pull of empty patches": 1.0}
    return Case(description, (well | {name.replace("_", " "): value for name, value in changes.items()},))


_SUMS = "loss.sums, which gives 6.563e+04"
_CELL = "network.cell.weights, which gives 1.203e+06"
_WEIGHTS = "network.encoder.mixers.2.blocks.0.layer.cell.weights, which gives "

DIAGNOSE = exercise(
    "07.7",
    diagnose,
    cases=(
        _run("readings like those of run A", shared=0.998, largest_gate=0.0),
        _run("readings like those of run B", precision="float16", overflow=_SUMS, largest_gate=0.0),
        _run("readings like those of run C", largest_gate=0.0, pull_of_empty_patches=0.0),
        _run("readings like those of run D", extent=(72.0, 288.0, 1024.0), largest_gate=0.0),
        _run("readings like those of run E", overflow=_WEIGHTS + "5.287e+62", largest_gate=144.4),
        _run("a gate of 89.6 in float32", overflow=_WEIGHTS + "8.182e+38", largest_gate=89.6),
        _run("a run in float16 whose gates reach 14", precision="float16", overflow=_CELL, largest_gate=14.0),
        _run(
            "gates that reach 120 in a cell that has its stabiliser: nothing overflows",
            largest_gate=120.0,
            pull_of_empty_patches=0.4,
        ),
        _run("a training image that came into the validation set once", shared=0.04),
        _run("a volume whose spacing was lost, so that every voxel is 1 mm", extent=(24.0, 96.0, 128.0)),
        _run("patches without foreground pull little, as they should", pull_of_empty_patches=0.002),
        _run("a scan of 192 x 288 x 384 mm, and nothing else", extent=(192.0, 288.0, 384.0)),
    ),
    mistakes={
        "the limit of float32 for all": ('"float16": 11.09', '"float16": 88.72'),
        "a large gate is enough": ('readings["overflow"] and readings["largest gate"]', 'readings["largest gate"]'),
        "every overflow is float16's": ('return "gate overflow"', 'return "float16 overflow"'),
        "every overflow is a gate's": (' and readings["largest gate"] > exponent_limit', ""),
        "a small leak is none": ('readings["shared"] > 0', 'readings["shared"] > 0.5'),
        "the longest side": ('in readings["extent"]', 'in sorted(readings["extent"])[-1:]'),
        "the volume": (
            'if any(not 100 <= side <= 600 for side in readings["extent"])',
            'z, y, x = readings["extent"] or (300, 300, 300)\n    if not 100**3 <= z * y * x <= 600**3',
        ),
        "stops at a picture": ('in readings["extent"]', 'in (min(readings["extent"]), max(readings["extent"]))'),
        "a weak pull is none": ('"] == 0', '"] <= 0.05'),
    },
)

EXERCISES = (DIAGNOSE,)
