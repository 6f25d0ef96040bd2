"""Piano-roll pictures of four voices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from relpos.tasks.music.midi import notes
from relpos.tasks.music.piece import TICKS_PER_QUARTER, VOICES
from relpos.tasks.music.roll import HIGHEST, LOWEST

COLOURS = ("#c0392b", "#e08e0b", "#1e8449", "#1f5fa8")
_HEIGHTS = (1.0, 0.9, 0.78, 0.62)  # lower voices are drawn later and thinner, so that a unison shows both


def piano_roll(
    path: Path, pitch: np.ndarray, onset: np.ndarray, bar_lines: np.ndarray, title: str, prompt: int = 0
) -> None:
    """Draws pitch and onset (ticks, 4) to ``path``; ``prompt`` ticks in front are shaded, bar_lines are ticks.

    The scales depend on the number of ticks only, so that pictures of one length can be compared.
    """
    figure = Figure(figsize=(min(16.0, max(6.0, len(pitch) / 10)), 5.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    if prompt:
        axes.axvspan(0, prompt / TICKS_PER_QUARTER, color="#dfe6ee", zorder=0, linewidth=0)
        axes.text(
            0.15, 0.985, "prompt", ha="left", va="top", color="#5b6b7c", fontsize=9,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    for voice, (colour, height) in enumerate(zip(COLOURS, _HEIGHTS, strict=True)):
        for start, end, number in notes(pitch[:, voice], onset[:, voice]):
            # A small gap at the end keeps repeated notes apart.
            left, width = start / TICKS_PER_QUARTER, (end - start) / TICKS_PER_QUARTER - 0.06
            axes.barh(number, width, left=left, height=height, color=colour, linewidth=0, zorder=3)
    for line in bar_lines:
        axes.axvline(line / TICKS_PER_QUARTER, color="#9aa5b1", linewidth=0.8, zorder=1)
    octaves = range(12 * (LOWEST // 12), HIGHEST + 1, 12)
    axes.set_yticks(list(octaves), [f"C{number // 12 - 1}" for number in octaves])
    axes.grid(axis="y", color="#e3e7eb", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.set(xlim=(0, len(pitch) / TICKS_PER_QUARTER), ylim=(LOWEST - 2, HIGHEST + 4))
    axes.set_xlabel("quarter notes (vertical lines: bars)")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=c, linewidth=5, label=v) for v, c in zip(VOICES, COLOURS, strict=True)]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize=9, frameon=False)
    axes.set_title(title, loc="left", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
