"""What the metrics share: rolls as arrays of one shape, units of time, onsets, and a score that says what it left out.

A roll is (batch, ticks, tracks, 128) or (batch, ticks, tracks * 128), of bool or of numbers; every metric walks over
the samples one at a time, so that a result does not depend on the batch that it came in, and memory does not either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from relpos.tasks.music.song import PITCHES


@dataclass(frozen=True)
class Score:
    """One number a sample, and how many of its units of time had nothing in them to compare.

    values     (batch,) float64; NaN where no unit of the sample is defined
    undefined  (batch,) int64, units in which neither roll has what the metric looks at; the metric says what becomes of
               them
    units      units of a sample
    """

    values: np.ndarray
    undefined: np.ndarray
    units: int

    @property
    def mean(self) -> float:
        """Over the samples that have a value; NaN where none has."""
        held = self.values[~np.isnan(self.values)]
        return float(held.mean()) if held.size else float("nan")

    @property
    def undefined_share(self) -> float:
        return float(self.undefined.mean() / self.units)


def as_rolls(rolls: np.ndarray, name: str = "roll") -> np.ndarray:
    """The rolls as (batch, ticks, tracks, 128), bool or float64, without a copy where they are that already."""
    rolls = np.asarray(rolls)
    if rolls.ndim == 3 and rolls.shape[-1] % PITCHES == 0 and rolls.shape[-1]:
        rolls = rolls.reshape(*rolls.shape[:2], -1, PITCHES)
    if rolls.ndim != 4 or rolls.shape[-1] != PITCHES:
        raise ValueError(
            f"{name} must be (batch, ticks, tracks, {PITCHES}) or (batch, ticks, tracks * {PITCHES}), "
            f"got {rolls.shape}; give a single sample a batch axis with roll[None]"
        )
    if 0 in rolls.shape:
        raise ValueError(f"{name} must have at least one sample, tick and track, got {rolls.shape}")
    if rolls.dtype == bool:
        return rolls
    if rolls.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be of bool or of numbers, got {rolls.dtype}")
    if not np.isfinite(rolls).all():
        raise ValueError(f"{name} has cells that are not finite; binarise what a model gives before it is scored")
    return rolls.astype(np.float64, copy=False)


def as_pair(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as (batch, ticks, tracks, 128); ValueError where they are not of one shape."""
    first, second = as_rolls(prediction, "prediction"), as_rolls(target, "target")
    if first.shape != second.shape:
        raise ValueError(f"prediction {np.shape(prediction)} and target {np.shape(target)} must have the same shape")
    return first, second


def samples(prediction: np.ndarray, target: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs (ticks, tracks, 128), one sample after the other."""
    yield from zip(*as_pair(prediction, target), strict=True)


def onsets(roll: np.ndarray) -> np.ndarray:
    """How far each cell of a (ticks, ..) roll rises over the tick before, at least 0; silence stands before the first.

    Notes repeated without a gap have one onset, and a cell that flickers has one each time: a roll cannot say more.
    """
    before = np.concatenate([np.zeros_like(roll[:1]), roll[:-1]])
    return roll & ~before if roll.dtype == bool else np.maximum(roll - before, 0.0)


def unit_starts(ticks: int, ticks_per_quarter: int, per_quarter: int = 1, quarters: int = 1) -> np.ndarray:
    """First tick of each unit that lasts quarters / per_quarter of a quarter; the last unit may be cut short.

    Where a tick is longer than a unit, every tick is one; where a unit is no whole number of ticks, a tick belongs to
    the unit in which it begins.
    """
    if ticks_per_quarter < 1:
        raise ValueError(f"ticks_per_quarter must be at least 1, got {ticks_per_quarter}")
    unit = np.arange(ticks) * per_quarter // (ticks_per_quarter * quarters)
    return np.flatnonzero(np.diff(unit, prepend=-1))


def unit_sums(roll: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Cells of a (ticks, ..) roll added up over each unit, (units, ..) float64."""
    return np.add.reduceat(roll, starts, axis=0, dtype=np.float64)


def chroma(sums: np.ndarray) -> np.ndarray:
    """Pitches (.., 128) folded into the twelve pitch classes (.., 12) from C on."""
    octaves = -(-PITCHES // 12)
    padded = np.zeros((*sums.shape[:-1], octaves * 12))
    padded[..., :PITCHES] = sums
    return padded.reshape(*sums.shape[:-1], octaves, 12).sum(-2)
