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


def sinusoid(difference: int, model_dim: int) -> Tensor:
    angles = [difference / 10000 ** (2 * t / model_dim) for t in range(model_dim // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


class TestTransformerXL(EncodingCase):
    name = "transformer_xl"

    def make(self) -> Any:
        encoding = rp.encodings.TransformerXL(self.heads, self.dim, self.model_dim)
        for p in encoding.parameters():
            torch.nn.init.normal_(p, std=0.5)
        return encoding

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        weight = encoding.project.weight.view(self.heads, self.dim, self.model_dim)
        out = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
        for i, a in enumerate(q_pos.tolist()):
            for j, b in enumerate(k_pos.tolist()):
                moved = weight @ sinusoid(a - b, self.model_dim)  # (heads, dim)
                out[:, :, i, j] = (encoding.u * k[:, :, j] + (q[:, :, i] + encoding.w) * moved).sum(-1)
        return out / self.dim**0.5

    @pytest.mark.parametrize(("n_q", "n_k"), SHAPES)
    @pytest.mark.parametrize("offset", [0, 3, -5])
    def test_tiles(self, n_q: int, n_k: int, offset: int) -> None:
        encoding = self.build()
        q, k, _, content = self.inputs(n_q, n_k)
        q_pos, k_pos = torch.arange(n_q) + offset, torch.arange(n_k)
        states = encoding.prepare(q, k, Index(q_pos), Index(k_pos))
        assert ("lags" in states) is (2 * n_q >= self.dim)
        check_tiles(encoding, q, k, states, self.truth(encoding, q, k, q_pos, k_pos, content), "lags" in states)

    def test_tiles_of_scattered_positions(self) -> None:
        encoding = self.build()
        q, k, _, content = self.inputs(5, 7)
        q_pos, k_pos = torch.tensor([3, 9, 9, 40, 90000]), torch.tensor([-2, 0, 1, 41, 7, 90001, 12345])
        states = encoding.prepare(q, k, Index(q_pos), Index(k_pos))
        assert "lags" not in states
        # float64 sinusoids of 9e4 rad carry errors of 1e-11
        term = encoding.tile(q, k, {name: state.tensor for name, state in states.items()}, None)
        torch.testing.assert_close(term, self.truth(encoding, q, k, q_pos, k_pos, content), rtol=0, atol=1e-9)
        q_pos, k_pos = q_pos % 50, k_pos % 50
        states = encoding.prepare(q, k, Index(q_pos), Index(k_pos))
        check_tiles(encoding, q, k, states, self.truth(encoding, q, k, q_pos, k_pos, content), fast=False)

    def test_few_queries_take_the_shorter_way_to_the_same_rows(self) -> None:
        encoding = self.build()
        q, k, v, content = self.inputs(16, 16)
        whole = self.run(encoding, q, k, v, content)
        for t in (1, 3):
            part = self.run(encoding, q[:, :, -t:], k, v, content)
            torch.testing.assert_close(part, whole[:, :, -t:], rtol=0, atol=1e-12)

    def test_a_memory_counts_as_keys_before_the_queries(self) -> None:
        """Six queries behind a memory: the last key is the last query's own place, also with a longer memory."""
        encoding = self.build()
        for memory in (4, 40):
            q, k, _, content = self.inputs(6, 6 + memory)
            q_pos, k_pos = torch.arange(6) + memory, torch.arange(6 + memory)
            term = self.truth(encoding, q, k, q_pos, k_pos, content)
            got = self.run(encoding, q, k, k, content)
            want = (q @ k.mT / self.dim**0.5 + term).softmax(-1) @ k
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)

    def test_own_scale_leaves_the_term(self) -> None:
        encoding = self.build()
        q, k, v, content = self.inputs(5, 5)
        term = self.truth(encoding, q, k, torch.arange(5), torch.arange(5), content)
        got = self.run(encoding, q, k, v, content, scale=0.25)
        torch.testing.assert_close(got, (q @ k.mT * 0.25 + term).softmax(-1) @ v, rtol=0, atol=1e-12)

    def test_sign_and_direction(self) -> None:
        """A query that reads the slowest sine alone rises with how far back a key lies."""
        encoding = rp.encodings.TransformerXL(1, 2, 4).double()
        with torch.no_grad():
            for p in encoding.parameters():
                p.zero_()
            encoding.project.weight[0, 1] = encoding.w[0, 0] = 1.0  # column 1: the sine of the lower frequency
        q = torch.zeros(1, 1, 5, 2, dtype=torch.float64)
        states = encoding.prepare(q, q, Index.arange(5), Index.arange(5))
        term = encoding.tile(q, q, {n: s.tensor for n, s in states.items()}, None)[0, 0]
        torch.testing.assert_close(term[4, 0].item(), math.sin(4 / 100) / 2**0.5)
        assert (term[4].diff() < 0).all() and term[0, 4] == -term[4, 0]

    def test_short_parameters_are_computed_in_float32(self) -> None:
        short = self.build().bfloat16()
        q, k, _, _ = self.inputs(40, 40, torch.bfloat16)
        pos = Index.arange(40)
        got, want = (
            short.to(dtype).tile(q, k, {n: s.tensor for n, s in short.prepare(q.to(dtype), k, pos, pos).items()}, None)
            for dtype in (torch.bfloat16, torch.float64)
        )
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-4)

    def test_from_reference(self) -> None:
        encoding = self.build()
        released = {
            "r_w_bias": encoding.u.detach().numpy(),
            "r_r_bias": encoding.w.detach().numpy(),
            "txl_sd_r_net.weight": encoding.project.weight.detach().numpy(),
            "txl_sd_o_net.weight": torch.zeros(3, 3).numpy(),
        }
        other = rp.encodings.TransformerXL.from_reference(released)
        for name, value in encoding.state_dict().items():
            assert torch.equal(other.state_dict()[name], value)
        with pytest.raises(ValueError, match=r"no array is called r_net\.weight"):
            rp.encodings.TransformerXL.from_reference({"r_w_bias": released["r_w_bias"], "rr": released["r_r_bias"]})

    def test_bad_options(self) -> None:
        with pytest.raises(ValueError, match=r"model_dim is even.* got 7"):
            rp.encodings.TransformerXL(2, 4, 7)
        q = torch.randn(1, 2, 3, 6)
        with pytest.raises(ValueError, match="width dim=4, q has 6"):
            rp.attention(q, q, q, rp.encodings.TransformerXL(2, 4, 8))
