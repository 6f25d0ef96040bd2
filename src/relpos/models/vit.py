"""A small Vision Transformer that takes any encoding of the library for a grid."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relpos.encodings.absolute.learned import Learned
from relpos.encodings.base import Encoding, positive
from relpos.encodings.cells import with_class_tokens
from relpos.encodings.registry import entry, signature_of
from relpos.encodings.tables import resized_cells
from relpos.mixers.prefix import with_prefix
from relpos.models.images import DropPath, Patches, Sides, Sized, check_images, rising, scaled, sides
from relpos.models.transformer import Block, Stack
from relpos.positions import Grid, Index, Position


class ViT(Sized, Stack):
    """Images (batch, in_channels, height, width) to logits (batch, classes): a pre-norm Transformer over patches.

    image, patch   (height, width) in pixels, or one integer; patch divides image
    encoding       a name or an Encoding, as in `relpos.models.Stack`. By name, what the method must know of the grid is
                   filled in: window = rows and columns of patches, axes = 2, groups = heads, max_length = patches
    pooling        "mean" of the patches, or "cls": a learned vector in front, whose output is used. It stands outside
                   the encoding: pairs with it have bias 0 (prefix=1 of `linear_attention`), a rotary method leaves it
                   unturned, an absolute one adds nothing; irpe alone has a bucket for such pairs (skip=True, filled
                   in). A bias in the last layer is therefore never used, nor trained
    drop_path      stochastic depth, rising from 0 in the first block to this in the last
    mixer          "kernelized" with a bias of the grid (swin, lrpe) is block-Toeplitz NPRF; other options as in `Stack`

    Where an encoding takes a Grid, tokens have the cells (row, column) as positions; one that takes Index alone
    (sinusoidal, learned, t5) counts the patches in raster order, so that a step down is a lag of one row's length.
    Images of other sizes need no change of the network where the encoding knows all lags of their grid (axial_rope,
    mixed_rope, alibi_2d, log_cpb; tables at smaller sizes); otherwise ValueError, and `resize` makes the network for
    them. LogCPB was made for cosine attention: give it normalize=True and temperature=0.1, the scale at which that of
    Swin V2 starts (there it is learned from then on).

    The head is a linear layer on the normalised output. Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16
    Words"; mean pooling and no hidden layer in the head as in Beyer et al. 2022, "Better plain ViT baselines".
    """

    def __init__(
        self,
        image: int | Sequence[int],
        patch: int | Sequence[int],
        classes: int,
        dim: int,
        depth: int,
        heads: int,
        encoding: Encoding | str | None = None,
        *,
        in_channels: int = 3,
        pooling: Literal["mean", "cls"] = "mean",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        encoding_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if pooling not in ("mean", "cls"):
            raise ValueError(f'pooling is "mean" or "cls", got {pooling!r}')
        if options.get("causal"):
            raise ValueError("a ViT reads the whole image: causal=True is not possible")
        positive("classes", classes)
        size, cut = sides("image", image), sides("patch", patch)
        patches = Patches(in_channels, positive("dim", dim), cut)
        grid = patches.grid(size)
        known = _known(encoding, grid, heads, pooling == "cls", encoding_options)
        super().__init__(dim, depth, heads, encoding, dropout=dropout, encoding_options=known, **options)
        self.image, self.classes, self.pooling = size, classes, pooling
        self.patches, self.input_dropout = patches, nn.Dropout(dropout)
        self.cls = nn.Parameter(torch.randn(dim) * 0.02) if pooling == "cls" else None
        self.head = nn.Linear(dim, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        for block, rate in zip(self.blocks, rising(drop_path, depth)):
            assert isinstance(block, Block)
            block.add_module("dropout", nn.Sequential(block.dropout, DropPath(rate)))
        for _, given in self.encodings():
            _by_cells(given)

    @property
    def grid(self) -> Sides:
        """Rows and columns of patches at the size for which the network was built."""
        return self.patches.grid(self.image)

    def forward(self, images: Tensor) -> Tensor:
        """images (batch, in_channels, height, width), float, to logits (batch, classes)."""
        logits: Tensor = self.head(self.embed(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """One vector an image, (batch, dim): the pooled output."""
        y = self.tokens(images)
        return y.mean(1) if self.cls is None else y[:, 0]

    def tokens(self, images: Tensor) -> Tensor:
        """(batch, cells, dim), the normalised output of every patch in row-major order, after that of "cls" if any."""
        grid = self.patches.grid(check_images(images, self.patches.channels))
        x = self.patches(images)
        if self.absolute is not None:
            x = self.absolute.add(x, self.absolute.select(self._positions(self.absolute, grid, x)))
        prefix = 0
        if self.cls is not None:
            x, prefix = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], 1), 1
        x = self.input_dropout(x)
        for block in self.blocks:
            encoding = block.attention.encoding if self.absolute is None else None  # type: ignore[union-attr]
            x = block(x, **(self._places(encoding, grid, prefix, x) if isinstance(encoding, Encoding) else {}))
        out: Tensor = self.norm(x)
        return out

    def _places(self, encoding: Encoding, grid: Sides, prefix: int, x: Tensor) -> dict[str, Any]:
        """What attention is told of where the tokens are."""
        where = self._positions(encoding, grid, x)
        if prefix and isinstance(where, Grid) and getattr(encoding, "skip", False):
            return {"q_pos": with_class_tokens(where, prefix)}
        return {"q_pos": with_prefix(where, prefix), "prefix": prefix}

    def _positions(self, encoding: Encoding, grid: Sides, x: Tensor) -> Position:
        if _by_cells(encoding):
            return Grid.of(*grid, device=x.device)
        if grid != self.grid:
            raise ValueError(
                f"{type(encoding).__name__} counts patches in raster order, of {self.grid[0]} x {self.grid[1]} where "
                f"the network was built and {grid[0]} x {grid[1]} here; take network.resize(image) first, or an "
                "encoding for grids such as axial_rope"
            )
        return Index.arange(grid[0] * grid[1], device=x.device)

    def resize(self, image: int | Sequence[int]) -> ViT:
        """A new network for images of another size, (height, width) or one integer, with copies of the weights.

        An encoding with a window is resized to cover the same share of the grid (`encoding.resize`), the table of
        `Learned` is interpolated (bicubic) over the cells; all others are taken as they are, and count the patches of
        the new grid. What one of a single axis has learned of the rows does not hold there.
        """
        size = sides("image", image)
        new = self.patches.grid(size)
        other = copy.deepcopy(self)
        other.image = size
        done: dict[int, Encoding] = {}
        for holder, name in ((other, "absolute"), *((block.attention, "encoding") for block in other.blocks)):
            encoding = getattr(holder, name)
            if isinstance(encoding, Encoding):
                if id(encoding) not in done:
                    done[id(encoding)] = _resized(encoding, self.grid, new).train(self.training)
                setattr(holder, name, done[id(encoding)])
        return other


def _known(
    encoding: object, grid: Sides, heads: int, cls: bool, given: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """What an encoding given by name needs to know of the grid, and what the caller says of it."""
    if not isinstance(encoding, str):
        return given
    wanted = signature_of(entry(encoding).load()).parameters
    offered = {"window": grid, "axes": 2, "groups": heads, "max_length": grid[0] * grid[1], "skip": cls}
    return {name: value for name, value in offered.items() if name in wanted} | dict(given or {})


def _by_cells(encoding: Encoding) -> bool:
    """Whether positions are cells; TypeError for an encoding that takes neither cells nor a running number."""
    kinds = [kind for kind in encoding.takes if isinstance(kind, type)]
    if any(issubclass(Grid, kind) for kind in kinds) and getattr(encoding, "axes", 2) == 2:
        return True
    if not any(issubclass(Index, kind) for kind in kinds):
        takes = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(
            f"{type(encoding).__name__} takes {takes} positions; patches of an image have cells (Grid), or numbers in "
            "raster order (Index)"
        )
    return False


def _resized(encoding: Encoding, old: Sides, new: Sides) -> Encoding:
    if isinstance(encoding, Learned):
        if encoding.max_length != old[0] * old[1]:
            raise ValueError(
                f"the learned table has {encoding.max_length} rows for {old[0]} x {old[1]} patches: only a table of "
                "one row a patch can be resized"
            )
        other = Learned(encoding.model_dim, new[0] * new[1]).to(encoding.table)
        with torch.no_grad():
            other.table.copy_(resized_cells(encoding.table, old, new))
        return other
    resize = getattr(encoding, "resize", None)
    if resize is None:
        return encoding
    resized: Encoding = resize(scaled(getattr(encoding, "window", None) or old, old, new))
    return resized
