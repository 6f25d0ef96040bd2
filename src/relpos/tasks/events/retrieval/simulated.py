"""Classes of processes whose sequences are known to belong together: for what a small recording cannot show.

A class has a rate, a regularity of its gaps, a share of events that others bring about, and a rhythm: how busy each
stretch of the window is. An item draws its own factor of the rate and two independent sequences of its class. The
clock of queries is bent by one known map.
"""

from __future__ import annotations

import numpy as np

from relpos.tasks.events.retrieval.documents import Halves
from relpos.tasks.events.sequences import Sequences

STRETCHES = 12  # of a rhythm
SPAN = 10.0  # hours
DELAY = 0.15  # hours, mean from an event to one that it brings about


def bent(shares: np.ndarray, warp: float) -> np.ndarray:
    """Where the clock of queries stands when that of the corpus stands at ``shares`` of the window; rises for warp < 1.

    s + warp sin(2 pi s) / (2 pi): the ends stay, the middle half is slowed down and the rest runs faster.
    """
    return np.asarray(shares + warp * np.sin(2 * np.pi * shares) / (2 * np.pi))


def simulated(classes: int = 50, items: int = 20, warp: float = 0.6, rhythm: float = 1.2, seed: int = 0) -> Halves:
    """``items`` items of each class, class by class. warp: see `bent`, 0 to below 1; rhythm: the standard deviation of
    the log rate over the stretches of the window. About 30 events a sequence, in hours; marks are all one.

    The renewal part is gamma distributed in the time of its own rhythm; its events bring about others as in a Hawkes
    process with an exponential kernel.
    """
    if classes < 2 or items < 2 or not 0 <= warp < 1 or not rhythm >= 0:
        raise ValueError(
            f"classes and items are 2 or more, 0 <= warp < 1 and rhythm >= 0; got {classes}, {items}, {warp}, {rhythm}"
        )
    rng = np.random.default_rng([seed, 31])
    kinds = [_Kind(rng, rhythm) for _ in range(classes)]
    drawn: dict[str, list[np.ndarray]] = {"queries": [], "corpus": []}
    for kind in kinds:
        for _ in range(items):
            factor = float(np.exp(rng.normal(0, 0.25)))
            for side, found in drawn.items():
                times = kind.draw(rng, factor)
                found.append(SPAN * bent(times / SPAN, warp) if side == "queries" else times)
    queries, corpus = (Sequences.of(found, window=(0.0, SPAN), unit="hours", sort=True) for found in drawn.values())
    labels = np.repeat(np.arange(classes), items)
    return Halves(
        queries, corpus, labels, tuple(f"class {k}" for k in range(classes)), "simulated classes of processes"
    )


class _Kind:
    """One class."""

    def __init__(self, rng: np.random.Generator, rhythm: float) -> None:
        self.mean = float(np.exp(rng.normal(np.log(22), 0.15)))
        self.shape = float(rng.choice([0.5, 1.0, 3.0]))
        self.offspring = float(rng.choice([0.0, 0.3, 0.5]))
        busy = np.exp(rng.normal(0, rhythm, STRETCHES))
        self.reached = np.append(0.0, np.cumsum(busy / busy.sum()))

    def draw(self, rng: np.random.Generator, factor: float) -> np.ndarray:
        most = self.mean * factor * (1 - self.offspring) * self.shape  # of gamma gaps of mean shape: the total wait
        waits = np.cumsum(rng.gamma(self.shape, size=int(most / self.shape * 2 + 40)))
        waits = waits[waits < most]
        first = SPAN * np.interp(waits / max(most, 1e-9), self.reached, np.linspace(0, 1, STRETCHES + 1))
        found, parents = [first], first
        while len(parents) and self.offspring:
            children = np.repeat(parents, rng.poisson(self.offspring, len(parents)))
            parents = children + rng.exponential(DELAY, len(children))
            parents = parents[parents < SPAN]
            found.append(parents)
        return np.sort(np.concatenate(found))
