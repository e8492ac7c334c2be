"""What a lesson needs beside the networks: checks with hints, and the profile that sets how long things may take."""

from xlstm_unet_lab.course.feedback import Result, check, hint, reveal
from xlstm_unet_lab.course.profiles import PROFILES, Profile, choose, current_profile

__all__ = ["PROFILES", "Profile", "Result", "check", "choose", "current_profile", "hint", "reveal"]
