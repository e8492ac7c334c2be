"""The settings of a training run, checked where they are written down, and the learning rate they ask for."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from xlstm_unet_lab.data.augment import Augmentation
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.ops.checks import checked_spacing, flag, number, of_kind, one_of, sizes, whole_number

# What checks a field, from its name and value, and gives it back as a plain number.
RULES: dict[str, Callable[[str, object], object]] = {
    **dict.fromkeys(("batch_size", "devices", "num_nodes"), partial(whole_number, at_most=2**16)),
    **dict.fromkeys(("steps", "validate_every", "validation_cases", "save_every"), whole_number),
    **dict.fromkeys(("seed", "warmup_steps"), partial(whole_number, at_least=0)),
    "workers": partial(whole_number, at_least=0, at_most=2**10),
    **dict.fromkeys(("learning_rate", "gradient_clip"), partial(number, above=0, at_most=1e30)),
    **dict.fromkeys(("weight_decay", "polynomial_power"), partial(number, at_least=0, at_most=1e30)),
    **dict.fromkeys(("channels_last", "compile"), flag),
    "foreground_probability": partial(number, at_least=0, at_most=1),
    "ema_decay": partial(number, above=0, below=1),
    "precision": partial(one_of, known=("auto", "32-true", "bf16-mixed", "16-mixed")),
}


@dataclass(frozen=True)
class TrainConfig:
    """All settings of `fit`; raises ValueError or TypeError for a value that cannot work, naming the field."""

    patch_size: tuple[int, ...]  # voxels a patch has in each dimension, in array order (z, y, x)
    steps: int = 1000  # optimiser steps in all
    batch_size: int = 8  # patches a step, over all devices together
    learning_rate: float = 1e-3  # the highest one, reached after the warm-up
    weight_decay: float = 1e-2  # AdamW's; biases, norms and other vectors are left out
    warmup_steps: int | None = None  # steps in which the rate climbs to its highest; None: a twentieth of all
    polynomial_power: float = 0.9  # the rate falls as (1 - progress) ** power; 0 keeps it constant
    gradient_clip: float | None = 1.0  # largest norm of the whole gradient; None: never clipped
    precision: str = "auto"  # the fastest here (`best_precision`), or "32-true", "bf16-mixed", "16-mixed" (needs a GPU)
    accelerator: str = "auto"  # "cpu", "cuda", "mps", or "auto": the best there is
    devices: int = 1  # devices on each node
    num_nodes: int = 1  # machines that train together
    workers: int | None = None  # processes that cut patches; 0: the training process does; None: see `machine.settled`
    seed: int = 0  # of patches, augmentation and dropout
    validate_every: int | None = None  # steps between validations; None: only after the last step
    validation_cases: int | None = None  # how many cases, spread over the validation set; None: all of them
    save_every: int | None = None  # steps between checkpoints in a run directory; None: at every validation
    channels_last: bool | None = None  # memory layout of images and weights; None: the faster one, see there
    compile: bool = False  # torch.compile: minutes at first, then faster steps on GPUs; needs a C++ compiler on CPUs
    ema_decay: float | None = None  # validate and keep a running mean of the weights, such as 0.999; None: as they are
    augment: bool | Augmentation = True  # what the data set's recipe allows; or an Augmentation of your own
    foreground_probability: float = 1 / 3  # share of patches centred on a labelled voxel
    spacing: tuple[float, ...] | None = None  # (z, y, x) to bring every case to; None: each stays on its own grid
    targets: Targets | None = None  # what the channels stand for; None: the recipe's, or classes without a recipe

    def __post_init__(self):
        checked: dict[str, object] = {"patch_size": sizes("patch_size", self.patch_size, 2, 3)}
        annotations: dict[str, Any] = {field.name: field.type for field in fields(self)}
        for name, check in RULES.items():
            value = getattr(self, name)
            if value is not None or not isinstance(None, annotations[name]):
                checked[name] = check(name, value)
        if self.spacing is not None:
            checked["spacing"] = checked_spacing(self.spacing, len(self.patch_size))
        vars(self).update(checked)  # as the class is frozen
        kinds = {"augment": (bool, Augmentation), "targets": (Targets, type(None)), "accelerator": (str,)}
        for name, expected in kinds.items():
            of_kind(name, getattr(self, name), *expected)
        if self.warmup_steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be below steps={self.steps}")
        if self.batch_size % (processes := self.devices * self.num_nodes):
            words = f"num_nodes={self.num_nodes} of devices={self.devices} cannot share batch_size={self.batch_size}"
            raise ValueError(f"{words}: make it a multiple of {processes}")


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The learning rate of optimiser step `step` (1..steps): a linear climb, then a polynomial fall towards 0."""
    warmup = config.steps // 20 if config.warmup_steps is None else config.warmup_steps
    if step <= warmup:
        return config.learning_rate * step / warmup
    progress = (step - 1 - warmup) / (config.steps - warmup)
    return config.learning_rate * (1 - progress) ** config.polynomial_power
