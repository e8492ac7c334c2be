"""Files in, label files out: on the same anatomy and the same grid, each whole, each error with the file's name."""

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from imageio.v3 import imread, imwrite
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from stubs import predictor
from torch import nn

from xlstm_unet_lab.data.images import read_label
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.pictures import to_uint8
from xlstm_unet_lab.inference.files import case_name, find_cases, predict_files, read_case
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.inference.trained import EIGHT_BITS


class BrightAndRight(nn.Module):
    """Class 1 where the first channel is bright in the first half of x, 2 in the second half, judged by its place in
    the window: a volume that reaches it turned gets other labels. A window must cover the image."""

    spacing = (3.0, 1.0, 1.5)

    def forward(self, windows):
        bright = windows[:, :1] > 0.5
        second = torch.arange(windows.shape[-1]) >= windows.shape[-1] // 2
        return torch.cat([~bright, bright & ~second, bright & second], 1).float()


def of_pictures(model, patch_size=(8, 8), **facts):
    return Predictor(model, patch_size, normalisation=EIGHT_BITS, **facts)


def head(size=(10, 12, 14), oblique=False):
    """A volume (x, y, z) in RAS order whose bright box has no symmetry, and its affine."""
    volume = np.zeros(size, np.int16)
    volume[2:8, 3:6, 4:11] = 100
    affine = np.diag([1.5, 1.0, 3.0, 1.0])
    if oblique:
        turn = np.deg2rad(12)
        rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        affine[:3, :3] = rotation @ affine[:3, :3]
    affine[:3, 3] = (-20, 30, 5)
    return nibabel.Nifti1Image(volume, affine)


def turned(volume, axes):
    """The same anatomy stored in another order of axes."""
    transform = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    array = apply_orientation(np.asarray(volume.dataobj), transform)
    return nibabel.Nifti1Image(array, volume.affine @ inv_ornt_aff(transform, volume.shape))


def places(label, value):
    """World coordinates of the voxels that have a value, in a fixed order, in thousandths of a millimetre."""
    voxels = np.argwhere(np.asarray(label.dataobj) == value)
    world = nibabel.affines.apply_affine(label.affine, voxels)
    return sorted(map(tuple, np.rint(1000 * world).astype(int).tolist()))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR", "SAL", "IRP"])
@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_a_turned_volume_gets_its_label_on_the_same_anatomy(tmp_path, axes, oblique, ending):
    original = head(oblique=oblique)
    volume = turned(original, axes)
    volume.header["cal_max"] = 77
    volume.header.set_xyzt_units("mm")
    nibabel.save(volume, tmp_path / f"case{ending}")
    (path,) = predict_files(predictor(BrightAndRight(), (14, 12, 10)), tmp_path, tmp_path / "out")
    assert path == tmp_path / "out" / f"case{ending}"
    label = nibabel.load(path)
    assert label.get_data_dtype() == np.uint8 and label.shape == volume.shape and label.header["cal_max"] == 0
    np.testing.assert_allclose(label.affine, volume.affine, atol=1e-5)
    assert nibabel.aff2axcodes(label.affine) == tuple(axes) and label.header.get_xyzt_units()[0] == "mm"
    wanted = np.where(np.asarray(original.dataobj) > 0, 1 + (np.arange(10) >= 5)[:, None, None], 0)
    wanted = nibabel.Nifti1Image(wanted.astype(np.uint8), original.affine)
    for value in (1, 2):
        assert places(label, value) == places(wanted, value)


def test_what_is_read_is_what_prepared_data_holds(tmp_path):
    nibabel.save(turned(head(), "PIR"), tmp_path / "case.nii.gz")
    case = read_case(tmp_path / "case.nii.gz")
    assert case.image.shape == (1, 14, 12, 10) and case.spacing == (3.0, 1.0, 1.5) and case.unit == "mm"
    assert (case.image[0] == np.asarray(head().dataobj).T).all()


def test_spacing_is_that_of_the_affine(tmp_path):
    """The sizes beside the affine in the header may contradict it; where a voxel lies, the affine says."""
    volume = turned(head(oblique=True), "PIR")
    volume.header["pixdim"][1:4] = 9
    nibabel.save(volume, tmp_path / "case.nii.gz")
    assert nibabel.load(tmp_path / "case.nii.gz").header.get_zooms() == (9, 9, 9)
    assert read_case(tmp_path / "case.nii.gz").spacing == pytest.approx((3.0, 1.0, 1.5))


def test_channels_of_a_volume_and_the_spacing_of_the_network(tmp_path):
    for channel in range(2):
        nibabel.save(head(), tmp_path / f"a_{channel:04d}.nii.gz")
    assert {name: len(files) for name, files in find_cases(tmp_path).items()} == {"a": 2}
    model = BrightAndRight()
    model.spacing = (6.0, 2.0, 3.0)
    (path,) = predict_files(predictor(model, (7, 6, 5)), tmp_path, tmp_path / "out")
    label, spacing = read_label(path)
    assert path.name == "a.nii.gz" and label.shape == (14, 12, 10) and spacing == (3.0, 1.0, 1.5) and label.any()


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp"])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_pictures_become_grey_png(tmp_path, ending, channels):
    picture = np.zeros((9, 12, *channels), np.uint8)
    picture[2:6, 3:10] = 200
    imwrite(tmp_path / f"cell{ending}", picture, plugin="pillow")
    colours = {1: "#0072B2", 2: "#E69F00"}
    out = tmp_path / "out"
    (path,) = predict_files(of_pictures(BrightAndRight(), (9, 12), colours=colours), tmp_path, out, coloured=True)
    label = imread(path, plugin="pillow")
    assert path == out / "cell.png" and label.shape == (9, 12) and label.dtype == np.uint8
    assert label[4, 4] == 1 and label[4, 8] == 2 and label[8, 0] == 0
    shown = imread(out / "coloured" / "cell.png", plugin="pillow")
    assert shown[4, 4].tolist() == [0x00, 0x72, 0xB2] and not shown[8, 0].any()


def test_a_grey_picture_fills_the_channels_of_a_network_for_colour(tmp_path):
    imwrite(tmp_path / "grey.png", np.eye(8, dtype=np.uint8), plugin="pillow")
    model = nn.Conv2d(3, 2, 1)
    model.config = type("Config", (), {"in_channels": 3})
    assert [path.name for path in predict_files(of_pictures(model), tmp_path, tmp_path / "o")] == ["grey.png"]
    model.config = type("Config", (), {"in_channels": 4})
    with pytest.raises(OSError, match=r"grey.png: .*in_channels=4, the image has in_channels=1"):
        list(predict_files(of_pictures(model), tmp_path, tmp_path / "o"))


class ForColour(nn.Module):
    """Reads three channels, keeps what it saw, and answers class 1 where the last one is above its mean."""

    config = type("Config", (), {"in_channels": 3})

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, windows):
        self.seen.append(windows[0].numpy())
        return torch.cat([-windows[:, 2:], windows[:, 2:]], 1)


def test_grey_files_are_the_channels_of_a_picture_as_in_training(tmp_path):
    """Each of them scaled to 8 bits alone, as `folder` does: a faint stain must not fade beside a bright one."""
    stains = [np.random.default_rng(top).integers(0, top, (8, 8)).astype(np.uint16) for top in (60_000, 900, 300)]
    for number, stain in enumerate(stains):
        imwrite(tmp_path / f"a_{number:04d}.png", stain, plugin="pillow")
    model = ForColour()
    (path,) = predict_files(of_pictures(model), tmp_path, tmp_path / "out")
    expected = normalise(np.stack([to_uint8(stain)[0] for stain in stains]))
    np.testing.assert_allclose(model.seen[0], expected, atol=1e-6)
    assert path.name == "a.png" and np.array_equal(imread(path), expected[2] > 0)
    imwrite(tmp_path / "a_0003.png", stains[0], plugin="pillow")
    with pytest.raises(ValueError, match=r"a_0000.png and 3 others .* grey.* a_0000, a_0001, a_0002; number other"):
        predict_files(of_pictures(model), tmp_path, tmp_path / "out")
    model.config = type("Config", (), {"in_channels": 1})
    assert len(predict_names(model, tmp_path)) == 4, "a network for one channel has no use for others"


def test_frames_in_colour_are_cases_however_they_are_numbered(tmp_path):
    for number in range(3):
        imwrite(tmp_path / f"frame_{number:04d}.png", np.zeros((8, 8, 3), np.uint8), plugin="pillow")
    assert predict_names(ForColour(), tmp_path) == ["frame_0000", "frame_0001", "frame_0002"]


def predict_names(model, folder):
    """The cases that would be predicted, without predicting them."""
    found = []
    with pytest.raises(ValueError, match="what track gives is not the"):
        next(predict_files(of_pictures(model), folder, folder / "out", track_cases=lambda all: found.extend(all) or ()))
    return [name for name, _ in found]


def test_labels_are_written_in_the_numbers_of_own_files(tmp_path):
    picture = np.zeros((9, 12), np.uint8)
    picture[2:6, 3:10] = 200
    imwrite(tmp_path / "a.png", picture, plugin="pillow")
    facts = {"colours": {1: "#0072B2", 2: "#E69F00"}, "label_numbers": {"x": 7, "y": 300}}
    own = of_pictures(BrightAndRight(), (9, 12), **facts)
    (path,) = predict_files(own, tmp_path, tmp_path / "o", coloured=True)
    label = imread(path, plugin="pillow")
    assert label.dtype == np.uint16 and (label[4, 4], label[4, 8], label[8, 0]) == (7, 300, 0)
    shown = imread(tmp_path / "o" / "coloured" / "a.png", plugin="pillow")
    assert shown[4, 4].tolist() == [0x00, 0x72, 0xB2]


def test_bars_follow_cases_and_the_windows_of_each(tmp_path):
    followed = {"cases": [], "windows": []}

    def track(what):
        return lambda items: followed[what].append(len(items)) or items

    for name in "ab":
        imwrite(tmp_path / f"{name}.png", np.eye(8, 12, dtype=np.uint8), plugin="pillow")
    bars = {"track": track("windows"), "track_cases": track("cases"), "batch_size": 1, "overlap": 0}
    list(predict_files(of_pictures(nn.Conv2d(1, 2, 1), (8, 6)), tmp_path, tmp_path / "o", **bars))
    assert followed == {"cases": [2], "windows": [2, 2]}


@pytest.mark.parametrize(
    ("size", "axes", "spatial_dims", "shape"),
    [
        ((9, 12), "YX", 2, (1, 9, 12)),
        ((9, 12, 3), "YXS", 2, (3, 9, 12)),
        ((5, 9, 12), "ZYX", None, (1, 5, 9, 12)),
        ((5, 2, 9, 12), "ZCYX", 3, (2, 5, 9, 12)),
        ((3, 9, 12), "CYX", 2, (3, 9, 12)),
        ((3, 9, 12), None, 3, (1, 3, 9, 12)),
    ],
)
def test_tiff_keeps_its_resolution(tmp_path, size, axes, spatial_dims, shape):
    array = np.random.default_rng(0).integers(0, 999, size).astype(np.uint16)
    photometric = "rgb" if axes == "YXS" else "minisblack"
    options = {"resolution": (2000, 4000), "resolutionunit": "CENTIMETER", "photometric": photometric}
    tifffile.imwrite(tmp_path / "t.tif", array, metadata={"axes": axes} if axes else None, **options)
    case = read_case(tmp_path / "t.tif", spatial_dims=spatial_dims)
    assert case.image.shape == shape and case.spacing == (1.0,) * (len(shape) - 1) and case.unit == "pixel"
    patch = shape[1:]
    (path,) = predict_files(of_pictures(BrightAndRight(), patch), tmp_path / "t.tif", tmp_path / "out")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        assert tiff.series[0].shape == patch and tiff.series[0].dtype == np.uint8
        assert page.resolution == (2000, 4000) and page.resolutionunit == 3  # centimetres


def test_several_inputs_in_one_call(tmp_path):
    for folder, name in (("one", "a"), ("two", "b"), ("two", "c_0000"), ("two", "c_0001")):
        (tmp_path / folder).mkdir(exist_ok=True)
        imwrite(tmp_path / folder / f"{name}.png", np.eye(8, dtype=np.uint8), plugin="pillow")
    (tmp_path / "two" / "notes.txt").touch()
    (tmp_path / "two" / ".hidden.png").touch()
    found = find_cases([tmp_path / "one" / "a.png", tmp_path / "two"])
    assert {name: len(files) for name, files in found.items()} == {"a": 1, "b": 1, "c": 1, "c_0001": 1}
    both = [tmp_path / "two" / "b.png", tmp_path / "one" / "a.png"]
    assert find_cases([both]) == {"b": both} and read_case(both).image.shape == (2, 8, 8)


def test_volumes_numbered_with_four_digits_are_cases(tmp_path):
    """As AMOS names them; only where a channel 0000 lies beside them are numbers channels."""
    for name in ("amos_0507", "amos_0510", "head_0000", "head_0001"):
        (tmp_path / f"{name}.nii.gz").touch()
    found = find_cases(tmp_path)
    assert {name: len(files) for name, files in found.items()} == {"amos_0507": 1, "amos_0510": 1, "head": 2}


def test_pictures_of_16_bits_are_scaled_as_training_pictures_were(tmp_path):
    """One hot pixel must not decide what the network sees."""
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.cat([x, -x], 1)

    picture = np.random.default_rng(0).integers(400, 800, (32, 32)).astype(np.uint16)
    picture[5, 5] = 65535
    imwrite(tmp_path / "a.png", picture, plugin="pillow")
    list(predict_files(of_pictures(Watch(), (32, 32)), tmp_path / "a.png", tmp_path / "out"))
    expected = normalise(to_uint8(picture)[0][None])
    np.testing.assert_allclose(seen[0][0].numpy(), expected, atol=1e-6)
    assert seen[0].max() < 3


def test_names_of_cases(tmp_path):
    names = {"a_0000.nii.gz": "a", "a_0012.nii": "a", "b_12.PNG": "b_12", "c_2024_0001.nii": "c_2024"}
    names |= {"frame_0001.tif": "frame_0001", "frame_0000.png": "frame", "_0000.png": "_0000", "x_0ab0.nii": "x_0ab0"}
    assert {name: case_name(tmp_path / name) for name in names} == names


@pytest.fixture
def awkward(tmp_path):
    """A folder with files of which each has something wrong with it."""
    nibabel.save(head(), tmp_path / "good.nii.gz")
    nibabel.save(head((8, 8, 8)), tmp_path / "smaller.nii.gz")
    whole = (tmp_path / "good.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    nan = nibabel.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), np.diag([1.5, 1, 3, 1]))
    nibabel.save(nan, tmp_path / "nan.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.uint8), np.eye(4)), tmp_path / "four.nii.gz")
    imwrite(tmp_path / "flat.png", np.eye(8, dtype=np.uint8), plugin="pillow")
    (tmp_path / "x_0000.nii.gz").write_bytes(whole)
    (tmp_path / "x_0002.nii.gz").write_bytes(whole)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "good.nii.gz").write_bytes(whole)
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (["missing.nii.gz"], FileNotFoundError, "missing.nii.gz does not exist"),
        (["cut.nii.gz"], OSError, "cut.nii.gz is not a NIfTI file that can be read"),
        (["text.png"], OSError, r"text.png cannot be read"),
        (["nan.nii"], OSError, "nan.nii holds 64 values that are NaN"),
        (["four.nii.gz"], OSError, r"four.nii.gz has shape \(4, 4, 4, 2\); one three-dimensional volume"),
        ([["good.nii.gz", "smaller.nii.gz"]], OSError, "smaller.nii.gz has shape"),
        ([["good.nii.gz", "text.png"]], OSError, "files of one kind"),
        ([[]], ValueError, "is empty"),
        (["x_0000.nii.gz", "x_0002.nii.gz"], ValueError, r"case 'x'.*x_0001.nii.gz"),
        (["x_0000.nii.gz", ["x_0002.nii.gz"]], ValueError, "is there twice"),
        (["good.nii.gz", "empty/good.nii.gz"], ValueError, "other cases need other names"),
        (["flat.png"], OSError, "flat.png has 2 spatial dimensions; 3 are expected"),
        (["good.mha"], FileNotFoundError, "good.mha"),
    ],
)
def test_errors_name_the_file(awkward, inputs, error, message):
    inputs = [[awkward / one for one in entry] if isinstance(entry, list) else awkward / entry for entry in inputs]
    with pytest.raises(error, match=message):
        list(predict_files(predictor(BrightAndRight(), (14, 12, 10)), inputs, awkward / "out"))


def test_an_input_is_never_replaced_and_endings_must_be_known(awkward):
    with pytest.raises(ValueError, match=r"good\.nii\.gz is an input"):
        predict_files(predictor(BrightAndRight(), (14, 12, 10)), awkward / "good.nii.gz", awkward)
    (awkward / "scan.dcm").touch()
    with pytest.raises(ValueError, match=r"scan\.dcm has an ending that cannot be read"):
        find_cases(awkward / "scan.dcm")
    (awkward / "none").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        find_cases(awkward / "none")
