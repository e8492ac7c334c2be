"""nnU-Net's results folders as predictors: the labels of nnU-Net's own prediction, for every network and layout."""

import json

import numpy as np
import pytest
import torch
from imageio.v3 import imread, imwrite
from results_folder import (
    checkpoint,
    dataset_json,
    golden_facts,
    labels_in,
    plans,
    small_facts,
    write_image,
    write_results,
)
from small_nnunet import ALONE

import xlstm_unet_lab as lab
from xlstm_unet_lab.nnunet.networks import known_trainer, network_from_plan
from xlstm_unet_lab.nnunet.plans import told

pytest.importorskip("nnunetv2")
SAME = 0.999  # share of voxels; on one machine all are the same, on two rounding may decide between labels
GOLDEN = {"nnUNetTrainerUxLSTMBot": "bot", "nnUNetTrainerUxLSTMEnc": "enc"}
GOLDEN |= {"nnUNetTrainerUMambaBot": "u_mamba_bot", "nnUNetTrainerUMambaEnc": "u_mamba_enc"}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    for name, value in {**ALONE, "nnUNet_extTrainer": str(told("trainers"))}.items():
        monkeypatch.setenv(name, value)


def configured(facts, **planned):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(json.loads(json.dumps(plans(facts, **planned))))
    return manager, manager.get_configuration({2: "2d", 3: "3d_fullres"}[facts["spatial_dims"]])


def random_weights(facts, trainer, seed=0, **planned):
    """Weights of a network as the trainer builds it, with heads that decide something."""
    torch.manual_seed(seed)
    manager, plan = configured(facts, **planned)
    sizes = (facts["in_channels"], facts["num_classes"])
    if known_trainer(trainer):
        network = network_from_plan(trainer, plan, *sizes, True)
    else:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        network = nnUNetTrainer.build_network_architecture(manager, plan, *sizes, enable_deep_supervision=True)
    weights = {name: tensor + 0.3 * torch.randn(tensor.shape) for name, tensor in network.state_dict().items()}
    biases = [name for name in weights if name.endswith("bias") and ("heads" in name or "seg_layers" in name)]
    return weights | {name: torch.zeros_like(weights[name]) for name in biases}


def predicted_by_nnunet(folder, images, out, folds, mirror=True):
    """What nnUNetv2_predict computes, in this process."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    engine = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=mirror, allow_tqdm=False)
    engine.initialize_from_trained_model_folder(str(folder), folds, "checkpoint_final.pth")
    out.mkdir()
    engine.predict_from_files_sequential(str(images), str(out))
    return labels_in(out)


def assert_same_labels(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, label in ours.items():
        found, expected = np.asarray(label.dataobj), np.asarray(theirs[name].dataobj)
        assert np.allclose(label.affine, theirs[name].affine, atol=1e-4)
        assert len(np.unique(expected)) > 1, "nothing is decided here"
        assert (found == expected).mean() >= SAME


CASES = [
    ("nnUNetTrainer", 2, {}),
    ("nnUNetTrainer_50epochs", 3, {"scheme": "CTNormalization"}),
    ("nnUNetTrainerNoMirroring", 3, {"transpose": (2, 0, 1), "spacing": (1.0, 1.2, 3.0)}),
    ("nnUNetTrainerXLSTMBot", 2, {"transpose": (1, 0, 2), "spacing": (3.0, 4.0, 1.0)}),
    ("nnUNetTrainerXLSTMEnc_10epochs", 3, {}),
]


@pytest.mark.parametrize(("trainer", "dimensions", "planned"), CASES)
def test_labels_are_those_of_nnunet(tmp_path, trainer, dimensions, planned):
    facts = small_facts(dimensions, channels=2)
    weights = random_weights(facts, known_trainer(trainer) or trainer, **planned)
    axes = (0,) if dimensions == 2 else (0, 2)
    folder = write_results(tmp_path, facts, trainer, {"0": weights}, axes=axes, **planned)
    images = write_image(tmp_path / "images", "first", channels=2)
    write_image(images, "second", channels=2, axes="RAS", spacing=(2.0, 1.5, 1.5))
    predictor = lab.load_predictor(folder)
    list(predictor.files(images, tmp_path / "ours", mirror=True))
    assert_same_labels(labels_in(tmp_path / "ours"), predicted_by_nnunet(folder, images, tmp_path / "theirs", (0,)))
    assert predictor.card["trainer"] == trainer


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("trainer", GOLDEN)
def test_released_weights_give_the_labels_of_nnunet(tmp_path, shared_golden, trainer, dimensions):
    facts, weights = golden_facts(shared_golden / f"{GOLDEN[trainer]}_{dimensions}d")
    channels = facts["in_channels"]
    folder = write_results(tmp_path, facts, trainer, {"0": weights}, scheme="RescaleTo01Normalization")
    size = (2, *facts["patch_size"])[-3:]
    images = write_image(tmp_path / "images", "first", channels, size=[extent + 2 for extent in size])
    list(lab.load_predictor(folder).files(images, tmp_path / "ours"))
    assert_same_labels(labels_in(tmp_path / "ours"), predicted_by_nnunet(folder, images, tmp_path / "theirs", (0,)))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_read_as_nnunet_reads_them(tmp_path, channels):
    planned = {"reader": "NaturalImage2DIO", "spacing": (999.0, 1.0, 1.0)}
    facts = small_facts(2, channels=channels)
    weights = random_weights(facts, "nnUNetTrainerUxLSTMBot", seed=3, **planned)
    folder = write_results(tmp_path, facts, "nnUNetTrainerUxLSTMBot", {"0": weights}, axes=(0, 1), **planned)
    (tmp_path / "images").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    imwrite(tmp_path / "images" / "frame_0000.png", picture if channels == 3 else picture[..., 0])
    predictor = lab.load_predictor(folder)
    assert (predictor.spatial_dims, predictor.unit, predictor.spacing) == (2, "pixel", (1.0, 1.0))
    (ours,) = predictor.files(tmp_path / "images", tmp_path / "ours", mirror=True)
    predicted_by_nnunet(folder, tmp_path / "images", tmp_path / "theirs", (0,))
    found, expected = imread(ours), imread(tmp_path / "theirs" / "frame.png")
    assert ours.name == "frame.png"
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() >= SAME


def test_folds_are_averaged_as_nnunet_does(tmp_path):
    facts = small_facts(3)
    folds = {str(seed): random_weights(facts, "nnUNetTrainer", seed) for seed in (0, 1, 3)}
    folder = write_results(tmp_path, facts, "nnUNetTrainer", folds)
    images = write_image(tmp_path / "images", "only")
    theirs = predicted_by_nnunet(folder, images, tmp_path / "theirs", (0, 1, 3))
    seen = []
    list(
        lab.load_predictor(folder).files(
            images, tmp_path / "ours", track=lambda folds: seen.append(len(folds)) or folds
        )
    )
    assert_same_labels(labels_in(tmp_path / "ours"), theirs)
    assert seen == [3]
    one = predicted_by_nnunet(folder, images, tmp_path / "one", (1,))
    for place, path in {"fold": folder / "fold_1", "file": folder / "fold_1" / "checkpoint_final.pth"}.items():
        list(lab.load_predictor(path).files(images, tmp_path / place))
        assert_same_labels(labels_in(tmp_path / place), one)


@pytest.mark.parametrize("layout", ["safetensors", "bare"])
def test_every_layout_holds_the_same_network(tmp_path, shared_golden, layout):
    facts, weights = golden_facts(shared_golden / "bot_2d")
    usual = write_results(tmp_path / "usual", facts, "nnUNetTrainerUxLSTMBot", {"0": weights})
    fold = {"702": weights} if layout == "bare" else {"0": weights}
    other = write_results(tmp_path / "other", facts, "nnUNetTrainerUxLSTMBot", fold, layout=layout)
    elsewhere = (other / "fold_702").rename(tmp_path / "fold_702") if layout == "bare" else other
    image = np.random.default_rng(0).normal(size=(facts["in_channels"], 3, 50, 60))
    (file,) = [path for path in elsewhere.rglob("*") if path.suffix in (".safetensors", ".pth")]
    expected, found, alone = (lab.load_predictor(path)(image) for path in (usual, elsewhere, file))
    assert (expected == found).all()
    assert (expected == alone).all()
    assert len(np.unique(found)) > 1


def test_the_old_plans_of_the_papers_are_read(tmp_path):
    facts = small_facts(2) | {"features": [4, 8, 8]}
    weights = random_weights(facts, "nnUNetTrainerUxLSTMBot")
    new = write_results(tmp_path / "new", facts, "nnUNetTrainerUxLSTMBot", {"0": weights})
    old = write_results(tmp_path / "old", facts, "nnUNetTrainerUxLSTMBot", {"0": weights}, old=True)
    image = np.random.default_rng(0).normal(size=(1, 3, 20, 30))
    assert (lab.load_predictor(old)(image) == lab.load_predictor(new)(image)).all()


@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_belong_to_the_labels(tmp_path, regions):
    facts = small_facts(3)
    folder = write_results(
        tmp_path, facts, "nnUNetTrainer", {"0": random_weights(facts, "nnUNetTrainer")}, regions=regions
    )
    predictor = lab.load_predictor(folder)
    image = np.random.default_rng(0).normal(size=(1, 9, 20, 30)).astype(np.float32)
    label, probabilities = predictor(image, (2.0, 1.5, 1.5)), predictor.probabilities(image, (2.0, 1.5, 1.5))
    assert label.shape == image.shape[1:]
    assert probabilities.shape == (3, *image.shape[1:])
    assert probabilities.dtype == np.float32
    assert predictor.exclusive != regions
    assert (predictor.labels_of(torch.from_numpy(probabilities)).numpy() == label).mean() >= SAME
    assert list(predictor.label_names) == [
        name for name in dataset_json(facts, regions)["labels"] if name != "background"
    ]


def test_facts_of_the_plan_are_told_by_axis(tmp_path):
    planned = {"transpose": (2, 0, 1), "spacing": (1.0, 1.2, 3.0)}
    for dimensions, patch, spacing, across in ((3, (16, 24, 8), (1.0, 1.2, 3.0), None), (2, (16, 24), (1.0, 1.2), 2)):
        facts = small_facts(dimensions, channels=2)
        weights = random_weights(facts, "nnUNetTrainer", **planned)
        axes = (0, 1) if dimensions == 3 else (1,)
        folder = write_results(tmp_path / str(dimensions), facts, "nnUNetTrainer", {"0": weights}, axes=axes, **planned)
        predictor = lab.load_predictor(folder)
        assert (predictor.patch_size, predictor.spacing, predictor.slice_axis) == (patch, spacing, across)
        assert predictor.mirror_axes == ((0, 2) if dimensions == 3 else (1,))
        assert predictor.channel_names == ("channel 0", "channel 1")
        assert predictor.spatial_dims == 3
        with pytest.raises(ValueError, match="has 1 channels, expected 2"):
            predictor(np.zeros((1, 8, 8, 8)))
        with pytest.raises(ValueError, match="copy the results folder"):
            predictor.save(tmp_path / "one.safetensors")


class Trap:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return type(self.target).touch, (self.target,)


def test_what_a_folder_says_is_not_trusted(tmp_path):
    facts, trainer = small_facts(2), "nnUNetTrainer"
    weights = random_weights(facts, trainer)
    folder = write_results(tmp_path, facts, trainer, {"0": weights})
    file, written = folder / "fold_0" / "checkpoint_final.pth", json.loads((folder / "plans.json").read_text())
    torch.save(checkpoint(weights, trainer, 2) | {"logging": Trap(tmp_path / "it_ran")}, file)
    with pytest.raises(ValueError, match="is not a checkpoint that can be read safely"):
        lab.load_predictor(folder)
    assert not (tmp_path / "it_ran").exists()
    torch.save(checkpoint(weights, trainer, 2), file)
    architecture = written["configurations"]["2d"]["architecture"]
    for changed in (
        {"network_class_name": "os.system"},
        {"arch_kwargs": architecture["arch_kwargs"] | {"nonlin": "os.abort"}},
    ):
        plan = json.loads(json.dumps(written))
        plan["configurations"]["2d"]["architecture"] |= changed
        (folder / "plans.json").write_text(json.dumps(plan))
        with pytest.raises(ValueError, match=r"the plan names 'os\.\w+', expected a part of torch\.nn"):
            lab.load_predictor(folder)


def spoilt(folder, file, **changes):
    facts = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(facts | changes))


def test_a_folder_that_fits_nothing_is_refused_in_words(tmp_path):
    facts, trainer = small_facts(2), "nnUNetTrainerXLSTMBot"
    folder = write_results(tmp_path, facts, trainer, {"0": random_weights(facts, trainer)})
    with pytest.raises(FileNotFoundError, match=r"no fold with checkpoint_best\.pth"):
        lab.load_predictor(folder, "best")
    with pytest.raises(ValueError, match="which is 'final'"):
        lab.load_predictor(folder, "final")
    spoilt(folder, "dataset.json", labels={"background": 0, "one": 1})
    with pytest.raises(ValueError, match=r"(?s)make no network \(ValueError: .*decoder\.heads"):
        lab.load_predictor(folder)
    spoilt(folder, "plans.json", configurations={})
    with pytest.raises(ValueError, match="make no network"):
        lab.load_predictor(folder)
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(FileNotFoundError, match="give the folder of a finished training"):
        lab.load_predictor(folder)


def test_a_run_directory_is_still_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run directory: it has no model\.json"):
        lab.load_predictor(tmp_path)
