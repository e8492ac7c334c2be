"""Triton beside an open napari window: both bring a copy of LLVM, and each must find its own."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys


def load_triton() -> None:
    """Import Triton, where it is installed, such that it does not mistake the graphics driver's LLVM for its own.

    Mesa draws napari's canvas with LLVM. PyTorch imports Triton when it first needs it, and once a canvas is there that
    import ends the process with a segmentation fault (seen with Triton 3.9, Mesa's llvmpipe and napari 0.9).
    """
    if "triton" in sys.modules or not hasattr(os, "RTLD_DEEPBIND"):  # only Linux has both
        return
    before = sys.getdlopenflags()
    sys.setdlopenflags(before | os.RTLD_DEEPBIND)
    try:
        with contextlib.suppress(ImportError):  # what needs Triton says so itself
            importlib.import_module("triton")
    finally:
        sys.setdlopenflags(before)
