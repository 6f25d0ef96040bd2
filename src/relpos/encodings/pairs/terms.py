"""What channels add to one tile of scores and of outputs, and the gradients of both.

A kernel slices (c: number of a channel; rows: of its table)

    q:<position>, k:<position>   raw positions of queries and keys
    keys, values (heads or 1, rows of all channels that have them, width)
    <c>.bias, <c>.gate (heads or 1, rows); <c>.scales learned units; <c>.unit (batch, 1, 1) personal ones
    <c>.edges (batch or 1, n_q, steps - 1)       where the keys are in rising order, see `steps`; else
    <c>.at, <c>.below (bins,)                    where its buckets are found by `cuts`, in raw numbers of the feature
    <c>.vectors, <c>.added (batch or 1, heads or 1, n_k, width), <c>.numbers (batch or 1, heads, 1, n_k)  of the key
    <c>.q_turned, <c>.k_turned (batch, heads, n, width)   whose product is what a rotation adds
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from relpos.encodings.base import Slices, Tile
from relpos.encodings.pairs import lookup, steps
from relpos.encodings.pairs.channel import Channel
from relpos.encodings.pairs.encoders import Smooth, Sparse


class Terms:
    """Of one tile. Codes and edges are made at the first question and kept for the others, forward and backward."""

    def __init__(self, channels: Sequence[Channel], states: Slices, tile: Tile) -> None:
        self.channels, self.tile = channels, tile
        self._places = {name: x.detach() for name, x in states.items() if _is_place(name)}
        self._codes: dict[tuple[int, ...], Tensor] = {}
        self._keyed = [c for c, channel in enumerate(channels) if channel.by_row and not channel.absolute]
        self._valued = [c for c, own in enumerate(channels) if own.values is not None and not own.absolute]
        self._numbered = [c for c in range(len(channels)) if f"{c}.bias" in states and c not in self._keyed]

    # ---- scores

    def score(self, q: Tensor, k: Tensor, states: Slices, factor: float) -> Tensor:
        """(batch or 1, heads, t_q, t_k)"""
        total = _sum(self._scores(q, k, states, factor))
        total = q.new_zeros(1, 1, 1, 1) if total is None else total
        return total.expand(-1, q.shape[1], self.tile.t_q, self.tile.t_k)

    def _scores(self, q: Tensor, k: Tensor, states: Slices, factor: float) -> Iterator[Tensor]:
        rows = self._rows_of_queries(q, states, factor)
        if rows:
            yield from self._laid_out(rows, states)
        for group in self._grouped(self._sparse_of(self._numbered), lookup.NUMBERS):
            table = lookup.joint_table([self._padded(c, _row(states[f"{c}.bias"])) for c in group])
            yield lookup.spread(table, self._code(group))
        for c, encoder in self._smooth_of(self._numbered):
            table = _row(states[f"{c}.bias"])
            yield encoder.spread(table, self._x(c), states.get(f"{c}.scales"), self._live(c))
        for name, state in states.items():
            own, _, what = name.partition(".")
            if what == "vectors":
                yield q.to(state.dtype) @ state.mT
            elif what == "numbers":
                yield state.clone()
            elif what == "q_turned":
                yield state @ states[f"{own}.k_turned"].mT
        gate = self._gate(states)
        if gate is not None:
            yield (gate - 1) * (q.to(gate.dtype) @ k.to(gate.dtype).mT * factor)

    def score_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, factor: float) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        q, k = q.to(grad.dtype), k.to(grad.dtype)
        if self._keyed:
            rows = self._rows_of_queries(q, states, factor)
            sums, more = self._summed(self._keyed, grad, states), self._scales(rows, grad, states)
            found |= more | {f"{c}.bias": sums[c].sum((0, 2)) for c in self._keyed if f"{c}.bias" in states}
            by_row, keys = torch.cat([sums[c] for c in self._keyed], -1), states["keys"].to(grad.dtype)
            found["keys"] = (by_row.mT @ q).sum_to_size(keys.shape) * factor
            found["q"] = by_row @ keys * factor
        for group in self._grouped(self._sparse_of(self._numbered), lookup.NUMBERS):
            counts = [self._rows(c) for c in group]
            totals = lookup.totals(grad, self._code(group), math.prod(counts))
            for c, part in zip(group, lookup.margins(totals, counts)):
                found[f"{c}.bias"] = part[..., : self.channels[c].encoder.rows]
        for c, encoder in self._smooth_of(self._numbered):
            part = encoder.collect(grad, self._x(c), states.get(f"{c}.scales"), self._live(c))
            found[f"{c}.bias"] = part.sum((0, 2))
            found |= self._scales({c: _row(states[f"{c}.bias"])}, grad, states)
        for name, state in states.items():
            own, _, what = name.partition(".")
            if what == "vectors":
                _add(found, {"q": grad @ state, name: (grad.mT @ q).sum_to_size(state.shape)})
            elif what == "numbers":
                found[name] = grad.sum_to_size(state.shape)
            elif what == "q_turned":
                found |= {name: grad @ states[f"{own}.k_turned"], f"{own}.k_turned": grad.mT @ state}
        _add(found, self._gate_backward(grad, q, k, states, factor))
        return found

    # ---- values

    def values(self, p: Tensor, states: Slices) -> Tensor:
        """(batch, heads, t_q, width)"""
        parts = [p @ state.to(p.dtype) for name, state in states.items() if name.endswith(".added")]
        if self._valued:
            sums = self._summed(self._valued, p, states)
            parts.append(torch.cat([sums[c] for c in self._valued], -1) @ states["values"].to(p.dtype))
        total = _sum(parts)
        assert total is not None
        return total

    def values_backward(self, grad: Tensor, p: Tensor, states: Slices) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        parts: list[Iterable[Tensor]] = []
        if self._valued:
            sums, table = self._summed(self._valued, p, states), states["values"].to(grad.dtype)
            found["values"] = (torch.cat([sums[c] for c in self._valued], -1).mT @ grad).sum_to_size(table.shape)
            rows = self._split(grad @ table.mT, self._valued)
            parts.append(self._laid_out(rows, states))
            found |= self._scales(rows, p, states)
        added = {name: state for name, state in states.items() if name.endswith(".added")}
        parts.append(grad @ state.to(grad.dtype).mT for state in added.values())
        found |= {name: (p.mT @ grad).sum_to_size(state.shape) for name, state in added.items()}
        total = _sum(chain.from_iterable(parts))
        assert total is not None
        return found | {"p": total}

    # ---- tables of each query, laid out over the pairs, and sums of pairs by their rows

    def _rows_of_queries(self, q: Tensor, states: Slices, factor: float) -> dict[int, Tensor]:
        """The products of the queries with each channel's keys, plus its bias: (batch, heads, t_q, rows)."""
        if not self._keyed:
            return {}
        rows = self._split((q.to(states["keys"].dtype) * factor) @ states["keys"].mT, self._keyed)
        return {c: x + _row(states[f"{c}.bias"]) if f"{c}.bias" in states else x for c, x in rows.items()}

    def _split(self, rows: Tensor, channels: list[int]) -> dict[int, Tensor]:
        counts = [self.channels[c].encoder.rows for c in channels]
        return dict(zip(channels, torch.split(rows, counts, -1)))

    def _laid_out(self, rows: dict[int, Tensor], states: Slices) -> Iterator[Tensor]:
        """Terms (batch, heads, t_q, t_k) whose sum holds every pair's entries of all the tables."""
        stepped, groups = self._ways(list(rows))
        if stepped:
            tables = [self._sparse(c).by_step(rows[c]) for c in stepped]
            yield steps.spread(tables, self._edges(stepped), self.tile.t_k)
        for group in groups:
            table = lookup.joint_table([self._padded(c, rows[c]) for c in group])
            yield lookup.spread(table, self._code(group))
        for c, encoder in self._smooth_of(list(rows)):
            yield encoder.spread(rows[c], self._x(c), states.get(f"{c}.scales"), self._live(c))

    def _summed(self, channels: list[int], pairs: Tensor, states: Slices) -> dict[int, Tensor]:
        """The transpose of `_laid_out`: pairs (batch, heads, t_q, t_k) to (batch, heads, t_q, rows) a channel."""
        found: dict[int, Tensor] = {}
        stepped, groups = self._ways(channels)
        if stepped:
            by_step = steps.collect(pairs, self._edges(stepped))
            found |= {c: self._sparse(c).by_row(sums) for c, sums in zip(stepped, by_step)}
        for group in groups:
            counts = [self._rows(c) for c in group]
            joint = lookup.collect(pairs, self._code(group), math.prod(counts))
            for c, sums in zip(group, lookup.margins(joint, counts)):
                found[c] = sums[..., : self.channels[c].encoder.rows]
        for c, encoder in self._smooth_of(channels):
            found[c] = encoder.collect(pairs, self._x(c), states.get(f"{c}.scales"), self._live(c))
        return found

    def _scales(self, rows: dict[int, Tensor], pairs: Tensor, states: Slices) -> dict[str, Tensor]:
        """The gradients of learned units, where the tables met the pairs: those of sum(laid out * pairs)."""
        found: dict[str, Tensor] = {}
        for c, encoder in self._smooth_of(list(rows)):
            name = f"{c}.scales"
            if name in states:
                leaf = states[name].detach().requires_grad_()
                with torch.enable_grad():
                    out = encoder.spread(rows[c].detach(), self._x(c), leaf, self._live(c))
                found[name] = torch.autograd.grad(out, leaf, pairs.sum_to_size(out.shape))[0]
        return found

    # ---- gates

    def _gate(self, states: Slices) -> Tensor | None:
        total: Tensor | None = None
        for c in (c for c in range(len(self.channels)) if f"{c}.gate" in states):
            table, encoder = _row(states[f"{c}.gate"]), self.channels[c].encoder
            if isinstance(encoder, Smooth):
                part = encoder.spread(table, self._x(c), states.get(f"{c}.scales"), None)
            else:
                part = lookup.spread(self._padded(c, table), self._code((c,)))
            live = self._live(c)
            part = part if live is None else part.masked_fill(~live.unsqueeze(1), 1.0)
            total = part if total is None else total * part
        return total

    def _gate_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, factor: float) -> dict[str, Tensor]:
        names = [n for n in states if n.endswith(".gate")]
        if not names:
            return {}
        names += [f"{n[:-5]}.scales" for n in names if f"{n[:-5]}.scales" in states]
        leaves = {name: states[name].detach().requires_grad_() for name in names}
        with torch.enable_grad():
            gate = self._gate(dict(states) | leaves)
        assert gate is not None
        by_content = grad * (q @ k.mT * factor)
        parts = torch.autograd.grad(gate, list(leaves.values()), by_content.sum_to_size(gate.shape))
        by_gate = grad * (gate.detach() - 1) * factor
        return dict(zip(names, parts)) | {"q": by_gate @ k, "k": by_gate.mT @ q}

    # ---- the channels of this tile

    def _ways(self, channels: list[int]) -> tuple[list[int], list[tuple[int, ...]]]:
        """Those that have edges, and the others in groups that are looked up together."""
        sparse = self._sparse_of(channels)
        stepped = [c for c in sparse if f"{c}.edges" in self._places]
        return stepped, self._grouped([c for c in sparse if c not in stepped], lookup.ROWS)

    def _sparse_of(self, channels: list[int]) -> list[int]:
        return [c for c in channels if isinstance(self.channels[c].encoder, Sparse)]

    def _smooth_of(self, channels: list[int]) -> list[tuple[int, Smooth]]:
        found = [(c, self.channels[c].encoder) for c in channels]
        return [(c, encoder) for c, encoder in found if isinstance(encoder, Smooth)]

    def _grouped(self, found: list[int], most: int) -> list[tuple[int, ...]]:
        groups = lookup.grouped([self._rows(c) for c in found], most)
        return [tuple(found[i] for i in group) for group in groups]

    def _sparse(self, c: int) -> Sparse:
        encoder = self.channels[c].encoder
        assert isinstance(encoder, Sparse)
        return encoder

    def _rows(self, c: int) -> int:
        """Of its table, with one more, of zeros, where some pairs do not count."""
        return self.channels[c].encoder.rows + (self.channels[c].where is not None)

    def _padded(self, c: int, table: Tensor) -> Tensor:
        return table if self.channels[c].where is None else torch.nn.functional.pad(table, (0, 1))

    # ---- pairs

    def _x(self, c: int) -> Tensor:
        return self.channels[c].feature.between(*self._ends(c))

    def _ends(self, c: int) -> tuple[Tensor, Tensor]:
        name = self.channels[c].position
        return self._places[f"q:{name}"], self._places[f"k:{name}"]

    def _live(self, c: int) -> Tensor | None:
        name = self.channels[c].where
        if name is None:
            return None
        return (self._places[f"q:{name}"] != 0).unsqueeze(-1) & (self._places[f"k:{name}"] != 0).unsqueeze(-2)

    def _edges(self, channels: list[int]) -> list[Tensor]:
        return [steps.local(self._places[f"{c}.edges"], self.tile.j0, self.tile.t_k) for c in channels]

    def _code(self, group: tuple[int, ...]) -> Tensor:
        """The joint code of the channels, (batch or 1, t_q, t_k)."""
        if group not in self._codes:
            strides = dict(zip(group, lookup.strides([self._rows(c) for c in group])))
            stepped = [c for c in group if f"{c}.edges" in self._places]
            if len(group) == 1 and not stepped:
                self._codes[group] = self._own_code(group[0])
                return self._codes[group]
            code = self._code_by_edges({c: strides[c] for c in stepped}) if stepped else None
            for c in group:
                if c not in stepped:
                    own = self._code((c,))
                    code = own * strides[c] if code is None else code.add(own, alpha=strides[c])
            assert code is not None
            self._codes[group] = code
        return self._codes[group]

    def _code_by_edges(self, strides: dict[int, int]) -> Tensor:
        """sum_c stride_c row_c(pair): itself a number that is constant between edges."""
        edges = self._edges(list(strides))
        batch, device = max(map(len, edges)), edges[0].device
        rows = [self._sparse(c).by_step(torch.arange(self._rows(c), device=device) * strides[c]) for c in strides]
        tables = [row.expand(batch, 1, self.tile.t_q, -1) for row in rows]
        return steps.spread(tables, edges, self.tile.t_k).squeeze(1)

    def _own_code(self, c: int) -> Tensor:
        channel, at = self.channels[c], self._places.get(f"{c}.at")
        if at is None or channel.cuts is None:
            code = self._sparse(c).code(self._x(c), self._places.get(f"{c}.unit"))
        else:
            raw = channel.feature.raw(*self._ends(c)).to(at.dtype)
            raw = raw.abs() if channel.feature.ordered else raw
            code = channel.cuts.size(raw, at, self._places[f"{c}.below"])
        live = self._live(c)
        return code if live is None else code.masked_fill(~live, self._rows(c) - 1)


def _is_place(name: str) -> bool:
    return name[:2] in ("q:", "k:") or name.endswith((".edges", ".at", ".below", ".unit"))


def _row(numbers: Tensor) -> Tensor:
    """Numbers (heads, rows) as a table of one query, (1, heads, 1, rows)."""
    return numbers.unsqueeze(1).unsqueeze(0)


def _sum(parts: Iterable[Tensor]) -> Tensor | None:
    """Of tensors that nobody else holds, each as large as a tile: made one at a time and added up in the first that is
    large enough. None of none."""
    total: Tensor | None = None
    for part in parts:
        if total is None:
            total = part
        elif torch.broadcast_shapes(total.shape, part.shape) == total.shape:  # type: ignore[no-untyped-call]
            total = total.add_(part)
        else:
            total = total + part
    return total


def _add(found: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, part in more.items():
        found[name] = found[name] + part if name in found else part
