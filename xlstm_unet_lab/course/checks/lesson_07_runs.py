"""Lesson 07, fourth part: what ails a run."""

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

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

DIAGNOSE = Exercise(
    number="07.7",
    title="what ails a run",
    goal="Write `diagnose(readings)`: from what the probes read, the name of what went wrong, or healthy.",
    minutes=40,
    difficulty=5,
    reference=diagnose,
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
    hints=(
        "Take the diseases one by one. For each: which reading shows it, and what does it say in a healthy run?",
        "Both overflows show in `readings['overflow']`. They differ in the gate: exp of more than 88.72 is too large "
        "for float32, of more than 11.09 for float16. A large gate that does not overflow is no disease.",
        "`if readings['shared'] > 0: return 'leak'`; a side of the extent below 100 or above 600 mm is 'wrong spacing' "
        "(`any(...)` over an empty tuple is False); overflow and a gate above the limit of this precision is 'gate "
        "overflow'; overflow in float16 without it 'float16 overflow'; a pull of exactly 0 'empty class'.",
    ),
    mistakes=(
        Mistake(
            "the limit of float32 for all",
            '"float16": 11.09',
            '"float16": 88.72',
            "you let gates go up to 88.72 in float16 as well. Its largest number is 65,504, so exp overflows above "
            "11.09.",
        ),
        Mistake(
            "a large gate is enough",
            'readings["overflow"] and readings["largest gate"]',
            'readings["largest gate"]',
            "you call a large gate a disease. With the stabiliser any size of gate is fine: it must also overflow.",
        ),
        Mistake(
            "every overflow is float16's",
            'return "gate overflow"',
            'return "float16 overflow"',
            "you blame every overflow on the numbers. A run in float32 with a gate above 88.72 needs the stabiliser, "
            "and a wider format would only put it off.",
        ),
        Mistake(
            "every overflow is a gate's",
            ' and readings["largest gate"] > exponent_limit',
            "",
            "you blame every overflow on the gates. Look at the largest gate: if exp of it fits, something else "
            "overflowed.",
        ),
        Mistake(
            "a small leak is none",
            'readings["shared"] > 0',
            'readings["shared"] > 0.5',
            "you let small leaks pass. One image in both sets is one too many: it is a sign that images were divided "
            "by the wrong key.",
        ),
        Mistake(
            "the longest side",
            'in readings["extent"]',
            'in sorted(readings["extent"])[-1:]',
            "you look at the longest side only. A spacing that was lost makes a patient too small, and a body 24 mm "
            "long is as impossible as one a metre wide.",
        ),
        Mistake(
            "the volume",
            'if any(not 100 <= side <= 600 for side in readings["extent"])',
            'z, y, x = readings["extent"] or (300, 300, 300)\n    if not 100**3 <= z * y * x <= 600**3',
            "you look at the volume. Exchanging the axes of the spacing leaves it as it was, to the last digit: look "
            "at each side.",
        ),
        Mistake(
            "stops at a picture",
            'in readings["extent"]',
            'in (min(readings["extent"]), max(readings["extent"]))',
            "your function stops at pictures, whose extent is an empty tuple. `any(...)` over nothing is False, "
            "without an error.",
        ),
        Mistake(
            "a weak pull is none",
            '"] == 0',
            '"] <= 0.05',
            "you call a weak pull an empty class. Patches without foreground have little to teach once the network "
            "is good; what is wrong is a pull of exactly 0.",
        ),
    ),
    not_tested="two diseases at once; diseases without a probe, such as labels that are exchanged.",
)

EXERCISES = (DIAGNOSE,)
