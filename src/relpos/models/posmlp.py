"""PosMLP: a pyramid of gated MLPs whose tokens are mixed, within windows, by relative positions alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

from relpos.encodings.base import positive
from relpos.encodings.reference import need
from relpos.mixers.gating import PoSGU
from relpos.models.gated import EPSILON, GatedBlock, hidden_width, linear_head
from relpos.models.gates import GateMaker, gate_of, resized
from relpos.models.images import Sides, Sized, check_images, rising, sides
from relpos.models.windows import check_tiled, derived, given, merge, partition, rescaled

StemNorm = Literal["batch", "layer"]


class Stage(nn.Module):
    """Gated blocks within the windows of a map, (batch, height, width, dim) to the same shape."""

    def __init__(self, blocks: Sequence[GatedBlock], window: Sides) -> None:
        super().__init__()
        self.blocks, self.window = nn.ModuleList(blocks), window

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any], window: int | Sequence[int], **options: Any) -> Stage:
        """From the weights of one released level: encoder.0.norm.weight, encoder.0.proj_c_e.weight, ..,
        encoder.0.gate_unit.pos.token_proj_n_bias; options as in `PoSGU.from_reference`."""
        size, blocks = sides("window", window), []
        numbers = {int(name.split(".")[1]) for name in arrays if name.startswith("encoder.")}
        for index in sorted(numbers):
            own = _under(f"encoder.{index}.", arrays)
            hidden, dim = need(own, "proj_c_e.weight").shape
            gate = PoSGU.from_reference(_under("gate_unit.pos.", own), hidden, size, **options)
            block = GatedBlock(dim, hidden, gate).to(need(own, "norm.weight").dtype)
            for module, name in ((block.norm, "norm"), (block.expand, "proj_c_e"), (block.project, "proj_c_s")):
                module.load_state_dict({part: need(own, f"{name}.{part}") for part in ("weight", "bias")})
            blocks.append(block)
        if not blocks:
            raise ValueError(f"no array is called encoder.0.norm.weight or alike; there are {[*arrays]}")
        return cls(blocks, size)

    def forward(self, x: Tensor) -> Tensor:
        tokens = partition(x, self.window)
        for block in self.blocks:
            tokens = block(tokens)
        return merge(tokens, self.window, (x.shape[1], x.shape[2]))


def _under(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


class ChannelsLast(nn.LayerNorm):
    """Layer normalisation over the channels of (batch, channels, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def stem(channels: int, dim: int, stride: int, norm: StemNorm) -> nn.Sequential:
    """Three convolutions with a norm after each and GELU between: 3 x 3 to dim / 2, 3 x 3 to dim, 1 x 1."""
    if stride not in (1, 2, 4):
        raise ValueError(f"the stem has stride 1, 2 or 4, got {stride!r}")
    if norm not in ("batch", "layer"):
        raise ValueError(f'stem_norm is "batch" or "layer", got {norm!r}')
    if positive("the first of dims", dim) % 2:
        raise ValueError(f"the stem begins with half of the channels: the first of dims is even, got {dim}")
    layers: list[nn.Module] = []
    widths = [positive("in_channels", channels), dim // 2, dim, dim]
    for index, (before, after, size) in enumerate(zip(widths, widths[1:], (3, 3, 1))):
        step = 2 if index < {1: 0, 2: 1, 4: 2}[stride] else 1
        layers += [nn.Conv2d(before, after, size, step, size // 2), _stem_norm(norm, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _stem_norm(norm: StemNorm, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=EPSILON) if norm == "batch" else ChannelsLast(channels, eps=EPSILON)


class Downsample(nn.Module):
    """Half the height and width, another number of channels: a depthwise 3 x 3 convolution of stride 2 with several
    outputs a channel, then LayerNorm; (batch, height, width, before) to (batch, height / 2, width / 2, after)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        if after % before:
            raise ValueError(
                f"every channel of a stage becomes the same number in the next: {before} does not divide {after}"
            )
        self.reduce = nn.Conv2d(before, after, 3, 2, 1, groups=before)
        self.norm = nn.LayerNorm(after, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.reduce(x.movedim(-1, 1)).movedim(1, -1))
        return out


class PosMLP(Sized):
    """Images (batch, in_channels, height, width) to logits (batch, classes), or to a pyramid of feature maps.

    dims, depths   channels and blocks of every stage; each of dims is a multiple of the one before
    image          (height, width) in pixels, or one integer
    windows        (height, width) or an integer for every stage, in cells of its map; None: the largest that tile the
                   maps of `image`, of at most 14 a side (14, 14, 14, 7 for 224). Images of all sizes whose maps the
                   windows tile are taken, whatever `image` is; the error names them
    ratios         the gate's input has ratio * dim channels, an even number
    groups         generators a gate, a divisor of ratio * dim / 2
    encoding       "gqpe", "lrpe" or the name of another Bias; "sgu" for gMLP's free matrices; or a function (hidden,
                   window) -> module for a gate of your own
    encoding_options   further arguments of the encoding, e.g. {"symmetric": False}
    stride         of the stem: 4 as published, or 2 or 1 for small pictures; each stage after the first halves the map
    stem_norm      "batch" (published) or "layer"
    dropout        after the last projection of each block
    drop_path      stochastic depth, rising from 0 in the first block of all to this in the last
    features_only  no head: the network returns what `features` does

    The mixing weights do not depend on content, and windows meet only in the convolutions between stages. Weights are
    truncated normal 0.02, biases 0. Source: Wang et al. 2022, "Parameterization of Cross-Token Relations with Relative
    Positional Encoding for Vision MLP" (arXiv 2207.07284); the layout of stem, stages and head is that of the released
    code, whose shifted windows do not run and are left out.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        *,
        image: int | Sequence[int] = 224,
        windows: Sequence[int | Sequence[int]] | None = None,
        ratios: Sequence[float] = (4, 4, 4, 2),
        groups: Sequence[int] = (8, 16, 32, 64),
        encoding: str | GateMaker = "gqpe",
        encoding_options: Mapping[str, Any] | None = None,
        classes: int = 1000,
        in_channels: int = 3,
        stride: int = 4,
        stem_norm: StemNorm = "batch",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        per_stage = (dims, depths, ratios, groups)
        stages = len(dims) if isinstance(dims, Sequence) else 0
        if not stages or any(not isinstance(each, Sequence) or len(each) != stages for each in per_stage):
            raise ValueError(
                "dims, depths, ratios and groups hold a number for every stage, got "
                f"{dims}, {depths}, {ratios} and {groups}"
            )
        self.image, self.in_channels, self.channels = sides("image", image), in_channels, tuple(dims)
        self.stem = stem(in_channels, dims[0], stride, stem_norm)
        self.strides = tuple(stride * 2**index for index in range(stages))
        sizes = derived(self.image, self.strides) if windows is None else given(windows, stages)
        check_tiled(self.image, sizes, self.strides)
        rates = iter(rising(drop_path, sum(positive("a depth", depth) for depth in depths)))
        self.stages = nn.ModuleList()
        for dim, depth, ratio, count, window in zip(dims, depths, ratios, groups, sizes):
            hidden = hidden_width(dim, ratio)
            blocks = [
                GatedBlock(
                    dim,
                    hidden,
                    gate_of(encoding, hidden, window, count, encoding_options),
                    dropout=dropout,
                    drop_path=next(rates),
                )
                for _ in range(depth)
            ]
            self.stages.append(Stage(blocks, window))
        self.downsamples = nn.ModuleList(Downsample(before, after) for before, after in pairwise(dims))
        self.features_only = features_only
        self.norm = None if features_only else nn.LayerNorm(dims[-1], eps=EPSILON)
        self.head = None if features_only else linear_head(dims[-1], classes)
        for module in (*self.stem, *(down.reduce for down in self.downsamples)):
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    @property
    def windows(self) -> list[Sides]:
        """(height, width) of the windows of every stage, in cells."""
        return [stage.window for stage in self.stages]  # type: ignore[misc]

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """images (batch, in_channels, height, width), float, to logits (batch, classes), or to maps (features_only)."""
        if self.head is None:
            return self.features(images)
        logits: Tensor = self.head(self.embed(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """One vector an image, (batch, dims[-1]): the mean over the last map, normalised before."""
        if self.norm is None:
            raise ValueError("a network with features_only=True has no last norm; take features(images)")
        y: Tensor = self.norm(self._maps(images)[-1]).mean((1, 2))
        return y

    def features(self, images: Tensor) -> list[Tensor]:
        """The output of every stage, (batch, channels, height / stride, width / stride) with the `channels` and
        `strides` of this network; not normalised."""
        return [x.movedim(-1, 1) for x in self._maps(images)]

    def _maps(self, images: Tensor) -> list[Tensor]:
        check_tiled(check_images(images, self.in_channels), self.windows, self.strides)
        x = self.stem(images).movedim(1, -1)
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(self.downsamples[index - 1](x) if index else x)
            maps.append(x)
        return maps

    def resize(self, image: int | Sequence[int], windows: Sequence[int | Sequence[int]] | None = None) -> PosMLP:
        """A new network for images of another size, with copies of the weights.

        windows  for every stage; default: those that cover the same share of the map as now, so that a window that was
                 the whole map stays it. Encodings and token biases are resized to them, see `gates.resized`. Where the
                 windows stay as they are no network need be made: this one takes the image.
        """
        size = sides("image", image)
        new = rescaled(self.windows, self.image, size) if windows is None else given(windows, len(self.stages))
        check_tiled(size, new, self.strides)
        other = copy.deepcopy(self)
        other.image = size
        for stage, window in zip(other.stages, new):
            assert isinstance(stage, Stage)
            for block in stage.blocks:
                assert isinstance(block, GatedBlock)
                block.gate = resized(block.gate, window)
            stage.window = window
        return other


PRESETS: dict[str, tuple[int, int, int, int]] = {
    "t": (96, 192, 384, 768),
    "s": (128, 256, 512, 1024),
    "b": (192, 384, 768, 1536),  # not among the released configurations: widths that give the 82M of its README
}


def posmlp(
    size: str, encoding: str | GateMaker = "gqpe", image: int | Sequence[int] = 224, classes: int = 1000, **options: Any
) -> PosMLP:
    """PosMLP-T, -S or -B: size "t", "s" or "b"; other arguments as in `PosMLP`, whose depths are 2, 2, 18, 2.

    | size | dims                 | parameters (gqpe) | MACs at 224 |
    |------|----------------------|-------------------|-------------|
    | t    | 96, 192, 384, 768    | 20,925,538        | 5.18 G      |
    | s    | 128, 256, 512, 1024  | 36,816,450        | 8.71 G      |
    | b    | 192, 384, 768, 1536  | 81,976,834        | 18.53 G     |

    With "lrpe" T has 21,397,554 parameters and 5.06 G. **B is a reconstruction**: its configuration was not released;
    these widths give the 82M parameters that are reported for it. dropout and drop_path are 0 unless given; T and S
    were trained with 0.02333 and 0.1.
    """
    key = size.strip().lower() if isinstance(size, str) else size
    if key not in PRESETS:
        raise ValueError(f'size is "t", "s" or "b", got {size!r}; PosMLP(dims, depths, ...) makes any other')
    options = {"depths": (2, 2, 18, 2)} | options
    return PosMLP(PRESETS[key], image=image, encoding=encoding, classes=classes, **options)
