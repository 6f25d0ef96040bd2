"""Pictures from curves: which random numbers belong to a picture, its paddles, its markers and its label."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from relpos.tasks.long_range.pathfinder import snakes
from relpos.tasks.long_range.pathfinder.rules import CURVE_TRIES, PADDLE_TRIES, Rules
from relpos.tasks.long_range.pathfinder.stamps import Tables, marker, stretch, tables

_BYTES = 12_000_000  # of windows at once: few enough for the processor's cache to be of use, many enough for numpy
_ATTEMPTS = 2048


class Numbers:
    """The uniform random numbers of one picture, a function of seed and index: a stream for each of its three parts."""

    def __init__(self, rules: Rules, seed: int, index: int) -> None:
        self._rules = rules
        streams = [np.random.default_rng([seed, index, part]) for part in range(3)]
        label, margin, origin = streams[0].random(3)
        self.label = int(label * 2)
        self.margin = rules.margins[int(margin * len(rules.margins))]
        self.origin = int(origin * 2)
        self._pairs, self._distractors = streams[1:]

    def attempts(self, count: int) -> np.ndarray:
        """For the next attempts at two target curves: (count, 2 * length, tries, 2)."""
        return self._pairs.random((count, 2 * self._rules.length, PADDLE_TRIES, 2))

    def distractors(self) -> np.ndarray:
        """(curves, tries of a curve, paddles, tries of a paddle, 2)."""
        rules = self._rules
        return self._distractors.random((rules.distractors, CURVE_TRIES, rules.distractor, PADDLE_TRIES, 2))


def pictures(rules: Rules, seed: int, start: int, stop: int) -> dict[str, np.ndarray]:
    """Pictures start..stop-1: images uint8 (n, size, size), labels, margins uint8, and attempts int64 (n,).

    attempts: how many pairs of target curves were begun until one came to its end.
    """
    numbers = [Numbers(rules, seed, index) for index in range(start, stop)]
    images = np.empty((stop - start, rules.size, rules.size), dtype=np.uint8)
    attempts = np.empty(stop - start, dtype=np.int64)
    for margin in rules.margins:
        which = [index for index, each in enumerate(numbers) if each.margin == margin]
        if which:
            made = tables(rules, margin)
            images[which], attempts[which] = _draw(made, [numbers[index] for index in which])
    labels, margins = (np.array([getattr(each, name) for each in numbers], np.uint8) for name in ("label", "margin"))
    return {"images": images, "labels": labels, "margins": margins, "attempts": attempts}


def _draw(made: Tables, numbers: list[Numbers]) -> tuple[np.ndarray, np.ndarray]:
    targets, windows, attempts = _targets(made, numbers)
    others = snakes.distract(made, windows, np.stack([each.distractors() for each in numbers]))
    rules = made.rules
    canvas = np.zeros((len(numbers), made.side**2), dtype=np.float32)
    _paste(made, canvas, targets.reshape(len(numbers), -1, 3), rules.paddle_contrast * rules.curve_contrast)
    _paste(made, canvas, others.reshape(len(numbers), -1, 3), rules.curve_contrast)
    cut = slice(made.rim, made.rim + rules.size)
    images = np.empty((len(numbers), rules.size, rules.size), dtype=np.uint8)
    for row, each in enumerate(numbers):
        end = each.origin if each.label else 1 - each.origin
        tips = targets[row, each.origin, 0, 1:], targets[row, end, -1, 1:]
        white = np.maximum(*(_marker(rules, int(y), int(x)) for y, x in tips))
        lines = canvas[row].reshape(made.side, made.side)[cut, cut]
        images[row] = stretch(np.maximum(lines.astype(np.float64), white / 255))
    return images, attempts


def _targets(made: Tables, numbers: list[Numbers]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every picture its first successful attempt: paddles, window, and how many attempts it took."""
    count, length = len(numbers), made.rules.length
    paddles = np.empty((count, 2, length, 3), dtype=np.int64)
    windows = np.empty((count, made.side**2), dtype=np.uint8)
    attempts = np.zeros(count, dtype=np.int64)
    lanes = max(1, min(_ATTEMPTS, _BYTES // made.side**2))
    todo = np.arange(count)
    while len(todo):
        now = todo[:lanes]
        width = max(1, lanes // len(now))
        row, found, after = snakes.pairs(made, np.concatenate([numbers[index].attempts(width) for index in now]))
        which, best = np.unique(row // width, return_index=True)
        paddles[now[which]], windows[now[which]] = found[best], after[best]
        attempts[now] += width
        attempts[now[which]] += row[best] % width + 1 - width
        todo = np.setdiff1d(todo, now[which])
    return paddles, windows, attempts


def _paste(made: Tables, canvas: np.ndarray, paddles: np.ndarray, contrast: float) -> None:
    """Joins paddles (pictures, paddles, 3) to the pictures (pictures, side * side) by maximum."""
    stamps = (made.lines / 255 * contrast).astype(np.float32)
    flat, row = canvas.reshape(-1), np.arange(len(canvas))
    for paddle in np.moveaxis(paddles, 1, 0):
        spot = made.flat(row, paddle[:, 1], paddle[:, 2])[:, None] + made.window
        flat[spot] = np.maximum(flat[spot], stamps[paddle[:, 0]])


def _marker(rules: Rules, y: int, x: int) -> np.ndarray:
    """The disc at (y, x) in an empty picture; away from the border a shifted copy of one drawing."""
    near = int(rules.marker) + 5  # the disc, and three pixels that Lanczos reaches further
    if min(y, x) < near or max(y, x) >= rules.size - near:
        return marker(rules, y, x, rules.size)
    out = np.zeros((rules.size, rules.size), dtype=np.uint8)
    out[y - near : y + near + 1, x - near : x + near + 1] = _middle(rules)
    return out


@lru_cache(maxsize=16)
def _middle(rules: Rules) -> np.ndarray:
    near = int(rules.marker) + 5
    return marker(rules, near, near, 2 * near + 1)
