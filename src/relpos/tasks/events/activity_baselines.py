"""What a network that reads an activity has to beat: tables of counts, and gaps without a history."""

from __future__ import annotations

import math

import numpy as np

from relpos.tasks.events.activity_data import observed
from relpos.tasks.events.sequences import Sequences

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
ADDED = (0.1, 1.0, 10.0)


class NaiveBayes:
    """The goal from how often each symbol has been seen.

        log P(c | x_1..x_k) = log P(c) + (1/T) sum_i log P(x_i | c),     P(x | c) = (n(c, x) + a) / (n(c) + a symbols)

    P(c) = (n(c) + 1) / (n + goals). a and the temperature T are given, or chosen by `fit`.
    """

    def __init__(self, symbols: int, goals: int, added: float = 1.0, temperature: float = 1.0) -> None:
        self.symbols, self.goals, self.added, self.temperature = symbols, goals, added, temperature

    def count(self, rows: list[np.ndarray], goals: np.ndarray) -> NaiveBayes:
        """Counts the symbols of some sequences; returns itself."""
        prior = np.bincount(goals, minlength=self.goals) + 1.0
        self.log_prior = np.log(prior / prior.sum())
        counts = np.full((self.goals, self.symbols), self.added)
        for row, goal in zip(rows, goals):
            counts[goal] += np.bincount(row, minlength=self.symbols)
        self.log_table = np.log(counts / counts.sum(1, keepdims=True))
        return self

    @classmethod
    def fit(
        cls,
        symbols: int,
        goals: int,
        train: tuple[list[np.ndarray], np.ndarray],
        held: tuple[list[np.ndarray], np.ndarray],
    ) -> NaiveBayes:
        """a and T with the least loss over all prefixes of held-out sequences."""
        best, found = math.inf, cls(symbols, goals).count(*train)
        for added in ADDED:
            for temperature in TEMPERATURES:
                each = cls(symbols, goals, added, temperature).count(*train)
                rows = [each.prefixes(row)[:, goal].mean() for row, goal in zip(*held)]
                if -float(np.mean(rows)) < best:
                    best, found = -float(np.mean(rows)), each
        return found

    def prefixes(self, row: np.ndarray) -> np.ndarray:
        """(n, goals) log probabilities after each of the symbols of one sequence."""
        scores = self.log_prior + np.cumsum(self.log_table[:, row].T, 0) / self.temperature
        scores = scores - scores.max(-1, keepdims=True)
        return np.asarray(scores - np.log(np.exp(scores).sum(-1, keepdims=True)))


class Symbols:
    """Marks, or pairs of a mark and how long ago the event before was: below 0.25, 0.5, 0.75 of the gaps, or above."""

    def __init__(self, train: Sequences, gaps: bool) -> None:
        known = train.gaps()
        self.edges = np.quantile(known[~np.isnan(known)], (0.25, 0.5, 0.75)) if gaps else np.zeros(0)
        self.bins = len(self.edges) + 2 if gaps else 1
        self.count = train.mark_count * self.bins

    def of(self, sequences: Sequences) -> list[np.ndarray]:
        """(n,) of each sequence; a first event has a bin of its own."""
        codes = sequences.kinds * self.bins
        if self.bins > 1:
            gaps = sequences.gaps()
            codes = codes + np.where(np.isnan(gaps), 0, 1 + np.searchsorted(self.edges, gaps, side="right"))
        return np.split(codes, sequences.offsets[1:-1])


class Markov:
    """The next mark from the last: (n(a, b) + 1) / (n(a) + marks)."""

    def __init__(self, train: Sequences) -> None:
        counts = np.ones((train.mark_count, train.mark_count))
        last, following = pairs(train)
        np.add.at(counts, (train.kinds[last], train.kinds[following]), 1)
        self.log_table = np.log(counts / counts.sum(1, keepdims=True))
        total = counts.sum(0)
        self.log_marks = np.log(total / total.sum())


def pairs(sequences: Sequences, percent: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Events, and the event after each, where that one is within the first ``percent`` of its sequence."""
    lengths = sequences.lengths
    place = np.arange(len(sequences.times)) - np.repeat(sequences.offsets[:-1], lengths)
    following = np.flatnonzero((place > 0) & (place < np.repeat(observed(lengths, percent), lengths)))
    return following - 1, following


class Gaps:
    """Gaps without a history, log-normal or exponential, and an end as likely after every event.

    Fitted to the gaps of training; the end is counted over the events that are not known to be followed by another
    piece of the same.
    """

    def __init__(self, train: Sequences, kind: str) -> None:
        gaps = train.gaps()
        gaps, self.kind = gaps[~np.isnan(gaps)], kind
        self.median, self.mean = float(np.median(gaps)), float(gaps.mean())
        self.middle, self.spread = float(np.log(gaps).mean()), float(np.log(gaps).std())
        ends = float((train.end > train.latest).sum())
        self.end = (ends + 1) / (ends + len(gaps) + 2)

    def log_prob(self, gaps: np.ndarray) -> np.ndarray:
        """Of gaps that an event ends."""
        on = math.log1p(-self.end)
        if self.kind == "exponential":
            return np.asarray(on - math.log(self.mean) - gaps / self.mean)
        z = (np.log(gaps) - self.middle) / self.spread
        return np.asarray(on - z**2 / 2 - np.log(gaps * self.spread) - math.log(2 * math.pi) / 2)

    def log_silence(self, gaps: np.ndarray) -> np.ndarray:
        """Of no event within these gaps; 0 for a gap of 0."""
        with np.errstate(divide="ignore"):
            if self.kind == "exponential":
                survival = np.exp(-gaps / self.mean)
            else:
                survival = np.array([math.erfc((x - self.middle) / self.spread / 2**0.5) / 2 for x in np.log(gaps)])
        return np.asarray(np.log(self.end + (1 - self.end) * survival))
