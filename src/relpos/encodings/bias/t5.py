"""T5's relative bias: lags fall into buckets, exact when near and logarithmic when far."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relpos.encodings.base import Bias, Tail, check_heads, positive


def thresholds(side: int, max_distance: int) -> list[int]:
    """Smallest distance of each bucket 1..side-1 of one direction, in exact integer arithmetic.

    With h = side // 2 exact buckets and s = side - h logarithmic ones, bucket h + b holds the distances n with
    floor(ln(n / h) / ln(max_distance / h) * s) = b, that is n^s >= max_distance^b * h^(s-b). Logarithms in float32
    are one rounding away from the neighbouring bucket exactly at these edges, so no logarithm is taken.
    """
    h = side // 2
    s = side - h
    first = list(range(1, h + 1))
    for b in range(1, s):
        wanted = max_distance**b * h ** (s - b)
        n = max(first[-1], int(h * (max_distance / h) ** (b / s)) - 2)
        while n**s < wanted:
            n += 1
        first.append(n)
    return first


class T5Bias(Bias):
    """Adds table[bucket(lag), h] to the unscaled score of head h: q.k + table, without 1/sqrt(dim).

    table   (buckets, heads), N(0, model_dim^-1/2); model_dim defaults to 64 heads
    bucket  two-sided: half of the buckets a side, keys to the right of the query in the upper half; causal: all buckets
            for keys at or before the query, keys after it share bucket 0. In each direction the first half of the
            buckets is one distance each, the rest is logarithmic up to max_distance, and everything beyond shares the
            last. Real lags count as their whole part.
    The paper and its released code give the table to the first layer and share it with all layers: pass one object to
    every layer for that (UMT5 has one a layer). Cross-attention has none. `score_scale` is 1.
    Source: Raffel et al. 2020, section 2.1, and the bucket function of the released T5 code.
    """

    extrapolates = True
    shared = True
    reference = """@article{raffel2020exploring,
  title={Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer},
  author={Raffel, Colin and Shazeer, Noam and Roberts, Adam and Lee, Katherine and Narang, Sharan and Matena, Michael
    and Zhou, Yanqi and Li, Wei and Liu, Peter J.},
  journal={Journal of Machine Learning Research}, volume={21}, number={140}, year={2020}}"""

    first: Tensor

    def __init__(
        self,
        heads: int,
        buckets: int = 32,
        max_distance: int = 128,
        causal: bool = False,
        model_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.buckets, self.causal = check_heads(heads), positive("buckets", buckets), bool(causal)
        self.max_distance = positive("max_distance", max_distance)
        if buckets < (2 if causal else 4) or (buckets % 2 and not causal):
            raise ValueError(f"buckets is at least 2 where causal, else even and at least 4; got {buckets}")
        side = buckets if causal else buckets // 2
        if max_distance <= side // 2:
            raise ValueError(
                f"max_distance={max_distance} leaves no room for logarithmic buckets: distances up to {side // 2 - 1} "
                "have a bucket each; take a larger max_distance or fewer buckets"
            )
        first = thresholds(side, max_distance)
        self.reach = first[-1]  # the last bucket of a side holds every distance from here on
        self.register_buffer("first", torch.tensor(first), persistent=False)
        width = 64 * heads if model_dim is None else positive("model_dim", model_dim)
        self.table = nn.Parameter(torch.randn(buckets, heads) * width**-0.5)

    def score_scale(self, dim: int) -> float:
        """T5 was defined without 1/sqrt(dim)."""
        return 1.0

    def buckets_of(self, lag: Tensor) -> Tensor:
        """Bucket number of each lag (key - query), int64, in 0..buckets-1."""
        lag = lag.trunc() if lag.is_floating_point() else lag
        distance = (-lag).clamp(min=0) if self.causal else lag.abs()
        bucket = torch.bucketize(distance, self.first, right=True)
        return bucket if self.causal else bucket + (lag > 0) * (self.buckets // 2)

    def at(self, lag: Tensor) -> Tensor:
        table = self.table if self.table.dtype.itemsize >= 4 else self.table.float()
        return table.t()[:, self.buckets_of(lag)]

    def tail(self) -> Tail:
        return Tail(self.reach)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, buckets={self.buckets}, max_distance={self.max_distance}, causal={self.causal}"
