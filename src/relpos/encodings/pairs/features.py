"""Features of a pair of tokens: what a query and a key have to do with each other, in float64 or int64.

| feature   | read from  | of a pair                                                       | unit       |
|-----------|------------|-----------------------------------------------------------------|------------|
| `index`   | `Index`    | key's place in the sequence minus the query's                   | tokens     |
| `time`    | `Times`    | key's time minus the query's                                    | seconds    |
| `place`   | `Places`   | great-circle distance                                           | kilometres |
| `profile` | `Profiles` | 1 - cosine of the two vectors, rounded to 2^-40                 | -          |
| `mark`    | `Labels`   | 1 where both carry the same label, else 0                       | -          |
| `key`     | `Index`    | the key's own place, whatever the query: an absolute table      | tokens     |

Encoders take the size of a difference unless they are told that its sign matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from relpos.positions import EARTH_RADIUS_KM, Index, Labels, Places, Position, Profiles, Times

SNAP = 2.0**40  # sums of products in another order differ by 1e-16: equal profiles are to share a bucket all the same


def _itself(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Feature:
    """read: a position to one row a token, (batch or 1, n, ..); raw: such rows to pairs (batch or 1, n_q, n_k), in
    numbers that need not be the feature yet; finish: those to the feature, never falling as they rise from 0 on."""

    kind: type[Position]
    read: Callable[[Position], Tensor]
    raw: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], Tensor] = _itself
    ordered: bool = False  # a difference of numbers, so that keys in rising order have it in rising order
    signed: bool = False  # its sign matters unless one says otherwise

    def between(self, query: Tensor, key: Tensor) -> Tensor:
        return self.finish(self.raw(query, key))


def _rows(position: Position) -> Tensor:
    values = position.values
    return values if values.dim() == 2 - (1 + position.axis) else values.unsqueeze(0)


def _on_the_sphere(position: Position) -> Tensor:
    """Unit vectors of latitude and longitude."""
    latitude, longitude = torch.deg2rad(_rows(position)).unbind(-1)
    flat = latitude.cos()
    return torch.stack([flat * longitude.cos(), flat * longitude.sin(), latitude.sin()], -1)


def _chord(query: Tensor, key: Tensor) -> Tensor:
    """The square of the way through the earth, in radii of it."""
    square: Tensor | None = None
    for axis in range(3):
        step = (key[..., axis].unsqueeze(-2) - query[..., axis].unsqueeze(-1)).square_()
        square = step if square is None else square.add_(step)
    assert square is not None
    return square


def _kilometres(chord: Tensor) -> Tensor:
    """As exact as the haversine formula for near points, with one inverse sine a pair."""
    return chord.sqrt().div_(2).clamp_(max=1).asin_().mul_(2 * EARTH_RADIUS_KM)


def _directions(position: Position) -> Tensor:
    return torch.nn.functional.normalize(_rows(position), dim=-1)


def _apart(query: Tensor, key: Tensor) -> Tensor:
    return 1 - query @ key.mT


def _snapped(apart: Tensor) -> Tensor:
    return (apart * SNAP).round_().div_(SNAP).clamp_(0, 2)


def _same(query: Tensor, key: Tensor) -> Tensor:
    return (key.unsqueeze(-2) == query.unsqueeze(-1)).to(torch.int64)


def _own(query: Tensor, key: Tensor) -> Tensor:
    return key.unsqueeze(-2).expand(-1, query.shape[-1], -1)


FEATURES: dict[str, Feature] = {
    "index": Feature(Index, _rows, Position.between, ordered=True, signed=True),
    "time": Feature(Times, _rows, Position.between, ordered=True),
    "place": Feature(Places, _on_the_sphere, _chord, _kilometres),
    "profile": Feature(Profiles, _directions, _apart, _snapped),
    "mark": Feature(Labels, _rows, _same),
    "key": Feature(Index, _rows, _own),
}
SOURCE = {"key": "index"}  # the named position of a feature, where it is not called like it


def feature_of(name: object) -> Feature:
    if not isinstance(name, str) or name not in FEATURES:
        raise ValueError(f"a channel's feature is one of {', '.join(FEATURES)}; got {name!r}")
    return FEATURES[name]


def personal_unit(times: Tensor | Times) -> Tensor:
    """The smallest gap above zero of each row of times (n,) or (batch, n), float64 (1,) or (batch, 1); 1 where all are
    equal. Times divided by it count in units of their own sequence (TiSASRec).

    Take it from the events of training: the gap of an event still to be predicted would tell of it.
    """
    values = (times if isinstance(times, Times) else Times(times)).values
    if values.shape[-1] < 2:
        return values.new_ones(*values.shape[:-1], 1)
    gaps = values[..., 1:] - values[..., :-1]
    smallest = gaps.masked_fill(gaps <= 0, torch.inf).amin(-1, keepdim=True)
    return smallest.masked_fill(smallest == torch.inf, 1.0)
