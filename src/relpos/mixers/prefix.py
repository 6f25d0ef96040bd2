"""Leading tokens that stand outside an additive encoding, such as a class token before the cells of a grid."""

from __future__ import annotations

import torch

from relpos.encodings.base import Encoding, Pairwise
from relpos.encodings.beside import Beside
from relpos.positions import Position


def beside(encoding: Encoding | None, prefix: int) -> Encoding | None:
    """The encoding for softmax attention whose first `prefix` tokens stand outside it. A Transform stays what it is:
    a token without a place has position 0 there, where rotary methods turn nothing."""
    return Beside(encoding, prefix) if prefix and isinstance(encoding, Pairwise) else encoding


def with_prefix(positions: Position, prefix: int) -> Position:
    """Positions of tokens of which the first `prefix` have none: they hold 0."""
    if not prefix:
        return positions
    values = positions.values
    shape = list(values.shape)
    shape[positions.axis] = prefix
    return type(positions)(torch.cat((values.new_zeros(shape), values), positions.axis))
