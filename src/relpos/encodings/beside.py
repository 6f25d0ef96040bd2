"""An additive encoding with leading tokens beside it, which have no place in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relpos.encodings.base import Pairwise, Slices, States, Tile
from relpos.encodings.handles import STRIDE
from relpos.positions import Positions


class Beside(Pairwise):
    """An additive encoding that adds nothing, to scores or to values, for pairs with one of the first `prefix` tokens.

    Positions are those of all tokens; what the first ones hold is not used. The encoding is not copied: its parameters
    are trained through this.
    """

    everywhere = False

    def __init__(self, encoding: Pairwise, prefix: int) -> None:
        super().__init__()
        self.encoding, self.prefix = encoding, prefix
        self.mixers, self.takes = encoding.mixers, encoding.takes  # type: ignore[misc]
        self.needs_content, self.reads_qk = encoding.needs_content, encoding.reads_qk  # type: ignore[misc]
        self.has_values, self.causal_only = encoding.has_values, encoding.causal_only
        self.burden, self.in_parts = encoding.burden, encoding.in_parts
        self.heads = getattr(encoding, "heads", None)

    def _number(self) -> None:
        """None of its own, so that one that a compiled program makes can be made again: `Pairwise.derived`."""

    @property
    def handle(self) -> int:  # type: ignore[override]
        return self.encoding.handle + self.prefix * STRIDE

    def holder(self) -> nn.Module:
        return self.encoding

    def score_scale(self, dim: int) -> float | None:
        return self.encoding.score_scale(dim)

    def select(self, positions: Positions) -> Positions:
        return self.encoding.select(positions)

    def check_positions(self, *positions: Positions) -> None:
        self.encoding.check_positions(*positions)

    def digest(self, content: Tensor) -> Tensor:
        return self.encoding.digest(content)

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        return self.encoding.prepare(q, k, q_pos, k_pos, content)

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        return self._without(self.encoding.tile(q, k, states, tile), tile)

    def value_width(self, dim: int) -> int | None:
        return self.encoding.value_width(dim)

    def value_term(self, p: Tensor, states: Slices, tile: Tile) -> Tensor | None:
        return self.encoding.value_term(self._without(p, tile), states, tile)

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        return self.encoding.tile_backward(self._without(grad, tile), q, k, states, tile)

    def values_backward(self, grad: Tensor, p: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        found = self.encoding.values_backward(grad, self._without(p, tile), states, tile)
        return None if found is None else found | {"p": self._without(found["p"], tile)}

    def _without(self, pairs: Tensor, tile: Tile) -> Tensor:
        """pairs (.., t_q, t_k) with zeros in the rows and columns of the prefix; queries sit at the end of the keys."""
        rows = self.prefix - tile.i0 - (tile.n_k - tile.n_q)
        columns = self.prefix - tile.j0
        if rows <= 0 and columns <= 0:
            return pairs
        row = torch.arange(tile.t_q, device=pairs.device).unsqueeze(-1) < rows
        return pairs.masked_fill(row | (torch.arange(tile.t_k, device=pairs.device) < columns), 0)
