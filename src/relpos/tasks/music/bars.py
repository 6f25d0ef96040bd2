"""Bars and beats of a grid of ticks, from its time signatures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Meters = Sequence[tuple[int, int, int]]


def bars_and_beats(ticks: int, ticks_per_quarter: int, meters: Meters) -> tuple[np.ndarray, np.ndarray]:
    """Bar number and ticks since the bar's start, each (ticks,) int64.

    meters: (tick, numerator, denominator) in order of time, the first at tick 0; each begins a bar, so that a bar that
    a change cuts short counts as one. A bar that is no whole number of ticks (3/32 at four ticks a quarter) begins at
    the first tick that lies in it.
    """
    if not meters or meters[0][0] != 0:
        raise ValueError(f"the first meter must stand at tick 0, got {tuple(meters)}")
    bar, beat = np.zeros(ticks, dtype=np.int64), np.zeros(ticks, dtype=np.int64)
    number = 0
    ends = [start for start, _, _ in meters[1:]] + [ticks]
    for (start, numerator, denominator), end in zip(meters, ends):
        end = min(end, ticks)
        if end <= start:
            continue
        length = numerator * 4 * ticks_per_quarter  # of a bar, in parts of a tick of which there are ``denominator``
        within = np.arange(end - start, dtype=np.int64)
        index = within * denominator // length
        bar[start:end] = number + index
        beat[start:end] = within - -(-index * length // denominator)
        number += int(index[-1]) + 1
    return bar, beat


def bar_starts(bar: np.ndarray) -> np.ndarray:
    """Ticks at which a bar begins, from the bar number of every tick."""
    return np.flatnonzero(np.diff(bar, prepend=-1))
