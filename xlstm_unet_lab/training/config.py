"""The settings of a training run, checked where they are written down, and the learning rate they ask for."""

import math
from dataclasses import dataclass

from xlstm_unet_lab.data.augment import Augmentation
from xlstm_unet_lab.data.patches import checked_patch_size
from xlstm_unet_lab.data.resample import checked_spacing
from xlstm_unet_lab.data.targets import Targets

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def _is_count(value: object, at_least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_not_negative(value: object) -> bool:
    return _is_finite(value) and value >= 0


# Fields that may be None too.
OPTIONAL = ("validate_every", "validation_cases", "save_every", "warmup_steps", "gradient_clip", "ema_decay", "targets")
RULES = (  # what is expected, how it is tested, and of which fields
    ("a whole number of at least 1", _is_count, ("steps", "batch_size", "devices", "num_nodes")),
    ("a whole number of at least 1", _is_count, ("validate_every", "validation_cases", "save_every")),
    ("a whole number of at least 0", lambda value: _is_count(value, 0), ("workers", "seed", "warmup_steps")),
    ("a finite number above 0", lambda value: _is_finite(value) and value > 0, ("learning_rate", "gradient_clip")),
    ("a finite number of at least 0", _is_not_negative, ("weight_decay", "polynomial_power")),
    ("between 0 and 1", lambda value: _is_finite(value) and 0 <= value <= 1, ("foreground_probability",)),
    ("above 0 and below 1", lambda value: _is_finite(value) and 0 < value < 1, ("ema_decay",)),
    ("True, False or an Augmentation", lambda value: isinstance(value, (bool, Augmentation)), ("augment",)),
    ("Targets", lambda value: isinstance(value, Targets), ("targets",)),
    ("True or False", lambda value: isinstance(value, bool), ("channels_last", "compile")),
    (f"one of {', '.join(PRECISIONS)}", lambda value: value in PRECISIONS, ("precision",)),
)


@dataclass(frozen=True)
class TrainConfig:
    """All settings of `fit`; raises ValueError for a value that cannot work, naming the field."""

    patch_size: tuple[int, ...]  # voxels a patch has in each dimension, in array order (z, y, x)
    steps: int = 1000  # optimiser steps in all
    batch_size: int = 8  # patches a step, over all devices together
    learning_rate: float = 1e-3  # the highest one, reached after the warm-up
    weight_decay: float = 1e-2  # AdamW's; biases, norms and other vectors are left out
    warmup_steps: int | None = None  # steps in which the rate climbs to its highest; None: a twentieth of all
    polynomial_power: float = 0.9  # the rate falls as (1 - progress) ** power; 0 keeps it constant
    gradient_clip: float | None = 1.0  # largest norm of the whole gradient; None: never clipped
    precision: str = "32-true"  # or "bf16-mixed", or "16-mixed" (needs a GPU)
    accelerator: str = "auto"  # "cpu", "cuda", "mps", or "auto": the best there is
    devices: int = 1  # devices on each node
    num_nodes: int = 1  # machines that train together
    workers: int = 0  # processes that cut and augment patches; 0: the training process does
    seed: int = 0  # of patches, augmentation and dropout
    validate_every: int | None = None  # steps between validations; None: only after the last step
    validation_cases: int | None = None  # how many cases, spread over the validation set; None: all of them
    save_every: int | None = None  # steps between checkpoints in a run directory; None: at every validation
    channels_last: bool = False  # memory layout of images and weights; often faster on GPUs and in bfloat16
    compile: bool = False  # torch.compile: minutes at first, then faster steps on GPUs; needs a C++ compiler on CPUs
    ema_decay: float | None = None  # validate and keep a running mean of the weights, such as 0.999; None: as they are
    augment: bool | Augmentation = True  # what the data set's recipe allows; or an Augmentation of your own
    foreground_probability: float = 1 / 3  # share of patches centred on a labelled voxel
    spacing: tuple[float, ...] | None = None  # (z, y, x) to bring every case to; None: each stays on its own grid
    targets: Targets | None = None  # what the channels stand for; None: the recipe's, or classes without a recipe

    def __post_init__(self):
        object.__setattr__(self, "patch_size", checked_patch_size(self.patch_size))
        for expected, accepts, names in RULES:
            for name in names:
                value, optional = getattr(self, name), name in OPTIONAL
                if not (accepts(value) or (optional and value is None)):
                    raise ValueError(f"{name}={value!r} must be {'None or ' * optional}{expected}")
        if self.spacing is not None:
            object.__setattr__(self, "spacing", checked_spacing(self.spacing, len(self.patch_size)))
        if self.warmup_steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be below steps={self.steps}")
        processes = self.devices * self.num_nodes
        if self.batch_size % processes:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared by devices={self.devices} on num_nodes="
                f"{self.num_nodes}: make it a multiple of {processes}"
            )


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The learning rate of optimiser step `step` (1..steps): a linear climb, then a polynomial fall towards 0."""
    warmup = config.steps // 20 if config.warmup_steps is None else config.warmup_steps
    if step <= warmup:
        return config.learning_rate * step / warmup
    progress = (step - 1 - warmup) / (config.steps - warmup)
    return config.learning_rate * (1 - progress) ** config.polynomial_power
