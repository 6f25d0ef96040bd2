"""Everything that the pictures of one size are made of, drawn once: paddles, their masks, discs and directions.

A direction t means (sin t, cos t) in (row, column). It is known by a number: 0..359 are the whole degrees -180..179 in
which a curve begins; 360 + k points from a pivot to candidate k, the pixels at distance paddle + margin round it.

Drawings are reduced as scipy.misc.imresize did in 2019: stretched to 0..255 and rounded to 8 bits, then Lanczos.
Newer stand-ins leave the stretch out, and lose the markers with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import atan2, ceil, cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from relpos.tasks.long_range.pathfinder.rules import ANTIALIAS, FULL_WHITE, Rules

DEGREES = 360
BLOCKED = 77
"""A pixel is free for a tail where its mask is at most 0.3, that is below 77 of 255."""

_AS_FLOAT = (np.arange(256) / 255).astype(np.float32).astype(np.float64)
OPEN = 1 - _AS_FLOAT
"""(256,) what a candidate's weight is multiplied by, for each 8-bit mask."""
CLASH = np.array([int(np.searchsorted(value + _AS_FLOAT, 1.8)) for value in _AS_FLOAT], dtype=np.uint16)
"""(256,) for each 8-bit mask, the least 8-bit mask of a new paddle with which the sum is 1.8 or more (256: none)."""


def flip(angle: float) -> float:
    """The opposite direction, in [-pi, pi)."""
    return angle + pi if angle < 0 else angle - pi


def stretch(picture: np.ndarray) -> np.ndarray:
    """From its own [min, max] to 0..255, rounded, as uint8. A flat picture gives 0."""
    picture = picture.astype(np.float64)
    low, high = picture.min(), picture.max()
    scale = 255.0 / (high - low) if high > low else 1.0
    return (((picture - low) * scale).clip(0, 255) + 0.5).astype(np.uint8)


def reduce(picture: np.ndarray, side: int) -> np.ndarray:
    """An 8-bit picture at (side, side), by Lanczos."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def disc(radius: int) -> np.ndarray:
    """(pixels, 2) offsets within the radius."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.argwhere(x * x + y * y <= radius * radius) - radius


def dilate(picture: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The largest value among the pixels at ``offsets``; there is nothing beyond the border."""
    reach = int(np.abs(offsets).max())
    height, width = picture.shape
    padded = np.pad(picture, reach)
    out = np.zeros_like(picture)
    for y, x in offsets + reach:
        np.maximum(out, padded[y : y + height, x : x + width], out=out)
    return out


def paddle(rules: Rules, margin: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """A paddle from the centre in a direction, and its mask, which is wider by the margin: uint8 (side, side)."""
    reach = rules.reach(margin)
    centre = reach * ANTIALIAS
    length = float(rules.paddle * ANTIALIAS)
    canvas = Image.new("L", (2 * centre + 1, 2 * centre + 1), 0)
    head = (ceil(centre + length * cos(angle)), ceil(centre + length * sin(angle)))
    ImageDraw.Draw(canvas).line([(centre, centre), head], fill=FULL_WHITE, width=round(rules.thickness * ANTIALIAS))
    line = np.asarray(canvas)
    side = 2 * reach + 1
    return reduce(line, side), reduce(dilate(line, disc(margin * ANTIALIAS)), side)


def marker(rules: Rules, y: int, x: int, size: int) -> np.ndarray:
    """A white disc in an empty picture, uint8 (size, size)."""
    rows, columns = np.ogrid[: size * ANTIALIAS, : size * ANTIALIAS]
    inside = (rows - y * ANTIALIAS) ** 2 + (columns - x * ANTIALIAS) ** 2 <= (rules.marker * ANTIALIAS) ** 2
    return reduce(np.where(inside, np.uint8(FULL_WHITE), np.uint8(0)), size)


@dataclass(frozen=True, eq=False)
class Tables:
    """What can be known of a size and margin before a single picture is drawn. Masks are 8-bit numbers.

    Windows are kept with a rim of zeros, as rows of one flat array, so that nothing has to be cut at the border.
    """

    rules: Rules
    margin: int
    rim: int
    side: int  # of a window with its rim
    sine: np.ndarray  # (directions,)
    cosine: np.ndarray
    back: np.ndarray  # (360, 2) sine and cosine of the opposite of a first direction
    compass: np.ndarray  # (360, 2) sine and cosine of 0..359 degrees, which round otherwise than those of -180..179
    lines: np.ndarray  # (directions + 1, pixels) uint8; the last is empty
    masks: np.ndarray
    window: np.ndarray  # (pixels,) flat offsets of a stamp's pixels from its start
    disc: np.ndarray  # flat offsets of the margin's disc
    offsets: np.ndarray  # (candidates, 2)
    candidates: np.ndarray  # (directions, most) which candidates lie ahead
    weights: np.ndarray  # (directions, most) their weights for continuity, 0 where there are fewer
    shifts: list[list[int]]  # for 360 directions, the paddle's pixels as shifts of a picture held as one integer,
    # none where no curve can begin: see _footprint
    inside: np.ndarray  # (side * side,) 1 in the window, 0 on the rim
    empty: np.ndarray  # (side * side,) the mask that every picture begins with
    seeds: list[np.ndarray]  # for 360 directions, (tails, 2): where the first curve may begin

    def flat(self, lane: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Where the pixels (y, x) of a lane's window lie in the flat array of all windows."""
        return lane * self.side**2 + (y + self.rim) * self.side + x + self.rim

    def move(self, points: np.ndarray, direction: np.ndarray, distance: float) -> np.ndarray:
        """(lanes, 2) points moved in their directions, rounded up."""
        step = np.stack([self.sine[direction], self.cosine[direction]], axis=1)
        return np.ceil(points + distance * step).astype(np.int64)

    def hold(self, blocked: np.ndarray) -> int:
        """Blocked pixels (size, size) bool as the bits of one integer, rows apart enough for any shift of a paddle."""
        gap = self.rules.paddle + self.margin
        bits = np.packbits(np.pad(blocked, ((0, 0), (0, gap))), bitorder="little")
        return int.from_bytes(bits.tobytes(), "little")

    def free(self, blocked: int, direction: int) -> np.ndarray:
        """(tails, 2) in reading order: where a paddle in a first direction meets no pixel of ``hold(...)``."""
        if not self.shifts[direction]:
            return np.zeros((0, 2), dtype=np.int64)
        met = 0
        for shift in self.shifts[direction]:
            met |= blocked >> shift if shift >= 0 else blocked << -shift
        size = self.rules.size
        width = size + self.rules.paddle + self.margin
        length = -(-size * width // 8)
        kept = (met & ((1 << size * width) - 1)).to_bytes(length, "little")
        bits = np.unpackbits(np.frombuffer(kept, dtype=np.uint8), bitorder="little")
        return np.argwhere(bits[: size * width].reshape(size, width)[:, :size] == 0)


def _circle(rules: Rules, margin: int) -> np.ndarray:
    """(candidates, 2) offsets of the pixels round a pivot, one for each pixel of arc, in reading order.

    The angles are multiples of 1/radius, so none but 0 hits a whole number: rounding cannot depend on the pivot.
    """
    radius = rules.paddle + margin
    angles = np.arange(0, 360, 360.0 / (2 * radius * pi)) * pi / 180
    points = np.array([(radius * sin(angle), radius * cos(angle)) for angle in angles])
    return np.unique(np.floor(points).astype(np.int64), axis=0)


def _ahead(rules: Rules, angles: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """For every direction the candidates of positive weight, in order, and their weights, with 0 where fewer."""
    turn = np.abs(np.array(angles[DEGREES:])[None, :] - np.array(angles)[:, None])
    turn = np.minimum(turn, 2 * pi - turn) * rules.continuity
    weight = np.where(turn < pi / 2, np.cos(turn) ** 2, 0.0)
    candidates = np.argsort(weight == 0, axis=1, kind="stable")[:, : int((weight > 0).sum(axis=1).max())]
    return candidates, np.take_along_axis(weight, candidates, 1)


def _footprint(rules: Rules, margin: int, mask: np.ndarray) -> list[int]:
    """The full pixels of a paddle's mask as shifts of an integer picture; none where the direction cannot begin.

    The released code starts this paddle one pixel down and right of the tail. Where it then lies wholly outside the
    window for some tail (a corner is the first), the dilation has nothing to take the largest value of, yields a number
    below zero, and the search for a tail gives up. With thin paddles, as at 32 pixels, most directions fall to this.
    """
    reach = rules.paddle + margin
    offsets = np.argwhere(mask == 255) - rules.reach(margin) + 1
    y, x = offsets[(abs(offsets) <= reach).all(axis=1)].T
    corners = [((down * y >= 0) & (right * x >= 0)).any() for down, right in product((1, -1), repeat=2)]
    return (y * (rules.size + reach) + x).tolist() if all(corners) else []


@lru_cache(maxsize=16)
def tables(rules: Rules, margin: int) -> Tables:
    """Draws every stamp and works out every table of a size and margin; about a tenth of a second at 32 pixels."""
    rim = 2 * (rules.paddle + 2 * margin) + 4
    side = rules.size + 2 * rim
    offsets = _circle(rules, margin)
    angles = [degree * pi / 180 for degree in range(-180, 180)] + [atan2(y, x) for y, x in offsets]
    stamps = [paddle(rules, margin, angle) for angle in angles[:DEGREES]]
    stamps += [paddle(rules, margin, flip(angle)) for angle in angles[DEGREES:]]  # later paddles are drawn backwards
    stamps.append((np.zeros_like(stamps[0][0]), np.zeros_like(stamps[0][0])))
    reach = rules.reach(margin)
    span = np.arange(-reach, reach + 1)
    dots = disc(margin)
    candidates, weights = _ahead(rules, angles)
    border = np.full((rules.size, rules.size), 255, dtype=np.uint8)
    border[rules.padding : -rules.padding, rules.padding : -rules.padding] = 0
    made = Tables(
        rules,
        margin,
        rim,
        side,
        np.array([sin(angle) for angle in angles]),
        np.array([cos(angle) for angle in angles]),
        np.array([(sin(flip(angle)), cos(flip(angle))) for angle in angles[:DEGREES]]),
        np.array([(sin(degree * pi / 180), cos(degree * pi / 180)) for degree in range(DEGREES)]),
        np.stack([line.reshape(-1) for line, _ in stamps]),
        np.stack([mask.reshape(-1) for _, mask in stamps]),
        (span[:, None] * side + span).reshape(-1),
        dots[:, 0] * side + dots[:, 1],
        offsets,
        candidates,
        weights,
        [_footprint(rules, margin, mask) for _, mask in stamps[:DEGREES]],
        np.pad(np.ones_like(border), rim).reshape(-1),
        np.pad(border, rim).reshape(-1),
        [],
    )
    far = 2 * rules.distance
    border[:far], border[-far:], border[:, :far], border[:, -far:] = 255, 255, 255, 255
    blocked = made.hold(border >= BLOCKED)
    made.seeds.extend(made.free(blocked, direction) for direction in range(DEGREES))
    return made
