"""The vocabulary of events: a piece in any number of tracks as one row of integers.

| family     | values            | says                                                                               |
|------------|-------------------|------------------------------------------------------------------------------------|
| `PAD`      |                   | nothing; fills the end of a row in a batch                                          |
| `BEGIN`    |                   | before the first bar                                                                |
| `END`      |                   | after the last bar                                                                  |
| `OTHERS`   |                   | the lead's notes of this bar are over, the other tracks' follow (`lead` order only) |
| `BAR`      | a meter           | a bar of that meter begins                                                          |
| `CUT`      | 1..95             | this bar has only so many ticks: a pick-up, the end, a bar before a new meter       |
| `POSITION` | 0..95             | ticks since the beginning of the bar; in a pick-up since where a whole bar began    |
| `TRACK`    | 0..15             | the notes up to the next POSITION or TRACK are of this track                        |
| `PITCH`    | 0..127            | a note of that pitch begins                                                         |
| `DRUM`     | 0..127            | a drum is struck: as PITCH, but no transposition moves it                           |
| `LONG`     |                   | 32 ticks more of length, before LENGTH, any number of times                         |
| `LENGTH`   | 1..32             | ticks of length                                                                     |
| `VELOCITY` | 0..31             | the fourth part of the velocity (optional)                                          |

A note is (TRACK) PITCH (LONG ..) LENGTH (VELOCITY). Lengths of any size are exact, so nothing is tied or clipped.
"""

from __future__ import annotations

import numpy as np

POSITIONS, TRACKS, PITCHES, LENGTHS, VELOCITIES = 96, 16, 128, 32, 32
NUMERATORS = 32
DENOMINATORS = (1, 2, 4, 8, 16, 32)

PAD, BEGIN, END, OTHERS, LONG = range(5)
BAR = 5  # first token of each family
CUT = BAR + NUMERATORS * len(DENOMINATORS)
POSITION = CUT + POSITIONS - 1
TRACK = POSITION + POSITIONS
PITCH = TRACK + TRACKS
DRUM = PITCH + PITCHES
LENGTH = DRUM + PITCHES
VELOCITY = LENGTH + LENGTHS
VOCABULARY = VELOCITY + VELOCITIES

_FAMILIES = (
    ("PAD", PAD),
    ("BEGIN", BEGIN),
    ("END", END),
    ("OTHERS", OTHERS),
    ("LONG", LONG),
    ("BAR", BAR),
    ("CUT", CUT),
    ("POSITION", POSITION),
    ("TRACK", TRACK),
    ("PITCH", PITCH),
    ("DRUM", DRUM),
    ("LENGTH", LENGTH),
    ("VELOCITY", VELOCITY),
)
STARTS = np.array([start for _, start in _FAMILIES])
_FIRST = {"CUT": 1, "LENGTH": 1}  # families that count from 1


def family(token: int) -> tuple[str, int]:
    """("PITCH", 60) for the token of middle C: family and value; of a BAR, the value is the index of its meter."""
    if not 0 <= token < VOCABULARY:
        raise ValueError(f"tokens are 0 to {VOCABULARY - 1}, got {token}")
    name, start = _FAMILIES[int(np.searchsorted(STARTS, token, side="right")) - 1]
    return name, token - start + _FIRST.get(name, 0)


def text(token: int) -> str:
    """How a token is written in messages: `PITCH 60`, `BAR 4/4`, `OTHERS`."""
    name, value = family(token)
    if name == "BAR":
        return "BAR {}/{}".format(*meter(token))
    return name if token < BAR else f"{name} {value}"


def bar(numerator: int, denominator: int) -> int:
    """The token of a bar; ValueError for a meter that the vocabulary does not have."""
    if not 1 <= numerator <= NUMERATORS or denominator not in DENOMINATORS:
        raise ValueError(
            f"the meter {numerator}/{denominator} has no token: numerators are 1 to {NUMERATORS}, denominators "
            f"{', '.join(map(str, DENOMINATORS))}"
        )
    return BAR + (numerator - 1) * len(DENOMINATORS) + DENOMINATORS.index(denominator)


def meter(token: int) -> tuple[int, int]:
    """Numerator and denominator of a BAR token."""
    numerator, denominator = divmod(token - BAR, len(DENOMINATORS))
    return numerator + 1, DENOMINATORS[denominator]


def whole(numerator: int, denominator: int, ticks_per_quarter: int) -> int:
    """Ticks of a whole bar; ValueError where the grid does not hold it or the vocabulary has too few positions."""
    ticks, rest = divmod(numerator * 4 * ticks_per_quarter, denominator)
    if rest or not 1 <= ticks <= POSITIONS:
        raise ValueError(
            f"a bar of {numerator}/{denominator} has {numerator * 4 * ticks_per_quarter / denominator:g} ticks at "
            f"{ticks_per_quarter} a quarter; tokens take whole ticks, 1 to {POSITIONS}: choose another grid"
        )
    return ticks


def transpose(tokens: np.ndarray, semitones: int) -> np.ndarray:
    """The tokens with every PITCH moved; drums stay. ValueError where a pitch would leave 0..127."""
    pitched = (tokens >= PITCH) & (tokens < DRUM)
    moved = np.where(pitched, tokens + semitones, tokens)
    if pitched.any() and not (moved[pitched].min() >= PITCH and moved[pitched].max() < DRUM):
        raise ValueError(f"{semitones} semitones move a pitch out of 0..{PITCHES - 1}: transpose by less")
    return moved
