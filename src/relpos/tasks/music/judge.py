"""Whether what a network writes is music of the kind it was trained on: figures on prompts that it has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from relpos.tasks.base import Progress
from relpos.tasks.music import events, structure
from relpos.tasks.music.compose import Wishes, accompaniment, continuation
from relpos.tasks.music.composer import Composer
from relpos.tasks.music.metrics.copies import Library
from relpos.tasks.music.metrics.notes import scale_of, scale_share, share_in_range
from relpos.tasks.music.roll import RANGES
from relpos.tasks.music.song import LENGTH, ONSET, PITCH, TRACK, Level, Song


@dataclass(frozen=True)
class Figures:
    """One piece of writing beside the real continuation.

    density   notes written over notes of the real one
    scale, real_scale   shares of the notes in the diatonic scale of the prompt and the real continuation together
    in_range  least share, over the voices, of notes in the voice's range
    copied    bars of the longest passage that stands in a training piece, in any key; real_copied: of the real one
    kept      the prompt's notes are there as they were
    """

    name: str
    seed: int
    density: float
    scale: float
    real_scale: float
    in_range: float
    copied: float
    real_copied: float
    kept: bool


def prompts(
    task: Composer, songs: Sequence[Song], bars: int, more: int, count: int, split: str = "test"
) -> list[tuple[Song, Song]]:
    """(prompt of ``bars`` bars and the pick-up, whole song) of the first songs with ``more`` (or as many) to come."""
    found = []
    for index in task.split[split].tolist():
        song = songs[index]
        all_bars = events.bars_of(song)
        first = bars + (2 * all_bars[0].offset >= all_bars[0].whole)
        if len(all_bars) >= first + min(more, bars) and len(song.notes):
            found.append((_head(song, all_bars[first].start), song))
    return found[:count]


def _head(song: Song, ticks: int) -> Song:
    """The song up to a tick, notes that sound there cut off."""
    notes = song.notes[song.notes[:, ONSET] < ticks].copy()
    notes[:, LENGTH] = np.minimum(notes[:, LENGTH], ticks - notes[:, ONSET])
    levels = {name: Level(level.values[:ticks]) for name, level in song.levels.items()}
    meters = tuple(meter for meter in song.meters if meter[0] < ticks)
    return replace(song, ticks=ticks, notes=notes, levels=levels, meters=meters)


def judge(
    model: Any,
    task: Composer,
    songs: Sequence[Song],
    *,
    count: int = 20,
    seeds: Sequence[int] = (0, 1, 2),
    prompt_bars: int = 4,
    bars: int = 8,
    wishes: Wishes | None = None,
    accompany: bool = False,
    progress: Progress | None = None,
) -> list[Figures]:
    """Continues each prompt (or sets its whole melody anew) with each seed, and measures.

    songs: those that the task was made with, in their order. Of a real piece that is shorter than prompt and
    continuation, what there is counts, note for tick.
    """
    wishes = wishes or Wishes(context=task.size.context)
    ranges: tuple[tuple[int, int], ...]
    chosen, figures = prompts(task, songs, prompt_bars, bars, count), []
    if not chosen:
        raise ValueError(f"no song kept from training has {prompt_bars} bars and {bars} more: ask for fewer bars")
    library = Library([task.songs[i].notes for i in task.split["train"]], transposed=True)
    for prompt, song in chosen:
        for seed in seeds:
            asked = replace(wishes, seed=seed)
            if accompany:
                lead = structure.melody_track(song)
                written = accompaniment(model, song, lead, asked)
                notes, start, stop = written.song.notes.copy(), written.start, song.ticks
                real, ranges = song.notes[song.notes[:, TRACK] != lead], tuple(RANGES[1:])
            else:
                written = continuation(model, prompt, bars, asked)
                notes, start, stop = written.song.notes.copy(), written.start, written.start + written.song.ticks
                real, ranges = song.notes, _ranges(song)
            notes[:, ONSET] += start
            real = real[(real[:, ONSET] >= (0 if accompany else start)) & (real[:, ONSET] < stop)]
            kept = _kept(
                written.state.notes,
                replace(song, notes=song.notes[song.notes[:, TRACK] == lead]) if accompany else prompt,
            )
            figures.append(
                _measured(song, seed, notes, real, start, min(stop, song.ticks), stop, ranges, library, kept)
            )
            if progress is not None:
                progress(len(figures), len(chosen) * len(seeds), song.name)
    return figures


def _ranges(song: Song) -> tuple[tuple[int, int], ...]:
    """Of each track: of the four voices where there are four, else its own and a third below and above."""
    if len(song.tracks) == len(RANGES):
        return RANGES
    pitches = [song.notes[song.notes[:, TRACK] == track, PITCH] for track in range(len(song.tracks))]
    return tuple((int(own.min(initial=127)) - 4, int(own.max(initial=0)) + 4) for own in pitches)


def _kept(notes: Sequence[tuple[int, ...]], song: Song) -> bool:
    """Whether the state holds the song's own notes, each at its place, in some octave (see `arrange`)."""
    begin = int(song.notes[:, ONSET].min())
    expected = {
        (onset - begin, pitch % 12) for onset, _, pitch, track, _ in song.notes.tolist() if track not in song.drums
    }
    return expected <= {(onset, pitch % 12) for onset, _, pitch, *_ in notes}


def _measured(
    song: Song,
    seed: int,
    notes: np.ndarray,
    real: np.ndarray,
    start: int,
    real_stop: int,
    stop: int,
    ranges: Sequence[tuple[int, int]],
    library: Library,
    kept: bool,
) -> Figures:
    held = scale_of(song.notes)
    bar = events.bars_of(song)[-1].whole
    rate = len(notes) / max(stop - start, 1)
    real_rate = len(real) / max(real_stop - start, 1)
    shares = share_in_range(notes, ranges)
    return Figures(
        name=song.name,
        seed=seed,
        density=rate / real_rate if real_rate else float("nan"),
        scale=scale_share(notes, held),
        real_scale=scale_share(real, held),
        in_range=float(np.nanmin(shares)),
        copied=library.longest_copy(notes).bars(bar),
        real_copied=library.longest_copy(real).bars(bar),
        kept=kept,
    )


def table(figures: Sequence[Figures], losses: dict[str, float]) -> str:
    """The figures as a Markdown table: mean, least and greatest, and what is asked for."""
    rows = [
        ("notes against the real ones", [f.density for f in figures], "0.7 to 1.4"),
        ("pieces of which that lies between 0.7 and 1.4", [float(0.7 <= f.density <= 1.4) for f in figures], ""),
        ("notes in the piece's scale, per cent", [100 * f.scale for f in figures], "mean within 5 of the real"),
        ("the same of the real continuations", [100 * f.real_scale for f in figures], ""),
        ("difference of the two in a piece, either way", [100 * abs(f.scale - f.real_scale) for f in figures], ""),
        ("share in the voices' ranges", [f.in_range for f in figures], "1"),
        ("longest copy from the training pieces, bars", [f.copied for f in figures], "at most 2"),
        ("the same of the real continuations", [f.real_copied for f in figures], ""),
        ("prompt unchanged", [float(f.kept) for f in figures], "1"),
    ]
    lines = ["| figure | mean | least | greatest | asked |", "| --- | ---: | ---: | ---: | --- |"]
    for title, values, asked in rows:
        lines.append(f"| {title} | {np.mean(values):.2f} | {min(values):.2f} | {max(values):.2f} | {asked} |")
    lines += [f"| nats an event: {name} | {loss:.3f} | | | |" for name, loss in losses.items()]
    return "\n".join(lines) + "\n"
