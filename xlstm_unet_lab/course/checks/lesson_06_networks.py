"""Lesson 06: how far a U-Net sees, and what the published networks call their weights."""

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

# ------------------------------------------------------------------------------------ 06.4, is the cue within reach?


def stages_needed(rows):
    stages, reach = 2, 10
    while reach < rows:
        stages += 1
        # Another stage: two convolutions on the way down, two and an upsampling on the way up.
        down = 2 ** (stages - 2) + 2 ** (stages - 1)
        up = 2 * 2 ** (stages - 2) + 2 ** (stages - 2)
        reach += down + up
    return stages


def _fewest(rows, reach):
    return next(stages for stages in range(2, 100) if reach(stages) >= rows)


def _reach(stages, *, stem=2, late_stride=True, up=3):
    down = sum((2 ** (s - 1) if late_stride else 2**s) + 2**s for s in range(1, stages))
    return 2 + stem + down + sum(up * 2**s for s in range(stages - 1))


STAGES_NEEDED = Exercise(
    number="06.4",
    title="is the cue within reach?",
    goal="Write `stages_needed(rows)`: the fewest stages, at least 2, of a plain U-Net whose output at a pixel can "
    "depend on the input that many rows above it.",
    minutes=20,
    difficulty=3,
    reference=stages_needed,
    cases=tuple(
        Case(f"a cue {rows} rows above", (rows,))
        for rows in (1, 8, 9, 10, 11, 20, 21, 22, 23, 24, 25, 46, 47, 100, 384)
    ),
    hints=(
        "Count in rows of the image. A convolution of kernel 3 on a map whose neighbours are p rows apart looks p rows "
        "further; at stage s they are 2^s apart.",
        "Down: two convolutions in the stem, two in stage 0, one row each. The first convolution of a later stage "
        "still reads the finer map, 2^(s-1); its second reads its own, 2^s.",
        "Up, into each stage s below the last: two convolutions, 2 * 2^s, and the upsampling, which may take its "
        "value from the far side of a coarse pixel, 2^s. All together make 10 rows for 2 stages and 22 for 3.",
    ),
    mistakes=(
        Mistake(
            "the encoder alone",
            lambda rows: _fewest(rows, lambda stages: _reach(stages, up=0)),
            "you counted the way down only. The decoder's convolutions look around as well, on coarse maps too.",
        ),
        Mistake(
            "no upsampling",
            lambda rows: _fewest(rows, lambda stages: _reach(stages, up=2)),
            "the upsampling is missing: you have the reach downwards. Upwards, a pixel may be copied from a coarse one "
            "whose centre lies at the other end of it: 2^s rows more on the way into stage s.",
        ),
        Mistake(
            "both convolutions on the coarse map",
            lambda rows: _fewest(rows, lambda stages: _reach(stages, late_stride=False)),
            "you let both convolutions of a stage work on its own map. The first one has the stride: it reads the map "
            "of the stage before, where neighbours are half as far apart.",
        ),
        Mistake(
            "no stem",
            lambda rows: _fewest(rows, lambda stages: _reach(stages, stem=0)),
            "the stem is missing: two convolutions at full resolution before stage 0.",
        ),
        Mistake(
            "the whole window",
            lambda rows: _fewest(rows, lambda stages: 2 * _reach(stages) + 1),
            "you compare with the whole window. A cue lies on one side: what counts is the reach from the middle to "
            "one edge.",
        ),
        Mistake(
            "strictly more",
            lambda rows: _fewest(rows, lambda stages: _reach(stages) - 1),
            "a cue exactly at the end of the reach is still seen.",
        ),
        Mistake(
            "one row a convolution",
            lambda rows: _fewest(rows, lambda stages: 4 * stages),
            "you count one row a convolution. On the map of stage s neighbours are 2^s rows of the image apart, so "
            "there a convolution looks 2^s rows further.",
        ),
    ),
    not_tested="several residual blocks a stage, other kernels; how much a pixel at the edge of the reach counts.",
)

# ------------------------------------------------------------------------------- 06.5, published names into ours


def rename(names):
    ours = {}
    for name in names:
        short = name.removeprefix("module.")
        parts = short.split(".")
        unused = parts[:2] == ["xlstm", "norm"] or (parts[1] == "xlstm_layers" and parts[3] == "norm")
        if unused or short.startswith("decoder.encoder.") or "all_modules" in parts:
            continue
        short = short.replace("decoder.seg_layers.", "decoder.heads.")
        short = short.replace("decoder.upsample_layers.", "decoder.upsamplings.")
        short = short.replace("encoder.xlstm_layers.", "encoder.mixers.")
        for number in ("1", "2"):
            short = short.replace(f".conv{number}.conv.", f".conv{number}.")
            short = short.replace(f".conv{number}.norm.", f".norm{number}.")
        ours[name] = short.replace(".conv3.", ".projection.")
    return ours


def _rename(names, *, drop=("copy", "again", "unused"), prefix=True, every_conv=False, norms=True, projection=True):
    ours = {}
    for name in names:
        short = name.removeprefix("module.") if prefix else name
        parts = short.split(".")
        faults = {
            "copy": short.startswith("decoder.encoder."),
            "again": "all_modules" in parts,
            "unused": parts[:2] == ["xlstm", "norm"] or (parts[1] == "xlstm_layers" and parts[3] == "norm"),
            "any norm": "xlstm" in short and "norm" in parts,
        }
        if any(faults[what] for what in drop):
            continue
        short = short.replace("seg_layers.", "heads.").replace("upsample_layers.", "upsamplings.")
        short = short.replace("encoder.xlstm_layers.", "encoder.mixers.")
        for number in ("1", "2"):
            short = short.replace(f".conv{number}.conv.", f".conv{number}.")
            short = short.replace(f".conv{number}.norm.", f".norm{number}." if norms else f".conv{number}.")
        short = short.replace(".conv.", ".") if every_conv else short
        short = short.replace(".conv3.", ".projection.") if projection else short
        ours[name] = short
    return ours


RENAME = Exercise(
    number="06.5",
    title="published names into ours",
    goal="Write `rename(names)`: a dictionary from each published name that is needed to the name it has here; repeats "
    "and weights that nothing uses are left out.",
    minutes=25,
    difficulty=4,
    reference=rename,
    cases=(
        Case(
            "heads and upsamplings",
            (["decoder.seg_layers.0.weight", "decoder.upsample_layers.0.conv.weight", "decoder.seg_layers.1.bias"],),
        ),
        Case(
            "both kinds of residual block",
            (
                [
                    "encoder.stem.0.conv1.weight",
                    "encoder.stem.0.norm2.bias",
                    "encoder.stem.0.conv3.weight",
                    "decoder.stages.0.1.conv1.conv.weight",
                    "decoder.stages.0.1.conv2.norm.weight",
                ],
            ),
        ),
        Case(
            "the encoder a second time",
            (["encoder.stages.0.0.conv1.weight", "decoder.encoder.stages.0.0.conv1.weight"],),
        ),
        Case(
            "a convolution and its norm listed again",
            (
                [
                    "encoder.stem.1.conv1.conv.bias",
                    "encoder.stem.1.conv1.all_modules.0.bias",
                    "encoder.stem.1.conv1.all_modules.1.weight",
                ],
            ),
        ),
        Case(
            "mixers",
            (
                [
                    "encoder.xlstm_layers.1.conv2.norm.bias",
                    "encoder.xlstm_layers.2.norm.weight",
                    "encoder.xlstm_layers.2.vil.norm.weight",
                    "encoder.xlstm_layers.2.vil.layer.conv1d.conv.weight",
                ],
            ),
        ),
        Case("the mixer of the variant bot", (["xlstm.norm.bias", "xlstm.vil.norm.weight", "xlstm.vil.layer.skip"],)),
        Case(
            "trained on several GPUs",
            (
                [
                    "module.encoder.stem.0.conv3.bias",
                    "module.decoder.encoder.stem.0.conv3.bias",
                    "module.xlstm.norm.bias",
                ],
            ),
        ),
    ),
    hints=(
        "Go through the names one by one: decide first whether it is needed, then replace pieces of it.",
        "Leave out what begins with `decoder.encoder.`, what holds `.all_modules.`, and the norms directly below "
        "`xlstm.` and `encoder.xlstm_layers.N.`; the norm below `vil.` is a working part of the ViL block.",
        "Only the convolutions `conv1` and `conv2` of a block carry the extra `.conv.` or `.norm.`: replace "
        "`.conv1.conv.` by `.conv1.` and `.conv1.norm.` by `.norm1.`, whole, and the same for 2.",
    ),
    mistakes=(
        Mistake(
            "the encoder kept twice",
            lambda names: _rename(names, drop=("again", "unused")),
            "names that begin with `decoder.encoder.` are the encoder once more: the decoder holds a second "
            "reference to it.",
        ),
        Mistake(
            "all_modules kept",
            lambda names: _rename(names, drop=("copy", "unused")),
            "names with `.all_modules.` list a convolution and its norm a second time. Leave them out.",
        ),
        Mistake(
            "the unused norm kept",
            lambda names: _rename(names, drop=("copy", "again")),
            "each published mixer owns a norm that no computation uses: `xlstm.norm.*` and "
            "`encoder.xlstm_layers.N.norm.*`. There is no place for it here.",
        ),
        Mistake(
            "every norm near a mixer dropped",
            lambda names: _rename(names, drop=("copy", "again", "any norm")),
            "you dropped norms that do work: `vil.norm` normalises the tokens, and a residual block in a mixer's place "
            "has norms too. Unused is only the one directly below `xlstm.` or `encoder.xlstm_layers.N.`",
        ),
        Mistake(
            "every conv shortened",
            lambda names: _rename(names, every_conv=True),
            "you shorten `.conv.` wherever it stands. Upsamplings and the convolution of the ViL layer keep theirs: "
            "only `.conv1.conv.` and `.conv2.conv.` lose it.",
        ),
        Mistake(
            "norms named like convolutions",
            lambda names: _rename(names, norms=False),
            "`.conv1.norm.` became `.conv1.`: now a norm has the name of a convolution. It is `.norm1.`",
        ),
        Mistake(
            "no projection",
            lambda names: _rename(names, projection=False),
            "`.conv3.`, the 1x1 convolution that takes the input along, is called `.projection.` here.",
        ),
        Mistake(
            "module. kept",
            lambda names: _rename(names, prefix=False),
            "a network trained on several GPUs has `module.` before all names. Take it off first: your other rules "
            "look at how a name begins.",
        ),
        Mistake(
            "turned round",
            lambda names: {ours: name for name, ours in rename(names).items()},
            "your dictionary leads from our names to the published ones. Published names are the keys.",
        ),
    ),
    not_tested="the names inside a ViL layer, and the two gate maps that become one: `load_published` knows them.",
)

EXERCISES = (STAGES_NEEDED, RENAME)
