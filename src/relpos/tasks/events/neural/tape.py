"""Event sequences cut into runs that fit a network: what it sees, and what follows each token.

A token is an event, or the start of a window: a token of the mark ``mark_count``, so that the first gap has one to
follow. What follows a token is the next event, or, after the last, the silence up to the end of the window. Summed over
all tokens, that is the likelihood of the whole windows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from relpos.tasks.events.processes.base import Since, after_start
from relpos.tasks.events.sequences import Sequences


class Seen(NamedTuple):
    """What a network reads, padded on the right.

    marks     (batch, n) int64; 0 in pads
    times     (batch, n) float64, in the unit and on the clock of the data; pads repeat the last
    mask      (batch, n) bool: True for tokens
    places    (batch, n, 2) float64, or (batch, n, 0) where the data has none; a start stands where the first event does
    profiles  (batch, n, width) float64; of a start zeros
    """

    marks: Tensor
    times: Tensor
    mask: Tensor
    places: Tensor
    profiles: Tensor


class Following(NamedTuple):
    """What comes after each token of a `Seen`, (batch, n) each.

    gaps    float64: time to the next event; to the end of the window where none comes
    marks   int64: of the next event; -1 where none comes
    floors  float64: the part of the gap that is known to be silent, as where scoring begins within a gap; mostly 0
    scored  bool
    """

    gaps: Tensor
    marks: Tensor
    floors: Tensor
    scored: Tensor


class Run(NamedTuple):
    """Tokens begin .. end - 1 of a sequence; those from ``scored`` on are scored."""

    row: int
    begin: int
    end: int
    scored: int


class Tape:
    """All tokens of some sequences, and what follows each.

    since: as in `Process.log_likelihood`: what follows only after it is scored, and what came before is history.
    start: whether a window begins with a token of its own.
    """

    def __init__(self, sequences: Sequences, since: Since = None, start: bool = True) -> None:
        self.sequences, self.start = sequences, start
        lengths, extra = sequences.lengths, int(start)
        self.offsets = np.concatenate([[0], np.cumsum(lengths + extra)])
        events = np.arange(len(sequences.times)) + extra * (sequences.rows + 1)
        firsts = self.offsets[:-1]
        self.marks = np.full(self.offsets[-1], sequences.mark_count, dtype=np.int64)
        self.times = np.zeros(self.offsets[-1])
        if start:
            self.times[firsts] = sequences.start
        self.marks[events], self.times[events] = sequences.kinds, sequences.times
        self.places = self._spread(sequences.places, events, first=True)
        self.profiles = self._spread(sequences.profiles, events, first=False)
        filled = np.diff(self.offsets) > 0
        self._follow(sequences, self.offsets[1:][filled] - 1, filled, since)

    def _spread(self, values: np.ndarray | None, events: np.ndarray, first: bool) -> np.ndarray:
        width = 0 if values is None else values.shape[1]
        found = np.zeros((len(self.times), width))
        if values is not None:
            found[events] = values
            if self.start and first:
                filled = self.sequences.lengths > 0
                found[self.offsets[:-1][filled]] = values[self.sequences.firsts]
        return found

    def _follow(self, sequences: Sequences, lasts: np.ndarray, filled: np.ndarray, since: Since) -> None:
        self.gaps = np.append(self.times[1:], 0.0) - self.times
        self.next_marks = np.append(self.marks[1:], -1)
        self.gaps[lasts], self.next_marks[lasts] = (sequences.end[filled] - self.times[lasts]), -1
        after = sequences.start if since is None else after_start(sequences, since)
        begin = np.repeat(after, np.diff(self.offsets))
        self.floors = np.maximum(begin - self.times, 0.0)
        # What ends where scoring begins is history: the window is open on its left. A tie after that is scored.
        ends = np.append(self.times[1:], 0.0)
        ends[lasts] = sequences.end[filled]
        self.scored = (ends > begin) | (since is None)
        self.floors = np.where(self.scored, self.floors, 0.0)

    def __len__(self) -> int:
        """Tokens."""
        return len(self.times)

    @property
    def events(self) -> int:
        """Events that are scored."""
        return int((self.scored & (self.next_marks >= 0)).sum())

    def runs(self, length: int, history: int) -> list[Run]:
        """Runs of at most ``length`` tokens that score every scored token once, after ``history`` tokens where there
        are so many. ValueError unless 0 <= history < length."""
        if not 0 <= history < length:
            raise ValueError(f"0 <= history < length, got {history} and {length}")
        found = []
        for row, (first, last) in enumerate(zip(self.offsets[:-1], self.offsets[1:])):
            wanted = np.flatnonzero(self.scored[first:last])
            at = int(wanted[0]) if len(wanted) else int(last - first)
            while at < last - first:
                begin = max(at - history, 0)
                end = min(begin + length, int(last - first))
                found.append(Run(row, begin, end, at))
                at = end
        return found

    def draw(self, rng: np.random.Generator, size: int, length: int, history: int = 0) -> list[Run]:
        """Random runs for training: every token is as likely to be in one, but for those near an end."""
        counts = np.diff(self.offsets)
        if not counts.any():
            raise ValueError("there is no token to draw: all sequences are empty")
        share = np.where(counts > 0, np.maximum(counts, length), 0)  # a short sequence is in a run as a whole
        rows = rng.choice(len(counts), size=size, p=share / share.sum())
        room = np.maximum(counts[rows] - length, 0)
        # Some runs may hang over an end, else tokens near one would hardly be seen.
        begins = np.clip(rng.integers(-length // 2, room + length // 2 + 1), 0, room)
        return [
            Run(int(row), int(begin), int(min(begin + length, counts[row])), int(begin + (history if begin else 0)))
            for row, begin in zip(rows, begins)
        ]

    def take(self, runs: list[Run]) -> tuple[Seen, Following]:
        """The tokens of some runs, padded to the longest. ValueError for no run."""
        if not runs:
            raise ValueError("there is no run to take")
        longest = max(run.end - run.begin for run in runs)
        first = np.array([self.offsets[run.row] + run.begin for run in runs])[:, None]
        sizes = np.array([run.end - run.begin for run in runs])[:, None]
        column = np.arange(longest)[None, :]
        mask = column < sizes
        at = first + np.minimum(column, sizes - 1)
        later = column >= np.array([run.scored - run.begin for run in runs])[:, None]
        seen = Seen(
            torch.from_numpy(np.where(mask, self.marks[at], 0)),
            torch.from_numpy(self.times[at]),
            torch.from_numpy(mask),
            torch.from_numpy(self.places[at]),
            torch.from_numpy(self.profiles[at]),
        )
        following = Following(
            torch.from_numpy(np.where(mask, self.gaps[at], 1.0)),
            torch.from_numpy(np.where(mask, self.next_marks[at], -1)),
            torch.from_numpy(np.where(mask, self.floors[at], 0.0)),
            torch.from_numpy(self.scored[at] & mask & later),
        )
        return seen, following
