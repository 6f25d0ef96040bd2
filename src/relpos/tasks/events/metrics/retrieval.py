"""How good a ranking of a corpus is: precision, recall, average precision by both denominators, NDCG, reciprocal rank.

A query's candidates are ranked by falling score; **candidates of equal score keep the order in which they were given**
(ties="stable"), or come with the irrelevant ones first (ties="worst"), which no ranking can profit from by scoring all
alike. A query without a relevant candidate scores 0 in everything, and belongs to the mean.

    AP@K = sum_{k <= K, item k relevant} precision@k / min(R, K)          R: relevant candidates

`Ranking.ap_over_hits` divides by the relevant ones found within K instead of min(R, K), as the released code of
NeuroSeqRet does: it is never smaller and does not fall when relevant candidates are missed, so it is no MAP.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TIES = ("stable", "worst")


@dataclass(frozen=True)
class Ranking:
    """Metrics of every query at a cut-off K, (queries,) float64 each; `mean` is over all queries.

    precision     relevant among the first K, over K
    recall        over R; 0 where R is 0
    ap            average precision over min(R, K); without a cut-off that is the usual AP over R
    ap_over_hits  the same sum over the relevant ones found: see the module
    ndcg          gains 1, discounts 1 / log2(rank + 1), over the best that is possible within K
    rr            1 / rank of the first relevant one, 0 where none is among the first K
    hit           1 where there is one
    """

    precision: np.ndarray
    recall: np.ndarray
    ap: np.ndarray
    ap_over_hits: np.ndarray
    ndcg: np.ndarray
    rr: np.ndarray
    hit: np.ndarray

    def mean(self, name: str) -> float:
        return float(getattr(self, name).mean())


def ranks(scores: np.ndarray, relevance: np.ndarray, valid: np.ndarray | None, ties: str) -> np.ndarray:
    """(queries, candidates) bool: relevance in the order of the ranking, invalid candidates last and not relevant."""
    if ties not in TIES:
        raise ValueError(f"ties are one of {', '.join(TIES)}, got {ties!r}")
    scores, relevant = np.asarray(scores, dtype=np.float64), np.asarray(relevance) != 0
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise ValueError(
            f"scores and relevance are (queries, candidates), of one shape; got {scores.shape} and {relevant.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} scores are NaN and cannot be ranked")
    absent = np.zeros(scores.shape, dtype=bool) if valid is None else ~np.broadcast_to(valid, scores.shape)
    relevant = relevant & ~absent
    keys = (relevant if ties == "worst" else np.zeros_like(relevant), -scores, absent)
    return np.take_along_axis(relevant, np.lexsort(keys, axis=-1), axis=-1)


def evaluate(
    scores: np.ndarray,
    relevance: np.ndarray,
    k: int | None = None,
    *,
    valid: np.ndarray | None = None,
    ties: str = "stable",
) -> Ranking:
    """Metrics at cut-off ``k``, None for the whole ranking.

    scores, relevance, valid: (queries, candidates); candidates that are not valid (the asker himself) are not ranked.
    ``k`` beyond the number of candidates is allowed: precision still divides by k. ValueError for shapes that do not
    match, NaN scores, and k below 1.
    """
    order = ranks(scores, relevance, valid, ties)
    if k is not None and k < 1:
        raise ValueError(f"a cut-off is 1 or more, or None for the whole ranking, got {k}")
    candidates = order.shape[1]
    within = order[:, : candidates if k is None else k].astype(np.float64)
    cut = max(candidates, 1) if k is None else k
    total = order.sum(1).astype(np.float64)
    place = np.arange(1, within.shape[1] + 1)
    hits = within.sum(1)
    reached = (np.cumsum(within, 1) * within / place).sum(1)
    best = np.append(0.0, np.cumsum(1 / np.log2(np.arange(2, cut + 2))))
    possible = np.minimum(total, cut)
    first = np.where(hits > 0, within.argmax(1) + 1 if within.shape[1] else 1, 1)

    def over(values: np.ndarray, divisor: np.ndarray) -> np.ndarray:
        return np.where(divisor > 0, values / np.where(divisor > 0, divisor, 1), 0.0)

    return Ranking(
        precision=hits / cut,
        recall=over(hits, total),
        ap=over(reached, possible),
        ap_over_hits=over(reached, hits),
        ndcg=over((within / np.log2(place + 1)).sum(1), best[possible.astype(np.int64)]),
        rr=(hits > 0) / first,
        hit=(hits > 0).astype(np.float64),
    )
