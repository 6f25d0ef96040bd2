"""What is searched: every item has a class, a query sequence and a corpus sequence; relevant is who shares the class.

An item is never a candidate of its own query. Sequences begin with their window: a time counts from there, and all
windows are equally long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relpos.tasks.data import load
from relpos.tasks.data.sets import Events
from relpos.tasks.events.sequences import Sequences

SPLITS = ("train", "validation", "test")
SHARES = (0.6, 0.2, 0.2)
COUNTED = (1, 2, 3, 5, 9)  # the least numbers of contacts of each mark
MARKS = ("1", "2", "3-4", "5-8", "9+")


@dataclass(frozen=True)
class Halves:
    """queries, corpus: of the same items in the same order, windows of ``span``; labels (items,) from 0."""

    queries: Sequences
    corpus: Sequences
    labels: np.ndarray
    classes: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if not len(self.queries) == len(self.corpus) == len(self.labels):
            raise ValueError(
                f"an item has a query, a corpus sequence and a class; got {len(self.queries)}, {len(self.corpus)} "
                f"and {len(self.labels)} of them"
            )
        spans = np.concatenate([self.queries.end - self.queries.start, self.corpus.end - self.corpus.start])
        if not len(spans) or not np.allclose(spans, spans[0]):
            raise ValueError("the windows of all queries and corpus sequences are equally long; give equal windows")

    @property
    def span(self) -> float:
        return float(self.queries.end[0] - self.queries.start[0])

    def sides(self) -> dict[str, Sequences]:
        return {"queries": self.queries, "corpus": self.corpus}


def primary_school(tick: float = 300.0) -> Halves:
    """Contacts of 242 people on two school days: queries are the second day, the corpus is the first.

    tick: seconds; all contacts of a person that begin within a tick are one event, and the mark says how many they are.
    Marks know neither who was met nor of which class. Ten people with an empty day are left out. Times in hours.
    """
    data = load("primary-school")
    assert isinstance(data, Events)
    return two_days(data, tick)


def two_days(data: Events, tick: float) -> Halves:
    """Halves of a recording, in seconds, of two days that are 24 hours apart. ValueError where it is not one."""
    if not tick > 0:
        raise ValueError(f"tick is a number of seconds above 0, got {tick}")
    if data.labels is None:
        raise ValueError(f"{data.card.name} has no classes, which relevance is made of")
    sequences = data.sequences
    distinct = np.unique(sequences.times)
    night = int(np.diff(distinct).argmax())
    second = sequences.times >= distinct[night + 1]
    clock = sequences.times - 86400.0 * second
    if np.ptp(clock) > 86400.0 or not 0 < second.sum() < len(second):
        raise ValueError(f"{data.card.name} is not a recording of two days: its times span {np.ptp(distinct):g} s")
    begin = tick * np.floor(clock.min() / tick)
    span = tick * np.ceil((clock.max() - begin + tick / 2) / tick)
    halves = [_ticked(sequences, clock - begin, second == day, tick, span) for day in (True, False)]
    kept = (halves[0].lengths > 0) & (halves[1].lengths > 0)
    queries, corpus = (half.select(kept) for half in halves)
    return Halves(queries, corpus, data.labels[kept], tuple(data.classes), f"the data set {data.card.name}")


def _ticked(sequences: Sequences, clock: np.ndarray, chosen: np.ndarray, tick: float, span: float) -> Sequences:
    keys = np.stack([sequences.rows[chosen], np.floor(clock[chosen] / tick).astype(np.int64)], 1)
    found, counts = np.unique(keys, axis=0, return_counts=True)
    offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum(np.bincount(found[:, 0], minlength=len(sequences)), out=offsets[1:])
    return Sequences.from_flat(
        (found[:, 1] + 0.5) * tick / 3600, offsets, marks=np.digitize(counts, COUNTED) - 1, mark_names=MARKS,
        window=(0.0, span / 3600), ids=sequences.ids, unit="hours",
    )  # fmt: skip


def split(halves: Halves, hold: str, seed: int) -> dict[str, np.ndarray]:
    """Rows of train, validation and test. hold: "people" parts every class 60/20/20, so that all classes have been seen
    and no person; "classes" parts the classes, so that nothing has been seen of those that are judged."""
    rng = np.random.default_rng(seed)
    if hold not in ("people", "classes"):
        raise ValueError(f'hold is "people" or "classes", got {hold!r}')
    sides: dict[str, list[np.ndarray]] = {side: [] for side in SPLITS}
    present = np.unique(halves.labels)
    groups = [present] if hold == "classes" else [np.flatnonzero(halves.labels == label) for label in present]
    for group in groups:
        cuts = np.round(len(group) * np.cumsum(SHARES)[:2]).astype(int)
        for side, part in zip(SPLITS, np.split(rng.permutation(group), cuts)):
            sides[side].append(np.flatnonzero(np.isin(halves.labels, part)) if hold == "classes" else part)
    found = {side: np.sort(np.concatenate(parts)) for side, parts in sides.items()}
    for side, rows in found.items():
        counts = np.bincount(halves.labels[rows])
        if (counts > 1).sum() < 1 or (counts > 0).sum() < 2:
            raise ValueError(f"{side} needs two classes, and one with two items, to rank anything; it has {counts}")
    return found
