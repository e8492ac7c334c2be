"""Weights on disk: one safetensors file, with the facts about them as JSON in its header; and a network from it.

What a file says of its network is not trusted, and nothing is downloaded for it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from xlstm_unet_lab.models.presets import build
from xlstm_unet_lab.ops.devices import with_values
from xlstm_unet_lab.ops.files import write_whole
from xlstm_unet_lab.ops.stored import parse_json
from xlstm_unet_lab.ops.tensors import FLOATS

SIGN = "sha256:"  # what a checksum begins with
MOST, LARGEST = 1000, 2**16  # numbers among the arguments of a network, and the largest of them: far beyond any here
CALLS = 100, 10**4  # of PyTorch while a network is built, for each of its tensors, and besides
AGAIN = "copy it again from where it is whole, or train it again"


def save_weights(model: nn.Module, path: str | Path, facts: Mapping | None = None) -> Path:
    """Write the model's weights and `facts` (anything JSON holds) to one file, whole or not at all.

    The file is written beside its place, flushed to the disk and then renamed, so that a crash leaves either the old
    file or the new one. Raises TypeError for facts that JSON cannot hold, OSError when the disk refuses.
    """
    return save_tensors(with_values("model", model).state_dict(), path, {"facts": dict(facts or {})})


def load_weights(model: nn.Module, path: str | Path) -> dict:
    """Put the weights of `path` into the model, in place, and return the facts saved with them.

    Raises FileNotFoundError, and ValueError when the file is damaged, holds numbers that are not finite or was saved
    from another configuration; then the model is unchanged and the message lists what differs.
    """
    tensors, header = load_tensors(path)
    check_weights(tensors, with_values("model", model), f"{path} does not fit this model: build it as the one saved")
    model.load_state_dict(tensors)
    return header.get("facts", {})


def check_weights(state: Mapping[str, Tensor], model: nn.Module, words: str) -> None:
    """ValueError unless these are weights of the model: the words, how many parameters differ, and a line for each.

    A parameter differs that is missing, unexpected, of another shape or kind of number, or not finite.
    """
    ours = model.state_dict()
    lines = [f"missing: {name} {tuple(ours[name].shape)}" for name in ours if name not in state]
    lines += [f"unexpected: {name} {tuple(state[name].shape)}" for name in state if name not in ours]
    for name, own, given in ((name, ours[name], state[name]) for name in ours if name in state):
        if given.shape != own.shape:
            lines.append(f"shape: {name} is {tuple(given.shape)} in the file, {tuple(own.shape)} in the model")
        elif given.dtype != own.dtype and not {given.dtype, own.dtype} <= set(FLOATS):
            lines.append(f"dtype: {name} is {given.dtype} in the file, {own.dtype} in the model")
        elif not given.to(own.dtype).isfinite().all():
            lines.append(f"not finite: {name} holds NaN, infinity or numbers too large for {own.dtype}")
    if lines:
        raise ValueError("\n  ".join([f"{words}, {len(lines)} parameters differ:", *lines]))


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, header: Mapping | None = None) -> Path:
    """Write tensors by name to one safetensors file, with `header` (name -> what JSON holds), whole or not at all.

    A checksum of all of it goes into the header, by which `load_tensors` knows that no bit has changed since.
    """
    from safetensors.torch import save

    # clones: safetensors refuses tensors that share memory, and a channels-last layout would be lost
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    texts = {name: json.dumps(value) for name, value in (header or {}).items()}
    for name, text in texts.items():
        parse_json(text, f"{name!r}, to be saved in {path},", object)
    return write_whole(path, save(whole, metadata=texts | {"checksum": checksum(whole, texts)}))


def checksum(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """Of names, dtypes, shapes and bytes of the tensors, and of the texts in the header beside them."""
    digest = hashlib.sha256(json.dumps(sorted(texts.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return SIGN + digest.hexdigest()


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the header of a file that `save_tensors` wrote; of another program's, the tensors.

    Raises FileNotFoundError, and ValueError for a damaged file. Files from before there were checksums have none to
    be held against.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator of its own)
            texts = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file ({error}): {AGAIN}") from error
    # Known by their beginning too, for the bit that changed may be one of the word "checksum".
    stated = {name: text for name, text in texts.items() if name == "checksum" or text.startswith(SIGN)}
    texts = {name: text for name, text in texts.items() if name not in stated}
    if stated and list(stated.values()) != [checksum(tensors, texts)]:
        raise ValueError(f"{path} is damaged, it does not have the checksum that it was saved with: {AGAIN}")
    ours = {"facts"} & texts.keys()  # other programs have words of their own there
    return tensors, {name: parse_json(texts[name], f"{name!r} in the header of {path}") for name in ours}


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
