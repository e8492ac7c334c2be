"""How long a lesson may take: the four profiles, and how a notebook picks a value for the current one."""

import os
from dataclasses import dataclass
from typing import TypeVar

import torch

from xlstm_unet_lab.ops.checks import did_you_mean

Value = TypeVar("Value")
VARIABLE = "LAB_PROFILE"


@dataclass(frozen=True)
class Profile:
    """One budget for a whole notebook."""

    name: str
    seconds: int | None  # the longest a whole notebook may take; None: no limit
    description: str


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("ci", 90, "a whole notebook within 90 seconds on 2 cores: tiny networks, to see that everything runs"),
        Profile("cpu", 600, "a whole notebook within 10 minutes on a laptop"),
        Profile("gpu", 600, "a whole notebook within 10 minutes on one GPU"),
        Profile("paper", None, "the published setting: hours on one or more GPUs"),
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
