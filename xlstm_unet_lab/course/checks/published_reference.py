"""The published xLSTM-UNet once more, written plainly, to hold the package against; and lesson 06's golden case.

Written from a description of what the code released with arXiv 2407.01530 computes, on torch.nn.functional alone, with
none of the package's layers: float64, and one token after the other. Weights have the names of a released state dict.
`python -m xlstm_unet_lab.course.checks.published_reference` writes the golden case anew.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

GOLDEN = Path(__file__).with_name("golden_06.safetensors")
FACTS = {  # of the golden case, as `published_config` takes them: an nnU-Net plan of five stages, very narrow
    "variant": "enc",
    "spatial_dims": 2,
    "in_channels": 1,
    "num_classes": 3,
    "patch_size": (64, 32),
    "features": (4, 4, 8, 8, 12),
    "strides": ((1, 1), (2, 2), (2, 2), (2, 2), (2, 2)),
    "kernel_sizes": ((3, 3),) * 5,
    "encoder_blocks": (2, 2, 2, 2, 2),
    "decoder_blocks": (2, 2, 2, 2),
}
SEED = 6
NORM_EPSILON, SLOPE, CELL_EPSILON = 1e-5, 0.01, 1e-6


class Weights:
    """Released weights by name, in float64; without a state they are drawn at random when first asked for.

    Raises KeyError for a name that is not there and ValueError for another shape than the one asked for.
    """

    def __init__(self, state: Mapping[str, Tensor] | None = None, seed: int = 0):
        self.state = dict(state or {})
        self.generator = torch.Generator().manual_seed(seed) if state is None else None

    def __call__(self, name: str, *shape: int, around: float = 0.0, scale: float = 0.1) -> Tensor:
        if self.generator is not None and name not in self.state:
            self.state[name] = around + scale * torch.randn(shape, generator=self.generator)
        if self.state[name].shape != shape:
            raise ValueError(f"{name} has shape {tuple(self.state[name].shape)}, expected {shape}")
        return self.state[name].double()


def matrix(weights: Weights, name: str, x: Tensor, rows: int) -> Tensor:
    """A linear map without bias of the last axis."""
    return x @ weights(f"{name}.weight", rows, x.shape[-1], scale=x.shape[-1] ** -0.5).T


def convolution(weights: Weights, name: str, x: Tensor, channels: int, kernel, stride=1) -> Tensor:
    shape = (channels, x.shape[1], *kernel)
    weight = weights(f"{name}.weight", *shape, scale=math.prod(shape[1:]) ** -0.5)
    apply = {2: F.conv2d, 3: F.conv3d}[len(kernel)]
    return apply(x, weight, weights(f"{name}.bias", channels), stride, [size // 2 for size in kernel])


def standardised(x: Tensor) -> Tensor:
    """Mean 0 and variance 1 along the last axis."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON)


def instance_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    scale, shift = weights(f"{name}.weight", x.shape[1], around=1.0), weights(f"{name}.bias", x.shape[1])
    return F.instance_norm(x, weight=scale, bias=shift, eps=NORM_EPSILON)


def changing_block(weights: Weights, name: str, x: Tensor, channels: int, kernel, stride=1) -> Tensor:
    """The residual block that changes width or stride; a 1x1 convolution takes the input along."""
    y = convolution(weights, f"{name}.conv1", x, channels, kernel, stride)
    y = F.leaky_relu(instance_norm(weights, f"{name}.norm1", y), SLOPE)
    y = instance_norm(weights, f"{name}.norm2", convolution(weights, f"{name}.conv2", y, channels, kernel))
    return F.leaky_relu(y + convolution(weights, f"{name}.conv3", x, channels, [1] * len(kernel), stride), SLOPE)


def keeping_block(weights: Weights, name: str, x: Tensor, kernel) -> Tensor:
    """The residual block that keeps width and size."""
    y = convolution(weights, f"{name}.conv1.conv", x, x.shape[1], kernel)
    y = F.leaky_relu(instance_norm(weights, f"{name}.conv1.norm", y), SLOPE)
    y = convolution(weights, f"{name}.conv2.conv", y, x.shape[1], kernel)
    return F.leaky_relu(instance_norm(weights, f"{name}.conv2.norm", y) + x, SLOPE)


def stage(weights: Weights, name: str, x: Tensor, channels: int, kernel, stride, blocks: int) -> Tensor:
    x = changing_block(weights, f"{name}.0", x, channels, kernel, stride)
    for number in range(1, blocks):
        x = keeping_block(weights, f"{name}.{number}", x, kernel)
    return x


def mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """One head, token by token: q, k, v (B, S, D), gate pre-activations i, f (B, S)."""
    batch, tokens, width = q.shape
    C, n, m = q.new_zeros(batch, width, width), q.new_zeros(batch, width), q.new_full((batch, 1), -math.inf)
    answers = []
    for t in range(tokens):
        a, now = F.logsigmoid(f[:, t, None]), i[:, t, None]
        largest = torch.maximum(a + m, now)
        forget, store, m = torch.exp(a + m - largest), torch.exp(now - largest), largest
        key = store * k[:, t] / math.sqrt(width)
        C = forget[..., None] * C + key[:, :, None] * v[:, t, None, :]
        n = forget * n + key
        size = torch.maximum((q[:, t] * n).sum(1, keepdim=True).abs(), torch.exp(-m)) + CELL_EPSILON
        answers.append((q[:, t, None, :] @ C)[:, 0] / size)
    return torch.stack(answers, 1)


def vil_block(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Version 1 on tokens (B, S, d), from the first to the last."""
    d, layer = x.shape[-1], f"{name}.layer"
    e, b = 2 * d, 4 if d % 4 == 0 else 2
    normed = standardised(x) * (1 + weights(f"{name}.norm.weight", d))
    inner, z = matrix(weights, f"{layer}.proj_up", normed, 2 * e).split(e, -1)
    kernel = weights(f"{layer}.conv1d.conv.weight", e, 1, 4, scale=0.5)
    c = F.conv1d(F.pad(inner.mT, (3, 0)), kernel, weights(f"{layer}.conv1d.conv.bias", e), groups=e).mT
    c = F.silu(c)
    q, k, v = (
        # Every block of b channels has a matrix of its own.
        (weights(f"{layer}.{what}_proj.weight", e // b, b, b, scale=0.5) @ of.unflatten(-1, (-1, b, 1))).flatten(-3)
        for what, of in (("q", c), ("k", c), ("v", inner))
    )
    i, f = (
        matrix(weights, f"{layer}.mlstm_cell.{gate}gate", torch.cat([q, k, v], -1), b)
        + weights(f"{layer}.mlstm_cell.{gate}gate.bias", b, around=bias, scale=1.0)
        for gate, bias in (("i", 0.0), ("f", 3.0))
    )
    heads = zip(*(part.chunk(b, -1) for part in (q, k, v)), i.unbind(-1), f.unbind(-1), strict=True)
    h = torch.cat([standardised(mlstm(*head)) for head in heads], -1)
    h = h * (1 + weights(f"{layer}.mlstm_cell.outnorm.weight", e))
    skip = weights(f"{layer}.learnable_skip", e, around=1.0)
    return x + matrix(weights, f"{layer}.proj_down", (h + skip * c) * F.silu(z), d)


def mixer(weights: Weights, name: str, x: Tensor, channels_may_be_tokens: bool) -> Tensor:
    """A ViL block over the positions of a feature map, row by row; or over its channels, where there are no fewer."""
    flat = x.flatten(2)  # (B, C, S)
    swapped = channels_may_be_tokens and flat.shape[2] <= flat.shape[1]
    tokens = flat if swapped else flat.mT
    for what in ("weight", "bias"):  # the released layer owns a norm that it never uses
        weights(f"{name}.norm.{what}", tokens.shape[-1])
    tokens = vil_block(weights, f"{name}.vil", tokens)
    return (tokens if swapped else tokens.mT).reshape(x.shape)


def after_stage(weights: Weights, facts: Mapping, s: int, x: Tensor) -> Tensor:
    """What follows stage s of the encoder."""
    n, name, kernel = len(facts["features"]), f"encoder.xlstm_layers.{s}", facts["kernel_sizes"][s]
    if facts["variant"] == "bot":
        return mixer(weights, "xlstm", x, False) if s == n - 1 else x
    if facts["spatial_dims"] == 3:
        return keeping_block(weights, name, x, kernel) if s < 3 else mixer(weights, name, x, True)
    if s == 1:
        return keeping_block(weights, name, x, kernel)
    return mixer(weights, name, x, True) if s >= 2 and s % 2 != n % 2 else x


def network(weights: Weights, facts: Mapping, image: Tensor) -> list[Tensor]:
    """Logits at every resolution of the decoder, highest first. facts: as `published_config` takes them, even sizes."""
    features, kernels, strides = facts["features"], facts["kernel_sizes"], facts["strides"]
    n, dims = len(features), facts["spatial_dims"]
    blocks = [1 if s >= math.ceil(n / 2) else count for s, count in enumerate(facts["encoder_blocks"])]
    x, maps = stage(weights, "encoder.stem", image, features[0], kernels[0], 1, blocks[0]), []
    for s in range(n):
        x = stage(weights, f"encoder.stages.{s}", x, features[s], kernels[s], strides[s], blocks[s])
        x = after_stage(weights, facts, s, x)
        maps.append(x)
    outputs = []
    for position, count in enumerate(facts["decoder_blocks"]):
        s = n - 2 - position
        for axis, stride in enumerate(strides[s + 1]):
            x = x.repeat_interleave(stride, axis + 2)
        x = convolution(weights, f"decoder.upsample_layers.{position}.conv", x, features[s], [1] * dims)
        if dims == 3 or s > 0:
            x = torch.cat([x, maps[s]], 1)
        count = 1 if position >= math.ceil((n - 1) / 2 + 0.5) else count
        x = stage(weights, f"decoder.stages.{position}", x, features[s], kernels[s], 1, count)
        outputs.append(convolution(weights, f"decoder.seg_layers.{position}", x, facts["num_classes"], [1] * dims))
    return outputs[::-1]


def as_released(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With what a real checkpoint repeats, and the prefix a network trained on several GPUs has."""
    released = dict(weights)
    for name, tensor in weights.items():
        for part, number in ((".conv.", 0), (".norm.", 1)):
            before, found, after = name.rpartition(part)
            if found and before.endswith((".conv1", ".conv2")):
                released[f"{before}.all_modules.{number}.{after}"] = tensor
    released |= {f"decoder.{name}": tensor for name, tensor in released.items() if name.startswith("encoder.")}
    return {f"module.{name}": tensor for name, tensor in released.items()}


def golden_case() -> dict[str, Tensor]:
    """Input and weights in float32, the weights as released under "weights.", and outputs in float64, finest first."""
    weights = Weights(seed=SEED)
    generator = torch.Generator().manual_seed(SEED + 1)
    image = torch.randn(1, FACTS["in_channels"], *FACTS["patch_size"], generator=generator)
    outputs = network(weights, FACTS, image.double())
    released = {f"weights.{name}": tensor for name, tensor in as_released(weights.state).items()}
    return {"input": image} | released | {f"output.{level}": y for level, y in enumerate(outputs)}


def write_golden_case(path: Path = GOLDEN) -> Path:
    """Write the golden case; returns the path."""
    from safetensors.torch import save

    from xlstm_unet_lab.ops.files import write_whole

    return write_whole(path, save({name: tensor.clone() for name, tensor in golden_case().items()}))


if __name__ == "__main__":
    write_golden_case()
