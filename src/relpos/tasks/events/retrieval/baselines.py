"""What ranks a corpus without a network: chance, how many events, when they are, and who was awake with whom."""

from __future__ import annotations

import numpy as np

from relpos.tasks.events.retrieval.documents import Halves
from relpos.tasks.events.sequences import Sequences

DRAWS = 20  # random rankings that the row of chance is a mean of
BINS = 35  # of a window
NEAR = 0.05  # of a cosine: classmates of this much less likeness count 1 / e


def random(count: int, draw: int) -> np.ndarray:
    """(count, count) scores that know nothing."""
    return np.random.default_rng([draw, 5]).random((count, count))


def rate(halves: Halves, rows: np.ndarray) -> np.ndarray:
    """Minus the difference of the numbers of events: contacts an hour, as all windows are equally long; ties by lot."""
    queries, corpus = (_amount(each.select(rows)) for each in (halves.queries, halves.corpus))
    return -np.abs(queries[:, None] - corpus[None]) + 1e-3 * random(len(rows), 0)


def _amount(sequences: Sequences) -> np.ndarray:
    return sequences.lengths.astype(np.float64)


def histogram(sequences: Sequences, bins: int = BINS) -> np.ndarray:
    """(count, bins) square roots of the shares of events in equal stretches of the window, as vectors of length 1."""
    shares = (sequences.times - sequences.start[sequences.rows]) / (sequences.end - sequences.start)[sequences.rows]
    at = np.minimum((shares * bins).astype(np.int64), bins - 1)
    table = np.zeros((len(sequences), bins))
    np.add.at(table, (sequences.rows, at), 1.0)
    return np.sqrt(table / np.maximum(table.sum(1, keepdims=True), 1))


def time_of_day(halves: Halves, rows: np.ndarray) -> np.ndarray:
    """Cosines of the histograms of both days."""
    return histogram(halves.queries.select(rows)) @ histogram(halves.corpus.select(rows)).T


def classmates(halves: Halves, rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Probability that both are of one class, each guessed from the histograms of those known, of the same day.

    What a network can learn of the timetable of a class it has seen, this reads off directly; of a class it has not
    seen, nothing.
    """
    labels = halves.labels[known]
    classes = np.unique(labels)
    guesses = []
    for sequences in (halves.queries, halves.corpus):
        table = histogram(sequences)
        table = table - table[known].mean(0)
        table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
        weights = np.exp(table[rows] @ table[known].T / NEAR)
        votes = np.stack([weights[:, labels == each].mean(1) for each in classes], 1)
        guesses.append(votes / votes.sum(1, keepdims=True))
    return np.asarray(guesses[0] @ guesses[1].T)
