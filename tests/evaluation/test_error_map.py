"""Every position of an error map is right, missed, extra or confused."""

import numpy as np
import pytest

from xlstm_unet_lab.evaluation.metrics import error_map


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_error_map_sorts_every_pair_of_labels(shape):
    truth, prediction = np.zeros(shape, int), np.zeros(shape, int)
    truth.flat[:4], prediction.flat[:4] = (0, 1, 0, 1), (0, 0, 2, 2)
    errors = error_map(prediction, truth)
    assert errors.dtype == np.uint8 and errors.flat[:4].tolist() == [0, 1, 2, 3] and not errors.flat[4:].any()


def test_error_map_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        error_map(np.zeros((2, 3)), np.zeros((3, 2)))
