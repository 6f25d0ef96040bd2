"""What an attention map does with time: how far it depends on the lag alone, and whether it falls with the distance.

The two metrics of the evaluation of SPE, for maps (.., n, n) of which the causal part is read: row = query, column =
key, keys 0..query. Lower is better in both.
"""

from __future__ import annotations

import numpy as np

_ROWS = 256  # queries whose keys are sorted at a time


def translation_invariance(attention: np.ndarray, first_query: int = 0, max_lag: int | None = None) -> np.ndarray:
    """Variance along the diagonals (mean weighted by their lengths) over the variance of all cells, (..) float64.

    0 for a map that depends on the lag alone, 1 where the lag explains nothing. Queries before ``first_query`` and keys
    more than ``max_lag`` back are left out. A constant map gives 0 (the released code divides 0 by 0 there).
    """
    maps, max_lag = _checked(attention, first_query, max_lag)
    return _over_maps(maps, attention, lambda one: _invariance(one, first_query, max_lag))


def monotonicity(attention: np.ndarray, first_query: int = 0, max_lag: int | None = None) -> np.ndarray:
    """Share of the pairs of keys of a query in which the farther one gets strictly more, (..) float64.

    All pairs of all rows count alike. NaN where there is no pair. Exact, by merge sort: O(n^2 log n) for n^3 pairs.
    """
    maps, max_lag = _checked(attention, first_query, max_lag)
    return _over_maps(maps, attention, lambda one: _inverted_share(one, first_query, max_lag))


def _checked(attention: np.ndarray, first_query: int, max_lag: int | None) -> tuple[np.ndarray, int]:
    maps = np.asarray(attention, dtype=np.float64)
    if maps.ndim < 2 or maps.shape[-1] != maps.shape[-2] or maps.shape[-1] == 0:
        raise ValueError(f"attention must be (.., n, n) with n at least 1, got {maps.shape}")
    length = maps.shape[-1]
    if not 0 <= first_query < length:
        raise ValueError(f"first_query must be 0 to {length - 1} for a map of {length} queries, got {first_query}")
    if max_lag is not None and max_lag < 0:
        raise ValueError(f"max_lag must be at least 0, got {max_lag}")
    if not np.isfinite(maps[..., np.tri(length, dtype=bool)]).all():
        raise ValueError("attention has cells that are not finite among the keys that come before the query")
    return maps.reshape(-1, length, length), min(length - 1 if max_lag is None else max_lag, length - 1)


def _over_maps(maps, attention, metric) -> np.ndarray:
    return np.array([metric(one) for one in maps]).reshape(np.shape(attention)[:-2])


def _invariance(attention: np.ndarray, first_query: int, max_lag: int) -> float:
    diagonals = [np.diagonal(attention, -lag)[max(first_query - lag, 0) :] for lag in range(max_lag + 1)]
    along = sum(float(np.var(diagonal)) * len(diagonal) for diagonal in diagonals)
    cells = np.concatenate(diagonals)
    if (cells == cells[0]).all():
        return 0.0
    return along / (float(np.var(cells)) * len(cells))


def _inverted_share(attention: np.ndarray, first_query: int, max_lag: int) -> float:
    length = len(attention)
    inverted = pairs = 0
    for start in range(first_query, length, _ROWS):
        query = np.arange(start, min(start + _ROWS, length))
        key = np.arange(query[-1] + 1)
        lag = query[:, None] - key
        # keys out of reach stand where they are in order with all others, so that they add no inversion
        rows = np.where(lag < 0, np.inf, np.where(lag > max_lag, -np.inf, attention[query, : query[-1] + 1]))
        inverted += count_inversions(rows)
        counted = np.minimum(query, max_lag) + 1
        pairs += int((counted * (counted - 1) // 2).sum())
    return inverted / pairs if pairs else float("nan")


def count_inversions(rows: np.ndarray) -> int:
    """Pairs i < j with row[i] > row[j], added over the rows (count, n): bottom-up merge sort, all rows at once."""
    width = 1 << max(rows.shape[1] - 1, 0).bit_length()
    blocks = np.full((len(rows), width), np.inf)
    blocks[:, : rows.shape[1]] = rows
    total, half = 0, 1
    while half < width:
        blocks = blocks.reshape(-1, 2 * half)
        order = np.argsort(blocks, axis=-1, kind="stable")  # of equal ones the left comes first: no inversion
        left = order < half
        after = half - np.cumsum(left, axis=-1)  # left ones that are merged later, thus greater
        total += int(after[~left].sum())
        blocks = np.take_along_axis(blocks, order, axis=-1)
        half *= 2
    return total
