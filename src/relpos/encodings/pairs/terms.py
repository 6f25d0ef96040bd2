"""What channels add to one tile of scores and of outputs, and the gradients of both.

Of channel c a kernel slices, where they apply (rows: of its table)

    q:<position>, k:<position>   raw positions of queries and keys
    <c>.score    (batch, heads, n_q, rows)       products of the queries with the key table, plus the bias
    <c>.bias     (heads, rows)                   where there is no key table
    <c>.gate     (heads, rows), <c>.values (heads or 1, rows, width), <c>.scales learned units, <c>.unit (batch, 1, 1)
    <c>.edges    (batch or 1, n_q, steps - 1)    where the keys are in rising order, see `steps`
    <c>.vectors, <c>.added (batch or 1, heads or 1, n_k, width), <c>.numbers (batch or 1, heads, 1, n_k)  of the key
    <c>.q_turned, <c>.k_turned (batch, heads, n, width)   whose product is what a rotation adds
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

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

    # ---- scores

    def score(self, q: Tensor, k: Tensor, states: Slices, factor: float) -> Tensor:
        """(batch or 1, heads, t_q, t_k)"""
        parts: list[Tensor] = []
        stepped = self._stepped(states, "score")
        if stepped:
            tables = [self._sparse(c).by_step(states[f"{c}.score"]) for c in stepped]
            parts.append(steps.spread(tables, self._edges(stepped), self.tile.t_k))
        for kind, group in self._groups(states):
            parts.append(lookup.spread(lookup.joint_table([self._table(c, kind, states) for c in group]),
                                       self._code(group)))  # fmt: skip
        for c, encoder in self._smooth(states, ("score", "bias")):
            parts.append(encoder.spread(_scores(states, c), self._x(c), states.get(f"{c}.scales"), self._live(c)))
        for name, state in states.items():
            own, _, what = name.partition(".")
            if what == "vectors":
                parts.append(q.to(state.dtype) @ state.mT)
            elif what == "numbers":
                parts.append(state)
            elif what == "q_turned":
                parts.append(state @ states[f"{own}.k_turned"].mT)
        gate = self._gate(states)
        if gate is not None:
            parts.append((gate - 1) * (q.to(gate.dtype) @ k.to(gate.dtype).mT * factor))
        total = _sum(parts) if parts else q.new_zeros(1, 1, 1, 1)
        return total.expand(-1, q.shape[1], self.tile.t_q, self.tile.t_k)

    def score_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, factor: float) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        stepped = self._stepped(states, "score")
        for c, sums in zip(stepped, steps.collect(grad, self._edges(stepped)) if stepped else []):
            found[f"{c}.score"] = self._sparse(c).by_row(sums)
        for kind, group in self._groups(states):
            code, rows = self._code(group), [self._rows(c) for c in group]
            collect = lookup.collect if kind == "score" else lookup.totals
            for c, sums in zip(group, lookup.margins(collect(grad, code, math.prod(rows)), rows)):
                found[f"{c}.{kind}"] = sums[..., : self.channels[c].encoder.rows]
        for c, encoder in self._smooth(states, ("score", "bias")):
            sums = encoder.collect(grad, self._x(c), states.get(f"{c}.scales"), self._live(c))
            found |= {f"{c}.score": sums} if f"{c}.score" in states else {f"{c}.bias": sums.sum((0, 2))}
            if f"{c}.scales" in states:
                leaf = states[f"{c}.scales"].detach().requires_grad_()
                with torch.enable_grad():
                    out = encoder.spread(_scores(states, c).detach(), self._x(c), leaf, self._live(c))
                found[f"{c}.scales"] = torch.autograd.grad(out, leaf, grad.sum_to_size(out.shape))[0]
        for name, state in states.items():
            own, _, what = name.partition(".")
            if what == "vectors":
                _add(found, {"q": grad @ state, name: (grad.mT @ q.to(grad.dtype)).sum_to_size(state.shape)})
            elif what == "numbers":
                found[name] = grad.sum_to_size(state.shape)
            elif what == "q_turned":
                other = states[f"{own}.k_turned"]
                found |= {name: grad @ other, f"{own}.k_turned": grad.mT @ state}
        _add(found, self._gate_backward(grad, q, k, states, factor))
        return found

    # ---- values

    def values(self, p: Tensor, states: Slices) -> Tensor:
        """(batch, heads, t_q, width)"""
        total: Tensor | None = None
        for c, sums in self._sums(p, states):
            part = sums @ states[f"{c}.values"].to(p.dtype)
            total = part if total is None else total + part
        for name, state in states.items():
            if name.endswith(".added"):
                part = p @ state.to(p.dtype)
                total = part if total is None else total + part
        assert total is not None
        return total

    def values_backward(self, grad: Tensor, p: Tensor, states: Slices) -> dict[str, Tensor]:
        tables = {c: states[f"{c}.values"].to(grad.dtype) for c in self._with(states, "values")}
        found: dict[str, Tensor] = {}
        for c, sums in self._sums(p, states):
            found[f"{c}.values"] = (sums.mT @ grad).sum_to_size(tables[c].shape)
        parts: list[Tensor] = []
        stepped = self._stepped(states, "values")
        if stepped:
            by_step = [self._sparse(c).by_step(grad @ tables[c].mT) for c in stepped]
            parts.append(steps.spread(by_step, self._edges(stepped), self.tile.t_k))
        for group in self._value_groups(states):
            rows = [self._padded(c, grad @ tables[c].mT) for c in group]
            parts.append(lookup.spread(lookup.joint_table(rows), self._code(group)))
        for c, encoder in self._smooth(states, ("values",)):
            by_row, x, live = grad @ tables[c].mT, self._x(c), self._live(c)
            parts.append(encoder.spread(by_row, x, states.get(f"{c}.scales"), live))
            if f"{c}.scales" in states:
                leaf = states[f"{c}.scales"].detach().requires_grad_()
                with torch.enable_grad():
                    out = encoder.collect(p.detach(), x, leaf, live)
                found[f"{c}.scales"] = torch.autograd.grad(out, leaf, by_row)[0]
        for name, state in states.items():
            if name.endswith(".added"):
                parts.append(grad @ state.to(grad.dtype).mT)
                found[name] = (p.mT @ grad).sum_to_size(state.shape)
        return found | {"p": _sum(parts)}

    def _sums(self, p: Tensor, states: Slices) -> Iterable[tuple[int, Tensor]]:
        """The weights of each channel's pairs, summed by row: (channel, (batch, heads, t_q, rows))."""
        stepped = self._stepped(states, "values")
        for c, sums in zip(stepped, steps.collect(p, self._edges(stepped)) if stepped else []):
            yield c, self._sparse(c).by_row(sums)
        for group in self._value_groups(states):
            rows = [self._rows(c) for c in group]
            joint = lookup.collect(p, self._code(group), math.prod(rows))
            for c, sums in zip(group, lookup.margins(joint, rows)):
                yield c, sums[..., : self.channels[c].encoder.rows]
        for c, encoder in self._smooth(states, ("values",)):
            yield c, encoder.collect(p, self._x(c), states.get(f"{c}.scales"), self._live(c))

    # ---- gates

    def _gate(self, states: Slices) -> Tensor | None:
        total: Tensor | None = None
        for c in self._with(states, "gate"):
            table, encoder = states[f"{c}.gate"].unsqueeze(1).unsqueeze(0), self.channels[c].encoder
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
        q, k = q.to(grad.dtype), k.to(grad.dtype)
        with torch.enable_grad():
            gate = self._gate(dict(states) | leaves)
        assert gate is not None
        by_content = grad * (q @ k.mT * factor)
        parts = torch.autograd.grad(gate, list(leaves.values()), by_content.sum_to_size(gate.shape))
        by_gate = grad * (gate.detach() - 1) * factor
        return dict(zip(names, parts)) | {"q": by_gate @ k, "k": by_gate.mT @ q}

    # ---- the channels of this tile

    def _with(self, states: Slices, *whats: str) -> list[int]:
        return [c for c in range(len(self.channels)) if any(f"{c}.{what}" in states for what in whats)]

    def _stepped(self, states: Slices, what: str) -> list[int]:
        return [c for c in self._with(states, what) if f"{c}.edges" in states]

    def _looked_up(self, states: Slices, what: str, steps_too: bool = False) -> list[int]:
        sparse = [c for c in self._with(states, what) if isinstance(self.channels[c].encoder, Sparse)]
        return [c for c in sparse if steps_too or f"{c}.edges" not in states]

    def _groups(self, states: Slices) -> list[tuple[str, tuple[int, ...]]]:
        """Channels whose scores are looked up together: those of a row's products, then plain numbers."""
        rows = self._grouped(self._looked_up(states, "score"), lookup.ROWS)
        numbers = self._grouped(self._looked_up(states, "bias", steps_too=True), lookup.NUMBERS)
        return [("score", group) for group in rows] + [("bias", group) for group in numbers]

    def _value_groups(self, states: Slices) -> list[tuple[int, ...]]:
        return self._grouped(self._looked_up(states, "values"), lookup.ROWS)

    def _grouped(self, found: list[int], most: int) -> list[tuple[int, ...]]:
        groups = lookup.grouped([self._rows(c) for c in found], most)
        return [tuple(found[i] for i in group) for group in groups]

    def _smooth(self, states: Slices, whats: tuple[str, ...]) -> Iterable[tuple[int, Smooth]]:
        for c in self._with(states, *whats):
            encoder = self.channels[c].encoder
            if isinstance(encoder, Smooth):
                yield c, encoder

    def _sparse(self, c: int) -> Sparse:
        encoder = self.channels[c].encoder
        assert isinstance(encoder, Sparse)
        return encoder

    def _rows(self, c: int) -> int:
        """Of its table, with one more, of zeros, where some pairs do not count."""
        return self.channels[c].encoder.rows + (self.channels[c].where is not None)

    def _padded(self, c: int, table: Tensor) -> Tensor:
        return table if self.channels[c].where is None else torch.nn.functional.pad(table, (0, 1))

    def _table(self, c: int, kind: str, states: Slices) -> Tensor:
        table = states[f"{c}.{kind}"]
        return self._padded(c, table if kind == "score" else table.unsqueeze(1).unsqueeze(0))

    # ---- pairs

    def _x(self, c: int) -> Tensor:
        channel = self.channels[c]
        return channel.feature.between(self._places[f"q:{channel.position}"], self._places[f"k:{channel.position}"])

    def _live(self, c: int) -> Tensor | None:
        name = self.channels[c].where
        if name is None:
            return None
        return (self._places[f"q:{name}"] != 0).unsqueeze(-1) & (self._places[f"k:{name}"] != 0).unsqueeze(-2)

    def _edges(self, channels: list[int]) -> list[Tensor]:
        return [steps.local(self._places[f"{c}.edges"], self.tile.j0, self.tile.t_k) for c in channels]

    def _code(self, group: tuple[int, ...]) -> Tensor:
        if group not in self._codes:
            if len(group) > 1:
                code = lookup.joint_code([self._code((c,)) for c in group], [self._rows(c) for c in group])
            else:
                code = self._sparse(group[0]).code(self._x(group[0]), self._places.get(f"{group[0]}.unit"))
                live = self._live(group[0])
                code = code if live is None else code.masked_fill(~live, self._rows(group[0]) - 1)
            self._codes[group] = code
        return self._codes[group]


def _is_place(name: str) -> bool:
    return name[:2] in ("q:", "k:") or name.endswith((".edges", ".unit"))


def _scores(states: Slices, c: int) -> Tensor:
    """(.., heads, t_q or 1, rows)"""
    found = states.get(f"{c}.score")
    return states[f"{c}.bias"].unsqueeze(1).unsqueeze(0) if found is None else found


def _sum(parts: list[Tensor]) -> Tensor:
    """What is added up may be a view of a state; the sums of it are nobody else's and take further parts in place."""
    total = parts[0]
    for count, part in enumerate(parts[1:]):
        fits = torch.broadcast_shapes(total.shape, part.shape) == total.shape  # type: ignore[no-untyped-call]
        total = total.add_(part) if count and fits else total + part
    return total


def _add(found: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, part in more.items():
        found[name] = found[name] + part if name in found else part
