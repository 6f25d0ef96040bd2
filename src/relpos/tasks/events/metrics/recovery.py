"""How well hidden events were found again: a one-to-one assignment on the line of time, and a score of their rate.

An imputed event can stand for a hidden one that lies within ``tolerance`` of it, each for at most one. Of all such
assignments, the largest is taken, and of these the one with the smallest sum of time errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Recovery:
    """Counts over some sequences; times in the unit of the data.

    matched, imputed, hidden   events
    error                      sum of |time imputed - time hidden| over matched pairs
    right                      matched pairs of one mark
    """

    matched: int
    imputed: int
    hidden: int
    error: float
    right: int

    def __add__(self, other: Recovery) -> Recovery:
        return Recovery(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def precision(self) -> float:
        """Share of the imputed events that stand for a hidden one; 0 where none was imputed."""
        return self.matched / self.imputed if self.imputed else 0.0

    @property
    def recall(self) -> float:
        """Share of the hidden events that were found; 0 where none was hidden."""
        return self.matched / self.hidden if self.hidden else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.imputed + self.hidden
        return 2 * self.matched / total if total else 0.0

    @property
    def time_error(self) -> float:
        """Mean absolute time error of matched pairs; NaN where there is none."""
        return self.error / self.matched if self.matched else float("nan")

    @property
    def mark_accuracy(self) -> float:
        """Share of the matched pairs whose marks agree; NaN where there is none."""
        return self.right / self.matched if self.matched else float("nan")


def match(imputed: np.ndarray, hidden: np.ndarray, tolerance: float) -> np.ndarray:
    """(pairs, 2) indices into both, the largest assignment within the tolerance and of these the nearest.

    Both (n,) and sorted; ValueError where not. Such an assignment need never cross, so it is found by an alignment, in
    each of the stretches that no pair can join.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance is a time of at least 0, got {tolerance}")
    for name, times in (("imputed", imputed), ("hidden", hidden)):
        if not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise ValueError(f"{name} events are finite times in rising order")
    both = np.concatenate([imputed, hidden])
    order = np.argsort(both, kind="stable")
    breaks = np.flatnonzero(np.diff(both[order]) > tolerance) + 1
    found: list[tuple[int, int]] = []
    for part in np.split(order, breaks):
        left, right = np.sort(part[part < len(imputed)]), np.sort(part[part >= len(imputed)]) - len(imputed)
        if len(left) and len(right):
            pairs = _aligned(imputed[left], hidden[right], tolerance)
            found += [(int(left[i]), int(right[j])) for i, j in pairs]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _aligned(a: np.ndarray, b: np.ndarray, tolerance: float) -> list[tuple[int, int]]:
    """The best alignment of two short sorted arrays, by dynamic programming over (pairs, -error)."""
    best = [[(0, 0.0)] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a)):
        for j in range(len(b)):
            options = [best[i][j + 1], best[i + 1][j]]
            if (far := abs(float(a[i] - b[j]))) <= tolerance:
                options.append((best[i][j][0] + 1, best[i][j][1] - far))
            best[i + 1][j + 1] = max(options)
    pairs, i, j = [], len(a), len(b)
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def recovery(
    imputed: np.ndarray, marks: np.ndarray, hidden: np.ndarray, hidden_marks: np.ndarray, tolerance: float
) -> Recovery:
    """Of one sequence; imputed and hidden times sorted, each with its marks."""
    pairs = match(imputed, hidden, tolerance)
    error = float(np.abs(imputed[pairs[:, 0]] - hidden[pairs[:, 1]]).sum())
    right = int((marks[pairs[:, 0]] == hidden_marks[pairs[:, 1]]).sum())
    return Recovery(len(pairs), len(imputed), len(hidden), error, right)


def rate_score(masses: Sequence[np.ndarray], counts: Sequence[np.ndarray], width: float, floor: float = 0.01) -> float:
    """Nats a hidden event of a rate of hidden events: the Poisson log likelihood of where they were, over their number.

        (sum over hidden events of log(mass of its cell and mark / width) - sum of all masses) / number of them

    masses, counts: (cells, marks) a sequence: the expected number of hidden events and the true one; width: of a cell.
    A share ``floor`` of all mass is laid evenly over all cells first, so that one surprise costs a finite amount.
    Proper: of all rates given the same knowledge, the true one scores highest.
    """
    total, cells = sum(float(m.sum()) for m in masses), sum(m.size for m in masses)
    number = sum(int(c.sum()) for c in counts)
    if not number:
        raise ValueError("there is no hidden event to score a rate by")
    logs = 0.0
    for mass, count in zip(masses, counts, strict=True):
        at = count > 0
        even = (1 - floor) * mass[at] + floor * max(total, 1e-9) / cells
        logs += float((count[at] * np.log(even / width)).sum())
    return (logs - total) / number
