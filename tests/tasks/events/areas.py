"""Two areas of made regions: busy ones to learn from, quiet ones elsewhere."""

from __future__ import annotations

import functools

import numpy as np

from relpos.tasks.data.sets import Card, Events
from relpos.tasks.events.sequences import Sequences
from relpos.tasks.events.transfer import Transfer

HORIZON = 200.0
OPTIONS = {"lengths": (3, 6), "under": 24, "enough": 24, "tokens": 16}


def made(counts: tuple[int, ...], seed: int = 0) -> Sequences:
    """Regions of so many events, each of its own pace; one in five steps stands still."""
    rng = np.random.default_rng(seed)
    times = [np.sort(rng.uniform(0, HORIZON, n)) for n in counts]
    places = []
    for n in counts:
        steps = rng.normal(0, 0.003, (n, 2)) * (rng.random((n, 1)) > 0.2)
        places.append(np.array([44.9, -93.2]) + np.cumsum(steps, 0))
    marks = [rng.integers(2, size=n) for n in counts]
    names = [f"region {row}" for row in range(len(counts))]
    return Sequences.of(
        times, marks=marks, places=places, window=(0, HORIZON), unit="hours", ids=names, mark_names=("a", "b")
    )


def events(counts: tuple[int, ...] = (30, 60, 40, 18, 20, 30, 27), seed: int = 0) -> Events:
    """The first three are of the area "busy", the others of "quiet"."""
    found = made(counts, seed)
    labels = np.array([0] * 3 + [1] * (len(counts) - 3))
    rows = {"train": np.arange(len(counts)), "test": np.arange(0)}
    return Events.of(Card("made", "made"), rows, found, labels=labels, classes=("busy", "quiet"))


@functools.lru_cache
def task() -> Transfer:
    """The task on made regions, one for all tests that leave it as it is."""
    return fresh()


def fresh(**options: object) -> Transfer:
    """A task on made regions of its own."""
    found = Transfer(**{**OPTIONS, **options})  # type: ignore[arg-type]
    found._take(events())
    return found
