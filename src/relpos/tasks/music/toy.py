"""Invented songs whose structure is known, and so the least loss that anyone can reach on them.

A song is a row of bars, and a bar is one of ``patterns`` known ways to fill it: a chord, a melody of its tones, and the
chord below. So each song has a short form, ``tokens``, the pattern of every bar, beside the notes. What decides the
next bar depends on the kind:

"aaba"   a section is a run of patterns, drawn anew for each song, and comes back note for note as the form says.
"label"  every bar has a label drawn at random, and the label decides the pattern: through one table for all songs and
         seeds, or (``fixed=False``) through a table that each song draws for itself, no two labels alike. Neither order
         nor lag says anything: who does not see the label of the bar that is asked for is left with guessing.
"lag"    the bar repeats the one ``lag`` bars before, or with probability ``fresh`` is drawn at random; labels are drawn
         at random and say nothing.

`Toy.optimum` is the mean of the least loss in nats over all bars but the first of each song (the first is asked of
nobody who predicts a bar from those before it), and `Toy.blind` that of the best predictor which sees no labels and
otherwise knows everything; `optimal` and `without` hold them bar by bar. All are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from relpos.tasks.music import chords
from relpos.tasks.music.bars import bars_and_beats
from relpos.tasks.music.song import Level, Song
from relpos.tasks.music.structure import SECTIONS, form_bars

KINDS = ("aaba", "label", "lag")
TRACKS = ("melody", "accompaniment")
_FIRST = SECTIONS.index("A")
_QUARTERS = 4
MOST = 192  # patterns that are sure to differ


@dataclass(frozen=True)
class Toy:
    """songs; for each of them tokens (bars,), labels (bars,), optimal (bars,) and without (bars,), the last two nats.

    patterns: size of the vocabulary of tokens; letters: of labels; labels count from 0.
    """

    songs: list[Song]
    tokens: list[np.ndarray]
    labels: list[np.ndarray]
    optimal: list[np.ndarray]
    without: list[np.ndarray]
    patterns: int
    letters: int

    @property
    def optimum(self) -> float:
        """Mean least loss of a bar that is not the first, in nats, with the labels up to and of that bar seen."""
        return float(np.concatenate([each[1:] for each in self.optimal]).mean())

    @property
    def blind(self) -> float:
        """The same without the labels."""
        return float(np.concatenate([each[1:] for each in self.without]).mean())


def make(
    count: int = 8,
    seed: int = 0,
    kind: str = "aaba",
    form: str = "AABA",
    bars: int = 4,
    patterns: int = 8,
    letters: int = 4,
    lag: int = 4,
    fresh: float = 0.0,
    fixed: bool = True,
    ticks: int = 4,
) -> Toy:
    """``count`` songs; the same arguments give the same songs.

    form: letters of the sections, and bars the length of each ("aaba"); the other kinds take only their product, the
    number of bars, from them. patterns: ways to fill a bar; letters, fixed: of "label"; lag, fresh: of "lag".
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    if not form.isascii() or not form.isalpha():
        raise ValueError(f"form must be letters, one a section, got {form!r}")
    total = len(form) * bars
    if count < 1 or bars < 1 or total < 2 or ticks < 1:
        raise ValueError(f"at least 1 song of 2 bars, got {count} songs of {len(form)} sections of {bars} bars")
    if patterns > MOST:
        raise ValueError(f"at most {MOST} patterns differ, got {patterns}")
    if patterns < 2 or (kind != "aaba" and not 1 <= letters <= min(patterns, 26)):
        raise ValueError(f"patterns must be 2 or more and letters 1 to that, 26 at most, got {patterns} and {letters}")
    if kind == "lag" and not (1 <= lag < total and 0 <= fresh <= 1):
        raise ValueError(f"lag must be 1 to {total - 1} and fresh 0 to 1, got {lag} and {fresh}")
    draw = np.random.default_rng([seed, KINDS.index(kind)])
    table = np.random.default_rng([patterns, letters]).permutation(patterns)[:letters]  # the same for every seed
    rows = []
    for _ in range(count):
        if kind == "aaba":
            rows.append(_aaba(draw, form_bars(form, total), bars, patterns))
        elif kind == "label":
            own = table if fixed else draw.permutation(patterns)[:letters]
            rows.append(_label(draw, own, total, patterns, fixed))
        else:
            rows.append(_lag(draw, total, patterns, letters, lag, fresh))
    tokens, sections, optimal, without = (list(column) for column in zip(*rows, strict=True))
    names = [f"toy {kind} {index:0{len(str(count - 1))}d}" for index in range(count)]
    songs = [_song(*facts, ticks) for facts in zip(names, tokens, sections, strict=True)]
    known = np.unique(np.concatenate(sections)) if kind == "aaba" else np.arange(letters) + _FIRST
    labels = [np.searchsorted(known, each) for each in sections]
    return Toy(songs, tokens, labels, optimal, without, patterns, len(known))


Row = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _aaba(draw: np.random.Generator, sections: np.ndarray, bars: int, patterns: int) -> Row:
    """The form is known to everyone, with labels or without; only what a section holds at its first time is news."""
    names, first = np.unique(sections, return_index=True)
    names = sections[np.sort(first)]
    holds = {name: draw.integers(patterns, size=bars) for name in names}
    tokens = np.concatenate([holds[sections[start]] for start in range(0, len(sections), bars)])
    news = np.isin(np.arange(len(sections)) // bars, np.sort(first) // bars)
    loss = np.where(news, math.log(patterns), 0.0)
    return tokens, sections, loss, loss


def _label(draw: np.random.Generator, table: np.ndarray, total: int, patterns: int, fixed: bool) -> Row:
    letters = len(table)
    labels = draw.integers(letters, size=total)
    tokens = table[labels]
    if fixed:
        return tokens, labels + _FIRST, np.zeros(total), np.full(total, math.log(letters))
    optimal, without = np.zeros(total), np.full(total, math.log(letters))
    seen: set[int] = set()
    for bar, label in enumerate(labels.tolist()):
        if label not in seen:  # any pattern that has not come yet, all alike
            optimal[bar] = math.log(patterns - len(seen))
            without[bar] = optimal[bar] + math.log(letters / (letters - len(seen)))
            seen.add(label)
    return tokens, labels + _FIRST, optimal, without


def _lag(draw: np.random.Generator, total: int, patterns: int, letters: int, lag: int, fresh: float) -> Row:
    tokens = draw.integers(patterns, size=total)
    anew = draw.random(total) < fresh
    for bar in range(lag, total):
        if not anew[bar]:
            tokens[bar] = tokens[bar - lag]
    loss = np.full(total, math.log(patterns))
    repeats = tokens[lag:] == tokens[:-lag]
    chance = np.where(repeats, 1 - fresh + fresh / patterns, fresh / patterns)
    loss[lag:] = -np.log(chance)
    return tokens, draw.integers(letters, size=total) + _FIRST, loss, loss


# --- notes ------------------------------------------------------------------------------------------------------------

_DEGREES = ("C", "Am", "F", "G", "Dm", "Em", "C7", "G7")
_RHYTHMS = ((1, 1, 1, 1), (2, 1, 1), (1, 1, 2), (2, 2), (1, 2, 1), (4,), (3, 1), (1, 3))  # quarters


def pattern(number: int, ticks: int = 4) -> tuple[list[tuple[int, ...]], int]:
    """Notes (onset, length, pitch, track, velocity) of a bar of this pattern, and its chord; no two are alike."""
    degree, rest = number % len(_DEGREES), number // len(_DEGREES)
    rhythm, turn = (degree + rest) % len(_RHYTHMS), rest // len(_RHYTHMS)
    chord = chords.chord(_DEGREES[degree])
    tones = np.flatnonzero(chords.TABLE[chord]).tolist()
    notes: list[tuple[int, ...]] = []
    at = 0
    for index, quarters in enumerate(_RHYTHMS[rhythm]):
        pitch = 72 + tones[(index + turn + degree) % len(tones)]
        notes.append((at * ticks, quarters * ticks, pitch, 0, 90))
        at += quarters
    if rest:  # the bass tells apart what the melody might not
        notes.append((0, _QUARTERS * ticks, 24 + rest % 24, 1, 60))
    notes += [(0, _QUARTERS * ticks, 48 + tone, 1, 70) for tone in tones]
    return notes, chord


def _song(name: str, tokens: np.ndarray, sections: np.ndarray, ticks: int) -> Song:
    length = _QUARTERS * ticks
    total = len(tokens) * length
    chord, melody = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    notes: list[tuple[int, ...]] = []
    for bar, token in enumerate(tokens.tolist()):
        found, chord[bar * length : (bar + 1) * length] = pattern(token, ticks)
        notes += [(onset + bar * length, *rest) for onset, *rest in found]
    notes = sorted(notes, key=lambda note: (note[0], note[3], note[2]))
    for onset, span, pitch, track, _ in notes:
        if track == 0:
            melody[onset : onset + span] = pitch
    bars, beat = bars_and_beats(total, ticks, ((0, 4, 4),))
    levels = {
        "bar": Level(bars, source="made"),
        "beat": Level(beat, source="made"),
        "section": Level(np.repeat(sections, length), SECTIONS, "made: the label of the bar"),
        "chord": Level(chord, chords.NAMES, "made: the chart that the notes were made from"),
        "melody": Level(melody, source="made: the melody"),
    }
    array = np.array(notes, dtype=np.int64).reshape(-1, 5)
    return Song(name, total, ticks, TRACKS, array, levels, programs=(0, 0))
