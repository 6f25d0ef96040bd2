"""What a task is: data, network, training batches, an honest evaluation and something to look at or listen to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, text)`` while a long step runs."""


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts one split when it sees ``length`` tokens at a time.

    loss: nats a token, mean over all scored tokens; by_position: (length,) float64, mean loss of the prediction made
    from the first ``i + 1`` tokens of a window, NaN where no token was scored; count: tokens scored.
    """

    length: int
    loss: float
    by_position: np.ndarray
    count: int


@dataclass(frozen=True)
class Artifact:
    """A file that a task made to be looked at or listened to; kind is "image", "midi", "audio" or "text"."""

    path: Path
    kind: str
    title: str


@runtime_checkable
class Task(Protocol):
    """One job on one data set, the same for every encoding; the laboratory knows tasks by this protocol only.

    train_length is the context in training, in tokens; models are evaluated at its ``multiples``.
    """

    name: str
    title: str
    source: str
    train_length: int
    multiples: tuple[int, ...]

    def prepare(self, progress: Progress | None = None) -> None:
        """Reads the data once and caches it; returns at once where that is done. Other methods call it if needed."""
        ...

    def describe(self) -> dict[str, object]:
        """Counts, splits, vocabulary, as values that JSON can hold."""
        ...

    def model(self, encoding: str, **options: object) -> nn.Module:
        """A fresh network, equal for every encoding but for the encoding."""
        ...

    def batch(self, step: int, seed: int, size: int) -> Tensor:
        """The training batch of a step, a pure function of its arguments: every encoding sees the same data."""
        ...

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Scalar, nats a token."""
        ...

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Loss on "validation" or "test"; the scored tokens are the same for every length."""
        ...

    def baselines(self, split: str, length: int) -> dict[str, float]:
        """Nats a token of trivial predictors on the very tokens that `evaluate` scores."""
        ...

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """Writes what the model makes of a real prompt, and the real continuation to compare it with."""
        ...
