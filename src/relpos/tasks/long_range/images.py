"""Pictures read as sequences of grey pixels, row by row: what the tasks on pictures share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relpos.encodings.registry import entry
from relpos.tasks import answers
from relpos.tasks.base import Artifact
from relpos.tasks.classification import Classification, Splits
from relpos.tasks.examples import Examples
from relpos.tasks.predictors import Linear, Predictor


class Images(Classification):
    """One token a pixel, 256 values, row-major: a network sees a line of side[0] * side[1] tokens, not a picture.

    grid: tell the network the row and the column of each pixel instead; encodings that take cells then see the picture
    as a picture, and those that take a line refuse.
    """

    vocabulary = 256
    shift = 0
    padding = None

    def __init__(
        self,
        side: tuple[int, int],
        grid: bool = False,
        judged: tuple[int, int] = (500, 2000),
        splits: Splits | None = None,
    ) -> None:
        self.side, self.grid = side, grid
        super().__init__(side[0] * side[1], judged, splits)

    def _checked(self, splits: Splits) -> Splits:
        for name, split in splits.items():
            if (split.lengths != self.train_length).any():
                raise ValueError(f"pictures of {name!r} have {self.side[0]} x {self.side[1]} pixels each, others found")
        return super()._checked(splits)

    def positions(self, length: int) -> object:
        return torch.cartesian_prod(*(torch.arange(n) for n in self.side)) if self.grid else None

    def encoding_options(self, encoding: object, front: int) -> dict[str, Any]:
        if not self.grid or not isinstance(encoding, str):
            return super().encoding_options(encoding, front)
        wanted = inspect.signature(entry(encoding).load()).parameters
        return {"window": self.side} if "window" in wanted else {}

    def predictors(self) -> Mapping[str, Callable[[], Predictor]]:
        return {"linear on pixels": lambda: Linear(self.fitting(), len(self.classes), self.train_length)}

    def facts(self) -> dict[str, object]:
        return {"picture": list(self.side), "positions": "row and column" if self.grid else "one line, row by row"}

    def show(self, examples: Examples, log_p: np.ndarray, directory: Path) -> list[Artifact]:
        images = examples.padded(np.arange(len(examples)), self.train_length, 0).reshape(-1, *self.side)
        path = answers.pictures(directory / "answers.png", images, examples.labels, log_p, self.classes)
        return [Artifact(path, "image", "test pictures, what they are and what the network answers")]
