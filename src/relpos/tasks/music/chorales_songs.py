"""The four-part chorales as songs of four tracks, with levels that the melody gives and one that the harmony gives.

"phrase"   number of the phrase, counted from 0; a fermata in the soprano ends it
"section"  letter of the phrase: phrases whose melodies are alike, in any key, have one letter
"bar", "beat", "melody"  as everywhere; the melody is the soprano
"chord"    the pitch classes that sound in the quarter, as a sum of 2 ** pitch class (C = 0; 0 is silence). It is
           computed from what an accompaniment has to predict, and marked so; the others are not
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from relpos.tasks.music import collection, midi, tunes
from relpos.tasks.music.piece import SILENT, TICKS_PER_QUARTER, VOICES, Piece
from relpos.tasks.music.song import Level, Song
from relpos.tasks.music.structure import SECTIONS

ALIKE = 0.75  # least share of two phrases' steps that agree
_CHOIR = 52
_VELOCITY = 80
_TEMPO = 80.0


def load(progress: collection.corpus.Progress | None = None) -> list[Song]:
    """The chorales of music21 as songs, from the cache where they are there; see `collection.load`."""
    return songs(collection.load(progress))


def songs(pieces: Sequence[Piece]) -> list[Song]:
    """Pieces as songs; harmonisations of one tune are one group."""
    groups = tunes.groups(pieces)
    return [song(piece, f"tune {group}") for piece, group in zip(pieces, groups.tolist(), strict=True)]


def song(piece: Piece, group: str = "") -> Song:
    """A piece as a song on its own grid."""
    notes = [
        (start, end - start, pitch, voice, _VELOCITY)
        for voice in range(len(VOICES))
        for start, end, pitch in midi.notes(piece.pitch[:, voice], piece.onset[:, voice])
    ]
    ordered = sorted(notes, key=lambda note: (note[0], note[3], note[2]))
    phrase = phrases(piece)
    soprano = piece.pitch[:, 0].astype(np.int64)
    levels = {
        "bar": Level(piece.bar.astype(np.int64), source="bars of the score"),
        "beat": Level(piece.beat.astype(np.int64), source="bars of the score"),
        "phrase": Level(phrase, source="fermatas of the soprano"),
        "section": Level(letters(piece, phrase), SECTIONS, "likeness of the soprano's phrases between fermatas"),
        "melody": Level(np.where(soprano == SILENT, 0, soprano), source="soprano of the score"),
        "chord": Level(pitch_classes(piece), source="pitch classes of all voices in the quarter", from_target=True),
    }
    return Song(
        name=piece.name,
        ticks=piece.ticks,
        ticks_per_quarter=TICKS_PER_QUARTER,
        tracks=VOICES,
        notes=np.array(ordered, dtype=np.int64).reshape(-1, 5),
        levels=levels,
        tempos=((0, _TEMPO),),
        meters=_meters(piece),
        programs=(_CHOIR,) * len(VOICES),
        group=group,
    )


def phrases(piece: Piece) -> np.ndarray:
    """(ticks,) int64: a new number begins with the note or rest after a soprano note with a fermata."""
    ends = {start: end for start, end, _ in midi.notes(piece.pitch[:, 0], piece.onset[:, 0])}
    begins = np.zeros(piece.ticks + 1, dtype=np.int64)
    for start in np.flatnonzero(piece.fermata[:, 0] & piece.onset[:, 0]).tolist():
        begins[ends[start]] = 1
    return np.cumsum(begins)[: piece.ticks]


def letters(piece: Piece, phrase: np.ndarray) -> np.ndarray:
    """(ticks,) int64, places in `SECTIONS`: the letter of the first phrase that is alike, else the next one.

    Two phrases are alike where at least `ALIKE` of their soprano's steps, each with the length of its first note, agree
    in order.
    """
    steps = [_steps(piece, phrase == number) for number in range(int(phrase[-1]) + 1 if len(phrase) else 0)]
    models: list[list[tuple[int, int]]] = []
    found = []
    for each in steps:
        alike = [i for i, model in enumerate(models) if SequenceMatcher(None, model, each, False).ratio() >= ALIKE]
        if not alike and len(models) < 26:
            models.append(each)
        found.append(alike[0] if alike else len(models) - 1)
    return np.array(found, dtype=np.int64)[phrase] + SECTIONS.index("A")


def _steps(piece: Piece, within: np.ndarray) -> list[tuple[int, int]]:
    notes = midi.notes(np.where(within, piece.pitch[:, 0], SILENT), piece.onset[:, 0] & within)
    pairs = zip(notes, [*notes[1:], None])
    return [((after[2] - note[2]) if after else 0, note[1] - note[0]) for note, after in pairs]


def pitch_classes(piece: Piece) -> np.ndarray:
    """(ticks,) int64 below 4096, constant within a quarter of the bar."""
    sounding = piece.pitch != SILENT
    masks = np.where(sounding, 1 << (piece.pitch.astype(np.int64) % 12), 0)
    quarter = np.cumsum(
        (np.diff(piece.beat // TICKS_PER_QUARTER, prepend=-1) != 0) | (np.diff(piece.bar, prepend=-1) != 0)
    )
    found = np.zeros(piece.ticks + 1, dtype=np.int64)
    np.bitwise_or.at(found, quarter, np.bitwise_or.reduce(masks, axis=1))
    return found[quarter]


def mask_table() -> np.ndarray:
    """(4096, 12) bool, the pitch classes of every integer of the level "chord"."""
    return (np.arange(4096)[:, None] >> np.arange(12) & 1).astype(bool)


def _meters(piece: Piece) -> tuple[tuple[int, int, int], ...]:
    """Meters at bar lines; a pick-up is a first bar of its own length, and so is any bar that is not whole."""
    starts = np.flatnonzero(np.diff(piece.bar, prepend=-1))
    lengths = np.diff([*starts, piece.ticks])
    found: list[tuple[int, int, int]] = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        meter = (int(piece.meter[start, 0]), int(piece.meter[start, 1]))
        whole = meter[0] * 4 * TICKS_PER_QUARTER == length * meter[1]
        last = start + length == piece.ticks
        here = meter if whole or last else (length, 4 * TICKS_PER_QUARTER)
        if not found or found[-1][1:] != here:
            found.append((start, *here))
    return tuple(found)
