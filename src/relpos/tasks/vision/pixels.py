"""Pictures as tensors: normalised, resampled to a size, and varied for training as a pure function of step and seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Scale:
    """What brings bytes to numbers around 0: (bytes / 255 - mean) / spread, a value a channel."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]

    @classmethod
    def of(cls, pixels: np.ndarray, most: int = 10_000) -> Scale:
        """Of uint8 (count, height, width) or (.., 3), from evenly many of them."""
        part = with_channels(pixels[:: max(1, len(pixels) // most)]).astype(np.float32) / 255
        spread = part.std((0, 1, 2)).clip(min=1e-3)
        return cls(tuple(part.mean((0, 1, 2)).tolist()), tuple(spread.tolist()))

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 (count, height, width[, channels]) to float32 (count, channels, height, width)."""
        shape = (1, len(self.mean), 1, 1)
        return (plain(pixels) / 255 - torch.tensor(self.mean).view(shape)) / torch.tensor(self.spread).view(shape)


def plain(pixels: np.ndarray) -> Tensor:
    """uint8 (count, height, width[, channels]) to float32 (count, channels, height, width), from 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(with_channels(pixels))).permute(0, 3, 1, 2).float()


def with_channels(pixels: np.ndarray) -> np.ndarray:
    """(count, height, width, channels), where grey pictures have one channel."""
    return pixels[..., None] if pixels.ndim == 3 else pixels


def resampled(x: Tensor, side: int) -> Tensor:
    """(count, channels, height, width) to side x side, bicubic; what shrinks is smoothed first."""
    if x.shape[-2:] == (side, side):
        return x
    return nn.functional.interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False)


def shifted(pixels: np.ndarray, most: int, draw: np.random.Generator) -> np.ndarray:
    """Each picture moved by up to ``most`` pixels along both axes; its edge is repeated where it leaves."""
    count, height, width = pixels.shape[:3]
    down, right = draw.integers(0, 2 * most + 1, (2, count))
    rows = (down[:, None] + np.arange(height) - most).clip(0, height - 1)
    columns = (right[:, None] + np.arange(width) - most).clip(0, width - 1)
    return pixels[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def mirrored(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Each picture as it is or as in a mirror, by chance."""
    turned = draw.random(len(pixels)) < 0.5
    return np.where(turned.reshape(-1, *[1] * (pixels.ndim - 1)), pixels[:, :, ::-1], pixels)
