"""Levels of structure for any song: from its meter, from a form or a chord chart that is given, or estimated.

Bars are those of the level "bar" where the song has it, else those of its meters.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from relpos.tasks.music import chords
from relpos.tasks.music.bars import bar_starts, bars_and_beats
from relpos.tasks.music.song import LENGTH, ONSET, PITCH, TRACK, Level, Song

SECTIONS = tuple(string.ascii_lowercase + string.ascii_uppercase)  # a section's integer is its letter's place in it
UNNAMED = SECTIONS.index("x")
MELODY_NAMES = ("melody", "soprano", "vocal", "voice", "lead", "right hand")
ALIKE = 0.65  # least mean cosine of two phrases that are given one letter
PHRASES = (4, 8, 2)  # lengths in bars that `sections` considers


def with_levels(song: Song, levels: Mapping[str, Level]) -> Song:
    """The song with these levels beside its own; a level of the same name is replaced."""
    return replace(song, levels={**song.levels, **levels})


def metre(song: Song) -> dict[str, Level]:
    """The levels "bar" (number) and "beat" (ticks since the bar's start) from the song's meters."""
    bar, beat = bars_and_beats(song.ticks, song.ticks_per_quarter, song.meters)
    return {"bar": Level(bar, source="meters of the song"), "beat": Level(beat, source="meters of the song")}


def bars(song: Song) -> np.ndarray:
    """(ticks,) int64, the bar number of every tick, from 0 on without gaps."""
    level = song.levels.get("bar") or metre(song)["bar"]
    return np.cumsum(np.diff(level.values, prepend=level.values[:1]) != 0)


def per_bar(values: Sequence[int] | np.ndarray, song: Song, **fields: object) -> Level:
    """A level with one label a bar. ValueError where there are not as many labels as bars."""
    bar = bars(song)
    count = int(bar[-1]) + 1 if len(bar) else 0
    if len(values) != count:
        raise ValueError(f"{song.name} has {count} bars, got {len(values)} labels: give one a bar")
    return Level(np.asarray(values, dtype=np.int64)[bar], **fields)  # type: ignore[arg-type]


# --- a form that is given ---------------------------------------------------------------------------------------------


def form_bars(text: str, count: int, where: str = "the form") -> np.ndarray:
    """(count,) int64, the section of every bar, from "i4A4B8o3" or, divided evenly, "AABA"; letters as in `SECTIONS`.

    Bars after the end of a form with lengths are x. ValueError where the form is longer than ``count`` bars or is not
    written so.
    """
    parts = re.findall(r"([A-Za-z])(\d*)", text)
    if not parts or "".join(letter + length for letter, length in parts) != text.strip():
        raise ValueError(f"{where} {text!r} is not written as AABA or, with lengths in bars, as i4A4B8o3")
    lengths = [int(length) if length else 0 for _, length in parts]
    labels = [SECTIONS.index(letter) for letter, _ in parts]
    if not any(length for _, length in parts):
        if len(parts) > count:
            raise ValueError(f"{where} {text!r} has {len(parts)} sections, the piece only {count} bars: leave some out")
        return np.array([labels[bar * len(parts) // count] for bar in range(count)], dtype=np.int64)
    if 0 in lengths:
        letter = parts[lengths.index(0)][0]
        raise ValueError(f"{where} {text!r}: section {letter} has no length; give all sections a length, or none")
    if sum(lengths) > count:
        raise ValueError(f"{where} {text!r} is {sum(lengths)} bars long, the piece only {count}: shorten it")
    found = np.full(count, UNNAMED, dtype=np.int64)
    found[: sum(lengths)] = np.repeat(labels, lengths)
    return found


def form(text: str, song: Song, where: str = "the form") -> Level:
    """The level "section" from a form; see `form_bars`."""
    bar = bars(song)
    labels = form_bars(text, int(bar[-1]) + 1 if len(bar) else 0, where)
    return Level(labels[bar], SECTIONS, "form given by hand")


# --- a chord chart that is given --------------------------------------------------------------------------------------


def chart(given: str | Path, song: Song, where: str = "the chord chart") -> Level:
    """The level "chord" from a chart (see `chords.chart`) as text, or in a file where a path is given.

    A chart shorter than the song begins again. ValueError where it is longer, or a bar has more chords than ticks.
    """
    if isinstance(given, Path):
        given, where = given.read_text(encoding="utf-8"), str(given)
    cells = chords.chart(given, where)
    starts = [*bar_starts(bars(song)).tolist(), song.ticks]
    if len(cells) > len(starts) - 1:
        raise ValueError(f"{where} has {len(cells)} bars, {song.name} only {len(starts) - 1}: shorten it")
    values = np.zeros(song.ticks, dtype=np.int64)
    for index, (start, end) in enumerate(itertools.pairwise(starts)):
        cell = cells[index % len(cells)]
        if len(cell) > end - start:
            raise ValueError(f"{where}: bar {index + 1} has {len(cell)} chords in {end - start} ticks")
        values[start:end] = [cell[tick * len(cell) // (end - start)] for tick in range(end - start)]
    return Level(values, chords.NAMES, "chord chart given by hand")


# --- read off the notes -----------------------------------------------------------------------------------------------


def melody_track(song: Song) -> int:
    """The track that is called melody, soprano, voice or lead, else that of the highest mean pitch without drums."""
    lowered = [name.lower() for name in song.tracks]
    named = [i for word in MELODY_NAMES for i, name in enumerate(lowered) if word in name and i not in song.drums]
    if named:
        return named[0]
    pitched = [i for i in range(len(song.tracks)) if i not in song.drums and (song.notes[:, TRACK] == i).any()]
    if not pitched:
        raise ValueError(f"{song.name} has no track with a melody: all its notes are drums")
    return max(pitched, key=lambda i: float(song.notes[song.notes[:, TRACK] == i, PITCH].mean()))


def melody(song: Song, track: str | int | None = None, from_target: bool = False) -> Level:
    """The level "melody": the highest pitch that sounds in a track, 0 for a rest.

    track: a name or number; None for the one that `melody_track` finds.
    """
    if isinstance(track, str):
        if track not in song.tracks:
            raise ValueError(f"{song.name} has no track {track!r}: choose one of {', '.join(map(repr, song.tracks))}")
        track = song.tracks.index(track)
    track = melody_track(song) if track is None else track
    values = np.zeros(song.ticks, dtype=np.int64)
    for onset, length, pitch, *_ in song.notes[song.notes[:, TRACK] == track].tolist():
        part = values[onset : onset + length]
        np.maximum(part, pitch, out=part)
    return Level(values, source=f"highest pitch of the track {song.tracks[track]!r}", from_target=from_target)


def bar_chroma(song: Song) -> np.ndarray:
    """(bars, 48): how long each pitch class sounds in every quarter of every bar, drums left out."""
    bar = bars(song)
    starts = bar_starts(bar)
    lengths = np.diff([*starts, song.ticks])
    sounding = np.zeros((song.ticks + 1, 12))  # differences: what begins less what ends
    notes = song.notes[~np.isin(song.notes[:, TRACK], song.drums)]
    first, last = notes[:, ONSET].clip(0, song.ticks), (notes[:, ONSET] + notes[:, LENGTH]).clip(0, song.ticks)
    np.add.at(sounding, (first, notes[:, PITCH] % 12), 1)
    np.add.at(sounding, (last, notes[:, PITCH] % 12), -1)
    sounding = np.cumsum(sounding, axis=0)[:-1]
    part = (np.arange(song.ticks) - starts[bar]) * 4 // lengths[bar] if song.ticks else bar
    found = np.zeros((len(starts), 4, 12))
    np.add.at(found, (bar, part), sounding)
    return found.reshape(len(starts), 48)


def self_similarity(features: np.ndarray) -> np.ndarray:
    """(n, n) cosines of the rows about their mean; rows that lie on the mean are like each other and like no other."""
    rows = features - features.mean(axis=0)
    size = np.linalg.norm(rows, axis=1)
    flat = size <= 1e-9 * max(float(np.abs(features).max(initial=0)), 1e-9)
    rows = np.where(flat[:, None], 0, rows / np.where(flat, 1, size)[:, None])
    return rows @ rows.T + np.outer(flat, flat)


def sections(song: Song) -> Level:
    """The level "section", estimated from the notes by self-similarity; the same notes give the same letters.

    Bars (after a pick-up) are described by `bar_chroma` and compared by cosine about the mean, and grouped into phrases
    of 4, 8 or 2. Two phrases are alike where the mean cosine of their bars, one by one, is at least `ALIKE`. From the
    first phrase on, each takes the letter of the phrase most like it of those that stand for a letter, or the next
    where none is alike. Of the three lengths that one is taken which describes the piece in the fewest bars: all bars
    of the phrases that stand for letters, what the others differ from them, and one for the letter of each phrase.
    """
    features = bar_chroma(song)
    starts = [*bar_starts(bars(song)).tolist(), song.ticks]
    pick_up = int(len(starts) > 3 and starts[1] - starts[0] < starts[2] - starts[1])
    alike = self_similarity(features[pick_up:]) if len(features) else np.zeros((0, 0))
    found = {length: _letters(alike, length) for length in PHRASES}
    repeats = any(len(set(letters)) < len(letters) for letters, _ in found.values())
    best = min(PHRASES, key=lambda length: round(found[length][1], 9)) if repeats else PHRASES[0]
    letters = np.repeat(np.array(found[best][0], dtype=np.int64), best)[: len(alike)]
    letters = np.concatenate([letters[:1]] * pick_up + [letters])
    source = f"estimated by self-similarity of chroma, phrases of {best} bars"
    return per_bar(letters + SECTIONS.index("A"), song, names=SECTIONS, source=source, from_target=True)


def _letters(alike: np.ndarray, length: int) -> tuple[list[int], float]:
    """Number of the letter of every phrase, from 0 on and at most 26 of them, and how many bars describe the piece."""
    models: list[int] = []  # where the phrase that stands for a letter starts
    found: list[int] = []
    cost = 0.0
    for start in range(0, len(alike), length):
        size = min(length, len(alike) - start)
        scores = [float(np.diagonal(alike[m : m + size, start : start + size]).mean()) for m in models]
        if scores and (max(scores) >= ALIKE or len(models) == 26):
            found.append(int(np.argmax(scores)))
            cost += 1 + size * (1 - max(scores))
        else:
            found.append(len(models))
            models.append(start)
            cost += 1 + size
    return found, cost


def complete(song: Song) -> Song:
    """The song with "bar", "beat", "section" and "melody" where it lacks them: from the meter, or estimated."""
    levels = metre(song) | dict(song.levels)
    song = replace(song, levels=levels)
    if "section" not in levels:
        levels = levels | {"section": sections(song)}
    if "melody" not in levels and not all(i in song.drums for i in range(len(song.tracks))):
        levels = levels | {"melody": melody(song)}
    return replace(song, levels=levels)
