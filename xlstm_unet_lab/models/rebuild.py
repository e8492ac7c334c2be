"""A network from what a file says of it: nothing in the file is trusted, nothing is downloaded for it."""

import math
from collections.abc import Mapping
from reprlib import repr as short

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from xlstm_unet_lab.models.presets import build
from xlstm_unet_lab.models.weights import check_weights

MOST, LARGEST = 1000, 2**16  # numbers among the arguments of a network, and the largest of them: far beyond any here
CALLS = 100, 10**4  # of PyTorch while a network is built, for each of its tensors, and besides


def rebuild(arguments: object, tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """The network that `build(**arguments)` made, as `arguments_of` kept them, with its weights from `tensors`.

    It is first outlined without memory, and its parameters are held against the tensors. Raises ValueError, naming
    `where`, for arguments that build nothing, or a network that these tensors are not the weights of.
    """
    try:
        known = dict(arguments)  # type: ignore[call-overload]  # it refuses what is none
        known |= {"pretrained": False} if "pretrained" in known else {}
        numbers = [leaf for leaf in tree_leaves(known) if isinstance(leaf, int | float)]
        if len(numbers) > MOST or max(map(abs, numbers), default=0) > LARGEST:
            raise ValueError(f"expected at most {MOST} numbers, none beyond {LARGEST:,}")
        window, largest = known.get("window_size", 1), max((tensor.numel() for tensor in tensors.values()), default=0)
        window = window if isinstance(window, list | tuple) else [window] * len(known["patch_size"])
        # The outline computes for real what a file holds of a window of attention: a number for each pair of positions.
        if math.prod(tree_leaves(window)) ** 2 > max(largest, 1):
            raise ValueError(f"the file's tensors are too small for the pairs of positions in a window of {window}")
        with torch.device("meta"), _Outline(CALLS[0] * len(tensors) + CALLS[1]):
            outline = build(**known)
    except Exception as error:  # whatever a library raises for what it never was meant to build
        raise ValueError(f"{where}: no network can be built with {short(arguments)}: {error}") from error
    check_weights(tensors, outline, f"{where} does not fit the network it describes")
    network = build(**known)
    network.load_state_dict(tensors)
    return network


class _Outline(TorchFunctionMode):
    """Beside the meta device: what libraries compute sizes from stays real, and a million blocks are given up."""

    def __init__(self, calls: int):
        super().__init__()
        self.left = calls

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.left -= 1
        if self.left < 0:
            raise ValueError("it would have far more parameters than the file has tensors")
        real = {"device": "cpu"} if function in (torch.linspace, torch.arange, torch.tensor) else {}
        return function(*args, **{**real, **(kwargs or {})})
