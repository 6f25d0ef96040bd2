"""What the encodings of label differences share: vectors of differences, and three exact forms of their score.

A score q_t . p(i_t - i_s) of integer labels i is one of

    table     (batch, heads, n_q, U), one column a distinct key label, gathered in each tile by the key's label
    waves     a product of 2 model_dim channels, for sines: sin and cos of a difference are sums of products
    vectors   p of all differences in a range, multiplied by the tile's queries there and gathered by the difference

whichever is the smallest. None makes a tensor of n_q x n_k x model_dim, nor of n_q x n_k.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relpos.encodings.base import ContentBias, Slices, State, States, Tile
from relpos.encodings.levels import distinct, key_waves, query_waves, waves

MERGED = 512  # distinct combinations of labels up to which the tables of all levels become one: a gather a pair
PAIRS = 2**16  # pairs of distinct labels up to which their distinct differences are looked for
SPAN = 2**12  # all differences in a range, where there are more pairs, up to this many


class LevelVectors(nn.Linear):
    """One vector a difference of labels: weight code(r) + bias, where the code is sines of a base or a table's row."""

    def __init__(self, model_dim: int, base: float | None = None, reach: int | None = None) -> None:
        super().__init__(model_dim, model_dim)
        self.base, self.reach = base, reach
        if reach is not None:  # sines have this variance too
            self.table = nn.Parameter(torch.randn(2 * reach + 1, model_dim) / 2**0.5)

    def clipped(self, differences: Tensor) -> Tensor:
        return differences if self.reach is None else differences.clamp(-self.reach, self.reach)

    def forward(self, differences: Tensor) -> Tensor:
        """Integers (count,) to (count, model_dim)."""
        if self.reach is not None:
            codes = self.table[self.clipped(differences) + self.reach]
        else:
            assert self.base is not None
            codes = waves(differences, self.in_features, self.base).to(self.weight.dtype)
        return super().forward(codes)


class LabelTerms(ContentBias):
    """Base of the encodings that add q_t . p^h(i_t - i_s)/sqrt(dim of a head), summed over levels.

    p = map.weight a + map.bias; channel c of p belongs to head c mod heads and is its entry c div heads.
    """

    heads: int
    model_dim: int
    map: nn.Linear

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        total: Tensor | None = None
        if "q_waves" in states:
            total = states["q_waves"] @ states["k_waves"].mT.unsqueeze(1)
        for name, table in states.items():
            kind, _, which = name.partition(".")
            if kind == "table":
                part = table.gather(-1, _spread(states[f"code.{which}"].unsqueeze(1), table))
            elif kind == "vectors":
                part = _Vectors(states, which).term(q)
            else:
                continue
            total = part if total is None else total + part
        assert total is not None
        return total

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        found: dict[str, Tensor] = {}
        if "q_waves" in states:
            found["q_waves"] = grad @ states["k_waves"].to(grad.dtype).unsqueeze(1)
        for name, table in states.items():
            kind, _, which = name.partition(".")
            if kind == "table":
                found[name] = _columns(grad, states[f"code.{which}"], table)
            elif kind == "vectors":
                parts = _Vectors(states, which).backward(grad, q)
                found["q"] = found["q"] + parts.pop("q") if "q" in found else parts.pop("q")
                found |= parts
        return found

    def split(self, p: Tensor) -> Tensor:
        """(count, model_dim) to (heads, dim of a head, count)."""
        return p.reshape(len(p), -1, self.heads).movedim(0, -1).transpose(0, 1)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, model_dim={self.model_dim}"


class Scores:
    """Collects the states of one call; q (batch, heads, n_q, dim) already has the factor of the score."""

    def __init__(self, owner: LabelTerms, q: Tensor) -> None:
        self.owner, self.q = owner, q
        self.dtype = q.dtype
        self.constant: Tensor | None = None  # (batch, heads, n_q, 1), the same for every key
        self.tables: list[tuple[Tensor, Tensor, Tensor]] = []  # the scores, and what `distinct` says of the keys
        self.waves: list[tuple[Tensor, Tensor]] = []
        self.states: States = {}

    def add(self, level: LevelVectors, q_labels: Tensor, k_labels: Tensor) -> None:
        """One level's score, in the form that costs least; labels (1 or batch, n)."""
        token, rank = distinct(k_labels)
        labels = k_labels.gather(1, token)
        count = labels.shape[1]
        if level.reach is None and count > 2 * self.owner.model_dim:
            self.waves.append(self._waves(level, q_labels, k_labels))
            return
        differences = _differences(level, torch.unique(q_labels), torch.unique(labels))
        if differences is not None and level.reach is not None and count > 2 * level.reach + 1:
            low, high = int(differences[0]), int(differences[-1])
            vectors = self._mapped(level, torch.arange(low, high + 1, device=labels.device), self.owner.map.bias)
            self.vectors(self.owner.split(vectors), low, q_labels, k_labels)
        elif differences is not None and (level.reach is not None or self._is_cheap(len(differences), count)):
            self.tables.append((self._table(level, q_labels, labels, differences), token, rank))
        else:
            of_query, of_key = self._waves(level, q_labels, labels)
            self.tables.append((of_query @ of_key.mT.unsqueeze(1), token, rank))

    def constantly(self, vector: Tensor) -> None:
        """Adds q . the head's part of a vector (model_dim,) to every score of a row."""
        part = self.q @ self.owner.split(vector.to(self.dtype).unsqueeze(0))
        self.constant = part if self.constant is None else self.constant + part

    def vectors(
        self,
        vectors: Tensor,
        low: int,
        q_places: Tensor,
        k_places: Tensor,
        masks: tuple[Tensor, Tensor] | None = None,
        once: Tensor | None = None,
    ) -> None:
        """q . vectors[.., q_place - k_place - low], only where the masks agree if there are any, plus `once` there.

        vectors (heads, dim, count), without the factor of the score; once (batch, heads, n_q, 1).
        """
        which = sum(name.startswith("vectors.") for name in self.states)
        factor = vectors.shape[1] ** -0.5  # the tile's queries are as they came
        self.states[f"vectors.{which}"] = State(vectors * factor, "whole")
        self.states[f"q_place.{which}"] = State(q_places - low, "query")
        self.states[f"k_place.{which}"] = State(k_places, "key")
        if masks is not None:
            self.states[f"q_mask.{which}"] = State(masks[0], "query")
            self.states[f"k_mask.{which}"] = State(masks[1], "key")
        if once is not None:
            self.states[f"once.{which}"] = State(once, "query", 2)

    def finish(self) -> States:
        if self.constant is not None and self.tables:
            table, token, rank = self.tables[0]
            self.tables[0] = (table + self.constant, token, rank)
        elif self.constant is not None:
            one = torch.ones_like(self.waves[0][1][..., :1])
            self.waves.append((self.constant, one))
        if self.waves:
            of_query, of_key = zip(*self.waves, strict=True)
            self.states["q_waves"] = State(torch.cat(of_query, -1), "query", 2)
            rows = max(len(x) for x in of_key)
            of_key = tuple(x.expand(rows, -1, -1) for x in of_key)
            self.states["k_waves"] = State(torch.cat(of_key, -1), "key", 1)
        for index, (table, code) in enumerate(self._merged()):
            self.states[f"table.{index}"] = State(table, "query", 2)
            self.states[f"code.{index}"] = State(code, "key")
        return self.states

    def _is_cheap(self, differences: int, labels: int) -> bool:
        """Whether vectors of all differences take fewer products than sines of all labels."""
        width, heads, rows = self.owner.model_dim, self.owner.heads, self.q.shape[0] * self.q.shape[2]
        by_difference = differences * width * (2 * width + rows)
        return by_difference <= width**3 + rows * width * (width + 2 * heads * labels)

    def _mapped(self, level: LevelVectors, differences: Tensor, bias: Tensor | None) -> Tensor:
        """(count, model_dim)"""
        return nn.functional.linear(level(differences), self.owner.map.weight, bias).to(self.dtype)

    def _table(self, level: LevelVectors, q_labels: Tensor, labels: Tensor, differences: Tensor) -> Tensor:
        """(batch, heads, n_q, U) from the vectors of the distinct differences, for key labels (rows, U)."""
        vectors = self.owner.split(self._mapped(level, differences, self.owner.map.bias))
        between = level.clipped(q_labels.unsqueeze(-1) - labels.unsqueeze(-2))
        index = torch.searchsorted(differences, between)
        table = self.q @ vectors
        return table.gather(-1, index.unsqueeze(1).expand(*table.shape[:3], -1))

    def _waves(self, level: LevelVectors, q_labels: Tensor, k_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Channels (batch, heads, n_q, 2 model_dim) and (rows, n, 2 model_dim) whose product is the score."""
        assert level.base is not None
        width, origin = self.owner.model_dim, k_labels.amin()
        both = (self.owner.map.weight @ level.weight).to(self.dtype)  # (model_dim, model_dim)
        seen = torch.einsum("bhte,hed->bhtd", self.q, self.owner.split(both.T))
        self.constantly(nn.functional.linear(level.bias, self.owner.map.weight, self.owner.map.bias))
        of_query = query_waves(q_labels - origin, width, level.base).to(self.dtype).unsqueeze(1)
        of_key = key_waves(k_labels - origin, width, level.base).to(self.dtype)
        return (seen.unsqueeze(-2) * of_query).flatten(-2), of_key.flatten(-2)

    def _merged(self) -> list[tuple[Tensor, Tensor]]:
        """(scores, which column each key has): one for all levels where few combinations of labels occur."""
        if len(self.tables) < 2:
            return [(table, rank) for table, _, rank in self.tables]
        rows = max(len(rank) for _, _, rank in self.tables)
        joint = torch.zeros_like(self.tables[0][2]).expand(rows, -1)
        for table, _, rank in self.tables:
            token, joint = distinct(joint * table.shape[-1] + rank)
        if token.shape[1] > MERGED:
            return [(table, rank) for table, _, rank in self.tables]
        total: Tensor | None = None
        for table, _, rank in self.tables:
            columns = rank.expand(rows, -1).gather(1, token)
            part = table.gather(-1, columns[:, None, None].expand(*table.shape[:3], -1))
            total = part if total is None else total + part
        assert total is not None
        return [(total, joint)]


def _differences(level: LevelVectors, own: Tensor, other: Tensor) -> Tensor | None:
    """Rising differences of labels of queries and keys, given in rising order; None where there are too many."""
    if len(own) * len(other) <= PAIRS:
        differences: Tensor = torch.unique(level.clipped(own.unsqueeze(1) - other))
        return differences
    low, high = (int(level.clipped(x)) for x in (own[0] - other[-1], own[-1] - other[0]))
    few = level.reach is not None or high - low < SPAN
    return torch.arange(low, high + 1, device=own.device) if few else None


def _spread(code: Tensor, table: Tensor) -> Tensor:
    """Columns (rows, 1, t_k), or (rows, 1, t_q, t_k), for every row of the table: a view."""
    code = code.unsqueeze(-2) if code.dim() == 3 else code
    return code.expand(*table.shape[:3], -1)


def _columns(grad: Tensor, code: Tensor, table: Tensor) -> Tensor:
    """Sums of grad (batch, heads, t_q, t_k) over keys of the same column."""
    if grad.device.type == "cpu":
        into = grad.new_zeros(table.shape)
        return into.scatter_add_(-1, _spread(code.unsqueeze(1), table), grad)
    one_hot = nn.functional.one_hot(code, table.shape[-1]).to(grad.dtype)  # a product: sums in a fixed order
    return grad @ one_hot.unsqueeze(1)


class _Vectors:
    """The part of one tile that multiplies queries with the vectors of the differences that occur in it."""

    def __init__(self, states: Slices, which: str) -> None:
        self.which, self.whole = which, states[f"vectors.{which}"]
        q_place, k_place = states[f"q_place.{which}"], states[f"k_place.{which}"]
        last = self.whole.shape[-1] - 1
        self.low = int((q_place.amin() - k_place.amax()).clamp(0, last))
        high = int((q_place.amax() - k_place.amin()).clamp(0, last))
        between = q_place.unsqueeze(-1) - k_place.unsqueeze(-2)
        self.index = between.clamp_(self.low, high).sub_(self.low).unsqueeze(1)
        self.near = self.whole[..., self.low : high + 1]
        self.once = states.get(f"once.{which}")
        self.same: Tensor | None = None
        if f"q_mask.{which}" in states:
            same = states[f"q_mask.{which}"].unsqueeze(-1) == states[f"k_mask.{which}"].unsqueeze(-2)
            self.same = same.unsqueeze(1)

    def term(self, q: Tensor) -> Tensor:
        table = q.to(self.whole.dtype) @ self.near
        table = table if self.once is None else table + self.once
        picked = table.gather(-1, _spread(self.index, table))
        return picked if self.same is None else picked.masked_fill(~self.same, 0)

    def backward(self, grad: Tensor, q: Tensor) -> dict[str, Tensor]:
        grad = grad if self.same is None else grad.masked_fill(~self.same, 0)
        table = grad.new_zeros(*grad.shape[:3], self.near.shape[-1])
        table.scatter_add_(-1, _spread(self.index, table), grad)
        whole = torch.zeros_like(self.whole)
        whole[..., self.low : self.low + self.near.shape[-1]] = (q.mT.to(grad.dtype) @ table).sum(0)
        found = {"q": table @ self.near.mT.to(grad.dtype), f"vectors.{self.which}": whole}
        if self.once is not None:
            found[f"once.{self.which}"] = grad.sum(-1, keepdim=True)
        return found
