"""The devices that PyTorch can compute on here."""

import torch


def available_devices() -> list[str]:
    """Their names, the fastest first: GPUs, then "cpu"."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    found = [f"cuda:{index}" if index else "cuda" for index in gpus]
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def checked_device(device: object, name: str = "device") -> torch.device:
    """The device, which is here, as "meta" always is; ValueError, with those that are, for any other."""
    known = available_devices()
    try:
        found = torch.device(device)  # type: ignore[call-overload]  # it refuses what is none
    except (RuntimeError, TypeError, ValueError):
        found = None
    if found is None or str(found).removesuffix(":0") not in [*known, "meta"]:
        raise ValueError(f"{name} is {device!r}, which PyTorch does not find here: there is {', '.join(known)}")
    return found
