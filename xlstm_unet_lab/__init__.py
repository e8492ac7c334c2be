"""xLSTM-UNet Lab: xLSTM blocks and U-Net builders behind a series of notebooks.

    import xlstm_unet_lab as lab

Glossary. The mathematics keeps the papers' letters; everything else has whole words.

    C_t, n_t, m_t   matrix memory, normaliser and stabiliser of the mLSTM after token t
    q, k, v         query, key and value of a token;  i, f  pre-activations of its input and forget gate
    B, H, S, D      batch, heads, tokens, width of a head
    token           one position of a feature map
    mixer           the sequence block of a stage: it lets every position hear from all others
    stage           the part of a U-Net that works at one resolution; position 0 of the decoder is the deepest
    patch           the piece of an image a network is trained on
    spacing         distance from voxel to voxel (mm, or pixels where a recipe says so), in the order (z, y, x)
"""

import importlib

import wrapt

__version__ = "0.1.0"

# Public name -> module. Loaded on first use, so that importing the package costs little more than importing torch.
_HOME = {
    "build": "models.presets",
    "list_models": "models.presets",
    "published_config": "models.published",
    "UNet": "models.unet",
    "UNetConfig": "models.unet",
    "VisionLSTM": "models.vil_classifier",
    "load_published": "models.published",
    "prepare": "data.prepare",
    "list_recipes": "data.registry",
    "load_dataset": "data.dataset",
    "fit": "training.fit",
    "TrainConfig": "training.config",
    "load_predictor": "nnunet.results",
    "load_run": "inference.load",
    "trained": "inference.shipped",
    "list_trained": "inference.shipped",
    "Predictor": "inference.predictor",
    "predict": "inference.predict",
    "predict_files": "inference.files",
    "predict_probabilities": "inference.predict",
    "instances_from_classes": "inference.instances",
    "evaluate": "evaluation.report",
    "write_report": "figures.report_page",
    "overlay": "overlays.description",
    "overlay_case": "overlays.description",
}
__all__ = sorted(_HOME)

# `timm.create_model("vil_tiny_patch16_224")` works wherever both packages are imported, in either order. timm takes
# seconds to import, so its import is waited for.
wrapt.register_post_import_hook(lambda timm: importlib.import_module(f"{__name__}.models.vil_classifier"), "timm")


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"xlstm_unet_lab has no {name!r}: it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
