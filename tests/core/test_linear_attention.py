"""Linear attention against its definition: every kernel, feature map, encoding, length and dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import relpos as rp
from relpos import features
from relpos.kernels.call import Refusal
from relpos.kernels.linear import choose
from tests.core.naive import agree, inputs
from tests.core.naive_linear import (
    CAUSAL_ONLY,
    COUNT,
    DIM,
    ENCODINGS,
    HEADS,
    KERNELS,
    build,
    drawn,
    made,
    naive_linear,
    seed,
    shrink,
    width_for,
)

GOLDEN = Path(__file__).parent.parent / "golden"
L = rp.linear_attention


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def close(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    """Equal up to an absolute error."""
    error = float((got - want).detach().abs().max())
    assert error <= tolerance, f"{what}: off by {error:.3g}, {tolerance:g} allowed"


def table(bias: Tensor) -> Any:
    """A learned bias over all 2n - 1 lags, (heads, 2n - 1)."""
    bias = bias if bias.shape[1] > 1 else bias.expand(-1, 3)
    encoding = rp.encodings.LearnedBias(bias.shape[0], (bias.shape[1] - 1) // 2).double()
    with torch.no_grad():
        encoding.table.copy_(bias)
    return encoding


def weighted(cls: Any, weight: Tensor, **options: Any) -> Any:
    f = cls(weight.shape[1], weight.shape[0], **options).double()
    f.weight.copy_(weight)
    return f


def golden_maps(weight: Tensor) -> dict[str, features.Features]:
    return {
        "prf_norm": weighted(features.PRF, weight),
        "prf_scaled": weighted(features.PRF, weight, normalize=False),
        "trf_norm": weighted(features.TRF, weight),
        "elu1": features.ELU1(),
        "relu": features.ReLU(),
    }


# ---- golden files


@pytest.mark.parametrize("kernel", KERNELS)
def test_golden_small(kernel: str, small: None) -> None:
    g = golden("nprf_small.npz")
    for name, f in golden_maps(g["W"]).items():
        for n in (1, 2, 7, 16, 33):
            x = [g[f"{part}_{n}"] for part in "qkv"]
            for direction in ("bi", "causal"):
                got = L(*x, table(g[f"b_{n}"]), features=f, causal=direction == "causal", kernel=kernel)
                want = g[f"out_{name}_{direction}_{n}"]
                tolerance = 1e-8 if (name, n, direction) == ("trf_norm", 7, "causal") else 1e-10
                close(got, want, tolerance, f"{name} {n}")
    unit = [torch.nn.functional.normalize(g[f"{part}_7"], dim=-1) for part in "qk"]
    for part, x in zip("qk", unit, strict=True):
        torch.testing.assert_close(golden_maps(g["W"])["prf_norm"](x), g[f"feat_{part}_7"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS)
def test_golden_gradients(kernel: str, small: None) -> None:
    g = golden("nprf_grad.npz")
    f = weighted(features.PRF, g["W"])
    for n in (7, 12):
        for direction in ("bi", "causal"):
            x = [g[f"{part}_{n}"].clone().requires_grad_() for part in "qkv"]
            encoding = table(g[f"b_{n}"])
            out = L(*x, encoding, features=f, causal=direction == "causal", kernel=kernel)
            found = torch.autograd.grad((out * g[f"G_{n}"]).sum(), [*x, encoding.table])
            for part, got in zip("qkvb", found, strict=True):
                torch.testing.assert_close(got, g[f"g{part}_{direction}_{n}"], rtol=0, atol=1e-9)
            if direction == "causal":
                assert not found[3][:, n:].any(), "forbidden lags get exactly 0"


@pytest.mark.parametrize("shrunk", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_golden_stress(kernel: str, shrunk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamic range of the weights up to e^15 and beyond; the future does not leak."""
    if shrunk:
        shrink(monkeypatch)
    g = golden("nprf_stress.npz")
    f = weighted(features.PRF, g["W"])
    for case in (key[2:] for key in g if key.startswith("b_")):
        for direction in ("bi", "causal"):
            x = [g[part] for part in "qkv"]
            want, causal = g[f"out_{direction}_{case}"], direction == "causal"
            encoding = table(g[f"b_{case}"][None])
            got = L(*x, encoding, features=f, causal=causal, kernel=kernel)[0, 0]
            close(got, want, 1e-10, f"{case} {direction}")
            x = [part.float() for part in x]
            got = L(*x, encoding.float(), features=weighted(features.PRF, g["W"]).float(), causal=causal, kernel=kernel)
            close(got[0, 0].double(), want, 3e-5, f"{case} {direction}")
    got = L(g["q"], g["k"], g["v_leak"], table(g["b_zero"][None]), features=f, causal=True, kernel=kernel)
    torch.testing.assert_close(got[0, 0, :100], g["out_causal_leak_rows0_100"], rtol=0, atol=1e-13)


# ---- the definition


@pytest.mark.parametrize(
    ("name", "causal"), [(name, causal) for name in [*ENCODINGS, *CAUSAL_ONLY] for causal in (False, True)
                         if causal or name not in CAUSAL_ONLY],
)  # fmt: skip
def test_every_encoding_and_kernel(name: str, causal: bool, small: None) -> None:
    encoding, serve = build(name)
    f = made("prf", width_for(name))
    for n_q, n_k in ((37, 37), (9, 37), (1, 20), (37, 9)):
        q, k, v = inputs(2, HEADS, n_q, n_k, DIM, 3, grad=True)
        leaves = [q, k, v, *(() if encoding is None else encoding.parameters())]
        q_pos = torch.arange(n_q) if n_q > n_k else None
        codes = encoding.sample(n_q, n_k, generator=seed(9)) if name == "spe" else None
        options: dict[str, Any] = {"features": f, "causal": causal, "codes": codes, "q_pos": q_pos}
        want = naive_linear(q, k, v, encoding, **options)
        for kernel in KERNELS:
            if kernel not in serve:
                with pytest.raises(Refusal, match=f'kernel "{kernel}" cannot serve'):
                    L(q, k, v, encoding, kernel=kernel, **options)
                continue
            agree(L(q, k, v, encoding, kernel=kernel, **options), want, leaves, 1e-10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["prf", "prf_scaled", "orf", "sphere", "trf", "elu1", "relu", "relu_normal"])
def test_every_feature_map(name: str, causal: bool, small: None) -> None:
    f, encoding = made(name), build("clip")[0]
    q, k, v = inputs(2, HEADS, 21, 26, DIM, 3, kv_heads=1, grad=True)
    want = naive_linear(q, k, v, encoding, features=f, causal=causal, temperature=0.7)
    for kernel in KERNELS:
        got = L(q, k, v, encoding, features=f, causal=causal, temperature=0.7, kernel=kernel)
        agree(got, want, [q, k, v, encoding.table], 1e-9 if name == "trf" else 1e-11)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 71])
def test_lengths_about_every_border(n: int, small: None) -> None:
    f, encoding = made("elu1"), build("error")[0]
    for causal in (False, True):
        for n_k in {n, n + 3, 2 * n}:
            q, k, v = inputs(1, HEADS, n, n_k, grad=True)
            want = naive_linear(q, k, v, encoding, features=f, causal=causal)
            for kernel in ("tiled", "split"):
                got = L(q, k, v, encoding, features=f, causal=causal, kernel=kernel)
                agree(got, want, [q, k, v, encoding.table], 1e-11)
            other = rp.encodings.LearnedBias(HEADS, 2).double()
            want = naive_linear(q, k, v, other, features=f, causal=causal)
            agree(L(q, k, v, other, features=f, causal=causal, kernel="band"), want, [q, k, v, other.table], 1e-11)


@pytest.mark.parametrize("shift", [-50, -37, -9, -1, 0, 4, 20, 38, 90])
@pytest.mark.parametrize("name", ["clip", "alibi", "error"])
def test_queries_anywhere_before_among_or_behind_the_keys(name: str, shift: int, small: None) -> None:
    """Rectangles: consecutive queries that start `shift` after the first key."""
    encoding, serve = build(name)
    f = made("prf")
    q, k, v = inputs(1, HEADS, 19, 38, grad=True)
    for causal in (False, True):
        options: dict[str, Any] = {"features": f, "causal": causal, "q_pos": torch.arange(19) + shift}
        want = naive_linear(q, k, v, encoding, **options)
        for kernel in serve:
            got = L(q, k, v, encoding, kernel=kernel, **options)
            agree(got, want, [q, k, v, *encoding.parameters()], 1e-11)


def test_band_with_wide_blocks(small: None) -> None:
    """A table with a reach has blocks of 64 queries; three of them, and keys on both sides that queries do not meet."""
    f = made("relu")
    for max_lag, (n_q, n_k, first) in ((5, (150, 150, 0)), (5, (70, 300, 150)), (70, (140, 290, 100))):
        encoding = drawn(rp.encodings.LearnedBias(HEADS, max_lag)).double()
        q, k, v = inputs(1, HEADS, n_q, n_k, grad=True)
        for causal in (False, True):
            options: dict[str, Any] = {"features": f, "causal": causal, "q_pos": torch.arange(n_q) + first}
            want = naive_linear(q, k, v, encoding, **options)
            for kernel in ("band", "split"):
                agree(L(q, k, v, encoding, kernel=kernel, **options), want, [q, k, v, encoding.table], 1e-11)


def test_constants_as_they_are() -> None:
    """Across one cell of the split sum and several blocks of the band, in float32, with what auto picks."""
    f = made("prf").float()
    q, k, v = inputs(1, 1, 1030, dtype=torch.float32)
    free, clip = (drawn(rp.encodings.LearnedBias(1, lag)) for lag in (1100, 20))
    for causal in (False, True):
        for encoding, kernels in ((free, ("split", "tiled")), (clip, ("auto",))):
            want = naive_linear(q, k, v, encoding, features=f, causal=causal)
            for kernel in kernels:
                got = L(q, k, v, encoding, features=f, causal=causal, kernel=kernel)
                close(got.double(), want, 1e-5, kernel)


# ---- laws


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_constant_in_the_bias_changes_nothing(kernel: str, small: None) -> None:
    q, k, v = inputs(1, HEADS, 29)
    for causal in (False, True):
        encoding = build("clip")[0]
        options: dict[str, Any] = {"features": made("prf"), "causal": causal, "kernel": kernel}
        before = L(q, k, v, encoding, **options)
        with torch.no_grad():
            encoding.table += torch.tensor([[700.0], [-700.0]])
        torch.testing.assert_close(L(q, k, v, encoding, **options), before, rtol=0, atol=1e-12)
        with torch.no_grad():
            encoding.table.copy_(encoding.table.roll(1, 1))
        assert (L(q, k, v, encoding, **options) - before).abs().max() > 1e-2, "permuting lags changes the output"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_visible_lag_moves_the_values(kernel: str, dtype: torch.dtype, small: None) -> None:
    """-infinity at all lags but one: the output is v, moved by that lag, and 0 where there is no such key."""
    q, k, v = inputs(2, HEADS, 29, dtype=dtype)
    for lag in (0, -1, -3, 3, -12, -28, 28):
        for beyond in ("clip", "error"):
            encoding = rp.encodings.LearnedBias(HEADS, 28, beyond=beyond).to(dtype)
            with torch.no_grad():
                encoding.table.fill_(-torch.inf)
                encoding.table[:, 28 + lag] = 0.3
            for causal in (False, True):
                if kernel == "band" and beyond == "error":
                    continue
                got = L(q, k, v, encoding, features=made("prf").to(dtype), causal=causal, kernel=kernel)
                want = torch.zeros_like(v)
                if lag >= 0 and not (causal and lag > 0):
                    want[:, :, : 29 - lag] = v[:, :, lag:]
                if lag < 0:
                    want[:, :, -lag:] = v[:, :, :lag]
                torch.testing.assert_close(got, want, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


def test_a_bias_of_zero_is_plain_linear_attention(small: None) -> None:
    q, k, v = inputs(1, HEADS, 25)
    encoding = rp.encodings.LearnedBias(HEADS, 4).double()
    torch.nn.init.zeros_(encoding.table)
    for causal in (False, True):
        plain = L(q, k, v, features=made("elu1"), causal=causal)
        for kernel in KERNELS:
            got = L(q, k, v, encoding, features=made("elu1"), causal=causal, kernel=kernel)
            torch.testing.assert_close(got, plain, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS)
def test_prefix_consistency(kernel: str, small: None) -> None:
    """The first t rows of a causal output are the output of the first t tokens."""
    q, k, v = inputs(1, HEADS, 40)
    encoding = build("clip")[0]
    options: dict[str, Any] = {"features": made("prf"), "causal": True, "kernel": kernel}
    whole = L(q, k, v, encoding, **options)
    for t in (1, 7, 8, 9, 33):
        part = L(q[:, :, :t], k[:, :, :t], v[:, :, :t], encoding, **options)
        torch.testing.assert_close(part, whole[:, :, :t], rtol=0, atol=1e-12)
        chunk = L(q[:, :, t : t + 5], k[:, :, : t + 5], v[:, :, : t + 5], encoding, **options)
        torch.testing.assert_close(chunk, whole[:, :, t : t + 5], rtol=0, atol=1e-12)


@settings(max_examples=40)
@given(
    n=st.integers(1, 40), shift=st.integers(-1000, 1000), causal=st.booleans(),
    name=st.sampled_from(["clip", "alibi", "error", "rope", "permuteformer"]),
)  # fmt: skip
def test_positions_may_start_anywhere(n: int, shift: int, causal: bool, name: str) -> None:
    encoding = build(name)[0]
    q, k, v = inputs(1, HEADS, n, n + 2)
    pos = torch.arange(n + 2)
    options: dict[str, Any] = {"features": made("prf"), "causal": causal}
    at_zero = L(q, k, v, encoding, **options)
    moved = L(q, k, v, encoding, q_pos=pos[2:] + shift, k_pos=pos + shift, **options)
    torch.testing.assert_close(moved, at_zero, rtol=0, atol=1e-11)


@settings(max_examples=40)
@given(
    n=st.integers(1, 20), before=st.integers(0, 9), after=st.integers(0, 9), causal=st.booleans(),
    kernel=st.sampled_from(KERNELS), name=st.sampled_from(["clip", "alibi"]),
)  # fmt: skip
def test_padding_changes_nothing(n: int, before: int, after: int, causal: bool, kernel: str, name: str) -> None:
    """A sequence between masked rows of rubbish has the output that it has alone."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        encoding = build(name)[0]
        x = inputs(2, HEADS, n)
        options: dict[str, Any] = {"features": made("prf"), "causal": causal, "kernel": kernel}
        alone = L(*x, encoding, **options)
        padded = [torch.nn.functional.pad(t, (0, 0, before, after), value=float("nan")) for t in x]
        mask = torch.zeros(2, before + n + after, dtype=torch.bool)
        mask[:, before : before + n] = True
        got = L(*padded, encoding, key_mask=mask, **options)[:, :, before : before + n]
        torch.testing.assert_close(got, alone, rtol=0, atol=1e-11)


@settings(max_examples=40)
@given(seed=st.integers(0, 999), causal=st.booleans(), kernel=st.sampled_from(KERNELS))
def test_batch_rows_and_heads_are_apart(seed: int, causal: bool, kernel: str) -> None:
    """Permuting rows of the batch, or heads with their biases, permutes the output, to the last bit or nearly."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        encoding, f = build("clip")[0], made("prf")
        q, k, v = inputs(3, HEADS, 18, seed=seed)
        options: dict[str, Any] = {"features": f, "causal": causal, "kernel": kernel}
        out = L(q, k, v, encoding, **options)
        rows = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(L(q[rows], k[rows], v[rows], encoding, **options), out[rows], rtol=0, atol=1e-13)
        with torch.no_grad():
            encoding.table.copy_(encoding.table.flip(0))
        flipped = L(q.flip(1), k.flip(1), v.flip(1), encoding, **options)
        torch.testing.assert_close(flipped, out.flip(1), rtol=0, atol=1e-13)


def test_lengths_of_queries_and_keys_do_not_matter_where_they_are_normalised() -> None:
    q, k, v = inputs(1, HEADS, 9)
    encoding, f = build("clip")[0], made("prf")
    torch.testing.assert_close(
        L(7 * q, 1e-3 * k, v, encoding, features=f), L(q, k, v, encoding, features=f), rtol=0, atol=1e-12
    )
    scaled = made("prf_scaled")
    assert (L(2 * q, k, v, features=scaled) - L(q, k, v, features=scaled)).abs().max() > 1e-2


# ---- sizes and types


@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
def test_empty_sizes(kernel: str) -> None:
    encoding = build("clip")[0]
    for batch, n_q, n_k in ((0, 3, 3), (2, 0, 3), (2, 3, 0), (2, 0, 0), (0, 0, 0)):
        q, k, v = inputs(batch, HEADS, n_q, n_k, DIM, 3, grad=True)
        for causal in (False, True):
            q_pos = torch.arange(n_q) if n_q > n_k else None
            out = L(q, k, v, encoding, features=made("prf"), causal=causal, q_pos=q_pos, kernel=kernel)
            assert out.shape == (batch, HEADS, n_q, 3) and not out.any()
            found = torch.autograd.grad(out.sum(), [q, k, v], allow_unused=True)
            assert all(g is None or not g.any() for g in found)


@pytest.mark.parametrize("name", ["none", "rope", "cosformer", "permuteformer", "alibi"])
def test_one_token_attends_to_itself(name: str) -> None:
    encoding = build(name)[0]
    q, k, v = inputs(2, HEADS, 1, dim=DIM, dim_v=5)
    for causal in (False, True):
        torch.testing.assert_close(L(q, k, v, encoding, features=made("prf"), causal=causal), v, rtol=0, atol=1e-14)


def test_one_feature_and_wide_values(small: None) -> None:
    f, encoding = features.PRF(DIM, 1).double(), build("clip")[0]
    q, k, v = inputs(1, HEADS, 23, 23, DIM, 17, grad=True)
    for causal in (False, True):
        want = naive_linear(q, k, v, encoding, features=f, causal=causal)
        for kernel in KERNELS:
            agree(L(q, k, v, encoding, features=f, causal=causal, kernel=kernel), want, [q, k, v, encoding.table])


@pytest.mark.parametrize("kernel", KERNELS)
def test_layout_in_memory_does_not_matter(kernel: str, small: None) -> None:
    q, k, v = inputs(2, HEADS, 19)
    encoding, f = build("clip")[0], made("prf")
    want = L(q, k, v, encoding, features=f, causal=True, kernel=kernel)
    strided = [x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2) for x in (q, k, v)]
    assert not strided[0].is_contiguous()
    leaves = [x.requires_grad_() for x in strided]
    out = L(*leaves, encoding, features=f, causal=True, kernel=kernel)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-14)
    expanded = v[:1].expand(2, -1, -1, -1)
    got = L(q, k, expanded, encoding, features=f, kernel=kernel)
    torch.testing.assert_close(got, L(q, k, expanded.clone(), encoding, features=f, kernel=kernel), rtol=0, atol=1e-14)
    grads = torch.autograd.grad(out.sum().expand(3).sum(), leaves)
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
def test_half_precision(kernel: str, dtype: torch.dtype, small: None) -> None:
    q, k, v = inputs(1, HEADS, 30, dtype=dtype, grad=True)
    encoding, f = drawn(rp.encodings.LearnedBias(HEADS, 3), 10.0), made("prf").float()
    for causal in (False, True):
        want = naive_linear(q, k, v, encoding, features=f, causal=causal)
        for cast in (encoding, encoding.to(dtype)):
            out = L(q, k, v, cast, features=f, causal=causal, kernel=kernel)
            assert out.dtype == dtype
            tolerance = 1e-2 if cast is encoding else 1e-1
            torch.testing.assert_close(out.double(), want, rtol=tolerance, atol=tolerance)
            assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.float().sum(), [q, k, v]))
        encoding = encoding.float()


@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
def test_autocast_changes_nothing(kernel: str, small: None) -> None:
    q, k, v = inputs(1, HEADS, 30, dtype=torch.float32, grad=True)
    encoding, f = build("clip")[0].float(), made("prf").float()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = L(q, k, v, encoding, features=f, causal=True, kernel=kernel)
        found.append([out, *torch.autograd.grad(out.square().sum(), [q, k, v, encoding.table])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_kernels_agree_in_float64_with_encodings_in_float32(small: None) -> None:
    """The exponential is taken in the type of the sums, not in that of the table."""
    q, k, v = inputs(1, HEADS, 30)
    for name in ("clip", "alibi", "kerple_log"):
        encoding, serve = build(name)
        encoding = encoding.float()
        want = L(q, k, v, encoding, features=made("prf"), kernel="dense")
        for kernel in serve:
            close(L(q, k, v, encoding, features=made("prf"), kernel=kernel), want, 1e-11, f"{name} {kernel}")


@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
def test_wild_biases(kernel: str, small: None) -> None:
    """Numbers in [-50, 50] in float32: no NaN, the right output, finite gradients."""
    f = made("prf").float()
    for number in range(3):
        g = torch.Generator().manual_seed(number)
        encoding = rp.encodings.LearnedBias(HEADS, 45)
        with torch.no_grad():
            encoding.table.copy_(100 * torch.rand(encoding.table.shape, generator=g) - 50)
        q, k, v = inputs(1, HEADS, 46, dtype=torch.float32, grad=True, seed=number)
        for causal in (False, True):
            out = L(q, k, v, encoding, features=f, causal=causal, kernel=kernel)
            want = naive_linear(q, k, v, encoding, features=f, causal=causal)
            torch.testing.assert_close(out.double(), want, rtol=0, atol=1e-4)
            grads = torch.autograd.grad(out.sum(), [q, k, v, encoding.table])
            assert all(torch.isfinite(x).all() for x in grads)


def test_a_range_beyond_one_factor_is_refused_by_name_and_served_by_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "SMALL", 0)
    encoding = rp.encodings.LearnedBias(1, 3).double()
    with torch.no_grad():
        encoding.table.copy_(torch.linspace(0, 900, 7))
    q, k, v = inputs(1, 1, 40)
    want = naive_linear(q, k, v, encoding, features=made("prf"))
    torch.testing.assert_close(L(q, k, v, encoding, features=made("prf")), want, rtol=0, atol=1e-12)
    for kernel in ("band", "split"):
        with pytest.raises(Refusal, match="spans 900 nats"):
            L(q, k, v, encoding, features=made("prf"), kernel=kernel)


def test_the_same_call_gives_the_same_bits(small: None) -> None:
    q, k, v = inputs(1, HEADS, 40, dtype=torch.float32, grad=True)
    encoding, f = build("clip")[0].float(), made("prf").float()
    for kernel in KERNELS:
        runs = []
        for _ in range(2):
            out = L(q, k, v, encoding, features=f, causal=True, kernel=kernel)
            runs.append([out, *torch.autograd.grad(out.sum(), [q, k, v, encoding.table])])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# ---- what is said to a caller


def test_bad_input() -> None:
    q, k, v = inputs(1, HEADS, 5)
    f = made("prf")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (TypeError, r"features is one of relpos.features, such as PRF\(4, 16\), got str", {"features": "prf"}),
        (ValueError, "temperature is a finite number above 0, got 0", {"temperature": 0}),
        (ValueError, "temperature is a finite number above 0, got True", {"temperature": True}),
        (ValueError, "temperature .* got nan", {"temperature": float("nan")}),
        (ValueError, r"prefix is a number of leading tokens, 0..5, got 6", {"prefix": 6}),
        (ValueError, r"prefix is .* got -1", {"prefix": -1}),
        (ValueError, "give prefix or segments, not both", {"prefix": 1, "segments": torch.zeros(5, dtype=torch.int64)}),
        (ValueError, "kernel is auto, dense, tiled, band, split, grid; got 'fft'", {"kernel": "fft"}),
        (ValueError, "built for rows of width 6, got 4", {"features": made("prf", 6)}),
        (ValueError, "was built for 3 heads, q has 2", {"encoding": rp.encodings.LearnedBias(3, 2)}),
        (ValueError, "pass causal=True", {"encoding": rp.encodings.HyPE(HEADS)}),
        (TypeError, "no meaning in kernelized attention; it works in softmax", {"encoding": rp.encodings.Shaw(DIM, 3)}),
        (TypeError, "no meaning in kernelized attention", {"encoding": rp.encodings.FIRE(HEADS)}),
        (TypeError, "absolute", {"encoding": rp.encodings.Sinusoidal(DIM)}),
        (ValueError, "T5Bias has parameters: build it once", {"encoding": "t5"}),
        (ValueError, r"built for heads of width 4, got 6", {"encoding": rp.encodings.RoPE(DIM)}),
        (ValueError, "acts before the features, where a prefix has no meaning",
         {"encoding": rp.encodings.FLT(HEADS, 3).double(), "features": made("prf", 10), "prefix": 2}),
    ]  # fmt: skip
    for kind, message, options in cases:
        if options.get("encoding") == "t5":
            message = "T5Bias has parameters: build it once"
        with pytest.raises(kind, match=message):
            L(q, k, v, **({"features": f} | options))
    with pytest.raises(ValueError, match="as many keys as queries or more, got 3 and 5"):
        L(q, k[:, :, :3], v[:, :, :3], features=f, prefix=1, q_pos=torch.arange(4), k_pos=torch.arange(2))
    with pytest.raises(TypeError, match="features"):
        L(q, k, v)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["rope", "permuteformer", "flt", "spe"])
def test_an_encoding_for_other_features_says_so(name: str) -> None:
    q, k, v = inputs(1, HEADS, 5)
    f = made("prf", 3) if name in ("flt", "spe") else made("prf", DIM, COUNT + 2)
    with pytest.raises(ValueError, match="width"):
        L(q, k, v, build(name)[0], features=f)
