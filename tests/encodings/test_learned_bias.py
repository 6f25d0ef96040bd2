from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from tests.encodings.case import EncodingCase


class TestLearnedBias(EncodingCase):
    name = "learned_bias"

    def make(self) -> Any:
        return rp.encodings.LearnedBias(self.heads, 4)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        out = torch.zeros(1, self.heads, len(q_pos), len(k_pos), dtype=torch.float64)
        for i, a in enumerate(q_pos.tolist()):
            for j, b in enumerate(k_pos.tolist()):
                out[0, :, i, j] = encoding.table[:, min(max(b - a, -4), 4) + 4]
        return out

    def test_beyond(self) -> None:
        lag = torch.tensor([-9, -4, 0, 4, 5])
        for beyond, outside in (("clip", False), ("zero", True)):
            bias = rp.encodings.LearnedBias(2, 4, beyond)  # type: ignore[arg-type]
            assert bool((bias.at(lag)[:, [0, 4]] == 0).all()) is outside
        with pytest.raises(ValueError, match="lag of 9 lies beyond"):
            rp.encodings.LearnedBias(2, 4, "error").at(lag)
        with pytest.raises(ValueError, match="beyond"):
            rp.encodings.LearnedBias(2, 4, "wrap")  # type: ignore[arg-type]


class TestNoPE(EncodingCase):
    name = "nope"

    def make(self) -> Any:
        return rp.encodings.NoPE()

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2) / self.dim**0.5

    def test_refuses_what_does_not_fit(self) -> None:
        """It takes positions of every kind, and so refuses only those that no encoding could use."""
        q, k, v, content = self.inputs(4, 4)
        want = self.run(self.build(), q, k, v, content)
        for pos in (rp.positions.Grid.of(2, 2), torch.rand(4).sort().values, {"index": torch.arange(4)}):
            assert torch.equal(self.run(self.build(), q, k, v, content, q_pos=pos, k_pos=pos), want)
        with pytest.raises(ValueError, match="NaN"):
            self.run(self.build(), q, k, v, content, q_pos=torch.tensor([0.0, 1.0, float("nan"), 2.0]))
        with pytest.raises(ValueError, match="5 positions"):
            self.run(self.build(), q, k, v, content, q_pos=torch.arange(5))
