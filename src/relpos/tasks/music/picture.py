"""Piano-roll pictures of four voices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from relpos.tasks.music.midi import notes
from relpos.tasks.music.piece import SILENT, TICKS_PER_QUARTER, VOICES

COLOURS = ("#c0392b", "#e08e0b", "#1e8449", "#1f5fa8")


def piano_roll(
    path: Path, pitch: np.ndarray, onset: np.ndarray, bar_lines: np.ndarray, title: str, prompt: int = 0
) -> None:
    """Draws pitch and onset (ticks, 4) to ``path``; ``prompt`` ticks in front are shaded, bar_lines are ticks."""
    figure = Figure(figsize=(min(16.0, max(6.0, len(pitch) / 10)), 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    if prompt:
        axes.axvspan(0, prompt / TICKS_PER_QUARTER, color="#dfe6ee", zorder=0, linewidth=0)
        axes.text(
            0.5 * prompt / TICKS_PER_QUARTER, 0.985, "prompt", ha="center", va="top", color="#5b6b7c", fontsize=9,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    for voice, colour in enumerate(COLOURS):
        for start, end, number in notes(pitch[:, voice], onset[:, voice]):
            # A small gap at the end keeps repeated notes apart.
            left, width = start / TICKS_PER_QUARTER, (end - start) / TICKS_PER_QUARTER - 0.06
            axes.barh(number, width, left=left, height=0.82, color=colour, linewidth=0, zorder=3)
    for line in bar_lines:
        axes.axvline(line / TICKS_PER_QUARTER, color="#9aa5b1", linewidth=0.8, zorder=1)
    sounding = pitch[pitch != SILENT]
    low, high = (int(sounding.min()), int(sounding.max())) if sounding.size else (48, 72)
    octaves = range(12 * (low // 12), high + 12, 12)
    axes.set_yticks(list(octaves), [f"C{number // 12 - 1}" for number in octaves])
    axes.grid(axis="y", color="#e3e7eb", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.set(xlim=(0, len(pitch) / TICKS_PER_QUARTER), ylim=(low - 2, high + 3))
    axes.set_xlabel("quarter notes (vertical lines: bars)")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=c, linewidth=5, label=v) for v, c in zip(VOICES, COLOURS, strict=True)]
    axes.legend(handles=handles, loc="lower right", ncols=4, fontsize=8, frameon=True, framealpha=0.9)
    axes.set_title(title, loc="left", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
