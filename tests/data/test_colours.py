"""A label's value has one colour: the recipe's, else one that colour-blind readers tell apart."""

import numpy as np
import pytest

from xlstm_unet_lab.data.colours import BLUE, GREY, LABEL_COLOURS, ORANGE, in_colour, label_colours
from xlstm_unet_lab.data.registry import get_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_colours_every_label_but_the_background(name):
    recipe = get_recipe(name)
    found = label_colours(recipe.labels, recipe.colours)
    assert found == {recipe.labels[label]: colour for label, colour in recipe.colours.items()}
    assert list(found) == list(range(1, len(recipe.labels)))
    assert label_colours(recipe.targets.foreground).keys() <= found.keys()


def test_a_value_keeps_its_colour_whatever_else_is_given():
    labels = {"background": 0, "whole": (1, 2, 5), "core": (2, 5), "ignore": 5}
    assert label_colours(labels) == {1: LABEL_COLOURS[0], 2: LABEL_COLOURS[1], 5: LABEL_COLOURS[2]}
    assert label_colours(labels, {"ignore": GREY}) == {1: BLUE, 2: ORANGE, 5: GREY}
    with pytest.raises(KeyError, match="liver"):
        label_colours(labels, {"liver": GREY})


def test_colours_differ_until_they_repeat():
    found = list(label_colours({str(value): value for value in range(1, 16)}).values())
    assert len(set(found[:14])) == 14 and found[14] == found[0]


def test_a_label_map_in_colour():
    label = np.array([[0, 1], [7, 3]])
    picture = in_colour(label, {1: BLUE, 3: "#e69f00"})
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[0, 0, 0], [0, 0x72, 0xB2]], [[0, 0, 0], [0xE6, 0x9F, 0]]]
