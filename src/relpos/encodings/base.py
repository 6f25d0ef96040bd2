"""The forms of relative positional encoding, and the one protocol through which kernels compute them.

A kernel knows forms, never names. What a form hands to a kernel is a dict of `State`s (made once a call, under
autograd, in memory linear in the lengths) and pure functions of slices of them:

    prepare(q, k, q_pos, k_pos, content) -> {name: State}
    tile(q_t, k_t, states, tile)         -> (batch or 1, heads, t_q, t_k), added to the score after its scale
    value_term(p_t, states, tile)        -> (batch, heads, t_q, dim_v), optional, linear in p_t
    tile_backward(grad_t, q_t, k_t, states, tile)     -> gradients by name, optional: the fast way where one is known
    values_backward(grad_out_t, p_t, states, tile)    -> likewise

`Transform` acts on q and k instead, `Absolute` on the input of the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from relpos.encodings.diagonals import diagonal_sums, toeplitz
from relpos.encodings.handles import Numbered
from relpos.encodings.states import Slices as Slices
from relpos.encodings.states import State as State
from relpos.encodings.states import States as States
from relpos.encodings.states import Tail as Tail
from relpos.encodings.states import Tile as Tile
from relpos.positions import Grid, Index, Position, Positions, Times, is_traced


class Encoding(Numbered):
    """Base of everything that says what a lag does."""

    form: ClassVar[str] = ""
    takes: ClassVar[tuple[type, ...]] = (Index,)
    reference: ClassVar[str] = ""  # BibTeX entry of the source
    extrapolates: ClassVar[bool] = False  # usable beyond the training length, by the paper's claim or plainly
    mixers: ClassVar[tuple[str, ...]] = ()
    causal_only: bool = False  # per class or per instance
    learned: ClassVar[bool] = True  # has parameters
    shared: ClassVar[bool] = False  # defined with one module for all layers of a network
    has_factors: ClassVar[bool] = False  # exactly of finite rank: see encodings/channels.py

    def holder(self) -> nn.Module:
        """Whose the parameters and buffers are: itself, but for a view of another encoding."""
        return self

    def cite(self) -> str:
        """BibTeX of the method's source."""
        return self.reference

    def score_scale(self, dim: int) -> float | None:
        """Factor of q.k that this method was defined with, None for the usual 1/sqrt(dim)."""
        return None

    def select(self, positions: Positions) -> Positions:
        """Of named positions what this encoding reads: all, where it takes named ones; else the channel `index`, or
        the only one of a kind that it takes. So one set of positions serves encodings of every sort."""
        if not isinstance(positions, Mapping) or issubclass(Mapping, self.takes):
            return positions
        fitting = {name: channel for name, channel in positions.items() if isinstance(channel, self.takes)}
        chosen = fitting.get("index") or (next(iter(fitting.values())) if len(fitting) == 1 else None)
        return positions if chosen is None else chosen

    def check_positions(self, *positions: Positions) -> None:
        """TypeError where a kind of position has no meaning here."""
        for position in positions:
            if not isinstance(position, self.takes):
                got = "named positions" if isinstance(position, Mapping) else type(position).__name__
                allowed = " or ".join(kind.__name__ for kind in self.takes)
                raise TypeError(f"{type(self).__name__} takes {allowed} positions, got {got}")
        kinds = {"named" if isinstance(p, Mapping) else type(p).__name__ for p in positions}
        if len(kinds) > 1:
            raise TypeError(
                f"queries and keys have positions of one kind, got {' and '.join(sorted(kinds))}; give both"
            )


def consecutive(q_pos: Positions, k_pos: Positions) -> int | None:
    """First query position minus first key position where both run in steps of one, alike in every row; else None."""
    if not (isinstance(q_pos, Index) and isinstance(k_pos, Index)):
        return None
    if q_pos.start is not None and k_pos.start is not None and q_pos.values.numel() and k_pos.values.numel():
        return q_pos.start - k_pos.start
    q_start, k_start = q_pos.run_start(), k_pos.run_start()
    if q_start is None or k_start is None or is_traced():  # a tracer sees no numbers, of no tokens either
        return None
    offsets = (q_start - k_start).flatten()
    if offsets.numel() == 0 or bool((offsets != offsets[0]).any()):
        return None
    return int(offsets[0])


class Pairwise(Encoding):
    """Shared by the additive forms: how a kernel computes a term that is added to the score."""

    has_values: bool = False
    needs_content: ClassVar[bool] = False
    content_of: ClassVar[Literal["all", "queries"]] = "all"  # tokens whose content counts; queries: the last rows of it
    reads_qk: ClassVar[bool] = False  # True where `tile` looks at q_t or k_t
    everywhere: bool = True  # its generator of lags, where it has one, is the term of every pair
    in_parts: bool = True  # `prepare` may be given the keys part by part: a pair needs only its own two tokens
    burden: int = 1  # how many times fewer pairs a tile holds, where `tile` needs several tensors of its size

    def derived(self, strides: int) -> Pairwise:
        """This encoding with so many leading tokens beside it."""
        from relpos.encodings.beside import Beside

        return Beside(self, strides)

    def digest(self, content: Tensor) -> Tensor:
        """What is kept of each token of the layer's input (batch, n, model_dim); a decoder caches this instead."""
        return content

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        """States for one call; q (batch, heads, n_q, dim), k (batch, heads, n_k, dim). Under autograd, O(n) memory."""
        raise NotImplementedError

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        """The term of one tile, (batch or 1, heads, t_q, t_k). Pure: reads only its arguments."""
        raise NotImplementedError

    def value_width(self, dim: int) -> int | None:
        """The width that v must have for `value_term` where q has width `dim`, None where any will do."""
        return None

    def value_term(self, p: Tensor, states: Slices, tile: Tile) -> Tensor | None:
        """What is added to the output, (batch, heads, t_q, dim_v), linear in the weights p; None for nothing."""
        return None

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        """Gradients by name of the sliced states, and of "q" and "k" where `tile` reads them, from the gradient of
        `tile`, (batch, heads, t_q, t_k). None: the kernel differentiates `tile` itself, about twice the cost."""
        return None

    def values_backward(self, grad: Tensor, p: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        """Gradients by name of the sliced states, and of the weights as "p", from the gradient of `value_term`."""
        return None


class RowBias(Pairwise):
    """A scalar a head for a pair; may depend on the query position as well as on the lag, so it has no generator.

    A subclass gives `pairs`. Its parameters travel through the kernel as whole states, so that gradients reach them.
    """

    form = "RowBias"
    mixers: ClassVar[tuple[str, ...]] = ("softmax", "pointwise")
    heads: int

    def pairs(self, q_values: Tensor, k_values: Tensor) -> Tensor:
        """(.., heads, n_q, n_k) from raw position values, float32 or wider."""
        raise NotImplementedError

    def forward(self, q_values: Tensor, k_values: Tensor) -> Tensor:
        return self.pairs(q_values, k_values)

    def bias(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        """(heads, n_q, n_k), or (batch, heads, n_q, n_k) for positions that differ by row. O(n^2): the definition."""
        q_values, k_values = self._values(q_pos, k_pos)
        bias = self.pairs(q_values, k_values)
        return bias.squeeze(0) if bias.dim() == 4 and bias.shape[0] == 1 else bias

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        q_values, k_values = self._values(q_pos, k_pos)
        axis = q_pos.axis if isinstance(q_pos, Position) else -1
        states = {"q_pos": State(q_values, "query", axis), "k_pos": State(k_values, "key", axis)}
        return states | {f"whole.{name}": State(p, "whole") for name, p in self.named_parameters()}

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        parameters = {name[6:]: tensor for name, tensor in states.items() if name.startswith("whole.")}
        bias: Tensor = torch.func.functional_call(self, parameters, (states["q_pos"], states["k_pos"]))
        return bias if bias.dim() == 4 else bias.unsqueeze(0)

    def _values(self, q_pos: Positions, k_pos: Positions) -> tuple[Tensor, Tensor]:
        self.check_positions(q_pos, k_pos)
        assert isinstance(q_pos, Position) and isinstance(k_pos, Position)
        return q_pos.values, k_pos.values


class Bias(RowBias):
    """A scalar a head for a lag. A subclass gives `at`; everything else follows.

    at(lag) -> (heads, *lag.shape) for integer lags, (heads, *lag.shape[:-1]) for lags on a grid (last axis: the axes).
    """

    form = "Bias"
    mixers = ("softmax", "kernelized", "pointwise", "gate")
    normalized: bool = False  # the weights of a gate: their softmax over the window, instead of the numbers themselves

    def at(self, lag: Tensor) -> Tensor:
        """The bias of each lag (key - query), in float32 or wider."""
        raise NotImplementedError

    def pairs(self, q_values: Tensor, k_values: Tensor) -> Tensor:
        between = Grid.between if self._on_grid(q_values) else Index.between
        bias = self.at(between(q_values, k_values))  # (heads, [batch], n_q, n_k)
        return bias.movedim(0, -3)

    def factors(self, n: int) -> tuple[Tensor, Tensor] | None:
        """Exact low rank where there is one: float64 f, g of shape (heads, n, rank) with f[h, i] . g[h, j] = bias
        of lag j - i, up to a term of the query alone (softmax ignores it) where it is `causal_only`."""
        return None

    def per_axis(self, sides: tuple[int, ...]) -> tuple[Tensor, ...] | None:
        """Where the bias is a sum over the axes of a grid: the term of each, (heads, 2 side - 1) with index lag + side
        - 1, so that its exponential is a product and a softmax over a window one along each axis. Else None."""
        return None

    def tail(self) -> Tail | None:
        """Where the bias becomes a straight line, None where it never does."""
        return None

    def lags(self, n_q: int | tuple[int, ...], n_k: int | tuple[int, ...] | None = None, offset: int = 0) -> Tensor:
        """The generator: the bias of every lag that occurs.

        Integers n_q, n_k: (heads, n_q + n_k - 1), index lag + n_q - 1 + offset, where offset is the position of the
        first query minus that of the first key. One grid (height, width): (heads, 2 height - 1, 2 width - 1), index
        lag + side - 1 an axis.
        """
        device = next((t.device for t in (*self.parameters(), *self.buffers())), None)
        if isinstance(n_q, tuple):
            sides = [torch.arange(1 - side, side, device=device) for side in n_q]
            return self.at(torch.stack(torch.meshgrid(*sides, indexing="ij"), -1))
        n_k = n_q if n_k is None else n_k
        if isinstance(n_k, tuple) or n_q < 1 or n_k < 1:
            raise ValueError(f"lags takes two lengths of at least 1, or one tuple of sides; got {n_q}, {n_k}")
        return self.at(torch.arange(1 - n_q, n_k, device=device) - offset)

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        """One of three: a generator (consecutive integers), a table with integer codes (one grid, or integers of
        moderate span such as left-padded rows), or the pairs computed in each tile (times, wild integers)."""
        self.check_positions(q_pos, k_pos)
        n_q, n_k = q.shape[-2], k.shape[-2]
        offset = consecutive(q_pos, k_pos)
        if offset is not None and n_q and n_k:
            return {"lags": State(self.lags(n_q, n_k, offset), "lag")}
        table = self._table(q_pos, k_pos)
        return table if table is not None else super().prepare(q, k, q_pos, k_pos, content)

    def _table(self, q_pos: Positions, k_pos: Positions) -> States | None:
        if is_traced():  # its size depends on values
            return None
        if isinstance(q_pos, Grid) and isinstance(k_pos, Grid):
            return self._grid_table(q_pos.values, k_pos.values)
        if isinstance(q_pos, Index) and isinstance(k_pos, Index) and len(q_pos) and len(k_pos):
            low = int(k_pos.values.amin() - q_pos.values.amax())
            high = int(k_pos.values.amax() - q_pos.values.amin())
            if high - low < 8 * (len(q_pos) + len(k_pos)):
                lags = torch.arange(low, high + 1, device=q_pos.values.device)
                return _coded(self.at(lags), q_pos.values + low, k_pos.values)
        return None

    def _grid_table(self, q: Tensor, k: Tensor) -> States | None:
        """Cells (batch or 1, n, axes) as mixed-radix digits of one integer, where the box of their lags is small."""
        if not q.numel() or not k.numel():
            return None
        low = (k.amin(1) - q.amax(1)).amin(0)
        spans = ((k.amax(1) - q.amin(1)).amax(0) - low + 1).tolist()
        if math.prod(spans) >= 8 * (q.shape[1] + k.shape[1]):
            return None
        box = torch.meshgrid(*(torch.arange(span, device=q.device) for span in spans), indexing="ij")
        strides = torch.tensor([math.prod(spans[a + 1 :]) for a in range(len(spans))], device=q.device)
        codes = [(cells * strides).sum(-1) for cells in (q + low, k)]
        q_code, k_code = (code.squeeze(0) if code.shape[0] == 1 else code for code in codes)
        return _coded(self.at(torch.stack(box, -1) + low).flatten(1), q_code, k_code)

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        if "lags" in states:
            return toeplitz(states["lags"], tile.t_q).unsqueeze(0)
        if "table" in states:
            picked = states["table"][:, Index.between(states["q_code"], states["k_code"])]
            return picked.unsqueeze(0) if picked.dim() == 3 else picked.movedim(0, -3)
        return super().tile(q, k, states, tile)

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        if "lags" in states:
            return {"lags": diagonal_sums(grad.sum(0))}
        if "table" in states:
            table = states["table"]
            index = Index.between(states["q_code"], states["k_code"])
            grad = grad.sum(0) if index.dim() == 2 else grad.movedim(1, 0)
            return {"table": grad.new_zeros(table.shape).index_add_(1, index.flatten(), grad.flatten(1))}
        return None

    def _on_grid(self, values: Tensor) -> bool:
        return values.dim() == 3  # see positions.py: values with axes always carry a batch dimension


def _coded(table: Tensor, q_code: Tensor, k_code: Tensor) -> States:
    """table[:, k_code - q_code], one integer a token: what a grid and padded rows have in common."""
    return {
        "table": State(table, "whole"),
        "q_code": State(q_code, "query"),
        "k_code": State(k_code, "key"),
    }


class ContentBias(Pairwise):
    """Depends on q or k (or on the layer's input) as well as on the lag; may add to the values."""

    form = "ContentBias"
    mixers = ("softmax", "pointwise")
    reads_qk = True


class Transform(Encoding):
    """Acts on q and k separately, so that their product depends on the lag: q'.k' * scale is the final logit.

    `scale` is the factor that the kernel will apply, with the width that q had before; a transform that adds channels
    must divide what it adds by it. `codes` is whatever depends on the whole sequence (a centre, drawn codes,
    length-dependent frequencies): made once a stream or forward by `make_codes`, shared between layers by passing it.
    """

    form = "Transform"
    mixers = ("softmax", "kernelized", "pointwise")
    side: ClassVar[Literal["before", "after"]] = "after"  # of the feature map, in kernelised attention
    plain_denominator: ClassVar[bool] = False  # after the feature map: transforms the numerator only (RoFormer, eq. 19)

    def width_after(self, dim: int) -> int:
        """Width of what `encode_q` and `encode_k` return for vectors of width dim."""
        return dim

    def decay(self) -> Tensor | None:
        """Rates (heads,) >= 0, nats a token, without gradient, where kernelised attention is to multiply the weight of
        a pair by exp(-rate |lag|) besides; None: it is not. Growing and shrinking factors on q and k would say the
        same and leave the range of numbers."""
        return None

    def make_codes(self, q_pos: Positions, k_pos: Positions, generator: torch.Generator | None = None) -> Any:
        """What must be fixed for a whole sequence, None where nothing is."""
        return None

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        """(batch, heads, n_q, dim) to (batch, heads, n_q, dim')."""
        raise NotImplementedError

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        """(batch, kv_heads, n_k, dim) to (batch, kv_heads or heads, n_k, dim')."""
        raise NotImplementedError


class Absolute(Encoding):
    """Added to the input of the network; not relative: the baselines that every paper compares with."""

    form = "Absolute"
    mixers = ("input",)

    def add(self, x: Tensor, pos: Positions | None = None) -> Tensor:
        """x (batch, n, dim) plus the code of each position; None means 0..n-1."""
        raise NotImplementedError

    def _index(self, x: Tensor, pos: Positions | None) -> Tensor:
        position = Index.arange(x.shape[-2], device=x.device) if pos is None else pos
        self.check_positions(position)
        assert isinstance(position, Index | Times | Grid)
        if position.values.shape[position.axis] != x.shape[-2]:
            raise ValueError(f"{len(position)} positions for {x.shape[-2]} tokens")
        return position.values


def check_heads(heads: int) -> int:
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise ValueError(f"heads is a positive integer, got {heads!r}")
    return heads


def positive(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is a positive integer, got {value!r}")
    return value
