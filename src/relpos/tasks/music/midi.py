"""Writes a grid of voices as a MIDI file and reads such a file back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import symusic

from relpos.tasks.music.piece import SILENT, TICKS_PER_QUARTER, VOICES

_RESOLUTION = 480
_TICK = _RESOLUTION // TICKS_PER_QUARTER
_CHOIR = 52


def notes(pitch: np.ndarray, onset: np.ndarray) -> list[tuple[int, int, int]]:
    """(start, end, pitch) in ticks of one voice, in order of time; pitch and onset are (ticks,)."""
    starts = np.flatnonzero(onset)
    silent = np.flatnonzero(pitch == SILENT)
    ends = [*starts[1:], len(pitch)] if len(starts) else []
    found = []
    for start, end in zip(starts, ends, strict=True):
        rest = silent[np.searchsorted(silent, start) :]
        stop = min(int(end), int(rest[0])) if len(rest) else int(end)
        found.append((int(start), stop, int(pitch[start])))
    return found


def write(
    path: Path,
    pitch: np.ndarray,
    onset: np.ndarray,
    tempo: float = 80,
    meter: tuple[int, int] = (4, 4),
    pickup: int = 0,
    program: int = _CHOIR,
    names: Sequence[str] = VOICES,
) -> None:
    """One track a voice; pitch and onset are (ticks, voices) of 16ths, tempo in quarters a minute.

    pickup: ticks before the first whole bar; a bar of that length then stands in front, so that bar lines fall right.
    """
    score = symusic.Score(_RESOLUTION)
    score.tempos.append(symusic.Tempo(0, tempo))
    if pickup:
        score.time_signatures.append(symusic.TimeSignature(0, pickup, 4 * TICKS_PER_QUARTER))
    score.time_signatures.append(symusic.TimeSignature(pickup * _TICK, *meter))
    for voice, name in enumerate(names):
        track = symusic.Track(name.capitalize(), program, False)
        for start, end, number in notes(pitch[:, voice], onset[:, voice]):
            track.notes.append(symusic.Note(start * _TICK, (end - start) * _TICK, number, 80))
        score.tracks.append(track)
    path.parent.mkdir(parents=True, exist_ok=True)
    score.dump_midi(str(path))


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pitch and onset grids (ticks, tracks) of a file whose tracks are single voices, to the nearest 16th.

    A rest after the last note of all is not in the file and so is lost. ValueError where the file has no notes.
    """
    score = symusic.Score(str(path))
    tracks = [[(n.start, n.end, n.pitch) for n in track.notes] for track in score.tracks]
    tick = score.ticks_per_quarter / TICKS_PER_QUARTER
    last = max((end for track in tracks for _, end, _ in track), default=0)
    if not last:
        raise ValueError(f"{path} has no notes")
    pitch = np.full((round(last / tick), len(tracks)), SILENT, dtype=np.int16)
    onset = np.zeros(pitch.shape, dtype=bool)
    for voice, track in enumerate(tracks):
        for start, end, number in sorted(track):
            first = min(round(start / tick), len(pitch) - 1)
            until = max(first + 1, round(end / tick))
            pitch[first:until, voice], onset[first:until, voice] = number, False
            onset[first, voice] = True
    return pitch, onset
