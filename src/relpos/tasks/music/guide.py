"""What a sampler may write next: the rules of the grammar, of the bars asked for and of the parts, and its leanings.

Rules forbid (-inf); leanings add to the logits. A part that plays one note at a time is never struck while it sounds; a
part that never rests is struck again at the tick at which it ends; pitches stay in the part's range, and a note in
the piece. A lead that is given is written as it is. Chords make their tones likelier, and all the more on the beat;
a repetition makes likelier what was written in the bar that it repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from relpos.tasks.music import tokens as vocabulary
from relpos.tasks.music.arrange import Part
from relpos.tasks.music.events import length_tokens
from relpos.tasks.music.grammar import Bar, State
from relpos.tasks.music.tokens import (
    BAR,
    CUT,
    DRUM,
    END,
    LENGTH,
    LENGTHS,
    LONG,
    OTHERS,
    PITCH,
    PITCHES,
    POSITION,
    POSITIONS,
    TRACK,
    TRACKS,
    VOCABULARY,
)

LEAD = 0


@dataclass(frozen=True)
class Leanings:
    """Nats that are added to the logit of a token.

    foreign_on, foreign_off   a pitch that the chord does not have, struck on a beat or between beats
    root                      the chord's bass in the lowest part, on a beat
    crossing                  a voice above its upper or below its lower neighbour
    parallel                  a fifth or octave between two voices that both move to another one
    unused                    a pitch class that the prompt's last bars do not have, where no chord is given
    clash                     a semitone, in any octave, between two voices that are struck together on a beat
    repeat                    what stood at this place in the bar that is repeated
    """

    foreign_on: float = -6.0
    foreign_off: float = -2.0
    root: float = 2.0
    crossing: float = -4.0
    parallel: float = -3.0
    unused: float = -1.0
    clash: float = -2.0
    repeat: float = 4.0


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    meters   (numerator, denominator, ticks) of each bar of the whole piece; those that the prompt has stay as they are
    parts    the parts, by track number
    given    notes of the lead, (count, 5), or None where the lead is to be invented as well
    chords   (ticks, 13) bool: which of the 12 pitch classes belong to the chord of each tick, last whether there is one
    basses   (ticks,) int64: pitch class of the chord's bass, -1 for none
    repeats  bar that each bar repeats, by number
    unused   (12,) bool: pitch classes that are not at home in the piece, or None
    """

    meters: Sequence[tuple[int, int, int]]
    parts: Sequence[Part]
    given: np.ndarray | None = None
    chords: np.ndarray | None = None
    basses: np.ndarray | None = None
    repeats: Mapping[int, int] = field(default_factory=dict)
    leanings: Leanings = Leanings()
    unused: np.ndarray | None = None

    @property
    def ticks(self) -> int:
        return sum(ticks for _, _, ticks in self.meters)


class Guide:
    """Follows a `State` that writes the plan: `forced` is the one token that must come, else `weights` what to add."""

    def __init__(self, plan: Plan, state: State) -> None:
        self.plan, self.state = plan, state
        self.busy = [0] * len(plan.parts)
        self.held: list[dict[int, int]] = [{} for _ in plan.parts]  # pitch: end, of the notes that last longest
        self.moves: list[tuple[int, int]] = [(-1, -1)] * len(plan.parts)  # last pitch and the one before, single parts
        self._heard = 0
        self._queue: list[int] = []
        self._bars: dict[int, np.ndarray] = {}
        self._seams = self._found_seams()
        self.listen()
        if state.bars:
            self._queue = [self._next_bar()]  # a prompt is whole bars: nothing more is written into its last one

    def listen(self) -> None:
        """Takes note of what the state has read; to be called after each token."""
        for onset, length, pitch, part, _ in self.state.notes[self._heard :]:
            self.busy[part] = max(self.busy[part], onset + length)
            self.held[part][pitch] = onset + length
            self.moves[part] = (pitch, self.moves[part][0])
        self._heard = len(self.state.notes)
        if self.state.last == "BAR" and not self._queue:
            self._queue = self._opening()

    def forced(self) -> int | None:
        """The token that must come next, None where there is a choice; END when the plan is done."""
        state = self.state
        if self._queue:
            return self._queue.pop(0)
        if state.last == "BEGIN" or (state.others and not self._choices().any()):
            return self._next_bar()
        return None

    def _next_bar(self) -> int:
        """The token that opens the next bar of the plan, or ends it."""
        done = len(self.state.bars)
        return END if done == len(self.plan.meters) else vocabulary.bar(*self.plan.meters[done][:2])

    def _found_seams(self) -> list[int]:
        """Ticks at which a repetition begins: notes end there, so that it can begin as its model did."""
        starts = np.cumsum([0, *(ticks for _, _, ticks in self.plan.meters)]).tolist()
        return [
            starts[b] for b, source in sorted(self.plan.repeats.items()) if self.plan.repeats.get(b - 1) != source - 1
        ]

    def _opening(self) -> list[int]:
        """What must follow BAR: CUT, and a given lead's notes of the bar with OTHERS after them."""
        bar = self.state.bars[-1]
        ticks = self.plan.meters[len(self.state.bars) - 1][2]
        row = [CUT + ticks - 1] if ticks != bar.whole else []
        if self.plan.given is None:
            return row
        offset = bar.whole - ticks if len(self.state.bars) == 1 else 0
        notes = self.plan.given
        onset = -1
        for begin, length, pitch, *_ in notes[(notes[:, 0] >= bar.start) & (notes[:, 0] < bar.start + ticks)].tolist():
            if begin != onset:
                row += [POSITION + begin - bar.start + offset, TRACK + LEAD]
                onset = begin
            row += [PITCH + pitch, *length_tokens(length)]
        return [*row, OTHERS]

    # -- rules

    def _group(self) -> list[int]:
        return [LEAD] if not self.state.others else list(range(1, len(self.plan.parts)))

    def _free(self, part: int, tick: int) -> bool:
        return not self.plan.parts[part].single or self.busy[part] <= tick

    def _due(self, bar: Bar) -> dict[int, int]:
        """Parts of the group that may not rest, and the tick at which each has to be struck, where in this bar."""
        due = {p: max(self.busy[p], bar.start) for p in self._group() if self.plan.parts[p].seamless}
        return {part: tick for part, tick in due.items() if tick < bar.stop}

    def _choices(self) -> np.ndarray:
        """(vocabulary,) bool: what the rules allow; without closing the group or the bar where it is not yet full."""
        state, mask = self.state, self.state.allowed()
        mask[END] = mask[BAR:CUT] = mask[CUT:POSITION] = mask[DRUM:LENGTH] = False
        if not state.bars:
            return mask
        bar = state.bars[-1]
        if state.last in ("PITCH", "LONG"):
            self._lengths(mask)
            return mask
        if state.last == "TRACK":
            self._range(mask)
            return mask
        due = self._due(bar)
        begun = state.position >= 0
        now = {part for part, tick in due.items() if begun and tick <= state.tick and part > state.track}
        if begun:
            here = [p for p in self._group() if self._free(p, state.tick) and p > state.track]
            allowed = [p for p in here if not now or p <= min(now)]
            tracks = np.isin(np.arange(TRACKS), allowed)
            mask[TRACK : TRACK + TRACKS] &= tracks
        if state.last == "POSITION":
            return mask
        if state.last == "LENGTH":
            self._more(mask)
        if now:
            mask[POSITION : POSITION + POSITIONS] = mask[OTHERS] = False
            return mask
        self._positions(mask, bar, due)
        if due:
            mask[OTHERS] = False
        return mask

    def _positions(self, mask: np.ndarray, bar: Bar, due: Mapping[int, int]) -> None:
        last = min(due.values(), default=bar.stop)
        free = min((0 if not self.plan.parts[p].single else self.busy[p] for p in self._group()), default=bar.stop)
        ticks = np.arange(POSITIONS) - bar.offset + bar.start
        mask[POSITION : POSITION + POSITIONS] &= (ticks <= last) & (ticks >= free)

    def _more(self, mask: np.ndarray) -> None:
        """Further notes of a chord."""
        state = self.state
        part = self.plan.parts[state.track]
        struck = sum(1 for note in state.notes[-part.voices :] if note[0] == state.tick and note[3] == state.track)
        if part.single or struck >= part.voices:
            mask[PITCH : PITCH + PITCHES] = False
        else:
            self._range(mask)

    def _range(self, mask: np.ndarray) -> None:
        part, state = self.plan.parts[self.state.track], self.state
        pitches = np.arange(PITCHES)
        fits = (pitches >= part.low) & (pitches <= part.high)
        sounding = [p for p, end in self.held[state.track].items() if end > state.tick]
        fits[sounding] = False
        if state.last == "TRACK" and not (fits & mask[PITCH : PITCH + PITCHES]).any():
            fits[:] = True  # everything sounds already: struck again rather than no way out
        mask[PITCH : PITCH + PITCHES] &= fits

    def _lengths(self, mask: np.ndarray) -> None:
        state = self.state
        end = next((seam for seam in self._seams if seam > state.tick), self.plan.ticks)
        left = end - state.tick - state.longer
        mask[LENGTH : LENGTH + LENGTHS] &= np.arange(1, LENGTHS + 1) <= left
        mask[LONG] = left > LENGTHS

    # -- leanings

    def weights(self) -> np.ndarray:
        """(vocabulary,) float32 to add to the logits: -inf where the rules forbid."""
        allowed = self._choices()
        lean = np.zeros(VOCABULARY, dtype=np.float32)
        if self.state.last in ("TRACK", "LENGTH"):
            self._lean_on_pitches(lean)
        if self.state.last in ("PITCH", "LONG"):
            self._lean_on_lengths(lean)
        repeated = self.plan.repeats.get(len(self.state.bars) - 1)
        if repeated is not None:
            self._lean_on_repetition(lean, repeated, allowed)
        if self.state.others and self.state.last in ("LENGTH", "OTHERS"):
            allowed = self._with_closing(allowed)
        return np.where(allowed, lean, -np.inf).astype(np.float32)

    def _with_closing(self, allowed: np.ndarray) -> np.ndarray:
        if not self._due(self.state.bars[-1]):
            allowed[self._next_bar()] = True
        return allowed

    def _beat(self) -> int:
        """Ticks of a beat: of a denominator, or of three in 6/8, 9/8 and 12/8."""
        bar = self.state.bars[-1]
        one = max(bar.whole // bar.numerator, 1)
        return 3 * one if bar.denominator >= 8 and bar.numerator % 3 == 0 and bar.numerator > 3 else one

    def _lean_on_pitches(self, lean: np.ndarray) -> None:
        state, track = self.state, self.state.track
        here = lean[PITCH : PITCH + PITCHES]
        tick = state.tick
        on_beat = state.position % self._beat() == 0
        like, shift = self.plan.leanings, self.plan.parts[track].shift
        if self.plan.chords is not None and tick < len(self.plan.chords) and self.plan.chords[tick, 12]:
            classes = (np.arange(PITCHES) - shift) % 12
            here[~self.plan.chords[tick, classes]] += like.foreign_on if on_beat else like.foreign_off
            if self.plan.basses is not None and track == len(self.plan.parts) - 1 and on_beat:
                here[classes == self.plan.basses[tick]] += like.root
        elif self.plan.unused is not None:
            here[self.plan.unused[(np.arange(PITCHES) - shift) % 12]] += like.unused
        if not self.plan.parts[track].single:
            return
        for other, part in enumerate(self.plan.parts):
            if other == track or not part.single or self.busy[other] <= tick:
                continue
            pitch = self.moves[other][0]
            if other < track:
                here[pitch + 1 :] += like.crossing
            else:
                here[:pitch] += like.crossing
            if any(note[3] == other and note[0] == tick for note in state.notes[-16:]):
                if on_beat:
                    here[np.isin((np.arange(PITCHES) - pitch) % 12, (1, 11))] += like.clash
                self._avoid_parallels(here, track, other)

    def _avoid_parallels(self, here: np.ndarray, track: int, other: int) -> None:
        mine = self.moves[track][0]
        now, before = self.moves[other]
        if mine < 0 or before < 0 or now == before:
            return
        interval = abs(mine - before) % 12
        if interval in (0, 7):
            pitches = np.arange(PITCHES)
            here[(abs(pitches - now) % 12 == interval) & (pitches != mine)] += self.plan.leanings.parallel

    def _lean_on_lengths(self, lean: np.ndarray) -> None:
        """A note should not last into a chord that does not have it, unless it was foreign from the beginning."""
        chords, state = self.plan.chords, self.state
        if chords is None or state.tick >= len(chords):
            return
        pitch_class = (state.pitch - self.plan.parts[state.track].shift) % 12
        fits = chords[state.tick :, pitch_class] | ~chords[state.tick :, 12]
        if not fits[0]:
            return
        clash = np.flatnonzero(~fits)
        if len(clash):
            longest = int(clash[0]) - state.longer
            lean[LENGTH + max(longest, 0) : LENGTH + LENGTHS] += self.plan.leanings.foreign_on
            if longest <= LENGTHS:
                lean[LONG] += self.plan.leanings.foreign_on

    def _lean_on_repetition(self, lean: np.ndarray, source: int, allowed: np.ndarray) -> None:
        """Adds to the tokens with which the repeated bar goes on from this place."""
        state, strength = self.state, self.plan.leanings.repeat
        old, bar = state.bars[source], state.bars[-1]
        notes = self._of_bar(source)
        notes = notes[np.isin(notes[:, 3], self._group())]
        place = notes[:, 0] - old.start + old.offset
        if state.last == "TRACK":
            found = notes[(place == state.position) & (notes[:, 3] == state.track)]
            lean[PITCH + found[:, 2]] += strength
            return
        if state.last in ("PITCH", "LONG"):
            found = notes[(place == state.position) & (notes[:, 3] == state.track) & (notes[:, 2] == state.pitch)]
            for length in found[:, 1].tolist():
                lean[length_tokens(max(length - state.longer, 1))[0]] += strength
            return
        if state.position >= 0:
            here = notes[(place == state.position) & (notes[:, 3] >= max(state.track, 0))]
            chord = here[(here[:, 3] == state.track) & (here[:, 2] > state.pitch)]
            if state.last == "LENGTH" and len(chord):
                lean[PITCH + chord[0, 2]] += strength
                return
            tracks = here[here[:, 3] > state.track, 3]
            if len(tracks) and allowed[TRACK + tracks.min()]:
                lean[TRACK + tracks.min()] += strength
                return
        onwards = place[(place > state.position) & (place < bar.offset + bar.ticks)]
        onwards = onwards[allowed[POSITION + onwards]]
        if len(onwards):
            lean[POSITION + onwards.min()] += strength
        else:
            lean[OTHERS] += strength
            lean[BAR:CUT] += strength
            lean[END] += strength

    def _of_bar(self, index: int) -> np.ndarray:
        if index not in self._bars:
            bar = self.state.bars[index]
            notes = np.array(self.state.notes, dtype=np.int64).reshape(-1, 5)
            self._bars[index] = notes[(notes[:, 0] >= bar.start) & (notes[:, 0] < bar.stop)]
        return self._bars[index]
