"""Vision-LSTM as an image classifier, version 1 and 2, and the same registered with timm.

Source: Alkin et al., Vision-LSTM (arXiv 2406.04303), figure 2 and table 7. Importing this module registers
`vil_{tiny,small,base}_patch16_224` (version 1) and `vil2_{tiny,small,base}_patch16_224` (version 2) with timm.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from xlstm_unet_lab.models.unet import check_image
from xlstm_unet_lab.nn.layers import OffsetLayerNorm
from xlstm_unet_lab.nn.vil import VERSIONS, ViLBlock
from xlstm_unet_lab.ops.checks import WIDEST, one_of, require_divisible, sizes, whole_number
from xlstm_unet_lab.ops.scan_order import to_grid, to_sequence

EPSILON = 1e-6  # of the final norm
SIZES = {"tiny": 192, "small": 384, "base": 768}  # width; all have 24 blocks, in version 2 counted as 12 pairs
BLOCKS = 24


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """One number for both axes, or two; ValueError for anything else."""
    y, x = sizes(name, value, 2) if isinstance(value, list | tuple) else (whole_number(name, value),) * 2
    whole_number(name, max(y, x), at_most=WIDEST)
    return y, x


class VisionLSTM(nn.Module):
    """Image (B, in_channels, y, x) -> logits (B, num_classes); with num_classes=0 the pooled features.

    Patches become tokens; blocks look forward and backward in turn; the first and the last token, which have seen
    everything, are averaged (v1) or put side by side (v2). `depth` counts blocks in v1 and pairs of blocks in v2.
    Any image whose sides the patch size divides runs: the position embedding is interpolated for it.
    The released ImageNet weights were trained with one more norm than the paper draws, so they need `second_norm=True`:
    in v1 over the tokens before pooling, in v2 over the pooled features.
    Raises ValueError for an unknown version and for sizes that do not fit.
    """

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
    ):
        super().__init__()
        one_of("version", version, VERSIONS)
        blocks = BLOCKS if depth is None else whole_number("depth", depth, at_most=1000) * (2 if version == "v2" else 1)
        for name, width in {"in_channels": in_channels, "dim": dim, "num_classes": num_classes}.items():
            whole_number(name, width, at_least=int(name != "num_classes"), at_most=WIDEST)
        self.version, self.patch_size = version, pair(patch_size, "patch_size")
        self.embedding = nn.Conv2d(in_channels, dim, self.patch_size, self.patch_size)
        self.position = nn.Parameter(torch.empty(1, *self.grid_size(pair(image_size, "image_size")), dim))
        rates = [drop_path_rate * n / max(blocks - 1, 1) for n in range(blocks)]  # deeper blocks: left out more often
        self.blocks = nn.ModuleList(ViLBlock(dim, version, DropPath(rate), form=form) for rate in rates)
        self.num_features = self.head_hidden_size = dim * (2 if version == "v2" else 1)
        if version == "v2":
            self.norm: nn.Module = OffsetLayerNorm(dim, bias=True, eps=EPSILON)
            self.second_norm: nn.Module = nn.LayerNorm(self.num_features) if second_norm else nn.Identity()
        else:
            self.norm = nn.LayerNorm(dim, eps=EPSILON)
            self.second_norm = OffsetLayerNorm(dim) if second_norm else nn.Identity()
        self.reset_classifier(num_classes)
        of_each = {"num_chs": dim, "reduction": max(self.patch_size)}
        self.feature_info = [of_each | {"module": f"blocks.{n}"} for n in range(blocks)]
        nn.init.trunc_normal_(self.position, std=0.02)

    def grid_size(self, image_size: Sequence[int]) -> tuple[int, ...]:
        """Patches along y and x; ValueError where the patch size does not divide the image."""
        steps = enumerate(zip(image_size, self.patch_size, strict=True))
        return tuple(require_divisible(extent, step, f"image_size[{axis}]") for axis, (extent, step) in steps)

    def embed(self, image: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens (B, S, dim) with their positions added, and the grid they form."""
        check_image(image, self.embedding.in_channels, 2)
        grid = self.grid_size(image.shape[2:])
        position = self.position.movedim(-1, 1)  # (1, dim, y, x)
        if position.shape[2:] != grid:
            position = F.interpolate(position, grid, mode="bicubic", align_corners=False)
        return to_sequence(self.embedding(image) + position), grid

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ):
        """Token maps (B, dim, y, x) after the blocks named by `indices` (the last n for a number, all for None).

        Returns (tokens after the last block, maps), or the maps alone; `norm` normalises each map. The call is timm's.
        Raises ValueError for indices beyond the blocks and for another `output_fmt`.
        """
        count = len(self.blocks)
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}, expected 'NCHW': the tokens of a map are a grid")
        wanted = range(count) if indices is None else indices
        if isinstance(wanted, int):
            wanted = range(count - whole_number("indices", wanted, 0, count, fix=": a number of blocks"), count)
        if bad := [index for index in wanted if not -count <= index < count]:
            raise ValueError(f"indices holds {bad[0]}, expected numbers from {-count} to {count - 1}")
        chosen, maps = {index % count for index in wanted}, []
        tokens, grid = self.embed(image)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens.flip(1), grid).flip(1) if index % 2 else block(tokens, grid)
            if index in chosen:
                maps.append(to_grid(self.norm(tokens) if norm else tokens, grid))
        return maps if intermediates_only else (tokens, maps)

    def forward_features(self, image: Tensor) -> Tensor:
        """Tokens after the last block, (B, S, dim), before the final norm."""
        return self.forward_intermediates(image, [-1])[0]

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the first and last token, normalise, classify."""
        ends = tokens[:, [0, -1]]  # every token is normalised on its own, so these two are enough
        if self.version == "v2":
            pooled = self.second_norm(self.norm(ends).flatten(1))
        else:
            pooled = self.norm(self.second_norm(ends).mean(1))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """A new head for this number of classes, as timm calls it; none for 0."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.normal_(self.head.weight, std=2e-5)
            nn.init.zeros_(self.head.bias)


NAMED = {  # timm's names -> what makes each another one
    f"vil{'2' if version == 'v2' else ''}_{size}_patch16_224": {"version": version, "dim": width}
    for version in VERSIONS
    for size, width in SIZES.items()
}
# timm reads this by name: what input each model was published for. No address: timm cannot fetch these weights.
PUBLISHED_FOR = {"input_size": (3, 224, 224), "num_classes": 1000, "first_conv": "embedding", "classifier": "head"}
PUBLISHED_FOR |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
default_cfgs = generate_default_cfgs(dict.fromkeys(NAMED, PUBLISHED_FOR))


def _from_timm(**options) -> VisionLSTM:
    words = {"in_chans": "in_channels", "img_size": "image_size"}
    return VisionLSTM(**{words.get(key, key): value for key, value in options.items()})


def _register(name: str, own: dict) -> None:
    def create(pretrained: bool = False, **options) -> nn.Module:
        if pretrained:
            raise ValueError("timm cannot fetch these weights: create the model, then lab.load_published(model, path)")
        return build_model_with_cfg(_from_timm, name, False, feature_cfg={"feature_cls": "getter"}, **own | options)

    create.__name__ = name
    create.__doc__ = f"Vision-LSTM {own['version']}, width {own['dim']}, {BLOCKS} blocks, patches of 16."
    create.__module__ = __name__  # timm looks for the function and `default_cfgs` in one module
    globals()[name] = register_model(create)


for _name, _own in NAMED.items():
    _register(_name, _own)
