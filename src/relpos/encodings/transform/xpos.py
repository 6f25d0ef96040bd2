"""xPos: rotary embedding whose scores also decay with the lag."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relpos.encodings.transform.rotation import Rotary, check_base, check_width, per_token
from relpos.positions import Index, Position, Positions, Times, as_positions, is_traced

_HEADROOM = math.log(64)  # nats left for what q and k hold themselves


@dataclass(frozen=True)
class XPosCodes:
    """The position at which queries and keys are not scaled; the same for both and for a whole stream. A tensor where
    a tracer, who sees no values, follows the call."""

    centre: float | Tensor = 0.0


class XPos(Rotary):
    """Interleaved RoPE with pair t of the score scaled by zeta_t^((i - j)/scale_base): far past keys fade.

        q_i' = zeta^((i - c)/scale_base) R_i q_i,   k_j' = zeta^(-(j - c)/scale_base) R_j k_j
        zeta_t = (2t/dim + 0.4)/1.4

    The centre c cancels in every score and matters for the range of numbers only. It comes in `codes`: `make_codes`
    takes the middle of the positions, and `attention` calls it; a stream makes its codes once, since cached keys keep
    theirs. Without codes c is 0, alike for q and k. Scores of keys after the query grow: meant for causal use.

    Range: the largest factor is exp(1.25 |i - c|/512) with the default scale_base, and masked scores are as large as
    its square. A call raises ValueError past about 5,600 tokens in float16, 34,000 in bfloat16 and float32, 280,000 in
    float64 (centred), unless it is compiled, when nobody looks; a larger scale_base moves that limit. Norms are not
    preserved. No parameters.
    Source: Sun et al. 2022, "A Length-Extrapolatable Transformer", section 3.2. The released code centres on
    ceil(length/2), and so does `make_codes` for positions that start at 0.
    """

    takes = (Index, Times)
    extrapolates = True
    inv_freq: Tensor
    log_zeta: Tensor
    reference = """@article{sun2022xpos,
  title={A Length-Extrapolatable Transformer},
  author={Sun, Yutao and Dong, Li and Patra, Barun and Ma, Shuming and Huang, Shaohan and Benhaim, Alon and
    Chaudhary, Vishrav and Song, Xia and Wei, Furu},
  journal={arXiv:2212.10554}, year={2022}}"""

    def __init__(self, dim: int, base: float = 10000.0, scale_base: float = 512.0) -> None:
        super().__init__()
        if isinstance(scale_base, bool) or not isinstance(scale_base, int | float) or not 0 < scale_base < math.inf:
            raise ValueError(f"scale_base is a positive number of tokens, got {scale_base!r}")
        self.dim, self.layout, self.base = check_width("XPos", dim), "interleaved", check_base(base)
        self.scale_base = float(scale_base)
        share = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim
        self._keep_exact("inv_freq", self.base**-share)
        self._keep_exact("log_zeta", torch.log((share + 0.4) / 1.4))

    def make_codes(self, q_pos: Positions, k_pos: Positions, generator: torch.Generator | None = None) -> XPosCodes:
        """The centre first + ceil(count / 2) of all positions first..first + count - 1 that occur."""
        self.check_positions(q_pos, k_pos)
        values = [pos.values for pos in (q_pos, k_pos) if isinstance(pos, Position) and pos.values.numel()]
        if not values:
            return XPosCodes()
        if is_traced():
            low, high = (torch.stack([f(v.double()) for v in values]) for f in (torch.amin, torch.amax))
            start, end = low.amin().floor(), high.amax().floor()
            return XPosCodes(start + ((end - start + 2) / 2).floor())
        first = math.floor(min(float(v.amin()) for v in values))
        last = math.floor(max(float(v.amax()) for v in values))
        return XPosCodes(float(first + (last - first + 2) // 2))

    def rotate(
        self, x: Tensor, positions: object = None, codes: XPosCodes | None = None, downscale: bool = False
    ) -> Tensor:
        """x (.., n, dim) as a query, or with downscale as a key; codes None centres on these positions."""
        given = as_positions(positions, x.shape[-2], 0, "positions", x.device)
        return self._turned(x, given, self.make_codes(given, given) if codes is None else codes, -1 if downscale else 1)

    def angles(self, positions: Position, codes: XPosCodes | None) -> Tensor:
        return per_token(positions.values).unsqueeze(-1) * self.inv_freq.to(positions.values.device)

    def gain(self, positions: Position, codes: XPosCodes | None, side: int, dtype: torch.dtype) -> Tensor:
        steps = (per_token(positions.values) - (0.0 if codes is None else codes.centre)) / self.scale_base
        self._check_range(steps, dtype)
        return torch.exp(side * steps.unsqueeze(-1) * self.log_zeta.to(steps.device))

    def _check_range(self, steps: Tensor, dtype: torch.dtype) -> None:
        if not steps.numel() or is_traced():
            return
        rate = -float(self.log_zeta[0])
        wide = torch.finfo(dtype).max if dtype == torch.float64 else torch.finfo(torch.float32).max
        limit = min(math.log(torch.finfo(dtype).max) - _HEADROOM, (math.log(wide) - _HEADROOM) / 2)
        reach = float(steps.abs().amax())
        if rate * reach > limit:
            raise ValueError(
                f"XPos scales channels by up to exp({rate * reach:.1f}) at {reach * self.scale_base:.0f} tokens from "
                f"its centre, and {dtype} is good for exp({limit:.1f}): keep within "
                f"{limit / rate * self.scale_base:.0f} tokens of the centre (codes=encoding.make_codes(q_pos, k_pos)), "
                "take a wider dtype, or a larger scale_base"
            )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, base={self.base:g}, scale_base={self.scale_base:g}"
