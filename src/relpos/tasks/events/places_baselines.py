"""Counting: what is popular, what a sequence often has, what follows what. Scores for full rankings."""

from __future__ import annotations

import numpy as np

from relpos.tasks.events.sequences import Sequences


class Counts:
    """Counts of training events; scores (n, items) for the item after the last event of each of ``past``."""

    def __init__(self, train: Sequences, items: int) -> None:
        self.items = items
        self.popular = np.bincount(train.kinds, minlength=items).astype(np.float64)
        inner = np.ones(len(train.times), dtype=bool)
        inner[train.firsts] = False
        after = np.flatnonzero(inner)
        self.steps = np.zeros((items, items))
        np.add.at(self.steps, (train.kinds[after - 1], train.kinds[after]), 1.0)
        self.tie = 1e-3 * self.popular / max(self.popular.sum(), 1.0)  # what has no count is ranked by popularity

    def own(self, past: Sequences) -> np.ndarray:
        """(n, items) how often each sequence has had each item."""
        found = np.zeros((len(past), self.items))
        np.add.at(found, (past.rows, past.kinds), 1.0)
        return found

    def scores(self, past: Sequences) -> dict[str, np.ndarray]:
        """Rankings by name. ValueError for a sequence without a past."""
        if (past.lengths == 0).any():
            raise ValueError("a sequence has no event before the one to be foretold")
        last = past.kinds[past.offsets[1:] - 1]
        own, step = self.own(past), self.steps[last]
        frequency = own / own.sum(1, keepdims=True)
        markov = step / np.maximum(step.sum(1, keepdims=True), 1.0)
        return {
            "popularity": np.broadcast_to(self.popular, own.shape),
            "frequency in the sequence": frequency + self.tie,
            "Markov": markov + self.tie,
            "frequency and Markov": frequency + markov + self.tie,
        }
