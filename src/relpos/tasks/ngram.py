"""Counted predictors of the next token: the trivial rows that a table of models has to beat.

A predictor looks at ever longer contexts c_1, c_2, ...; the estimate of a level leans on that of the level below where
its context was seen rarely (Dirichlet smoothing, MacKay and Peto 1995):

    P_k(x | c_k) = (n(c_k, x) + m P_{k-1}(x | c_{k-1})) / (n(c_k) + m),      P_0(x) = 1 / vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Counts:
    """Counts n(c_k, x) at every level; contexts are integers from 0 to ``sizes[k] - 1``.

    A negative context means that it is not known (it would lie before the window): that level and those above it
    are then skipped.
    """

    def __init__(self, vocabulary: int, sizes: Sequence[int]) -> None:
        self.vocabulary = vocabulary
        self.tables = [np.zeros((size, vocabulary)) for size in sizes]

    def add(self, contexts: Sequence[np.ndarray], targets: np.ndarray) -> None:
        """Counts every (context, target) pair; contexts holds one array a level, of the shape of targets."""
        for table, context in zip(self.tables, contexts, strict=True):
            known = context >= 0
            flat = context[known] * self.vocabulary + targets[known]
            table += np.bincount(flat, minlength=table.size).reshape(table.shape)

    def loss(self, contexts: Sequence[np.ndarray], targets: np.ndarray, strength: float) -> np.ndarray:
        """Nats of every target, of the shape of targets, with m = ``strength``."""
        if strength <= 0:
            raise ValueError(f"strength must be above 0, got {strength}")
        probability = np.full(targets.shape, 1 / self.vocabulary)
        known = np.ones(targets.shape, dtype=bool)
        for table, context in zip(self.tables, contexts, strict=True):
            known &= context >= 0
            c, x = context[known], targets[known]
            below = probability[known]
            probability[known] = (table[c, x] + strength * below) / (table.sum(1)[c] + strength)
        return -np.log(probability)
