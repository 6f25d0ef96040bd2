"""The four-part chorales as songs of four tracks, with levels that the melody gives and one that the harmony gives.

"phrase"   number of the phrase, counted from 0; a fermata in the soprano ends it
"section"  letter of the phrase: phrases whose melodies are alike, in any key, have one letter
"bar", "beat", "melody"  as everywhere; the melody is the soprano
"chord"    the pitch classes that sound in the quarter, numbered from the most frequent set on, with their names. It is
           computed from what an accompaniment has to predict, and marked so; the others are not
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher

import numpy as np

from relpos.tasks.music import chords, collection, midi, tunes
from relpos.tasks.music.piece import SILENT, TICKS_PER_QUARTER, VOICES, Piece
from relpos.tasks.music.song import Level, Song
from relpos.tasks.music.structure import SECTIONS

ALIKE = 0.75  # least share of two phrases' steps that agree
_LIKENESS = "likeness of the soprano's phrases between fermatas"
_CHOIR = 52
_VELOCITY = 80
_TEMPO = 80.0


def load(progress: collection.corpus.Progress | None = None) -> list[Song]:
    """The chorales of music21 as songs, from the cache where they are there; see `collection.load`."""
    return songs(collection.load(progress))


def songs(pieces: Sequence[Piece]) -> list[Song]:
    """Pieces as songs; harmonisations of one tune are one group."""
    groups = tunes.groups(pieces)
    found = [song(piece, f"tune {group}") for piece, group in zip(pieces, groups.tolist(), strict=True)]
    return _numbered(found)


def _numbered(found: Sequence[Song]) -> list[Song]:
    """The sets of pitch classes as numbers that all songs share, 0 the silence, then by how often they occur."""
    counts = np.bincount(np.concatenate([each.levels["chord"].values for each in found]), minlength=4096)
    counts[0] = counts.max() + 1
    masks = [mask for mask in np.argsort(-counts, kind="stable").tolist() if counts[mask]]
    number = np.zeros(4096, dtype=np.int64)
    number[masks] = np.arange(len(masks))
    names = tuple(_symbol(mask) for mask in masks)

    def moved(each: Song) -> Song:
        level = each.levels["chord"]
        chord = replace(level, values=number[level.values], names=names)
        return replace(each, levels={**each.levels, "chord": chord})

    return [moved(each) for each in found]


def _symbol(mask: int) -> str:
    tones = {tone for tone in range(12) if mask >> tone & 1}
    named = [chords.name(tone, tones) for tone in sorted(tones)]
    plain = [name for name in named if "/" not in name and "[" not in name]
    return (plain or [f"[{' '.join(map(str, sorted(tones)))}]"])[0] if tones else "N"


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
        "section": Level(
            letters(piece, phrase), SECTIONS, "likeness of the soprano's phrases between fermatas", from_melody=True
        ),
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


def _meters(piece: Piece) -> tuple[tuple[int, int, int], ...]:
    """Meters at bar lines; a pick-up is a first bar of its own length, and so is any bar that is not whole."""
    starts = np.flatnonzero(np.diff(piece.bar, prepend=-1))
    lengths = np.diff([*starts, piece.ticks])
    found: list[tuple[int, int, int]] = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        meter = (int(piece.meter[start, 0]), int(piece.meter[start, 1]))
        whole = meter[0] * 4 * TICKS_PER_QUARTER == length * meter[1]
        last = start + length == piece.ticks
        here = meter if whole or last else _shortest(length, 4 * TICKS_PER_QUARTER)
        if not found or found[-1][1:] != here:
            found.append((start, *here))
    return tuple(found)


def _shortest(numerator: int, denominator: int) -> tuple[int, int]:
    """A meter in quarters, or in the longest notes that fit: 10/4 and not 40/16."""
    while numerator % 2 == 0 and denominator > 4:
        numerator, denominator = numerator // 2, denominator // 2
    return numerator, denominator
