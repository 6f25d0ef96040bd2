"""rp.toeplitz_matmul: every method against the matrix, the errors of the split, the future, gradients, grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.kernels.linear import band as band_kernel
from relpos.kernels.linear import split as split_kernel
from relpos.positions import Grid
from tests.core.test_memory import Largest

SIDES = [(1, 1), (2, 2), (3, 3), (31, 31), (257, 257), (7, 20), (20, 7), (300, 131), (131, 300), (1, 9), (9, 1)]
GRIDS = [(1, 1), (4, 5), (7, 3), (17, 13), (2, 3, 4), (3, 5, 7)]


def matrix(c: Tensor, n_k: int, causal: bool = False) -> Tensor:
    n_q = c.shape[-1] + 1 - n_k
    query, key = torch.arange(n_q)[:, None], torch.arange(n_k)
    full = c[..., key - query + n_q - 1]
    return full.masked_fill(key > query + n_k - n_q, 0) if causal else full


def grid_matrix(c: Tensor, sides: tuple[int, ...], causal: bool = False) -> Tensor:
    cells = Grid.of(*sides).values[0]
    index = cells[None] - cells[:, None] + torch.tensor(sides) - 1
    full = c[(..., *index.unbind(-1))]
    return full.tril() if causal else full


def clipped(n_q: int, n_k: int, reach: int, causal: bool, heads: int = 3) -> Tensor:
    """A generator that is constant beyond some lags of the order."""
    zero = n_q - 1 + (n_k - n_q if causal else 0)
    lag = (torch.arange(n_q + n_k - 1) - zero).clamp(-reach, reach)
    return torch.randn(heads, 2 * reach + 1, dtype=torch.float64)[:, lag + reach]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n_q,n_k", SIDES)
def test_equals_the_matrix(n_q: int, n_k: int, causal: bool) -> None:
    c = torch.randn(3, n_q + n_k - 1, dtype=torch.float64)
    x = torch.randn(2, 3, n_k, 4, dtype=torch.float64)
    want = matrix(c, n_k, causal) @ x
    for method in ("dense", "fft", "split", "auto"):
        got = rp.toeplitz_matmul(c, x, causal=causal, method=method)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n_q,n_k", [(n_q, n_k) for n_q, n_k in SIDES if n_q + n_k > 8])
def test_band_finds_the_constant_tails(n_q: int, n_k: int, causal: bool) -> None:
    c, x = clipped(n_q, n_k, 3, causal), torch.randn(2, 3, n_k, 4, dtype=torch.float64)
    got = rp.toeplitz_matmul(c, x, causal=causal, method="band")
    torch.testing.assert_close(got, matrix(c, n_k, causal) @ x, rtol=0, atol=1e-12)


def test_band_takes_tails_that_stand_apart() -> None:
    x = torch.randn(50, 2, dtype=torch.float64)
    for left, right in ((0, 1), (10, 11), (0, 40), (60, 70), (97, 98)):  # where the tails end, of 99 lags
        c = torch.randn(99, dtype=torch.float64)
        c[: left + 1], c[right:] = 0.3, -0.7
        torch.testing.assert_close(rp.toeplitz_matmul(c, x, method="band"), matrix(c, 50) @ x, rtol=0, atol=1e-12)
    ones = torch.ones(99, dtype=torch.float64)
    for causal in (False, True):
        got = rp.toeplitz_matmul(ones, x, causal=causal, method="band")
        torch.testing.assert_close(got, matrix(ones, 50, causal) @ x, rtol=0, atol=1e-12)


def test_large_products_take_the_quick_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    from relpos.kernels import toeplitz

    taken: list[str] = []

    def spied(name: str, method: Callable[[toeplitz.Product], Tensor]) -> Callable[[toeplitz.Product], Tensor]:
        return lambda product: (taken.append(name), method(product))[1]

    for name, method in list(toeplitz.DIRECT.items()):
        monkeypatch.setitem(toeplitz.DIRECT, name, spied(name, method))
    x = torch.randn(1200, 2)
    free, tailed = torch.randn(2399), clipped(1200, 1200, 8, False, 1)[0].float()
    for c, causal, wanted in ((free, False, "split"), (free, True, "split"), (tailed, False, "band")):
        got = rp.toeplitz_matmul(c, x, causal=causal)
        torch.testing.assert_close(got, matrix(c, 1200, causal) @ x, rtol=0, atol=1e-3)
        assert taken.pop() == wanted
    rp.toeplitz_matmul(tailed.requires_grad_(), x)
    assert taken.pop() == "split"  # every lag of a tail wants its own gradient
    rp.toeplitz_matmul(free[:199], x[:100])
    assert taken.pop() == "dense"


# kernelized attention at n = 512, m = 16 features, as a Toeplitz product of 16 * (dim_v + 1) columns, and the largest
# error of its output: bias, causal, float64, float32. The bounds are those of squares of 64 and dyadic rectangles.
STRESS: list[tuple[str, bool, float, float]] = [
    ("zero", False, 2e-16, 5e-8),
    ("zero", True, 7e-16, 3e-7),
    ("previous 10", False, 9e-15, 2e-6),
    ("previous 10", True, 4e-15, 1e-6),
    ("previous 15", False, 7e-15, 3e-6),
    ("previous 15", True, 4e-15, 3e-6),
    ("previous 20", True, 4e-15, 2e-6),
    ("next 15", False, 7e-15, 2e-6),
    ("far 15", True, 9e-12, 5e-3),
    ("gauss", False, 4e-15, 1e-6),
    ("gauss", True, 3e-15, 1e-6),
]


def bias_of(name: str, n: int) -> Tensor:
    b = torch.zeros(2 * n - 1, dtype=torch.float64)
    if name == "gauss":
        return 5 * torch.randn(2 * n - 1, dtype=torch.float64)
    if name != "zero":
        where, size = name.split()
        at = {"previous": [n - 2], "next": [n], "far": [0, 2 * n - 2]}[where]
        b[at] = float(size)
    return b


Product = Callable[[Tensor, Tensor], Tensor]


def error(name: str, causal: bool, dtype: torch.dtype, n: int = 512, d: int = 32, m: int = 16) -> float:
    """Largest error of the output of kernelized attention whose sums run in a dtype, by the split."""
    x_q, x_k = (torch.nn.functional.normalize(torch.randn(n, d, dtype=torch.float64), dim=-1) for _ in range(2))
    weight = torch.randn(d, m, dtype=torch.float64)
    phi_q, phi_k = ((x @ weight - 0.5).exp() / math.sqrt(m) for x in (x_q, x_k))
    values = torch.cat([torch.randn(n, 8, dtype=torch.float64), torch.ones(n, 1, dtype=torch.float64)], -1)
    b = bias_of(name, n)
    c = (b - b.max()).exp()

    def output(product: Product, dtype: torch.dtype) -> Tensor:
        columns = (phi_k[:, :, None] * values[:, None]).flatten(1).to(dtype)
        sums = product(c.to(dtype), columns).view(n, m, 9)
        total = (phi_q.to(dtype)[:, :, None] * sums).sum(1)
        return (total[:, :-1] / total[:, -1:]).double()

    want = output(lambda c, x: matrix(c, n, causal) @ x, torch.float64)
    got = output(lambda c, x: rp.toeplitz_matmul(c, x, causal=causal, method="split"), dtype)
    return float((got - want).abs().max())


@pytest.mark.parametrize("dtype,column", [(torch.float64, 0), (torch.float32, 1)])
@pytest.mark.parametrize("name,causal,wide,narrow", STRESS)
def test_errors_of_squares_and_rectangles(
    name: str,
    causal: bool,
    wide: float,
    narrow: float,
    dtype: torch.dtype,
    column: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(split_kernel, "CELL", 64)  # so that rectangles are met at this length
    monkeypatch.setattr(band_kernel, "LEAST", 64)
    bound = 3 * (wide, narrow)[column]  # another draw of the same kind
    if name == "gauss":  # the largest of 1023 biases may stand on any lag, and the error is that of where it stands
        assert min(error(name, causal, dtype) for _ in range(5)) <= bound
    else:
        assert error(name, causal, dtype) <= bound


@pytest.mark.parametrize("name", ["zero", "previous 10", "previous 20", "next 15", "far 15", "gauss"])
def test_causal_errors_as_shipped(name: str) -> None:
    """Squares of 1024 hold this whole length, and with it the biases of far lags that the table's squares lose."""
    assert max(error(name, True, torch.float64) for _ in range(3)) <= 2e-14
    assert max(error(name, True, torch.float32) for _ in range(3)) <= 1e-5


@pytest.mark.parametrize("method", ["dense", "band", "split"])
@pytest.mark.parametrize("n_q,n_k", [(40, 40), (30, 50), (50, 30), (2100, 2100)])
def test_the_future_has_no_influence(method: str, n_q: int, n_k: int) -> None:
    c, x = clipped(n_q, n_k, 5, True, 1), torch.randn(n_k, 3, dtype=torch.float64)
    cut = max(n_k * 2 // 3, 1)
    past = cut - (n_k - n_q)  # queries that see keys before the cut only
    want = rp.toeplitz_matmul(c, x, causal=True, method=method)[0, :past]
    assert len(want) > 0 and bool(torch.isfinite(want).all())
    for poison in (torch.nan, torch.inf, 1e10, 1e300):
        changed = x.clone()
        changed[cut:] = poison
        got = rp.toeplitz_matmul(c, changed, causal=True, method=method)[0]
        assert torch.equal(got[:past], want)
        if not math.isfinite(poison):
            assert bool(got[past:].isnan().all())
    changed = x.clone()
    changed[cut, 1] = torch.nan
    got = rp.toeplitz_matmul(c, changed, causal=True, method=method)[0]
    assert bool(torch.isfinite(got[:, [0, 2]]).all())  # a column knows nothing of its neighbours


@pytest.mark.parametrize("method", ["dense", "split"])
def test_forbidden_lags_get_no_gradient(method: str) -> None:
    for n_q, n_k in ((40, 40), (33, 50), (1500, 1500)):
        c = torch.randn(n_q + n_k - 1, dtype=torch.float64, requires_grad=True)
        x = torch.randn(n_k, 2, dtype=torch.float64, requires_grad=True)
        rows = torch.arange(n_q) < n_q // 2
        out = rp.toeplitz_matmul(c, x, causal=True, method=method)
        out[rows].square().sum().backward()
        assert c.grad is not None and x.grad is not None
        assert bool((c.grad[n_k:] == 0).all()) and bool((c.grad[n_k - 8 : n_k] != 0).all())
        assert bool((x.grad[n_q // 2 + n_k - n_q :] == 0).all())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", ["dense", "fft", "split", "auto"])
def test_gradients(method: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_kernel, "CELL", 2)
    monkeypatch.setattr(split_kernel, "NEAR", 2)
    monkeypatch.setattr(band_kernel, "LEAST", 2)
    for n_q, n_k in ((7, 7), (4, 9), (9, 4)):
        c = torch.randn(2, n_q + n_k - 1, dtype=torch.float64, requires_grad=True)
        x = torch.randn(3, 2, n_k, 2, dtype=torch.float64, requires_grad=True)
        product = partial(rp.toeplitz_matmul, causal=causal, method=method)
        assert torch.autograd.gradcheck(product, (c, x), fast_mode=True)
    c = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    product = partial(rp.toeplitz_matmul, causal=causal, grid=(2, 2), method=method)
    assert torch.autograd.gradcheck(product, (c, x))


def test_gradients_of_long_products() -> None:
    n = 2500
    for causal in (False, True):
        c = torch.randn(2 * n - 1, dtype=torch.float64, requires_grad=True)
        x = torch.randn(n, 3, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(n, 3, dtype=torch.float64)
        want = torch.autograd.grad((matrix(c, n, causal) @ x * weight).sum(), (c, x))
        got = torch.autograd.grad((rp.toeplitz_matmul(c, x, causal=causal) * weight).sum(), (c, x))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    fixed = clipped(n, n, 9, False, 1)[0]
    want = torch.autograd.grad((matrix(fixed, n) @ x * weight).sum(), x)
    got = torch.autograd.grad((rp.toeplitz_matmul(fixed, x, method="band") * weight).sum(), x)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_second_derivatives_are_refused_or_right() -> None:
    c = torch.randn(9, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda c, x: rp.toeplitz_matmul(c, x, method="dense"), (c, x))
    for method in ("fft", "split"):
        (first,) = torch.autograd.grad(rp.toeplitz_matmul(c, x, method=method).sum(), c, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated again"):
            first.square().sum().backward()


@pytest.mark.parametrize("method", ["dense", "fft", "split", "auto"])
def test_leading_axes_broadcast(method: str) -> None:
    n, k = 6, 4
    for c_lead, x_lead in (((), ()), ((), (2, 3)), ((3,), (2, 3)), ((2, 1), (2, 3)), ((2, 3), ()), ((2, 3), (3,)),
                           ((1, 3), (2, 1)), ((0,), (0,)), ((1,), (0,))):  # fmt: skip
        c = torch.randn(*c_lead, n + k - 1, dtype=torch.float64)
        x = torch.randn(*x_lead, k, 2, dtype=torch.float64)
        got = rp.toeplitz_matmul(c, x, method=method)
        torch.testing.assert_close(got, matrix(c, k) @ x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", ["dense", "fft", "split", "auto"])
def test_nothing_to_do(method: str) -> None:
    for lags, n_k, width, n_q in ((0, 0, 3, 0), (4, 0, 3, 5), (2, 3, 3, 0), (5, 3, 0, 3), (0, 1, 2, 0)):
        c, x = torch.randn(lags, requires_grad=True), torch.randn(n_k, width, requires_grad=True)
        for causal in (False, True):
            out = rp.toeplitz_matmul(c, x, causal=causal, method=method)
            assert out.shape == (n_q, width) and bool((out == 0).all())
            out.sum().backward()
            assert c.grad is not None and bool((c.grad == 0).all())


def test_dtypes_and_layouts() -> None:
    c, x = torch.randn(2, 199), torch.randn(2, 100, 3)
    want = matrix(c, 100) @ x
    for dtype, error_ in ((torch.float16, 2e-2), (torch.bfloat16, 2e-1), (torch.float32, 1e-4)):
        for method in ("dense", "fft", "split"):
            got = rp.toeplitz_matmul(c.to(dtype), x.to(dtype), method=method)
            assert got.dtype == dtype
            torch.testing.assert_close(got.float(), want, rtol=0, atol=error_)
    double = rp.toeplitz_matmul(c.double(), x, method="split")
    torch.testing.assert_close(double, (matrix(c.double(), 100) @ x.double()).float(), rtol=0, atol=0)
    turned, every = x.mT.contiguous().mT, torch.randn(2, 398)[:, ::2]
    torch.testing.assert_close(rp.toeplitz_matmul(every, turned, method="split"), matrix(every, 100) @ x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(rp.toeplitz_matmul(c, x, method="dense"), want)


@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_linear(causal: bool) -> None:
    n = 4096
    for lags, grid in ((torch.rand(2 * n - 1), None), (torch.rand(127, 127), (64, 64))):
        c, x = lags.requires_grad_(), torch.randn(n, 8, requires_grad=True)
        with Largest() as largest:
            rp.toeplitz_matmul(c, x, causal=causal, grid=grid).sum().backward()
        assert largest.bytes < n * n, largest.operation
    with Largest() as largest:
        rp.toeplitz_matmul(torch.ones(2 * n - 1), x, causal=causal).sum().backward()
    assert largest.bytes < n * n, largest.operation


@pytest.mark.parametrize("sides", GRIDS)
def test_grids_equal_the_matrix(sides: tuple[int, ...]) -> None:
    c = torch.randn(2, *(2 * side - 1 for side in sides), dtype=torch.float64)
    x = torch.randn(3, 2, math.prod(sides), 3, dtype=torch.float64)
    for causal in (False, True):
        want = grid_matrix(c, sides, causal) @ x
        for method in ("dense", "fft", "split", "auto"):
            got = rp.toeplitz_matmul(c, x, causal=causal, grid=sides, method=method)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_grid_sums_the_rows_around_directly() -> None:
    """A weight on a neighbour that is 1e8 times the others leaves no trace elsewhere, as one FFT does."""
    sides, x = (24, 25), torch.rand(600, 1, dtype=torch.float64)
    for dy, dx in ((0, 1), (0, -24), (1, 0), (-1, 2)):
        c = torch.rand(47, 49, dtype=torch.float64) * 1e-8
        c[dy + 23, dx + 24] = 1
        alone = torch.zeros_like(x).view(24, 25, 1)
        alone[10, 11] = 1
        x_far = x.masked_fill(alone.view(600, 1) == 0, 0)
        want = grid_matrix(c, sides) @ x_far
        small = want < 1e-7
        for method, exact in (("split", True), ("fft", False)):
            got = rp.toeplitz_matmul(c.float(), x_far.float(), grid=sides, method=method)
            apart = (got.double() - want)[small].abs().amax()
            assert (apart < 1e-13) == exact


def test_the_future_of_a_grid_has_no_influence() -> None:
    sides = (40, 41)
    c, x = torch.randn(1, 79, 81), torch.randn(1640, 2)
    want = rp.toeplitz_matmul(c, x, causal=True, grid=sides, method="split")[0, :1000]
    for poison in (torch.nan, torch.inf, 1e30):
        x[1000:] = poison
        assert torch.equal(rp.toeplitz_matmul(c, x, causal=True, grid=sides, method="split")[0, :1000], want)


@pytest.mark.parametrize(
    "error_,match,call",
    [
        (TypeError, "c is a tensor", lambda c, x: rp.toeplitz_matmul([1.0], x)),
        (TypeError, "torch.int64", lambda c, x: rp.toeplitz_matmul(c.long(), x)),
        (TypeError, "torch.complex64", lambda c, x: rp.toeplitz_matmul(c, x.to(torch.complex64))),
        (ValueError, "width", lambda c, x: rp.toeplitz_matmul(c, x[:, 0])),
        (ValueError, "c holds 3 lags, too few for 5 keys", lambda c, x: rp.toeplitz_matmul(c[:3], x)),
        (ValueError, "do not broadcast", lambda c, x: rp.toeplitz_matmul(c.expand(2, 9), x.expand(3, 5, 2))),
        (ValueError, "method is one of", lambda c, x: rp.toeplitz_matmul(c, x, method="quick")),
        (ValueError, "not constant beyond any lag", lambda c, x: rp.toeplitz_matmul(c, x, method="band")),
        (ValueError, "wants a gradient", lambda c, x: rp.toeplitz_matmul((c * 0).requires_grad_(), x, method="band")),
        (ValueError, r"grid is \(height, width\)", lambda c, x: rp.toeplitz_matmul(c, x, grid=5)),
        (ValueError, "got \\(5, 0\\)", lambda c, x: rp.toeplitz_matmul(c, x, grid=(5, 0))),
        (ValueError, r"c of shape \(.., 9, 1\)", lambda c, x: rp.toeplitz_matmul(c, x, grid=(5, 1))),
        (ValueError, "has 4 cells; x holds 5", lambda c, x: rp.toeplitz_matmul(c.view(3, 3), x, grid=(2, 2))),
        (ValueError, "on a grid", lambda c, x: rp.toeplitz_matmul(c[:, None], x, grid=(5, 1), method="band")),
    ],
)
def test_bad_input(error_: type[Exception], match: str, call: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(error_, match=match):
        call(torch.randn(9), torch.randn(5, 2))


def test_buffers_of_inference_mode_serve_outside_of_it() -> None:
    c, x = torch.randn(2, 1999, requires_grad=True), torch.randn(2, 1000, 3)
    split_kernel._scratch.clear()
    with torch.inference_mode():
        want = rp.toeplitz_matmul(c, x, method="fft")
    got = rp.toeplitz_matmul(c, x, method="fft")
    got.sum().backward()
    assert torch.equal(got, want) and c.grad is not None
