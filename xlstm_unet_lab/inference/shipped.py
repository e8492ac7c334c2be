"""Small trained networks that come with the package, one file each in `weights/`; `benchmarks.trained` made them."""

from pathlib import Path

import pandas

from xlstm_unet_lab.inference.load import load_predictor
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.ops.checks import did_you_mean, of_kind

WEIGHTS = Path(__file__).parents[1] / "weights"


def trained(name: str) -> Predictor:
    """The predictor of a network that ships, on the CPU: `list_trained` lists them.

    Its `card` says how it was trained and what it scores on held-out cases, its `credit` whose data it learnt from.
    Raises KeyError for an unknown name, ValueError for a file that was damaged.
    """
    of_kind("name", name, str)
    if name not in (known := _files()):
        raise KeyError(f"no trained network is named {name!r}: {did_you_mean(name, known)}")
    return load_predictor(known[name])


def list_trained() -> pandas.DataFrame:
    """A table of the networks that ship: name, modality and spatial_dims of its images, how many channels they have,
    what its score on held-out cases measures, the score, the licence of the weights. Errors as `trained`."""
    rows = []
    for name in _files():
        one = trained(name)
        facts = {"modality": one.card["modality"], "spatial_dims": one.spatial_dims, "channels": one.in_channels}
        rows.append({"name": name, **facts} | {what: one.card[what] for what in ("measure", "score", "licence")})
    return pandas.DataFrame(rows)


def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(WEIGHTS.glob("*.safetensors"))}
