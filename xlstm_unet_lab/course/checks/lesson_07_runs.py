"""Lesson 07, fourth part: what ails a run."""

import numpy as np

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


def _diagnose(readings, *, limits=None, leak=0.0, watched=any, sides=None, gate="both", weak=0.0):
    limit = (limits or {"float16": 11.09, "float32": 88.72})[readings["precision"]]
    overflow, gate_open = bool(readings["overflow"]), readings["largest gate"] > limit
    extent = (sides or tuple)(readings["extent"])
    if readings["shared"] > leak:
        return "leak"
    if watched(not 100 <= side <= 600 for side in extent):
        return "wrong spacing"
    if {"both": overflow and gate_open, "gate": gate_open, "overflow": overflow, "never": False}[gate]:
        return "gate overflow"
    if overflow and (readings["precision"] == "float16" or gate == "never"):
        return "float16 overflow"
    return "empty class" if readings["pull of empty patches"] <= weak else "healthy"


def _by_volume(readings):
    """Takes the volume of the scan for its sides, which an exchange of axes leaves as it is."""
    extent = readings["extent"]
    side = float(np.prod(extent)) ** (1 / 3) if extent else 300.0
    return _diagnose(readings | {"extent": (side,)})


def _trips_over_pictures(readings):
    longest, shortest = max(readings["extent"]), min(readings["extent"])
    return _diagnose(readings | {"extent": (longest, shortest)})


def _readings(**changes) -> tuple[dict]:
    """What the probes read of a run that is well, with changes; blanks in place of underscores."""
    well = {
        "precision": "float32",
        "overflow": "",
        "largest gate": 0.4,
        "shared": 0.0,
        "extent": (),
        "pull of empty patches": 1.0,
    }
    return (well | {name.replace("_", " "): value for name, value in changes.items()},)


_WEIGHTS = "network.encoder.mixers.2.blocks.0.layer.cell.weights, which gives "

DIAGNOSE = Exercise(
    number="07.7",
    title="what ails a run",
    goal="Write `diagnose(readings)`: from what the probes read, the name of what went wrong, or healthy.",
    minutes=40,
    difficulty=5,
    reference=diagnose,
    cases=(
        Case("readings like those of run A", _readings(shared=0.998, largest_gate=0.0)),
        Case(
            "readings like those of run B",
            _readings(precision="float16", overflow="loss.sums, which gives 6.563e+04", largest_gate=0.0),
        ),
        Case("readings like those of run C", _readings(largest_gate=0.0, pull_of_empty_patches=0.0)),
        Case("readings like those of run D", _readings(extent=(72.0, 288.0, 1024.0), largest_gate=0.0)),
        Case("readings like those of run E", _readings(overflow=_WEIGHTS + "5.287e+62", largest_gate=144.4)),
        Case("a gate of 89.6 in float32", _readings(overflow=_WEIGHTS + "8.182e+38", largest_gate=89.6)),
        Case(
            "a run in float16 whose gates reach 14",
            _readings(precision="float16", overflow="network.cell.weights, which gives 1.203e+06", largest_gate=14.0),
        ),
        Case(
            "gates that reach 120 in a cell that has its stabiliser: nothing overflows",
            _readings(largest_gate=120.0, pull_of_empty_patches=0.4),
        ),
        Case("a training image that came into the validation set once", _readings(shared=0.04)),
        Case("a volume whose spacing was lost, so that every voxel is 1 mm", _readings(extent=(24.0, 96.0, 128.0))),
        Case("patches without foreground pull little, as they should", _readings(pull_of_empty_patches=0.002)),
        Case("a scan of 192 x 288 x 384 mm, and nothing else", _readings(extent=(192.0, 288.0, 384.0))),
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
            lambda r: _diagnose(r, limits={"float16": 88.72, "float32": 88.72}),
            "you let gates go up to 88.72 in float16 as well. Its largest number is 65,504, so exp overflows above "
            "11.09.",
        ),
        Mistake(
            "a large gate is enough",
            lambda r: _diagnose(r, gate="gate"),
            "you call a large gate a disease. With the stabiliser any size of gate is fine: it must also overflow.",
        ),
        Mistake(
            "every overflow is float16's",
            lambda r: _diagnose(r, gate="never"),
            "you blame every overflow on the numbers. A run in float32 with a gate above 88.72 needs the stabiliser, "
            "and a wider format would only put it off.",
        ),
        Mistake(
            "every overflow is a gate's",
            lambda r: _diagnose(r, gate="overflow"),
            "you blame every overflow on the gates. Look at the largest gate: if exp of it fits, something else "
            "overflowed.",
        ),
        Mistake(
            "a small leak is none",
            lambda r: _diagnose(r, leak=0.5),
            "you let small leaks pass. One image in both sets is one too many: it is a sign that images were divided "
            "by the wrong key.",
        ),
        Mistake(
            "the longest side",
            lambda r: _diagnose(r, sides=lambda extent: (max(extent),) if extent else ()),
            "you look at the longest side only. A spacing that was lost makes a patient too small, and a body 24 mm "
            "long is as impossible as one a metre wide.",
        ),
        Mistake(
            "the volume",
            _by_volume,
            "you look at the volume. Exchanging the axes of the spacing leaves it as it was, to the last digit: look "
            "at each side.",
        ),
        Mistake(
            "stops at a picture",
            _trips_over_pictures,
            "your function stops at pictures, whose extent is an empty tuple. `any(...)` over nothing is False, "
            "without an error.",
        ),
        Mistake(
            "a weak pull is none",
            lambda r: _diagnose(r, weak=0.05),
            "you call a weak pull an empty class. Patches without foreground have little to teach once the network "
            "is good; what is wrong is a pull of exactly 0.",
        ),
    ),
    not_tested="two diseases at once; diseases without a probe, such as labels that are exchanged.",
)

EXERCISES = (DIAGNOSE,)
