from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import State, Tile
from relpos.mixers.stream import Stream
from relpos.positions import Index
from tests.encodings.case import EncodingCase


class TestFoX(EncodingCase):
    name = "fox"
    causal = True

    def make(self) -> Any:
        return rp.encodings.FoX(self.heads, self.model_dim)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        gate = content @ encoding.gate.weight.T + encoding.gate.bias
        log_f = -torch.log1p(torch.exp(-gate))  # (batch, n_k, heads)
        start = int(k_pos[0])
        out = torch.zeros(len(q), self.heads, len(q_pos), len(k_pos), dtype=torch.float64)
        for i, a in enumerate((q_pos - start).tolist()):
            for j, b in enumerate((k_pos - start).tolist()):
                for t in range(b + 1, a + 1):
                    out[:, :, i, j] += log_f[:, t]
        return out


def pieces(n: int, heads: int = 2, width: int = 6, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(n)
    shapes = [(1, heads, n, 4)] * 3 + [(1, n, width)]
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
def test_constant_gate_is_alibi(kernel: str) -> None:
    """Slope -ln f a head, whatever the input."""
    encoding = rp.encodings.FoX(2, 6, spans=(2.0, 32.0)).double()
    q, k, v, x = pieces(19)
    slopes = torch.log1p(torch.exp(-encoding.gate.bias.detach())).view(2, 1, 1)  # -ln f
    assert (slopes.flatten() - torch.tensor([1 / 2, 1 / 32])).abs().max() < 1e-6  # f = exp(-1 / span)
    lag = torch.arange(19)[None] - torch.arange(19)[:, None]
    score = q @ k.mT / 2 + slopes * lag
    want = score.masked_fill(lag > 0, -torch.inf).softmax(-1) @ v
    got = rp.attention(q, k, v, encoding, content=x, causal=True, kernel=kernel)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_gates_of_one_are_no_encoding() -> None:
    encoding = rp.encodings.FoX(2, 6).double()
    with torch.no_grad():
        encoding.gate.weight.zero_()
        encoding.gate.bias.fill_(60.0)
    q, k, v, x = pieces(9)
    got = rp.attention(q, k, v, encoding, content=x, causal=True)
    torch.testing.assert_close(got, rp.attention(q, k, v, causal=True), rtol=0, atol=1e-12)


def test_spans_are_log_spaced() -> None:
    encoding = rp.encodings.FoX(5, 3, spans=(1.0, 16.0)).double()
    gates = encoding.digest(torch.randn(1, 2, 3, dtype=torch.float64))[0, 0]
    want = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    torch.testing.assert_close(-1 / gates, want, rtol=1e-6, atol=0)  # the bias was made in float32
    assert not rp.encodings.FoX(5, 3).gate.bias.any()


@pytest.mark.parametrize("chunks", [[1] * 11, [4, 4, 3], [1, 9, 1], [11]])
def test_chunks_equal_the_whole(chunks: list[int]) -> None:
    encoding = rp.encodings.FoX(2, 6).double()
    q, k, v, x = pieces(11)
    whole = rp.attention(q, k, v, encoding, content=x, causal=True)
    stream, rows, start = Stream(encoding), [], 0
    for size in chunks:
        part = slice(start, start + size)
        rows.append(stream.step(q[:, :, part], k[:, :, part], v[:, :, part], content=x[:, part]))
        start += size
    torch.testing.assert_close(torch.cat(rows, 2), whole, rtol=0, atol=1e-12)


def test_queries_anywhere_among_the_keys() -> None:
    encoding = rp.encodings.FoX(2, 6).double()
    q, k, v, x = pieces(9)
    whole = rp.attention(q, k, v, encoding, content=x, causal=True)
    some = rp.attention(q[:, :, 2:5], k, v, encoding, content=x, causal=True, q_pos=torch.arange(2, 5))
    torch.testing.assert_close(some, whole[:, :, 2:5], rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"tokens 8\.\.10, but content ends at token 8"):
        rp.attention(q[:, :, :3], k, v, encoding, content=x, causal=True, q_pos=torch.arange(8, 11))


def test_sums_of_a_hundred_thousand_gates() -> None:
    """Against exact sums of the same gates; in float32 a running sum would be off by whole gates at the end."""
    n = 100_000
    encoding = rp.encodings.FoX(1, 1)
    log_f = -torch.rand(1, n, 1) * 0.7 - 1e-3
    q = torch.zeros(1, 1, n, 1)
    states = encoding.prepare(q, q, Index.arange(n), Index.arange(n), log_f)
    gates = log_f.flatten().tolist()
    for i0, j0 in [(n - 3, n - 5), (n - 3, n - 300), (n - 3, 0), (50_000, 49_990)]:
        tile = Tile(i0, i0 + 3, j0, j0 + 4, n, n)
        term = encoding.tile(q[:, :, :3], q, {name: tile.slice(s) for name, s in states.items()}, tile)
        assert term.dtype == torch.float32
        for a in range(3):
            for b in range(4):
                if j0 + b <= i0 + a:
                    exact = math.fsum(gates[j0 + b + 1 : i0 + a + 1])
                    assert abs(float(term[0, 0, a, b]) - exact) <= 1e-7 * abs(exact) + 1e-9


@pytest.mark.parametrize("where", [(0, 1, 0, 1), (0, 7, 0, 7), (2, 5, 0, 6), (4, 7, 5, 6)])
def test_backward_of_a_tile_equals_autograd(where: tuple[int, int, int, int]) -> None:
    encoding = rp.encodings.FoX(2, 6).double()
    q, k, _, x = pieces(7)
    states = encoding.prepare(q, k, Index.arange(7), Index.arange(7), encoding.digest(x))
    tile = Tile(*where, 7, 7)
    leaves = {n: tile.slice(State(s.tensor.detach(), s.along, s.axis)).requires_grad_() for n, s in states.items()}
    term = encoding.tile(q, k, leaves, tile)
    grad = torch.randn_like(term)
    got = encoding.tile_backward(grad, q, k, leaves, tile)
    for name, want in zip(leaves, torch.autograd.grad(term, list(leaves.values()), grad), strict=True):
        torch.testing.assert_close(got[name], want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
def test_gradient_reaches_the_gate_and_the_input(kernel: str) -> None:
    encoding = rp.encodings.FoX(2, 3).double()
    q, k, v, x = pieces(6, width=3)

    def f(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parameters = {"gate.weight": weight, "gate.bias": bias}
        digest = torch.func.functional_call(Digesting(encoding), {f"of.{n}": p for n, p in parameters.items()}, x)
        return rp.attention(q, k, v, encoding, content=rp.mixers.functional.Digest(digest), causal=True, kernel=kernel)

    leaves = [x.requires_grad_(), *(p.detach().clone().requires_grad_() for p in encoding.parameters())]
    assert torch.autograd.gradcheck(f, leaves, atol=1e-6)


class Digesting(torch.nn.Module):
    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return self.of.digest(x)


def test_refuses() -> None:
    encoding = rp.encodings.FoX(2, 6).double()
    q, k, v, x = pieces(5)
    with pytest.raises(ValueError, match="causal=True"):
        rp.attention(q, k, v, encoding, content=x)
    with pytest.raises(ValueError, match="content=x"):
        rp.attention(q, k, v, encoding, causal=True)
    with pytest.raises(ValueError, match="model_dim=6"):
        rp.attention(q, k, v, encoding, content=x[..., :3], causal=True)
    with pytest.raises(ValueError, match="must not decrease"):
        backwards = torch.arange(5).flip(0)
        rp.attention(q, k, v, encoding, content=x, causal=True, q_pos=backwards, k_pos=backwards)
    with pytest.raises(ValueError, match="spans"):
        rp.encodings.FoX(2, 6, spans=(5.0, 1.0))
