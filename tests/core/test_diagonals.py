"""Between lags and pairs: the views and sums on which every kernel and every skewed encoding stands."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from relpos.encodings.base import State, Tile
from relpos.encodings.diagonals import diagonal_sums, skew, toeplitz, unskew
from relpos.positions import Grid, Index
from tests.core.naive import ToyBias

SIZES = [(1, 1), (1, 5), (5, 1), (3, 4), (4, 3), (7, 7)]


def brute(generator: Tensor, n_q: int, n_k: int) -> Tensor:
    rows = [torch.stack([generator[..., j - i + n_q - 1] for j in range(n_k)], -1) for i in range(n_q)]
    return torch.stack(rows, -2)


@pytest.mark.parametrize(("n_q", "n_k"), SIZES)
def test_toeplitz_and_its_transpose(n_q: int, n_k: int) -> None:
    generator = torch.randn(2, n_q + n_k - 1, dtype=torch.float64)
    matrix = toeplitz(generator, n_q)
    assert torch.equal(matrix, brute(generator, n_q, n_k))
    other = torch.randn(2, n_q, n_k, dtype=torch.float64)
    torch.testing.assert_close((matrix * other).sum(-1).sum(-1), (generator * diagonal_sums(other)).sum(-1))
    for lag in range(1 - n_q, n_k):
        torch.testing.assert_close(diagonal_sums(other)[:, lag + n_q - 1], other.diagonal(lag, 1, 2).sum(-1))


@pytest.mark.parametrize(("n_q", "n_k"), SIZES)
def test_skew_and_its_transpose(n_q: int, n_k: int) -> None:
    product = torch.randn(2, 3, n_q, n_q + n_k - 1)
    got = skew(product, n_k)
    for i in range(n_q):
        for j in range(n_k):
            assert torch.equal(got[..., i, j], product[..., i, j - i + n_q - 1])
    matrix = torch.randn(2, 3, n_q, n_k)
    back = unskew(matrix)
    assert back.shape == product.shape and torch.equal(skew(back, n_k), matrix)
    assert int((back != 0).sum()) == matrix.numel()
    strided = product.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(skew(strided, n_k), got)
    poisoned = torch.full_like(product, torch.nan)  # what belongs to no pair is never read
    poisoned[back != 0] = product[back != 0]
    assert torch.equal(skew(poisoned, n_k), got)


@pytest.mark.parametrize(("i0", "i1", "j0", "j1"), [(0, 5, 0, 8), (0, 1, 7, 8), (4, 5, 0, 1), (1, 4, 2, 7)])
def test_tiles_slice_states(i0: int, i1: int, j0: int, j1: int) -> None:
    n_q, n_k = 5, 8
    tile = Tile(i0, i1, j0, j1, n_q, n_k)
    lags = torch.randn(2, n_q + n_k - 1)
    want = brute(lags, n_q, n_k)[:, i0:i1, j0:j1]
    assert torch.equal(toeplitz(tile.slice(State(lags, "lag")), tile.t_q), want)
    rows, columns = torch.randn(n_q, 3), torch.randn(2, n_k)
    assert torch.equal(tile.slice(State(rows, "query", 0)), rows[i0:i1])
    assert torch.equal(tile.slice(State(columns, "key")), columns[:, j0:j1])
    assert tile.slice(State(rows, "whole")) is rows


class OnGrid(ToyBias):
    """A number for every pair of steps on a grid, all different."""

    takes = (Grid,)

    def at(self, lag: Tensor) -> Tensor:
        steps = lag.to(torch.float64)
        code = steps[..., 0] * 100 + steps[..., 1] + (1000 * steps[..., 2] if lag.shape[-1] == 3 else 0)
        return torch.stack([code, -code])


@pytest.mark.parametrize("shape", [(3, 4), (4, 1), (1, 5), (2, 3, 2)])
def test_one_grid_is_a_table_and_any_cells_are_pairs(shape: tuple[int, ...]) -> None:
    """Side lengths that differ show a swap of axes; the table, and the cells one by one, agree with the definition."""
    encoding, n = OnGrid(2), int(torch.tensor(shape).prod())
    q = k = torch.zeros(1, 2, n, 4, dtype=torch.float64)
    everything = Tile(0, n, 0, n, n, n)
    shuffled = torch.randperm(n)
    cells_of = Grid.of(*shape).values[0]
    cases = [(cells_of, "table"), (cells_of + 9, "table"), (cells_of[shuffled], None), (cells_of * 10**4, "q_pos")]
    for grid, state in ((Grid(values), state) for values, state in cases):
        cells = grid.values[0].tolist()
        want = torch.stack(
            [encoding.at(torch.tensor([[b - a for a, b in zip(x, y)] for y in cells])) for x in cells], 1
        )
        states = encoding.prepare(q, k, grid, grid)
        assert state is None or state in states
        slices = {name: everything.slice(s) for name, s in states.items()}
        assert torch.equal(encoding.tile(q, k, slices, everything)[0], want)
        assert torch.equal(encoding.bias(grid, grid), want)


def test_lags_of_the_two_ways_agree() -> None:
    encoding = ToyBias(2)
    for n_q, n_k, offset in [(4, 6, 2), (6, 4, -2), (5, 5, 100), (1, 1, 0)]:
        q_pos, k_pos = Index.arange(n_q, offset), Index.arange(n_k)
        assert torch.equal(toeplitz(encoding.lags(n_q, n_k, offset), n_q), encoding.bias(q_pos, k_pos))
