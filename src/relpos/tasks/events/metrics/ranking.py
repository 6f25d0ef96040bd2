"""How far up a ranking of all items the one that came stands. Full rankings: no sampled negatives, nothing filtered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CUTS = (1, 5, 10)


def ranks(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(n,) float64 rank of ``target`` (n,) among the items of ``scores`` (n, items); the best is 1.

    Ties: the mean rank of all that have the target's score, so that constant scores are worth what chance is.
    ValueError for scores that are NaN and for targets outside of the items.
    """
    scores, target = np.asarray(scores), np.asarray(target)
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(f"scores are (n, items) and targets (n,), got {scores.shape} and {target.shape}")
    if np.isnan(scores).any():
        raise ValueError("scores are NaN: there is no ranking")
    if target.size and not 0 <= target.min() <= target.max() < scores.shape[1]:
        raise ValueError(f"targets are 0..{scores.shape[1] - 1}, got {target.min()}..{target.max()}")
    own = np.take_along_axis(scores, target[:, None], 1)
    return (scores > own).sum(1) + ((scores == own).sum(1) + 1) / 2


def summary(rank: np.ndarray, cuts: Sequence[int] = CUTS) -> dict[str, float]:
    """Means over all rankings, of one relevant item each. ValueError without rankings.

    recall_K: the share with rank <= K; ndcg_10: 1/log2(1 + rank) up to rank 10; mrr: 1/rank.
    """
    rank = np.asarray(rank, dtype=np.float64)
    if not rank.size:
        raise ValueError("there is no ranking to judge")
    found = {f"recall_{k}": float((rank <= k).mean()) for k in cuts}
    gains = np.where(rank <= 10, 1 / np.log2(1 + rank), 0.0)
    return {**found, "ndcg_10": float(gains.mean()), "mrr": float((1 / rank).mean())}
