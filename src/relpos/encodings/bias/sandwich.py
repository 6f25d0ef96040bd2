"""Sandwich: the inner product of sinusoidal position embeddings as a bias."""

from __future__ import annotations

import torch
from torch import Tensor

from relpos.encodings.base import check_heads, positive
from relpos.encodings.bias.alibi import FixedBias


class Sandwich(FixedBias):
    """Adds (1 / c_h) sum_t cos(lag / 10000^(2t/dim)), t = 0..dim/2-1, c_h = 8h/heads, h = 1..heads, to the score.

    dim  width of the sinusoids (128 in the paper), not the width of the heads
    Two-sided and even in the lag, added after the scale, not learned, and exactly of rank dim (`factors`). Angles are
    taken in float64: in float32 the angle of a lag of 10^5 is off by 4e-3.
    Source: Chi et al. 2023, section 5. The formula was not compared with released code.
    """

    extrapolates = True
    has_factors = True
    reference = """@inproceedings{chi2023dissecting,
  title={Dissecting Transformer Length Extrapolation via the Lens of Receptive Field Analysis},
  author={Chi, Ta-Chung and Fan, Ting-Han and Rudnicky, Alexander I. and Ramadge, Peter J.},
  booktitle={ACL}, year={2023}}"""

    frequencies: Tensor
    weights: Tensor

    def __init__(self, heads: int, dim: int = 128) -> None:
        super().__init__()
        if positive("dim", dim) % 2:
            raise ValueError(f"dim is even (a cosine takes two), got {dim}")
        self.heads, self.dim = check_heads(heads), dim
        exponent = torch.arange(dim // 2, dtype=torch.float64) * 2 / dim
        self.register_buffer("frequencies", 10000.0**-exponent, persistent=False)
        head = torch.arange(1, heads + 1, dtype=torch.float64)
        self.register_buffer("weights", heads / (8 * head), persistent=False)

    def at(self, lag: Tensor) -> Tensor:
        total = torch.zeros(lag.shape, dtype=torch.float64, device=lag.device)
        for frequency in self.frequencies.double():  # one at a time: lags may be many
            total += torch.cos(lag * frequency)
        return (self.weights.double().view(-1, *[1] * lag.dim()) * total).to(self.weights.dtype)

    def factors(self, n: int) -> tuple[Tensor, Tensor]:
        position = torch.arange(n, dtype=torch.float64, device=self.weights.device)
        angle = position[:, None] * self.frequencies.double()
        waves = torch.cat([angle.cos(), angle.sin()], -1)
        return self.weights.double().view(-1, 1, 1) * waves, waves.expand(self.heads, -1, -1)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dim={self.dim}"
