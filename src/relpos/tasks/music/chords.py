"""Chord symbols, a vocabulary of chords, and charts as musicians write them.

A chord is an integer: 0 is none ("N"), then twelve roots times the qualities of `QUALITIES`, roots from C upwards. The
bass of C/E is read and not kept: the vocabulary has no inversions. `TABLE` holds the pitch classes of every chord.
"""

from __future__ import annotations

import re

import numpy as np

QUALITIES = {
    "": (0, 4, 7),
    "m": (0, 3, 7),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "m7": (0, 3, 7, 10),
    "dim": (0, 3, 6),
    "aug": (0, 4, 8),
    "sus4": (0, 5, 7),
    "sus2": (0, 2, 7),
    "7sus4": (0, 5, 7, 10),
    "m7b5": (0, 3, 6, 10),
    "dim7": (0, 3, 6, 9),
    "6": (0, 4, 7, 9),
    "m6": (0, 3, 7, 9),
    "add9": (0, 2, 4, 7),
    "9": (0, 2, 4, 7, 10),
    "maj9": (0, 2, 4, 7, 11),
    "m9": (0, 2, 3, 7, 10),
    "mmaj7": (0, 3, 7, 11),
    "5": (0, 7),
}
_OTHER_SPELLINGS = {
    "maj": "",
    "M": "",
    "min": "m",
    "-": "m",
    "M7": "maj7",
    "min7": "m7",
    "-7": "m7",
    "sus": "sus4",
    "o": "dim",
    "°": "dim",
    "+": "aug",
    "hdim7": "m7b5",
    "ø": "m7b5",
    "ø7": "m7b5",
    "o7": "dim7",
    "°7": "dim7",
    "maj6": "6",
    "min6": "m6",
    "M9": "maj9",
    "min9": "m9",
    "minmaj7": "mmaj7",
    "mM7": "mmaj7",
    "mMaj7": "mmaj7",
}
ROOTS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
NONE = 0
NAMES = ("N", *(root + quality for root in ROOTS for quality in QUALITIES))
_NATURAL = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_NOTE = r"[A-G](?:#|b|♯|♭)?"
_SYMBOL = re.compile(rf"({_NOTE}):?(.*?)(?:/({_NOTE}))?$")


def _table() -> np.ndarray:
    rows = np.zeros((len(NAMES), 12), dtype=bool)
    for index in range(1, len(NAMES)):
        root, quality = divmod(index - 1, len(QUALITIES))
        rows[index, [(root + step) % 12 for step in tuple(QUALITIES.values())[quality]]] = True
    return rows


TABLE = _table()  # (chords, 12) bool, from C


def pitch_class(note: str) -> int:
    """0 to 11 of a note's name, C = 0."""
    if not re.fullmatch(_NOTE, note):
        raise ValueError(f"unknown note {note!r}: write a capital A to G, and # or b after it")
    return (_NATURAL[note[0]] + {"#": 1, "♯": 1, "b": -1, "♭": -1}.get(note[1:], 0)) % 12


def chord(symbol: str) -> int:
    """The integer of a symbol as C, F#m7, Bb, Gsus4, Cmaj7, Ddim, C/E, A:min or N; ValueError where it is none."""
    if symbol in ("N", "N.C.", "NC"):
        return NONE
    found = _SYMBOL.fullmatch(symbol)
    quality = _OTHER_SPELLINGS.get(found[2], found[2]) if found else None
    if found is None or quality not in QUALITIES:
        raise ValueError(
            f"unknown chord {symbol!r}: a root A to G with # or b, one of {', '.join(q for q in QUALITIES if q)} or "
            "nothing, and a bass after /; N is no chord"
        )
    return 1 + pitch_class(found[1]) * len(QUALITIES) + list(QUALITIES).index(quality)


def name(bass: int, tones: frozenset[int] | set[int]) -> str:
    """What chord has just these pitch classes, as a symbol; of several the one whose root is the bass.

    "C[0 1 2]" where the vocabulary has none.
    """
    for root in (bass, *(tone for tone in sorted(tones) if tone != bass)):
        steps = tuple(sorted((tone - root) % 12 for tone in tones))
        for quality, known in QUALITIES.items():
            if known == steps:
                return ROOTS[root] + quality + ("" if root == bass else f"/{ROOTS[bass]}")
    return f"{ROOTS[bass]}[{' '.join(map(str, sorted(tones)))}]"


def chart(text: str, where: str = "the chord chart") -> list[list[int]]:
    """The chords of each bar. ValueError with ``where``, line and column for an unknown symbol, or for no chords.

    ``|`` and the end of a line end a bar, several chords in a bar share it evenly, ``%`` is the bar before once more,
    and what follows a ``#`` that stands alone or begins a word is a comment. A chart of one line without ``|`` has a
    bar for every chord.
    """
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines()]
    each = "|" not in text and sum(bool(line.strip()) for line in lines) == 1
    bars: list[list[int]] = []
    for number, line in enumerate(lines, start=1):
        for cell in re.finditer(r"[^|\s]+" if each else r"[^|]+", line):
            bar: list[int] = []
            for word in re.finditer(r"\S+", cell[0]):
                if word[0] == "%" and bars:
                    bar += bars[-1]
                    continue
                try:
                    bar.append(chord(word[0]))
                except ValueError as error:
                    column = cell.start() + word.start() + 1
                    raise ValueError(f"{where}, line {number}, column {column}: {error}") from None
            if bar:
                bars.append(bar)
    if not bars:
        raise ValueError(f"{where} has no chords: write them as C | Am | F G | N")
    return bars
