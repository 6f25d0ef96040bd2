"""The kinds of positions, and the lag that each has."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

EARTH_RADIUS_KM = 6371.0088  # mean radius, IUGG

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)
class Position:
    """Base of all positions: `values` hold one entry a token along `axis`."""

    values: Tensor
    axis: ClassVar[int] = -1
    unit: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not isinstance(self.values, Tensor):
            object.__setattr__(self, "values", _tensor(self.values))
        object.__setattr__(self, "values", self._checked(self.values.detach()))

    @classmethod
    def _checked(cls, values: Tensor) -> Tensor:
        raise NotImplementedError

    def __len__(self) -> int:
        return self.values.shape[self.axis]

    @property
    def batched(self) -> bool:
        """True where every sequence of the batch has positions of its own."""
        lead = self.values.dim() + self.axis
        return lead > 0 and self.values.shape[0] > 1

    @staticmethod
    def between(query: Tensor, key: Tensor) -> Tensor:
        """The lag of raw values: (.., n_q) and (.., n_k) to (.., n_q, n_k)."""
        return key.unsqueeze(-2) - query.unsqueeze(-1)

    def lag(self, key: Position) -> Tensor:
        """lag[.., i, j] = key position j - own (query) position i, exactly, in int64 or float64."""
        if type(key) is not type(self):
            raise TypeError(
                f"queries have {type(self).__name__} positions and keys {type(key).__name__}; "
                "both must be of one kind for a lag to exist"
            )
        return self.between(self.values, key.values)

    def to(self, device: torch.device | str) -> Position:
        return type(self)(self.values.to(device))

    def narrow(self, start: int, stop: int) -> Position:
        """Positions of tokens start..stop-1."""
        return type(self)(self.values.narrow(self.axis, start, stop - start))


def _tensor(given: object) -> Tensor:
    try:
        values = torch.as_tensor(given)
        plain = values.is_floating_point() and not hasattr(given, "dtype")  # Python floats are float64; torch's default
        return torch.as_tensor(given, dtype=torch.float64) if plain else values  # would round them to float32
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"positions are a tensor or numbers, got {type(given).__name__} ({error})") from None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _one_or_two(values: Tensor, name: str) -> Tensor:
    if values.dim() not in (1, 2):  # a message with a length in it, made for nothing, would tie a trace to that length
        raise ValueError(f"{name} positions have shape (n,) or (batch, n), got {tuple(values.shape)}")
    return values


def _with_axes(values: Tensor, name: str, allowed: Sequence[int] | None) -> Tensor:
    if values.dim() not in (2, 3):
        raise ValueError(f"{name} positions have shape (n, axes) or (batch, n, axes), got {tuple(values.shape)}")
    if allowed is not None and values.shape[-1] not in allowed:
        axes = " or ".join(map(str, allowed))
        raise ValueError(f"{name} positions have {axes} axes (last dimension), got {tuple(values.shape)}")
    return values.unsqueeze(0) if values.dim() == 2 else values


def is_exporting() -> bool:
    """Whether `torch.export` follows this call."""
    return bool(torch.compiler.is_exporting())


def is_traced() -> bool:
    """Whether `torch.compile` or `torch.export` follows this call: then nothing is known of values, so that none is
    looked at."""
    return bool(torch.compiler.is_compiling())


def _finite(values: Tensor, name: str) -> Tensor:
    _require(
        is_traced() or bool(torch.isfinite(values).all()),
        f"{name} positions hold NaN or infinity; drop them, or hide them with key_mask and give any finite value",
    )
    return values


@dataclass(frozen=True, eq=False)
class Index(Position):
    """Integer positions in tokens, int64, (n,) or (batch, n).

    start  where they are known to be start, start + 1, .. without a look at them, else None
    """

    unit = "tokens"
    start: int | None = None

    @classmethod
    def _checked(cls, values: Tensor) -> Tensor:
        if values.dtype not in _INTEGERS:
            raise TypeError(f"Index positions are integers, got {values.dtype}; use Times for real-valued positions")
        return _one_or_two(values, "Index").to(torch.int64)

    @classmethod
    def arange(cls, n: int, start: int = 0, device: torch.device | str | None = None) -> Index:
        """start, start + 1, ..., start + n - 1."""
        if n < 0:
            raise ValueError(f"a sequence has a length of at least 0, got {n}")
        return cls(torch.arange(start, start + n, device=device), start)

    def to(self, device: torch.device | str) -> Index:
        return Index(self.values.to(device), self.start)

    def narrow(self, start: int, stop: int) -> Index:
        return Index(self.values[..., start:stop], None if self.start is None else self.start + start)

    def run_start(self) -> Tensor | None:
        """First position of each row where every row is known to be consecutive integers, else None (always where
        a tracer follows). O(n)."""
        if len(self) == 0:
            return torch.zeros(self.values.shape[:-1], dtype=torch.int64)
        if is_traced():
            return None
        steps = self.values[..., 1:] - self.values[..., :-1]
        return self.values[..., 0] if bool((steps == 1).all()) else None


class Grid(Position):
    """Integer cells of a 1-, 2- or 3-dimensional lattice, int64, kept as (batch or 1, n, axes)."""

    axis = -2
    unit = "cells"

    @classmethod
    def _checked(cls, values: Tensor) -> Tensor:
        if values.dtype not in _INTEGERS:
            raise TypeError(f"Grid positions are integers, got {values.dtype}")
        return _with_axes(values, "Grid", (1, 2, 3)).to(torch.int64)

    @classmethod
    def of(cls, *shape: int, device: torch.device | str | None = None) -> Grid:
        """All cells of one grid in row-major order: `Grid.of(height, width)` has height * width tokens, axes (y, x)."""
        _require(1 <= len(shape) <= 3, f"a grid has 1 to 3 axes, got {len(shape)}")
        _require(all(side >= 1 for side in shape), f"every side of a grid is at least 1, got {shape}")
        axes = [torch.arange(side, device=device) for side in shape]
        return cls(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape)))

    @property
    def axes(self) -> int:
        return self.values.shape[-1]

    def shape(self) -> tuple[int, ...] | None:
        """The sides where these are all cells of one grid in row-major order (from any corner), else None. O(n)."""
        if self.batched or len(self) == 0:
            return None
        cells = self.values[0] - self.values[0, 0]
        sides = tuple(int(s) for s in cells.amax(0) + 1)
        count = 1
        for side in sides:
            count *= side
        if count != len(self) or min(sides) < 1:
            return None
        return sides if bool((cells == Grid.of(*sides, device=cells.device).values[0]).all()) else None

    @staticmethod
    def between(query: Tensor, key: Tensor) -> Tensor:
        return key.unsqueeze(-3) - query.unsqueeze(-2)


def _warn_of_rounding(times: Tensor) -> None:
    """Of times of which whole numbers are no longer told apart: by then differences of hours lose their seconds."""
    size = float(times.abs().max())
    spacing = 2.0 ** math.frexp(size)[1] * torch.finfo(times.dtype).eps / 2
    if spacing > 1:
        warnings.warn(
            f"times up to {size:.9g} in {times.dtype} are rounded to multiples of {spacing:g}: give float64, or take "
            "the first time off before they are shortened",
            stacklevel=2,
        )


class Times(Position):
    """Real positions in seconds, float64, (n,) or (batch, n), not decreasing along n.

    Warns where times come in a type too short to tell neighbours apart, as float32 is for seconds since 1970.
    """

    unit = "seconds"

    @classmethod
    def _checked(cls, values: Tensor) -> Tensor:
        if values.is_complex() or values.dtype == torch.bool:
            raise TypeError(f"Times are real numbers of seconds, got {values.dtype}")
        short = values
        values = _finite(_one_or_two(values, "Times").to(torch.float64), "Times")
        if is_traced():
            return values
        if short.is_floating_point() and short.dtype != torch.float64 and short.numel():
            _warn_of_rounding(short)
        falling = (values[..., 1:] < values[..., :-1]).nonzero()
        if len(falling):
            at = int(falling[0, -1]) + 1
            raise ValueError(
                f"Times must not decrease along the sequence; the first drop is at token {at}. Sort the events by time"
            )
        return values

    def since(self, origin: Tensor) -> Tensor:
        """Seconds since `origin`, float64: subtract before any cast to a shorter type."""
        return self.values - origin.to(torch.float64)


class Places(Position):
    """Points on the globe, float64 (batch or 1, n, 2): latitude -90..90 and longitude -180..360, in degrees."""

    axis = -2
    unit = "degrees (latitude, longitude); lags in kilometres"

    @classmethod
    def _checked(cls, values: Tensor) -> Tensor:
        values = _finite(_with_axes(values, "Places", (2,)).to(torch.float64), "Places")
        if is_traced():
            return values
        latitude, longitude = values.unbind(-1)
        _require(
            bool((latitude.abs() <= 90).all()),
            "a latitude lies in -90..90 degrees; Places are (latitude, longitude) in that order",
        )
        _require(bool(((longitude >= -180) & (longitude <= 360)).all()), "a longitude lies in -180..360 degrees")
        return values

    @staticmethod
    def between(query: Tensor, key: Tensor) -> Tensor:
        """Great-circle distance in kilometres (haversine: accurate for near points, clamped at antipodes)."""
        q = torch.deg2rad(query).unsqueeze(-2)
        k = torch.deg2rad(key).unsqueeze(-3)
        half = torch.sin((k - q) / 2).square()
        chord = half[..., 0] + torch.cos(q[..., 0]) * torch.cos(k[..., 0]) * half[..., 1]
        return 2 * EARTH_RADIUS_KM * torch.asin(chord.clamp(0, 1).sqrt())


class Labels(Position):
    """Names of the part that a token belongs to (section, chord, speaker), int64, (n,) or (batch, n)."""

    unit = "labels"

    @classmethod
    def _checked(cls, values: Tensor) -> Tensor:
        if values.dtype not in _INTEGERS:
            raise TypeError(f"Labels are integers, got {values.dtype}; map names to integers first")
        return _one_or_two(values, "Labels").to(torch.int64)

    @staticmethod
    def between(query: Tensor, key: Tensor) -> Tensor:
        """True where query and key carry the same label."""
        return key.unsqueeze(-2) == query.unsqueeze(-1)


class Profiles(Position):
    """A vector a token (genres, a user's habits), float64 (batch or 1, n, width)."""

    axis = -2
    unit = "1 - cosine similarity"

    @classmethod
    def _checked(cls, values: Tensor) -> Tensor:
        return _finite(_with_axes(values, "Profiles", None).to(torch.float64), "Profiles")

    @staticmethod
    def between(query: Tensor, key: Tensor) -> Tensor:
        """Dissimilarity 1 - cos, in 0..2; a zero vector is at 1 from everything."""
        q = torch.nn.functional.normalize(query, dim=-1)
        k = torch.nn.functional.normalize(key, dim=-1)
        return 1 - q @ k.transpose(-1, -2)
