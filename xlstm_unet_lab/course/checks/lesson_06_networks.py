"""Lesson 06: how far a U-Net sees, and what the published networks call their weights."""

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

# ------------------------------------------------------------------------------------ 06.4, is the cue within reach?


def stages_needed(rows):
    stages, reach = 1, 2 + 2  # the stem and stage 0
    while stages < 2 or reach < rows:
        fine, coarse = 2 ** (stages - 1), 2**stages  # how far apart neighbours lie on both maps
        down = fine + coarse  # two convolutions
        up = fine + 2 * fine  # the upsampling and two convolutions
        reach += down + up
        stages += 1
    return stages


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
            "down + up",
            "down",
            "you counted the way down only. The decoder's convolutions look around as well, on coarse maps too.",
        ),
        Mistake(
            "no upsampling",
            "up = fine + 2 * fine",
            "up = 2 * fine",
            "the upsampling is missing: you have the reach downwards. Upwards, a pixel may be copied from a coarse one "
            "whose centre lies at the other end of it: 2^s rows more on the way into stage s.",
        ),
        Mistake(
            "both convolutions on the coarse map",
            "fine + coarse",
            "coarse + coarse",
            "you let both convolutions of a stage work on its own map. The first one has the stride: it reads the map "
            "of the stage before, where neighbours are half as far apart.",
        ),
        Mistake("no stem", "2 + 2", "2", "the stem is missing: two convolutions at full resolution before stage 0."),
        Mistake(
            "the whole window",
            "reach < rows",
            "2 * reach + 1 < rows",
            "you compare with the whole window. A cue lies on one side: what counts is the reach from the middle to "
            "one edge.",
        ),
        Mistake(
            "strictly more", "reach < rows", "reach <= rows", "a cue exactly at the end of the reach is still seen."
        ),
        Mistake(
            "one row a convolution",
            "down + up",
            "2 + 2",
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


def _checkpoint(description: str, names: str) -> Case:
    return Case(description, (names.split(),))


RENAME = Exercise(
    number="06.5",
    title="published names into ours",
    goal="Write `rename(names)`: a dictionary from each published name that is needed to the name it has here; repeats "
    "and weights that nothing uses are left out.",
    minutes=25,
    difficulty=4,
    reference=rename,
    cases=(
        _checkpoint(
            "heads and upsamplings",
            "decoder.seg_layers.0.weight decoder.upsample_layers.0.conv.weight decoder.seg_layers.1.bias",
        ),
        _checkpoint(
            "both kinds of residual block",
            "encoder.stem.0.conv1.weight encoder.stem.0.norm2.bias encoder.stem.0.conv3.weight "
            "decoder.stages.0.1.conv1.conv.weight decoder.stages.0.1.conv2.norm.weight",
        ),
        _checkpoint(
            "the encoder a second time", "encoder.stages.0.0.conv1.weight decoder.encoder.stages.0.0.conv1.weight"
        ),
        _checkpoint(
            "a convolution and its norm listed again",
            "encoder.stem.1.conv1.conv.bias encoder.stem.1.conv1.all_modules.0.bias "
            "encoder.stem.1.conv1.all_modules.1.weight",
        ),
        _checkpoint(
            "mixers",
            "encoder.xlstm_layers.1.conv2.norm.bias encoder.xlstm_layers.2.norm.weight "
            "encoder.xlstm_layers.2.vil.norm.weight encoder.xlstm_layers.2.vil.layer.conv1d.conv.weight",
        ),
        _checkpoint("the mixer of the variant bot", "xlstm.norm.bias xlstm.vil.norm.weight xlstm.vil.layer.skip"),
        _checkpoint(
            "trained on several GPUs",
            "module.encoder.stem.0.conv3.bias module.decoder.encoder.stem.0.conv3.bias module.xlstm.norm.bias",
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
            'short.startswith("decoder.encoder.") or ',
            "",
            "names that begin with `decoder.encoder.` are the encoder once more: the decoder holds a second "
            "reference to it.",
        ),
        Mistake(
            "all_modules kept",
            ' or "all_modules" in parts',
            "",
            "names with `.all_modules.` list a convolution and its norm a second time. Leave them out.",
        ),
        Mistake(
            "the unused norm kept",
            "if unused or ",
            "if ",
            "each published mixer owns a norm that no computation uses: `xlstm.norm.*` and "
            "`encoder.xlstm_layers.N.norm.*`. There is no place for it here.",
        ),
        Mistake(
            "every norm near a mixer dropped",
            '(parts[1] == "xlstm_layers" and parts[3] == "norm")',
            '("xlstm" in short and "norm" in parts)',
            "you dropped norms that do work: `vil.norm` normalises the tokens, and a residual block in a mixer's place "
            "has norms too. Unused is only the one directly below `xlstm.` or `encoder.xlstm_layers.N.`",
        ),
        Mistake(
            "every conv shortened",
            "ours[name] = short",
            'ours[name] = short.replace(".conv.", ".")',
            "you shorten `.conv.` wherever it stands. Upsamplings and the convolution of the ViL layer keep theirs: "
            "only `.conv1.conv.` and `.conv2.conv.` lose it.",
        ),
        Mistake(
            "norms named like convolutions",
            'f".norm{number}."',
            'f".conv{number}."',
            "`.conv1.norm.` became `.conv1.`: now a norm has the name of a convolution. It is `.norm1.`",
        ),
        Mistake(
            "no projection",
            '.replace(".conv3.", ".projection.")',
            "",
            "`.conv3.`, the 1x1 convolution that takes the input along, is called `.projection.` here.",
        ),
        Mistake(
            "module. kept",
            '.removeprefix("module.")',
            "",
            "a network trained on several GPUs has `module.` before all names. Take it off first: your other rules "
            "look at how a name begins.",
        ),
        Mistake(
            "turned round",
            'ours[name] = short.replace(".conv3.", ".projection.")',
            'ours[short.replace(".conv3.", ".projection.")] = name',
            "your dictionary leads from our names to the published ones. Published names are the keys.",
        ),
    ),
    not_tested="the names inside a ViL layer, and the two gate maps that become one: `load_published` knows them.",
)

EXERCISES = (STAGES_NEEDED, RENAME)
