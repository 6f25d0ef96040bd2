"""Who sees whom in linear attention: padding, documents, prefixes, positions, and a future that may hold anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos import features
from relpos.kernels.linear import split
from relpos.kernels.linear.rows import Rows
from tests.core.naive import agree, inputs
from tests.core.naive_linear import DIM, HEADS, KERNELS, build, made, naive_linear, shrink

L = rp.linear_attention
NAMES = ["none", "clip", "alibi", "error", "rope", "permuteformer", "flt"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def masks(n: int) -> dict[str, Tensor]:
    at = torch.arange(n)
    return {
        "right": torch.stack([at < n - 5, at < n]),
        "left": torch.stack([at >= 9, at >= 1]),
        "scattered": torch.stack([at % 3 != 1, at % 5 != 0]),
        "middle": torch.stack([(at < 4) | (at > 20), at > 30]),
        "nothing": torch.stack([at < 0, at >= 0]),
    }


def every(
    q: Tensor, k: Tensor, v: Tensor, encoding: Any, kernels: tuple[str, ...], tolerance: float = 1e-11, **options: Any
) -> None:
    """Values and gradients of each kernel are those of the definition."""
    want = naive_linear(q, k, v, encoding, **options)
    leaves = [q, k, v, *(() if encoding is None else encoding.parameters())]
    for kernel in kernels:
        agree(L(q, k, v, encoding, kernel=kernel, **options), want, leaves, tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["right", "left", "scattered", "middle", "nothing"])
def test_padding(name: str, kind: str) -> None:
    """A row that sees no key is 0, with no gradient; grouped heads share their keys."""
    encoding, serve = build(name)
    f = made("prf", DIM + 6) if name == "flt" else made("prf")
    q, k, v = inputs(2, HEADS, 37, kv_heads=1, dim=DIM, grad=True)
    mask = masks(37)[kind]
    for causal in (False, True):
        every(q, k, v, encoding, serve, features=f, causal=causal, key_mask=mask)
        out = L(q, k, v, encoding, features=f, causal=causal, key_mask=mask)
        seen = mask.cumsum(1) > 0 if causal else mask.any(1, keepdim=True).expand(-1, 37)
        assert not out[~seen.unsqueeze(1).expand(2, HEADS, 37)].any()


@pytest.mark.parametrize("name", NAMES)
def test_documents(name: str) -> None:
    encoding = build(name)[0]
    f = made("prf", DIM + 6) if name == "flt" else made("prf")
    q, k, v = inputs(2, HEADS, 24, dim=DIM, grad=True)
    for segments in (torch.arange(24) // 9, torch.arange(24) % 2, torch.stack([torch.arange(24) // 5] * 2)):
        for causal in (False, True):
            every(q, k, v, encoding, ("tiled",), features=f, causal=causal, segments=segments)
    pair = (torch.arange(7) // 3, torch.arange(24) // 4)
    every(q[:, :, :7], k, v, encoding, ("auto", "tiled"), features=f, segments=pair)


@pytest.mark.parametrize("name", ["none", "clip", "alibi", "error", "rope", "permuteformer", "cosformer"])
@pytest.mark.parametrize("prefix", [1, 3])
def test_prefix(name: str, prefix: int) -> None:
    """Pairs with a token of the prefix have bias 0; the others' positions count from behind it."""
    encoding, serve = build(name)
    f = made("prf")
    for n_q, n_k in ((22, 22), (20, 22), (prefix, prefix)):
        q, k, v = inputs(2, HEADS, n_q, n_k, grad=True)
        mask = torch.arange(n_k) != prefix + 1
        for causal in (False, True):
            every(q, k, v, encoding, serve, features=f, causal=causal, prefix=prefix)
            every(q, k, v, encoding, serve[1:], features=f, causal=causal, prefix=prefix, key_mask=mask.expand(2, -1))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_only_the_prefix_is_seen(kernel: str, dtype: torch.dtype) -> None:
    """However large the bias of the keys that are hidden."""
    q, k, v = inputs(1, HEADS, 20, dtype=dtype)
    encoding = rp.encodings.LearnedBias(HEADS, 3).to(dtype)
    for height in (200.0, -200.0):
        torch.nn.init.constant_(encoding.table, height)
        mask = torch.arange(20)[None] < 1
        got = L(q, k, v, encoding, features=made("prf").to(dtype), key_mask=mask, prefix=1, kernel=kernel)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(got, v[:, :, :1].expand_as(v), rtol=0, atol=tolerance)
        got = L(q, k, v, encoding, features=made("prf").to(dtype), prefix=1, kernel=kernel)
        want = naive_linear(q, k, v, encoding, features=made("prf").to(dtype), prefix=1)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)


def test_a_grid_behind_a_token_of_its_own() -> None:
    """Positions may be given for the patches, or for all tokens."""
    cells = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    encoding = rp.encodings.SwinBias(HEADS, window=(3, 4)).double()
    q, k, v = inputs(1, HEADS, 13, grad=True)
    f = made("prf")
    got = L(q, k, v, encoding, features=f, prefix=1, q_pos=cells, k_pos=cells)
    bias = encoding.at(cells[None] - cells[:, None]).double()
    weight = torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
    product = f(weight[0]) @ f(weight[1]).mT
    factor = torch.nn.functional.pad(bias.exp(), (1, 0, 1, 0), value=1.0)
    agree(got, (product * factor) @ v / (product * factor).sum(-1, keepdim=True), [q, k, v, encoding.table])
    whole = torch.cat([torch.full((1, 2), 99), cells])
    torch.testing.assert_close(got, L(q, k, v, encoding, features=f, prefix=1, q_pos=whole, k_pos=whole))


@pytest.mark.parametrize("name", ["clip", "alibi", "error", "rope", "permuteformer", "flt"])
@pytest.mark.parametrize("kind", ["gaps", "batched", "reversed", "batched starts", "chunk with gaps"])
def test_positions(name: str, kind: str) -> None:
    encoding = build(name)[0]
    f = made("prf", DIM + 6) if name == "flt" else made("prf")
    at = torch.arange(19)
    q_pos, k_pos = {
        "gaps": (at * 3 - 7, at * 3 - 7),
        "batched": (torch.stack([at, 2 * at]), torch.stack([at, 2 * at])),
        "reversed": (at.flip(0), at.flip(0)),
        "batched starts": (at + torch.tensor([[3], [50]]), at + torch.tensor([[3], [50]])),
        "chunk with gaps": (at + 40, torch.cat([at[:10], at[:9] + 50])),
    }[kind]
    q, k, v = inputs(2, HEADS, 19, dim=DIM, grad=True)
    for causal in (False, True):
        options: dict[str, Any] = {"features": f, "causal": causal, "q_pos": q_pos, "k_pos": k_pos}
        every(q, k, v, encoding, ("dense", "tiled"), **options)
        every(q, k, v, encoding, ("tiled",), key_mask=masks(19)["scattered"], **options)
        every(q, k, v, encoding, ("tiled",), segments=at // 7, **options)


# ---- what is hidden may hold anything

POISON = [float("nan"), -float("inf"), 1e10, 1e30]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_future_leaves_the_past_as_it_is(kernel: str, where: str, dtype: torch.dtype) -> None:
    """To the last bit: NaN, infinity and huge numbers from token t on, with padding and without, any feature map."""
    for name, table in (("prf", "clip"), ("elu1", "alibi"), ("trf", "zero"), ("prf_scaled", "error")):
        if kernel == "band" and table == "error":
            continue
        f, encoding = made(name).to(dtype), build(table)[0].to(dtype)
        x = dict(zip("qkv", inputs(1, HEADS, 29, dtype=dtype), strict=True))
        for mask in (None, torch.arange(29)[None] > 1)[:: 1 if table == "clip" else 2]:
            options: dict[str, Any] = {"features": f, "causal": True, "kernel": kernel, "key_mask": mask}
            clean = L(x["q"], x["k"], x["v"], encoding, **options)
            for t in (8, 21):
                for poison in POISON:
                    y = {part: tensor.clone() for part, tensor in x.items()}
                    y[where][:, :, t:] = poison
                    got = L(y["q"], y["k"], y["v"], encoding, **options)
                    assert torch.equal(got[:, :, :t], clean[:, :, :t]), (name, table, t, poison)
                    if poison != poison:
                        assert torch.isnan(got[:, :, t:]).any(-1).all(), "and is not hidden from those that see it"


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_the_past_do_not_see_the_future(kernel: str) -> None:
    encoding = build("clip")[0]
    x = inputs(1, HEADS, 29)
    found = []
    for poison in (None, *POISON):
        y = [t.clone() for t in x]
        if poison is not None:
            for t in y:
                t[:, :, 13:] = poison
        leaves = [t.requires_grad_() for t in y]
        out = L(*leaves, encoding, features=made("prf"), causal=True, kernel=kernel)
        found.append(torch.autograd.grad(out[:, :, :13].square().sum(), [*leaves, encoding.table]))
    for grads in found[1:]:
        for a, b in zip(grads, found[0], strict=True):
            part = slice(None) if a.dim() == 2 else slice(0, 13)
            torch.testing.assert_close(a[..., part, :], b[..., part, :], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_masked_keys_are_never_read(kernel: str) -> None:
    encoding = build("clip")[0]
    q, k, v = inputs(2, HEADS, 29, grad=True)
    for mask in masks(29).values():
        for causal in (False, True):
            options: dict[str, Any] = {"features": made("prf"), "causal": causal, "key_mask": mask, "kernel": kernel}
            clean = L(q, k, v, encoding, **options)
            hidden = ~mask[:, None, :, None]
            for poison in (float("nan"), float("inf")):
                got = L(q, k.masked_fill(hidden, poison), v.masked_fill(hidden, poison), encoding, **options)
                assert torch.equal(got, clean)
                grads = torch.autograd.grad(got.sum(), [q, k, v, encoding.table])
                assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
def test_documents_do_not_see_each_other_whatever_they_hold(kernel: str) -> None:
    for name in ("none", "clip", "rope"):
        encoding = build(name)[0]
        x = inputs(1, HEADS, 24)
        for segments in (torch.arange(24) // 8, torch.arange(24) % 3):
            for causal in (False, True):
                options: dict[str, Any] = {"features": made("prf"), "causal": causal, "segments": segments}
                clean = L(*x, encoding, kernel=kernel, **options)
                for poison in POISON:
                    y = [t.clone() for t in x]
                    for t in y:
                        t[:, :, segments == 1] = poison
                    got = L(*y, encoding, kernel=kernel, **options)
                    assert torch.equal(got[:, :, segments != 1], clean[:, :, segments != 1])


# ---- rows whose weights are small, but all that they have


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_whose_near_keys_are_hidden(causal: bool, dtype: torch.dtype) -> None:
    """Weights of e^-50 .. e^-1000 against the largest: no row is rounded away or made up, in any kernel."""
    n = 120
    q, k, v = inputs(1, HEADS, n, dtype=dtype)
    f = made("prf").to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    for gap in (50, 92, 110):
        mask = (torch.arange(n) < n - gap)[None]
        for slope in (1.0, 8.0):
            steep = rp.encodings.ALiBi(HEADS, symmetric=True).to(dtype)
            steep.slopes.fill_(slope)
            want = naive_linear(q, k, v, steep, features=f, causal=causal, key_mask=mask)
            for kernel in ("dense", "tiled", "band"):
                got = L(q, k, v, steep, features=f, causal=causal, key_mask=mask, kernel=kernel)
                torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)
        free = rp.encodings.LearnedBias(HEADS, n).to(dtype)
        with torch.no_grad():
            free.table.copy_(-0.9 * (torch.arange(2 * n + 1) - n).abs())
        want = naive_linear(q, k, v, free, features=f, causal=causal, key_mask=mask)
        got = L(q, k, v, free, features=f, causal=causal, key_mask=mask, kernel="split")
        torch.testing.assert_close(got.double(), want, rtol=0, atol=3 * tolerance)  # an FFT takes part


def test_padding_costs_no_other_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that see no key are 0 by right: the direct tiles are not called to look for more."""
    from relpos.kernels.linear import choose

    def fail(call: object) -> None:
        raise AssertionError("direct tiles")

    monkeypatch.setattr(choose, "tiled", fail)
    q, k, v = inputs(2, HEADS, 37)
    for mask in masks(37).values():
        for causal in (False, True):
            for kernel in ("band", "split"):
                L(q, k, v, build("clip")[0], features=made("prf"), key_mask=mask, causal=causal, kernel=kernel)
    for kernel in ("band", "split"):  # and rows that stand before the first key
        early = torch.arange(37) - 9
        L(q, k, v, build("clip")[0], features=made("prf"), q_pos=early, causal=True, kernel=kernel)


def test_features_of_a_hidden_key_are_never_used() -> None:
    """A map that is not defined at 0, which is what hidden keys are read as."""

    class Inverse(features.Features):
        width = DIM

        def forward(self, x: Tensor) -> Tensor:
            return 1 / x.abs()

    q, k, v = inputs(1, HEADS, 9, dim=DIM)
    mask = torch.arange(9)[None] < 6
    got = L(q, k, v, features=Inverse(), key_mask=mask)
    weight = (1 / q.abs()) @ (1 / k[:, :, :6].abs()).mT
    torch.testing.assert_close(got, weight @ v[:, :, :6] / weight.sum(-1, keepdim=True))


@pytest.mark.parametrize("offset", [0, 3, 5, 8, -3])
def test_the_estimate_of_rounding_reads_no_future_key(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It decides which rows are computed again, so a future key must not reach it either."""
    shrink(monkeypatch)
    q, k = (torch.rand(1, 1, n, 3, dtype=torch.float64) for n in (30, 40))
    c = torch.rand(1, 30 + 40 - 1, dtype=torch.float64)
    before = split.noise(q, k, c, Rows(None), offset, True)
    for first in range(1, 40):
        loud = k.clone()
        loud[:, :, first:] *= 1e6
        after = split.noise(q, loud, c, Rows(None), offset, True)
        past = max(0, min(30, first - offset))  # queries that stand before the first loud key
        assert torch.equal(after[..., :past], before[..., :past])
        assert past < 20 or before[..., :past].any()
