"""The layer: projections around `attention`, by hand; self and cross, grouped, streamed, by name and by object."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from tests.core.naive import ToyBias, ToyContent, ToyTurn, naive_attention


def layer(**options: Any) -> rp.SelfAttention:
    torch.manual_seed(1)
    return rp.SelfAttention(12, 3, **options).double()


def by_hand(m: rp.SelfAttention, x: Tensor, context: Tensor | None = None, **options: Any) -> Tensor:
    """The definition: project, split into heads (heads outermost), attend naively, merge, project."""
    memory = x if context is None else context

    def split(linear: Any, t: Tensor, heads: int) -> Tensor:
        y = t @ linear.weight.T + (0 if linear.bias is None else linear.bias)
        return torch.stack(y.chunk(heads, -1), 1)

    q, k, v = split(m.q, x, m.heads), split(m.k, memory, m.kv_heads), split(m.v, memory, m.kv_heads)
    out = naive_attention(q, k, v, m.encoding, **options)
    merged = torch.cat(list(out.unbind(1)), -1)
    return merged @ m.out.weight.T + (0 if m.out.bias is None else m.out.bias)


def data(n: int = 7, batch: int = 2, dim: int = 12) -> Tensor:
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("encoding", [None, ToyBias(3), ToyContent(3, 4), ToyTurn(4)])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_equals_the_definition(kv_heads: int, encoding: Any) -> None:
    x, context = data(), data(5)
    mask = torch.tensor([[True] * 5 + [False] * 2, [False, True] * 3 + [True]])
    for options in ({}, {"causal": True}, {"causal": True, "window": 2}, {"scale": 0.1}, {"bias": False}):
        m = layer(encoding=encoding, kv_heads=kv_heads, **options)
        given = {k: v for k, v in options.items() if k != "bias"}
        torch.testing.assert_close(m(x), by_hand(m, x, **given), rtol=0, atol=1e-11)
        masked = by_hand(m, x, key_mask=mask, **given)
        torch.testing.assert_close(m(x, key_mask=mask), masked, rtol=0, atol=1e-11)
    m = layer(encoding=encoding, kv_heads=kv_heads)
    torch.testing.assert_close(m(x, context), by_hand(m, x, context), rtol=0, atol=1e-11)


def test_cross_attention_takes_masks_and_positions_of_the_context() -> None:
    m = layer(encoding=ToyBias(3))
    x, context = data(4), data(6)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    options = {"q_pos": torch.arange(4) * 3, "k_pos": torch.arange(6) + 2, "key_mask": mask}
    torch.testing.assert_close(m(x, context, **options), by_hand(m, x, context, **options), rtol=0, atol=1e-11)


def test_self_attention_uses_one_set_of_positions() -> None:
    m = layer(encoding=ToyBias(3))
    x, pos = data(), torch.tensor([0, 3, 4, 5, 9, 10, 11])
    torch.testing.assert_close(m(x, q_pos=pos), by_hand(m, x, q_pos=pos, k_pos=pos), rtol=0, atol=1e-11)


def test_head_width_may_be_free() -> None:
    m = layer(encoding=ToyBias(3), head_dim=5)
    torch.testing.assert_close(m(data()), by_hand(m, data()), rtol=0, atol=1e-11)
    assert m(data()).shape == (2, 7, 12)


def test_segments() -> None:
    m = layer(encoding=ToyBias(3), causal=True)
    x, segments = data(), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    got = m(x, segments=segments)
    torch.testing.assert_close(got[:, :3], m(x[:, :3]), rtol=0, atol=1e-12)
    torch.testing.assert_close(got[:, 3:], m(x[:, 3:]), rtol=0, atol=1e-12)


def test_dropout_acts_in_training_only() -> None:
    m = layer(encoding=ToyBias(3), dropout=0.5)
    x = data()
    plain = layer(encoding=m.encoding)
    plain.load_state_dict(m.state_dict())
    m.eval()
    assert torch.equal(m(x), plain(x))
    m.train()
    runs = [m(x, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], plain(x))


@pytest.mark.parametrize("encoding", [None, "learned_bias", ToyBias(3), ToyContent(3, 4), ToyTurn(4)])
@pytest.mark.parametrize("chunks", [[1] * 9, [5, 1, 3]])
def test_stream_equals_the_whole(chunks: list[int], encoding: Any) -> None:
    m = layer(encoding=encoding, causal=True, kv_heads=1, window=5).eval()
    x = data(9)
    stream, out, at = m.stream(), [], 0
    for size in chunks:
        out.append(m(x[:, at : at + size], stream=stream))
        at += size
    torch.testing.assert_close(torch.cat(out, 1), m(x), rtol=0, atol=1e-11)


def test_by_name_builds_with_what_the_layer_knows() -> None:
    m = layer(encoding="learned_bias", encoding_options={"max_lag": 5})
    assert isinstance(m.encoding, rp.encodings.LearnedBias)
    assert m.encoding.heads == 3 and m.encoding.max_lag == 5
    assert "encoding.table" in m.state_dict()
    torch.testing.assert_close(m(data()), m(data()))
    own = rp.encodings.LearnedBias(3, 5).double()
    own.load_state_dict(m.encoding.state_dict())
    other = layer(encoding=own)
    other.load_state_dict(m.state_dict())
    assert torch.equal(other(data()), m(data()))


def test_one_object_in_two_layers_sums_its_gradients() -> None:
    shared = ToyBias(3).double()
    a, b = layer(encoding=shared), layer(encoding=shared)
    x = data()
    both = torch.autograd.grad(a(x).sum() + b(2 * x).sum(), shared.table)[0]
    first = torch.autograd.grad(a(x).sum(), shared.table)[0]
    second = torch.autograd.grad(b(2 * x).sum(), shared.table)[0]
    torch.testing.assert_close(both, first + second, rtol=0, atol=1e-12)
    assert len({id(p) for p in torch.nn.ModuleList([a, b]).parameters()}) == 8 + 8 + 2


class Ramp(rp.encodings.Absolute):
    """Adds the position itself, a tenth a token, to every second column."""

    learned = False

    def add(self, x: Tensor, pos: Any = None) -> Tensor:
        odd = torch.arange(x.shape[-1]) % 2
        return x + self._index(x, pos).to(x.dtype).unsqueeze(-1) / 10 * odd


def test_absolute_acts_on_the_input() -> None:
    m, plain = layer(encoding=Ramp(), causal=True), layer(causal=True)
    x = data()
    odd = torch.arange(12) % 2
    ramp = torch.arange(7, dtype=torch.float64)[:, None] / 10 * odd
    torch.testing.assert_close(m(x), plain(x + ramp), rtol=0, atol=1e-12)
    pos = torch.arange(7) + 30
    torch.testing.assert_close(m(x, q_pos=pos), plain(x + 3 * odd + ramp), rtol=0, atol=1e-12)
    stream = m.stream()
    got = torch.cat([m(x[:, :4], stream=stream), m(x[:, 4:], stream=stream)], 1)
    torch.testing.assert_close(got, m(x), rtol=0, atol=1e-12)
    cross, context = layer(encoding=Ramp()), data(5)
    want = layer()(x + ramp, context + ramp[:5])
    torch.testing.assert_close(cross(x, context), want, rtol=0, atol=1e-12)


def test_a_layer_is_traced_saved_and_moved() -> None:
    m = layer(encoding="learned_bias", causal=True)
    other = layer(encoding="learned_bias", causal=True)
    other.load_state_dict(m.state_dict())
    assert torch.equal(other(data()), m(data()))
    assert m.float()(data().float()).dtype == torch.float32
    half = m.bfloat16()
    assert half(data().bfloat16()).dtype == torch.bfloat16
    assert "heads=3" in repr(m)
