"""Every kernel against the naive definition, values and gradients, at odd sizes, shapes, layouts and dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.kernels import hankel, tiles
from relpos.kernels.call import Refusal
from tests.core.naive import ToyBias, ToyContent, ToyRow, ToyTurn, agree, gradients, inputs, naive_attention

KERNELS = ["dense", "fused", "tiled", "hankel", "generic"]
FORMS = ["none", "bias", "row", "content", "turn"]
SIZES = [(1, 1), (2, 2), (3, 3), (1, 7), (7, 1), (5, 13), (13, 5), (17, 17)]


def make(form: str, heads: int, dim: int) -> Any:
    torch.manual_seed(3)
    made = {
        "none": lambda: None,
        "bias": lambda: ToyBias(heads),
        "row": lambda: ToyRow(heads),
        "content": lambda: ToyContent(heads, dim),
        "turn": lambda: ToyTurn(dim),
    }[form]()
    return None if made is None else made.double()


def leaves_of(encoding: Any, *tensors: Tensor) -> list[Tensor]:
    return [*tensors, *(encoding.parameters() if encoding is not None else ())]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a few tokens, so that edges are met at small sizes."""
    monkeypatch.setattr(hankel, "QUERIES", 4)
    monkeypatch.setattr(hankel, "KEYS", 8)
    monkeypatch.setattr(hankel, "BLOCK", 4)
    monkeypatch.setattr(tiles, "QUERIES", 4)
    monkeypatch.setattr(tiles, "KEYS", 8)


def serve(kernel: str, q: Tensor, k: Tensor, v: Tensor, encoding: Any, **options: Any) -> Tensor | None:
    """The output, or None where the kernel refuses in words, as fused and hankel may."""
    try:
        return rp.attention(q, k, v, encoding, kernel=kernel, **options)
    except Refusal as refusal:
        assert kernel in ("fused", "hankel") and len(str(refusal)) > 40
        return None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n_q", "n_k"), SIZES)
@pytest.mark.usefixtures("small_tiles")
def test_kernels_equal_the_naive_definition(n_q: int, n_k: int, causal: bool, form: str) -> None:
    q, k, v = inputs(1, 2, n_q, n_k, grad=True)
    encoding = make(form, 2, 4)
    want = naive_attention(q, k, v, encoding, causal=causal)
    served = 0
    for kernel in KERNELS:
        got = serve(kernel, q, k, v, encoding, causal=causal)
        if got is not None:
            served += 1
            agree(got, want, leaves_of(encoding, q, k, v))
    assert served >= 3


@pytest.mark.parametrize("kernel", ["hankel", "generic"])
@pytest.mark.parametrize("causal", [False, True])
def test_real_tiles(kernel: str, causal: bool) -> None:
    """Sizes past the tiles of 256 queries and 1024 keys, against the dense kernel (held to the loops above)."""
    q, k, v = inputs(1, 1, 1100, dtype=torch.float64, grad=True)
    encoding = make("bias", 1, 4)
    want = rp.attention(q, k, v, encoding, causal=causal, kernel="dense")
    agree(rp.attention(q, k, v, encoding, causal=causal, kernel=kernel), want, leaves_of(encoding, q, k, v))


@pytest.mark.parametrize("n", [255, 256, 257])
def test_sizes_around_a_block(n: int) -> None:
    q, k, v = inputs(1, 1, n, 263, dim=3, dim_v=5, grad=True)
    encoding = make("bias", 1, 3)
    for options in ({"causal": True}, {"window": (100, 3)}):
        want = rp.attention(q, k, v, encoding, kernel="dense", **options)  # type: ignore[arg-type]
        for kernel in ("hankel", "generic"):
            got = rp.attention(q, k, v, encoding, kernel=kernel, **options)  # type: ignore[arg-type]
            agree(got, want, leaves_of(encoding, q, k, v))


def test_frozen_bias_takes_the_native_backward() -> None:
    """A table without gradient: another backward path, the same numbers."""
    encoding = make("bias", 2, 4).requires_grad_(False)
    for options in ({}, {"causal": True}, {"window": 3}):
        q, k, v = inputs(2, 2, 19, grad=True)
        want = naive_attention(q, k, v, encoding, **options)
        agree(rp.attention(q, k, v, encoding, kernel="hankel", **options), want, [q, k, v])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("batch", "n_q", "n_k"), [(0, 3, 3), (1, 0, 4), (2, 4, 0), (1, 0, 0), (3, 2, 2)])
def test_empty_and_batch(batch: int, n_q: int, n_k: int, form: str, kernel: str) -> None:
    q, k, v = inputs(batch, 2, n_q, n_k, grad=True)
    encoding = make(form, 2, 4)
    got = serve(kernel, q, k, v, encoding)
    if got is not None:
        want = naive_attention(q, k, v, encoding)
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        assert all(torch.isfinite(g).all() for g in gradients(got, [q, k, v]))


def test_no_keys_gives_zero_whatever_the_queries_hold() -> None:
    q, k, v = inputs(1, 1, 3, 0)
    assert torch.equal(rp.attention(q * torch.inf, k, v), torch.zeros(1, 1, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries(kv_heads: int, form: str) -> None:
    q, k, v = inputs(2, 4, 5, 7, kv_heads=kv_heads, grad=True)
    encoding = make(form, 4, 4)
    want = naive_attention(q, k, v, encoding)
    for kernel in KERNELS:
        got = serve(kernel, q, k, v, encoding)
        if got is not None:
            agree(got, want, leaves_of(encoding, q, k, v))


@pytest.mark.parametrize("form", ["none", "bias", "row", "turn"])
@pytest.mark.parametrize("dim_v", [1, 3, 9])
def test_values_of_another_width(dim_v: int, form: str) -> None:
    q, k, v = inputs(2, 2, 5, 7, dim=5, dim_v=dim_v, grad=True)
    encoding = make(form, 2, 5)
    want = naive_attention(q, k, v, encoding)
    for kernel in KERNELS:
        got = serve(kernel, q, k, v, encoding)
        if got is not None:
            assert got.shape[-1] == dim_v
            agree(got, want, leaves_of(encoding, q, k, v))


def layouts(x: Tensor) -> list[Tensor]:
    """The same numbers, stored in other orders: (batch, n, heads, dim), (.., dim, n), every second column, reversed."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype)
    wide[..., ::2] = x
    return [
        x.transpose(1, 2).contiguous().transpose(1, 2),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        wide[..., ::2],
        x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", ["none", "bias"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_layout_in_memory(dtype: torch.dtype, frozen: bool, form: str, kernel: str) -> None:
    """Inputs and the incoming gradient in any strides: torch's private kernels read some of them wrongly."""
    q, k, v = inputs(2, 3, 9, 11, dtype=dtype)
    encoding = make(form, 3, 4)
    if encoding is not None:
        encoding = encoding.to(dtype).requires_grad_(not frozen)
    weights = torch.randn(2, 3, 9, 4, dtype=dtype)
    want = rp.attention(q, k, v, encoding, kernel="dense")
    wanted = torch.autograd.grad((rp.attention(q.requires_grad_(), k, v, encoding) * weights).sum(), q)[0]
    for other in zip(*(layouts(x.detach()) for x in (q, k, v, weights)), strict=True):
        strided = [x.requires_grad_() for x in other[:3]]
        got = serve(kernel, *strided, encoding)  # type: ignore[misc]
        if got is None:
            return
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
        got.backward(other[3])
        torch.testing.assert_close(strided[0].grad, wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_inputs_are_not_changed(form: str) -> None:
    q, k, v = inputs(2, 2, 6)
    copies = [x.clone() for x in (q, k, v)]
    mask = torch.tensor([[True] * 6, [False, True, False, True, True, True]])
    for kernel in KERNELS:
        serve(kernel, q, k, v, make(form, 2, 4), key_mask=mask)
    assert all(torch.equal(a, b) for a, b in zip((q, k, v), copies, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", ["none", "bias"])
def test_float64_stays_float64(form: str, kernel: str) -> None:
    """torch's flash kernel is silently wrong with a float32 mask on float64 queries: the types must never mix."""
    q, k, v = inputs(1, 2, 21)
    encoding = make(form, 2, 4)
    for double in (True, False):
        encoding = encoding if encoding is None or double else encoding.float()
        got = serve(kernel, q, k, v, encoding)
        if got is not None:
            reference = None if encoding is None else make(form, 2, 4)
            want = naive_attention(q, k, v, reference)
            assert got.dtype == torch.float64
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12 if double or encoding is None else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_short_types_are_rounded_once(form: str, dtype: torch.dtype) -> None:
    """In every kernel the error against float64 is that of one rounding of the result (fused: of torch's own)."""
    q, k, v = inputs(2, 2, 33, dtype=dtype)
    encoding = make(form, 2, 4)
    want = naive_attention(q.double(), k.double(), v.double(), encoding, causal=True)
    unit = torch.finfo(dtype).eps
    short = None if encoding is None else make(form, 2, 4).float()
    for kernel in KERNELS:
        got = serve(kernel, q, k, v, short, causal=True)
        if got is None:
            continue
        assert got.dtype == dtype
        factor = 4 if form == "turn" or kernel == "fused" else 1
        assert (got.double() - want).abs().max() <= factor * unit * want.abs().max() + 4e-6, kernel


@pytest.mark.parametrize("stored", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("computed", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", ["bias", "row", "content"])
def test_gradients_come_in_the_dtype_of_the_parameter(form: str, computed: torch.dtype, stored: torch.dtype) -> None:
    encoding = make(form, 2, 4).to(stored)
    q, k, v = inputs(1, 2, 9, dtype=computed, grad=True)
    for kernel in ("dense", "tiled", "generic"):
        for positions in (None, 5 * torch.arange(9)):
            out = rp.attention(q, k, v, encoding, kernel=kernel, q_pos=positions, k_pos=positions)
            found = gradients(out, [q, *encoding.parameters()])
            assert found[0].dtype == computed and all(g.dtype == stored and torch.isfinite(g).all() for g in found[1:])


@pytest.mark.parametrize("kernel", ["hankel", "generic", "tiled"])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("learned", ["q", "table"])
def test_second_derivative_raises(learned: str, linear: bool, kernel: str) -> None:
    """A gradient penalty must not lose its share in silence, not even where the loss is linear in the output."""
    encoding = make("bias", 2, 4)
    q, k, v = inputs(1, 2, 9, grad=learned == "q")
    leaf = q if learned == "q" else encoding.table
    out = rp.attention(q, k, v, encoding, kernel=kernel)
    (grad,) = torch.autograd.grad(out.sum() if linear else out.square().sum(), leaf, create_graph=True)
    assert torch.isfinite(grad).all()
    with pytest.raises(RuntimeError, match="differentiated again"):
        grad.square().sum().backward()


def test_second_derivative_of_dense_is_right() -> None:
    encoding = make("bias", 1, 2)
    q, k, v = inputs(1, 1, 3, dim=2, grad=True)
    assert torch.autograd.gradgradcheck(lambda *x: rp.attention(*x, encoding, kernel="dense"), (q, k, v))


@pytest.mark.parametrize("kernel", KERNELS)
def test_scale(kernel: str) -> None:
    """scale multiplies q . k and nothing else; 0 leaves the term alone."""
    q, k, v = inputs(1, 2, 7, grad=True)
    for form in ("none", "bias"):
        encoding = make(form, 2, 4)
        for scale in (0.0, 1.0, -0.3):
            got = serve(kernel, q, k, v, encoding, scale=scale)
            if got is not None:
                agree(got, naive_attention(q, k, v, encoding, scale=scale), leaves_of(encoding, q, k, v))


def test_own_scale_of_a_method() -> None:
    class Unscaled(ToyBias):
        def score_scale(self, dim: int) -> float:
            return 1.0

    encoding = Unscaled(2).double()
    q, k, v = inputs(1, 2, 7)
    want = naive_attention(q, k, v, encoding, scale=1.0)
    torch.testing.assert_close(rp.attention(q, k, v, encoding), want, rtol=0, atol=1e-12)
    half = naive_attention(q, k, v, encoding, scale=0.5)
    torch.testing.assert_close(rp.attention(q, k, v, encoding, scale=0.5), half, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_large_scores_stay_finite(kernel: str) -> None:
    """Scores of +-1e4 overflow exp without a shift; the answer is a one-hot choice."""
    q, k, v = inputs(1, 2, 40, dtype=torch.float32, grad=True)
    for form in ("none", "bias"):
        encoding = make(form, 2, 4)
        encoding = encoding if encoding is None else encoding.float()
        got = serve(kernel, q, k, v, encoding, scale=1e4)
        if got is not None:
            assert torch.isfinite(got).all()
            assert all(torch.isfinite(g).all() for g in gradients(got, leaves_of(encoding, q, k, v)))


def test_positions_far_from_zero_change_nothing() -> None:
    """Integers near 2^53 and beyond: lags are exact in int64."""
    q, k, v = inputs(1, 2, 6)
    encoding = make("bias", 2, 4)
    want = rp.attention(q, k, v, encoding)
    far = 2**60 + torch.arange(6)
    for kernel in ("dense", "hankel", "generic"):
        got = rp.attention(q, k, v, encoding, q_pos=far, k_pos=far, kernel=kernel)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_a_call_under_compile_equals_eager() -> None:
    """The library may be traced around; with the eager backend nothing is compiled, but all of it is traced."""
    encoding = make("bias", 2, 4)
    q, k, v = inputs(1, 2, 9)
    traced = torch.compile(lambda q, k, v: rp.attention(q, k, v, encoding, causal=True), backend="eager")
    torch.testing.assert_close(traced(q, k, v), rp.attention(q, k, v, encoding, causal=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["t5", "learned_bias"])
@pytest.mark.parametrize("kernel", ["auto", "tiled"])
def test_a_bias_is_exported(name: str, kernel: str) -> None:
    """With positions left out, whose being consecutive `torch.export` does not let anyone see."""
    encoding = rp.encoding(name, heads=2, **({"max_lag": 4} if name == "learned_bias" else {})).double()

    class Attend(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoding = encoding

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return rp.attention(q, k, v, self.encoding, causal=True, kernel=kernel)

    with torch.no_grad():
        next(encoding.parameters()).normal_()
    program = torch.export.export(Attend(), tuple(inputs(1, 2, 12)), strict=False).module()
    again = [x + 1 for x in inputs(1, 2, 12)]
    torch.testing.assert_close(program(*again), Attend()(*again), rtol=0, atol=1e-12)
