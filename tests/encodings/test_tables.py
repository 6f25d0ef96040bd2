"""Tables of a window's lags, resized: laws, and the interpolation of released models by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import relpos as rp
from relpos.encodings.tables import resized, rows_of

SIDES = st.integers(1, 9)
WINDOWS = st.tuples(SIDES, SIDES) | st.tuples(SIDES)


def cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def weights(old: int, new: int) -> Tensor:
    """(new, old): how much of each old sample goes into each new one, borders repeated."""
    out = torch.zeros(new, old, dtype=torch.float64)
    for r in range(new):
        at = (r + 0.5) * old / new - 0.5
        for s in range(math.floor(at) - 1, math.floor(at) + 3):
            out[r, min(max(s, 0), old - 1)] += cubic(at - s)
    return out


@pytest.mark.parametrize(("old", "new"), [((3, 4), (5, 2)), ((7, 7), (12, 12)), ((2, 1), (1, 3)), ((4,), (7,))])
def test_bicubic_by_hand(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    """The order of released checkpoints: (lags, heads), lags in row-major order; each axis is interpolated."""
    table = torch.randn(rows_of(old), 3, dtype=torch.float64)
    image = table.view(*(2 * side - 1 for side in old), 3)
    for axis, (a, b) in enumerate(zip(old, new, strict=True)):
        image = torch.tensordot(weights(2 * a - 1, 2 * b - 1), image, ([1], [axis])).movedim(0, axis)
    torch.testing.assert_close(resized(table, old, new), image.reshape(-1, 3), rtol=0, atol=1e-13)


@given(WINDOWS, st.data())
def test_laws(old: tuple[int, ...], data: Any) -> None:
    new = data.draw(st.tuples(*[SIDES] * len(old)))
    curve = data.draw(st.sampled_from(["cubic", "linear"]))
    table = torch.randn(rows_of(old), 2, dtype=torch.float64)
    got = resized(table, old, new, curve)
    assert got.shape == (rows_of(new), 2) and got.dtype == table.dtype and got.is_contiguous()
    same = resized(table, old, old, curve)
    assert torch.equal(same, table) and same.data_ptr() != table.data_ptr()
    constant = resized(torch.full_like(table, 1.5), old, new, curve)
    torch.testing.assert_close(constant, torch.full_like(constant, 1.5), rtol=0, atol=1e-14)
    middle = (rows_of(new) // 2, rows_of(old) // 2)
    torch.testing.assert_close(got[middle[0]], table[middle[1]], rtol=0, atol=1e-13)  # lag 0 stays lag 0
    turned = resized(table.flip(0), old, new, curve)
    torch.testing.assert_close(turned, got.flip(0), rtol=0, atol=1e-13)  # whichever way the lags run


@pytest.mark.parametrize("curve", ["cubic", "linear"])
def test_a_table_linear_in_the_lag_stays_so_inside(curve: Any) -> None:
    lag = torch.arange(-6, 7, dtype=torch.float64)
    for side in (6, 10, 14):
        got = resized(lag[:, None], (7,), (side,), curve)[:, 0]
        want = torch.arange(1 - side, side, dtype=torch.float64) * 13 / (2 * side - 1)
        inside = want.abs() < 4
        assert inside.sum() > 5
        torch.testing.assert_close(got[inside], want[inside], rtol=0, atol=0.05 if curve == "cubic" else 1e-12)


def test_there_and_back() -> None:
    """A smooth table survives a larger window and the way back; ten times the size and back loses little."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 13, dtype=torch.float64)] * 2, indexing="ij")
    table = torch.stack([(-3 * (y**2 + x**2)).exp(), torch.cos(2 * y) + x], -1).flatten(0, 1)
    there = resized(table, (7, 7), (14, 14))
    back = resized(there, (14, 14), (7, 7))
    assert (back - table).abs().max() < 0.05 < table.std()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    table = torch.randn(25, 2).to(dtype).requires_grad_()
    got = resized(table, (3, 3), (4, 5))
    assert got.dtype == dtype and not got.requires_grad
    want = resized(table.double(), (3, 3), (4, 5))
    limit = max(2 * torch.finfo(dtype).eps, 1e-5)  # the samples' places are float32 for a float32 table
    torch.testing.assert_close(got.double(), want, rtol=limit, atol=limit)


def test_bad_input() -> None:
    table = torch.zeros(25, 2)
    with pytest.raises(ValueError, match=r"window \(3, 4\) is \(35, columns\), got \(25, 2\)"):
        resized(table, (3, 4), (5, 5))
    with pytest.raises(ValueError, match="one or two sides, both the same number"):
        resized(table, (3, 3), (5,))
    with pytest.raises(ValueError, match="one or two sides"):
        resized(torch.zeros(125, 2), (3, 3, 3), (5, 5, 5))
    with pytest.raises(ValueError, match='curve is "cubic" or "linear"'):
        resized(table, (3, 3), (5, 5), "nearest")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("small", "large", "says"),
    [
        (rp.encodings.SwinBias(2, 7), rp.encodings.SwinBias(2, (12, 10)), "169 lags, as many as a window of 7 x 7 has"),
        (rp.encodings.SwinBias(2, (2, 3)), rp.encodings.SwinBias(2, 4), "15 lags; this SwinBias holds 49"),
        (rp.encodings.Decomposed2D(4, 3), rp.encodings.Decomposed2D(4, 5), "5 lags, as many as a window of 3 has"),
    ],
)
def test_weights_of_another_window_name_resize(small: Any, large: Any, says: str) -> None:
    """Alone and inside a network; what the error advises works."""
    with pytest.raises(RuntimeError, match=rf"{says}(.|\n)*resize\(\({large.window[0]}, {large.window[1]}\)\)"):
        large.load_state_dict(small.state_dict())
    network = torch.nn.ModuleDict({"attention": torch.nn.Sequential(large)})
    weights = {f"attention.0.{name}": value for name, value in small.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"attention\.0\.(table|rows) holds (.|\n)*resize"):
        network.load_state_dict(weights)
    large.load_state_dict(small.resize(large.window).state_dict())


def test_other_mistakes_are_torch_s_own() -> None:
    encoding = rp.encodings.SwinBias(2, 3)
    with pytest.raises(RuntimeError, match="size mismatch") as error:
        encoding.load_state_dict({"table": torch.zeros(25, 4)})
    assert "resize" not in str(error.value)
    with pytest.raises(RuntimeError, match="Missing key"):
        encoding.load_state_dict({})
    with pytest.raises(RuntimeError, match="resize"):
        rp.encodings.SwinBias.from_reference({"relative_position_bias_table": torch.zeros(25, 2)}, 4)
