"""From probabilities to a roll: the rules of the papers, a hyper-parameter that they choose for each model.

How much depends on the rule is seen in CS, where one flickering cell is an onset: give all rows of a table the same
one. Everything takes and gives (batch, ticks, ..) arrays; time is axis 1.
"""

from __future__ import annotations

import numpy as np


def binarise(
    probabilities: np.ndarray, threshold: float | None = None, top: int | None = None, gap: int = 0
) -> np.ndarray:
    """By threshold (on where the probability is above it) or by the ``top`` most probable rows of a tick, then merged:
    gaps of at most ``gap`` ticks between two on-cells of one row are filled.

    The papers try thresholds .2 .4 .5 .6 .8, gaps 2 to 14, top 2 to 10. Give either a threshold or top.
    """
    if (threshold is None) == (top is None):
        raise ValueError(f"give either a threshold or top, got threshold={threshold} and top={top}")
    if threshold is not None:
        rolls = np.asarray(probabilities) > threshold
    else:
        assert top is not None
        rolls = top_rows(probabilities, top)
    return fill_gaps(rolls, gap)


def top_rows(probabilities: np.ndarray, top: int) -> np.ndarray:
    """On are the ``top`` most probable cells of every tick, over all tracks; of equal ones the lower row."""
    probabilities = np.asarray(probabilities)
    flat = probabilities.reshape(*probabilities.shape[:2], -1)
    if not 0 <= top <= flat.shape[-1]:
        raise ValueError(f"top must be 0 to {flat.shape[-1]}, the cells of a tick, got {top}")
    rolls = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(rolls, np.argsort(-flat, axis=-1, kind="stable")[..., :top], True, axis=-1)
    return rolls.reshape(probabilities.shape)


def fill_gaps(rolls: np.ndarray, gap: int) -> np.ndarray:
    """Silences of at most ``gap`` ticks between two on-cells of one row sound on; what stands at the ends stays."""
    rolls = np.asarray(rolls)
    if gap < 0:
        raise ValueError(f"gap must be at least 0 ticks, got {gap}")
    if rolls.dtype != bool:
        raise TypeError(f"gaps are filled in rolls of bool, got {rolls.dtype}; binarise first")
    if gap == 0 or rolls.shape[1] == 0:
        return rolls.copy()
    ticks = rolls.shape[1]
    tick = np.arange(ticks).reshape(-1, *[1] * (rolls.ndim - 2))
    filled = np.empty_like(rolls)
    for index, roll in enumerate(rolls):  # a sample at a time: the indices take eight times the memory of the roll
        last = np.maximum.accumulate(np.where(roll, tick, -ticks - gap), axis=0)
        following = np.minimum.accumulate(np.where(roll, tick, 2 * ticks + gap)[::-1], axis=0)[::-1]
        filled[index] = roll | (following - last <= gap + 1)
    return filled
