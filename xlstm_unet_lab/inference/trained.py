"""What is known of a trained network from the data that it learnt from."""

from typing import Any

from xlstm_unet_lab.data.cases import Facts
from xlstm_unet_lab.data.targets import Targets

# What happens to an image before the network sees it. Prepared pictures have 8 bits, so deeper ones are brought to 8
# first, and a grey one fills the channels of a network for colour. What comes from a data set needs nothing any more.
Z_SCORE, EIGHT_BITS, DONE = NORMALISATIONS = ("z-score", "8 bits, then z-score", "done")


def known_of(facts: Facts, targets: Targets | None = None) -> dict[str, Any]:
    """What a Predictor must know of the data that its network learns from, by the names of its fields."""
    recipe = facts.recipe
    if recipe is None:
        return {"targets": targets}
    targets = targets or recipe.targets
    learnt = {value for values in (targets.painted, *targets.values) for value in values}
    colours = {value: colour for value, colour in recipe.shown_colours.items() if value in learnt}
    known = {"targets": targets, "channel_names": tuple(recipe.channel_names), "colours": colours}
    known |= {"label_numbers": dict(recipe.label_numbers), "unit": recipe.spacing_unit, "credit": recipe.credit}
    known |= {"slice_axis": facts.slice_axis, "mirror_axes": facts.flip_axes}
    return known | {"normalisation": EIGHT_BITS if recipe.file_ending == ".png" and recipe.splits is None else Z_SCORE}
