"""Networks in nnU-Net's results folders as predictors: ours, the published ones and nnU-Net's own.

nnU-Net's own code prepares an image as the plan says, slides the window and brings the logits back; this module finds
and reads the files, builds the network, and does so without ever unpickling one.
"""

import contextlib
import copy
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlstm_unet_lab.data.images import VOLUMES, Case, read_case
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.data.volumes import load_volume, spacing_of
from xlstm_unet_lab.inference import load
from xlstm_unet_lab.inference.files import find_cases, predict_files
from xlstm_unet_lab.inference.predictor import Predictor, Windows
from xlstm_unet_lab.models.published import WRAPPERS, find_weights, load_published, read_checkpoint
from xlstm_unet_lab.models.unet import UNet
from xlstm_unet_lab.models.weights import check_weights
from xlstm_unet_lab.nnunet.networks import SIGNS, known_trainer, network_from_plan
from xlstm_unet_lab.ops.checks import array_of, checked_spacing, finite, one_of, tracked
from xlstm_unet_lab.ops.devices import checked_device
from xlstm_unet_lab.ops.files import as_path
from xlstm_unet_lab.ops.stored import read_json

KINDS = {"last": ("final",), "best": ("best",), None: ("final", "best")}  # `which` -> nnU-Net's checkpoints
SAFE = re.compile(r"(torch\.nn|dynamic_network_architectures)\.[\w.]+")  # what a plan may name to be imported
TURNING = "NibabelIOWithReorient"  # nnU-Net's only reader that turns volumes


@dataclass(frozen=True)
class PlannedPredictor(Predictor):
    """A network of a results folder: an image takes nnU-Net's own way to the label, as the folder's plan says.

    Of several folds the logits are averaged. Options, arguments and errors are those of `Predictor`, but windows are
    computed one at a time, and `track` wraps the folds. What the plan says cannot be saved in a predictor's file:
    `save` raises ValueError.
    """

    engine: Any = field(default=None, kw_only=True, repr=False)  # nnU-Net's predictor, with the weights of every fold

    def __call__(self, image: np.ndarray, spacing: Sequence[float] | None = None, **options) -> np.ndarray:
        return self._found(image, spacing, Windows(**options), probabilities=False)

    def probabilities(self, image: np.ndarray, spacing: Sequence[float] | None = None, **options) -> np.ndarray:
        return self._found(image, spacing, Windows(**options), probabilities=True)

    def files(self, inputs, out: str | Path, **options):
        """As `Predictor.files`, but as in nnU-Net volumes keep their files' axes, and _0000 is no part of a name."""
        turned = self.engine.plans_manager.plans["image_reader_writer"] == TURNING
        cases = [files if "_0000." in files[0].name else files[0] for files in find_cases(inputs).values()]
        return predict_files(self, cases, out, **options, read=read_case if turned else read_as_stored)

    def save(self, path: str | Path) -> Path:
        raise ValueError(f"{path} would hold no plan of nnU-Net: copy the results folder, which is complete")

    @property
    def in_channels(self) -> int:
        return len(self.channel_names)

    def _facts(self) -> dict[str, Any]:
        return {name: fact for name, fact in super()._facts().items() if name != "engine"}

    def _found(self, image: np.ndarray, spacing, windows: Windows, probabilities: bool) -> np.ndarray:
        from nnunetv2.inference import export_prediction

        image = finite("image", array_of("image", image, "iuf", self.spatial_dims + 1))
        if len(image) != self.in_channels:
            raise ValueError(f"the image has {len(image)} channels, expected {self.in_channels}: {self.channel_names}")
        sizes = self._own_spacing() if spacing is None else checked_spacing(spacing, self.spatial_dims)
        flat = self.spatial_dims == 2  # a picture is a volume of one slice to nnU-Net
        image, sizes = (image[:, None], (999.0, *sizes)) if flat else (image, sizes)
        engine = self._engine(windows)
        plan = (engine.plans_manager, engine.configuration_manager)
        prepare = engine.configuration_manager.preprocessor_class(verbose=False).run_case_npy
        data, _, facts = prepare(image, None, {"spacing": list(sizes)}, *plan, engine.dataset_json)
        logits, members = torch.zeros(()), self.engine.list_of_parameters
        for member in tracked(windows.track, members):
            engine.list_of_parameters = [member]
            logits = logits + engine.predict_logits_from_preprocessed_data(torch.from_numpy(data))  # of 16 bits
        back = export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape
        found = back(logits / len(members), *plan, engine.label_manager, facts, probabilities)
        found = found[1].astype(np.float32) if probabilities else found
        return found.squeeze(-3) if flat else found

    def _own_spacing(self) -> tuple[float, ...]:
        """Of an image that is on the network's grid; between the slices of a network for slices it does not matter."""
        own, axis = self.spacing or (), self.slice_axis
        return own if axis is None else (*own[:axis], 1.0, *own[axis:])

    def _engine(self, windows: Windows) -> Any:
        """nnU-Net's predictor as it is to work this time."""
        engine = copy.copy(self.engine)
        engine.device = checked_device(windows.device or next(self.network.parameters()).device)
        engine.perform_everything_on_device = engine.device.type == "cuda"
        engine.tile_step_size = 1 - windows.overlap
        axes, order = self.mirrored_along(windows.mirror), axes_of_patch(engine)
        engine.use_mirroring, engine.allowed_mirroring_axes = bool(axes), tuple(order.index(axis) for axis in axes)
        return engine


def axes_of_patch(engine: Any) -> list[int]:
    """For every axis of nnU-Net's patch the axis of the patch as a Predictor counts, whose axes keep their order."""
    order = list(engine.plans_manager.transpose_forward)[-len(engine.configuration_manager.patch_size) :]
    return [sorted(order).index(axis) for axis in order]


def read_as_stored(files: Sequence[Path], spatial_dims: int | None = None) -> Case:
    """As `read_case`, but the axes of a volume run as in its file, which is how nnU-Net reads it."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    case = read_case(files, spatial_dims=spatial_dims)
    if case.ending not in VOLUMES:
        return case
    affine = load_volume(Path(files[0])).affine
    turn = io_orientation(affine)
    back = ornt_transform(axcodes2ornt("RAS"), turn)
    parts = tuple(apply_orientation(part[0].T, back).T[None] for part in case.parts)
    encode = lambda label: case.encode(np.ascontiguousarray(apply_orientation(label.T, turn).T))  # noqa: E731
    return Case(parts, spacing_of(affine)[::-1], case.unit, case.ending, encode)


def load_predictor(path: str | Path, which: str | None = None) -> Predictor:
    """The predictor in a run directory, in a file that `Predictor.save` wrote, or in an nnU-Net results folder.

    A results folder (DatasetNNN_NAME/TRAINER__PLANS__CONFIGURATION) gives all its folds as one; a fold, fold_N, or a
    checkpoint in it, gives that one. which: "best" or "last"; of nnU-Net's checkpoints None takes the last ones, as
    nnU-Net does. Raises as `inference.load.load_predictor`, and ModuleNotFoundError for a results folder without
    nnunetv2, which `pip install 'xlstm-unet-lab[nnunet]'` brings.
    """
    path = as_path("path", path)
    home = None if load.is_run(path) else home_of_results(path)
    return load.load_predictor(path, which) if home is None else _of_results(path, home, which)


def home_of_results(path: Path) -> Path | None:
    """The folder with nnU-Net's plans.json that belongs to a results folder, a fold or a checkpoint; None: no such."""
    folds = [folder for folder in (path, path.parent) if folder.name.startswith("fold_") or path.suffix == ".pth"]
    inside = sorted(path.glob("fold_*"))  # where it is, as the paper's weights are handed on
    folders = [path, *folds, *(fold.parent for fold in folds), *inside]
    return next((folder for folder in folders if (folder / "plans.json").is_file()), None)


def checkpoints(path: Path, which: str | None) -> list[Path]:
    """The checkpoint of one fold, or of all that have one; FileNotFoundError where there is none."""
    if path.is_file():
        return [path]
    kinds = KINDS[which if which is None else one_of("which", which, ("best", "last"))]
    folds = [path] if path.name.startswith("fold_") else sorted(path.glob("fold_*"))
    folds = [fold for fold in folds if fold.name != "fold_all" or len(folds) == 1]  # it has seen every case
    for kind in kinds:
        names = [f"checkpoint_{kind}{ending}" for ending in (".safetensors", ".pth")]
        there = [[fold / name for name in names if (fold / name).is_file()] for fold in folds]
        if any(there):
            return [files[0] for files in there if files]
    bare = [file for fold in folds for file in sorted(fold.glob("*.pth"))]
    if which is None and len(bare) == 1:
        return bare
    expected = " or ".join(f"checkpoint_{kind}.pth" for kind in kinds)
    raise FileNotFoundError(f"{path} has no fold with {expected}: give the folder of a finished training")


def _of_results(path: Path, home: Path, which: str | None) -> PlannedPredictor:
    if find_spec("nnunetv2") is None:
        raise ModuleNotFoundError(f"{path} is nnU-Net's, whose code it needs: pip install 'xlstm-unet-lab[nnunet]'")
    files = checkpoints(path, which)
    read = [_read(file) for file in files]
    weights = [find_weights(held, file) for held, file in zip(read, files, strict=True)]
    dataset, plans = read_json(home / "dataset.json"), read_json(home / "plans.json")
    try:
        trainer, configuration = _made_by(read[0], weights[0], files[0])
        engine = _engine_of(plans, dataset, trainer, configuration)
        engine.list_of_parameters = [_member(engine.network, one) for one in weights]
        facts, order = _known(engine), axes_of_patch(engine)
        mirrored = read[0].get("inference_allowed_mirroring_axes") or ()
    except Exception as error:  # whatever nnU-Net raises for a plan that is none
        raise ValueError(f"{path}: plan and weights make no network ({type(error).__name__}: {error})") from error
    card = {"trainer": trainer, "configuration": configuration, "checkpoints": [str(file) for file in files]}
    card["normalisation"] = list(engine.configuration_manager.normalization_schemes)
    axes = tuple(sorted(order[axis] for axis in mirrored))
    return PlannedPredictor(engine.network.eval(), engine=engine, mirror_axes=axes, card=card, **facts)


def _read(file: Path) -> Mapping[str, Any]:
    """What a checkpoint holds; of the layout with .safetensors, the weights and what stands in the .json beside."""
    held, beside = read_checkpoint(file), file.with_suffix(".json")
    return held if file.suffix == ".pth" else {**read_json(beside), "network_weights": held}


def _made_by(checkpoint: Mapping, weights: Mapping[str, Tensor], file: Path) -> tuple[str, str]:
    """Trainer and configuration: as the checkpoint says, else its results folder's name, else its weights."""
    folders = [part.split("__") for part in file.absolute().parts if part.count("__") == 2]
    trainer, _, configuration = folders[-1] if folders else ("", "", "")
    signs = [network for sign, network in SIGNS.items() if any(name.startswith(sign) for name in weights)]
    trainer = checkpoint.get("trainer_name") or trainer or f"nnUNetTrainer{''.join(signs)}"
    said = (checkpoint.get("init_args") or {}).get("configuration")
    return trainer, said or configuration or {4: "2d", 5: "3d_fullres"}[max(x.ndim for x in weights.values())]


def _engine_of(plans: dict, dataset: dict, trainer: str, configuration: str) -> Any:
    """nnU-Net's predictor for a plan, with its network, but without weights."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    with warnings.catch_warnings():  # that the plans of the papers are of an old kind
        warnings.simplefilter("ignore")
        plan = manager.get_configuration(configuration)
    if plan.previous_stage_name is not None:
        raise ValueError(f"{configuration} needs what {plan.previous_stage_name} predicts: use nnUNetv2_predict")
    labels = manager.get_label_manager(dataset)
    sizes = (determine_num_input_channels(manager, plan, dataset), labels.num_segmentation_heads)
    known = known_trainer(trainer)
    network = network_from_plan(known, plan, *sizes, False) if known else _of_nnunet(trainer, manager, plan, *sizes)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells every processor that it is no GPU
        engine = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    engine.manual_initialization(network, manager, plan, [], dataset, trainer, None)
    return engine


def _of_nnunet(trainer: str, manager: Any, plan: Any, channels: int, heads: int) -> nn.Module:
    """The network of a trainer of nnU-Net's own; ValueError where the plan names what no network is made of."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    arguments = plan.network_arch_init_kwargs
    named = [arguments.get(name) for name in plan.network_arch_init_kwargs_req_import]
    for name in (plan.network_arch_class_name, *named):  # nnU-Net imports whatever stands there
        if name is not None and not SAFE.fullmatch(str(name)):
            raise ValueError(f"the plan names {name!r}, expected a part of torch.nn or dynamic_network_architectures")
    with contextlib.redirect_stdout(io.StringIO()):
        found = recursive_find_trainer_class_by_name(trainer)
    return found.build_network_architecture(manager, plan, channels, heads, enable_deep_supervision=False)


def _member(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a fold under the network's names; ValueError where they do not fit."""
    if isinstance(network, UNet):
        return {name: tensor.clone() for name, tensor in load_published(network, weights).state_dict().items()}
    weights = {WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}
    check_weights(weights, network, "the weights are of another network")
    return weights


def _known(engine: Any) -> dict[str, Any]:
    """What a Predictor knows of its data, from plan and dataset.json."""
    plan, dataset = engine.configuration_manager, engine.dataset_json
    order, dimensions = list(engine.plans_manager.transpose_forward), len(plan.patch_size)
    places = np.argsort(order[-dimensions:])
    picture = engine.plans_manager.plans["image_reader_writer"] == "NaturalImage2DIO"
    names = dataset.get("channel_names") or dataset["modality"]
    credit = [str(dataset[name]) for name in ("description", "reference", "licence") if dataset.get(name)]
    return {
        "patch_size": tuple(int(plan.patch_size[place]) for place in places),
        "spacing": tuple(float(plan.spacing[place]) for place in places),
        "targets": _targets(dataset, engine.label_manager.has_regions),
        "channel_names": tuple(names[number] for number in sorted(names, key=int)),
        "slice_axis": None if picture or dimensions == 3 else order[0],
        "unit": "pixel" if picture else "mm",
        "credit": ". ".join(credit),
    }


def _targets(dataset: Mapping[str, Any], has_regions: bool) -> Targets:
    labels = {name: values for name, values in dataset["labels"].items() if name != "ignore"}
    values = {name: tuple(map(int, np.atleast_1d(value))) for name, value in labels.items()}
    if not has_regions:
        return Targets.classes({name: value for name, (value,) in sorted(values.items(), key=lambda one: one[1])})
    regions = {name: region for name, region in values.items() if set(region) != {0}}
    return Targets(tuple(regions), tuple(regions.values()), tuple(map(int, dataset["regions_class_order"])))
