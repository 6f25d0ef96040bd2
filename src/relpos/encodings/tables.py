"""Learned tables with a row for every lag of a window: how they are resized, and what is said where sizes differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

Curve = Literal["cubic", "linear"]
_MODES = {("cubic", 1): "bicubic", ("cubic", 2): "bicubic", ("linear", 1): "linear", ("linear", 2): "bilinear"}


def rows_of(window: Sequence[int]) -> int:
    """How many lags a window has: the product of 2 side - 1."""
    return math.prod(2 * side - 1 for side in window)


def resized(table: Tensor, old: Sequence[int], new: Sequence[int], curve: Curve = "cubic") -> Tensor:
    """A table ((2h-1)(2w-1), columns) of the lags in window `old`, interpolated to the lags of window `new`.

    Windows are (height, width), or (width,) with a table (2w-1, columns). Rows run over the lags in row-major order, in
    either direction. The lags are stretched like the pixels of an image: new lag L reads old lag L (2 old - 1)/(2 new
    - 1), so lag 0 stays lag 0; past the outermost lag the table goes on as a constant. "cubic" is the bicubic kernel
    (a = -3/4) that released vision models are resized with, along one axis or two; "linear" is what tables of one axis
    are resized with in MViTv2. Nothing is smoothed where a window shrinks.

    Same dtype and device, no gradient to the table; the same window gives a copy, to the bit. ValueError where the
    rows are not those of `old`, or the windows have not both one axis or two.
    """
    if len(old) != len(new) or len(old) not in (1, 2):
        raise ValueError(f"windows have one or two sides, both the same number; got {tuple(old)} and {tuple(new)}")
    if table.dim() != 2 or table.shape[0] != rows_of(old):
        raise ValueError(f"a table of window {tuple(old)} is ({rows_of(old)}, columns), got {tuple(table.shape)}")
    if (curve, len(old)) not in _MODES:
        raise ValueError(f'curve is "cubic" or "linear", got {curve!r}')
    before, after = ([2 * side - 1 for side in window] for window in (old, new))
    return _stretched(table.detach(), before, after, curve)


def resized_cells(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """The same for a table with a row for every cell of a window, (h w, columns) in row-major order: a picture."""
    if len(old) != len(new) or len(old) not in (1, 2):
        raise ValueError(f"windows have one or two sides, both the same number; got {tuple(old)} and {tuple(new)}")
    if table.dim() != 2 or table.shape[0] != math.prod(old):
        raise ValueError(
            f"a table of the cells of {tuple(old)} is ({math.prod(old)}, columns), got {tuple(table.shape)}"
        )
    return _stretched(table.detach(), list(old), list(new), "cubic")


def _stretched(table: Tensor, before: list[int], after: list[int], curve: Curve) -> Tensor:
    if before == after:
        return table.clone()
    mode = _MODES[curve, len(before)]
    if len(before) == 1 and curve == "cubic":  # an image of height 1, which the kernel leaves as it is
        before, after = [1, *before], [1, *after]
    image = table.T.reshape(1, -1, *before).to(torch.promote_types(table.dtype, torch.float32))
    found = nn.functional.interpolate(image, size=after, mode=mode, align_corners=False)
    return found[0].flatten(1).T.to(table.dtype).contiguous()


class LagTables(nn.Module):
    """A module with tables whose number of rows, axis -2, follows from its window.

    `load_state_dict` with the tables of another window says which window they seem to be of, and names `resize`.
    """

    window: tuple[int, ...]
    sized: ClassVar[tuple[str, ...]] = ("table",)  # names of those tables

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        errors: list[str] = rest[-1]
        for name in self.sized:
            given, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(given, Tensor) and given.dim() == own.dim() and given.shape[-2] != own.shape[-2]:
                errors.append(self._another_window(prefix + name, given.shape[-2], own.shape[-2]))

    def _another_window(self, name: str, rows: int, own: int) -> str:
        axes = len(self.window) if own == rows_of(self.window) else 1
        side = (round(rows ** (1 / axes)) + 1) // 2
        seems = f", as many as a window of {_words([side] * axes)} has" if rows_of([side] * axes) == rows else ""
        kind = type(self).__name__
        return (
            f"{name} holds {rows} lags{seems}; this {kind} holds {own}, of its window {_words(self.window)}. "
            f"Load the weights into one of their own window and call resize({self.window}) on that"
        )


def _words(window: Sequence[int]) -> str:
    return " x ".join(map(str, window))
