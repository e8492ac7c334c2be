"""Vision-LSTM as an image classifier, version 1 and 2, and the same registered with timm.

Source: Alkin et al., Vision-LSTM (arXiv 2406.04303), figure 2 and table 7. Importing this module registers
`vil_{tiny,small,base}_patch16_224` (version 1) and `vil2_{tiny,small,base}_patch16_224` (version 2) with timm.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm import models as timm_models
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from torch import Tensor, nn

from xlstm_unet_lab.models.unet import check_image
from xlstm_unet_lab.nn.layers import OffsetLayerNorm
from xlstm_unet_lab.nn.vil import VERSIONS, ViLBlock
from xlstm_unet_lab.ops.checks import WIDEST, flag, is_whole, number, one_of, require_divisible, sizes, whole_number
from xlstm_unet_lab.ops.scan_order import to_grid, to_sequence

EPSILON = 1e-6  # of the final norm
SIZES = {"tiny": 192, "small": 384, "base": 768}  # width; all have 24 blocks, in version 2 counted as 12 pairs
BLOCKS = 24
POOLS = ("ends", "")  # timm's words for pooling: the first and the last token here; "" is none


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """One number for both axes, or two; ValueError for anything else."""
    y, x = sizes(name, value, 2) if isinstance(value, list | tuple) else (whole_number(name, value),) * 2
    whole_number(name, max(y, x), at_most=WIDEST)
    return y, x


def grid_size(image_size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """Patches along y and x; ValueError where the patch size does not divide the image."""
    steps = enumerate(zip(image_size, patch_size, strict=True))
    return tuple(require_divisible(extent, step, f"image_size[{axis}]") for axis, (extent, step) in steps)


def grid_of(image: Tensor, channels: int, patch_size: Sequence[int]) -> tuple[int, ...]:
    """The same for images (B, channels, y, x); ValueError for anything else."""
    check_image(image, channels, 2)
    return grid_size(image.shape[2:], patch_size)


def position_on(grid: tuple[int, ...], position: Tensor) -> Tensor:
    """The position embedding (1, y, x, dim), interpolated where the grid is another: (1, dim, *grid)."""
    position = position.movedim(-1, 1)
    return position if position.shape[2:] == grid else F.interpolate(position, grid, mode="bicubic")


# What decides by sizes cannot be followed by torch.fx: timm's tracing takes it as a whole.
timm_models.register_notrace_module(ViLBlock)
for _whole in (grid_of, position_on, to_sequence, to_grid):
    timm_models.register_notrace_function(_whole)


class VisionLSTM(nn.Module):
    """Image (B, in_channels, y, x) -> logits (B, num_classes); with num_classes=0 the pooled features.

    Patches become tokens; blocks look forward and backward in turn; the first and the last token, which have seen
    everything, are averaged (v1) or put side by side (v2). `depth` counts blocks in v1 and pairs of blocks in v2.
    Any image whose sides the patch size divides runs: the position embedding is interpolated for it.
    The released ImageNet weights were trained with one more norm than the paper draws, so they need `second_norm=True`:
    in v1 over the tokens before pooling, in v2 over the pooled features.
    Its methods are those that timm asks of a model: `num_features` is the width of a map, `head_hidden_size` that of
    the pooled features. With global_pool="" and num_classes=0 the output is the map of `forward_features`. torch.fx
    traces it through timm, and torch.export as it is; TorchScript (`torch.jit.script`) is not supported.
    Raises ValueError for an unknown version and for sizes that do not fit.
    """

    output_fmt = "NCHW"  # timm's word for the axes of `forward_features`

    def __init__(
        self,
        version: str = "v1",
        in_channels: int = 3,
        image_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        dim: int = 192,
        depth: int | None = None,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        form: str = "auto",
        second_norm: bool = False,
        global_pool: str = POOLS[0],
        drop_rate: float = 0.0,
    ):
        super().__init__()
        one_of("version", version, VERSIONS)
        blocks = BLOCKS if depth is None else whole_number("depth", depth, at_most=1000) * (2 if version == "v2" else 1)
        for name, width in {"in_channels": in_channels, "dim": dim}.items():
            whole_number(name, width, at_most=WIDEST)
        self.version, self.patch_size = version, pair(patch_size, "patch_size")
        self.embedding = nn.Conv2d(in_channels, dim, self.patch_size, self.patch_size)
        self.position = nn.Parameter(torch.empty(1, *grid_size(pair(image_size, "image_size"), self.patch_size), dim))
        rates = [drop_path_rate * n / max(blocks - 1, 1) for n in range(blocks)]  # deeper blocks: left out more often
        self.blocks = nn.ModuleList(ViLBlock(dim, version, DropPath(rate), form=form) for rate in rates)
        self.num_features, self.head_hidden_size = dim, dim * (2 if version == "v2" else 1)
        in_pairs = version == "v2"
        self.norm: nn.Module = (OffsetLayerNorm if in_pairs else nn.LayerNorm)(dim, bias=True, eps=EPSILON)
        second = nn.LayerNorm(self.head_hidden_size) if in_pairs else OffsetLayerNorm(dim)
        self.second_norm: nn.Module = second if second_norm else nn.Identity()
        self.drop_rate = number("drop_rate", drop_rate, at_least=0, below=1)
        self.grad_checkpointing, self.global_pool = False, POOLS[0]
        self.reset_classifier(num_classes, global_pool)
        of_each = {"num_chs": dim, "reduction": max(self.patch_size)}
        self.feature_info = [of_each | {"module": f"blocks.{n}"} for n in range(blocks)]
        nn.init.trunc_normal_(self.position, std=0.02)

    def embed(self, image: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens (B, S, dim) with their positions added, and the grid they form."""
        grid = grid_of(image, self.embedding.in_channels, self.patch_size)
        return to_sequence(self.embedding(image) + position_on(grid, self.position)), grid

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ):
        """Token maps (B, dim, y, x) after the blocks named by `indices` (the last n for a number, all for None).

        Returns (the map after the last block, maps), or the maps alone; `norm` normalises each map, `stop_early` leaves
        out the blocks after the last one named, output_fmt="NLC" gives tokens (B, S, dim) for maps. The call is timm's.
        Raises ValueError for indices beyond the blocks and for another `output_fmt`.
        """
        as_map = one_of("output_fmt", output_fmt, ("NCHW", "NLC")) == "NCHW"
        taken, maps = self._taken(indices), []
        tokens, grid = self.embed(image)
        blocks = self.blocks[: max(taken, default=-1) + 1] if stop_early else self.blocks
        for index, block in enumerate(blocks):
            given = tokens.flip(1) if index % 2 else tokens
            tokens = timm_models.checkpoint(block, given, grid) if self.grad_checkpointing else block(given, grid)
            tokens = tokens.flip(1) if index % 2 else tokens
            if index in taken:
                found = self.norm(tokens) if norm else tokens
                maps.append(to_grid(found, grid) if as_map else found)
        return maps if intermediates_only else (to_grid(tokens, grid), maps)

    def _taken(self, indices: int | Sequence[int] | None) -> list[int]:
        """The numbers of the blocks that `indices` names."""
        count = len(self.blocks)
        if not isinstance(indices, list | tuple | range):
            last = count if indices is None else whole_number("indices", indices, 0, count, fix=": a number of blocks")
            return [*range(count - last, count)]
        if bad := [index for index in indices if not is_whole(index, -count, count - 1)]:
            raise ValueError(f"indices holds {bad[0]!r}, expected numbers from {-count} to {count - 1}")
        return [index % count for index in indices]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what no map of the blocks in `indices` needs, as timm calls it: the blocks after them, the final norm,
        pooling and head. Returns their numbers; errors as `forward_intermediates`."""
        taken = self._taken(indices)
        self.blocks = self.blocks[: max(taken, default=-1) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.second_norm = nn.Identity()
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, image: Tensor) -> Tensor:
        """The map after the last block, (B, dim, y, x), before the final norm."""
        return self.forward_intermediates(image, 0)[0]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the first and last token of a map, normalise, classify; where nothing is pooled the map stays."""
        if not self.global_pool:
            return features
        # every token is normalised on its own, so these two are enough
        ends = torch.stack([features[:, :, 0, 0], features[:, :, -1, -1]], 1)
        if self.version == "v2":
            pooled = self.second_norm(self.norm(ends).flatten(1))
        else:
            pooled = self.norm(self.second_norm(ends).mean(1))
        pooled = F.dropout(pooled, self.drop_rate, self.training)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for this number of classes, as timm calls it; none for 0. global_pool: "ends" pools the first and
        the last token, "" nothing, None as before. Raises ValueError for classes of what is not pooled."""
        pool = self.global_pool if global_pool is None else one_of("global_pool", global_pool, POOLS)
        whole_number("num_classes", num_classes, 0, WIDEST)
        if num_classes and not pool:
            raise ValueError(f"num_classes is {num_classes} with global_pool='', expected 0, or global_pool='ends'")
        self.num_classes, self.global_pool = num_classes, pool
        self.head = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.normal_(self.head.weight, std=2e-5)
            nn.init.zeros_(self.head.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed anew for their gradient, which saves what they would keep in memory."""
        self.grad_checkpointing = flag("enable", enable)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone, beside vectors."""
        return {"position"}

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Parameters by depth, for a learning rate a layer: patterns of their names as timm groups by them."""
        blocks = [(r"^blocks\.(\d+)", None), (r"^(?:second_)?norm", (99999,))]  # norms go with the last block
        return {"stem": r"^(?:position|embedding)", "blocks": blocks}

    def __prepare_scriptable__(self):  # what torch.jit.script calls first
        raise ValueError("TorchScript is not supported, its language lacks what the blocks need: use torch.export")


NAMED = {  # timm's names -> what makes each another one
    f"vil{'2' if version == 'v2' else ''}_{size}_patch16_224": {"version": version, "dim": width}
    for version in VERSIONS
    for size, width in SIZES.items()
}
# timm reads this by name: what input each model was published for. No address: timm cannot fetch these weights.
PUBLISHED_FOR = {"input_size": (3, 224, 224), "num_classes": 1000, "first_conv": "embedding", "classifier": "head"}
PUBLISHED_FOR |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "pool_size": (14, 14)}
default_cfgs = timm_models.generate_default_cfgs(dict.fromkeys(NAMED, PUBLISHED_FOR))


def _from_timm(**options) -> VisionLSTM:
    words = {"in_chans": "in_channels", "img_size": "image_size"}
    return VisionLSTM(**{words.get(key, key): value for key, value in options.items()})


def _register(name: str, own: dict) -> None:
    def create(pretrained: bool = False, **options) -> nn.Module:
        if pretrained:
            raise ValueError("timm cannot fetch these weights: create the model, then lab.load_published(model, path)")
        features = {"feature_cls": "getter", "out_indices": 3}  # the last three maps where nobody chooses
        return timm_models.build_model_with_cfg(_from_timm, name, False, feature_cfg=features, **own | options)

    create.__name__ = name
    create.__doc__ = f"Vision-LSTM {own['version']}, width {own['dim']}, {BLOCKS} blocks, patches of 16."
    create.__module__ = __name__  # timm looks for the function and `default_cfgs` in one module
    globals()[name] = timm_models.register_model(create)


for _name, _own in NAMED.items():
    _register(_name, _own)
