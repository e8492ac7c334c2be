"""What predicting a volume takes beside image and result."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from xlstm_unet_lab.inference.predictor import Predictor

SIZE, PATCH = (80, 96, 96), (8, 48, 48)


class TensorMemory(TorchDispatchMode):
    """Notes how many bytes of tensors were there at once, at the most, of all that were made inside."""

    def __init__(self):
        super().__init__()
        self.there, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.there[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.there = {place: entry for place, entry in self.there.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.there.values()))
        return made


def taken(work) -> tuple[np.ndarray, int]:
    """A result, and the most bytes of tensors, or of arrays they look into, that were there beside it."""
    with TensorMemory() as tensors:
        result = work()
    return result, tensors.peak - result.nbytes


@pytest.mark.parametrize("slice_axis", [None, 0])
@pytest.mark.parametrize("what", ["__call__", "probabilities"])
def test_predicting_takes_at_most_4_bytes_a_voxel_beside_image_and_result(what, slice_axis):
    dims = 3 if slice_axis is None else 2
    torch.manual_seed(0)
    network = (nn.Conv2d, nn.Conv3d)[dims - 2](1, 4, 1)
    predictor = Predictor(network, PATCH[-dims:], slice_axis=slice_axis)
    image = np.random.default_rng(0).integers(256, size=(1, *SIZE), dtype=np.uint8)
    predictor(image[:, :8, :48, :48])  # what is loaded and kept at the first call is not of the image
    result, beside = taken(lambda: getattr(predictor, what)(image, overlap=0.25))
    assert result.shape[-3:] == SIZE and beside < 4 * image.size


def test_memory_of_tensors_and_of_arrays_they_look_into_is_seen():
    array = np.zeros((1000, 100), np.float32)
    assert taken(lambda: (torch.ones(1000, 100) + torch.ones(1000, 100)).numpy())[1] == 800_000
    assert taken(lambda: (torch.from_numpy(array)[:10] + 1).numpy())[1] == 400_000
