"""Songs as rows of events and back; see `tokens` for the vocabulary and `grammar` for its rules.

Encoding and decoding are exact on the grid: notes, tracks, bars of any meter, pick-ups and bars that are cut short
come back as they were. What a row does not hold, the names and programs of the tracks, the tempos and (by default) the
velocities, stays in the song.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from relpos.tasks.music import tokens as vocabulary
from relpos.tasks.music.grammar import Bar, State
from relpos.tasks.music.song import LENGTH as LENGTHS_OF
from relpos.tasks.music.song import ONSET, Level, Song
from relpos.tasks.music.song import PITCH as PITCH_OF
from relpos.tasks.music.song import TRACK as TRACK_OF
from relpos.tasks.music.tokens import (
    BAR,
    BEGIN,
    CUT,
    DRUM,
    END,
    LENGTH,
    LENGTHS,
    LONG,
    OTHERS,
    PITCH,
    POSITION,
    TRACK,
    TRACKS,
    VELOCITY,
)


def encode(song: Song, lead: int | None = None, velocity: bool = False) -> np.ndarray:
    """The song as tokens, (n,) int64, from BEGIN to END.

    lead      a track whose notes of each bar come before those of the others; None: all notes by time
    velocity  whether to write velocities, in steps of 4
    Of notes that agree in onset, pitch and track the longest is written. ValueError where the song has more than 16
    tracks, a meter or a bar that the vocabulary does not hold, or a note that begins beyond the song's end.
    """
    if len(song.tracks) > TRACKS:
        raise ValueError(f"{song.name} has {len(song.tracks)} tracks, tokens have {TRACKS}: leave out or join some")
    if lead is not None and not 0 <= lead < len(song.tracks):
        raise ValueError(f"the lead is one of {song.name}'s {len(song.tracks)} tracks, got {lead}")
    notes = _sorted(song)
    row = [BEGIN]
    bars = bars_of(song)
    edges = np.searchsorted(notes[:, ONSET], [bar.start for bar in bars] + [song.ticks])
    if edges[-1] != len(notes):
        raise ValueError(f"{song.name} has notes that begin beyond its last tick, {song.ticks - 1}")
    for bar, first, last in zip(bars, edges[:-1], edges[1:]):
        row.append(vocabulary.bar(bar.numerator, bar.denominator))
        if bar.ticks != bar.whole:
            row.append(CUT + bar.ticks - 1)
        within = notes[first:last]
        if lead is None:
            _write(row, within, bar, song, velocity)
            continue
        leads = within[:, TRACK_OF] == lead
        _write(row, within[leads], bar, song, velocity)
        row.append(OTHERS)
        _write(row, within[~leads], bar, song, velocity)
    return np.array([*row, END], dtype=np.int64)


def _sorted(song: Song) -> np.ndarray:
    """Notes by onset, track, pitch, each once: the longest."""
    notes = song.notes[np.lexsort((-song.notes[:, LENGTHS_OF], *song.notes[:, [PITCH_OF, TRACK_OF, ONSET]].T))]
    keys = notes[:, [ONSET, TRACK_OF, PITCH_OF]]
    first = np.concatenate([[True], (np.diff(keys, axis=0) != 0).any(1)]) if len(notes) else np.ones(0, dtype=bool)
    return notes[first]


def _write(row: list[int], notes: np.ndarray, bar: Bar, song: Song, velocity: bool) -> None:
    onset = track = -1
    for begin, length, pitch, now, loudness in notes.tolist():
        if begin != onset:
            row.append(POSITION + begin - bar.start + bar.offset)
            onset, track = begin, -1
        if now != track:
            row.append(TRACK + now)
            track = now
        row.append((DRUM if now in song.drums else PITCH) + pitch)
        row += length_tokens(length)
        if velocity:
            row.append(VELOCITY + loudness // 4)


def length_tokens(ticks: int) -> list[int]:
    """A length of 1 tick or more as (LONG ..) LENGTH."""
    longer, rest = divmod(ticks - 1, LENGTHS)
    return [LONG] * longer + [LENGTH + rest]


def bars_of(song: Song) -> list[Bar]:
    """The bars: where the level "bar" has them, else counted from the meters.

    A first bar that is short is a pick-up: it ends where a whole one would. A bar that is longer than its meter allows
    counts as several.
    """
    if not song.ticks:
        return []
    labels = song.levels.get("bar")
    if labels is not None:
        starts = np.flatnonzero(np.diff(labels.values, prepend=labels.values[0] - 1)).tolist()
    else:
        starts = _counted(song)
    bars: list[Bar] = []
    changes = [tick for tick, _, _ in song.meters]
    for start, stop in zip(starts, [*starts[1:], song.ticks]):
        _, numerator, denominator = song.meters[max(int(np.searchsorted(changes, start, side="right")) - 1, 0)]
        whole = vocabulary.whole(numerator, denominator, song.ticks_per_quarter)
        for begin in range(start, stop, whole):
            ticks = min(whole, stop - begin)
            bars.append(Bar(begin, ticks, numerator, denominator, whole, 0 if bars else whole - ticks))
    return bars


def _counted(song: Song) -> list[int]:
    starts: list[int] = []
    ends = [tick for tick, _, _ in song.meters[1:]] + [song.ticks]
    for (tick, numerator, denominator), end in zip(song.meters, ends):
        whole = vocabulary.whole(numerator, denominator, song.ticks_per_quarter)
        starts += range(tick, min(end, song.ticks), whole)
    return starts


def decode(
    row: Sequence[int] | np.ndarray,
    ticks_per_quarter: int = 4,
    lead: int | None = None,
    velocity: bool = False,
    like: Song | None = None,
) -> Song:
    """The song that a row of tokens writes down; arguments as it was encoded with.

    like: where name, tempos, programs and the names of tracks come from. ValueError for the first token that may
    not stand where it stands, with its index. The row may end after any whole note.
    """
    state = State(ticks_per_quarter, lead, velocity, like.drums if like is not None else None)
    for index, token in enumerate(np.asarray(row).tolist()):
        try:
            state.advance(token)
        except ValueError as error:
            raise ValueError(f"token {index}: {error}") from None
    if state.last in ("POSITION", "TRACK", "PITCH", "DRUM", "LONG"):
        raise ValueError(f"the row ends after {state.last}, in the middle of a note")
    return song_of(state, like)


def song_of(state: State, like: Song | None = None) -> Song:
    """The song that a state has read."""
    notes = np.array(sorted(state.notes, key=lambda n: (n[0], n[3], n[2])), dtype=np.int64).reshape(-1, 5)
    count = max([*(notes[:, TRACK_OF] + 1).tolist(), len(like.tracks) if like else 1])
    names = like.tracks if like else tuple(f"track {t + 1}" for t in range(count))
    ticks = state.bars[-1].stop if state.bars else 0
    bar = np.repeat(np.arange(len(state.bars)), [b.ticks for b in state.bars]).astype(np.int64)
    beat = np.concatenate([np.arange(b.ticks) + b.offset for b in state.bars]) if state.bars else bar
    levels = {"bar": Level(bar, source="tokens"), "beat": Level(beat.astype(np.int64), source="tokens")}
    return Song(
        name=like.name if like else "song",
        ticks=ticks,
        ticks_per_quarter=state.ticks_per_quarter,
        tracks=names,
        notes=notes,
        levels=levels,
        tempos=like.tempos if like else ((0, 120.0),),
        meters=_changes(state.bars),
        programs=like.programs if like else (0,) * count,
        drums=like.drums if like else tuple(sorted(t for t, kind in state.kinds.items() if kind == "DRUM")),
        group=like.group if like else "",
    )


def _changes(bars: Sequence[Bar]) -> tuple[tuple[int, int, int], ...]:
    changes: list[tuple[int, int, int]] = []
    for bar in bars:
        if not changes or changes[-1][1:] != (bar.numerator, bar.denominator):
            changes.append((bar.start, bar.numerator, bar.denominator))
    return tuple(changes) or ((0, 4, 4),)


def clock(
    row: Sequence[int] | np.ndarray, song: Song | None = None, ticks_per_quarter: int = 4
) -> dict[str, np.ndarray]:
    """Where in the music each token of an encoded row stands: named positions, each (n,) int64.

    "index" of the token, "time" in ticks, "bar", "beat" (ticks since the bar's beginning), "track" (-1 where none is
    meant), and the song's further levels (section, chord, ..) at that tick. BAR, CUT and OTHERS stand at the beginning
    of their bar. Nothing is checked: `decode` does that.
    """
    tokens = np.asarray(row, dtype=np.int64)
    index = np.arange(len(tokens))
    is_bar = (tokens >= BAR) & (tokens < CUT)
    is_cut = (tokens >= CUT) & (tokens < POSITION)
    is_position = (tokens >= POSITION) & (tokens < TRACK)
    bar = np.cumsum(is_bar) - 1
    whole = np.array([vocabulary.whole(*vocabulary.meter(t), ticks_per_quarter) for t in tokens[is_bar].tolist()], int)
    size = whole.copy()
    size[bar[is_cut]] = tokens[is_cut] - CUT + 1
    offset = np.zeros_like(size)
    if len(size):
        offset[0] = whole[0] - size[0]
    start = np.cumsum(size) - size
    known = bar.clip(0)
    if not len(size):
        size = offset = start = np.zeros(1, dtype=np.int64)
    # What a place is counted from: the last token that set one.
    sets = is_bar | is_position | (tokens == OTHERS)
    since = np.maximum.accumulate(np.where(sets, index, 0))
    place = np.where(is_position, tokens - POSITION, offset[known])[since]
    named = (tokens >= TRACK) & (tokens < PITCH)
    speaks = np.maximum.accumulate(np.where(sets | named, index, 0))
    track = np.where(named, tokens - TRACK, -1)[speaks]
    time = start[known] + place - offset[known]
    found = {"index": index, "time": time, "bar": known, "beat": place, "track": track}
    levels: Mapping[str, Level] = song.levels if song is not None and song.ticks else {}
    for name, level in levels.items():
        if name not in found:
            found[name] = level.values[time.clip(0, len(level.values) - 1)]
    return found
