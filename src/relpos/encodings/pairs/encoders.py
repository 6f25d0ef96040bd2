"""Encoders of a pair feature: a number to one row of a table, to two rows with weights, or to smooth functions.

A channel's table has one row a function phi_r, and a feature x stands for sum_r phi_r(x) table[r]:

    Buckets, LogBuckets   phi is 1 for one row (`Sparse`): looked up
    Linear                two neighbouring rows with weights that add up to one
    Sinusoid, Decay       every row: sines and cosines, or exponentials

`Smooth` encoders may learn their units; those travel through a kernel as an argument, so that gradients reach them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

Unit = float | Literal["learned", "user"]
HSTU_STEP = 0.301  # of the natural logarithm, as released: buckets grow by e^0.301 = 1.35


class Encoder(nn.Module):
    """rows: of its table. signed: the sign of the feature matters."""

    rows: int
    signed: bool


class Sparse(Encoder):
    """One row a pair. `reach` rows beyond the first; signed: reach rows on either side of it, the negative ones first.

    steps  the number of intervals into which the whole line falls, negative and positive numbers apart
    """

    reach: int
    personal: bool = False  # its unit comes with the call, one a sequence

    @property
    def rows(self) -> int:  # type: ignore[override]
        return 2 * self.reach + 1 if self.signed else self.reach + 1

    @property
    def steps(self) -> int:
        return 2 * self.reach + 1

    def size(self, x: Tensor, unit: Tensor | None) -> Tensor:
        """Numbers >= 0 to int64 0..reach, never falling as x rises."""
        raise NotImplementedError

    def step(self, x: Tensor, unit: Tensor | None = None) -> Tensor:
        """Any numbers to int64 0..2 reach, never falling as x rises."""
        size = self.size(x.abs(), unit)
        return torch.where(x < 0, -size, size).add_(self.reach)

    def code(self, x: Tensor, unit: Tensor | None = None) -> Tensor:
        """The row of each number, int64."""
        return self.step(x, unit) if self.signed else self.size(x.abs(), unit)

    def by_step(self, table: Tensor) -> Tensor:
        """Of a table (.., rows) the entry of every step, (.., steps)."""
        return table if self.signed else torch.cat([table[..., 1:].flip(-1), table], -1)

    def by_row(self, sums: Tensor) -> Tensor:
        """The transpose: (.., steps) to (.., rows)."""
        if self.signed:
            return sums
        low, high = sums[..., : self.reach].flip(-1), sums[..., self.reach :]
        return torch.cat([high[..., :1], high[..., 1:] + low], -1)


class Buckets(Sparse):
    """min(clip, floor(|x| / unit)) in float64; an x on an edge belongs to the bucket above it.

    Where x or unit are no floating-point numbers, edges are where rounding puts them: 0.3 / 0.1 is just below 3.
    """

    def __init__(self, clip: int, unit: float | Literal["user"] = 1.0, signed: bool = False) -> None:
        super().__init__()
        self.reach, self.signed = natural("clip", clip), signed
        self.personal = unit == "user"
        self.unit = 1.0 if unit == "user" else positive_number("unit", unit)

    def size(self, x: Tensor, unit: Tensor | None) -> Tensor:
        if unit is None and self.unit == 1.0 and not x.is_floating_point():
            return x.clamp(max=self.reach)
        x = x.to(torch.float64) / (self.unit if unit is None else unit)
        return x.clamp_(max=self.reach).to(torch.int64)  # towards zero: the floor of what is not negative

    def extra_repr(self) -> str:
        return f"rows={self.rows}, unit={'user' if self.personal else self.unit:}, signed={self.signed}"


class Edges(Sparse):
    """How many of the stated edges lie at or below |x|: rows 0 .. len(edges)."""

    def __init__(self, edges: Sequence[float], signed: bool = False) -> None:
        super().__init__()
        self.edges = tuple(float(edge) for edge in edges)
        rising = all(a < b for a, b in zip(self.edges, self.edges[1:]))
        if not self.edges or not rising or self.edges[0] <= 0 or not math.isfinite(self.edges[-1]):
            raise ValueError(f"edges are one or more rising finite numbers above 0, got {tuple(edges)}")
        self.reach, self.signed = len(self.edges), signed

    def size(self, x: Tensor, unit: Tensor | None) -> Tensor:
        edges = torch.tensor(self.edges, dtype=torch.float64, device=x.device)
        return torch.bucketize(x.to(torch.float64), edges, right=True)

    def extra_repr(self) -> str:
        return f"edges={self.edges}, signed={self.signed}"


class LogBuckets(Sparse):
    """min(clip, floor(ln(max(|x| / unit, 1)) / step)): the first bucket ends at unit e^step, each e^step further."""

    def __init__(self, clip: int, unit: float = 1.0, step: float = HSTU_STEP, signed: bool = False) -> None:
        super().__init__()
        self.reach, self.signed = natural("clip", clip), signed
        self.unit, self.width = positive_number("unit", unit), positive_number("step", step)

    def size(self, x: Tensor, unit: Tensor | None) -> Tensor:
        x = (x.to(torch.float64) / self.unit).clamp_(min=1).log_().div_(self.width)
        return x.clamp_(max=self.reach).to(torch.int64)

    def extra_repr(self) -> str:
        return f"rows={self.rows}, unit={self.unit}, step={self.width}, signed={self.signed}"


class Smooth(Encoder):
    """Functions of which several are not 0. `scales` are units, time constants or periods; learned: their logarithms.

    spread(table, x, scales)   table (.., heads, t_q or 1, rows) and x (batch or 1, t_q, t_k) to (.., heads, t_q, t_k)
    collect(p, x, scales)      the transpose: p (batch, heads, t_q, t_k) to (batch, heads, t_q, rows)
    `live` (batch or 1, t_q, t_k), bool, marks the pairs that count; both are plain operations, under autograd.
    """

    kind: ClassVar[str] = ""
    log_scales: Tensor | None

    def __init__(self, scales: Sequence[float], learned: bool, signed: bool) -> None:
        super().__init__()
        self.scales, self.signed = tuple(scales), signed
        logs = torch.tensor([math.log(s) for s in self.scales]) if learned else None
        self.register_parameter("log_scales", None if logs is None else nn.Parameter(logs))

    def current(self, log_scales: Tensor | None, like: Tensor) -> Tensor:
        """The scales, float64."""
        if log_scales is None:
            return torch.tensor(self.scales, dtype=torch.float64, device=like.device)
        return log_scales.to(torch.float64).exp()

    def spread(self, table: Tensor, x: Tensor, log_scales: Tensor | None, live: Tensor | None = None) -> Tensor:
        waves = self.waves(x, log_scales, table.dtype, live)
        return torch.einsum("bhqr,bqkr->bhqk", table.expand(-1, -1, x.shape[-2], -1), waves)

    def collect(self, p: Tensor, x: Tensor, log_scales: Tensor | None, live: Tensor | None = None) -> Tensor:
        return torch.einsum("bhqk,bqkr->bhqr", p, self.waves(x, log_scales, p.dtype, live))

    def waves(self, x: Tensor, log_scales: Tensor | None, dtype: torch.dtype, live: Tensor | None) -> Tensor:
        """All functions of each pair, (batch or 1, t_q, t_k, rows)."""
        found = self.functions((x if self.signed else x.abs()).to(torch.float64), log_scales, dtype)
        return found if live is None else found * live.unsqueeze(-1)

    def functions(self, x: Tensor, log_scales: Tensor | None, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError


class Linear(Smooth):
    """Straight lines between rows: row r stands at |x| = start + r unit, and the ends go on as constants.

    signed: rows -clip..clip stand at r unit. clip = 1 interpolates between two rows, as STAN does.
    """

    def __init__(
        self, clip: int, unit: float = 1.0, start: float = 0.0, learned: bool = False, signed: bool = False
    ) -> None:
        super().__init__((positive_number("unit", unit),), learned, signed)
        self.clip, self.start = natural("clip", clip, least=1), finite("start", start)
        self.rows = 2 * clip + 1 if signed else clip + 1

    def spread(self, table: Tensor, x: Tensor, log_scales: Tensor | None, live: Tensor | None = None) -> Tensor:
        low, share = self._between(x, log_scales, table.dtype)
        if self.rows == 2:
            found = torch.lerp(table[..., :1], table[..., 1:], share)
        else:
            lead = (max(len(table), len(x)), table.shape[1])
            wide = table.expand(*lead, x.shape[-2], -1)
            low = low.expand(*lead, -1, -1)
            found = torch.lerp(wide.gather(-1, low), wide.gather(-1, low + 1), share)
        return found if live is None else found * live.unsqueeze(1)

    def collect(self, p: Tensor, x: Tensor, log_scales: Tensor | None, live: Tensor | None = None) -> Tensor:
        low, share = self._between(x, log_scales, p.dtype)
        p = p if live is None else p * live.unsqueeze(1)
        above = p * share
        if self.rows == 2:
            return torch.stack([(p - above).sum(-1), above.sum(-1)], -1)
        low = low.expand(p.shape)
        return p.new_zeros(*p.shape[:-1], self.rows).scatter_add_(-1, low, p - above).scatter_add_(-1, low + 1, above)

    def _between(self, x: Tensor, log_scales: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The row below each pair and the weight of the one above it, (batch or 1, 1, t_q, t_k)."""
        unit = self.current(log_scales, x)
        at = x / unit + self.clip if self.signed else (x.abs() - self.start) / unit
        at = at.clamp(0, self.rows - 1)
        low = at.detach().floor().clamp_(max=self.rows - 2)
        return low.to(torch.int64).unsqueeze(1), (at - low).to(dtype).unsqueeze(1)

    def extra_repr(self) -> str:
        return f"rows={self.rows}, unit={self.scales[0]}, learned={self.log_scales is not None}, signed={self.signed}"


class Sinusoid(Smooth):
    """sin(2 pi x / period) for every period, then the cosines: 2 count rows."""

    def __init__(self, periods: Sequence[float], learned: bool = False, signed: bool = False) -> None:
        super().__init__(periods, learned, signed)
        self.rows = 2 * len(self.scales)

    def functions(self, x: Tensor, log_scales: Tensor | None, dtype: torch.dtype) -> Tensor:
        turns = x.unsqueeze(-1) / self.current(log_scales, x)
        angle = ((turns - turns.detach().floor()) * (2 * math.pi)).to(dtype)
        return torch.cat([angle.sin(), angle.cos()], -1)

    def extra_repr(self) -> str:
        return f"periods {self.scales[0]:g} .. {self.scales[-1]:g}, learned={self.log_scales is not None}"


class Decay(Smooth):
    """exp(-|x| / scale) for every scale: count rows."""

    def __init__(self, scales: Sequence[float], learned: bool = False) -> None:
        super().__init__(scales, learned, False)
        self.rows = len(self.scales)

    def functions(self, x: Tensor, log_scales: Tensor | None, dtype: torch.dtype) -> Tensor:
        return (-(x.unsqueeze(-1) / self.current(log_scales, x))).to(dtype).exp()

    def extra_repr(self) -> str:
        return f"scales {self.scales[0]:g} .. {self.scales[-1]:g}, learned={self.log_scales is not None}"


class Rotary(Encoder):
    """Turns pair t of the channels of q and k by 2 pi x / period_t; it has no table."""

    log_scales: Tensor | None

    def __init__(self, periods: Sequence[float], learned: bool = False) -> None:
        super().__init__()
        self.scales, self.rows, self.signed = tuple(periods), 0, True
        logs = torch.tensor([math.log(s) for s in self.scales]) if learned else None
        self.register_parameter("log_scales", None if logs is None else nn.Parameter(logs))

    def angles(self, x: Tensor) -> Tensor:
        """(.., n) from a common origin to float64 (.., n, pairs)."""
        given = self.log_scales
        if given is None:
            scales = torch.tensor(self.scales, dtype=torch.float64, device=x.device)
        else:
            scales = given.to(torch.float64).exp()
        return 2 * math.pi * (x.to(torch.float64).unsqueeze(-1) / scales)

    def extra_repr(self) -> str:
        return f"periods {self.scales[0]:g} .. {self.scales[-1]:g}, learned={self.log_scales is not None}"


def spaced(shortest: float, longest: float, count: int) -> list[float]:
    """count numbers from shortest to longest, evenly spaced by their logarithms."""
    low, high = positive_number("shortest", shortest), positive_number("longest", longest)
    if low > high:
        raise ValueError(f"shortest={shortest} is longer than longest={longest}")
    steps = max(natural("count", count, least=1) - 1, 1)
    return [low * (high / low) ** (i / steps) for i in range(count)]


def natural(name: str, value: object, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is an integer of at least {least}, got {value!r}")
    return value


def finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is a finite number, got {value!r}")
    return float(value)


def positive_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} is a positive finite number, got {value!r}")
    return float(value)
