"""Abdomen, brain and endoscopy made here: the same from a seed, with the anatomy and physics they promise."""

import hashlib
import importlib

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from data_recipes import phantom_abdomen, phantom_brain, phantom_endoscopy
from data_recipes.shared import phantom_physics as physics
from xlstm_unet_lab.data.dataset import load_dataset

SMALL = {  # name -> sizes to test with, the last one for preparing
    "phantom_endoscopy": [(96, 120)],
    "phantom_abdomen": [(48, 64), (12, 48, 64)],
    "phantom_brain": [(48, 40), (16, 48, 40)],
}
SCENES = [(name, size) for name, sizes in SMALL.items() for size in sizes]
DIGESTS = {  # sha256 of the label of seed 5
    ("phantom_endoscopy", 2): "90aa30427b079dcdcc46d6ab7d6668b1118600b791a7da145fbd184db5f33956",
    ("phantom_abdomen", 2): "672ccca7ce7c36fc11faec7b4d61fdc07464422e847a937274a287488a05b41f",
    ("phantom_abdomen", 3): "bf940069c8217fc0a0dd01282a0213c50e7dcfabfb06d2e3c177b88d0d00a0f5",
    ("phantom_brain", 2): "0e11caf7ada743a52f756902b8dad12f86a7ed9742cf712758f4b17a8d8c3c40",
    ("phantom_brain", 3): "02e5c3263a1c84753d3665713ee6b9cdfaa2c1b22620df018cc609886cd7c7ce",
}
LEVELS = {  # mean and deviation of its image
    ("phantom_endoscopy", 2): (120.0289, 37.3782),
    ("phantom_abdomen", 2): (183.9740, 190.7150),
    ("phantom_abdomen", 3): (114.8435, 138.0986),
    ("phantom_brain", 2): (294.8460, 326.9366),
    ("phantom_brain", 3): (233.3931, 239.0248),
}
SPACING = {"phantom_abdomen": (16.0, 6.0, 6.0), "phantom_brain": (4.0, 4.0, 4.0)}  # mm, of the size to prepare


def recipe_module(name: str):
    return importlib.import_module(f"data_recipes.{name}")


def means(image: np.ndarray, label: np.ndarray, recipe) -> dict[str, float]:
    return {
        name: float(image[label == value].mean()) for name, value in recipe.labels.items() if (label == value).any()
    }


@pytest.mark.parametrize(("name", "size"), SCENES)
def test_a_seed_gives_the_same_everywhere(name, size):
    module = recipe_module(name)
    image, label = module.scene(5, size)
    colours = len(module.RECIPE.channel_names)
    shapes = {size, (colours, *size), (*size, colours)}
    assert label.shape == size and image.shape in shapes and label.dtype == np.uint8
    assert image.dtype == (np.uint8 if module.RECIPE.file_ending == ".png" else np.int16) and image.min() >= 0
    assert set(np.unique(label)) <= set(module.RECIPE.labels.values())
    assert hashlib.sha256(label.tobytes()).hexdigest() == DIGESTS[name, len(size)]
    # The image goes through more arithmetic, whose last digit may differ between machines.
    assert (image.mean(), image.std()) == pytest.approx(LEVELS[name, len(size)], rel=1e-4)
    again, same = module.scene(5, size)
    assert np.array_equal(image, again) and np.array_equal(label, same)
    other, different = module.scene(6, size)
    assert not np.array_equal(label, different) and not np.array_equal(image, other)


@pytest.mark.parametrize("name", SMALL)
def test_prepared_by_the_data_set_itself(name, tmp_path, monkeypatch):
    module, size = recipe_module(name), SMALL[name][-1]
    for what, value in {"TRAINING": 5, "TEST": 1, "SIZE": size}.items():
        monkeypatch.setattr(module, what, value)
    dataset, test = (load_dataset(name, split, root=tmp_path) for split in ("all", "test"))
    assert (len(dataset), len(test)) == (5, 1)
    image, label = module.scene(module.SEED, size)
    if image.ndim == label.ndim:
        image = image[None]
    elif image.shape[:-1] == label.shape:
        image = np.moveaxis(image, -1, 0)
    assert np.array_equal(dataset.raw(0), image) and np.array_equal(dataset[0]["label"].numpy(), label)
    if module.RECIPE.spatial_dims == 3:
        assert dataset[0]["spacing"] == pytest.approx(SPACING[name])
        for path in tmp_path.rglob("*.nii.gz"):
            assert nibabel.aff2axcodes(nibabel.load(path).affine) == ("R", "A", "S")
    with pytest.raises(ValueError, match=f"{name} is made here and reads nothing; got source"):
        module.convert(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("phantom_abdomen", (-1,), "seed is -1"),
        ("phantom_abdomen", (0, (24, 40, 64)), r"size is \(24, 40, 64\); give .* y at least 48, x at least 64"),
        ("phantom_brain", (0, (4, 96, 80)), "z at least 8"),
        ("phantom_brain", (0, (96,)), r"size is \(96,\)"),
        ("phantom_endoscopy", (0, (64, 128)), "y and x at least 96"),
        ("phantom_endoscopy", (0, (8, 128, 128)), "sees no third dimension"),
    ],
)
def test_bad_input(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe_module(name).scene(*arguments)


# Abdomen


@pytest.fixture(scope="module")
def patients() -> list[tuple[np.ndarray, np.ndarray]]:
    return [phantom_abdomen.scene(seed, (24, 72, 96)) for seed in range(10)]


def test_every_organ_is_there_and_where_it_belongs(patients):
    labels = phantom_abdomen.LABELS
    for _, label in patients:
        assert set(np.unique(label)) == set(labels.values())
        centres = dict(zip(labels, ndimage.center_of_mass(label >= 0, label, list(labels.values())), strict=True))
        for organ in ("liver", "right kidney", "gallbladder"):  # x runs to the patient's right
            assert centres[organ][2] > label.shape[2] / 2, organ
        for organ in ("spleen", "left kidney", "stomach"):
            assert centres[organ][2] < label.shape[2] / 2, organ
        assert centres["stomach"][1] > centres["left kidney"][1], "y runs to the front"
        assert centres["liver"][0] > centres["right kidney"][0], "z runs up"
        assert centres["aorta"][2] < centres["right kidney"][2]


def test_right_and_left_in_the_file_are_the_patients(tmp_path, monkeypatch):
    for what, value in {"TRAINING": 1, "TEST": 0, "SIZE": (12, 48, 64)}.items():
        monkeypatch.setattr(phantom_abdomen, what, value)
    phantom_abdomen.convert(None, tmp_path)
    volume = nibabel.load(tmp_path / "labelsTr" / "abdomen_000.nii.gz")
    label = np.asarray(volume.dataobj)
    right, left = (
        nibabel.affines.apply_affine(volume.affine, np.argwhere(label == phantom_abdomen.LABELS[side]).mean(axis=0))
        for side in ("right kidney", "left kidney")
    )
    assert right[0] > 30 and left[0] < -30, "millimetres to the patient's right"


def test_only_position_tells_the_kidneys_apart(patients):
    volumes, ratios, overlaps = [], [], []
    for image, label in patients:
        right, left = (label == phantom_abdomen.LABELS[side] for side in ("right kidney", "left kidney"))
        volumes.append((right.sum(), left.sum()))
        ratios.append(np.log(image[right].mean() / image[left].mean()))
        ranges = [np.quantile(image[kidney], (0.05, 0.95)) for kidney in (right, left)]
        overlaps.append(min(ranges[0][1], ranges[1][1]) > max(ranges[0][0], ranges[1][0]))
    right, left = np.transpose(volumes)
    assert 0.85 < right.mean() / left.mean() < 1.15 and 0 < np.sum(right > left) < len(patients)
    assert abs(np.mean(ratios)) < 0.2 and 0 < np.sum(np.array(ratios) > 0) < len(patients) and all(overlaps)


def test_contrast_changes_from_patient_to_patient(patients):
    ratios = []
    for image, label in patients:
        level = means(image, label, phantom_abdomen.RECIPE)
        ratios.append((level["liver"] / level["spleen"], level["gallbladder"] / level["liver"]))
    liver_to_spleen, bile_to_liver = np.transpose(ratios)
    assert liver_to_spleen.max() > 1.05 and liver_to_spleen.min() < 0.7, "bright in T1, dark in T2"
    assert bile_to_liver.max() > 3 * bile_to_liver.min()


def test_the_scan_has_noise_and_thick_slices(patients, monkeypatch):
    assert physics.spacing_of(phantom_abdomen.SIZE, phantom_abdomen.FIELD_OF_VIEW) == (8.0, 3.0, 3.0)
    for image, _ in patients:
        air = image[:, :4, :4]
        assert air.mean() > 0 and air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.15)
    monkeypatch.setattr(physics, "rician", lambda random, signal, deviation: signal)
    monkeypatch.setattr(physics, "smooth_field", lambda random, size, grain: np.zeros(size))
    monkeypatch.setattr(physics, "bias_field", lambda random, size, strength: np.ones(size))
    monkeypatch.setattr(ndimage, "gaussian_filter", lambda signal, deviation: signal)
    kinds = []
    for subslices in (1, 3):
        monkeypatch.setattr(phantom_abdomen, "SUBSLICES", subslices)
        kinds.append(len(np.unique(phantom_abdomen.scene(0, (24, 72, 96))[0])))
    assert kinds[0] <= len(phantom_abdomen.TISSUES) < kinds[1], "voxels at a surface hold a mixture"


@pytest.mark.parametrize(("name", "size"), [("phantom_abdomen", (12, 48, 64)), ("phantom_brain", (16, 48, 40))])
def test_the_coil_is_uneven(name, size, monkeypatch):
    """The same patient without noise, once with the bias field and once without: the ratio is the field."""
    module, field, fields = recipe_module(name), physics.bias_field, []
    monkeypatch.setattr(physics, "rician", lambda random, signal, deviation: signal)
    uneven = module.scene(2, size)[0].reshape(-1, *size)

    def even(*arguments):
        fields.append(field(*arguments))  # drawn as before, for what is drawn later must not change
        return np.ones(size)

    monkeypatch.setattr(physics, "bias_field", even)
    flat = module.scene(2, size)[0].reshape(-1, *size)
    assert len(fields) == 1, "the sequences of one patient share the coil"
    for bright, dark in zip(uneven, flat, strict=True):
        seen = dark > 100  # grey levels: above it rounding to whole ones is no more than 1%
        ratio = bright[seen] / dark[seen]
        assert ratio.max() > 1.1 * ratio.min(), "brighter here, darker there"
        assert ratio / np.median(ratio) == pytest.approx(fields[0][seen] / np.median(fields[0][seen]), rel=0.02)
    for axis in range(3):
        assert np.abs(np.diff(np.log(fields[0]), axis=axis)).max() < 0.2, "smooth"


# Brain


@pytest.fixture(scope="module")
def heads() -> list[tuple[np.ndarray, np.ndarray]]:
    return [phantom_brain.scene(seed, (32, 96, 80)) for seed in range(6)]


def test_tumour_regions_are_nested(heads):
    for _, label in heads:
        assert set(np.unique(label)) == {0, 1, 2, 3}
        core, oedema, rim = (label == value for value in (1, 2, 3))
        beside = ndimage.binary_dilation(core, np.ones((1, 3, 3))) & ~core
        assert rim[beside].all(), "a rim around the core in every slice"
        outside = ndimage.binary_dilation(core | rim) & ~core & ~rim
        assert oedema[outside].mean() > 0.15, "oedema around the rim"
        assert core.sum() + rim.sum() > 500 and oedema.sum() > 500
    shares = [(label == 1).sum() / ((label == 1) | (label == 3)).sum() for _, label in heads]
    assert max(shares) > 2 * min(shares), "no two tumours alike"


def test_each_sequence_shows_what_it_is_taken_for(heads):
    channels = phantom_brain.RECIPE.channel_names
    assert channels == ("t1n", "t1c", "t2w", "t2f")
    for image, label in heads:
        level = {name: means(image[channel], label, phantom_brain.RECIPE) for channel, name in enumerate(channels)}
        assert level["t1c"]["enhancing tumour"] > 1.4 * level["t1c"]["necrotic core"]
        assert level["t1c"]["enhancing tumour"] > 1.4 * level["t1c"]["oedema"]
        assert level["t1n"]["enhancing tumour"] < 1.3 * level["t1n"]["oedema"]
        assert level["t2f"]["oedema"] > 1.1 * level["t2f"]["enhancing tumour"]
        assert level["t2f"]["oedema"] > 1.1 * level["t2f"]["necrotic core"]
        assert min(level["t2w"]["oedema"], level["t2w"]["necrotic core"]) > 1.5 * level["t2w"]["background"]


def test_water_is_bright_in_t2w_and_gone_in_t2f():
    table = np.array(list(phantom_brain.TISSUES.values()))
    signal = {
        name: dict(zip(phantom_brain.TISSUES, physics.mri_signal(table, *sequence[:3]), strict=True))
        for name, sequence in phantom_brain.SEQUENCES.items()
    }
    assert signal["t2w"]["water"] > 2 * signal["t2w"]["grey"] > 2 * signal["t2w"]["white"]
    assert signal["t2f"]["water"] < 0.2 * signal["t2f"]["white"] < 0.2 * signal["t2f"]["oedema"]
    assert signal["t1n"]["white"] > signal["t1n"]["grey"] > signal["t1n"]["water"]


def test_a_tumour_pushes_tissue_aside():
    tumour = phantom_brain.Tumour(np.array([0.0, 10.0, 30.0]), np.array([15.0, 12.0, 14.0]), np.eye(3))
    points = np.array([[0.0, 10.0, 45.0], [0.0, 10.0, -60.0]])
    shifts = [phantom_brain._pushed_back(physics.streams(seed)[0], points, tumour) - points for seed in range(8)]
    near, far = np.transpose(shifts, (1, 0, 2))
    assert (near[:, 2] <= 0).all() and near[:, 2].min() < -3 and np.abs(far).max() < 0.5


def test_the_head_lies_in_rician_noise(heads):
    for image, _ in heads:
        for channel in image:
            air = channel[:, :3, :3]
            assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.2)


# Endoscopy


@pytest.fixture(scope="module")
def frames() -> list[tuple[np.ndarray, np.ndarray]]:
    return [phantom_endoscopy.scene(seed, (128, 160)) for seed in range(24)]


def test_instruments_enter_from_the_border(frames):
    types = set()
    for _, label in frames:
        pieces, count = ndimage.label(label > 0, np.ones((3, 3)))
        border = np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
        assert set(range(1, count + 1)) <= set(border) and 0.02 < (label > 0).mean() < 0.5
        types |= set(np.unique(label))
    assert types == {0, 1, 2, 3}


def test_tips_tell_the_types_apart():
    points = physics.positions((128, 160), (1.0, 1.0))
    covered = {}
    for kind, jaws in phantom_endoscopy.JAWS.items():
        pose = phantom_endoscopy.Instrument(kind, np.zeros(2), np.array([0.0, 1.0]), 8.0, 0.25, 8.0 * jaws.length[0])
        colour, covered[kind] = phantom_endoscopy._instrument(physics.streams(0)[0], pose, points)
        assert (colour[~covered[kind]] == 0).all()
    shaft = points[..., 1] < -8
    tips = {kind: mask & ~shaft for kind, mask in covered.items()}
    for one, other in (("grasper", "scissors"), ("grasper", "needle driver"), ("scissors", "needle driver")):
        assert np.array_equal(covered[one] & shaft, covered[other] & shaft), "shafts look alike"
        assert (tips[one] != tips[other]).sum() > 0.2 * tips[one].sum()


def test_frames_have_highlights_fall_off_blur_and_noise(frames):
    glare, corners, sharpness, grain = [], [], [], []
    for image, label in frames:
        grey = image.mean(axis=-1)
        tissue = ndimage.binary_erosion(label == 0, iterations=4)
        glare.append((grey[tissue] > 225).mean())
        corner = [
            grey[y, x][tissue[y, x]] for y in (slice(24), slice(-24, None)) for x in (slice(24), slice(-24, None))
        ]
        middle = (slice(44, 84), slice(60, 100))
        corners.append(np.median(np.concatenate(corner)) / np.median(grey[middle][tissue[middle]]))
        red, green, blue = (np.median(image[..., channel][tissue]) for channel in range(3))
        assert red > 1.15 * green and red > 1.15 * blue, "tissue is red"
        relief = ndimage.gaussian_filter(grey, 1) - ndimage.gaussian_filter(grey, 2)
        sharpness.append(relief[tissue].std())
        # Between the colours of a pixel the scene hardly changes from one pixel to the next: what does is noise.
        tint = image[..., 1].astype(float) - image[..., 2]
        grain.append((tint - ndimage.median_filter(tint, 3))[tissue].std())
    assert np.mean(glare) > 0.001 and np.mean(np.array(glare) > 0) > 0.6, "wet tissue glares"
    assert np.mean(corners) < 0.85, "light falls off"
    assert max(sharpness) > 1.7 * min(sharpness), "focus and motion differ"
    assert min(grain) > 1, "a sensor is never silent"
