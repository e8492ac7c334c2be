"""What a lesson may take: the four profiles, and how a notebook picks a value or an estimate for the current one."""

import math
import os
from dataclasses import dataclass
from typing import TypeVar

import torch

from xlstm_unet_lab.ops.checks import did_you_mean

Value = TypeVar("Value")
VARIABLE = "LAB_PROFILE"


@dataclass(frozen=True)
class Profile:
    """One budget for a whole notebook; every lesson declares its own within it."""

    name: str
    seconds: float  # the longest a whole notebook may take
    gigabytes: float  # the most memory its kernel may hold (1 GB = 10^9 bytes)
    description: str


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("ci", 90, 3, "a whole notebook within 90 seconds on 2 cores, tiny, to see that everything runs"),
        Profile("cpu", 600, 8, "a whole notebook within 10 minutes on a laptop"),
        Profile("gpu", 600, 16, "a whole notebook within 10 minutes on one GPU"),
        Profile("paper", math.inf, math.inf, "no limit: published settings in lessons that have them, else as gpu"),
    )
}


def current_profile() -> Profile:
    """The profile named by the environment variable LAB_PROFILE; unset or empty: gpu where CUDA works, else cpu.

    Raises ValueError for an unknown name, with the nearest one.
    """
    name = os.environ.get(VARIABLE) or ("gpu" if torch.cuda.is_available() else "cpu")
    if name not in PROFILES:
        raise ValueError(f"{VARIABLE} is {name!r}: {did_you_mean(name, PROFILES)}")
    return PROFILES[name]


def choose(*, ci: Value, cpu: Value, gpu: Value | None = None, paper: Value | None = None) -> Value:
    """The value for the current profile, for example `steps = choose(ci=20, cpu=400)`.

    gpu left out (None) takes the value of cpu, and paper left out takes the value of gpu.
    Raises ValueError when LAB_PROFILE names no profile.
    """
    gpu = cpu if gpu is None else gpu
    paper = gpu if paper is None else paper
    return {"ci": ci, "cpu": cpu, "gpu": gpu, "paper": paper}[current_profile().name]


def estimate(*, ci: float, cpu: float, gpu: float | None = None, paper: float | None = None) -> str:
    """How long a cell takes in the current profile, for the cell to print before it starts; arguments in seconds.

    Left out and refused as in `choose`. `make course-times` compares the words with the clock.
    """
    seconds = choose(ci=ci, cpu=cpu, gpu=gpu, paper=paper)
    words = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    return f"this takes about {words} in profile {current_profile().name}"
