"""The numbers of Pathfinder: what the Long Range Arena's builders of each size and difficulty set."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

LEVELS = {6: "curv_baseline", 9: "curv_contour_length_9", 14: "curv_contour_length_14"}
"""The difficulties: paddles in a target curve -> the released folder's name."""

ANTIALIAS = 2
"""Lines and discs are drawn this many times larger and then reduced."""
PADDLE_TRIES = 3
CURVE_TRIES = 5
FULL_WHITE = 255


@dataclass(frozen=True)
class Rules:
    """One size and difficulty. Lengths are in pixels; contrasts multiply the white of a paddle.

    size: side of the square image; padding: forbidden border; margins: the gap between paddles, drawn per image;
    paddle and thickness: of one straight piece; length: paddles in a target curve; distractor: paddles in another one;
    distractors: how many of those are tried; distance: between the first tails of the two target curves; marker: radius
    of the disc; continuity: how straight curves go; curve_contrast: of every paddle; paddle_contrast: of targets only.
    """

    size: int
    padding: int
    margins: tuple[int, ...]
    paddle: int
    thickness: float
    length: int
    distractor: int
    distractors: int
    distance: int
    marker: float
    continuity: float
    curve_contrast: float
    paddle_contrast: float

    def reach(self, margin: int) -> int:
        """Half a stamp's side: how far from its start a paddle and its mask can reach."""
        return self.paddle + ceil(self.thickness) + margin


def released(size: int = 32, length: int = 14) -> Rules:
    """The rules of one released folder. ValueError for another size than 32, 64, 128, 256 or length than 6, 9, 14.

    At 64 to 256 the builders divide the number of distractors by ``/``: whole numbers were meant (the loops break
    otherwise), as under the Python 2 that they were written for.
    """
    if length not in LEVELS:
        raise ValueError(f"length must be one of {sorted(LEVELS)} (paddles in a target curve), got {length!r}")
    short = length // 3
    sizes = {
        32: Rules(32, 1, (1,), 2, 0.5, length, short, 20 // short, 7, 1.5, 1.0, 2.0, 0.75),
        64: Rules(64, 1, (1,), 5, 1.0, length, short, 22 // short, 12, 2.5, 1.8, 0.8, 1.0),
        128: Rules(128, 1, (2, 3), 5, 1.5, length, short, 35 // short, 20, 3.0, 1.8, 0.9, 1.0),
        256: Rules(256, 22, (3,), 5, 2.0, length, short, 30 // short, 27, 5.0, 1.8, 1.0, 1.0),
    }
    if size not in sizes:
        raise ValueError(f"size must be one of {sorted(sizes)} (pixels a side), got {size!r}")
    return sizes[size]
