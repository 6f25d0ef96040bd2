"""ALiBi: a penalty linear in distance, with a fixed slope a head."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relpos.encodings.base import Bias, Tail, check_heads
from relpos.encodings.buffers import WideBuffers

Rule = Literal["author", "geometric"]


def alibi_slopes(heads: int, rule: Rule = "author") -> Tensor:
    """Slopes in nats a token, float64 (heads,).

    "geometric": 2^(-8 h / heads), h = 1..heads. "author" is the same where heads is a power of two; otherwise, with P
    the largest power of two below, it takes the P slopes of P and then every second slope of 2P, from its first.
    """
    check_heads(heads)
    if rule not in ("author", "geometric"):
        raise ValueError(f'slopes is "author" or "geometric", got {rule!r}')

    def geometric(count: int) -> list[float]:
        first: float = 2.0 ** (-8.0 / count)
        return [first * first**h for h in range(count)]  # the released order of operations, to the last bit

    power = 2 ** (heads.bit_length() - 1)
    if rule == "geometric" or power == heads:
        return torch.tensor(geometric(heads), dtype=torch.float64)
    return torch.tensor(geometric(power) + geometric(2 * power)[::2][: heads - power], dtype=torch.float64)


class FixedBias(WideBuffers, Bias):
    """A bias whose constants stay in float32 or wider."""

    learned = False


class Stored(NamedTuple):
    """Channels already rounded to a dtype: q (heads, n, r) holds the term divided by `scale`, k (heads, n, r).

    error  bound of |scale * q_i.k_j - bias|, up to a constant a row, over the lags in use
    """

    q: Tensor
    k: Tensor
    error: float


class ALiBi(FixedBias):
    """Adds -m_h D to the score of head h, D = query - key position: near keys weigh more.

    slopes     (heads,) buffer, float64, m_h = 2^(-8h/heads) for a power of two; see `alibi_slopes` for the two rules in
               use elsewhere ("author", the released code, and "geometric")
    symmetric  True: -m_h |D| on both sides (as FlashAttention's alibi_slopes). False: keys after the query get 0, which
               is for causal attention only: in two-sided attention they would all look near.
    causal     what a layer knows of itself; False asks for the symmetric form
    Added after the scale; not learned. The released code adds +m_h j instead, which differs by a constant a row, so not
    under softmax.
    Source: Press et al. 2022, section 3, and the authors' `get_slopes`.
    """

    extrapolates = True
    has_factors = True
    reference = """@inproceedings{press2022train,
  title={Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation},
  author={Press, Ofir and Smith, Noah A. and Lewis, Mike},
  booktitle={ICLR}, year={2022}}"""

    slopes: Tensor

    def __init__(
        self, heads: int, symmetric: bool = False, slopes: Rule = "author", causal: bool | None = None
    ) -> None:
        super().__init__()
        self.heads, self.symmetric = check_heads(heads), bool(symmetric) or causal is False
        self.register_buffer("slopes", alibi_slopes(heads, slopes))

    def at(self, lag: Tensor) -> Tensor:
        distance = lag.abs() if self.symmetric else (-lag).clamp(min=0)
        return -self.slopes.view(-1, *[1] * lag.dim()) * distance

    def tail(self) -> Tail:
        """Straight from lag 0 on."""
        after = self.slopes if self.symmetric else torch.zeros_like(self.slopes)
        return Tail(0, torch.stack([self.slopes, after], -1))

    def exact_channels(self, n: int, dtype: torch.dtype, scale: float, causal: bool, pieces: int) -> Stored | None:
        """+m_h j as base-128 digits of j, a constant a row away from -m_h (i - j); None where it is not of finite rank.

        q holds m_h 2^7 / scale as a sum of `pieces` numbers of the dtype, each rounded once; k the digits times
        2^(7p - 7). Every digit and its power of two is exact even in bfloat16, so the bias stays exactly linear and
        only the slope is rounded. A slope is never multiplied by a position before rounding: that is 16 nats off in
        bfloat16 at n = 8192, m = 1/2.
        """
        if not causal:
            return None
        bits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}.get(dtype, 53)
        base = 7
        count = 1
        while (n - 1) >> (base * (count - 1)) > 2**bits:
            count += 1
        parts, rest = [], self.slopes.double() * 2.0**base / scale
        for _ in range(pieces):
            parts.append(rest.to(dtype))
            rest = rest - parts[-1].double()
        position = torch.arange(n, device=self.slopes.device)
        digits = []
        for p in range(count):
            digit = position >> (base * p)
            digit = digit & (2**base - 1) if p < count - 1 else digit
            digits.append((digit.double() * 2.0 ** (base * p - base)).to(dtype))
        q = torch.stack([part for part in parts for _ in digits], -1)  # (heads, pieces * count)
        k = torch.stack(digits * pieces, -1)
        worst = float((rest * 2.0**-base * scale).abs().max()) * max(n - 1, 0)
        shape = (self.heads, n, pieces * count)
        return Stored(q.unsqueeze(1).expand(shape), k.unsqueeze(0).expand(shape), worst)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, symmetric={self.symmetric}"
