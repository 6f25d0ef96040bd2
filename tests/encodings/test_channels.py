from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import relpos as rp
from relpos.encodings.base import Bias
from relpos.encodings.channels import Channels, ChannelTransform, channels
from relpos.positions import Index

SHORT = [torch.bfloat16, torch.float16]
DTYPES = [torch.float64, torch.float32, *SHORT]
E = rp.encodings


class Bump(Bias):
    """A smooth bias that no encoding of the library is: a Gaussian around lag 3, two-sided."""

    heads = 2
    learned = False

    def at(self, lag: Tensor) -> Tensor:
        width = torch.tensor([20.0, 35.0], dtype=torch.float64).view(-1, *[1] * lag.dim())
        return 2 * torch.exp(-(((lag - 3) / width) ** 2))


def logits(made: Channels) -> Tensor:
    """scale * q.k as a float32 kernel sums it (float64 for float64)."""
    wide = torch.float64 if made.q.dtype == torch.float64 else torch.float32
    return (made.q.to(wide) @ made.k.to(wide).mT).double() * made.scale


def wrong(got: Tensor, bias: Bias, made: Channels) -> float:
    """Worst difference over the pairs in use, less the best constant a row where the channels leave one out."""
    n = got.shape[-1]
    difference = got - bias.bias(Index.arange(n), Index.arange(n)).detach().double()
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1) if made.causal else torch.zeros(n, n, dtype=torch.bool)
    high = difference.masked_fill(hidden, -math.inf).amax(-1)
    low = difference.masked_fill(hidden, math.inf).amin(-1)
    return float((high - low).max() / 2 if made.row_constant else torch.maximum(high, -low).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 257, 300, 1031])
def test_alibi_digits_are_bit_exact_for_dyadic_slopes(n: int, dtype: torch.dtype) -> None:
    alibi = E.ALiBi(8)
    made = channels(alibi, n, dtype)
    assert made.method == "digits" and made.exact and made.stored == 0
    got = logits(made)
    got = got - got.diagonal(dim1=-2, dim2=-1)[..., None]
    want = alibi.bias(Index.arange(n), Index.arange(n))
    assert torch.equal(got.tril(), want.tril())


@pytest.mark.parametrize("dtype", [torch.float32, *SHORT])
@pytest.mark.parametrize("n", [5000, 32768])
def test_alibi_digits_hold_at_great_length(n: int, dtype: torch.dtype) -> None:
    alibi = E.ALiBi(8)
    made = channels(alibi, n, dtype)
    assert made.rank <= 2
    rows = torch.tensor([0, 257, n // 2 + 1, n - 1])
    got = (made.q[:, rows].float() @ made.k.float().mT).double()
    want = alibi.bias(Index(rows), Index.arange(n))
    for r, row in enumerate(rows.tolist()):
        assert torch.equal((got[:, r] - got[:, r, row : row + 1])[:, : row + 1], want[:, r, : row + 1])


@pytest.mark.parametrize("heads", [12, 71])
@pytest.mark.parametrize("dtype", SHORT)
def test_alibi_slopes_that_are_not_dyadic_take_more_digits(heads: int, dtype: torch.dtype) -> None:
    alibi = E.ALiBi(heads)
    made = channels(alibi, 300, dtype, tolerance=0.01)
    assert wrong(logits(made), alibi, made) <= made.error <= 0.01
    loose = channels(alibi, 300, dtype, tolerance=5.0)  # one rounding of the slope: still exactly linear in the lag
    got = logits(loose)[:, 0]
    assert loose.rank < made.rank
    step = got.diff(dim=-1)
    torch.testing.assert_close(step, step[:, :1].expand_as(step), rtol=0, atol=1e-4)


def test_naive_positions_would_fail_in_bfloat16() -> None:
    """The reason for the digits: at 300 tokens plain bfloat16 positions are already wrong by nats."""
    naive = (torch.arange(300).bfloat16().double() - torch.arange(300)).abs().max() * 0.5
    assert naive >= 0.5 and channels(E.ALiBi(8), 300, torch.bfloat16).error < 1e-3


@pytest.mark.parametrize("dim", [64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("make", [lambda: E.ALiBi(4), lambda: E.HyPE(4), lambda: E.Sandwich(4, 16)])
def test_appended_channels_in_stock_attention(make: Any, dim: int, dtype: torch.dtype) -> None:
    """Scale of the original width; values padded to the new one."""
    bias, n = make(), 67
    g = torch.Generator().manual_seed(dim)
    q, k, v = (torch.randn(2, 4, n, dim, generator=g, dtype=torch.float64) for _ in range(3))
    want = rp.attention(q, k, v, bias, causal=True, kernel="dense")
    made = channels(bias, n, dtype)
    longer_q, longer_k = made.append(q.to(dtype), k.to(dtype))
    assert longer_q.shape[-1] == longer_k.shape[-1] == dim + made.rank
    padded = F.pad(v.to(dtype), (0, made.rank))
    got = F.scaled_dot_product_attention(longer_q, longer_k, padded, is_causal=True, scale=dim**-0.5)[..., :dim]
    limit = 1e-10 if dtype == torch.float64 else 2e-4
    assert (got.double() - want).abs().max() < limit
    if isinstance(bias, E.ALiBi):  # with the default scale, 1/sqrt(dim + r), it is a different model
        off = F.scaled_dot_product_attention(longer_q, longer_k, padded, is_causal=True)[..., :dim]
        assert (off.double() - want).abs().max() > 10 * limit


@pytest.mark.parametrize("make", [lambda: E.ALiBi(4), lambda: E.HyPE(4), lambda: E.Sandwich(4, 16)])
def test_as_transform_serves_every_call(make: Any) -> None:
    """Whole, rows decoded one at a time, and keys shared by two heads, through the fused kernel."""
    bias, n = make(), 40
    carried = channels(bias, n, torch.float64).as_transform()
    assert isinstance(carried, ChannelTransform)
    q, k, v = (torch.randn(2, heads, n, 8, dtype=torch.float64) for heads in (4, 2, 2))
    grown = [x.repeat_interleave(2, 1) for x in (k, v)]
    want = rp.attention(q, *grown, bias, causal=True, kernel="dense")
    got = rp.attention(q, *(grown if isinstance(bias, E.HyPE) else (k, v)), carried, causal=True)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    for i in (0, 1, 39):
        row = rp.attention(q[:, :, i : i + 1], *(x[:, :, : i + 1] for x in grown), carried, causal=True)
        torch.testing.assert_close(row, want[:, :, i : i + 1], rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"positions 0\.\.39"):
        rp.attention(q, *grown, carried, causal=True, q_pos=torch.arange(n) + 1, k_pos=torch.arange(n) + 1)
    with pytest.raises(TypeError, match=r"certified for torch\.float64"):
        rp.attention(q.float(), *(x.float() for x in grown), carried, causal=True)
    with pytest.raises(ValueError, match="causal=True"):
        rp.attention(q, *grown, carried)


def test_fewer_queries_than_keys_sit_at_the_end() -> None:
    bias = E.HyPE(2, slope=0.05, amplitude=2.0)
    q, k, v = (torch.randn(1, 2, n, 8, dtype=torch.float64) for n in (3, 11, 11))
    longer_q, longer_k = channels(bias, 20, torch.float64).append(q, k)
    got = rp.attention(longer_q, longer_k, v, causal=True, scale=8**-0.5, kernel="dense")
    torch.testing.assert_close(got, rp.attention(q, k, v, bias, causal=True, kernel="dense"), rtol=0, atol=1e-12)
    first, _ = channels(bias, 20, torch.float64).append(q, k, q_start=0)
    assert (first - longer_q).abs().max() > 0.01


def test_shared_keys_need_one_curvature() -> None:
    made = channels(E.HyPE(4, slope=torch.tensor([0.01, 0.01, 0.02, 0.02]), amplitude=1.0), 9)
    q, k = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8)
    assert made.append(q, k)[1].shape == (1, 2, 9, 10)
    with pytest.raises(ValueError, match="repeat_interleave"):
        made.append(q, torch.randn(1, 1, 9, 8))


def test_append_refuses_what_was_not_certified() -> None:
    made = channels(E.ALiBi(2), 9)
    q = torch.randn(1, 2, 10, 4)
    with pytest.raises(ValueError, match="9 positions"):
        made.append(q, q)
    with pytest.raises(TypeError, match=r"certified for torch\.float32"):
        made.append(q[:, :, :9].double(), q[:, :, :9].double())


def bias_of(kind: str, heads: int, mu: float, tau: float) -> Bias:
    if kind == "alibi":
        return E.ALiBi(heads)
    if kind == "hype":
        return E.HyPE(heads, slope=mu, amplitude=tau)
    if kind == "sandwich":
        return E.Sandwich(heads, 16)
    if kind == "kerple":
        return E.KERPLE(heads)
    return Bump()


@given(
    kind=st.sampled_from(["alibi", "hype", "sandwich", "kerple", "bump"]),
    n=st.integers(1, 200),
    heads=st.sampled_from([1, 2, 3, 8]),
    dtype=st.sampled_from(DTYPES),
    dim=st.sampled_from([1, 5, 64]),
    mu=st.floats(1e-4, 0.05),
    tau=st.floats(0.01, 200),
    causal=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_certificate_bounds_the_error_end_to_end(
    kind: str, n: int, heads: int, dtype: torch.dtype, dim: int, mu: float, tau: float, causal: bool, seed: int
) -> None:
    """Random queries and keys with the channels appended, summed as a kernel sums them, against float64."""
    torch.manual_seed(seed)
    bias = bias_of(kind, heads, mu, tau)
    causal = causal or bias.causal_only
    scale = dim**-0.5
    try:
        made = channels(bias, n, dtype, 0.5, causal=causal, scale=scale)
    except ValueError as refusal:
        assert "tiled" in str(refusal)
        return
    assert made.error <= 0.5 and made.scale == scale
    q, k = (torch.randn(1, bias.heads, n, dim, dtype=torch.float64).to(dtype) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    longer_q, longer_k = made.append(q, k, scale)
    assert longer_q.dtype == dtype
    got = (longer_q.to(wide) @ longer_k.to(wide).mT)[0].double() * scale
    content = (q.double() @ k.double().mT)[0] * scale
    sums = dim * 2.0**-24 * float((q.double().abs() @ k.double().abs().mT).max()) * scale  # of the content itself
    assert wrong(got - content, bias, made) <= made.error + sums + 1e-12


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: E.HyPE(4, train_length=2048), torch.float32),
        (lambda: E.HyPE(2, slope=3 / 1500, amplitude=5.0), torch.float32),
        (lambda: E.HyPE(2, slope=1 / 1500, amplitude=2.0), torch.bfloat16),
        (lambda: E.Sandwich(2), torch.float32),
        (Bump, torch.float32),
    ],
)
def test_the_certificate_beyond_all_pairs_is_still_a_bound(make: Any, dtype: torch.dtype) -> None:
    bias, n = make(), 1500
    made = channels(bias, n, dtype, 0.5)
    actual = wrong(logits(made), bias, made)
    assert actual <= made.error
    assert made.error < 30 * actual + 1e-3  # and not an empty one


def test_hype_refuses_what_the_dtype_cannot_hold() -> None:
    for dtype in SHORT:  # alibi-like: tau = 1024
        with pytest.raises(ValueError, match=r'nats, the tolerance is 0\.05; use kernel="tiled"'):
            channels(E.HyPE(8), 512, dtype)
    assert channels(E.HyPE(8), 512, torch.float32).error < 1e-3
    assert channels(E.HyPE(1, slope=1 / 512, amplitude=8.0), 512, torch.bfloat16).error < 0.05
    with pytest.raises(ValueError, match="cannot hold the numbers"):
        channels(E.HyPE(1, slope=1 / 16, amplitude=1.0), 4096, torch.float32)
    with pytest.raises(ValueError, match="causal=True"):
        channels(E.HyPE(2), 16, causal=False)


def test_hype_channels_pass_gradients_to_what_is_learned() -> None:
    hype = E.HyPE(2, slope=0.01, amplitude=2.0, learned=True).double()
    q, k, v = (torch.randn(1, 2, 12, 4, dtype=torch.float64) for _ in range(3))
    gradients = []
    for by_channels in (False, True):
        if by_channels:
            longer_q, longer_k = channels(hype, 12, torch.float64).append(q, k)
            out = rp.attention(longer_q, longer_k, v, causal=True, scale=0.5, kernel="dense")
        else:
            out = rp.attention(q, k, v, hype, causal=True, kernel="dense")
        gradients.append(torch.autograd.grad(out.square().sum(), [hype.log_decay, hype.log_slope]))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match="being trained"):
        channels(hype, 12).as_transform()
    assert isinstance(channels(hype.requires_grad_(False), 12).as_transform(), ChannelTransform)


@pytest.mark.parametrize("causal", [True, False])
def test_a_smooth_bias_is_fitted(causal: bool) -> None:
    made = channels(Bump(), 300, causal=causal)
    assert made.method == "cosines" and not made.exact and 5 <= made.rank <= 65
    assert wrong(logits(made), Bump(), made) <= made.error <= 0.05
    finer = channels(Bump(), 300, torch.float64, 1e-3, causal=causal)
    assert finer.rank >= made.rank and wrong(logits(finer), Bump(), finer) <= finer.error <= 1e-3


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("make", [lambda: E.KERPLE(2), lambda: E.ALiBi(2, symmetric=True), lambda: E.T5Bias(2)])
def test_a_few_positions_always_fit(make: Any, n: int) -> None:
    bias = make()
    made = channels(bias, n, torch.float64, 1e-6, causal=False)
    assert wrong(logits(made), bias, made) <= made.error <= 1e-6


def test_a_rough_bias_is_refused_with_a_kernel_named() -> None:
    torch.manual_seed(0)
    table = E.LearnedBias(2, 128)
    with torch.no_grad():
        table.table.normal_()
    for bias, causal in [(table, True), (E.ALiBi(2, symmetric=True), False), (E.KERPLE(4), False)]:
        with pytest.raises(ValueError, match='use kernel="tiled"'):
            channels(bias, 700, causal=causal)


@pytest.mark.parametrize("make", [lambda: E.ALiBi(2), lambda: E.HyPE(2), Bump])
def test_no_square_is_allocated(make: Any) -> None:
    """No tensor of the trace is larger than a fixed number of numbers a position."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, Tensor):
                    largest = max(largest, x.untyped_storage().nbytes())
            return out

    n = 16384
    with Watch():
        try:
            channels(make(), n)
        except ValueError as refusal:
            assert "tiled" in str(refusal)
    assert 0 < largest < n * 8 * 256 < n * n / 4


def test_wrong_arguments() -> None:
    alibi = E.ALiBi(2)
    with pytest.raises(TypeError, match="channels carry a Bias"):
        channels(E.NoPE(), 8)
    for options, named in [
        ({"n": 0}, "at least 1"),
        ({"n": 8, "tolerance": 0.0}, "tolerance"),
        ({"n": 8, "tolerance": math.nan}, "tolerance"),
        ({"n": 8, "scale": -1.0}, "scale"),
        ({"n": 8, "dtype": torch.int32}, "dtype"),
    ]:
        with pytest.raises(ValueError, match=named):
            channels(alibi, **options)  # type: ignore[arg-type]
