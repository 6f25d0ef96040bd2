"""The buckets into which iRPE sorts the lags of a grid."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from relpos.encodings.cells import placed
from relpos.positions import Grid

Method = Literal["product", "cross", "euclidean", "quant"]
METHODS = ("product", "cross", "euclidean", "quant")


def piecewise(x: int, ratio: float) -> int:
    """g(x) of Wu et al. 2021, eq. 18: fine near 0, coarse farther out, constant beyond 8 ratio.

    x for |x| <= a, else sign(x) min(b, round(a + ln(|x|/a)/ln(c/a) (b - a))), cut off to an integer as in the released
    code; a, b, c = ratio, 2 ratio, 8 ratio.
    """
    a, b, c = ratio, 2 * ratio, 8 * ratio
    if abs(x) <= a:
        return x
    y = round(a + math.log(abs(x) / a) / math.log(c / a) * (b - a))
    return int(math.copysign(int(min(b, y)), x))


class Buckets:
    """Sorts lags (query - key, in cells) into rows of a table, in one way or, for "cross", in two whose terms add up.

    product    g(dy) S + g(dx), S = 2 int(b) + 1, each g counted from 0: S^2 buckets
    cross      g(dy) and g(dx), apart: S buckets each, rows then columns
    euclidean  g(round(sqrt(dy^2 + dx^2))), quant g(dy^2 + dx^2): S buckets, of which those of a lag >= 0 are in use
    skip       one bucket more, the last (of each), for pairs with a class token
    """

    def __init__(self, method: Method, ratio: float, skip: bool) -> None:
        if method not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}, got {method!r}")
        if not 0.5 <= ratio < 1000:
            raise ValueError(f"ratio is a number from 0.5 (three buckets an axis) to 1000, got {ratio!r}")
        self.method, self.skip = method, skip
        self.reach = math.ceil(8 * ratio)  # g is constant from here on
        self.half = int(2 * ratio)
        side = 2 * self.half + 1
        self.side, self.count = side, (side * side if method == "product" else side) + skip
        self.rows = self.count * (2 if method == "cross" else 1)
        self._g = torch.tensor([piecewise(x, ratio) for x in range(-self.reach, self.reach + 1)]) + self.half

    def of_pairs(self, query: Tensor, key: Tensor) -> list[Tensor]:
        """Rows of the table for cells (batch or 1, n_q, 2) and (batch or 1, n_k, 2): int64 (batch or 1, n_q, n_k)."""
        lag = -Grid.between(query, key).clamp(-self.reach, self.reach)
        g = self._g = self._g.to(lag.device)  # moves once
        y, x = lag.unbind(-1)
        if self.method in ("euclidean", "quant"):
            square = y * y + x * x
            far = square if self.method == "quant" else square.to(torch.float64).sqrt().round().to(torch.int64)
            found = [g[far.clamp(max=self.reach) + self.reach]]
        else:
            of_y, of_x = g[y + self.reach], g[x + self.reach]
            found = [of_y * self.side + of_x] if self.method == "product" else [of_y, of_x]
        if self.skip:
            beside = ~(placed(query).unsqueeze(-1) & placed(key).unsqueeze(-2))
            found = [part.masked_fill(beside, self.count - 1) for part in found]
        return [part + n * self.count for n, part in enumerate(found)]
