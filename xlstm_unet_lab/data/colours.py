"""The colours of labels, in files, pictures, napari and the slicer alike."""

from collections.abc import Mapping, Sequence

import numpy as np

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print.
BLUE, ORANGE, GREEN, SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
VERMILION, PURPLE, YELLOW, GREY = "#D55E00", "#CC79A7", "#F0E442", "#767676"
LABEL_COLOURS = (  # for labels that come without a colour; then darker and lighter steps of the first seven
    *(BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW),
    *("#004C77", "#7A5400", "#005C43", "#7A3E63", "#B3DCF2", "#7F3800", "#F5C9DD"),
)
OPACITY = 0.55  # of label colours over an image


def label_colours(
    labels: Mapping[str, int | Sequence[int]], colours: Mapping[str, str] | None = None
) -> dict[int, str]:
    """Label value -> "#RRGGBB", in the order of the values, background left out.

    labels: name -> label value, or the values of a region; colours: name -> colour, as a recipe has them. A value that
    gets none takes the one of `LABEL_COLOURS` at its place among all values, so that it keeps it whatever else is
    given. Colours repeat after as many as there are. Raises KeyError for a colour of a name that is no label.
    """
    covered = {name: np.atleast_1d(values).tolist() for name, values in labels.items()}
    values = sorted({value for some in covered.values() for value in some} - {0})
    found = {value: LABEL_COLOURS[place % len(LABEL_COLOURS)] for place, value in enumerate(values)}
    return found | {value: colour for name, colour in (colours or {}).items() for value in covered[name]}


def in_colour(label: np.ndarray, colours: Mapping[int, str]) -> np.ndarray:
    """A label map (*spatial) as a picture in red, green and blue, uint8 (*spatial, 3); black where no colour is set.

    colours: label value -> "#RRGGBB".
    """
    picture = np.zeros((*label.shape, 3), np.uint8)
    for value, colour in colours.items():
        picture[label == value] = tuple(bytes.fromhex(colour.removeprefix("#")))
    return picture
