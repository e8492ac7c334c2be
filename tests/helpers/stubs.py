"""Predictors around the networks that tests make up; what those say of themselves counts."""

from xlstm_unet_lab.inference.predictor import Predictor


def predictor(model, patch_size, **facts):
    """A predictor with the `spacing` and `targets` that a made-up network carries, and further facts."""
    own = {name: getattr(model, name) for name in ("spacing", "targets") if hasattr(model, name)}
    return Predictor(model, patch_size, **own | facts)
