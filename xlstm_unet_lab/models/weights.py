"""Weights on disk: one safetensors file, with the facts about them as JSON in its header."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from xlstm_unet_lab.models.published import differences
from xlstm_unet_lab.ops.files import write_whole


def save_weights(model: nn.Module, path: str | Path, facts: Mapping | None = None) -> Path:
    """Write the model's weights and `facts` (anything JSON holds) to one file, whole or not at all.

    The file is written beside its place, flushed to the disk and then renamed, so that a crash leaves either the old
    file or the new one. Raises TypeError for facts that JSON cannot hold, OSError when the disk refuses.
    """
    return save_tensors(model.state_dict(), path, {"facts": dict(facts or {})})


def load_weights(model: nn.Module, path: str | Path) -> dict:
    """Put the weights of `path` into the model, in place, and return the facts saved with them.

    Raises FileNotFoundError, and ValueError when the file is damaged or was saved from another configuration; then
    the model is unchanged and the message lists missing and unexpected names and other shapes.
    """
    tensors, header = load_tensors(path)
    if lines := differences(tensors, model):
        raise ValueError(
            f"{path} does not fit this model: build it with the configuration the file was saved from\n"
            + "\n".join(lines)
        )
    model.load_state_dict(tensors)
    return header.get("facts", {})


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, header: Mapping | None = None) -> Path:
    """Write tensors by name to one safetensors file, with `header` (name -> what JSON holds), whole or not at all."""
    from safetensors.torch import save

    # clones: safetensors refuses tensors that share memory, and a channels-last layout would be lost
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    texts = {name: json.dumps(value) for name, value in (header or {}).items()}
    return write_whole(path, save(whole, metadata=texts))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the header of a file that `save_tensors` wrote.

    Raises FileNotFoundError, and ValueError for a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator of its own)
            header = file.metadata() or {}
            # "format" is the one entry other programs write, and no JSON
            return tensors, {name: json.loads(text) for name, text in header.items() if name != "format"}
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file ({error}): copy or train it again") from error
