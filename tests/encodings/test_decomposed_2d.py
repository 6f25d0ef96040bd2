from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import Tile
from relpos.encodings.cells import with_class_tokens
from relpos.positions import Grid
from tests.core.test_memory import Largest
from tests.encodings.case import EncodingCase
from tests.encodings.test_swin import WIDTH, cells


class ContentGridCase(EncodingCase):
    """The inherited suite for terms that look at content, on a grid walked in row-major order."""

    def positions(self, index: Tensor) -> Any:
        return index if index.is_floating_point() else Grid(cells(index))

    def test_order_of_the_tokens_is_free(self) -> None:
        """The same cells in another order, and another place in each row of a batch: one answer."""
        encoding = self.build()
        q, k, v, _ = self.inputs(15, 15)
        grid, order = Grid.of(5, 3), torch.randperm(15)
        whole = rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid)
        mixed = Grid(grid.values[:, order])
        parts = rp.attention(*(x[:, :, order] for x in (q, k, v)), encoding, q_pos=mixed, k_pos=mixed)
        torch.testing.assert_close(parts, whole[:, :, order], rtol=0, atol=1e-12)
        rows = grid.values + torch.tensor([[[0, 0]], [[7, 2]]])
        torch.testing.assert_close(rp.attention(q, k, v, encoding, q_pos=rows, k_pos=rows), whole, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("span", [(0, 1, 0, 1), (11, 12, 0, 12), (0, 12, 11, 12), (6, 12, 0, 7), (0, 12, 0, 12)])
    @pytest.mark.parametrize("batched", [False, True])
    def test_tiles(self, span: tuple[int, int, int, int], batched: bool) -> None:
        """A tile is its part of the whole, and `tile_backward` equals autograd of `tile`."""
        encoding, (i0, i1, j0, j1) = self.build(), span
        grid = Grid.of(3, 4)
        grid = Grid(grid.values + torch.tensor([[[0, 0]], [[1, 2]]])) if batched else grid
        q, k, _, _ = self.inputs(12, 12)
        states = encoding.prepare(q, k, grid, grid)
        everything, part = Tile(0, 12, 0, 12, 12, 12), Tile(i0, i1, j0, j1, 12, 12)
        whole = encoding.tile(q, k, {name: everything.slice(s) for name, s in states.items()}, everything)
        slices = {name: part.slice(state).detach() for name, state in states.items()}
        wanted = [name for name, x in slices.items() if x.is_floating_point() and name != "values"]
        for name in wanted:
            slices[name].requires_grad_()
        got = encoding.tile(q[:, :, i0:i1], k[:, :, j0:j1], slices, part)
        torch.testing.assert_close(got, whole[:, :, i0:i1, j0:j1], rtol=0, atol=1e-13)
        grad = torch.randn(2, *got.shape[1:], dtype=got.dtype)
        want = torch.autograd.grad(got.expand_as(grad), [slices[name] for name in wanted], grad)
        found = encoding.tile_backward(grad, q, k, slices, part)
        for name, gradient in zip(wanted, want, strict=True):
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12)

    def test_positions_are_a_grid_of_two_axes(self) -> None:
        encoding = self.build()
        q, k, v, _ = self.inputs(4, 4)
        with pytest.raises(TypeError, match="takes Grid positions, got Index"):
            rp.attention(q, k, v, encoding)
        for axes in (1, 3):
            cell = Grid(torch.zeros(4, axes, dtype=torch.int64))
            with pytest.raises(ValueError, match="rows and columns"):
                rp.attention(q, k, v, encoding, q_pos=cell, k_pos=cell)


def largest(encoding: Any, side: int, dim: int) -> int:
    """Bytes of the largest tensor that attention on side x side cells makes, forward and backward, one head."""
    q, k, v = (torch.randn(1, 1, side * side, dim, requires_grad=True) for _ in range(3))
    grid = Grid.of(side, side)
    with Largest() as seen:
        rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid, kernel="tiled").sum().backward()
    return seen.bytes


class TestDecomposed2D(ContentGridCase):
    name = "decomposed_2d"

    def make(self) -> Any:
        encoding = rp.encodings.Decomposed2D(self.dim, (9, WIDTH))
        for table in encoding.parameters():
            torch.nn.init.normal_(table)
        return encoding

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        (h, w), out = encoding.window, q.new_zeros(*q.shape[:3], k.shape[2])
        for i, (y, x) in enumerate(cells(q_pos).tolist()):
            for j, (s, t) in enumerate(cells(k_pos).tolist()):
                vector = encoding.rows[y - s + h - 1] + encoding.columns[x - t + w - 1]
                out[:, :, i, j] = q[:, :, i] @ vector
        return out

    def test_positions_of_any_kind_agree(self) -> None:
        """Cells with gaps, and rows of a batch."""
        encoding = self.build()
        q, k, v, content = self.inputs(7, 7)
        pos = torch.tensor([0, 1, 2, 5, 6, 9, 30])
        whole = self.run(encoding, q, k, v, content, q_pos=pos, k_pos=pos, kernel="dense")
        batched = self.run(encoding, q, k, v, content, q_pos=pos.expand(2, -1), k_pos=pos.expand(2, -1) + 0)
        torch.testing.assert_close(batched, whole, rtol=0, atol=1e-10)

    def test_as_released(self) -> None:
        """Weights under the released names, the term as the released einsum over (rows, columns) states it."""
        h, w = 3, 5
        arrays = {"rel_pos_h": torch.randn(2 * h - 1, 8).double(), "rel_pos_w": torch.randn(2 * w - 1, 8).double()}
        encoding = rp.encodings.Decomposed2D.from_reference({f"blocks.2.attn.{k}": a for k, a in arrays.items()})
        assert encoding.window == (h, w)
        q, k, v = torch.randn(3, 2, 2, h * w, 8, dtype=torch.float64)
        r_h = arrays["rel_pos_h"][torch.arange(h)[:, None] - torch.arange(h) + h - 1]  # (query row, key row, dim)
        r_w = arrays["rel_pos_w"][torch.arange(w)[:, None] - torch.arange(w) + w - 1]
        image = q.view(2, 2, h, w, 8)
        of_rows = torch.einsum("bnyxc,ysc->bnyxs", image, r_h)
        of_columns = torch.einsum("bnyxc,xtc->bnyxt", image, r_w)
        term = (of_rows[..., :, None] + of_columns[..., None, :]).flatten(4).flatten(2, 3)
        want = (q @ k.mT * 8**-0.5 + term).softmax(-1) @ v
        grid = Grid.of(h, w)
        torch.testing.assert_close(rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid), want, rtol=0, atol=1e-12)
        scaled = rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid, scale=0.1)  # the term is not scaled
        torch.testing.assert_close(scaled, (q @ k.mT * 0.1 + term).softmax(-1) @ v, rtol=0, atol=1e-12)

    def test_sign(self) -> None:
        """The last row of `rows` acts where the query is below the key, `columns[0]` where it is left of it."""
        encoding = rp.encodings.Decomposed2D(1, (2, 3))
        with torch.no_grad():
            encoding.rows[2], encoding.columns[0] = 1.0, 10.0
        grid, one = Grid.of(2, 3), torch.ones(1, 1, 6, 1)
        tile = Tile(0, 6, 0, 6, 6, 6)
        term = encoding.tile(one, one, {n: s.tensor for n, s in encoding.prepare(one, one, grid, grid).items()}, tile)[
            0, 0
        ]
        assert term[5].tolist() == [1, 1, 1, 0, 0, 0] and term[0].tolist() == [0, 0, 10, 0, 0, 10]

    def test_class_tokens_get_no_term(self) -> None:
        encoding = self.build()
        q, k, v, _ = self.inputs(8, 8)
        positions = with_class_tokens(Grid.of(2, 3), 2)
        term = torch.zeros(2, self.heads, 8, 8, dtype=torch.float64)
        at = torch.tensor([0, 1, 2, WIDTH, WIDTH + 1, WIDTH + 2])
        term[:, :, 2:, 2:] = self.truth(encoding, q[:, :, 2:], k[:, :, 2:], at, at, q)
        want = (q @ k.mT * self.dim**-0.5 + term).softmax(-1) @ v
        for kernel in ("dense", "tiled"):
            got = rp.attention(q, k, v, encoding, q_pos=positions, k_pos=positions, kernel=kernel)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        only = with_class_tokens(Grid(torch.zeros(0, 2, dtype=torch.int64)), 8)
        got = rp.attention(q, k, v, encoding, q_pos=only, k_pos=only)
        torch.testing.assert_close(got, rp.attention(q, k, v), rtol=0, atol=1e-12)

    def test_grids_that_lie_apart_share_their_lines(self) -> None:
        """A batch whose images lie anywhere keeps one number a row of cells, not one for every row that occurs."""
        encoding = self.build()
        q, k, v, _ = self.inputs(6, 6)
        apart = Grid(Grid.of(2, 3).values + torch.tensor([[[0, 0]], [[500, -70]]]))
        states = encoding.prepare(q, k, apart, apart)
        assert (states["rows"].tensor.shape[-1], states["columns"].tensor.shape[-1]) == (2 + 1, 3 + 1)
        want = rp.attention(q, k, v, encoding, q_pos=Grid.of(2, 3), k_pos=Grid.of(2, 3))
        got = rp.attention(q, k, v, encoding, q_pos=apart, k_pos=apart)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)

    def test_resize(self) -> None:
        """Each table along its own axis, linearly; the window's own size changes nothing."""
        encoding = self.build()
        same = encoding.resize((9, WIDTH))
        assert torch.equal(same.rows, encoding.rows) and torch.equal(same.columns, encoding.columns)
        other = encoding.resize((14, 5))
        assert other.window == (14, 5) and (len(other.rows), len(other.columns)) == (27, 9)
        for ours, old in ((other.rows, encoding.rows), (other.columns, encoding.columns)):
            want = torch.nn.functional.interpolate(old.detach().T[None], size=len(ours), mode="linear")[0].T
            torch.testing.assert_close(ours.detach(), want, rtol=0, atol=1e-14)
        assert encoding.window == (9, WIDTH) and other.rows.requires_grad and other.rows.dtype == torch.float64

    def test_memory_is_linear(self) -> None:
        """Nothing of n x n (a quarter of one float32 matrix): states of n (h + w), and tiles."""
        assert largest(rp.encodings.Decomposed2D(self.dim, 48), 48, self.dim) < 48**4

    def test_outside_the_window(self) -> None:
        encoding = rp.encodings.Decomposed2D(8, (3, 4))
        q = torch.randn(1, 2, 16, 8)
        for sides, lag in (((4, 4), "3 rows"), ((2, 8), "7 columns")):
            with pytest.raises(ValueError, match=rf"lag of -?{lag} lies outside the window 3 x 4; .*resize"):
                rp.attention(q, q, q, encoding, q_pos=Grid.of(*sides), k_pos=Grid.of(*sides))
        with pytest.raises(ValueError, match="width dim=8, q has 4"):
            rp.attention(q[..., :4], q[..., :4], q, encoding, q_pos=Grid.of(4, 4), k_pos=Grid.of(4, 4))
