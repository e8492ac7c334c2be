"""What reaches a position through a network's mixers, under the name by which lessons know it."""

from xlstm_unet_lab.inference.mixer_rows import *  # noqa: F403  # its public names
