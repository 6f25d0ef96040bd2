"""Chords guessed from a melody alone: a label of harmony that exists before the accompaniment does."""

from __future__ import annotations

import numpy as np

from relpos.tasks.music.chords import NAMES, ROOTS, chord
from relpos.tasks.music.song import Level, Song

TRIADS = np.array([chord(root + kind) for root in ROOTS for kind in ("", "m")])
TONES = (1.0, 0.7, 0.8)  # what a melody's root, third and fifth speak for a triad
FOREIGN, OWN = -0.4, 0.15  # a note outside; a triad whose notes the melody uses elsewhere
QUARTERS = 2


def guessed_chords(song: Song, late: int = 0) -> dict[str, Level]:
    """The level "chord" (integers of `chords`) from the level "melody" (MIDI number, 0 = rest).

    One triad a half bar of 4/4: the major or minor triad that its melody notes speak for most, by how long they sound;
    triads made of notes that the melody uses much are preferred, so that a leaning note does not leave the key. Silence
    keeps the chord before. late: half bars by which it comes later, 1 where the melody of this one is not known yet.
    {} for a song without a melody.
    """
    melody = song.levels.get("melody")
    if melody is None or not song.ticks:
        return {}
    span = QUARTERS * song.ticks_per_quarter
    sounding = melody.values > 0
    classes = np.zeros((song.ticks, 12))
    classes[np.flatnonzero(sounding), melody.values[sounding] % 12] = 1
    starts = _starts(song, span)
    heard = np.add.reduceat(classes, starts, axis=0)
    share = classes.sum(0) / max(classes.sum(), 1)
    score = heard @ _weights().T + OWN * span * (share @ (_weights() > 0).T)
    found = np.where(heard.any(1), TRIADS[score.argmax(1)], 0)
    place = np.maximum.accumulate(np.where(found > 0, np.arange(len(found)), 0))
    chords = np.concatenate([np.zeros(late, dtype=np.int64), found[place]])[: len(starts)]
    source = "guessed from the melody, a triad a half bar" + (f", {late} half bar late" if late else "")
    return {"chord": Level(np.repeat(chords, np.diff([*starts, song.ticks])), NAMES, source, from_melody=not late)}


def _weights() -> np.ndarray:
    """(24, 12): what each pitch class speaks for each of `TRIADS`."""
    weights = np.full((24, 12), FOREIGN)
    for index in range(24):
        root, minor = divmod(index, 2)
        for tone, interval in zip(TONES, (0, 3 if minor else 4, 7), strict=True):
            weights[index, (root + interval) % 12] = tone
    return weights


def _starts(song: Song, span: int) -> np.ndarray:
    """First ticks of half bars, which begin anew with every bar where bars are known."""
    if "beat" not in song.levels:
        return np.arange(0, song.ticks, span)
    beat = song.levels["beat"].values
    return np.flatnonzero((beat % span == 0) | (np.arange(song.ticks) == 0))
