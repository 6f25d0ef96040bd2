"""Rotary embedding of times in seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relpos.encodings.transform.rotation import Layout, Rotary, check_layout, check_width, per_token
from relpos.positions import Position, Positions, Times


@dataclass(frozen=True, eq=False)
class TimeCodes:
    """The moment from which queries and keys count their seconds, float64 (1,) or (batch, 1)."""

    origin: Tensor


class TimeRoPE(Rotary):
    """Turns pair t of the channels by 2 pi * time / period_t, so that q.k depends on the elapsed time alone.

    period_t   log-spaced from shortest to longest, both ends included, in multiples of `unit` seconds (unit=3600:
               hours); or given one by one as periods=(..)
    learned    True makes them a parameter: log_periods (pairs,), the logarithm in seconds
    partial    rotated share of the channels, the first int(dim * partial)

    Positions are Times. Gaps well below the shortest period look alike, and so do gaps a multiple of every period
    apart: choose shortest near the finest gap that matters, longest a few times the longest sequence. Seconds since
    1970 do not fit float32 (a score is off by its own size): the origin, the first key of each row, is removed in
    float64. It travels in `codes`; a stream makes them once and keeps them, since cached keys do. Without codes the
    origin is 0, alike for q and k: an angle at 1.7e9 s is then good to 2e-6 rad for a period of 1 s.
    Source: the rotation of Su et al. 2021 on real-valued time. torch_brain spaces its periods so; HoTPP leaves the
    longest one out: periods = 2 pi m (5 M/m)^(2t/dim), with m and M its smallest step and longest duration.
    """

    takes = (Times,)
    log_periods: Tensor
    reference = """@article{su2021roformer,
  title={RoFormer: Enhanced Transformer with Rotary Position Embedding},
  author={Su, Jianlin and Lu, Yu and Pan, Shengfeng and Murtadha, Ahmed and Wen, Bo and Liu, Yunfeng},
  journal={arXiv:2104.09864}, year={2021}}"""

    def __init__(
        self,
        dim: int,
        shortest: float = 1.0,
        longest: float = 10000.0,
        unit: float = 1.0,
        layout: Layout = "interleaved",
        partial: float = 1.0,
        periods: Sequence[float] | None = None,
        learned: bool = False,
    ) -> None:
        super().__init__()
        check_layout(layout)
        self.dim, self.layout = check_width("TimeRoPE", dim), layout
        if not 0 < partial <= 1 or int(dim * partial) < 2 or int(dim * partial) % 2:
            raise ValueError(f"int(dim * partial) channels turn, an even number from 2 to {dim}; got partial={partial}")
        pairs = int(dim * partial) // 2
        if periods is None:
            _check_period("shortest", shortest), _check_period("longest", longest)
            if shortest > longest:
                raise ValueError(f"shortest={shortest} is longer than longest={longest}")
            logs = torch.linspace(math.log(shortest), math.log(longest), pairs, dtype=torch.float64, device="cpu")
        else:
            if len(periods) != pairs:
                raise ValueError(f"one period a rotated pair, {pairs}, got {len(periods)}")
            logs = torch.tensor(
                [math.log(_check_period("periods", p)) for p in periods], dtype=torch.float64, device="cpu"
            )
        logs = logs + math.log(_check_period("unit", unit))
        if learned:
            self.log_periods = nn.Parameter(logs.to(torch.get_default_dtype()))
        else:
            self._keep_exact("log_periods", logs)

    @property
    def periods(self) -> Tensor:
        """(pairs,) float64, in seconds."""
        return self.log_periods.to(torch.float64).exp()

    def make_codes(self, q_pos: Positions, k_pos: Positions, generator: torch.Generator | None = None) -> TimeCodes:
        """The time of the first key of each row."""
        self.check_positions(q_pos, k_pos)
        assert isinstance(k_pos, Position)
        values = k_pos.values
        return TimeCodes(values[..., :1] if len(k_pos) else values.new_zeros(1))

    def angles(self, positions: Position, codes: TimeCodes | None) -> Tensor:
        assert isinstance(positions, Times)
        seconds = positions.values if codes is None else positions.since(codes.origin)
        return 2 * math.pi * (per_token(seconds).unsqueeze(-1) / self.periods.to(seconds.device))

    def extra_repr(self) -> str:
        low, high = (float(self.periods[i]) for i in (0, -1))
        return f"dim={self.dim}, periods {low:g} .. {high:g} s, layout={self.layout!r}"


def _check_period(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} is a positive finite number, got {value!r}")
    return float(value)
