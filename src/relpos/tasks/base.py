"""What a task is: data, network, training batches, an honest evaluation and something to look at or listen to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, text)`` while a long step runs."""

Batch = Tensor | tuple[Tensor, ...]
"""What one training step reads. Of a tuple, the first tensor is the input: its entries count as tokens of the speed."""


@dataclass(frozen=True)
class Metric:
    """A number by which models are judged: how it is called, which way is better, how it is written.

    name               its key in `Evaluation.metrics` and in the tables for machines ("accuracy")
    title              its name in texts and figures ("accuracy", "bits a byte"), in the singular and without the unit
    higher_is_better   the direction that marks the best model and decides what a difference means
    best               in its place, the value that is best: nearer is better, from either side
    unit               written after the number in sentences ("%"), or ""
    format, scale      a value v is written as ``format(scale * v, format)``: 0.4123 as 41.2 with ".1f" and 100
    """

    name: str
    title: str
    higher_is_better: bool = True
    unit: str = ""
    format: str = ".3f"
    scale: float = 1.0
    best: float | None = None

    def text(self, value: float, sign: bool = False) -> str:
        """The value as it is written, without the unit; sign: with a plus where it is above 0."""
        return format(self.scale * value, ("+" if sign else "") + self.format)

    def gain(self, value: float, other: float) -> float:
        """By how much ``value`` is better than ``other``, unscaled; negative where it is worse."""
        if self.best is not None:
            return abs(other - self.best) - abs(value - self.best)
        return value - other if self.higher_is_better else other - value


ACCURACY = Metric("accuracy", "accuracy", unit="%", format=".1f", scale=100)
"""The share of right answers, from 0 to 1, written in percent."""


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on one split when it sees ``length`` tokens at a time.

    loss         in the task's `unit`, mean over everything scored
    by_position  (length,) float64, mean loss of the prediction made from the first ``i + 1`` tokens of a window, NaN
                 where no token was scored; None where a prediction belongs to no position, as in classification
    count        what was scored: tokens, or examples; equal for every model
    metrics      a value for each of the task's `metrics`, by name
    """

    length: int
    loss: float
    by_position: np.ndarray | None
    count: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A file that a task made to be looked at or listened to; kind is "image", "midi", "audio" or "text"."""

    path: Path
    kind: str
    title: str


@dataclass(frozen=True)
class Measure:
    """How the length that a model is evaluated at is called in texts and figures: what it is, in what, and in training.

    A number n reads as "n tokens" or, with the unit "pixels a side", as "n pixels a side". trains: whether what a
    network is trained on has the train_length; False where lengths are of something else.
    """

    noun: str = "context length"
    unit: str = "tokens"
    trained: str = "training length"
    trains: bool = True


@runtime_checkable
class Task(Protocol):
    """One job on one data set, the same for every encoding; the laboratory knows tasks by this protocol only.

    title         a class attribute: help texts show it without making the task
    unit          of the loss: "nats a token", "nats an example"
    metrics       what is shown beside the loss; the first one, else the loss, is the one that a report opens with
    train_length  the context in training, in tokens; models are evaluated at its ``multiples``, (1,) where no other
                  length has a meaning
    A task is made with keyword options that a command line can spell (text, numbers, true, false, lists). It is
    pickled for worker processes, so what `prepare` can read back fast is better left out of its state.

    What a task may have beside its duties:

    lengths   in place of ``multiples``: the lengths to evaluate at, rising, train_length among them
    measure   how a length is spoken of, a `Measure`
    pace      what the speed of training counts: "tokens" are the entries of a batch's first tensor, any other word its
              rows, as "images"
    costs     a `Metric` for each number that ``cost(model) -> {name: value}`` gives of a trained model beside its
              parameters, speed and memory; a column each
    bounds    names of the rows of `baselines` that are no predictors but limits, such as the optimum or the truth that
              data was drawn from; a report compares with the first of them apart from the others
    pictures  ``pictures(model, directory) -> list[Artifact]``: what the encodings of a model have learned, drawn by the
              task; it takes the place of the pictures by lag, which know attention over a line only
    """

    name: str
    title: str
    source: str
    unit: str
    metrics: tuple[Metric, ...]
    train_length: int
    multiples: tuple[int, ...]

    def prepare(self, progress: Progress | None = None) -> None:
        """Reads the data once and caches it; returns at once where that is done. Other methods call it if needed."""
        ...

    def describe(self) -> dict[str, object]:
        """Counts, splits, vocabulary, as values that JSON can hold."""
        ...

    def model(self, encoding: str, **options: object) -> nn.Module:
        """A fresh network, equal for every encoding but for the encoding.

        TypeError or ValueError for options that it does not take: they may come from the command line.
        """
        ...

    def batch(self, step: int, seed: int, size: int) -> Batch:
        """The training batch of a step, a pure function of its arguments: every encoding sees the same data."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scalar, in the task's unit."""
        ...

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Loss and metrics on "validation" or "test"; what is scored is the same for every length and model.

        The metrics may be left out on "validation", which only the loss is taken from.
        """
        ...

    def baselines(self, split: str, length: int) -> Mapping[str, Mapping[str, float]]:
        """Trivial predictors on the very things that `evaluate` scores: {name: {"loss": .., "accuracy": ..}}.

        A baseline states what it has a value for; one that never hedges has an accuracy and no (finite) loss.
        """
        ...

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """Writes what the model makes of a real prompt, and the real continuation; [] where there is none to show."""
        ...


def lengths(task: Task) -> tuple[int, ...]:
    """What a task is evaluated at, rising."""
    own: tuple[int, ...] | None = getattr(task, "lengths", None)
    return own if own is not None else tuple(multiple * task.train_length for multiple in task.multiples)


def measure(task: Task) -> Measure:
    """How a task's lengths are spoken of."""
    return getattr(task, "measure", None) or Measure()


def pace(task: Task) -> str:
    """What a task's speed counts."""
    return getattr(task, "pace", None) or "tokens"


def amount(task: Task, batch: Batch) -> int:
    """How many of what the speed counts are in a batch."""
    first = batch[0] if isinstance(batch, tuple) else batch
    return first.numel() if pace(task) == "tokens" else len(first)
