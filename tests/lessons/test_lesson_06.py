"""The references of lesson 06 against the package."""

import pytest
import torch
from reach_of_a_unet import build, reach
from safetensors.torch import load_file
from torch import nn

import xlstm_unet_lab as lab
from xlstm_unet_lab.course.checks import lesson_06, lesson_06_networks, published_reference
from xlstm_unet_lab.models.presets import multiply_adds
from xlstm_unet_lab.models.published import translate
from xlstm_unet_lab.nn.conv import InstanceNorm
from xlstm_unet_lab.nn.mixer import BlockChoice, Mixer
from xlstm_unet_lab.nn.vil import ViLLayer
from xlstm_unet_lab.ops.scan_order import Traversal, to_grid, to_sequence


@pytest.mark.parametrize("size", [(3, 5), (2, 3, 4)])
@pytest.mark.parametrize("backwards", [False, True])
def test_mix_is_a_walk_there_and_back(size, backwards):
    grid, walk = torch.randn(2, 3, *size, dtype=torch.float64), Traversal(reverse=backwards)
    expected = to_grid(to_sequence(grid, walk).cumsum(1), size, walk)
    assert torch.equal(lesson_06.mix(grid, lambda tokens: tokens.cumsum(1), backwards), expected)


@pytest.mark.parametrize("width", [2, 4, 6, 32, 50])
def test_weights_are_those_of_the_layer(width):
    assert lesson_06.vil_parameters(width) == sum(weight.numel() for weight in ViLLayer(width).parameters())


@pytest.mark.parametrize("width", [6, 8, 32])
def test_the_square_of_the_tokens_is_what_is_counted(width):
    mixer = Mixer(BlockChoice("vil", mlstm_form="parallel"), width, 2, "forward")
    small, large = (multiply_adds(mixer, (1, width, side, 10)) for side in (10, 20))
    (_, square), (_, larger) = (lesson_06.mixer_cost(tokens, width) for tokens in (100, 200))
    assert large - 2 * small == larger - 2 * square  # what is linear cancels


@pytest.mark.parametrize("width", [6, 8, 32])
def test_the_linear_part_is_that_of_the_layer_without_its_cell(width):
    layer = ViLLayer(width)
    layer.cell.forward = lambda q, k, v: layer.cell._gates(q, k, v).sum(-1, keepdim=True) + q
    layer.forward_grid = lambda x: layer(x, (x.shape[1],))
    assert multiply_adds(layer.forward_grid, (1, 50, width)) == lesson_06.mixer_cost(50, width)[0]


def test_stages_needed_is_the_reach_measured_on_networks():
    for stages in range(2, 9):
        assert lesson_06_networks.stages_needed(reach(stages)) == stages
        assert lesson_06_networks.stages_needed(reach(stages) + 1) == stages + 1
        assert reach(stages) == 3 * 2**stages - 2


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("stages", [2, 3])
def test_downwards_a_u_net_sees_less_by_what_upsamplings_copy(stages):
    size = (32 * stages, 4)
    model = build("unet", size, (2,) * stages).double()
    for module in list(model.modules()):  # without instance norm, which sees the whole image
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                setattr(module, name, nn.Identity())
    image = torch.randn(1, 1, *size, dtype=torch.float64, requires_grad=True)
    logits, up, down = model(image)[0].sum(0)[:, 2], 0, 0
    for row in range(size[0] // 2, size[0] // 2 + 2 ** (stages - 1)):  # the alignment to the coarse grid matters
        (gradient,) = torch.autograd.grad(logits[row], image, retain_graph=True)
        seen = gradient[0, 0].abs().sum(1).nonzero().flatten()
        up, down = max(up, row - int(seen[0])), max(down, int(seen[-1]) - row)
    assert (up, down) == (reach(stages), reach(stages) - (2 ** (stages - 1) - 1))


def test_renamed_as_the_package_does():
    released = {name: x for name, x in load_file(published_reference.GOLDEN).items() if name.startswith("weights.")}
    released = {name.removeprefix("weights."): x for name, x in released.items()}
    model = lab.UNet(lab.published_config(**published_reference.FACTS, deep_supervision=True))
    theirs = translate(released, model)
    assert theirs.keys() == model.state_dict().keys()
    renamed = lesson_06_networks.rename(list(released))
    plain = {name for name in renamed.values() if ".vil." not in name}
    mixed = {name for name in theirs if name.startswith(("encoder.mixers.2.", "encoder.mixers.4."))}
    assert plain == theirs.keys() - mixed
    assert all(torch.equal(released[name], theirs[ours]) for name, ours in renamed.items() if ours in plain)
    assert len(renamed) - len(plain) == len(mixed) + 4, "two gate maps of each of two mixers, with biases, become one"
