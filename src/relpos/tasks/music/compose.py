"""A song goes on, or a melody gets parts: from a song and a trained network to new notes.

Both take a `Song` and give back a `Song` of new notes only, beginning at a tick of the old one, so that whoever keeps
a user's file can leave every note of it alone (`midifile.append`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from relpos.tasks.base import Progress
from relpos.tasks.music import chords as chords_of
from relpos.tasks.music import events, structure
from relpos.tasks.music.arrange import Part, View, folded, home, known_meter, octaves, view
from relpos.tasks.music.grammar import Bar, State
from relpos.tasks.music.guide import LEAD, Leanings, Plan
from relpos.tasks.music.roll import RANGES
from relpos.tasks.music.song import LENGTH, ONSET, PITCH, TRACK, VELOCITY, Level, Song
from relpos.tasks.music.tokens import BEGIN
from relpos.tasks.music.writing import write

TICKS_PER_QUARTER = 4
LOWER_VOICES = ("Alto", "Tenor", "Bass")
_SOPRANO = (62.0, 76.0)  # where the mean of a melody lies that the lower voices fit under
_DRUM_BARS = 4  # that go on in turn
_KEY_BARS = 8  # whose pitch classes are at home in what follows


@dataclass(frozen=True)
class Wishes:
    """What the caller may ask for.

    seed, temperature, top_p   of sampling; context: events that the network reads at once
    chords   a chart as text, or the path of one (see `chords.chart`): of the new bars of a continuation, of the
             melody's bars for an accompaniment, from the first bar after a pick-up on; begins again where it is shorter
    form     as AABA or i4A8B8 (see `structure.form_bars`), of all bars but a pick-up, old and new: a bar of a section
             repeats, with some freedom, the bar at its place in the first section of that letter. In an accompaniment
             it does so where the melody does
    """

    seed: int = 0
    temperature: float = 0.8
    top_p: float = 0.9
    context: int = 384
    chords: str | Path | None = None
    form: str | None = None
    leanings: Leanings = field(default_factory=Leanings)


@dataclass(frozen=True)
class Written:
    """song: the new notes, its tick 0 at tick ``start`` of the old song; state: all that the network wrote and read.

    before: ticks of silence in front of the old song that the state does not have.
    """

    song: Song
    start: int
    state: State
    before: int


def continuation(
    model: Any, song: Song, bars: int, wishes: Wishes | None = None, progress: Progress | None = None
) -> Written:
    """``bars`` new bars after the song's last one, in its tracks, tempo and meter.

    A last bar that is not full is completed with silence first. Drums go on with their last bars. ValueError where the
    song has no notes but drums, is not on a grid of 4 ticks a quarter, its meter has no token, or a wish does not fit.
    """
    if bars < 1:
        raise ValueError(f"bars to write are 1 or more, got {bars}")
    wishes = wishes or Wishes()
    song, lead_in = trimmed(_checked(song))
    seen = view(song)
    old = events.bars_of(seen.song)
    start = old[-1].stop
    last = old[-1]
    new = [(last.numerator, last.denominator, last.whole)] * bars
    meters = [(bar.numerator, bar.denominator, bar.ticks) for bar in old] + new
    fresh = [Bar(start + i * last.whole, last.whole, *new[0][:2], last.whole) for i in range(bars)]
    chords, roots = _harmony(wishes.chords, song.name, fresh, start)
    repeats = _repeats(wishes.form, [*old, *fresh], None)
    plan = Plan(meters, seen.parts, None, chords, roots, repeats, wishes.leanings, _unused(song, old))
    prompt = events.encode(seen.song, LEAD)[:-1]
    state = _write(model, plan, prompt, wishes, progress)
    notes = np.array([n for n in state.notes if n[0] >= start], dtype=np.int64).reshape(-1, 5)
    notes = home(seen, notes, song)
    notes[:, VELOCITY] = _velocities(seen, song)[notes[:, TRACK]]
    notes = np.concatenate([notes, _drums(song, old, bars)])
    notes[:, ONSET] -= start
    ticks = sum(t for _, _, t in new)
    _, *meter = [m for m in song.meters if m[0] <= max(start - 1, 0)][-1]
    written = replace(
        song,
        name=f"{song.name}, continued",
        ticks=ticks,
        notes=_in_order(notes),
        levels={},
        tempos=((0, [tempo for tick, tempo in song.tempos if tick <= start][-1]),),
        meters=((0, meter[0], meter[1]),),
    )
    return Written(written, start + lead_in, state, lead_in)


def accompaniment(
    model: Any, song: Song, lead: int | None = None, wishes: Wishes | None = None, progress: Progress | None = None
) -> Written:
    """Alto, tenor and bass under a melody: the song's track ``lead``, or the one that `structure.melody_track` finds.

    Where the melody is not in one voice its upper notes count. The song that comes back has three tracks of new notes
    and begins where the melody begins.
    """
    wishes = wishes or Wishes()
    song = _checked(song)
    lead = structure.melody_track(song) if lead is None else lead
    melody, lead_in = _melody(song, lead)
    given = melody.notes.copy()
    given[:, TRACK] = LEAD
    shift = octaves(float(given[:, PITCH].mean()), *_SOPRANO)
    given[:, PITCH] = folded(given[:, PITCH] + shift)
    bars = _known(events.bars_of(melody))
    velocity = max(int(np.median(given[:, VELOCITY])) - 8, 1)
    parts = [Part((lead,), 0, 127, shift)]
    parts += [
        Part((index,), low, high, single=True, seamless=True, velocity=velocity)
        for index, (low, high) in enumerate(RANGES[1:])
    ]
    counted = bars[_pick_up(bars) :]
    chords, roots = _harmony(wishes.chords, song.name, counted, counted[0].start if counted else bars[-1].stop)
    meters = [(b.numerator, b.denominator, b.ticks) for b in bars]
    repeats = _repeats(wishes.form, bars, given)
    plan = Plan(meters, tuple(parts), given, chords, roots, repeats, wishes.leanings)
    state = _write(model, plan, np.array([BEGIN]), wishes, progress)
    notes = np.array([n for n in state.notes if n[3] != LEAD], dtype=np.int64).reshape(-1, 5)
    notes[:, TRACK] -= 1
    notes[:, VELOCITY] = velocity
    program = song.programs[lead] if song.programs else 0
    written = replace(
        melody,
        name=f"{song.name}, accompanied",
        tracks=LOWER_VOICES,
        notes=_in_order(notes),
        levels={},
        programs=(program,) * len(LOWER_VOICES),
        drums=(),
    )
    return Written(written, lead_in, state, lead_in)


def _melody(song: Song, lead: int) -> tuple[Song, int]:
    """The track in one voice, from its first note to its last, and the ticks of silence before."""
    if not 0 <= lead < len(song.tracks):
        raise ValueError(f"the melody is one of the tracks 0 to {len(song.tracks) - 1} of {song.name}, got {lead}")
    own = song.notes[song.notes[:, TRACK] == lead]
    if not len(own):
        raise ValueError(f"the track {lead} of {song.name} has no notes")
    melody, before = trimmed(replace(song, notes=own))
    line = skyline(melody.notes)
    return _cut(replace(melody, notes=line), int((line[:, ONSET] + line[:, LENGTH]).max())), before


def skyline(notes: np.ndarray) -> np.ndarray:
    """One voice: the highest of the notes that begin together, each ending where the next begins."""
    notes = notes[np.lexsort((-notes[:, PITCH], notes[:, ONSET]))]
    kept: list[np.ndarray] = []
    for note in notes:
        if kept and kept[-1][ONSET] == note[ONSET]:
            continue
        inside = kept and note[ONSET] < kept[-1][ONSET] + kept[-1][LENGTH]
        if inside and note[PITCH] < kept[-1][PITCH]:
            continue
        if inside:
            kept[-1][LENGTH] = note[ONSET] - kept[-1][ONSET]
        kept.append(note.copy())
    return np.array(kept, dtype=np.int64)


def trimmed(song: Song) -> tuple[Song, int]:
    """The song from its first note on, with its last bar completed, and how many ticks were left out.

    A first bar whose beginning is silent becomes a pick-up, as it sounds.
    """
    bars = events.bars_of(song)
    first = int(song.notes[:, ONSET].min())
    stop = max(bars[-1].start + bars[-1].whole - bars[-1].offset, bars[-1].stop)
    bars = [*bars[:-1], replace(bars[-1], ticks=stop - bars[-1].start)]
    kept = [bar for bar in bars if bar.stop > first]
    notes = song.notes.copy()
    notes[:, ONSET] -= first
    labels = [np.full(bar.stop - max(bar.start, first), index) for index, bar in enumerate(kept)]
    bar_level = np.concatenate(labels).astype(np.int64)
    meters: dict[int, tuple[int, int]] = {}
    for bar in kept:
        meters[max(bar.start - first, 0)] = (bar.numerator, bar.denominator)
    changes = [(tick, *meter) for tick, meter in sorted(meters.items())]
    thinned = [m for i, m in enumerate(changes) if not i or m[1:] != changes[i - 1][1:]]
    before = [tempo for tick, tempo in song.tempos if tick <= first][-1]
    tempos = ((0, before), *((tick - first, tempo) for tick, tempo in song.tempos if tick > first))
    result = replace(
        song,
        ticks=len(bar_level),
        notes=notes,
        levels={"bar": Level(bar_level, source="bars of the song")},
        meters=tuple(thinned),
        tempos=tempos,
    )
    return result, first


def _cut(song: Song, ticks: int) -> Song:
    """The song up to a tick."""
    levels = {name: replace(level, values=level.values[:ticks]) for name, level in song.levels.items()}
    return replace(song, ticks=ticks, levels=levels, meters=tuple(m for m in song.meters if m[0] < ticks))


def _known(bars: list[Bar]) -> list[Bar]:
    meters = [known_meter(bar.numerator, bar.denominator, TICKS_PER_QUARTER) for bar in bars]
    return [replace(bar, numerator=n, denominator=d) for bar, (n, d) in zip(bars, meters)]


def _checked(song: Song) -> Song:
    if song.ticks_per_quarter != TICKS_PER_QUARTER:
        raise ValueError(f"{song.name} has {song.ticks_per_quarter} ticks a quarter; the network writes 4: read it so")
    if not len(song.notes):
        raise ValueError(f"{song.name} has no notes: there is nothing to go on with")
    return song


def _harmony(
    given: str | Path | None, name: str, bars: list[Bar], before: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Chords and roots of every tick (see `Plan`) from a chart of these bars; ``before`` ticks have none."""
    if given is None:
        return None, None
    labels = np.repeat(np.arange(len(bars)), [bar.ticks for bar in bars])
    frame = Song(name, len(labels), TICKS_PER_QUARTER, (), np.zeros((0, 5), np.int64), {"bar": Level(labels)})
    values = structure.chart(given, frame).values
    chosen = np.concatenate([np.zeros(before, dtype=np.int64), values])
    known = chosen != chords_of.NONE
    tones = np.concatenate([chords_of.TABLE[chosen], known[:, None]], 1)
    return tones, np.where(known, (chosen - 1) // len(chords_of.QUALITIES), -1)


def _repeats(form: str | None, bars: list[Bar], given: np.ndarray | None) -> Mapping[int, int]:
    """For each bar the first bar at its place in a section of its letter; with a melody, one of equal melody."""
    if form is None:
        return {}
    pick_up = _pick_up(bars)
    first: dict[tuple[Any, ...], int] = {}
    repeats = {}
    for index, place in enumerate(_places(form, len(bars) - pick_up), start=pick_up):
        key: tuple[Any, ...] = place
        if given is not None:
            bar = bars[index]
            notes = given[(given[:, ONSET] >= bar.start) & (given[:, ONSET] < bar.stop)]
            key = (*place, *((o - bar.start, length, pitch) for o, length, pitch, *_ in notes.tolist()))
        if place[0] >= 0 and first.setdefault(key, index) != index:
            repeats[index] = first[key]
    return repeats


def section_starts(form: str, bars: Sequence[Bar]) -> list[tuple[int, str]]:
    """(tick, letter) where each section of a form begins."""
    pick_up = _pick_up(bars)
    places = _places(form, len(bars) - pick_up)
    return [
        (bar.start, structure.SECTIONS[section])
        for bar, (section, number) in zip(bars[pick_up:], places)
        if section >= 0 and not number
    ]


def _pick_up(bars: Sequence[Bar]) -> int:
    """1 where the first bar is half missing or more, and so is not counted as one; else 0."""
    return int(len(bars) > 1 and 2 * bars[0].offset >= bars[0].whole)


def _places(form: str, count: int) -> list[tuple[int, int]]:
    """Section and number within it of each of ``count`` bars; section -1 beyond the form."""
    labels = structure.form_bars(form, count)
    parts = [(letter, int(length or 0)) for letter, length in re.findall(r"([A-Za-z])(\d*)", form)]
    ends = np.cumsum([length for _, length in parts])
    if not ends[-1]:
        ends = -(-np.arange(1, len(parts) + 1) * count // len(parts))
    starts = np.concatenate([[0], ends[:-1]])
    places = []
    for bar, label in enumerate(labels.tolist()):
        if bar >= ends[-1]:
            places.append((-1, 0))
        else:
            places.append((label, bar - int(starts[np.searchsorted(ends, bar, side="right")])))
    return places


def _write(model: Any, plan: Plan, prompt: np.ndarray, wishes: Wishes, progress: Progress | None) -> State:
    return write(
        model,
        plan,
        prompt,
        seed=wishes.seed,
        temperature=wishes.temperature,
        top_p=wishes.top_p,
        context=wishes.context,
        progress=progress,
    )


def _velocities(seen: View, song: Song) -> np.ndarray:
    velocity = np.full(len(song.tracks), 80, dtype=np.int64)
    for part in seen.parts:
        velocity[list(part.tracks)] = part.velocity
    return velocity


def _unused(song: Song, old: list[Bar]) -> np.ndarray:
    """Pitch classes that the last bars do not have, (12,) bool."""
    late = (song.notes[:, ONSET] >= old[-_KEY_BARS:][0].start) & ~np.isin(song.notes[:, TRACK], song.drums)
    return np.bincount(song.notes[late, PITCH] % 12, minlength=12) == 0


def _drums(song: Song, old: list[Bar], bars: int) -> np.ndarray:
    """The notes of drums in the new bars: the last four in turn, or as many as have the meter of the last."""
    last = old[-1]
    alike = 0
    for bar in reversed(old[-_DRUM_BARS:]):
        if (bar.ticks, bar.numerator, bar.denominator) != (last.ticks, last.numerator, last.denominator):
            break
        alike += 1
    period = next(p for p in (4, 2, 1) if p <= alike)
    struck = song.notes[np.isin(song.notes[:, TRACK], song.drums)]
    found = []
    for index in range(bars):
        source = old[len(old) - period + index % period]
        notes = struck[(struck[:, ONSET] >= source.start) & (struck[:, ONSET] < source.stop)].copy()
        notes[:, ONSET] += last.stop + index * last.whole - source.start
        found.append(notes)
    new = np.concatenate(found)
    new[:, LENGTH] = np.minimum(new[:, LENGTH], last.stop + bars * last.whole - new[:, ONSET])
    return new


def _in_order(notes: np.ndarray) -> np.ndarray:
    return notes[np.lexsort((notes[:, PITCH], notes[:, TRACK], notes[:, ONSET]))]
