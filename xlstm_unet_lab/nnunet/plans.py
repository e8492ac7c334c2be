"""What the command line says of nnU-Net: where its trainers are, and plans that a processor can work off."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlstm_unet_lab.ops.checks import one_of
from xlstm_unet_lab.ops.files import write_whole
from xlstm_unet_lab.ops.stored import read_json

PLANS, SMALL = "nnUNetPlans", "nnUNetPlansSmall"
PREPROCESSED = "nnUNet_preprocessed"  # nnU-Net's environment variable
LARGEST_PATCH, BATCH = {2: 128, 3: 48}, {2: 4, 3: 2}  # by dimensions of the patch; voxels an axis
SMALLEST_MAP = 4  # positions an axis keeps
FEATURES = 8, 64  # of the first stage, and at most


def told(what: str, dataset: str = "") -> Path:
    """What `xlstm-unet-lab nnunet` prints: the folder that nnUNet_extTrainer must name, or the small plans it wrote.

    Raises ValueError for another word than "trainers" or "plans", and as `write_small_plans`.
    """
    asked = one_of("what nnunet is asked for", what, ("trainers", "plans"))
    return Path(__file__).with_name("trainers") if asked == "trainers" else write_small_plans(dataset)


def write_small_plans(dataset: str) -> Path:
    """Plans like those of a preprocessed data set, with patches, batches and widths for a processor; their path.

    dataset: its number or name, as nnU-Net takes it. The preprocessed cases serve both. Raises FileNotFoundError where
    it is not preprocessed, ModuleNotFoundError without nnunetv2.
    """
    root = Path(os.environ.get(PREPROCESSED) or "nowhere")
    found = [*root.glob(f"Dataset{dataset.zfill(3)}_*/{PLANS}.json"), *root.glob(f"{dataset or '-'}/{PLANS}.json")]
    if len(found) != 1:
        fix = f"name one that nnUNetv2_plan_and_preprocess wrote to, and let {PREPROCESSED} name the folder of all"
        raise FileNotFoundError(f"{root} has {len(found)} data sets {dataset!r} with {PLANS}.json: {fix}")
    plans = read_json(found[0])
    small = {name: _small(facts) for name, facts in plans["configurations"].items() if "architecture" in facts}
    written = {**plans, "plans_name": SMALL, "configurations": plans["configurations"] | small}
    return write_whole(found[0].with_name(f"{SMALL}.json"), json.dumps(written, indent=2, default=int).encode())


def _small(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of a plan with less of everything, as nnU-Net's own rule has it for the smaller patch."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    dimensions, spacing = len(configuration["patch_size"]), configuration["spacing"]
    patch = [min(extent, LARGEST_PATCH[dimensions]) for extent in configuration["patch_size"]]
    _, strides, kernels, patch, _ = get_pool_and_conv_props(spacing, patch, SMALLEST_MAP, 999)
    stages, first, most = len(strides), *FEATURES
    architecture = configuration["architecture"]
    counts = {name: n for name, n in architecture["arch_kwargs"].items() if name.startswith(("n_conv_", "n_blocks_"))}
    arguments = architecture["arch_kwargs"] | {
        "n_stages": stages,
        "features_per_stage": [min(first * 2**stage, most) for stage in range(stages)],
        "strides": strides,
        "kernel_sizes": kernels,
        **{name: n[: stages - name.endswith("_decoder")] for name, n in counts.items()},
    }
    return {
        **configuration,
        "patch_size": list(patch),  # NumPy's whole numbers
        "batch_size": min(configuration["batch_size"], BATCH[dimensions]),
        "architecture": architecture | {"arch_kwargs": arguments},
    }
