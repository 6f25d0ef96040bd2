"""Windows that tile the feature maps of a pyramid: cutting, joining, and which image sizes they fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from relpos.models.images import Sides, scaled, sides

AXES = ("height", "width")
LARGEST, LEAST = 14, 7  # sides of derived windows, in cells: as in the published networks, and half of that


def partition(x: Tensor, window: Sides) -> Tensor:
    """Maps (batch, height, width, dim) to the tokens of their windows, (batch, windows, h * w, dim); row-major order
    among windows and inside each."""
    (batch, height, width, dim), (h, w) = x.shape, window
    if height % h or width % w:
        raise ValueError(f"windows of {h} x {w} cells do not tile a map of {height} x {width}")
    cut = x.reshape(batch, height // h, h, width // w, w, dim).transpose(2, 3)
    return cut.reshape(batch, (height // h) * (width // w), h * w, dim)


def merge(tokens: Tensor, window: Sides, grid: Sides) -> Tensor:
    """The inverse of `partition`: (batch, windows, h * w, dim) to (batch, *grid, dim)."""
    (height, width), (h, w) = grid, window
    cut = tokens.reshape(tokens.shape[0], height // h, width // w, h, w, tokens.shape[-1]).transpose(2, 3)
    return cut.reshape(tokens.shape[0], height, width, tokens.shape[-1])


def given(windows: Sequence[int | Sequence[int]], stages: int) -> list[Sides]:
    """(height, width) for every stage."""
    if isinstance(windows, int) or len(windows) != stages:
        raise ValueError(f"windows holds an integer or (height, width) for each of {stages} stages, got {windows!r}")
    return [sides("a window", one) for one in windows]


def derived(image: Sides, strides: Sequence[int]) -> list[Sides]:
    """For each map the largest windows that tile it, of at most 14 cells a side; ValueError where they would have fewer
    than 7 and not be the whole side, with the nearest sizes that do better. An image of 224 gets 14, 14, 14, 7."""
    found = []
    for axis, side in zip(AXES, image):
        own = _derived_side(side, strides)
        if own is None:
            near = _nearest(side, strides[-1], lambda size: _derived_side(size, strides) is not None)
            raise ValueError(
                f"image {axis} {side}: no windows fit; it is a multiple of {strides[-1]} such that each map (strides "
                f"{_said(strides)}) is at most {LARGEST} cells or is tiled by windows of {LEAST} to {LARGEST}; the "
                f"nearest that do: {near}; or give windows"
            )
        found.append(own)
    return list(zip(*found))


def _derived_side(side: int, strides: Sequence[int]) -> list[int] | None:
    if side < 1 or side % strides[-1]:
        return None
    windows = []
    for stride in strides:
        cells = side // stride
        window = max(size for size in range(1, min(cells, LARGEST) + 1) if cells % size == 0)
        if window < min(LEAST, cells):
            return None
        windows.append(window)
    return windows


def _nearest(side: int, step: int, fits: Callable[[int], bool]) -> str:
    below = next((size for size in range(side // step * step, 0, -step) if fits(size)), None)
    above = next(size for size in range((max(side, 0) // step + 1) * step, side + 64 * step, step) if fits(size))
    return f"{above}" if below is None else f"{below} or {above}"


def _said(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def check_tiled(image: Sides, windows: Sequence[Sides], strides: Sequence[int]) -> None:
    """ValueError, naming the sizes that do, where windows do not tile the maps of an image."""
    for index, (axis, side) in enumerate(zip(AXES, image)):
        own = [window[index] for window in windows]
        step = math.lcm(*(stride * window for stride, window in zip(strides, own)))
        if side < 1 or side % step:
            near = _nearest(side, step, lambda size: True)
            raise ValueError(
                f"image {axis} {side}: windows of {_said(own)} cells tile maps of strides {_said(strides)} where the "
                f"{axis} is a multiple of {step}; the nearest that do: {near}; or give other windows, or take "
                "network.resize(image)"
            )


def rescaled(windows: Sequence[Sides], old: Sides, new: Sides) -> list[Sides]:
    """Windows that cover the same share of every map at another image size."""
    return [scaled(window, old, new) for window in windows]
