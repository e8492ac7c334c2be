"""Trainers that nnU-Net finds by the environment variable nnUNet_extTrainer; `xlstm-unet-lab nnunet trainers` says how.

nnUNetTrainerXLSTMBot and ...XLSTMEnc train the networks of this package; ...UxLSTMBot, ...UxLSTMEnc, ...UMambaBot and
...UMambaEnc the published ones. Each is there in the lengths that nnU-Net offers, as nnUNetTrainerXLSTMBot_50epochs is.
nnU-Net imports this file under its bare name, so it imports nothing beside itself.
"""

import os

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from xlstm_unet_lab.nnunet.networks import TRAINERS, known_trainer, mirror_axes, network_from_plan
from xlstm_unet_lab.ops.checks import whole_number
from xlstm_unet_lab.ops.devices import bfloat16_units

EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500, 2000, 4000, 8000)
SHORTER = ("LAB_NNUNET_EPOCHS", "LAB_NNUNET_ITERATIONS")  # environment variables, to try a training out


def from_environment(name: str, usual: int) -> int:
    """The whole number in an environment variable, where it is set."""
    text = os.environ.get(name, "")
    return whole_number(name, int(text) if text.isdecimal() else text) if text else usual


class LabTrainer(nnUNetTrainer):
    """nnU-Net's training with AdamW, a network of this package, and mirror images only where the data allows them."""

    epochs = 1000

    # nnU-Net looks up every argument by its name: they must be repeated as they are.
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr, self.weight_decay = 3e-4, 1e-2
        self.num_epochs = from_environment(SHORTER[0], self.epochs)
        self.num_iterations_per_epoch = from_environment(SHORTER[1], 250)
        self.num_val_iterations_per_epoch = min(50, self.num_iterations_per_epoch)
        if _in_bfloat16():
            self.grad_scaler = None  # bfloat16 reaches as far as float32: nothing overflows that must be scaled

    @classmethod
    def build_network_architecture(cls, plans_manager, configuration_manager, inputs, outputs, enable_deep_supervision):
        """The network of this trainer, as nnU-Net asks for it to train and to predict."""
        if _in_bfloat16():
            torch.set_autocast_dtype("cuda", torch.bfloat16)  # of nnU-Net's own autocast
        name = known_trainer(cls.__name__)
        network = network_from_plan(name, configuration_manager, inputs, outputs, enable_deep_supervision)
        if "NoAMP" in cls.__name__:
            network.forward = torch.autocast("cuda", enabled=False)(network.forward)  # type: ignore[method-assign]
        return network

    def set_deep_supervision_enabled(self, enabled: bool):
        # DistributedDataParallel holds the network as its module, torch.compile under another name.
        network = getattr(self.network, "module", self.network)
        getattr(network, "_orig_mod", network).deep_supervision = enabled  # type: ignore[union-attr]

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        *others, usual = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        axes = mirror_axes(self.dataset_json, self.plans_manager.transpose_forward, len(usual)) or None
        self.inference_allowed_mirroring_axes = axes
        return (*others, axes)

    def _do_i_compile(self):
        # Compiling takes minutes for every shape, and nnU-Net does it unasked.
        return "nnUNet_compile" in os.environ and super()._do_i_compile()


def _in_bfloat16() -> bool:
    return torch.cuda.is_available() and bfloat16_units(torch.device("cuda"))


for _name in TRAINERS:
    globals()[_name] = _trainer = type(_name, (LabTrainer,), {})
    for _epochs in EPOCHS:
        _longer = f"{_name}_{_epochs}epoch{'s' if _epochs > 1 else ''}"
        globals()[_longer] = type(_longer, (_trainer,), {"epochs": _epochs})
