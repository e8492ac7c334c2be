"""Networks from the numbers of an nnU-Net plan, and the axes along which its data may be mirrored."""

from types import SimpleNamespace

import pytest
import torch
from results_folder import golden_facts, small_facts

from xlstm_unet_lab.nnunet.networks import TRAINERS, known_trainer, mirror_axes, network_from_plan

NUMBERS = {"features_per_stage": "features", "strides": "strides", "kernel_sizes": "kernels"}
NUMBERS |= {"n_conv_per_stage": "blocks", "n_conv_per_stage_decoder": "decoder_blocks"}


def planned(trainer, facts, deep_supervision=False, **changes):
    architecture = {name: facts[ours] for name, ours in NUMBERS.items()} | changes
    plan = SimpleNamespace(patch_size=facts["patch_size"], network_arch_init_kwargs=architecture)
    return network_from_plan(trainer, plan, facts["in_channels"], facts["num_classes"], deep_supervision)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_has_its_network(trainer, dimensions):
    facts = small_facts(dimensions, channels=2)
    network = planned(trainer, facts, deep_supervision=True)
    image = torch.zeros(1, 2, *facts["patch_size"])
    assert [tuple(logits.shape[:2]) for logits in network(image)] == [(1, 3)] * 2
    heads = set(network.state_dict())
    network.deep_supervision = False
    assert network(image).shape == (1, 3, *facts["patch_size"])
    assert set(network.state_dict()) == heads


def test_a_block_of_ours_counts_for_two_convolutions():
    facts = small_facts(2)
    assert planned("nnUNetTrainerXLSTMBot", facts).config.encoder_blocks == (1, 1, 1)
    assert planned("nnUNetTrainerXLSTMBot", facts, n_blocks_per_stage=[1, 3, 4]).config.encoder_blocks == (1, 3, 4)
    assert planned("nnUNetTrainerUxLSTMBot", facts).config.encoder_blocks == (2, 2, 1)


@pytest.mark.parametrize("name", ["bot_2d", "u_mamba_enc_2d"])
def test_a_released_state_dict_loads_as_nnunet_loads_it(shared_golden, name):
    facts, weights = golden_facts(shared_golden / name)
    trainer = "nnUNetTrainerUMambaEnc" if name.startswith("u_mamba") else "nnUNetTrainerUxLSTMBot"
    network, before = planned(trainer, facts), dict(weights)
    network.load_state_dict(weights)
    assert weights == before
    again = planned(trainer, facts)
    again.load_state_dict(network.state_dict())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("nnUNetTrainerUMambaEncNoAMP", "nnUNetTrainerUMambaEncNoAMP"),
        ("nnUNetTrainerUxLSTMEnc_50epochs", "nnUNetTrainerUxLSTMEnc"),
        ("nnUNetTrainerXLSTMBottle", ""),
        ("nnUNetTrainer", ""),
    ],
)
def test_a_trainer_is_known_in_every_length(name, known):
    assert known_trainer(name) == known


@pytest.mark.parametrize(
    ("facts", "order", "dimensions", "axes"),
    [
        ({}, (0, 1, 2), 3, (0, 1, 2)),
        ({}, (0, 1, 2), 2, (0, 1)),
        ({"mirror_axes": [2]}, (0, 1, 2), 3, (2,)),
        ({"mirror_axes": [2]}, (2, 0, 1), 3, (0,)),
        ({"mirror_axes": [2]}, (2, 0, 1), 2, ()),
        ({"mirror_axes": [1, 2]}, (1, 0, 2), 2, (1,)),
        ({"mirror_axes": []}, (0, 1, 2), 2, ()),
    ],
)
def test_the_axes_of_a_patch_are_those_of_the_data(facts, order, dimensions, axes):
    assert mirror_axes(facts, order, dimensions) == axes
