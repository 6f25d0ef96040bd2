from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Index
from tests.encodings.case import EncodingCase
from tests.encodings.tiles import SHAPES, check_tiles


class TestLowRankLogits(EncodingCase):
    name = "low_rank_logits"
    rank, extent = 4, 6
    tau_floor: int | None = None

    def make(self) -> Any:
        encoding = rp.encodings.LowRankLogits(self.heads, self.model_dim, self.rank, self.extent, self.tau_floor)
        for p in encoding.parameters():
            torch.nn.init.normal_(p, std=0.5)
        return encoding

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        weight = encoding.project.weight.view(self.heads, self.rank, self.model_dim)
        out = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
        rows = content[:, content.shape[1] - len(q_pos) :]
        for i, a in enumerate(q_pos.tolist()):
            tau = 1.0 if self.tau_floor is None else 1 + 0.1 * math.log(max((a + 1) / self.tau_floor, 1))
            for j, b in enumerate(k_pos.tolist()):
                if 0 <= a - b < self.extent:
                    out[:, :, i, j] = tau * torch.einsum("hrm,bm,r->bh", weight, rows[:, i], encoding.bank[:, a - b])
        return out

    @pytest.mark.parametrize(("n_q", "n_k"), [(1, 1), (1, 7), (2, 2), (3, 8), (5, 5), (31, 31)])
    def test_attention_equals_truth(self, n_q: int, n_k: int) -> None:
        super().test_attention_equals_truth(n_q, n_k)

    def test_more_queries_than_rows_of_the_input(self) -> None:
        encoding = self.build()
        with pytest.raises(ValueError, match=r"the 7 queries .* has 3; give at least as many keys"):
            self.run(encoding, *self.inputs(7, 3))

    @pytest.mark.parametrize(("n_q", "n_k"), [shape for shape in SHAPES if shape[0] <= shape[1]])
    @pytest.mark.parametrize("offset", [0, 3, -5])
    def test_tiles(self, n_q: int, n_k: int, offset: int) -> None:
        encoding = self.build()
        q, k, _, content = self.inputs(n_q, n_k)
        q_pos, k_pos = torch.arange(n_q) + offset, torch.arange(n_k)
        states = encoding.prepare(q, k, Index(q_pos), Index(k_pos), encoding.digest(content))
        check_tiles(encoding, q, k, states, self.truth(encoding, q, k, q_pos, k_pos, content))

    def test_tiles_of_scattered_positions(self) -> None:
        encoding = self.build()
        q, k, _, content = self.inputs(5, 7)
        q_pos, k_pos = torch.tensor([3, 9, 9, 40, 90000]), torch.tensor([-2, 0, 1, 41, 36, 90001, 89998])
        states = encoding.prepare(q, k, Index(q_pos), Index(k_pos), encoding.digest(content))
        check_tiles(encoding, q, k, states, self.truth(encoding, q, k, q_pos, k_pos, content), fast=False)

    def test_nothing_outside_the_bank(self) -> None:
        """Keys after the query, and keys `extent` or more before it, get exactly no bias; all others do."""
        encoding = self.build()
        q, k, _, content = self.inputs(12, 12)
        states = encoding.prepare(q, k, Index.arange(12), Index.arange(12), encoding.digest(content))
        term = encoding.tile(q, k, {name: state.tensor for name, state in states.items()}, None)
        difference = torch.arange(12)[:, None] - torch.arange(12)
        inside = (difference >= 0) & (difference <= 5)
        assert not term[..., ~inside].any() and (term[..., inside] != 0).all()

    def test_gradient_reaches_the_input(self) -> None:
        encoding = self.build()
        q, k, v, content = self.inputs(6, 6)
        content.requires_grad_()
        grads = []
        for kernel in ("dense", "generic"):
            out = self.run(encoding, q, k, v, content, kernel=kernel)
            grads.append(torch.autograd.grad(out.square().sum(), content)[0])
        assert grads[0].any()
        torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=1e-12)

    def test_stream_keeps_the_digest(self) -> None:
        """Token by token equals the whole, and what is kept of a token is heads * rank numbers."""
        encoding = self.build()
        q, k, v, content = self.inputs(9, 9)
        assert encoding.digest(content).shape == (2, 9, self.heads * self.rank)
        whole = self.run(encoding, q, k, v, content, causal=True)
        stream = rp.mixers.stream.Stream(encoding)
        for i in range(9):
            now = slice(i, i + 1)
            row = stream.step(q[:, :, now], k[:, :, now], v[:, :, now], content=content[:, now])
            torch.testing.assert_close(row, whole[:, :, now], rtol=0, atol=1e-12)

    def test_bad_input(self) -> None:
        encoding = self.build()
        q, k, v, content = self.inputs(4, 4)
        with pytest.raises(ValueError, match="pass content=x"):
            rp.attention(q, k, v, encoding)
        with pytest.raises(ValueError, match="width 12, content has 5"):
            self.run(encoding, q, k, v, content[..., :5])
        with pytest.raises(ValueError, match="tau_floor is a positive integer"):
            rp.encodings.LowRankLogits(2, 8, tau_floor=0)


class TestWithTemperature(TestLowRankLogits):
    tau_floor = 3
    exact_shift = False

    def test_tau(self) -> None:
        encoding = self.build()
        tau = encoding.tau(torch.tensor([-4, 0, 2, 3, 8]))
        want = [1, 1, 1, 1 + 0.1 * math.log(4 / 3), 1 + 0.1 * math.log(3)]
        torch.testing.assert_close(tau, torch.tensor(want, dtype=torch.float64))
