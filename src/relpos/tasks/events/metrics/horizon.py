"""How near foretold events come to those that happened, over a horizon: OTD and T-mAP.

Both as the HoTPP benchmark defines them (Karpukhin et al. 2024; the distance is that of Mei, Qin and Eisner 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def otd(
    times: np.ndarray,
    marks: np.ndarray,
    target_times: np.ndarray,
    target_marks: np.ndarray,
    insert: float = 1.0,
    delete: float = 1.0,
) -> float:
    """The least cost of turning foretold events into those that happened: moving one by dt costs |dt|, others are
    deleted and inserted. Events of different marks are never moved onto each other.

    Costs are in the unit of the times, so ``insert`` and ``delete`` set what time counts as far. Times rise. By
    dynamic programming, mark by mark: of events on a line, the cheapest moves never cross. HoTPP takes as many foretold
    events as happened, the first k of each; so does whoever calls this with the first k.
    """
    total = 0.0
    for mark in np.union1d(marks, target_marks):
        total += _moved(
            np.asarray(times)[marks == mark], np.asarray(target_times)[target_marks == mark], insert, delete
        )
    return total


def _moved(one: np.ndarray, other: np.ndarray, insert: float, delete: float) -> float:
    if (np.diff(one) < 0).any() or (np.diff(other) < 0).any():
        raise ValueError("the times of events rise; sort them first")
    row = insert * np.arange(len(other) + 1.0)
    for i, time in enumerate(one):
        above = row
        row = np.empty_like(above)
        row[0] = delete * (i + 1)
        moved = above[:-1] + np.abs(other - time)
        kept = np.minimum(above[1:] + delete, moved)
        for j, value in enumerate(kept):
            row[j + 1] = min(value, row[j] + insert)
    return float(row[-1])


@dataclass(frozen=True)
class Foretold:
    """What was foretold from ``start`` on, and what came. scores: (n, marks), log probabilities of each mark, say."""

    start: float
    times: np.ndarray
    scores: np.ndarray
    target_times: np.ndarray
    target_marks: np.ndarray


def t_map(
    cases: Sequence[Foretold],
    horizon: float,
    deltas: Sequence[float],
    weighted: bool = False,
    as_released: bool = False,
) -> float:
    """Mean average precision over marks and over how far (delta) a foretold event may be off, 0 to 1.

    Of each mark, foretold events within the horizon are matched to events of that mark at most delta away, so that
    the scores of the matched are largest in sum; all of them, sorted by score, give the average precision, and events
    that found no match lower the recall. The mean is over all marks, seen or not; weighted: by how often they came.

    as_released: 0 for a mark of which all foretold events were matched, which the released code leaves out.
    """
    if not cases or not deltas or not horizon > 0:
        raise ValueError(f"cases, deltas and a horizon above 0 are needed, got {len(cases)}, {list(deltas)}, {horizon}")
    marks = cases[0].scores.shape[1]
    found = [_inside(case, horizon) for case in cases]
    counts = np.bincount(np.concatenate([case.target_marks for case in found]), minlength=marks)
    scores = np.concatenate([case.scores for case in found])
    values = []
    for delta in deltas:
        matched = np.concatenate([_matched(case, delta, marks) for case in found])
        ap = np.array([_precision(scores[:, k], matched[:, k], counts[k], as_released) for k in range(marks)])
        values.append(float((ap * counts).sum() / max(counts.sum(), 1)) if weighted else float(ap.mean()))
    return float(np.mean(values))


def _inside(case: Foretold, horizon: float) -> Foretold:
    early, came = case.times - case.start < horizon, case.target_times - case.start < horizon
    return Foretold(case.start, case.times[early], case.scores[early], case.target_times[came], case.target_marks[came])


def _matched(case: Foretold, delta: float, marks: int) -> np.ndarray:
    """(n, marks): whether a foretold event is matched, as an event of each mark."""
    near = np.abs(case.times[:, None] - case.target_times[None, :]) <= delta
    found = np.zeros((len(case.times), marks), dtype=bool)
    for mark in np.unique(case.target_marks):
        allowed = near & (case.target_marks == mark)
        found[:, mark] = heaviest_matching(allowed, case.scores[:, mark])
    return found


def heaviest_matching(allowed: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(rows,) bool: the rows of the matching of allowed pairs (rows, columns) whose weights are largest in sum, if each
    is first raised above 0 by one constant.

    A weight belongs to a row alone, so the rows that can be matched together form a matroid, and it is right to take
    them greedily, the heaviest first, each where an augmenting path makes room for it.
    """
    owner = np.full(allowed.shape[1], -1)
    taken = np.zeros(len(allowed), dtype=bool)
    for row in np.argsort(-weights, kind="stable"):
        taken[row] = _augment(int(row), allowed, owner, np.zeros(allowed.shape[1], dtype=bool))
    return taken


def _augment(row: int, allowed: np.ndarray, owner: np.ndarray, tried: np.ndarray) -> bool:
    for column in np.flatnonzero(allowed[row] & ~tried):
        if tried[column]:
            continue
        tried[column] = True
        if owner[column] < 0 or _augment(int(owner[column]), allowed, owner, tried):
            owner[column] = row
            return True
    return False


def _precision(scores: np.ndarray, matched: np.ndarray, targets: int, as_released: bool) -> float:
    if not matched.any() or (as_released and matched.all()):
        return 0.0
    hits = matched[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].sum() / targets)
