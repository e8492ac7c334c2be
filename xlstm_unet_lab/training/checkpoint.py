"""Weights on disk: one safetensors file, with the facts about them as JSON in its header."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from xlstm_unet_lab.data.files import write_whole
from xlstm_unet_lab.models.published import differences


def save_weights(model: nn.Module, path: str | Path, facts: Mapping | None = None) -> Path:
    """Write the model's weights and `facts` (anything JSON holds) to one file, whole or not at all.

    The file is written beside its place, flushed to the disk and then renamed, so that a crash leaves either the old
    file or the new one. Raises TypeError for facts that JSON cannot hold, OSError when the disk refuses.
    """
    from safetensors.torch import save

    spacing = getattr(model, "training_spacing", None)
    header = {"facts": json.dumps(dict(facts or {})), "training_spacing": json.dumps(spacing)}
    # clones: safetensors refuses tensors that share memory, and a channels-last layout would be lost
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    return write_whole(path, save(tensors, metadata=header))


def load_weights(model: nn.Module, path: str | Path) -> dict:
    """Put the weights of `path` into the model, in place, and return the facts saved with them.

    Raises FileNotFoundError, and ValueError when the file is damaged or was saved from another configuration; then
    the model is unchanged and the message lists missing and unexpected names and other shapes.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator of its own)
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file ({error}): copy or train it again") from error
    if lines := differences(tensors, model):
        raise ValueError(
            f"{path} does not fit this model: build it with the configuration the file was saved from\n"
            + "\n".join(lines)
        )
    model.load_state_dict(tensors)
    spacing = json.loads(header.get("training_spacing", "null"))
    if spacing is not None:
        model.training_spacing = tuple(spacing)
    return json.loads(header.get("facts", "{}"))
