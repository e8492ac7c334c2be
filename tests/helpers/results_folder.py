"""Results folders as nnU-Net leaves them, with weights that nobody trained, and images to predict."""

import json

import nibabel
import numpy as np
import torch
from safetensors.torch import load_file, save_file

SPATIAL = {2: "2d", 3: "3d_fullres"}
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
INTENSITIES = {"mean": 90.0, "std": 40.0, "percentile_00_5": 20.0, "percentile_99_5": 180.0}


def golden_facts(folder):
    """What a plan needs of a golden set, and its weights."""
    facts = json.loads((folder / "config.json").read_text())
    return facts, load_file(folder / "weights.safetensors")


def small_facts(dimensions, classes=3, channels=1):
    """Numbers of a small plan."""
    return {
        "spatial_dims": dimensions,
        "in_channels": channels,
        "num_classes": classes,
        "features": [4, 8, 12],
        "patch_size": [8, 16, 24][-dimensions:],
        "strides": [[1] * dimensions, [2] * dimensions, [1, 2, 2][-dimensions:]],
        "kernels": [[3] * dimensions] * 3,
        "blocks": [2] * 3,
        "decoder_blocks": [2] * 2,
    }


def plans(
    facts,
    *,
    scheme="ZScoreNormalization",
    spacing=(3.0, 1.5, 1.0),
    transpose=(0, 1, 2),
    old=False,
    reader="SimpleITKIO",
):
    """A plans.json; `old` as nnU-Net 2.1 wrote it, whose widths double from a first one."""
    dimensions, stages = facts["spatial_dims"], len(facts["features"])
    conv = f"torch.nn.modules.conv.Conv{dimensions}d"
    norm = f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d"
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": facts["patch_size"],
        "median_image_size_in_voxels": [16.0] * dimensions,
        "spacing": [spacing[axis] for axis in transpose][-dimensions:],
        "normalization_schemes": [scheme] * facts["in_channels"],
        "use_mask_for_norm": [scheme != "CTNormalization"] * facts["in_channels"],
        "batch_dice": True,
    }
    for what in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{what}_kwargs"] = RESAMPLING | {"is_seg": what == "seg"}
    if old:
        configuration |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": facts["features"][0],
            "unet_max_num_features": facts["features"][-1],
            "n_conv_per_stage_encoder": facts["blocks"],
            "n_conv_per_stage_decoder": facts["decoder_blocks"],
            "num_pool_per_axis": [stages - 1] * dimensions,
            "pool_op_kernel_sizes": facts["strides"],
            "conv_kernel_sizes": facts["kernels"],
        }
    else:
        arguments = {
            "n_stages": stages,
            "features_per_stage": facts["features"],
            "conv_op": conv,
            "kernel_sizes": facts["kernels"],
            "strides": facts["strides"],
            "n_conv_per_stage": facts["blocks"],
            "n_conv_per_stage_decoder": facts["decoder_blocks"],
            "conv_bias": True,
            "norm_op": norm,
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        configuration["architecture"] = {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    return {
        "dataset_name": "Dataset997_made",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {str(n): INTENSITIES for n in range(facts["in_channels"])},
        "configurations": {SPATIAL[dimensions]: configuration},
    }


def dataset_json(facts, regions=False):
    labels = {"background": 0} | {f"organ {n}": n for n in range(1, facts["num_classes"])}
    found = {"channel_names": {str(n): f"channel {n}" for n in range(facts["in_channels"])}, "labels": labels}
    if regions:  # as many regions as the network has outputs
        names = {f"region {n}": list(range(1, n + 1)) if n > 1 else [1] for n in range(1, facts["num_classes"] + 1)}
        found |= {"labels": {"background": 0} | names, "regions_class_order": list(range(1, len(names) + 1))}
    return found | {"numTraining": 1, "licence": "CC0"}


def checkpoint(weights, trainer, dimensions, axes=None):
    """What nnU-Net's trainer saves."""
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": []},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 2,
        "init_args": {"configuration": SPATIAL[dimensions], "fold": 0, "device": torch.device("cpu")},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": axes,
    }


def write_results(root, facts, trainer, folds, *, axes=None, layout="pth", regions=False, **planned):
    """A results folder, folds {"0": weights, ...}; layout: "pth", "safetensors", or "bare" as the paper's fold_702."""
    folder = root / "Dataset997_made" / f"{trainer}__nnUNetPlans__{SPATIAL[facts['spatial_dims']]}"
    for name, weights in folds.items():
        fold = folder / f"fold_{name}"
        fold.mkdir(parents=True)
        held = checkpoint(weights, trainer, facts["spatial_dims"], axes)
        if layout == "safetensors":
            save_file(held.pop("network_weights"), fold / "checkpoint_final.safetensors")
            kept = ("init_args", "trainer_name", "inference_allowed_mirroring_axes")
            text = json.dumps({"format_version": 1, **{name: held[name] for name in kept}}, default=str)
            (fold / "checkpoint_final.json").write_text(text)
        elif layout == "bare":
            torch.save(weights, fold / "702_Bot.pth")
        else:
            torch.save(held, fold / "checkpoint_final.pth")
        home = fold if layout == "bare" else folder
        (home / "plans.json").write_text(json.dumps(plans(facts, **planned)))
        described = dataset_json(facts, regions)
        described["file_ending"] = ".png" if planned.get("reader") == "NaturalImage2DIO" else ".nii.gz"
        (home / "dataset.json").write_text(json.dumps(described))
    return folder


def write_image(folder, name, channels=1, size=(10, 30, 26), spacing=(3.0, 1.2, 1.3), axes="LPS"):
    """A case in nnU-Net's names: smooth noise beside zeros, its file's axes running as the letters say."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(sum(map(ord, name)))
    turn = nibabel.orientations.axcodes2ornt(axes)
    affine = np.diag([*spacing[::-1], 1.0])
    for channel in range(channels):
        image = random.normal(100, 30, size).cumsum(-1)[..., ::-1] / 5 + random.normal(0, 20, size)
        image[:, :3], image[..., -2:] = 0, 0
        volume = nibabel.Nifti1Image(image.astype(np.float32).T, affine)
        nibabel.save(volume.as_reoriented(turn), folder / f"{name}_{channel:04d}.nii.gz")
    return folder


def labels_in(folder):
    return {path.name: nibabel.load(path) for path in sorted(folder.glob("*.nii.gz"))}
