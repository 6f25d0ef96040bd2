"""The clock of the data: its ticks, how events are laid out within them, and what parts of a period they allow.

A clock of whole days puts every event at midnight. A rate by the hour would foretell midnight, and a density of gaps
whole days: both are knowledge of the clock and not of the events, and both raise a likelihood without bound.
"""

from __future__ import annotations

import math

import numpy as np

from relpos.tasks.events.sequences import UNITS, Sequences

POLICIES = ("spread", "jitter", "first", "keep")
"""What becomes of events at one time; see `relpos.tasks.events.anchors.untied`."""
_SECONDS = (86400, 43200, 21600, 10800, 3600, 1800, 900, 600, 300, 60, 30, 20, 10, 5, 1, 0.1, 0.01, 0.001)
_MOST = 0.9  # of the times stand on ticks; the rest may be finer
_FEW = 8  # times, below which nothing can be told
_NEAR = 1e-3  # of a tick
_COARSE = 1e-3  # of the median gap: from here on a tick shows in the gaps
_FINE = 10  # ticks in a part of a period, from which on it does not matter where its edges are


def resolution(sequences: Sequences) -> float:
    """The tick of the clock in the unit of the times, 0.0 where none can be told.

    The longest of the usual ticks (a day to a millisecond; powers of ten where the unit has no name), and of the
    smallest gap above 0, on which nine tenths of all times stand, counted from any time of the day.
    """
    times = sequences.times
    if len(times) < _FEW:
        return 0.0
    gaps = sequences.gaps()
    smallest = float(gaps[gaps > 0].min(initial=np.inf))
    second = 1.0 / UNITS[sequences.unit] if sequences.unit in UNITS else None
    usual = [each * second for each in _SECONDS] if second else [10.0**power for power in range(3, -7, -1)]
    candidates = sorted({*usual, *([smallest] if np.isfinite(smallest) else [])}, reverse=True)
    return next((tick for tick in candidates if _on_ticks(times, tick) >= _MOST), 0.0)


def _on_ticks(times: np.ndarray, tick: float) -> float:
    """Share of the times that are a whole number of ticks apart from most others; 0 where float64 cannot tell."""
    if float(np.spacing(np.abs(times).max())) > _NEAR * tick / 4:
        return 0.0
    place = np.mod(times / tick, 1.0)
    cells = np.rint(place / _NEAR).astype(np.int64) % round(1 / _NEAR)
    # Times that stand on ticks may be rounded to either side of the edge of a cell.
    counts = np.bincount(cells, minlength=round(1 / _NEAR))
    return float((counts + np.roll(counts, 1)).max() / len(times))


def policy(sequences: Sequences, ties: str | None, tick: float) -> str:
    """``ties``, or where None: "jitter" where ticks are long enough beside the gaps to show in them, else "spread"."""
    if ties is not None:
        return ties
    gaps = sequences.gaps()
    usual = float(np.median(gaps[gaps > 0])) if bool((gaps > 0).any()) else np.inf
    return "jitter" if tick > _COARSE * usual else "spread"


def jittered(sequences: Sequences, tick: float, seed: int = 0) -> Sequences:
    """Every event at random within the tick that its time begins; those of one tick keep their order.

    Where an event stands at the end of its window, the last tick belongs to what was observed, and all windows end a
    tick later. ValueError where there is no tick.
    """
    if not tick > 0:
        raise ValueError('the clock of the data has no ticks to lay events out in: take ties="spread"')
    moved = np.random.default_rng([20240511, seed]).random(len(sequences.times)) * tick
    same = np.cumsum(sequences.gaps() != 0)  # NaN, before the first event of a sequence, is not 0 either
    times = sequences.times + moved[np.lexsort((moved, same))]
    order = np.lexsort((times, sequences.rows))  # a time finer than the tick may have been overtaken
    room = tick * bool(((sequences.lengths > 0) & (sequences.latest + tick > sequences.end)).any())
    return sequences.replace(order, sequences.offsets, times=times[order], end=sequences.end + room)


def parts(period: float, wanted: int, tick: float) -> int:
    """The most equal parts of a period, up to ``wanted``, that hold whole ticks of the clock; 1 where none do.

    Parts of ten ticks and more may begin anywhere.
    """
    if not tick > 0 or period >= wanted * _FINE * tick:
        return wanted
    ticks = period / tick
    whole = round(ticks)
    if whole < 1 or not math.isclose(ticks, whole, rel_tol=1e-6):
        return max(1, min(wanted, int(ticks / _FINE)))
    return max(number for number in range(1, min(wanted, whole) + 1) if whole % number == 0)


def named(tick: float, unit: str) -> str:
    """A tick in the largest unit in which it is a whole number: `1 day`, `20 seconds`, `0.5 of the data's unit`."""
    if unit not in UNITS:
        return f"{tick:g} of the data's unit"
    seconds = tick * UNITS[unit]
    for name in ("days", "hours", "minutes"):
        count = seconds / UNITS[name]
        if count > 0.999 and abs(count - round(count)) < 1e-6:
            return f"{round(count)} {name if round(count) != 1 else name[:-1]}"
    return f"{seconds:g} {'second' if seconds == 1 else 'seconds'}"
