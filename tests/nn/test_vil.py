"""The Vision-LSTM layer and block against the published description written out; what they see; initial values."""

import math

import pytest
import torch
import torch.nn.functional as F

from xlstm_unet_lab.nn.layers import CausalConvolution
from xlstm_unet_lab.nn.vil import GridConvolution, MLSTMCell, ViLBlock, ViLLayer
from xlstm_unet_lab.ops import mlstm

GRIDS = {2: (3, 5), 3: (2, 3, 4)}
dims = pytest.mark.parametrize("spatial_dims", [2, 3])
versions = pytest.mark.parametrize("version", ["v1", "v2"])


def randomised(module):
    """Every parameter away from its starting value, in float64."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def tokens_of(grid, width, batch=2):
    return torch.randn(batch, math.prod(grid), width, dtype=torch.float64, requires_grad=True)


def plain_layer(layer, x, grid, heads):
    """Section 2 (and 3, for version 2) of the published networks' description, from the layer's weights."""
    inner = 2 * x.shape[-1]
    projected = F.linear(x, layer.up.weight, layer.up.bias)
    memory, gate = projected[..., :inner], projected[..., inner:]
    weight, bias = layer.conv.conv.weight, layer.conv.conv.bias
    if isinstance(layer.conv, CausalConvolution):
        convolved = F.conv1d(memory.mT, weight, bias, padding=3, groups=inner)[..., : x.shape[1]].mT
    else:
        conv = {2: F.conv2d, 3: F.conv3d}[len(grid)]
        convolved = conv(memory.mT.reshape(-1, inner, *grid), weight, bias, padding=1, groups=inner).flatten(2).mT
    convolved = F.silu(convolved)

    def block_diagonal(linear, tokens):
        return F.linear(tokens, torch.block_diag(*linear.weight), linear.bias)

    q, k, v = (block_diagonal(*pair) for pair in ((layer.q, convolved), (layer.k, convolved), (layer.v, memory)))
    gates = F.linear(torch.cat([q, k, v], -1), layer.cell.gates.weight, layer.cell.gates.bias)
    i, f = gates[..., :heads].mT, gates[..., heads:].mT
    q, k, v = (tokens.unflatten(-1, (heads, inner // heads)).transpose(1, 2) for tokens in (q, k, v))
    h = mlstm.parallel(q, k, v, i, f).transpose(1, 2).flatten(0, 1).flatten(1)  # (B * S, inner)
    scale, shift = 1 + layer.cell.norm.weight, layer.cell.norm.bias
    h = F.group_norm(h, heads, scale, shift, eps=1e-5).view_as(convolved)
    return F.linear((h + layer.skip * convolved) * F.silu(gate), layer.down.weight, layer.down.bias)


@dims
@versions
@pytest.mark.parametrize(("width", "heads"), [(4, 4), (6, 2), (8, 4)])
def test_layer_written_out(width, heads, version, spatial_dims):
    grid = GRIDS[spatial_dims]
    layer, x = randomised(ViLLayer(width, version, spatial_dims)), tokens_of(grid, width)
    assert layer.cell.heads == heads  # as many heads as a block has channels
    found, wanted = layer(x, grid), plain_layer(layer, x, grid, heads)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    weight = torch.randn_like(found)
    leaves = [x, *layer.parameters()]
    gradients = [torch.autograd.grad((y * weight).sum(), leaves) for y in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@dims
@versions
def test_block_is_norm_layer_and_sum(version, spatial_dims):
    grid = GRIDS[spatial_dims]
    block, x = randomised(ViLBlock(8, version, spatial_dims=spatial_dims)), tokens_of(grid, 8)
    normed = F.layer_norm(x, (8,), 1 + block.norm.weight, block.norm.bias, eps=1e-5)
    torch.testing.assert_close(block(x, grid), x + block.layer(normed, grid), rtol=0, atol=1e-12)
    assert (block.norm.bias is None) == (version == "v1")


@dims
def test_version_1_sees_only_the_past(spatial_dims):
    grid = GRIDS[spatial_dims]
    block, x = randomised(ViLBlock(4, "v1", spatial_dims=spatial_dims)), tokens_of(grid, 4, batch=1)
    length = x.shape[1]
    y = block(x, grid)
    for t in range(length):
        seen = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)[0][0].abs().sum(-1) > 0
        assert seen.tolist() == [s <= t for s in range(length)]


@dims
def test_version_2_convolves_on_the_grid(spatial_dims):
    grid = GRIDS[spatial_dims]
    convolution, x = randomised(GridConvolution(2, spatial_dims)), tokens_of(grid, 2, batch=1)
    middle = tuple(extent // 2 for extent in grid)
    token = sum(position * math.prod(grid[axis + 1 :]) for axis, position in enumerate(middle))
    gradient = torch.autograd.grad(convolution(x, grid)[0, token].sum(), x)[0][0].abs().sum(-1).view(grid)
    near = torch.zeros(grid, dtype=torch.bool)
    near[tuple(slice(max(0, position - 1), position + 2) for position in middle)] = True
    assert torch.equal(gradient > 0, near)


@versions
def test_forms_agree(version):
    x, outputs = tokens_of((5, 7), 8), []
    layer = randomised(ViLLayer(8, version))
    for form in ("auto", "recurrent", "parallel", "chunkwise"):
        layer.cell.form = form
        outputs.append(layer(x, (5, 7)))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=1e-12)


@versions
def test_initial_values(version):
    width = 256
    layer = ViLLayer(width, version)
    heads = layer.cell.heads
    for name in ("up", "q", "k", "v"):
        assert getattr(layer, name).weight.std().item() == pytest.approx(math.sqrt(2 / (5 * width)), rel=0.06), name
    assert layer.down.weight.std().item() == pytest.approx(2 / math.sqrt(width), rel=0.02)
    assert torch.equal(layer.skip, torch.ones(2 * width))
    assert not layer.cell.gates.weight.any()
    assert not layer.cell.norm.weight.any()
    torch.testing.assert_close(layer.cell.gates.bias[heads:], torch.linspace(3, 6, heads))
    biases = [getattr(layer, name).bias for name in ("up", "q", "k", "v", "down")]
    assert all(bias is None for bias in biases) if version == "v1" else not any(bias.any() for bias in biases)


def test_gates_stay_in_float32_under_autocast():
    """bfloat16 would round a gate of 100 to a multiple of 1/2; the cell then weighs tokens wrongly by that factor."""
    cell = MLSTMCell(8, 2)
    with torch.no_grad():
        cell.gates.weight.normal_(std=10)
    q, k, v = torch.randn(3, 1, 5, 8).bfloat16()
    exact = F.linear(torch.cat([q, k, v], -1).double(), cell.gates.weight.double(), cell.gates.bias.double())
    with torch.autocast("cpu", torch.bfloat16):
        gates = cell._gates(q, k, v)
    assert gates.dtype == torch.float32
    torch.testing.assert_close(gates.double(), exact, rtol=0, atol=1e-4)


def test_input_gate_biases_start_near_zero():
    bias = MLSTMCell(1024, 512).gates.bias[:512]
    assert bias.std().item() == pytest.approx(0.1, rel=0.15)
    assert bias.mean().abs() < 0.02


@versions
def test_block_size_follows_the_width(version):
    assert ViLLayer(12, version).q.weight.shape == (6, 4, 4)
    assert ViLLayer(10, version).q.weight.shape == (10, 2, 2)
    assert ViLLayer(8, version, heads=8).cell.gates.out_features == 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViLLayer(6, heads=5), "MLSTMCell with 5 heads is 12, not divisible by 5: use 10"),
        (lambda: ViLLayer(6, heads=0), "MLSTMCell with 0 heads is 0, expected a whole number of at least 1"),
        (lambda: MLSTMCell(10, 4), "MLSTMCell with 4 heads is 10, not divisible by 4: use 8 or 12"),
        (lambda: ViLLayer(8, "v3"), r"vil_version is 'v3': .*there are v1, v2"),
        (lambda: ViLLayer(8, form="paralel"), r"form is 'paralel': did you mean 'parallel'\?"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
