"""Decoding of kernelised attention equals the rows of the parallel causal definition, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos import features
from relpos.encodings.base import Bias, Transform
from relpos.kernels.online import BandSums, FreeSums
from relpos.mixers.kernel_stream import KernelStream
from relpos.positions import Index, Times, as_positions
from tests.core.naive import ToyBias, ToyContent, inputs

DIM, HEADS = 4, 4
E = rp.encoding


def phi(name: str = "prf") -> features.Features:
    torch.manual_seed(7)
    made = {
        "prf": lambda: features.PRF(DIM, 6),
        "plain": lambda: features.PRF(DIM, 6, normalize=False),
        "elu1": lambda: features.ELU1(DIM),
        "relu": lambda: features.ReLU(DIM, normalize=True),
    }
    return made[name]().double()


def make(name: str) -> Any:
    torch.manual_seed(2)
    made = {
        "none": lambda: None,
        "nope": lambda: E("nope"),
        "t5": lambda: E("t5", heads=HEADS, causal=True),
        "alibi": lambda: E("alibi", heads=HEADS),
        "clip": lambda: wild(E("learned_bias", heads=HEADS, max_lag=20)),
        "zero": lambda: wild(E("learned_bias", heads=HEADS, max_lag=20, beyond="zero")),
        "table": lambda: wild(E("learned_bias", heads=HEADS, max_lag=1999, beyond="error")),
        "kerple": lambda: E("kerple", heads=HEADS),
        "sandwich": lambda: E("sandwich", heads=HEADS, dim=16),
        "hype": lambda: E("hype", heads=HEADS),
        "toy": lambda: ToyBias(HEADS),
        "rope": lambda: E("rope", dim=6),
        "cosformer": lambda: E("cosformer", max_length=3000),
        "permuteformer": lambda: E("permuteformer", heads=HEADS, dim=6),
    }[name]()
    return None if made is None else made.double()


def wild(bias: Any) -> Any:
    """A learned table over [-50, 50]."""
    with torch.no_grad():
        bias.table.copy_((torch.rand(bias.table.shape) - 0.5) * 100)
    return bias


ENCODINGS = ["none", "nope", "t5", "alibi", "clip", "zero", "table", "kerple", "sandwich", "hype", "toy", "rope",
             "cosformer", "permuteformer"]  # fmt: skip


def dense(
    q: Tensor, k: Tensor, v: Tensor, encoding: Any, f: features.Features, *, position: object = None,
    key_mask: Tensor | None = None, temperature: float = 1.0, codes: Any = None,
) -> Tensor:  # fmt: skip
    """The formula, pair by pair."""
    batch, heads, n, dim = q.shape
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    places = as_positions(position, n, 0, "position", q.device, batch)
    if f.normalize:
        q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    scale = f.scale(dim) / temperature
    if isinstance(encoding, Transform) and encoding.side == "before":
        q, k = encoding.encode_q(q, places, scale, codes), encoding.encode_k(k, places, scale, codes)
    fq, fk = (f.double()(x * scale**0.5) for x in (q, k))
    above = below = fq @ fk.mT
    bias = torch.zeros(1, n, n, dtype=torch.float64)
    if isinstance(encoding, Bias):
        bias = encoding.bias(places, places).double()
    elif isinstance(encoding, Transform) and encoding.side == "after":
        codes = encoding.make_codes(places, places) if codes is None else codes
        above = encoding.encode_q(fq, places, 1.0, codes) @ encoding.encode_k(fk, places, 1.0, codes).mT
        below = below if encoding.plain_denominator else above
        if encoding.decay() is not None:
            bias = -encoding.decay().view(-1, 1, 1) * (torch.arange(n) - torch.arange(n)[:, None]).abs()
    seen = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
    seen = seen if key_mask is None else seen & key_mask[:, None, None]
    bias = bias.expand(batch, heads, n, n) if bias.dim() == 3 else bias
    bias = bias.masked_fill(~seen, -math.inf)
    c = (bias - bias.amax(-1, keepdim=True).clamp(min=-1e300)).exp()
    total = (c * below).sum(-1, keepdim=True)
    return (c * above) @ v / total.masked_fill(total == 0, 1)


def decode(stream: KernelStream, tensors: tuple[Tensor, ...], chunks: list[int], **by_token: Tensor) -> Tensor:
    out, at, n = [], 0, tensors[0].shape[2]
    for turn in range(2 * n + 1):
        if at == n:
            break
        t = min(chunks[turn % len(chunks)], n - at)
        options = {name: x[..., at : at + t] for name, x in by_token.items()}
        out.append(stream.step(*(x[:, :, at : at + t] for x in tensors), **options))
        at += t
    assert stream.length == n
    return torch.cat(out, 2)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFTs from 128 tokens on, so that short sequences meet every part of the schedule."""
    monkeypatch.setattr("relpos.kernels.online.CROSSOVER", 128)
    monkeypatch.setattr("relpos.kernels.online.SHORTEST", 16)
    monkeypatch.setattr("relpos.kernels.online.LONGEST", 16)


@pytest.mark.parametrize("chunks", [[1], [5, 1, 0, 70, 2], [600]], ids=["tokens", "mixed", "all"])
@pytest.mark.parametrize("name", ENCODINGS)
def test_equals_the_definition(name: str, chunks: list[int]) -> None:
    encoding = make(name)
    tensors = inputs(2, HEADS, 270, dim=DIM, dim_v=3, kv_heads=2)
    with torch.no_grad():
        want = dense(*tensors, encoding, phi())
        got = decode(KernelStream(encoding, features=phi()), tensors, chunks)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_equals_linear_attention() -> None:
    """Prompt in parallel, the rest in a stream: both are the same function."""
    tensors = inputs(2, HEADS, 270, dim=DIM, dim_v=3, kv_heads=2)
    for name in ENCODINGS:
        with torch.no_grad():
            want = rp.linear_attention(*tensors, make(name), features=phi(), causal=True)
            got = decode(KernelStream(make(name), features=phi()), tensors, [200, 1])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["flt", "sine_spe", "conv_spe"])
def test_a_transform_before_the_features(name: str) -> None:
    """Vectors change their width before they meet the features; all chunks share one set of codes."""
    torch.manual_seed(4)
    options = {
        "flt": {"features": 3},
        "sine_spe": {"dim": DIM, "realizations": 5},
        "conv_spe": {"dim": DIM, "realizations": 5, "kernel_size": 7},
    }[name]
    encoding = E(name, heads=HEADS, **options).double()
    f = features.PRF(encoding.width_after(DIM), 6).double()
    tensors = inputs(2, HEADS, 150, dim=DIM)
    at = Index.arange(150)
    codes = encoding.make_codes(at, at, torch.Generator().manual_seed(5))
    with torch.no_grad():
        got = decode(KernelStream(encoding, features=f, codes=codes), tensors, [90, 1])
        torch.testing.assert_close(got, dense(*tensors, encoding, f, codes=codes), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 3, 31, 257, 1000])
@pytest.mark.parametrize("name", ["clip", "table", "rope"])
def test_lengths(name: str, n: int) -> None:
    tensors = inputs(1, HEADS, n, dim=DIM)
    with torch.no_grad():
        got = decode(KernelStream(make(name), features=phi()), tensors, [n // 2 + 1, 1, 3])
        torch.testing.assert_close(got, dense(*tensors, make(name), phi()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["prf", "plain", "elu1", "relu"])
def test_features_and_temperature(kind: str) -> None:
    tensors = inputs(1, HEADS, 40, dim=DIM)
    with torch.no_grad():
        want = dense(*tensors, make("t5"), phi(kind), temperature=0.5)
        got = decode(KernelStream(make("t5"), features=phi(kind), temperature=0.5), tensors, [7])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ENCODINGS)
def test_float32(name: str) -> None:
    encoding = make(name)
    tensors = inputs(1, HEADS, 270, dim=DIM, dtype=torch.float32)
    with torch.no_grad():
        want = dense(*tensors, encoding, phi())
        single = None if encoding is None else encoding.float()
        got = decode(KernelStream(single, features=phi().float()), tensors, [1, 50, 3])
    assert got.dtype == torch.float32 and (got - want).abs().max() < 3e-5


def test_half_precision_keeps_its_dtype() -> None:
    tensors = inputs(1, HEADS, 100, dim=DIM)
    with torch.no_grad():
        want = dense(*tensors, make("alibi"), phi())
        got = decode(KernelStream(make("alibi"), features=phi()), tuple(x.bfloat16() for x in tensors), [9, 1])
    assert got.dtype == torch.bfloat16 and (got - want).abs().max() < 5e-2


@pytest.mark.parametrize("side", ["left", "scattered"])
@pytest.mark.parametrize("name", ["none", "alibi", "clip", "table", "kerple", "rope"])
def test_padding(name: str, side: str) -> None:
    """Masked keys are not read, whatever they hold; a row that sees no key gives 0."""
    tensors = inputs(2, HEADS, 200, dim=DIM)
    mask = torch.arange(200)[None] >= torch.tensor([[0], [90]])
    mask = mask if side == "left" else torch.rand(2, 200, generator=torch.Generator().manual_seed(1)) > 0.4
    q, k, v = tensors
    bad = ~mask[:, None, :, None]
    poisoned = (q, k.masked_fill(bad, math.nan), v.masked_fill(bad, math.inf))
    with torch.no_grad():
        want = dense(*tensors, make(name), phi(), key_mask=mask)
        stream = KernelStream(make(name), features=phi())
        got = decode(stream, poisoned, [30, 1, 1], key_mask=mask)
    real = mask[:, None, :, None].expand_as(got)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got[real], want[real], rtol=0, atol=1e-10)
    if side == "left":
        assert (got[1, :, :90] == 0).all()


@pytest.mark.parametrize("name", ["alibi", "table", "rope"])
def test_left_padded_positions(name: str) -> None:
    """Positions that count real tokens only, as a prompt that is padded on the left brings them."""
    tensors = inputs(2, HEADS, 150, dim=DIM)
    mask = torch.arange(150)[None] >= torch.tensor([[0], [50]])
    position = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        want = dense(*tensors, make(name), phi(), key_mask=mask, position=position)
        stream = KernelStream(make(name), features=phi())
        got = decode(stream, tensors, [60, 1, 1], key_mask=mask, position=position)
    real = mask[:, None, :, None].expand_as(got)
    torch.testing.assert_close(got[real], want[real], rtol=0, atol=1e-10)
    assert stream._pairs is None


@pytest.mark.parametrize("kernel", ["auto", "direct"])
@pytest.mark.parametrize("name", ["kerple", "alibi", "clip"])
def test_positions_with_gaps(name: str, kernel: str) -> None:
    """Gaps after a consecutive start: every token is needed, and a band that has summed them up says so."""
    tensors = inputs(2, HEADS, 300, dim=DIM)
    position = torch.arange(300) + 7 * (torch.arange(300) >= 250)
    position = torch.stack([position, position + 3])
    with torch.no_grad():
        stream = KernelStream(make(name), features=phi(), kernel=kernel)
        if kernel == "auto" and name != "kerple":
            with pytest.raises(ValueError, match='kernel="direct"'):
                decode(stream, tensors, [40, 1], position=position)
            assert stream.length == 246  # the steps of 40 and 1 in turn, up to the gap
            return
        got = decode(stream, tensors, [40, 1], position=position)
    torch.testing.assert_close(got, dense(*tensors, make(name), phi(), position=position), rtol=0, atol=1e-10)


def test_real_times() -> None:
    tensors = inputs(1, HEADS, 60, dim=DIM)
    times = torch.rand(60, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).cumsum(0)
    with torch.no_grad():
        got = decode(KernelStream(make("toy"), features=phi()), tensors, [1, 20], position=times)
    want = dense(*tensors, make("toy"), phi(), position=Times(times))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["none", "clip", "kerple", "rope"])
def test_gradients(name: str) -> None:
    encoding, f = make(name), phi()
    tensors = inputs(1, HEADS, 110, dim=DIM, grad=True)
    leaves = [*tensors, *(() if encoding is None else encoding.parameters())]
    got = decode(KernelStream(encoding, features=f), tensors, [1, 50, 20])
    want = dense(*tensors, encoding, f)
    weights = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), leaves) for y in (got, want))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["none", "clip", "kerple", "rope", "gaps"])
def test_reorder_and_reset(name: str) -> None:
    tensors, order = inputs(2, HEADS, 200, dim=DIM), torch.tensor([1, 0, 1])
    position = torch.arange(200) * 2 if name == "gaps" else torch.arange(200) + 5
    position = torch.stack([position, position + 1])
    encoding = make("kerple" if name == "gaps" else name)
    with torch.no_grad():
        stream = KernelStream(encoding, features=phi())
        for _ in range(2):
            decode(stream, tuple(x[:, :, :150] for x in tensors), [70, 1], position=position[:, :150])
            stream.reorder(order)
            late = [x[order, :, 150:] for x in tensors]
            got = stream.step(*late, position=position[order, 150:])
            want = dense(*(x[order] for x in tensors), encoding, phi(), position=position[order])[:, :, 150:]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
            stream.reset()
            assert stream.length == 0


def test_what_is_kept_does_not_grow() -> None:
    """T5, ALiBi, clipped tables, RoPE: buffers of one size from the first batch of tokens on."""
    for name in ("none", "t5", "alibi", "clip", "rope", "permuteformer"):
        stream = KernelStream(make(name), features=phi())
        seen = set()
        with torch.no_grad():
            for turn in range(8):
                stream.step(*inputs(1, HEADS, 300, dim=DIM, seed=turn))
                for sums in (stream._sums, stream._below):
                    if sums is not None:
                        assert isinstance(sums, BandSums) and sums.state is not None
                        seen.add((sums is stream._sums, sums.state.shape, *(b.shape for b in sums.rows.buffers)))
        assert len(seen) == (2 if name == "rope" else 1)


def test_a_table_that_ends() -> None:
    """beyond="error" raises at the token that has no entry, and leaves the stream as it was."""
    bias = E("learned_bias", heads=HEADS, max_lag=99, beyond="error").double()
    tensors = inputs(1, HEADS, 101, dim=DIM)
    stream = KernelStream(bias, features=phi())
    with torch.no_grad():
        got = decode(stream, tuple(x[:, :, :100] for x in tensors), [1])
        with pytest.raises(ValueError, match="max_lag"):
            stream.step(*(x[:, :, 100:] for x in tensors))
    want = dense(*(x[:, :, :100] for x in tensors), bias, phi())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert stream.length == 100 and isinstance(stream._sums, FreeSums) and len(stream._sums.rows) == 100


def test_bad_input() -> None:
    q, k, v = inputs(2, HEADS, 3, dim=DIM)
    with pytest.raises(TypeError, match="no meaning in kernelized"):
        KernelStream(ToyContent(HEADS, DIM), features=phi())
    with pytest.raises(TypeError, match="is absolute"):
        KernelStream(E("sinusoidal", model_dim=8), features=phi())
    with pytest.raises(TypeError, match=r"relpos\.features"):
        KernelStream(None, features="prf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature"):
        KernelStream(None, features=phi(), temperature=0)
    with pytest.raises(ValueError, match="direct"):
        KernelStream(None, features=phi(), kernel="fft")
    stream = KernelStream(E("alibi", heads=2), features=phi())
    with pytest.raises(ValueError, match="built for 2 heads"):
        stream.step(q, k, v)
    stream = KernelStream(None, features=phi())
    with pytest.raises(ValueError, match="as many queries as keys"):
        stream.step(q, k[:, :, :2], v[:, :, :2])
    assert stream.step(q[:, :, :0], k[:, :, :0], v[:, :, :0]).shape == (2, HEADS, 0, DIM)
    stream.step(q, k, v)
    with pytest.raises(ValueError, match="the stream holds"):
        stream.step(q[:1], k[:1], v[:1])
    with pytest.raises(ValueError, match="rise from token to token"):
        stream.step(q, k, v, position=Index(torch.tensor([5, 4, 6])))
    assert stream.length == 3
