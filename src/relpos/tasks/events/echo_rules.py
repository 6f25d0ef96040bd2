"""The rules of the echo task: sequences, and which event each of its two questions asks for."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from relpos.encodings.pairs.features import feature_of
from relpos.positions import EARTH_RADIUS_KM, Places

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class Drawn(NamedTuple):
    """Sequences, (size, events) each: marks int64, times float64 in hours, places (.., 2) float64 in degrees, and
    answers (.., 2) int64 to the questions in time and in space, -1 where one is not asked."""

    marks: np.ndarray
    times: np.ndarray
    places: np.ndarray
    answers: np.ndarray

    def tensors(self) -> Batch:
        marks, times, places, answers = (torch.from_numpy(each) for each in self)
        return marks, times, places, answers

    def first(self, count: int) -> Drawn:
        return Drawn(*(each[:count] for each in self))


def around_towns(generator: np.random.Generator, shape: tuple[int, int], side: float) -> np.ndarray:
    """Places (size, events, 2) in degrees, uniform in a square of ``side`` km around a town of each sequence's own."""
    town = generator.uniform((-60.0, -170.0), (60.0, 170.0), (shape[0], 1, 2))
    east, north = generator.uniform(-side / 2, side / 2, (2, *shape))
    degree = math.radians(1) * EARTH_RADIUS_KM
    latitude = town[..., 0] + north / degree
    return np.stack([latitude, town[..., 1] + east / degree / np.cos(np.deg2rad(town[..., 0]))], -1)


def sources(
    times: np.ndarray, places: np.ndarray, age: float, near: float, tick: float = 0.0, stride: float = 0.0
) -> np.ndarray:
    """(.., events, 2) int64: which event the answers in time and in space are the marks of; -1 where there is none.

    tick, stride: all that is known of an age or a distance is its bucket of that width, if not 0. An age in the bucket
    of ``age`` then counts as old enough, and of several events in the nearest bucket the first is taken.
    """
    earlier = np.tri(times.shape[-1], k=-1, dtype=bool)
    elapsed = times[..., :, None] - times[..., None, :]
    old = earlier & (_known(elapsed, tick) >= _known(np.array(age), tick))
    in_time = old.sum(-1) - 1  # times rise, so the old events are the first ones
    on_earth = feature_of("place")
    at = on_earth.read(Places(torch.from_numpy(places).reshape(-1, *places.shape[-2:])))
    far = _known(on_earth.between(at, at).numpy().reshape(elapsed.shape), stride)
    far = np.where(earlier, far, np.inf)
    in_space = np.where(far.min(-1) <= near, far.argmin(-1), -1)
    return np.stack([in_time, in_space], -1)


def _known(sizes: np.ndarray, width: float) -> np.ndarray:
    return np.floor(sizes / width) * width if width else sizes


def answers(marks: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(.., events, 2): the marks of the events of `sources`, -1 where there is none."""
    return np.where(found >= 0, np.take_along_axis(marks[..., None], np.maximum(found, 0), -2), -1)
