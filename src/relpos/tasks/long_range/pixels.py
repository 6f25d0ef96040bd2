"""The task pixels: what a small grey picture shows, read pixel by pixel (Tay et al. 2021, 2.2.4).

By name the pictures are Fashion-MNIST (or MNIST), 784 tokens; with a path, CIFAR-10 turned grey, 1,024 tokens, which is
the Arena's own task and the only one that stands beside its table. Where the set has no validation pictures, a tenth of
those for training become them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from relpos.tasks import held_out
from relpos.tasks.base import Progress
from relpos.tasks.classification import Splits
from relpos.tasks.data import sets
from relpos.tasks.examples import Examples
from relpos.tasks.long_range import arena
from relpos.tasks.long_range.images import Images

_SIDES = {"fashion-mnist": (28, 28), "mnist": (28, 28), "mnist5k": (28, 28), "cifar10": (32, 32), "cifar100": (32, 32)}
_GREY = np.array([0.2989, 0.587, 0.114])  # the weights of tf.image.rgb_to_grayscale, which the Arena used


class Pixels(Images):
    """What a picture shows, from its pixels in a line; dataset: "fashion-mnist", "mnist", "mnist5k", or with a path
    "cifar10" or "cifar100". grid: as in `Images`."""

    name = "pixels"
    title = "pixels: what a small picture shows, read pixel by pixel"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "seeds": (0,), "steps": 3000, "batch": 16, "rates": (2e-3,), "budget": 12.0,
            "model": {"dim": 64, "depth": 2, "heads": 2},
        },
        "results": {
            "seeds": (0, 1), "steps": 8000, "batch": 16, "rates": (1e-3, 3e-3), "sweep_steps": 400, "budget": None,
            "model": {"dim": 64, "depth": 3, "heads": 2},
        },
        "lra": arena.preset(
            256, 35_000, 5e-4,
            {
                "dim": 128, "depth": 1, "heads": 8, "head_dim": 8, "expansion": 1, "dropout": 0.3, "pooling": "cls",
                "hidden": 128,
            },
            task_options={"dataset": "cifar10", "judged": [5000, 10_000]},
        ),
    }  # fmt: skip

    def __init__(
        self,
        dataset: str = "fashion-mnist",
        path: str | None = None,
        grid: bool = False,
        judged: tuple[int, int] = (500, 2000),
        splits: Splits | None = None,
        side: tuple[int, int] | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        if side is None and dataset not in _SIDES:
            raise ValueError(f"dataset is one of {', '.join(_SIDES)}, got {dataset!r}")
        self.dataset, self.path, self.classes = dataset, path, tuple(classes)
        self._origin = f"the data set {dataset}" if splits is None else "pictures given by the caller"
        super().__init__(side or _SIDES[dataset], grid, (judged[0], judged[1]), splits)

    @property
    def source(self) -> str:
        return self._origin  # in full once the data is read

    def load(self, progress: Progress | None = None) -> Splits:
        found = held_out.load(sets.Images, self.dataset, self.path, progress)
        self._origin, self.classes = held_out.origin(found.card), found.classes
        pixels = grey(found.pixels).reshape(len(found.pixels), -1)
        return {
            side: Examples.of_rows(pixels[rows], found.labels[rows]) for side, rows in held_out.sides(found).items()
        }

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        theirs = self._given is None and self.dataset == "cifar10" and split == "test"
        return super().baselines(split, length) | (arena.published("image") if theirs else {})

    def facts(self) -> dict[str, object]:
        return {"dataset": self.dataset, **super().facts()}


def grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 (count, h, w) as it is; (count, h, w, 3) to its luminance, cut to whole numbers as the Arena does."""
    if pixels.ndim == 3:
        return pixels
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"pictures are (count, height, width) or (count, height, width, 3), got {pixels.shape}")
    out = np.empty(pixels.shape[:3], np.uint8)
    for first in range(0, len(pixels), 4096):  # a float64 copy of all would take eight times the memory
        out[first : first + 4096] = pixels[first : first + 4096] @ _GREY
    return out
