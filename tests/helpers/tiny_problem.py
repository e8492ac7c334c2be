"""A tiny problem and network that tests of training share; also importable by scripts that tests start."""

from dataclasses import replace

import torch
from torch import nn

from xlstm_unet_lab.data.registry import get_recipe
from xlstm_unet_lab.training.config import TrainConfig


def case(index, spatial_dims=2):
    """A bright box on noise, at another place in every case."""
    generator = torch.Generator().manual_seed(index)
    size = (20,) * spatial_dims
    label = torch.zeros(size, dtype=torch.int64)
    label[(slice(3 + index, 12 + index),) * spatial_dims] = 1
    image = 2 * label.float()[None] - 1 + 0.3 * torch.randn((1, *size), generator=generator)
    return {"image": image, "label": label, "spacing": (2.0, 1.0, 0.5)[:spatial_dims], "name": f"case {index}"}


def cases(indices, spatial_dims=2):
    return [case(index, spatial_dims) for index in indices]


def boxes(**changes):
    """A recipe for such cases: every one in pixels, a box to be found."""
    facts = {"name": "boxes", "labels": {"background": 0, "box": 1}, "colours": {"box": "#0072B2"}}
    return replace(
        get_recipe("phantom_microscopy"), **facts | {"tolerances": {"box": 1.0}, "flip_axes": None} | changes
    )


class Tiny(nn.Module):
    """Two convolutions with dropout between; two outputs when deeply supervised."""

    def __init__(self, spatial_dims=2, deep=False, dropout=0.1):
        super().__init__()
        torch.manual_seed(0)
        convolution = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        self.first, self.dropout = convolution(1, 8, 3, padding=1), nn.Dropout(dropout)
        self.head, self.low = convolution(8, 2, 1), convolution(8, 2, 1, stride=2) if deep else None

    def forward(self, image):
        features = self.dropout(self.first(image).relu())
        return [self.head(features), self.low(features)] if self.low else self.head(features)


def config(spatial_dims=2, **changes):
    settings = {"steps": 8, "batch_size": 2, "learning_rate": 0.02, "accelerator": "cpu", "seed": 3}
    return TrainConfig(patch_size=(16,) * spatial_dims, **(settings | changes))
