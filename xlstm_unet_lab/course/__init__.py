"""What a lesson needs beside the networks: checks with hints, progress, and the profile that sets how long it takes."""

from xlstm_unet_lab.course.feedback import Result, check, hint, reveal
from xlstm_unet_lab.course.profiles import PROFILES, Profile, choose, current_profile, estimate
from xlstm_unet_lab.course.progress_file import progress

__all__ = [
    "PROFILES",
    "Profile",
    "Result",
    "check",
    "choose",
    "current_profile",
    "estimate",
    "hint",
    "progress",
    "reveal",
]
