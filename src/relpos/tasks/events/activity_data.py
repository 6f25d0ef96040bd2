"""Sequences with a goal: sessions cut out of long recordings, moved to begin at 0, and people kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from relpos.tasks.data.sets import Events
from relpos.tasks.events import clock
from relpos.tasks.events.sequences import Sequences

SIDES = ("train", "validation", "test")


@dataclass(frozen=True)
class Tracks:
    """Sequences that begin with their first event, at time 0, and have a goal.

    sequences  windows end with the silence that is known to follow the last event: where a sequence was cut, with the
               last event itself; where the data tells that the last event ends it, never (inf)
    goals      (count,) int64
    owners     (count,) int64: whose sequence it is; those of one owner are kept on one side of the split
    sources    (count,) int64: the sequence of the data set that each was cut out of
    sessions   (count,) int64: pieces of one session have one number
    """

    sequences: Sequences
    goals: np.ndarray
    owners: np.ndarray
    sources: np.ndarray
    sessions: np.ndarray

    def __len__(self) -> int:
        return len(self.goals)

    def select(self, rows: np.ndarray) -> Tracks:
        columns = (self.goals, self.owners, self.sources, self.sessions)
        return Tracks(self.sequences.select(rows), *(each[rows] for each in columns))


def dequantised(sequences: Sequences, seed: int = 0) -> Sequences:
    """Events at one time laid out at random within their tick, in the order they have; others move within theirs too.

    A tick is the smallest gap above 0. A coarse clock gives gaps of 0, which have no density, and heaps of equal ones,
    on which a density grows without bound. Data without ties is returned as it is.
    """
    gaps = sequences.gaps()
    if not (gaps == 0).any():
        return sequences
    if not (gaps > 0).any():
        raise ValueError("all events of each sequence are at one time: there is no clock to learn")
    tick = float(gaps[gaps > 0].min())
    return replace(clock.jittered(sequences, tick, seed), end=sequences.end + tick)


def tracks(
    found: Events, silence: float | None, most: int, least: int, owners: Sequence[str] | None = None, factor: float = 1
) -> Tracks:
    """The sequences of a data set, cut where nothing happened for longer than ``silence``, and then into equal pieces
    of at most ``most`` events. Those of fewer than ``least`` events, or without a label, are left out.

    silence: None where a sequence of the data is one activity from its beginning to its end. owners: a name for each
    sequence of the data, by default its own. factor: what times are multiplied by, ``silence`` not.
    """
    if found.labels is None:
        raise ValueError(f"the sequences of {found.card.name} have no labels, so there is no goal to tell")
    whole = dequantised(found.sequences)
    whole = whole if factor == 1 else whole.scaled(factor)
    count, row = len(whole.times), whole.rows
    gaps = np.nan_to_num(whole.gaps(), nan=np.inf)
    fresh = np.isinf(gaps) if silence is None else gaps > silence
    firsts = np.flatnonzero(fresh)
    sizes = np.diff(np.append(firsts, count))
    place, size = np.arange(count) - np.repeat(firsts, sizes), np.repeat(sizes, sizes)
    piece = place * -(-size // most) // size  # as equal as can be
    begin = fresh | (np.diff(piece, prepend=-1) != 0)
    offsets = np.append(np.flatnonzero(begin), count)
    quiet = _silence_after(whole, silence)[offsets[1:] - 1]
    owner = np.unique(list(owners), return_inverse=True)[1] if owners is not None else np.arange(len(whole))
    source = row[offsets[:-1]]
    lengths = np.diff(offsets)
    since = whole.times - np.repeat(whole.times[offsets[:-1]], lengths)
    names = whole.ids or tuple(map(str, range(len(whole))))
    ids = tuple(f"{names[r]} from event {at - whole.offsets[r] + 1}" for r, at in zip(source, offsets[:-1]))
    cut = whole.replace(
        np.arange(count), offsets, times=since, start=np.zeros(len(source)), end=since[offsets[1:] - 1] + quiet, ids=ids
    )
    kept = np.flatnonzero((lengths >= least) & (found.labels[source] >= 0))
    session = np.cumsum(fresh)[offsets[:-1]]
    return Tracks(cut, found.labels[source], owner[source].astype(np.int64), source, session).select(kept)


def _silence_after(whole: Sequences, silence: float | None) -> np.ndarray:
    """(events,) how long it is known to be silent after each, were it the last of a piece: 0 where another follows."""
    longest = np.inf if silence is None else silence
    following = np.append(whole.gaps()[1:], np.nan)
    quiet = np.where(following > longest, longest, 0.0)
    lasts = whole.offsets[1:][whole.lengths > 0] - 1
    left = (whole.end[whole.lengths > 0] - whole.times[lasts]) if whole.windowed else np.inf
    quiet[lasts] = np.minimum(left, longest)
    return quiet


def apart(owners: np.ndarray, goals: np.ndarray, shares: Sequence[float], fold: int) -> dict[str, np.ndarray]:
    """Rows of the three sides by owner: nobody is on two. Where an owner has one goal, goals are spread evenly.

    shares: of the owners, to train, validate and test on. fold: another number is another drawing.
    """
    names = np.unique(owners)
    own = [np.unique(goals[owners == name]) for name in names]
    stratum = np.array([each[0] if len(each) == 1 else -1 for each in own])
    side = np.zeros(len(names), dtype=np.int64)
    draw = np.random.default_rng([20240512, fold])
    for value in np.unique(stratum):
        members = draw.permutation(np.flatnonzero(stratum == value))
        edges = np.round(np.cumsum(shares) / sum(shares) * len(members)).astype(int)
        side[members[edges[0] : edges[1]]], side[members[edges[1] :]] = 1, 2
    mine = side[np.searchsorted(names, owners)]
    return {name: np.flatnonzero(mine == index) for index, name in enumerate(SIDES)}


def sides_of(official: Mapping[str, np.ndarray], sources: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of tracks by the side that the data set puts their source on."""
    return {name: np.flatnonzero(np.isin(sources, rows)) for name, rows in official.items()}


def observed(lengths: np.ndarray, percent: int) -> np.ndarray:
    """(count,) events in the first ``percent`` of each sequence, rounded up, and at least 2."""
    return np.minimum(np.maximum(-(-lengths * percent // 100), 2), lengths)
