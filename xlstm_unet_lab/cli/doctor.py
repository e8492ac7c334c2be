"""What this machine offers: versions, devices, kernels, screen, room for data, and what to do where something lacks."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

DISTRIBUTION = "xlstm-unet-lab"
LEAST_FREE = 2 * 10**9  # bytes: room for phantoms, one small data set and some runs
NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
EXTRAS = {"notebooks": "for lessons and widgets", "napari": "to look at cases in napari"}  # nnU-Net has its own finding


class Finding(NamedTuple):
    """One thing looked at."""

    name: str
    value: str
    ok: bool = True
    advice: str = ""  # what to do; beside ok=True it is a hint, not a need


def doctor(root: str | Path | None = None) -> list[Finding]:
    """Look at this machine and report, one `Finding` a thing; `root` is where prepared data lives (see `data_root`)."""
    found = [Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    checks: dict[str, Callable] = {"packages": packages, "devices": devices, "mLSTM": kernels, "profile": profile}
    checks |= {"display": display, "data": lambda: data(root), "nnU-Net": nnunet}
    for name, check in checks.items():
        try:
            looked_at = check()
        except ImportError as error:  # a package that is missing or broken must not hide the rest of the report
            looked_at = Finding(name, str(error), False, "install what is missing: pip install -e . in the checkout")
        except ValueError as error:  # of a variable that is set to what is none: it says what would do
            looked_at = Finding(name, str(error), False, "set it as said there, or leave it unset")
        found += looked_at if isinstance(looked_at, list) else [looked_at]
    return found


def packages() -> list[Finding]:
    """The version of everything the kit declares that it needs, and of what its extras add.

    Raises ImportError where the kit itself is not installed.
    """
    lines = importlib.metadata.requires(DISTRIBUTION) or []
    value, missing = _versions([DISTRIBUTION, *(line for line in lines if "extra ==" not in line)])
    found = [Finding("packages", value, not missing, f"pip install {' '.join(missing)}" if missing else "")]
    for extra, purpose in EXTRAS.items():
        value, missing = _versions([line for line in lines if re.search(f"extra == .{extra}.$", line)])
        advice = f"{purpose}: pip install '{DISTRIBUTION}[{extra}]'" if missing else ""
        found.append(Finding(extra, value, advice=advice))
    return found


def _versions(requirements: Collection[str]) -> tuple[str, list[str]]:
    """What is installed of the distributions that these lines begin with, as text, and the names of those missing."""
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requirements]
    versions = {name: version_of(name) for name in names}
    text = ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())
    return text, [name for name, version in versions.items() if version is None]


def version_of(name: str) -> str | None:
    """Of an installed distribution; None where it is not there."""
    return next((found.version for found in importlib.metadata.distributions(name=name)), None)


def devices() -> list[Finding]:
    """What computes here, in which number formats it is fast, and what training takes where nobody chooses."""
    import torch

    from xlstm_unet_lab.ops import devices as here

    fast = [flag for flag in here.FAST_BFLOAT16 if flag in here.processor_flags()]
    formats = f"bfloat16 in hardware ({', '.join(fast)})" if fast else "bfloat16 only emulated"
    value = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, {formats}"
    advice = f"--precision auto takes {'bf16-mixed' if fast else '32-true'} on the processor"
    found = [Finding("processor", value, advice=advice)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        value = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        precision = here.best_precision(torch.device("cuda", index))
        found.append(Finding("gpu", value, advice=f"--precision auto takes {precision} here"))
    if torch.backends.mps.is_available():
        found.append(Finding("gpu", "Apple (mps)", advice="train with --accelerator mps"))
    if len(found) == 1:
        found.append(Finding("gpu", "none", advice="everything runs without one; training takes longer"))
    here.share_cores()
    taken = here.layout_and_workers(torch.device(here.available_devices()[0]))
    value = f"{torch.get_num_threads()} threads on {here.available_cores()} cores, {taken}"
    advice = "OMP_NUM_THREADS sets the threads, --setting NAME=VALUE the others"
    return [*found, Finding("training", value, advice=advice)]


def kernels() -> Finding:
    """Which form of the mLSTM `form="auto"` takes here, found out by trying."""
    import torch

    from xlstm_unet_lab.ops.mlstm_triton import WIDEST_HEAD, obstacle

    q = torch.empty(1, 1, 1, 64, device="cuda" if torch.cuda.is_available() else "cpu")
    reason = obstacle(q, q) if q.is_cuda else "there is no NVIDIA GPU"
    if reason:
        return Finding("mLSTM", f"chunkwise form in PyTorch, as {reason}")
    return Finding("mLSTM", f"Triton kernels, tried here, for heads up to {WIDEST_HEAD} wide; beyond, chunkwise form")


def profile() -> Finding:
    """How long lessons may take here; ValueError for a profile that there is not."""
    from xlstm_unet_lab.course.profiles import current_profile

    current = current_profile()
    return Finding("profile", f"{current.name}: {current.description}")


def display() -> Finding:
    """Whether napari can open a window, or at least draw without one."""
    if sys.platform in ("darwin", "win32"):
        return Finding("display", "the desktop")
    if screen := os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY"):
        return Finding("display", screen)
    if shutil.which("xvfb-run"):
        return Finding("display", "none, but Xvfb draws without one", advice="start napari as: xvfb-run -a COMMAND")
    return Finding("display", "none", False, "napari needs a screen: make system installs Xvfb (Debian, Ubuntu)")


def data(root: str | Path | None) -> Finding:
    """Where prepared data lives, how much room there is, and what is prepared."""
    from xlstm_unet_lab.data.recipe import data_root
    from xlstm_unet_lab.data.registry import MARKER, get_recipe, recipe_names

    root = data_root(root)
    prepared = [name for name in recipe_names() if (get_recipe(name).folder(root) / MARKER).is_file()]
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    value = f"{root}, {free / 1e9:.0f} GB free, prepared: {', '.join(prepared) or 'nothing yet'}"
    elsewhere = "set LAB_DATA to a folder"
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Finding("data", value, bool(prepared), f"{there} cannot be written to: {elsewhere} of yours")
    return Finding("data", value, free >= LEAST_FREE, "" if free >= LEAST_FREE else f"{elsewhere} with more room")


def nnunet() -> Finding:
    """Which nnU-Net v2 is there, and the folders it needs to be told of: `prepare` writes what the first one holds."""
    if (version := version_of("nnunetv2")) is None:
        installing = f"to train it on prepared data: pip install '{DISTRIBUTION}[nnunet]'"
        return Finding("nnU-Net", "not installed", advice=installing)
    folders = {name: os.environ.get(name) for name in NNUNET_FOLDERS}
    value = ", ".join([f"nnunetv2 {version}", *(f"{name}={folder or 'not set'}" for name, folder in folders.items())])
    wrong = [name for name, folder in folders.items() if folder and not Path(folder).is_dir()]
    unset = [name for name, folder in folders.items() if not folder]
    advice = [f"make the folder {folders[name]}, or let {name} name another" for name in wrong]
    advice += [f"to train it on prepared data, set {', '.join(unset)}, a folder each"] if unset else []
    return Finding("nnU-Net", value, not wrong, "; ".join(advice))
