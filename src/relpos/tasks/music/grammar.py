"""Which event may follow which: a finite automaton over the row of tokens, read and written by the same rules.

`State.advance` reads one token, `State.allowed` says which tokens would be read without an error. So decoding a row,
telling where in time each of its tokens lies, and keeping a sampler to music that can be written down are one thing.

    BEGIN  ( BAR [CUT]  notes  [OTHERS notes] )*  END
    notes = ( POSITION ( TRACK ( (PITCH | DRUM) LONG* LENGTH [VELOCITY] )+ )+ )*

Within a bar, positions rise; at a position, tracks rise; in a track, pitches rise: a note occurs once. In `lead` order
the lead's notes of a bar come first, then OTHERS, then the notes of the other tracks from the beginning of the bar on,
so that whoever writes the others has the whole bar of the lead before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relpos.tasks.music import tokens as vocabulary
from relpos.tasks.music.tokens import (
    BAR,
    BEGIN,
    CUT,
    DENOMINATORS,
    DRUM,
    END,
    LENGTH,
    LENGTHS,
    LONG,
    NUMERATORS,
    OTHERS,
    PITCH,
    PITCHES,
    POSITION,
    POSITIONS,
    TRACK,
    TRACKS,
    VELOCITIES,
    VELOCITY,
    VOCABULARY,
)

DEFAULT_VELOCITY = 80


@dataclass(frozen=True)
class Bar:
    """start: its first tick; ticks: its length, `whole` where it is not cut; offset: position of its first tick."""

    start: int
    ticks: int
    numerator: int
    denominator: int
    whole: int
    offset: int = 0

    @property
    def stop(self) -> int:
        return self.start + self.ticks


class State:
    """Where a row of tokens has come to.

    ticks_per_quarter   resolution of the grid
    lead                the track whose notes come first in each bar, or None for one order by time
    velocity            whether notes end in a VELOCITY
    drums               tracks that hold DRUM and no PITCH; None: a track is what its first note is
    """

    def __init__(
        self,
        ticks_per_quarter: int = 4,
        lead: int | None = None,
        velocity: bool = False,
        drums: tuple[int, ...] | None = None,
    ) -> None:
        self.ticks_per_quarter, self.lead, self.velocity = ticks_per_quarter, lead, velocity
        self.last = "start"  # family of the last token
        self.bars: list[Bar] = []
        self.notes: list[tuple[int, int, int, int, int]] = []  # onset, length, pitch, track, velocity
        self.kinds: dict[int, str] = {} if drums is None else {t: "PITCH" for t in range(TRACKS)}
        self.kinds |= {t: "DRUM" for t in drums or ()}
        self.others = False
        self.position = self.track = self.pitch = -1
        self.longer = 0

    @property
    def tick(self) -> int:
        """The tick that the last token speaks of: of the bar's beginning where it speaks of no position yet."""
        if not self.bars:
            return 0
        bar = self.bars[-1]
        return bar.start + max(self.position - bar.offset, 0)

    def advance(self, token: int) -> None:
        """Reads a token; ValueError, and no change, where it may not stand here."""
        if not self.allowed()[token]:
            before = "at the beginning" if self.last == "start" else f"after {self.last}"
            raise ValueError(f"{vocabulary.text(token)} may not stand {before} at tick {self.tick}")
        name, value = vocabulary.family(int(token))
        getattr(self, f"_read_{name.lower()}")(value)
        self.last = name

    def allowed(self) -> np.ndarray:
        """(vocabulary,) bool: the tokens that may come next."""
        mask = np.zeros(VOCABULARY, dtype=bool)
        last = self.last
        if last == "start":
            mask[BEGIN] = True
        if last in ("start", "END"):
            return mask
        if last == "BAR" and self.bars[-1].whole > 1:
            mask[CUT : CUT + self.bars[-1].whole - 1] = True
        if last == "POSITION":
            self._tracks(mask)
        elif last == "TRACK":
            self._pitches(mask)
        elif last in ("PITCH", "DRUM", "LONG"):
            mask[LONG] = True
            mask[LENGTH : LENGTH + LENGTHS] = True
        elif last == "LENGTH" and self.velocity:
            mask[VELOCITY : VELOCITY + VELOCITIES] = True
        else:
            if last in ("LENGTH", "VELOCITY"):
                self._pitches(mask)
                self._tracks(mask)
            self._onwards(mask)
        return mask

    def _tracks(self, mask: np.ndarray) -> None:
        rising = np.arange(TRACKS) > (-1 if self.last == "POSITION" else self.track)
        if self.lead is not None:
            rising &= (np.arange(TRACKS) == self.lead) != self.others
        mask[TRACK : TRACK + TRACKS] = rising

    def _pitches(self, mask: np.ndarray) -> None:
        rising = np.arange(PITCHES) > self.pitch
        kind = self.kinds.get(self.track)
        if kind != "DRUM":
            mask[PITCH : PITCH + PITCHES] = rising
        if kind != "PITCH":
            mask[DRUM : DRUM + PITCHES] = rising

    def _onwards(self, mask: np.ndarray) -> None:
        if self.bars:
            bar = self.bars[-1]
            mask[POSITION + max(self.position + 1, bar.offset) : POSITION + bar.offset + bar.ticks] = True
        if self.lead is not None and self.bars and not self.others:
            mask[OTHERS] = True
            return
        mask[END] = True
        mask[BAR : BAR + NUMERATORS * len(DENOMINATORS)] = _meters(self.ticks_per_quarter)

    def _read_begin(self, value: int) -> None:
        pass

    def _read_end(self, value: int) -> None:
        pass

    def _read_bar(self, value: int) -> None:
        numerator, denominator = vocabulary.meter(BAR + value)
        whole = vocabulary.whole(numerator, denominator, self.ticks_per_quarter)
        start = self.bars[-1].stop if self.bars else 0
        self.bars.append(Bar(start, whole, numerator, denominator, whole))
        self.position, self.others = -1, False

    def _read_cut(self, ticks: int) -> None:
        bar = self.bars[-1]
        offset = bar.whole - ticks if len(self.bars) == 1 else 0
        self.bars[-1] = Bar(bar.start, ticks, bar.numerator, bar.denominator, bar.whole, offset)

    def _read_others(self, value: int) -> None:
        self.position, self.others = -1, True

    def _read_position(self, value: int) -> None:
        self.position, self.track, self.pitch = value, -1, -1

    def _read_track(self, value: int) -> None:
        self.track, self.pitch = value, -1

    def _read_pitch(self, value: int) -> None:
        self.pitch, self.longer = value, 0
        self.kinds.setdefault(self.track, "PITCH")

    def _read_drum(self, value: int) -> None:
        self.pitch, self.longer = value, 0
        self.kinds.setdefault(self.track, "DRUM")

    def _read_long(self, value: int) -> None:
        self.longer += LENGTHS

    def _read_length(self, value: int) -> None:
        self.notes.append((self.tick, self.longer + value, self.pitch, self.track, DEFAULT_VELOCITY))

    def _read_velocity(self, value: int) -> None:
        self.notes[-1] = (*self.notes[-1][:4], min(4 * value + 2, 127))


_KNOWN: dict[int, np.ndarray] = {}


def _meters(ticks_per_quarter: int) -> np.ndarray:
    """Which meters fit the grid, in the order of their tokens."""
    if ticks_per_quarter not in _KNOWN:
        ticks = np.array([[n * 4 * ticks_per_quarter / d for d in DENOMINATORS] for n in range(1, NUMERATORS + 1)])
        _KNOWN[ticks_per_quarter] = ((ticks == ticks.round()) & (ticks >= 1) & (ticks <= POSITIONS)).reshape(-1)
    return _KNOWN[ticks_per_quarter]
