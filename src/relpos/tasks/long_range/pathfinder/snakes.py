"""Curves of paddles, many pictures and attempts ("lanes") at once: the same choices for the same random numbers.

A lane's random numbers are given, not drawn: uniform in [0, 1), with a place for every choice that may come. So a
picture does not depend on which others are made beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from relpos.tasks.long_range.pathfinder.rules import CURVE_TRIES, PADDLE_TRIES
from relpos.tasks.long_range.pathfinder.stamps import BLOCKED, CLASH, DEGREES, OPEN, Tables

SCARCE = 0.01
"""No curve is begun where a smaller share of the window's pixels is free."""


@dataclass(frozen=True)
class Tip:
    """Where curves end: pivots (lanes, 2), directions (lanes,) and newest paddles (lanes, 3) as (stamp, y, x).

    The newest paddle is not in the mask yet: it is merged when the next one stands.
    """

    pivot: np.ndarray
    direction: np.ndarray
    paddle: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Tip:
        return Tip(self.pivot[rows], self.direction[rows], self.paddle[rows])


def _inside(tables: Tables, *points: np.ndarray) -> np.ndarray:
    good = [(point >= 0) & (point < tables.rules.size) for point in points]
    return np.logical_and.reduce([part.all(axis=1) for part in good])


def _start(tables: Tables, direction: np.ndarray, tail: np.ndarray) -> tuple[Tip, np.ndarray]:
    """First paddles, and which of them have their head and pivot in the window."""
    head = tables.move(tail, direction, float(tables.rules.paddle))
    pivot = np.ceil(head + float(tables.rules.paddle + tables.margin) * tables.back[direction]).astype(np.int64)
    return Tip(pivot, direction, np.column_stack([direction, tail])), _inside(tables, head, pivot)


def merge(tables: Tables, windows: np.ndarray, lane: np.ndarray, paddle: np.ndarray) -> None:
    """Joins the masks of paddles (lanes, 3) to the windows (lanes, side * side), within the picture."""
    spot = tables.flat(np.zeros_like(lane), paddle[:, 1], paddle[:, 2])[:, None] + tables.window
    stamp = tables.masks[paddle[:, 0]] * tables.inside[spot]
    flat = windows.reshape(-1)
    spot += (lane * tables.side**2)[:, None]
    flat[spot] = np.maximum(flat[spot], stamp)


def grow(
    tables: Tables, windows: np.ndarray, lane: np.ndarray, tip: Tip, numbers: np.ndarray
) -> tuple[np.ndarray, Tip]:
    """One more paddle for every lane: the rows that found one, and their new tips. numbers: (lanes, tries)."""
    rules, flat = tables.rules, windows.reshape(-1)
    pivot = tables.move(tip.pivot, tip.direction, float(rules.paddle + 2 * tables.margin))
    candidate = tables.candidates[tip.direction]
    y, x = (pivot[:, axis, None] + tables.offsets[candidate, axis] for axis in (0, 1))
    spot = tables.flat(lane[:, None], y, x)
    blocked = flat[spot[:, :, None] + tables.disc].max(axis=2)
    weight = tables.weights[tip.direction] * OPEN[blocked]
    weight *= (y >= 0) & (y < rules.size) & (x >= 0) & (x < rules.size)
    total = weight.sum(axis=1, keepdims=True)
    row = np.flatnonzero(total[:, 0] >= 1e-4)
    odds = np.cumsum(weight[row] / total[row], axis=1)
    chosen = np.full(len(lane), -1)
    for trial in range(PADDLE_TRIES):
        pick = (odds > numbers[row, trial, None]).argmax(axis=1)
        around = spot[row, pick][:, None] + tables.window
        mask = tables.masks[DEGREES + candidate[row, pick]]
        fits = (mask < CLASH[flat[around]]).all(axis=1)
        chosen[row[fits]] = pick[fits]
        row, odds = row[~fits], odds[~fits]
    done = np.flatnonzero(chosen >= 0)
    merge(tables, windows, lane[done], tip.paddle[done])
    pick = chosen[done]
    direction = DEGREES + candidate[done, pick]
    return done, Tip(pivot[done], direction, np.column_stack([direction, y[done, pick], x[done, pick]]))


def pairs(tables: Tables, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attempts at two target curves: the rows that succeeded, paddles (rows, 2, length, 3), windows (rows, side**2).

    numbers: (attempts, 2 * length, tries, 2), for the first tail, for the second, and for each further paddle.
    """
    rules = tables.rules
    first, second, lane = _two_seeds(tables, numbers)
    windows = np.repeat(tables.empty[None], len(lane), axis=0)
    row = np.arange(len(lane))
    tips = [first, second]
    paddles = np.zeros((len(lane), 2, rules.length, 3), dtype=np.int64)
    for step in range(rules.length):
        for curve in (0, 1):
            if step > 0:
                block = numbers[lane[row], 2 * step + curve, :, 0]
                kept, tips[curve] = grow(tables, windows, row, tips[curve], block)
                row, tips[1 - curve] = row[kept], tips[1 - curve][kept]
            paddles[row, curve, step] = tips[curve].paddle
    merge(tables, windows, row, tips[1].paddle)  # and not the first curve's last paddle: so in the released code
    return lane[row], paddles[row], windows[row]


def _two_seeds(tables: Tables, numbers: np.ndarray) -> tuple[Tip, Tip, np.ndarray]:
    """The first paddles of both curves, for the attempts that get so far, and which attempts these are."""
    rules = tables.rules
    counts = np.array([len(seeds) for seeds in tables.seeds])
    every = np.concatenate(tables.seeds)
    begins = np.cumsum(counts) - counts

    def first(row: np.ndarray, trial: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        direction = (numbers[row, 0, trial, 0] * DEGREES).astype(np.int64)
        some = counts[direction] > 0  # an attempt without a place for its first tail is over
        row, direction = row[some], direction[some]
        index = begins[direction] + (numbers[row, 0, trial, 1] * counts[direction]).astype(np.int64)
        return row, direction, every[index] if len(row) else np.zeros((0, 2), dtype=np.int64)

    lane, tip1 = _tries(tables, np.arange(len(numbers)), first)
    tails = np.zeros((len(numbers), 2), dtype=np.int64)
    tails[lane] = tip1.paddle[:, 1:]

    def second(row: np.ndarray, trial: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        direction = (numbers[row, 1, trial, 0] * DEGREES).astype(np.int64)
        around = tables.compass[(numbers[row, 1, trial, 1] * DEGREES).astype(np.int64)]
        return row, direction, np.rint(tails[row] + rules.distance * around).astype(np.int64)

    both, tip2 = _tries(tables, lane, second)
    return tip1[np.searchsorted(lane, both)], tip2, both


Draw = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(lanes, try) -> the lanes that find a tail at all, their directions and tails."""


def _tries(tables: Tables, lane: np.ndarray, draw: Draw) -> tuple[np.ndarray, Tip]:
    """The lanes that get a first paddle within the tries, in order, and the paddles."""
    rows, tips = [], []
    for trial in range(PADDLE_TRIES):
        lane, direction, tail = draw(lane, trial)
        tip, good = _start(tables, direction, tail)
        rows.append(lane[good])
        tips.append(tip[good])
        lane = lane[~good]
    row = np.concatenate(rows)
    order = np.argsort(row)
    parts = ((tip.pivot, tip.direction, tip.paddle) for tip in tips)
    return row[order], Tip(*(np.concatenate(part)[order] for part in zip(*parts)))


def distract(tables: Tables, windows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Adds distractors to the windows: their paddles (lanes, curves, paddles, 3), the empty stamp where one is missing.

    numbers: (lanes, curves, tries of a curve, paddles, tries of a paddle, 2).
    """
    rules = tables.rules
    paddles = np.zeros((len(windows), rules.distractors, rules.distractor, 3), dtype=np.int64)
    paddles[..., 0] = len(tables.masks) - 1
    for curve in range(rules.distractors):
        lane = np.arange(len(windows))
        for trial in range(CURVE_TRIES):
            block = numbers[lane, curve, trial]
            row, found, after = _curve(tables, windows[lane], block)
            windows[lane[row]] = after
            paddles[lane[row], curve] = found
            lane = np.delete(lane, row)
            if len(lane) == 0:
                break
    return paddles


def _curve(tables: Tables, windows: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One attempt at a distractor in each window: the rows that succeeded, their paddles and windows after it."""
    rules, size, side = tables.rules, tables.rules.size, tables.side
    pictures = windows.reshape(-1, side, side)[:, tables.rim : tables.rim + size, tables.rim : tables.rim + size]
    taken = pictures >= BLOCKED
    room = np.flatnonzero(size * size - taken.sum(axis=(1, 2)) >= SCARCE * size * size)
    taken[:, [0, -1]], taken[:, :, [0, -1]] = True, True
    held = {int(row): tables.hold(taken[row]) for row in room}

    def seed(row: np.ndarray, trial: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kept, directions, tails = [], [], []
        for each in row.tolist():
            direction = int(numbers[each, 0, trial, 0] * DEGREES)
            free = tables.free(held[each], direction)
            if len(free):
                kept.append(each)
                directions.append(direction)
                tails.append(free[int(numbers[each, 0, trial, 1] * len(free))])
        return np.array(kept, dtype=int), np.array(directions, dtype=int), np.array(tails, dtype=int).reshape(-1, 2)

    row, tip = _tries(tables, room, seed)
    paddles = np.zeros((len(windows), rules.distractor, 3), dtype=np.int64)
    for step in range(rules.distractor):
        if step > 0:
            kept, tip = grow(tables, windows, row, tip, numbers[row, step, :, 0])
            row = row[kept]
        paddles[row, step] = tip.paddle
    merge(tables, windows, row, tip.paddle)
    return row, paddles[row], windows[row]
