"""Tile by tile: what a kernel slices must be the whole's part, and `tile_backward` the gradient of `tile`."""

from __future__ import annotations

import torch
from torch import Tensor

from relpos.encodings.base import ContentBias, States, Tile

SHAPES = [(1, 1), (1, 9), (9, 1), (6, 9), (9, 6), (8, 8)]


def edges(n_q: int, n_k: int) -> list[tuple[int, int, int, int]]:
    """One pair in each corner, a whole row, a whole column, an inner tile, everything."""
    a, b, i, j = n_q - 1, n_k - 1, n_q // 2, n_k // 3
    corners = [(0, 1, 0, 1), (a, n_q, 0, 1), (0, 1, b, n_k), (a, n_q, b, n_k)]
    return [*corners, (i, i + 1, 0, n_k), (0, n_q, j, j + 1), (i // 2, i + 1, j, b + 1), (0, n_q, 0, n_k)]


def check_tiles(encoding: ContentBias, q: Tensor, k: Tensor, states: States, term: Tensor, fast: bool = True) -> None:
    """term (batch, heads, n_q, n_k) is the truth; fast: a `tile_backward` of its own is expected."""
    n_q, n_k = q.shape[2], k.shape[2]
    for i0, i1, j0, j1 in edges(n_q, n_k):
        tile = Tile(i0, i1, j0, j1, n_q, n_k)
        slices = {name: tile.slice(state).detach() for name, state in states.items()}
        leaves = {name: x.requires_grad_() for name, x in slices.items() if x.is_floating_point()}
        leaves |= {"q": q[:, :, i0:i1].detach().requires_grad_(), "k": k[:, :, j0:j1].detach().requires_grad_()}
        got = encoding.tile(leaves["q"], leaves["k"], slices, tile)
        torch.testing.assert_close(got, term[:, :, i0:i1, j0:j1], rtol=0, atol=1e-12)
        grad = torch.randn(got.shape, dtype=got.dtype)
        found = encoding.tile_backward(grad, leaves["q"], leaves["k"], slices, tile)
        assert (found is not None) is fast
        if found is None:
            continue
        for name, leaf in leaves.items():
            (want,) = torch.autograd.grad(got, leaf, grad, retain_graph=True, allow_unused=True)
            assert (want is None) is (name not in found), name
            if want is not None:
                torch.testing.assert_close(found[name], want, rtol=0, atol=1e-12)
