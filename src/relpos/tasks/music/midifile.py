"""Songs from MIDI files of any make, and MIDI files from songs.

`read` puts a file onto a grid and `write` is its inverse: notes, tempos, meters, names of tracks and programs come back
as they were. `read_exact` and `append` are for whoever goes on with a user's file: what it held stays as it was to the
tick, velocity and controller, and the new notes follow.

What a grid cannot hold is settled so: onsets and ends go to the nearest tick, a note is at least one tick long, where a
pitch sounds twice in a track at once the earlier note ends where the later one begins, and of two that begin on one
tick the longer is kept. The sustain pedal is not looked at: a note is as long as its key is held. A track that
plays on several channels, or changes its program, becomes a track for each. Left out are tracks without notes, notes
that never end, system-exclusive messages, and the silence after the last note.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import symusic

from relpos.tasks.music.bars import bars_and_beats
from relpos.tasks.music.song import LENGTH, ONSET, PITCH, TRACK, VELOCITY, Level, Song

RESOLUTION = 480  # ticks a quarter of a file that is written, to the next multiple of the song's
FASTEST = 2000.0  # quarters a minute
SLOWEST = 6e7 / (2**24 - 1)  # three bytes of microseconds a quarter
_MOST_TICKS = 10_000_000
_MOST_RESOLUTION = 2**15 - 1


def read(path: str | Path, ticks_per_quarter: int = 4) -> Song:
    """The file as a song named by the file's stem, with the levels "bar" and "beat".

    A file without a tempo has 120 quarters a minute; one without a meter is taken to be in 4/4, and the source of the
    two levels says that this is assumed. ValueError where `read_exact` refuses the file.
    """
    return song_of(read_exact(path), Path(path).stem, ticks_per_quarter)


def read_exact(path: str | Path) -> Any:
    """The file as a ``symusic.Score`` in its own ticks.

    FileNotFoundError; ValueError, which names the file and the place, where it is no MIDI file, is cut off or damaged,
    is of format 2 or timed in frames of film, holds no notes, or has a tempo or a meter that means nothing.
    """
    return parse(Path(path).read_bytes(), path)


def parse(data: bytes, path: str | Path) -> Any:
    """The bytes of a file as `read_exact` gives them; ``path`` is what errors call it."""
    _check_chunks(data, path)
    try:
        score = symusic.Score.from_midi(data)
    except RuntimeError as error:
        raise ValueError(f"{path} is a damaged MIDI file: {error}") from error
    for tempo in score.tempos:
        if tempo.mspq < 1 or tempo.qpm > FASTEST:
            raise ValueError(
                f"{path}: the tempo at {_place(tempo.time, score)} is {tempo.mspq} microseconds a quarter; "
                f"more than {FASTEST:.0f} quarters a minute cannot be played"
            )
    for meter in score.time_signatures:
        if meter.numerator < 1 or meter.denominator < 1:
            raise ValueError(
                f"{path}: the time signature at {_place(meter.time, score)} is {meter.numerator}/{meter.denominator}"
            )
    if not score.note_num():
        raise ValueError(f"{path} has no notes (a note that is begun and never ended does not count)")
    return score


def song_of(score: Any, name: str, ticks_per_quarter: int = 4) -> Song:
    """A score that `read_exact` made as a song on a grid."""
    if ticks_per_quarter < 1:
        raise ValueError(f"ticks a quarter must be 1 or more, got {ticks_per_quarter}")
    old, new = score.ticks_per_quarter, ticks_per_quarter
    if score.end() * new > _MOST_TICKS * old:
        raise ValueError(f"{name} is {score.end() // old} quarters long, more than {_MOST_TICKS // new}: cut it")
    tracks = [track for track in score.tracks if len(track.notes)]
    notes = tidy(np.concatenate([_notes(track.notes, index, old, new) for index, track in enumerate(tracks)]))
    ticks = int((notes[:, ONSET] + notes[:, LENGTH]).max(initial=0))
    tempos = _on_grid(((t.time, _decimal(t.mspq)) for t in score.tempos), old, new, (120.0,))
    meters = _on_grid(((m.time, m.numerator, m.denominator) for m in score.time_signatures), old, new, (4, 4))
    source = "time signatures of the file" if len(score.time_signatures) else "4/4 assumed: the file names no meter"
    bar, beat = bars_and_beats(ticks, new, meters)
    return Song(
        name=name,
        ticks=ticks,
        ticks_per_quarter=new,
        tracks=tuple(track.name for track in tracks),
        notes=notes,
        levels={"bar": Level(bar, source=source), "beat": Level(beat, source=source)},
        tempos=tempos,
        meters=meters,
        programs=tuple(track.program for track in tracks),
        drums=tuple(index for index, track in enumerate(tracks) if track.is_drum),
    )


def tidy(notes: np.ndarray) -> np.ndarray:
    """Notes (count, 5) as a song wants them: in order, and no pitch twice at once in a track.

    The earlier of two notes ends where the later begins; of two that begin on one tick the longer is kept, and of
    two equally long ones the louder.
    """
    if not len(notes):
        return notes
    keys = (-notes[:, VELOCITY], -notes[:, LENGTH], notes[:, ONSET], notes[:, PITCH], notes[:, TRACK])
    notes = notes[np.lexsort(keys)]
    same = (np.diff(notes[:, TRACK]) == 0) & (np.diff(notes[:, PITCH]) == 0)
    notes = notes[np.concatenate([[True], ~same | (np.diff(notes[:, ONSET]) > 0)])]
    same = (np.diff(notes[:, TRACK]) == 0) & (np.diff(notes[:, PITCH]) == 0)
    gap = np.diff(notes[:, ONSET])
    notes[:-1, LENGTH] = np.where(same, np.minimum(notes[:-1, LENGTH], gap), notes[:-1, LENGTH])
    return notes[np.lexsort((notes[:, PITCH], notes[:, TRACK], notes[:, ONSET]))]


def write(path: str | Path, song: Song | Any) -> None:
    """Writes a song, or a ``symusic.Score``, as a MIDI file of format 1; the file is whole or not there.

    Folders are made. ValueError where the song has what a MIDI file cannot hold.
    """
    path = Path(path)
    data = (score_of(song) if isinstance(song, Song) else song).dumps_midi()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def score_of(song: Song) -> Any:
    """The song as a ``symusic.Score``; the inverse of `song_of` for what a file can hold."""
    step = -(-RESOLUTION // song.ticks_per_quarter)
    score = symusic.Score(song.ticks_per_quarter * step)
    if score.ticks_per_quarter > _MOST_RESOLUTION:
        raise ValueError(f"{song.name}: a MIDI file has at most {_MOST_RESOLUTION} ticks a quarter")
    for index, name in enumerate(song.tracks):
        program = song.programs[index] if song.programs else 0
        score.tracks.append(symusic.Track(name, program, index in song.drums))
        score.tracks[index].notes = _to_score(song.notes[song.notes[:, TRACK] == index], 0, step)
    for tempo in _tempos(song, 0, step):
        score.tempos.append(tempo)
    for meter in _meters(song, 0, step):
        score.time_signatures.append(meter)
    return score


def append(score: Any, song: Song, start_quarters: float) -> Any:
    """A copy of ``score`` with the song's notes added, tick 0 of the song at ``start_quarters``.

    Nothing of the score is changed: not its notes, controllers or events of any kind. Each track of the song goes on
    in the first track of that name, program and kind that is still free, else in a new one. A new note that would begin
    while the same pitch of its track still sounds begins when that has ended, or is left out where nothing remains
    of it. Tempo and meter of the song are added where they differ from those in force.
    """
    step = score.ticks_per_quarter / song.ticks_per_quarter
    start = round(start_quarters * score.ticks_per_quarter)
    if start < 0:
        raise ValueError(f"the song must start at 0 quarters or later, got {start_quarters}")
    result, taken = score.copy(), set()
    for index, name in enumerate(song.tracks):
        kind = (name, song.programs[index] if song.programs else 0, index in song.drums)
        free = (i for i, t in enumerate(result.tracks) if i not in taken and (t.name, t.program, t.is_drum) == kind)
        place = next(free, None)
        if place is None:
            result.tracks.append(symusic.Track(*kind))
            place = len(result.tracks) - 1
        taken.add(place)
        notes = _to_score(song.notes[song.notes[:, TRACK] == index], start, step)
        track = result.tracks[place]
        until: dict[int, int] = {}
        for note in track.notes:
            until[note.pitch] = max(note.end, until.get(note.pitch, 0))
        for note in notes:
            begin = max(note.time, until.get(note.pitch, 0))
            if begin < note.end:
                track.notes.append(symusic.Note(begin, note.end - begin, note.pitch, note.velocity))
    _go_on(result.tempos, _tempos(song, start, step), lambda t: t.mspq, 500_000)
    _go_on(result.time_signatures, _meters(song, start, step), lambda m: (m.numerator, m.denominator), (4, 4))
    return result


def _go_on(events: Any, new: Sequence[Any], value: Callable[[Any], Any], default: Any) -> None:
    """Adds the new events to the list of a score, save those that change nothing."""
    before = [event for event in events if event.time <= new[0].time]
    now = value(max(before, key=lambda event: event.time)) if before else default
    for event in new:
        if value(event) != now:
            events.append(event)
        now = value(event)


def _tempos(song: Song, start: int, step: float) -> list[Any]:
    for tick, tempo in song.tempos:
        if not SLOWEST <= tempo <= FASTEST:
            raise ValueError(
                f"{song.name}: a tempo of {tempo} at tick {tick}; a MIDI file holds {SLOWEST:.2f} to {FASTEST:.0f}"
            )
    return [symusic.Tempo(start + round(tick * step), mspq=round(6e7 / tempo)) for tick, tempo in song.tempos]


def _meters(song: Song, start: int, step: float) -> list[Any]:
    for tick, numerator, denominator in song.meters:
        if not 1 <= numerator <= 255 or denominator not in (1, 2, 4, 8, 16, 32, 64, 128):
            raise ValueError(f"{song.name}: a MIDI file cannot hold the meter {numerator}/{denominator} at tick {tick}")
    return [symusic.TimeSignature(start + round(tick * step), *meter) for tick, *meter in song.meters]


def _to_score(notes: np.ndarray, start: int, step: float) -> Any:
    begin = np.rint(notes[:, ONSET] * step).astype(np.int64)
    end = np.rint((notes[:, ONSET] + notes[:, LENGTH]) * step).astype(np.int64)
    length = np.maximum(end - begin, 1)
    columns = (notes[:, PITCH].astype(np.int8), notes[:, VELOCITY].astype(np.int8))
    return symusic.Note.from_numpy((begin + start).astype(np.int32), length.astype(np.int32), *columns)


def _notes(notes: Any, index: int, old: int, new: int) -> np.ndarray:
    columns = {key: value.astype(np.int64) for key, value in notes.numpy().items()}
    begin = _nearest(columns["time"], old, new)
    length = np.maximum(_nearest(columns["time"] + columns["duration"], old, new) - begin, 1)
    track = np.full(len(begin), index, dtype=np.int64)
    return np.stack([begin, length, columns["pitch"], track, columns["velocity"].clip(1, 127)], axis=1)


def _nearest(time: Any, old: int, new: int) -> Any:
    return (2 * time * new + old) // (2 * old)


def _on_grid(events: Iterable[tuple[Any, ...]], old: int, new: int, default: tuple[Any, ...]) -> tuple[Any, ...]:
    """Events by tick, the last of those on one tick; where none stands at tick 0 the default does."""
    at = {0: default} | {_nearest(time, old, new): tuple(values) for time, *values in sorted(events, key=_time)}
    return tuple((tick, *at[tick]) for tick in sorted(at))


def _time(event: tuple[Any, ...]) -> int:
    return int(event[0])


def _decimal(microseconds: int) -> float:
    """Quarters a minute in the fewest decimals that are written as just these microseconds a quarter."""
    exact = 6e7 / microseconds
    return next((t for t in (round(exact, n) for n in range(9)) if t and round(6e7 / t) == microseconds), exact)


def _place(time: int, score: Any) -> str:
    return f"tick {time} (quarter {time / score.ticks_per_quarter:g})"


def _check_chunks(data: bytes, path: str | Path) -> None:
    """Header and lengths of the tracks: what the reader of the events hides or lets pass."""
    if len(data) < 14 or data[:4] != b"MThd":
        what = "is empty" if not data else "does not begin with the 14 bytes of a MIDI header"
        raise ValueError(f"{path} is not a MIDI file: it {what}")
    length, form, count, division = struct.unpack(">IHHH", data[4:14])
    if length < 6:
        raise ValueError(f"{path} is a damaged MIDI file: its header says that it is {length} bytes long, not 6")
    if form > 1:
        raise ValueError(f"{path} is a MIDI file of format {form}; formats 0 and 1 are read: save it as format 1")
    if division & 0x8000:
        raise ValueError(f"{path} is timed in frames of film (SMPTE) and not in quarter notes: save it with a tempo")
    if division == 0:
        raise ValueError(f"{path} has 0 ticks a quarter in its header: its notes have no place in time")
    place, found = 8 + length, 0
    while found < count:
        if place + 8 > len(data):
            raise ValueError(f"{path} is cut off at byte {len(data)}: {count} tracks are announced, {found} are there")
        size = int.from_bytes(data[place + 4 : place + 8], "big")
        if place + 8 + size > len(data):
            raise ValueError(
                f"{path} is cut off or damaged: track {found + 1} of {count} at byte {place} announces {size} bytes, "
                f"{len(data) - place - 8} are left"
            )
        found += data[place : place + 4] == b"MTrk"
        place += 8 + size
