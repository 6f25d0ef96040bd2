"""What the networks for images share: checks of their input, patches, stochastic depth, and weights of another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import positive
from relpos.encodings.window import sides_of

Sides = tuple[int, int]


def sides(name: str, given: int | Sequence[int]) -> Sides:
    """(height, width), both at least 1; one integer is a square."""
    height, width = sides_of(name, given, axes=2)
    return height, width


def share(name: str, value: float) -> float:
    """A probability below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} is a probability in [0, 1), got {value!r}")
    return float(value)


def check_images(images: object, channels: int) -> Sides:
    """(height, width) of images (batch, channels, height, width)."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images are a tensor (batch, {channels}, height, width), got {type(images).__name__}")
    if images.dim() != 4:
        raise ValueError(f"images have shape (batch, {channels}, height, width), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images are floating point, got {images.dtype}; scale bytes by 1/255 and normalise them")
    if images.shape[1] != channels:
        raise ValueError(
            f"images have {channels} channels (batch, {channels}, height, width), got {tuple(images.shape)}; "
            f"build the network with in_channels={images.shape[1]}"
        )
    return images.shape[2], images.shape[3]


def multiples(name: str, image: Sides, step: Sides, why: str) -> None:
    """ValueError where a side of the image is no multiple, naming the sizes nearest to it that are."""
    for axis, side, one in zip(("height", "width"), image, step):
        if side < 1 or side % one:
            below, above = max(side // one, 1) * one, (side // one + 1) * one
            near = f"{below}" if below == above else f"{below} or {above}"
            raise ValueError(f"{name} has {axis} {side}; {why}: multiples of {one} do, the nearest is {near}")


class Patches(nn.Module):
    """Images to the vectors of their patches, (batch, cells, dim), by one convolution; cells in row-major order."""

    def __init__(self, channels: int, dim: int, patch: Sides) -> None:
        super().__init__()
        self.channels, self.patch = positive("in_channels", channels), patch
        self.project = nn.Conv2d(self.channels, dim, patch, patch)
        nn.init.trunc_normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def grid(self, image: Sides) -> Sides:
        """Rows and columns of patches of an image."""
        height, width = self.patch
        multiples("an image", image, self.patch, f"patches of {height} x {width} cut it without rest")
        return image[0] // height, image[1] // width

    def forward(self, images: Tensor) -> Tensor:
        self.grid(check_images(images, self.channels))
        vectors: Tensor = self.project(images).flatten(2).transpose(1, 2)
        return vectors


class DropPath(nn.Module):
    """Stochastic depth: in training the branch of an example is left out with probability `rate`, and the others are
    divided by 1 - rate. Source: Huang et al. 2016, "Deep Networks with Stochastic Depth"."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = share("drop_path", rate)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def rising(rate: float, depth: int) -> list[float]:
    """Rates of stochastic depth, from 0 in the first block to `rate` in the last."""
    share("drop_path", rate)
    return [rate * index / max(depth - 1, 1) for index in range(depth)]


class Sized(nn.Module):
    """A network for images of one size, (height, width), whose weights may belong to that size: what `load_state_dict`
    says of weights of another shape names `resize`."""

    image: Sides

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        errors: list[str] = rest[-1]
        for name, own in self.named_parameters():
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and given.shape != own.shape:
                errors.append(
                    f"{prefix}{name} has shape {tuple(given.shape)} among these weights and {tuple(own.shape)} in this "
                    f"network for images of {self.image[0]} x {self.image[1]}. Build the network that was trained, "
                    "with its image size and classes, load, and take network.resize(image) for another size"
                )
                break  # one says it


def scaled(window: Sides, old: Sides, new: Sides) -> Sides:
    """A window that covers the same share of the new grid as of the old."""
    return max(round(window[0] * new[0] / old[0]), 1), max(round(window[1] * new[1] / old[1]), 1)
