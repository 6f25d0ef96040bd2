"""A song as a picture: all its tracks as a piano-roll with its bars, and how alike its parts are."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from relpos.tasks.music import events
from relpos.tasks.music.song import LENGTH, ONSET, PITCH, TRACK, Song

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
_MOST_CELLS = 1024  # of a side of the self-similarity matrix


def self_similarity(song: Song, units: int = 2) -> tuple[np.ndarray, int]:
    """(n, n) cosine of what sounds in pitch classes, in units of 1/``units`` of a quarter; and the ticks of a unit.

    Units are longer where the song would need more than 1024 of them. Silence is like nothing, and 0.
    """
    ticks = max(song.ticks_per_quarter // units, 1)
    ticks *= -(-song.ticks // (ticks * _MOST_CELLS)) or 1
    count = -(-song.ticks // ticks)
    edges = np.zeros((count + 1, 12))
    for track in range(len(song.tracks)):
        if track in song.drums:
            continue
        for onset, length, pitch, *_ in song.notes[song.notes[:, TRACK] == track].tolist():
            first, last = onset / ticks, min((onset + length) / ticks, count)
            edges[int(first), pitch % 12] += 1
            edges[min(int(np.ceil(last)), count), pitch % 12] -= 1
    chroma = np.cumsum(edges, 0)[:count]
    norm = np.linalg.norm(chroma, axis=1, keepdims=True)
    unit = np.divide(chroma, norm, out=np.zeros_like(chroma), where=norm > 1e-9)
    return unit @ unit.T, ticks


def picture(
    song: Song, title: str = "", new_from: int | None = None, sections: Sequence[tuple[int, str]] = ()
) -> bytes:
    """PNG: the piano-roll over the self-similarity matrix.

    new_from: tick from which the music is new, shaded. sections: (tick at which it begins, its name) in order.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    bars = [bar.start for bar in events.bars_of(song)]
    width = float(np.clip(song.ticks / song.ticks_per_quarter / 5, 9, 40))
    figure = Figure(figsize=(width, 11), layout="constrained")
    top, below = figure.subplots(2, 1, height_ratios=(4, 6))
    for track in range(len(song.tracks)):
        notes = song.notes[song.notes[:, TRACK] == track]
        begin, end, pitch = notes[:, ONSET], notes[:, ONSET] + notes[:, LENGTH] - 0.15, notes[:, PITCH]
        corners = [(begin, pitch - 0.4), (end, pitch - 0.4), (end, pitch + 0.4), (begin, pitch + 0.4)]
        boxes = np.stack([np.stack(corner, -1) for corner in corners], 1)
        top.add_collection(PolyCollection(list(boxes), facecolors=_COLOURS[track % len(_COLOURS)], linewidths=0))
    for tick in bars:
        top.axvline(tick, color="0.85", linewidth=0.6, zorder=0)
    if new_from is not None:
        top.axvspan(new_from, song.ticks, color="#fff3d6", zorder=-1)
    top.set_xlim(0, max(song.ticks, 1))
    top.set_ylim(song.notes[:, PITCH].min() - 2, song.notes[:, PITCH].max() + 4)
    step = max(1, len(bars) // 24)
    top.set_xticks(bars[::step], [str(i + 1) for i in range(0, len(bars), step)])
    top.set_xlabel("bar")
    top.set_ylabel("MIDI pitch")
    top.set_title(title or song.name)
    handles = [Line2D([], [], color=_COLOURS[t % len(_COLOURS)], linewidth=4) for t in range(len(song.tracks))]
    names = [name or f"track {index + 1}" for index, name in enumerate(song.tracks)]
    top.legend(handles[:12], names[:12], loc="upper left", ncols=6, fontsize="small", frameon=False)
    matrix, _ = self_similarity(song)
    below.imshow(matrix, origin="lower", cmap="magma", extent=(0, song.ticks, 0, song.ticks), vmin=0, vmax=1)
    step = max(1, -(-len(bars) // 10))  # the square is much narrower than the roll
    below.set_xticks(bars[::step], [str(i + 1) for i in range(0, len(bars), step)])
    below.set_yticks(bars[::step], [str(i + 1) for i in range(0, len(bars), step)])
    below.set_xlabel("bar")
    below.set_title("likeness of what sounds (light: alike)")
    for tick, name in sections:
        for axis in (top, below):
            axis.axvline(tick, color="0.2", linewidth=1.2, linestyle="--")
        below.axhline(tick, color="0.8", linewidth=0.8, linestyle="--")
        top.text(tick, 1.0, f" {name}", transform=top.get_xaxis_transform(), va="top", fontweight="bold")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80)
    return data.getvalue()
