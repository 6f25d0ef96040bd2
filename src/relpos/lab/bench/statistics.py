"""Arithmetic of interleaved timings: every measurement is compared with floors measured just before and after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One measurement of a contestant: its time and those of the floor right before and right after, in seconds."""

    seconds: float
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """To the mean of the two floors: a drift of the machine that is linear in time cancels."""
        return 2 * self.seconds / (self.before + self.after)


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of times (seconds) and of paired ratios."""

    seconds: float
    seconds_low: float
    seconds_high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile, interpolated."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return float(median), float(low), float(high)


def summary(samples: Sequence[Sample]) -> Summary:
    """ValueError for no samples: a median of nothing is not a measurement."""
    if not samples:
        raise ValueError("no samples to summarise")
    return Summary(
        *quartiles([sample.seconds for sample in samples]),
        *quartiles([sample.ratio for sample in samples]),
        len(samples),
    )


def slope(lengths: Sequence[float], values: Sequence[float]) -> float | None:
    """Exponent p of values ~ n^p by least squares on logarithms; None for fewer than two lengths."""
    pairs = [(n, value) for n, value in zip(lengths, values, strict=True) if value > 0]
    if len({n for n, _ in pairs}) < 2:
        return None
    x, y = np.log(np.asarray(pairs, dtype=np.float64)).T
    return float(np.polyfit(x, y, 1)[0])


def thinned(rounds: int, wanted: int) -> set[int]:
    """`wanted` of the rounds 0..rounds-1, spread evenly over them."""
    wanted = min(rounds, wanted)
    return {round((i + 0.5) * rounds / wanted - 0.5) for i in range(wanted)}
