"""A profile is chosen by the environment or the hardware, and chooses values and estimates."""

import pytest
import torch

from xlstm_unet_lab.course import choose, current_profile, estimate


@pytest.mark.parametrize(("name", "value"), [("ci", 1), ("cpu", 2), ("gpu", 3), ("paper", 4)])
def test_the_profile_chooses(monkeypatch, name, value):
    monkeypatch.setenv("LAB_PROFILE", name)
    assert current_profile().name == name
    assert choose(ci=1, cpu=2, gpu=3, paper=4) == value


@pytest.mark.parametrize(("name", "value"), [("gpu", 2), ("paper", 2)])
def test_a_value_left_out_is_that_of_the_profile_below(monkeypatch, name, value):
    monkeypatch.setenv("LAB_PROFILE", name)
    assert choose(ci=1, cpu=2) == value
    assert choose(ci=1, cpu=0, gpu=value) == value


@pytest.mark.parametrize("variable", [None, ""])
@pytest.mark.parametrize(("has_gpu", "name"), [(True, "gpu"), (False, "cpu")])
def test_hardware_decides_when_nothing_is_set(monkeypatch, variable, has_gpu, name):
    monkeypatch.delenv("LAB_PROFILE", raising=False)
    if variable is not None:
        monkeypatch.setenv("LAB_PROFILE", variable)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert current_profile().name == name


def test_an_unknown_profile_names_the_nearest(monkeypatch):
    monkeypatch.setenv("LAB_PROFILE", "cup")
    with pytest.raises(ValueError, match="LAB_PROFILE is 'cup': did you mean 'cpu'\\?"):
        choose(ci=1, cpu=2)


@pytest.mark.parametrize(
    ("name", "words"), [("ci", "5 seconds"), ("cpu", "2 minutes"), ("gpu", "89 seconds"), ("paper", "3000 minutes")]
)
def test_an_estimate_is_in_words_one_reads_at_a_glance(monkeypatch, name, words):
    monkeypatch.setenv("LAB_PROFILE", name)
    assert estimate(ci=5, cpu=110, gpu=89, paper=180_000) == f"this takes about {words} in profile {name}"
