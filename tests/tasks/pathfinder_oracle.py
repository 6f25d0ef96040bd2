"""Pathfinder word for word: one picture, one curve, one paddle at a time, every stamp drawn anew over a whole window.

It shares with the package the rules' numbers and the random numbers of a picture, and no other code.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from relpos.tasks.long_range.pathfinder.draw import Numbers
from relpos.tasks.long_range.pathfinder.rules import Rules

A = 2


def shift(point, angle: float, distance: float) -> list[int]:
    return [math.ceil(point[0] + distance * math.sin(angle)), math.ceil(point[1] + distance * math.cos(angle))]


def opposite(angle: float) -> float:
    return angle + math.pi if angle < 0 else angle - math.pi


def disc(radius: int) -> np.ndarray:
    return np.array(
        [[y * y + x * x <= radius * radius for x in range(-radius, radius + 1)] for y in range(-radius, radius + 1)]
    )


def dilate(image: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """The largest value under the structure; minus infinity where it lies wholly outside."""
    reach = structure.shape[0] // 2
    padded = np.pad(image.astype(np.float64), reach, constant_values=-np.inf)
    out = np.full(image.shape, -np.inf)
    for y, x in np.argwhere(structure):
        out = np.maximum(out, padded[y : y + image.shape[0], x : x + image.shape[1]])
    return out


def eight_bits(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    span = image.max() - image.min()
    return (((image - image.min()) * (255 / (span or 1))).clip(0, 255) + 0.5).astype(np.uint8)


def lanczos(image: np.ndarray, side: int) -> np.ndarray:
    return np.array(Image.fromarray(eight_bits(image)).resize((side, side), Image.Resampling.LANCZOS))


class Picture:
    """Draws picture ``index`` of a seed; ``image``, ``label`` and ``attempts`` are the result."""

    def __init__(self, rules: Rules, seed: int, index: int) -> None:
        self.rules = rules
        numbers = Numbers(rules, seed, index)
        self.label, self.margin = numbers.label, numbers.margin
        self.small = disc(self.margin)
        self.attempts, tips = 0, None
        while tips is None:
            self.attempts += 1
            tips = self.targets(numbers.attempts(1)[0])
        image, mask, self.paddles = tips[0], tips[1], tips[4]
        for curve in numbers.distractors():
            for attempt in curve:
                grown = self.distractor(image, mask, attempt)
                if grown is not None:
                    image, mask = grown
                    break
        origin = numbers.origin
        first, last = tips[2][origin], tips[3][origin if self.label else 1 - origin]
        marks = np.maximum(self.mark(first), self.mark(last)).astype(np.float64) / 255
        self.image = eight_bits(np.maximum(image, marks))

    def blank(self) -> np.ndarray:
        return np.zeros((self.rules.size, self.rules.size))

    def inside(self, *points) -> bool:
        return all(0 <= value < self.rules.size for point in points for value in point)

    def stamp(self, size: int, start, angle: float, contrast: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """A paddle from ``start`` in an empty picture (size, size), and its mask, as float32."""
        rules = self.rules
        reach = rules.paddle + math.ceil(rules.thickness) + self.margin
        centre = reach * A
        canvas = Image.new("F", (2 * centre + 1, 2 * centre + 1), 0)
        y, x = shift((centre, centre), angle, rules.paddle * A)
        ImageDraw.Draw(canvas).line([(centre, centre), (x, y)], fill=255, width=int(rules.thickness * A))
        large = np.array(canvas)
        side = 2 * reach + 1
        line = lanczos(large, side) / 255 * contrast
        mask = lanczos(dilate(large, disc(self.margin * A)).astype(np.uint8), side) / 255
        out = []
        for part in (line, mask):
            whole = np.zeros((size, size), dtype=np.float32)
            for row in range(side):
                for column in range(side):
                    y, x = start[0] - reach + row, start[1] - reach + column
                    if 0 <= y < size and 0 <= x < size:
                        whole[y, x] = part[row, column]
            out.append(whole)
        return out[0], out[1]

    def mark(self, point) -> np.ndarray:
        size = self.rules.size
        y, x = np.ogrid[: size * A, : size * A]
        inside = (y - point[0] * A) ** 2 + (x - point[1] * A) ** 2 <= (self.rules.marker * A) ** 2
        return lanczos(inside.astype(np.float64), size)

    def places(self, mask: np.ndarray, frame: int, angle: float) -> np.ndarray:
        """Where a first paddle in this direction may have its tail."""
        reach = self.rules.paddle + self.margin
        _, structure = self.stamp(2 * reach + 1, (reach + 1, reach + 1), angle)
        framed = mask.copy()
        framed[:frame], framed[-frame:], framed[:, :frame], framed[:, -frame:] = 1, 1, 1, 1
        dilated = np.ceil(dilate(framed, structure.astype(np.uint8)) - 0.3)
        if dilated.min() < 0:
            return np.zeros((0, 2), dtype=int)
        return np.argwhere(dilated == 0)

    def first(self, tail, angle: float):
        """(pivot, angle, tail) or None where head or pivot is outside."""
        head = shift(tail, angle, self.rules.paddle)
        pivot = shift(head, opposite(angle), self.rules.paddle + self.margin)
        return (pivot, angle, list(tail)) if self.inside(head, pivot) else None

    def targets(self, numbers: np.ndarray):
        rules = self.rules
        mask = np.ones((rules.size, rules.size))
        mask[rules.padding : -rules.padding, rules.padding : -rules.padding] = 0
        seeds: list = [None, None]
        for trial in range(3):
            angle = (int(numbers[0, trial, 0] * 360) - 180) * math.pi / 180
            free = self.places(mask, 2 * rules.distance, angle)
            if len(free) == 0:
                return None
            seeds[0] = self.first(free[int(numbers[0, trial, 1] * len(free))], angle)
            if seeds[0] is not None:
                break
        else:
            return None
        for trial in range(3):
            angle = (int(numbers[1, trial, 0] * 360) - 180) * math.pi / 180
            around = int(numbers[1, trial, 1] * 360) * math.pi / 180
            tail = [
                round(seeds[0][2][0] + rules.distance * math.sin(around)),
                round(seeds[0][2][1] + rules.distance * math.cos(around)),
            ]
            seeds[1] = self.first(tail, angle)
            if seeds[1] is not None:
                break
        else:
            return None
        contrast = rules.paddle_contrast * rules.curve_contrast
        image, newest = self.blank(), []
        for _, angle, tail in seeds:
            line, stamp = self.stamp(rules.size, tail, angle, contrast)
            image = np.maximum(image, line)
            newest.append(stamp)
        pivots, angles = [seed[0] for seed in seeds], [seed[1] for seed in seeds]
        tips = [[seed[2]] for seed in seeds]
        for step in range(1, rules.length):
            for curve in (0, 1):
                block = numbers[2 * step + curve, :, 0]
                grown = self.grow(pivots[curve], angles[curve], newest[curve], mask, block, contrast)
                if grown is None:
                    return None
                line, mask, newest[curve], pivots[curve], angles[curve], tip = grown
                image = np.maximum(image, line)
                tips[curve].append(tip)
        mask = np.maximum(mask, newest[1])
        return image, mask, [tip[0] for tip in tips], [tip[-1] for tip in tips], tips

    def grow(self, pivot, angle: float, newest: np.ndarray, mask: np.ndarray, numbers: np.ndarray, contrast: float):
        rules = self.rules
        pivot = shift(pivot, angle, rules.paddle + 2 * self.margin)
        dilated = dilate(mask, self.small)
        radius = rules.paddle + self.margin
        points = set()
        for degrees in np.arange(0, 360, 360 / (2 * radius * math.pi)):
            y = pivot[0] + radius * math.sin(degrees * math.pi / 180)
            x = pivot[1] + radius * math.cos(degrees * math.pi / 180)
            if 0 <= y < rules.size and 0 <= x < rules.size:
                points.add((int(y), int(x)))
        candidates = sorted(points)
        weights, directions = [], []
        for y, x in candidates:
            u = math.atan2(y - pivot[0], x - pivot[1])
            delta = min(abs(u - angle), 2 * math.pi - abs(u - angle))
            weights.append(math.cos(min(rules.continuity * delta, math.pi / 2)) ** 2 * (1 - dilated[y, x]))
            directions.append(u)
        if sum(weights) < 1e-4:
            return None
        cumulative = np.cumsum(np.array(weights) / sum(weights))
        for number in numbers:
            index = int(np.argmax(cumulative > number))
            line, stamp = self.stamp(rules.size, candidates[index], opposite(directions[index]), contrast)
            if (mask + stamp.astype(np.float64)).max() < 1.8:
                return line, np.maximum(mask, newest), stamp, pivot, directions[index], list(candidates[index])
        return None

    def distractor(self, image: np.ndarray, mask: np.ndarray, numbers: np.ndarray):
        rules = self.rules
        if (np.ceil(mask - 0.3) == 0).mean() < 0.01:
            return None
        for trial in range(3):
            angle = (int(numbers[0, trial, 0] * 360) - 180) * math.pi / 180
            free = self.places(mask, 1, angle)
            if len(free) == 0:
                return None
            seed = self.first(free[int(numbers[0, trial, 1] * len(free))], angle)
            if seed is not None:
                break
        else:
            return None
        pivot, angle, tail = seed
        line, newest = self.stamp(rules.size, tail, angle, rules.curve_contrast)
        image = np.maximum(image, line)
        for step in range(1, rules.distractor):
            grown = self.grow(pivot, angle, newest, mask, numbers[step, :, 0], rules.curve_contrast)
            if grown is None:
                return None
            line, mask, newest, pivot, angle, _ = grown
            image = np.maximum(image, line)
        return image, np.maximum(mask, newest)
