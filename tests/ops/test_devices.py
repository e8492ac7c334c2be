"""A device is one that is here, or an error says which are."""

import pytest
import torch

from xlstm_unet_lab.ops.devices import available_devices, checked_device


def test_the_processor_is_always_there():
    assert available_devices()[-1] == "cpu"
    for device in ("cpu", "cpu:0", torch.device("cpu"), *available_devices()):
        assert checked_device(device).type in ("cpu", "cuda", "mps")


def test_gpus_come_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert available_devices() == ["cuda", "cuda:1", "cpu"]
    assert [str(checked_device(name)) for name in ("cuda", "cuda:0", "cuda:1")] == ["cuda", "cuda:0", "cuda:1"]
    with pytest.raises(ValueError, match=r"device is 'cuda:2', .* there is cuda, cuda:1, cpu"):
        checked_device("cuda:2")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "x", "", None, -1, 1.5, True, ["cpu"], "cpu:7"])
def test_others_are_refused_with_those_that_are_there(device):
    with pytest.raises(ValueError, match=r"--device is .*, which PyTorch does not find here: there is .*cpu"):
        checked_device(device, "--device")
