"""`import xlstm_unet_lab as lab`: the names others rely on, and timm knowing our models in either order of import."""

import re
import subprocess
import sys

import pytest
from places import REPOSITORY

import xlstm_unet_lab as lab


@pytest.mark.parametrize("name", lab.__all__)
def test_every_public_name_loads_and_has_a_docstring(name):
    assert getattr(lab, name).__doc__


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"bild.*build"):
        _ = lab.bild


def test_type_checkers_see_the_same_names():
    stub = (REPOSITORY / "xlstm_unet_lab" / "__init__.pyi").read_text()
    named = {
        name: module for module, name in re.findall(r"^from xlstm_unet_lab\.(\S+) import (\w+) as \2$", stub, re.M)
    }
    assert named == lab._HOME


def test_dir_shows_what_is_there():
    assert set(lab.__all__) <= set(dir(lab))


@pytest.mark.parametrize(
    "imports",
    [
        "import timm, xlstm_unet_lab",
        "import xlstm_unet_lab, timm",
        "import importlib.util, xlstm_unet_lab; importlib.util.find_spec('timm'); import timm",  # "is it installed?"
        "import xlstm_unet_lab; xlstm_unet_lab.VisionLSTM; import timm",
    ],
)
def test_timm_knows_our_models_whatever_is_imported_first(imports):
    code = f"{imports}; print(timm.is_model('vil_tiny_patch16_224'), timm.is_model('vil2_base_patch16_224'))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
