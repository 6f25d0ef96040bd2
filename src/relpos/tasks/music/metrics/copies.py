"""How much of a piece is copied from others, note for note."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relpos.tasks.music.song import ONSET, PITCH


@dataclass(frozen=True)
class Copy:
    """The longest passage that two pieces have in common: ticks from its first onset to its last one, that included.

    events  moments at which something begins, within the passage
    piece   number of the piece in the collection, -1 where nothing is shared
    tick    where the passage begins in the one looked at; source_tick: where in the piece of the collection
    """

    ticks: int
    events: int
    piece: int
    tick: int
    source_tick: int

    def bars(self, ticks_per_bar: int) -> float:
        return self.ticks / ticks_per_bar


class Library:
    """Pieces in which copies are looked for; made once, memory linear in the number of onsets.

    notes  one array a piece, (count, columns) with onset in column 0 and pitch in column 2, as `Song.notes`; all on
           one grid. Tracks and lengths play no part: at each moment the set of pitches that begin is compared, and the
           time since the moment before
    transposed  whether a passage moved by any interval is a copy too
    """

    def __init__(self, notes: Sequence[np.ndarray], transposed: bool = False) -> None:
        self.transposed = transposed
        events = [_events(piece, transposed) for piece in notes]
        self._piece = np.repeat(np.arange(len(events)), [len(times) for times, _, _ in events])
        self._tick = np.concatenate([times for times, _, _ in events] or [np.zeros(0, dtype=np.int64)])
        self._first = self._places([key for _, alone, _ in events for key in alone])
        self._next = self._places([key for _, _, joined in events for key in joined])

    def longest_copy(self, notes: np.ndarray) -> Copy:
        """The longest passage (in ticks) of ``notes`` that some piece has too; of equally long ones the first."""
        times, alone, joined = _events(notes, self.transposed)
        origin = np.full(len(self._tick) + 1, -1)  # where the passage that ends at an event began; the last is none
        best, ended = Copy(0, 0, -1, 0, 0), np.zeros(0, dtype=np.int64)
        for index, (key, joint) in enumerate(zip(alone, joined, strict=True)):
            here = self._first.get(key, np.zeros(0, dtype=np.int64))
            going = self._next.get(joint, np.zeros(0, dtype=np.int64))
            going = going[origin[going - 1] >= 0]
            began = origin[going - 1]
            origin[ended] = -1
            origin[here] = here
            origin[going] = began
            ended = here  # joined events are among those alike alone
            if here.size:
                lengths = self._tick[here] - self._tick[origin[here]] + 1
                longest = int(np.argmax(lengths))
                if lengths[longest] > best.ticks:
                    last = int(here[longest])
                    start = int(origin[last])
                    events = last - start + 1
                    best = Copy(
                        int(lengths[longest]),
                        events,
                        int(self._piece[last]),
                        int(times[index - events + 1]),
                        int(self._tick[start]),
                    )
        return best

    @staticmethod
    def _places(keys: list[tuple]) -> dict[tuple, np.ndarray]:
        places: dict[tuple, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)
        return {key: np.array(found) for key, found in places.items()}


def longest_copy(notes: np.ndarray, pieces: Sequence[np.ndarray], transposed: bool = False) -> Copy:
    """The longest passage of ``notes`` that stands in one of the pieces; keep a `Library` to ask more than once."""
    return Library(pieces, transposed).longest_copy(notes)


def _events(notes: np.ndarray, transposed: bool) -> tuple[np.ndarray, list[tuple], list[tuple]]:
    """Times at which notes begin; what begins there; and that together with the way from the event before."""
    notes = np.asarray(notes, dtype=np.int64)
    notes = notes.reshape(-1, 3) if notes.size == 0 else notes
    if notes.ndim != 2 or notes.shape[1] < 3:
        raise ValueError(f"notes must be (count, columns): onset, length, pitch, ..; got {notes.shape}")
    pairs = np.unique(notes[:, [ONSET, PITCH]], axis=0)
    times, starts = np.unique(pairs[:, 0], return_index=True)
    chords = [tuple(chord.tolist()) for chord in np.split(pairs[:, 1], starts[1:])] if len(times) else []
    lowest = [chord[0] for chord in chords]
    alone: list[tuple] = [tuple(p - chord[0] for p in chord) for chord in chords] if transposed else list(chords)
    joined: list[tuple] = []
    for index, chord in enumerate(alone):
        if index == 0:
            joined.append(())  # nothing comes before the first: no passage goes on through it
            continue
        step = lowest[index] - lowest[index - 1] if transposed else 0
        joined.append((int(times[index] - times[index - 1]), step, chord))
    return times, alone, joined
