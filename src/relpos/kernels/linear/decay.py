"""The factor of the lag that a transform wants its weights multiplied by."""

from __future__ import annotations

import torch
from torch import Tensor

from relpos.encodings.base import Bias, Tail


class Decay(Bias):
    """-rate |lag|: what a transform wants its weights multiplied by, besides."""

    learned = False
    rates: Tensor

    def __init__(self, rates: Tensor) -> None:
        super().__init__()
        self.heads = len(rates)
        self.register_buffer("rates", rates, persistent=False)

    def at(self, lag: Tensor) -> Tensor:
        return -self.rates.view(-1, *[1] * lag.dim()) * lag.abs()

    def tail(self) -> Tail:
        return Tail(0, torch.stack([self.rates, self.rates], -1))
