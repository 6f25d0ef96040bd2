"""Draws whole windows of events: by thinning under a bound that holds, or by inversion of the compensator."""

from __future__ import annotations

import math

import numpy as np
import torch

from relpos.tasks.events.processes.base import Process
from relpos.tasks.events.processes.hawkes import Hawkes
from relpos.tasks.events.processes.poisson import Poisson
from relpos.tasks.events.processes.renewal import Renewal
from relpos.tasks.events.sequences import Sequences

METHODS = ("thinning", "inversion")
MOST = 20_000_000  # events of one sequence


def simulate(
    process: Process,
    window: tuple[float, float],
    count: int = 1,
    seed: int | np.random.Generator = 0,
    method: str = "thinning",
    unit: str = "",
    history: Sequences | None = None,
) -> Sequences:
    """``count`` independent windows (start, end] of the process. One seed gives the same events.

    history: one sequence of events up to the start, which go on raising the rates of a Hawkes process; default: none.

    Thinning proposes events at a constant rate that bounds the intensity from the last proposal on (what events raised
    only decays, and a background is bounded by its largest rate), and keeps them with probability intensity / bound.
    Inversion solves compensator = exponential draw for the time of the next event. Both are exact. ValueError for an
    unknown method, an explosive process, thinning of a renewal process, whose hazard may have no bound, a history of
    one, and a history that is not one sequence or has events after the start.
    """
    start, end = map(float, window)
    if not (math.isfinite(start) and math.isfinite(end) and start <= end):
        raise ValueError(f"a window is (start, end) with start <= end, got {window}")
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, got {method!r}")
    if isinstance(process, Hawkes) and process.radius >= 1:
        raise ValueError(f"the spectral radius of alpha is {process.radius:.3f}: such a process explodes")
    if isinstance(process, Renewal) and method == "thinning":
        raise ValueError("a renewal process is drawn by method='inversion': its hazard may have no bound")
    raised = _raised(process, start, history)
    rng = np.random.default_rng(seed)
    drawn = [_draw(process, start, end, rng, method, raised) for _ in range(count)]
    marks = [kinds for _, kinds in drawn] if process.marks > 1 else None
    return Sequences.of(
        [times for times, _ in drawn], marks=marks, window=(start, end), unit=unit,
        mark_count=process.marks if marks is not None else None,
    )  # fmt: skip


Drawn = tuple[np.ndarray, np.ndarray]


def _raised(process: Process, start: float, history: Sequences | None) -> np.ndarray:
    """(marks,) what the history adds to each intensity at the start."""
    none = np.zeros(process.marks)
    if history is None:
        return none
    if len(history) != 1 or (len(history.times) and history.times[-1] > start):
        last = f", the last event at {history.times[-1]:g}" if len(history.times) else ""
        raise ValueError(
            f"a history is one sequence whose events come up to the start, {start:g}; got {len(history)}{last}"
        )
    if isinstance(process, Renewal):
        raise ValueError("a renewal process is drawn without a history")
    history.require_marks(process.marks)
    if not isinstance(process, Hawkes):
        return none
    left = np.exp(-process.beta * (start - history.times))
    return process.beta * process.alpha @ np.bincount(history.kinds, left, process.marks)


def _draw(
    process: Process, start: float, end: float, rng: np.random.Generator, method: str, raised: np.ndarray
) -> Drawn:
    if isinstance(process, Renewal):
        return _renewal(process, start, end, rng)
    if isinstance(process, Poisson):
        # A Hawkes process without offspring; its draws need no state.
        process = Hawkes(np.ones(process.marks), np.zeros((process.marks, process.marks)), 1.0, process)
    if not isinstance(process, Hawkes):
        raise TypeError(f"no way to simulate a {type(process).__name__}")
    return (_thinned if method == "thinning" else _inverted)(process, start, end, rng, raised.copy())


def _renewal(process: Renewal, start: float, end: float, rng: np.random.Generator) -> Drawn:
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    times: list[np.ndarray] = []
    now, total = start, 0
    while now <= end:
        gaps = process.gaps.sample(1024, generator).numpy().reshape(-1)
        times.append(now + np.cumsum(gaps))
        now, total = float(times[-1][-1]), total + len(gaps)
        if total > MOST:
            raise ValueError(f"more than {MOST:,} events in the window: its gaps are far too short for it")
    found = np.concatenate(times) if times else np.zeros(0)
    found = found[found <= end]
    return found, rng.choice(process.marks, size=len(found), p=process.shares)


class _Numbers:
    """Exponential and uniform draws in blocks, since single calls are slow."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.left = rng, 0

    def pair(self) -> tuple[float, float]:
        if not self.left:
            self.waits, self.units, self.left = self.rng.exponential(size=4096), self.rng.random(4096), 4096
        self.left -= 1
        return float(self.waits[self.left]), float(self.units[self.left])


def _thinned(process: Hawkes, start: float, end: float, rng: np.random.Generator, raised: np.ndarray) -> Drawn:
    """raised (marks,): what past events add to each intensity."""
    numbers = _Numbers(rng)
    raise_by = process.beta * process.alpha
    constant = type(process.background) is Poisson
    ceiling = process.mu * process.background.bound()
    top = float(ceiling.sum())
    times: list[float] = []
    kinds: list[int] = []
    now = start
    while True:
        bound = top + float(raised.sum())
        wait, place = numbers.pair()
        if bound <= 0 or now + wait / bound > end:
            return np.array(times), np.array(kinds, dtype=np.int64)
        now += wait / bound
        raised *= math.exp(-process.beta * wait / bound)
        rates = raised + (ceiling if constant else process.mu * process.background.at(np.array([now]))[0])
        place *= bound
        running = np.cumsum(rates)
        if place >= running[-1]:
            continue  # thinned out
        kind = int(np.searchsorted(running, place, side="right"))
        times.append(now)
        kinds.append(kind)
        raised += raise_by[:, kind]
        if len(times) > MOST:
            raise ValueError(f"more than {MOST:,} events in the window")


def _inverted(process: Hawkes, start: float, end: float, rng: np.random.Generator, raised: np.ndarray) -> Drawn:
    numbers = _Numbers(rng)
    raise_by = process.beta * process.alpha
    times: list[float] = []
    kinds: list[int] = []
    now = start
    while True:
        wait, place = numbers.pair()
        gap = _next_gap(process, now, end - now, float(raised.sum()), wait)
        if gap is None:
            return np.array(times), np.array(kinds, dtype=np.int64)
        now += gap
        raised *= math.exp(-process.beta * gap)
        running = np.cumsum(raised + process.mu * process.background.at(np.array([now]))[0])
        kind = min(int(np.searchsorted(running, place * running[-1], side="right")), process.marks - 1)
        times.append(now)
        kinds.append(kind)
        raised += raise_by[:, kind]
        if len(times) > MOST:
            raise ValueError(f"more than {MOST:,} events in the window")


def _next_gap(process: Hawkes, now: float, longest: float, raised: float, wait: float) -> float | None:
    """The gap at which the compensator since ``now`` reaches ``wait``; None where that lies beyond ``longest``."""
    background, beta = process.background, process.beta
    origin = background.integral(np.array([now]))[0]

    def above(gap: float) -> float:
        base = process.mu @ (background.integral(np.array([now + gap]))[0] - origin)
        return float(base) - raised / beta * math.expm1(-beta * gap) - wait

    if above(longest) < 0:
        return None
    low, high = 0.0, longest
    rate = float((process.mu * background.bound()).sum()) + raised
    guess = min(wait / rate, longest) if rate > 0 else 0.0
    for _ in range(200):  # Newton, and halving where a step would leave the bracket
        value = above(guess)
        low, high = (guess, high) if value < 0 else (low, guess)
        slope = float(process.mu @ background.at(np.array([now + guess]))[0]) + raised * math.exp(-beta * guess)
        step = guess - value / slope if slope > 0 else math.inf
        following = step if low < step < high else (low + high) / 2
        if abs(following - guess) <= 1e-13 * max(guess, 1e-300) or high - low <= 1e-15 * high:
            return following
        guess = following
    return guess
