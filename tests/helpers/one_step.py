"""A small network trained for one step on cases, whatever they are."""

import xlstm_unet_lab as lab


def one_step(cases, val=None, run=None):
    """The records of the training; with `run`, its folder."""
    recipe, size = cases.recipe, (8,) * cases.recipe.spatial_dims
    facts = {"spatial_dims": len(size), "in_channels": len(recipe.channel_names), "num_classes": recipe.num_classes}
    network = lab.build("unet", **facts, patch_size=size, features=(2, 4))
    config = lab.TrainConfig(patch_size=size, steps=1, batch_size=1, accelerator="cpu")
    return list(lab.fit(network, cases, val, config, run))
