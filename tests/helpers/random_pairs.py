"""What tests of patches and of augmentation share: random pairs of image and label, and settings that only move."""

import torch

from xlstm_unet_lab.data.augment import Augmentation

SIZES = {2: (17, 12), 3: (9, 17, 12)}
NO_CHANGE = {"turn_probability": 0, "probability": 0, "blur_probability": 0, "low_resolution_probability": 0}
MOVES_ONLY = Augmentation(**NO_CHANGE)  # flips and quarter turns


def pair(spatial_dims, channels=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = SIZES[spatial_dims]
    image = torch.randn(channels, *size, generator=generator)
    return image, torch.randint(3, size, generator=generator)


def random_source(seed=0):
    return torch.Generator().manual_seed(seed)
