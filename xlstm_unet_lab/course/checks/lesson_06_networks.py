"""Lesson 06: how far a U-Net sees, and what the published networks call their weights."""

from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

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


STAGES_NEEDED = exercise(
    "06.4",
    stages_needed,
    cases=tuple(
        Case(f"a cue {rows} rows above", (rows,))
        for rows in (1, 8, 9, 10, 11, 20, 21, 22, 23, 24, 25, 46, 47, 100, 384)
    ),
    mistakes={
        "the encoder alone": ("down + up", "down"),
        "no upsampling": ("up = fine + 2 * fine", "up = 2 * fine"),
        "both convolutions on the coarse map": ("fine + coarse", "coarse + coarse"),
        "no stem": ("2 + 2", "2"),
        "the whole window": ("reach < rows", "2 * reach + 1 < rows"),
        "strictly more": ("reach < rows", "reach <= rows"),
        "one row a convolution": ("down + up", "2 + 2"),
    },
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


RENAME = exercise(
    "06.5",
    rename,
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
    mistakes={
        "the encoder kept twice": ('short.startswith("decoder.encoder.") or ', ""),
        "all_modules kept": (' or "all_modules" in parts', ""),
        "the unused norm kept": ("if unused or ", "if "),
        "every norm near a mixer dropped": (
            '(parts[1] == "xlstm_layers" and parts[3] == "norm")',
            '("xlstm" in short and "norm" in parts)',
        ),
        "every conv shortened": ("ours[name] = short", 'ours[name] = short.replace(".conv.", ".")'),
        "norms named like convolutions": ('f".norm{number}."', 'f".conv{number}."'),
        "no projection": ('.replace(".conv3.", ".projection.")', ""),
        "module. kept": ('.removeprefix("module.")', ""),
        "turned round": (
            'ours[name] = short.replace(".conv3.", ".projection.")',
            'ours[short.replace(".conv3.", ".projection.")] = name',
        ),
    },
)

EXERCISES = (STAGES_NEEDED, RENAME)
