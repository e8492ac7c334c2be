"""The rules for plain arguments: what counts as a number, what comes back, and what the errors say."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from xlstm_unet_lab.ops.checks import (
    checked_spacing,
    checked_spatial_dims,
    flag,
    number,
    one_of,
    sizes,
    whole_number,
)


@pytest.mark.parametrize(
    ("check", "given", "wanted"),
    [
        (whole_number, np.int64(3), 3),
        (whole_number, np.uint8(1), 1),
        (partial(whole_number, at_least=0), 0, 0),
        (number, np.float32(0.5), 0.5),
        (number, 2, 2.0),
        (partial(number, at_least=0, below=1), 0, 0.0),
        (lambda name, value: sizes(name, value, 2), [np.int64(8), 4], (8, 4)),
        (lambda name, value: sizes(name, value, 2, 3), (8, 4, 2), (8, 4, 2)),
        (sizes, (), ()),
        (lambda _, value: checked_spacing(value, 3), [3, np.float64(0.5), 1.0], (3.0, 0.5, 1.0)),
        (lambda _, value: checked_spacing(value, 3), np.array([7.7, 1e-6, 1e6], np.float32), (7.7, 1e-6, 1e6)),
        (lambda _, value: checked_spacing(value, 2), (np.float16(2.2), np.float32(0.1)), (2.2, 0.1)),
        (lambda _, value: checked_spacing(value, 2), np.array([3, 1]), (3.0, 1.0)),
        (number, np.float32(2.2), 2.2),
        (lambda _, value: checked_spatial_dims(value), np.int32(3), 3),
        (flag, False, False),
        (partial(one_of, known=("a", "b")), "b", "b"),
    ],
)
def test_what_fits_comes_back_as_plain_python(check, given, wanted):
    found = check("it", given)
    assert found == wanted and type(found) is type(wanted)
    if isinstance(wanted, tuple):
        assert [type(x) for x in found] == [type(x) for x in wanted]


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float64(3), "3", None, 0, -1])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match=r"^it is .*, expected a whole number of at least 1: so$"):
        whole_number("it", value, fix=": so")
    with pytest.raises(ValueError, match=r"^it is .*, expected a tuple of 2 whole numbers of at least 1, in the order"):
        sizes("it", (8, value), 2)
    with pytest.raises(ValueError, match="expected 2 or 3"):
        checked_spatial_dims(value if value != 3 else 2.0)


@pytest.mark.parametrize("value", [True, np.nan, np.inf, "1", None, 0, 1.5, 1j])
def test_what_is_no_number_within_bounds(value):
    with pytest.raises(ValueError, match=r"^it is .*, expected a finite number above 0 and at most 1$"):
        number("it", value, above=0, at_most=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sizes("it", 8, 2, 3), "it is 8, expected a tuple of 2 or 3 whole numbers"),
        (lambda: sizes("it", "88", 2), "it is '88'"),
        (lambda: sizes("it", (8, 8.0)), r"it is \(8, 8\.0\), expected a tuple of whole numbers of at least 1$"),
        (lambda: checked_spacing((1.0, True), 2), r"spacing is \(1\.0, True\), expected 2 finite numbers above 0"),
        (lambda: checked_spacing(1.0, 1), r"spacing is 1\.0"),
        (lambda: flag("it", 1), "it is 1, expected True or False"),
        (
            lambda: one_of("it", "chunkwize", ("chunkwise", "parallel")),
            r"did you mean 'chunkwise'\?",
        ),
        (lambda: one_of("it", None, ("a", "b")), "it is None: there are a, b"),
    ],
)
def test_errors_say_the_value_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_checking_needs_no_torch():
    code = "import sys, xlstm_unet_lab.ops.checks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
