"""Mixing by lag alone: every method against the matrix and against a convolution, gradients, masks, the units."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import relpos as rp
from relpos.kernels import window as kernel
from relpos.kernels.call import Refusal
from tests.core.test_memory import Largest
from tests.encodings.test_lrpe import arrays

WINDOWS = [(1, 1), (1, 5), (2, 2), (3, 5), (7, 4), (11, 13)]


def by_hand(x: Tensor, encoding: Any, sides: tuple[int, ...]) -> Tensor:
    """The definition, entry by entry."""
    places = torch.cartesian_prod(*(torch.arange(side) for side in sides)).view(-1, len(sides))
    lag = places[None] - places[:, None]
    scores = encoding.at(lag if len(sides) > 1 else lag[..., 0])
    weights = scores.softmax(-1) if encoding.normalized else scores
    out = torch.empty_like(x)
    for c in range(x.shape[-1]):
        out[..., c] = (weights[c % encoding.heads] @ x[..., c].unsqueeze(-1)).squeeze(-1)
    return out


def drawn(name: str, groups: int, sides: Any, **options: Any) -> Any:
    encoding: Any = rp.encoding(name, groups=groups, window=sides, **options).double()
    for parameter in encoding.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoding


KINDS = [
    ("lrpe", {}), ("gqpe", {}), ("gqpe", {"symmetric": False, "softmax": False}), ("gqpe", {"kind": "diagonal"}),
    ("gqpe", {"kind": "isotropic"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), KINDS)
@pytest.mark.parametrize("sides", [*WINDOWS, (7,), (1,)])
def test_methods_equal_the_definition(sides: tuple[int, ...], name: str, options: dict[str, Any]) -> None:
    encoding = drawn(name, 3, sides, **options)
    x = torch.randn(2, 4, math.prod(sides), 6, dtype=torch.float64)
    want = by_hand(x, encoding, sides)
    for method in ("auto", "dense", "split") if len(sides) == 1 else ("auto", "dense", "axes", "split"):
        got = rp.window_mix(x, encoding, sides, method=method)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        short = rp.window_mix(x.float(), copy.deepcopy(encoding).float(), sides, method=method)
        torch.testing.assert_close(short.double(), want, rtol=0, atol=1e-5 * float(want.detach().abs().max() + 1))


@pytest.mark.parametrize("sides", [(3, 5), (6, 6), (14, 14)])
def test_lrpe_is_a_depthwise_convolution(sides: tuple[int, int]) -> None:
    """With the table as kernel over the whole window, groups cycling over the channels."""
    h, w = sides
    encoding, x = drawn("lrpe", 4, sides), torch.randn(2, h * w, 8, dtype=torch.float64)
    image = x.view(2, h, w, 8).permute(0, 3, 1, 2)
    filters = encoding.table.T.view(4, 2 * h - 1, 2 * w - 1).flip(-1, -2).repeat(2, 1, 1).unsqueeze(1)
    want = nn.functional.conv2d(image, filters, padding=(h - 1, w - 1), groups=8).permute(0, 2, 3, 1).flatten(1, 2)
    for method in ("dense", "axes"):
        torch.testing.assert_close(rp.window_mix(x, encoding, sides, method=method), want, rtol=0, atol=1e-12)
    spread = rp.toeplitz_matmul(encoding.lags(sides), x.view(2, h * w, 2, 4).permute(0, 3, 1, 2), grid=sides)
    torch.testing.assert_close(spread.permute(0, 2, 3, 1).reshape(x.shape), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", ["dense", "axes", "split"])
@pytest.mark.parametrize(("name", "options"), KINDS)
def test_gradients(name: str, options: dict[str, Any], method: str) -> None:
    encoding = drawn(name, 2, (3, 4), **options)
    x = torch.randn(2, 12, 4, dtype=torch.float64, requires_grad=True)
    leaves = (x, *encoding.parameters())
    want = torch.autograd.grad(by_hand(x, encoding, (3, 4)).sin().sum(), leaves)
    got = torch.autograd.grad(rp.window_mix(x, encoding, (3, 4), method=method).sin().sum(), leaves)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    values = [p.detach().clone().requires_grad_() for p in encoding.parameters()]
    names = [n for n, _ in encoding.named_parameters()]

    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoding = encoding

        def forward(self, x: Tensor) -> Tensor:
            return rp.window_mix(x, self.encoding, (3, 4), method=method)

    mix = Mix()

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        state = {f"encoding.{n}": p for n, p in zip(names, parameters, strict=True)}
        found: Tensor = torch.func.functional_call(mix, state, (x,))
        return found

    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize("sides", [*WINDOWS, (1,), (7,)])
def test_sums_over_lags_are_the_transpose_of_the_matrices(sides: tuple[int, ...]) -> None:
    generator = torch.randn(3, *(2 * side - 1 for side in sides), dtype=torch.float64, requires_grad=True)
    grad = torch.randn(3, math.prod(sides), math.prod(sides), dtype=torch.float64)
    (want,) = torch.autograd.grad(kernel.matrices(generator, sides), generator, grad)
    for sums in (kernel.lag_sums, kernel.lag_sums_in_order):
        torch.testing.assert_close(sums(grad, sides), want, rtol=0, atol=1e-12)


def test_a_gradient_of_the_gradient_raises() -> None:
    encoding, x = drawn("lrpe", 1, (3, 3)), torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    for method in ("dense", "axes"):
        y = rp.window_mix(x, encoding, 3, method=method).square().sum()
        (g,) = torch.autograd.grad(y, encoding.table, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated again"):
            g.sum().backward()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(-3, 3), st.integers(-3, 3), st.sampled_from(["dense", "axes"]))
def test_what_moves_in_moves_out(h: int, w: int, dy: int, dx: int, method: str) -> None:
    """Shift invariance: an image that is moved within an empty frame gives its answer, moved."""
    encoding, frame = drawn("lrpe", 2, (h + 6, w + 6)), torch.zeros(h + 6, w + 6, 4, dtype=torch.float64)
    picture = torch.randn(h, w, 4, dtype=torch.float64)
    here, there = frame.clone(), frame.clone()
    here[3 : 3 + h, 3 : 3 + w] = picture
    there[3 + dy : 3 + dy + h, 3 + dx : 3 + dx + w] = picture
    a, b = (
        rp.window_mix(x.flatten(0, 1), encoding, (h + 6, w + 6), method=method).view(h + 6, w + 6, 4)
        for x in (here, there)
    )
    torch.testing.assert_close(b[3 + dy : 3 + dy + h, 3 + dx : 3 + dx + w], a[3 : 3 + h, 3 : 3 + w], rtol=0, atol=1e-11)


def test_masks() -> None:
    """Windows with masks of their own: hidden tokens do not exist, rows without any give 0 and no gradient."""
    for name, options in KINDS:
        encoding, x = drawn(name, 2, (2, 3), **options), torch.randn(2, 3, 6, 4, dtype=torch.float64)
        mask = torch.rand(3, 6, 6) > 0.4
        mask[1, 2] = False
        mask[0, :, 5] = False
        x.requires_grad_()
        got = rp.window_mix(x, encoding, (2, 3), mask=mask)
        full = kernel.matrices(encoding.lags((2, 3)), (2, 3))
        for window in range(3):
            scores = full.masked_fill(~mask[window], -torch.inf if encoding.normalized else 0.0)
            weights = scores.softmax(-1).nan_to_num(0.0) if encoding.normalized else scores
            for c in range(4):
                want = weights[c % 2] @ x[:, window, :, c].T
                torch.testing.assert_close(got[:, window, :, c], want.T, rtol=0, atol=1e-12)
        (gradient,) = torch.autograd.grad(got.square().sum(), x)
        assert torch.isfinite(gradient).all() and not gradient[:, 0, 5].any()
        assert not got[:, 1, 2].any()
    with pytest.raises(TypeError, match="mask is boolean"):
        rp.window_mix(x, drawn("lrpe", 2, (2, 3)), (2, 3), mask=torch.zeros(6, 6))
    with pytest.raises(ValueError, match=r"mask is \(6, 6\)"):
        rp.window_mix(x, drawn("lrpe", 2, (2, 3)), (2, 3), mask=torch.ones(5, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="2 windows wants"):
        rp.window_mix(x, drawn("lrpe", 2, (2, 3)), (2, 3), mask=torch.ones(2, 6, 6, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "method"), [("lrpe", "dense"), ("lrpe", "axes"), ("gqpe", "auto")])
def test_short_types(name: str, method: str, dtype: torch.dtype) -> None:
    encoding, x = drawn(name, 2, (4, 5)), torch.randn(3, 20, 4, dtype=torch.float64)
    want = rp.window_mix(x.to(dtype).double(), encoding, (4, 5))
    got = rp.window_mix(x.to(dtype), encoding.float(), (4, 5), method=method)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_autocast_and_mixed_types(name: str, options: dict[str, Any]) -> None:
    """Weights and sums in float32 whatever autocast says, in float64 where the tokens are; many groups, too."""
    encoding, x = drawn(name, 12, (5, 6), **options).float(), torch.randn(2, 30, 24, dtype=torch.float64)
    want = rp.window_mix(x, copy.deepcopy(encoding).double(), (5, 6))
    size = float(want.detach().abs().max())
    torch.testing.assert_close(rp.window_mix(x, encoding, (5, 6)), want, rtol=0, atol=2e-6 * size)
    with torch.autocast("cpu", torch.bfloat16):
        got = rp.window_mix(x.float(), encoding, (5, 6))
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("method", ["auto", "dense", "axes", "split"])
@pytest.mark.parametrize("name", ["lrpe", "gqpe"])
def test_nothing_to_mix(name: str, method: str) -> None:
    encoding = drawn(name, 2, (3, 4))
    for shape in ((0, 12, 4), (2, 0, 12, 4), (2, 12, 0)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        out = rp.window_mix(x, encoding, (3, 4), method=method)
        assert out.shape == shape
        out.sum().backward()
        assert x.grad is not None and x.grad.shape == shape


def test_what_is_not_a_number_stays_in_its_window_and_group() -> None:
    for name, options in KINDS:
        encoding, x = drawn(name, 2, (3, 4), **options), torch.randn(3, 12, 4, dtype=torch.float64)
        poisoned = x.clone()
        poisoned[1, 5, 2] = torch.nan
        for method in ("dense", "axes"):
            clean, got = (rp.window_mix(v, encoding, (3, 4), method=method) for v in (x, poisoned))
            assert torch.equal(got[[0, 2]], clean[[0, 2]]) and torch.isfinite(got[1, :, [1, 3]]).all()
            assert torch.isnan(got[1, :, 2]).all()


def test_a_bump_that_stands_outside_the_window_is_still_normalised() -> None:
    """No factor suits all rows of the exponentials: each row's own softmax takes over."""
    encoding = rp.encodings.GQPE(1, 5).double()
    with torch.no_grad():
        encoding.centers.fill_(60.0)
        encoding.spreads.copy_(2 * torch.eye(2)[None])
    x = torch.randn(25, 2, dtype=torch.float64)
    got = rp.window_mix(x, encoding, 5, method="axes")
    torch.testing.assert_close(got, by_hand(x, encoding, (5, 5)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["dense", "axes"])
def test_what_is_kept_between_calls_serves_in_every_mode(method: str) -> None:
    """First met in inference mode, by sides that no other test has, then trained."""
    sides = (6, 23)
    unit = rp.PoSGU(4, sides, "lrpe", groups=2, method=method)
    x = torch.randn(3, 138, 4)
    kernel._scratch.clear()
    with torch.inference_mode():
        want = unit(x)
    got = unit(x)
    got.sum().backward()
    assert torch.equal(got, want) and unit.encoding.table.grad is not None


def test_auto_and_memory_of_a_large_window() -> None:
    """From some side on nothing as large as a matrix of all pairs is made, forward or backward."""
    sides = (24, 30)
    for name in ("lrpe", "gqpe"):
        encoding = drawn(name, 2, sides).float()
        x = torch.randn(1, 720, 4, requires_grad=True)
        with Largest() as seen:
            rp.window_mix(x, encoding, sides).square().sum().backward()
        assert seen.bytes < 2 * 720 * 720 * 4 / 2, seen.operation
    for shape in ((4000,), (3, 1500)):  # a line, and a window that is nearly one
        for name in ("lrpe", "gqpe"):
            encoding, line = drawn(name, 2, shape).float(), torch.randn(1, math.prod(shape), 4, requires_grad=True)
            with Largest() as seen:
                rp.window_mix(line, encoding, shape).square().sum().backward()
            assert seen.bytes < 2 * math.prod(shape) ** 2 * 4 / 4, seen.operation
    encoding = drawn("gqpe", 2, sides, kind="diagonal").float()
    with Largest() as seen:
        rp.window_mix(x, encoding, sides).square().sum().backward()
    assert seen.bytes < 720 * 720 * 4 / 16, seen.operation


@pytest.mark.parametrize("kind", ["gqpe", "lrpe"])
def test_golden_unit(kind: str) -> None:
    a = arrays(f"posgu_{kind}_")
    unit = rp.PoSGU.from_reference(a, 16, 3)
    torch.testing.assert_close(unit(a["x"]), a["y"], rtol=0, atol=1e-12)


def test_unit() -> None:
    """u, v = halves; (mixed u + b) v; as many outputs as v; parameters that do not know the number of channels."""
    unit = rp.PoSGU(12, (3, 4), "gqpe", groups=3, free=True).double()
    assert sum(p.numel() for p in unit.parameters()) == 3 * 6 + 12 + 144
    for parameter in unit.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 2, 12, 12, dtype=torch.float64)
    u, v = x[..., :6], x[..., 6:]
    want = (by_hand(u, unit.encoding, (3, 4)) + unit.free @ u + unit.bias[:, None]) * v
    torch.testing.assert_close(unit(x), want, rtol=0, atol=1e-11)
    whole = rp.PoSGU(6, (3, 4), rp.encodings.LRPE(2, (3, 4)), split=False, token_bias=False).double()
    torch.testing.assert_close(whole(u), by_hand(u, whole.encoding, (3, 4)) * u, rtol=0, atol=1e-12)
    assert torch.equal(torch.compile(unit, backend="eager")(x), unit(x))


def test_released_start_is_the_identity_of_its_block() -> None:
    """A zero table: the unit gives b v, here 0, and no gradient reaches its input; ours starts otherwise."""
    released = rp.PoSGU(8, 3, rp.encodings.LRPE(2, 3, as_released=True))
    x = torch.randn(1, 9, 8, requires_grad=True)
    out = released(x)
    assert not out.any() and not torch.autograd.grad(out.sum(), x)[0].any()
    assert rp.PoSGU(8, 3, "lrpe", groups=2)(x).any()


@pytest.mark.parametrize("name", ["lrpe", "gqpe", "swin"])
def test_resize_of_a_unit(name: str) -> None:
    unit = rp.PoSGU(8, (4, 5), name, groups=2)
    nn.init.normal_(unit.bias)
    other = unit.resize((6, 6))
    assert other.window == (6, 6) and other.encoding.window == (6, 6)
    assert other(torch.randn(1, 36, 8)).shape == (1, 36, 4)
    assert torch.equal(unit.resize((4, 5)).bias, unit.bias)
    with pytest.raises(RuntimeError, match="resize"):
        other.load_state_dict(unit.state_dict())
    with pytest.raises(ValueError, match="free matrix"):
        rp.PoSGU(8, 3, free=True).resize(4)


@pytest.mark.parametrize("name", ["lrpe", "gqpe", "sgu"])
def test_a_resized_unit_of_a_smooth_image_gives_nearly_the_same(name: str) -> None:
    """Twice the resolution, the same picture: sums over four times as many tokens keep their size."""
    options: dict[str, Any] = {"groups": 2}
    unit: Any = rp.SGU(4, 8, norm=False) if name == "sgu" else rp.PoSGU(4, 8, name, **options)
    if name == "lrpe":
        y, x = torch.meshgrid(torch.arange(-7.0, 8), torch.arange(-7.0, 8), indexing="ij")
        unit.encoding.table.data.copy_((-(y**2 + x**2) / 18).exp().flatten()[:, None])
    elif name == "sgu":
        cells = rp.positions.Grid.of(8, 8).values[0].float()
        unit.weight.data.copy_((-(torch.cdist(cells, cells) ** 2) / 18).exp())
    if name == "gqpe":
        unit.encoding.spreads.data.zero_()  # uniform weights: an average
    large = unit.resize(16)

    def picture(side: int) -> Tensor:
        place = (torch.arange(side) + 0.5) / side
        return (1 + (3 * place[:, None]).sin() * (2 * place).cos()).flatten()[:, None].expand(-1, 4)

    small, big = (u(picture(side)).view(side, side, 2) for u, side in ((unit, 8), (large, 16)))
    pooled = nn.functional.avg_pool2d(big.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0)
    assert float((pooled - small).abs().max() / small.abs().max()) < 0.05
    again = copy.deepcopy(unit).resize(16)
    again.load_state_dict(large.state_dict())
    assert torch.equal(again(picture(16)), large(picture(16)))
    if name == "lrpe":  # its factor travels with the weights
        fresh = rp.PoSGU(4, 16, "lrpe", groups=2)
        fresh.load_state_dict(large.state_dict())
        assert torch.equal(fresh(picture(16)), large(picture(16)))


def test_other_biases_may_gate_a_line() -> None:
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    for encoding in (rp.encodings.T5Bias(4).double(), rp.encodings.LearnedBias(4, 8).double()):
        unit = rp.PoSGU(8, (9,), encoding, split=False, token_bias=False)
        torch.testing.assert_close(unit(x), by_hand(x, encoding, (9,)) * x, rtol=0, atol=1e-12)


def test_gmlp_unit() -> None:
    unit = rp.SGU(8, (2, 3)).double()
    x = torch.randn(4, 6, 8, dtype=torch.float64)
    u, v = x[..., :4], x[..., 4:]
    start = unit(x)
    torch.testing.assert_close(start, v, rtol=0, atol=5e-3)  # it starts as v alone
    for parameter in unit.parameters():
        nn.init.normal_(parameter)
    normal = (u - u.mean(-1, keepdim=True)) / (u.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normal = normal * unit.norm.weight + unit.norm.bias
    torch.testing.assert_close(unit(x), (unit.weight @ normal + unit.bias[:, None]) * v, rtol=0, atol=1e-12)


def test_what_does_not_fit() -> None:
    x, encoding = torch.randn(2, 9, 8), rp.encodings.LRPE(2, 3)
    for call, error, message in [
        (lambda: rp.PoSGU(7, 3), ValueError, "even, got 7"),
        (lambda: rp.PoSGU(8, 3, groups=3), ValueError, "groups divide the 4 channels that are mixed, got 3"),
        (lambda: rp.PoSGU(8, 4, encoding), ValueError, r"window is 3 x 3, the unit's 4 x 4; use encoding.resize"),
        (lambda: rp.PoSGU(8, 3, encoding, groups=4), ValueError, "has 2 groups, not 4"),
        (lambda: rp.PoSGU(8, 3, rp.encodings.RoPE(8)), TypeError, "takes a Bias"),
        (lambda: rp.PoSGU(8, 3)(x[..., :6]), ValueError, r"x is \(\.\., 9, 8\).*got \(2, 9, 6\)"),
        (lambda: rp.window_mix(x[:, :8], encoding, 3), ValueError, "has 9 tokens; x holds 8"),
        (lambda: rp.window_mix(x[..., :7], encoding, 3), ValueError, "got 2 and 7"),
        (lambda: rp.window_mix(x, encoding, (9,)), TypeError, "no meaning in the window 9, of 1 axes"),
        (lambda: rp.window_mix(x, rp.encodings.RoPE(8), 3), TypeError, "takes a Bias"),
        (lambda: rp.window_mix(x.long(), encoding, 3), TypeError, "floating-point"),
        (lambda: rp.window_mix(x, encoding, 3, method="fft"), ValueError, "method is one of"),
        (lambda: rp.window_mix(x, rp.encodings.LRPE(2, (9,)), (9,), method="axes"), Refusal, "two axes"),
        (lambda: rp.window_mix(x, encoding, (3, 3, 1)), ValueError, "window is"),
    ]:
        with pytest.raises(error, match=message):
            call()
