"""Linear attention over the cells of a grid by FFT: equal to dense, with a prefix, masks, gradients, in O(n) memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import Bias
from relpos.kernels.linear import choose
from relpos.kernels.linear.call import LinearCall, Sums
from relpos.positions import Grid
from tests.core.test_memory import Largest

HEADS, DIM = 2, 4


class Cells(Bias):
    """A free number for every lag on a grid of any number of axes."""

    takes = (Grid,)
    reference = "@misc{cells}"

    def __init__(self, heads: int, sides: tuple[int, ...], size: float = 1.0) -> None:
        super().__init__()
        self.heads, self.sides = heads, sides
        self.table = torch.nn.Parameter(size * torch.randn(heads, *(2 * side - 1 for side in sides)))

    def at(self, lag: Tensor) -> Tensor:
        index = lag + torch.tensor(self.sides) - 1
        return self.table[(slice(None), *index.unbind(-1))]


def inputs(n: int, n_q: int | None = None, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    sizes = (n if n_q is None else n_q, n, n)
    return [torch.randn(2, HEADS, size, DIM, dtype=dtype, requires_grad=True) for size in sizes]


def phi() -> rp.features.PRF:
    return rp.features.PRF(DIM, 6).double()


def both(tensors: list[Tensor], encoding: Bias, leaves: list[Tensor] | None = None, **how: Any) -> list[list[Tensor]]:
    """Output and gradients by the grid kernel and by the definition."""
    features, found = how.pop("features", None) or phi(), []
    for kernel in ("grid", "dense"):
        out = rp.linear_attention(*tensors, encoding, features=features, kernel=kernel, **how)
        weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
        found.append([out, *torch.autograd.grad((out * weight).sum(), [*tensors, *encoding.parameters()])])
    return found


def agree(found: list[list[Tensor]]) -> None:
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sides", [(1, 1), (1, 9), (9, 1), (5, 7), (16, 11), (2, 3, 4), (31,)])
def test_equals_dense(sides: tuple[int, ...], causal: bool) -> None:
    pos = Grid.of(*sides)
    encoding = Cells(HEADS, sides).double()
    agree(both(inputs(len(pos)), encoding, q_pos=pos, k_pos=pos, causal=causal))


@pytest.mark.parametrize("causal", [False, True])
def test_a_grid_longer_than_a_square_of_direct_sums(causal: bool) -> None:
    pos, encoding = Grid.of(37, 41), rp.encodings.SwinBias(HEADS, (37, 41)).double()
    agree(both(inputs(37 * 41), encoding, q_pos=pos, k_pos=pos, causal=causal))


def test_encodings_of_the_library() -> None:
    pos = Grid.of(6, 7)
    for encoding in (rp.encodings.SwinBias(HEADS, (6, 7)), rp.encodings.LogCPB(HEADS, (6, 7))):
        agree(both(inputs(42), encoding.double(), q_pos=pos, k_pos=pos))


@pytest.mark.parametrize("features", ["elu1", "relu", "trf"])
def test_feature_maps(features: str) -> None:
    pos, encoding = Grid.of(7, 5), Cells(HEADS, (7, 5)).double()
    maps = {"elu1": rp.features.ELU1(), "relu": rp.features.ReLU(), "trf": rp.features.TRF(DIM, 32).double()}
    agree(both(inputs(35), encoding, q_pos=pos, k_pos=pos, features=maps[features]))


def test_prefix_and_padding() -> None:
    sides, encoding = (6, 5), Cells(HEADS, (6, 5)).double()
    pos = Grid.of(*sides)
    mask = torch.ones(2, 32, dtype=torch.bool)
    mask[0, 1], mask[1, 10:20] = False, False
    for causal, key_mask in itertools.product((False, True), (None, mask)):
        agree(both(inputs(32), encoding, q_pos=pos, k_pos=pos, prefix=2, causal=causal, key_mask=key_mask))


def test_some_of_the_cells() -> None:
    """Masked patches: queries and keys are any cells, in row-major order each; the last rows alone, causal too."""
    cells = Grid.of(8, 9).values[0]
    encoding = Cells(HEADS, (8, 9)).double()
    keys, queries = cells[torch.arange(72) % 3 != 1], cells[torch.arange(72) % 4 == 2]
    agree(both(inputs(len(keys), len(queries)), encoding, q_pos=Grid(queries), k_pos=Grid(keys)))
    for causal in (False, True):
        agree(both(inputs(72, 30), encoding, q_pos=Grid(cells[42:]), k_pos=Grid(cells), causal=causal))


def test_what_has_no_line_is_refused_or_served_directly() -> None:
    cells, encoding, features = Grid.of(4, 5).values[0], Cells(HEADS, (4, 5)).double(), phi()
    tensors = inputs(20)
    turned = Grid(cells.flip(0))
    each = Grid(torch.stack([cells, cells.flip(0)]))
    plain = Grid(cells)
    for pos, how, reason in (
        (turned, {}, "row-major"),
        (each, {}, "from one sequence of the batch"),
        (plain, {"segments": torch.arange(20) % 2}, "packed documents"),
    ):
        call: dict[str, Any] = {"features": features, "q_pos": pos, "k_pos": pos, **how}
        with pytest.raises(ValueError, match=reason):
            rp.linear_attention(*tensors, encoding, kernel="grid", **call)
        rp.linear_attention(*tensors, encoding, **call)
    with pytest.raises(ValueError, match="not cells of one grid"):
        rp.linear_attention(*tensors, rp.encodings.LearnedBias(HEADS, 3).double(), features=features, kernel="grid")


def test_auto_takes_it_from_the_crossover_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "SMALL", 0)
    monkeypatch.setattr(choose, "CELLS", 400**2)
    taken: list[str] = []

    def spied(name: str) -> Callable[[LinearCall], Sums]:
        kernel = choose.KERNELS[name]
        return lambda call: (taken.append(name), kernel(call))[1]

    for name in list(choose.KERNELS):
        monkeypatch.setitem(choose.KERNELS, name, spied(name))
    for side in (19, 20):
        pos, encoding = Grid.of(side, side), rp.encodings.SwinBias(HEADS, side).double()
        rp.linear_attention(*inputs(side * side), encoding, features=phi(), q_pos=pos, k_pos=pos)
    assert taken == ["tiled", "grid"]


def test_sharp_biases_in_float32() -> None:
    """Neighbours in the next row are summed directly; a sharp far lag is noticed and taken in float64."""
    sides, features = (20, 21), rp.features.PRF(DIM, 6)
    pos = Grid.of(*sides)
    tensors = inputs(420, dtype=torch.float32)
    for dy, dx in ((0, 1), (-1, 1), (1, -20), (7, 9)):
        encoding = Cells(HEADS, sides, 0.1)
        with torch.no_grad():
            encoding.table[:, dy + 19, dx + 20] = 15
        got = rp.linear_attention(*tensors, encoding, features=features, q_pos=pos, k_pos=pos, kernel="grid")
        exact = [x.double() for x in tensors]
        want = rp.linear_attention(
            *exact, encoding.double(), features=features.double(), q_pos=pos, k_pos=pos, kernel="dense"
        )
        features.float()
        assert got.dtype == torch.float32
        assert float((got.double() - want).detach().abs().max()) < 3e-5


def test_the_future_has_no_influence() -> None:
    pos, encoding, features = Grid.of(36, 40), rp.encodings.SwinBias(HEADS, (36, 40)).double(), phi()
    q, k, v = (x.detach() for x in inputs(1440))
    how: dict[str, Any] = {"features": features, "q_pos": pos, "k_pos": pos, "causal": True, "kernel": "grid"}
    want = rp.linear_attention(q, k, v, encoding, **how)[:, :, :900]
    for poison in (torch.nan, torch.inf, 1e10):
        v[:, :, 900:] = poison
        assert torch.equal(rp.linear_attention(q, k, v, encoding, **how)[:, :, :900], want)


def test_memory_is_linear() -> None:
    pos, encoding = Grid.of(64, 64), rp.encodings.SwinBias(HEADS, 64)
    q, k, v = (torch.randn(1, HEADS, 4096, DIM, requires_grad=True) for _ in range(3))
    with Largest() as largest:
        out = rp.linear_attention(q, k, v, encoding, features=rp.features.PRF(DIM, 6), q_pos=pos, k_pos=pos)
        out.sum().backward()
    assert largest.bytes < 4096 * 4096, largest.operation
