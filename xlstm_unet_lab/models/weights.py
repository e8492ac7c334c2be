"""Weights on disk: one safetensors file, with the facts about them as JSON in its header."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from xlstm_unet_lab.ops.devices import with_values
from xlstm_unet_lab.ops.files import write_whole
from xlstm_unet_lab.ops.stored import parse_json
from xlstm_unet_lab.ops.tensors import FLOATS

SIGN = "sha256:"  # what a checksum begins with
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
