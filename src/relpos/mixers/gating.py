"""Gates that mix the tokens of a window, without queries and keys: that of PosMLP, by lag alone, and gMLP's."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Bias, Encoding
from relpos.encodings.bias.gqpe import GQPE
from relpos.encodings.bias.lrpe import LRPE
from relpos.encodings.reference import find
from relpos.encodings.registry import entry, fitted
from relpos.encodings.tables import resized_cells
from relpos.encodings.window import Sides, said, sides_of
from relpos.kernels.call import exactly
from relpos.mixers.folded import Folded
from relpos.mixers.functional import check_device
from relpos.mixers.window_mix import by_matrix, window_mix


class _Gate(nn.Module):
    """Half of the channels, mixed over the tokens, times the other half."""

    def __init__(self, dim: int, window: Sides, split: bool = True) -> None:
        super().__init__()
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1 or (split and dim % 2):
            raise ValueError(f"dim, the number of channels that come in, is even, got {dim!r}: half of them gate")
        self.dim, self.window, self.split = dim, sides_of("window", window), split
        self.mixed = dim // 2 if split else dim

    def mix(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Weights of another window are told from other mistakes, and `resize` is named."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        given, own = state_dict.get(prefix + "bias"), getattr(self, "bias", None)
        if isinstance(given, Tensor) and own is not None and given.shape != own.shape:
            rest[-1].append(
                f"{prefix}bias is of a window of {given.numel()} tokens, this {type(self).__name__} of {own.numel()} "
                f"({said(self.window)}). Load the weights at their own size and call resize({self.window})"
            )

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[-1] != self.dim or x.shape[-2] != math.prod(self.window):
            raise ValueError(
                f"x is (.., {math.prod(self.window)}, {self.dim}): the tokens of the window {said(self.window)} in "
                f"row-major order; got {tuple(x.shape)}"
            )
        u, v = x.chunk(2, -1) if self.split else (x, x)
        return self.mix(u) * v


class PoSGU(_Gate):
    """The positional spatial gating unit of PosMLP: x (.., n, dim) to (.., n, dim / 2), n the tokens of one window.

        u, v = halves of x;     u'_m,c = sum_n weight_g(m, n) u_n,c + b_m;     out = u' v;      g = c mod groups

    dim         channels that come in; without `split` u = v = x, and as many go out
    window      (height, width), an integer for a square, or (length,) for a line; row-major inside
    encoding    a Bias ("lrpe", "gqpe", or any other) with as many heads as there are groups; by name it is built with
                groups, window and encoding_options
    groups      1 by default for a name; divides the channels that are mixed. Groups are interleaved, as released
    token_bias  b (n,), zero at first: the only parameter that knows an absolute place
    free        besides, a free matrix (n, n) for all groups, as the released code has it with pos_only=False
    method      as in `relpos.window_mix`

    Without gradients a unit keeps matrices of up to 8 MiB until its encoding changes or `train` is called.
    No normalisation inside, unlike gMLP's unit. Parameters do not grow with n (GQPE) or like n (LRPE) but for b.
    Source: Wang et al. 2022 (PosMLP), formulas of its released code, whose weights `from_reference` takes.
    """

    def __init__(
        self,
        dim: int,
        window: Sides,
        encoding: Encoding | str = "lrpe",
        *,
        groups: int | None = None,
        encoding_options: Mapping[str, Any] | None = None,
        token_bias: bool = True,
        free: bool = False,
        split: bool = True,
        method: str = "auto",
    ) -> None:
        super().__init__(dim, window, split)
        if isinstance(encoding, str):
            count = groups or 1
            context = {"groups": count, "heads": count}
            own = dict(encoding_options or {})
            if "window" in entry(encoding).defaults:
                own.setdefault("window", self.window)
            encoding = fitted(encoding, context, own)
        elif encoding_options:
            raise ValueError("encoding_options belong to an encoding given by name")
        if not isinstance(encoding, Bias):
            raise TypeError(f"a gate takes a Bias, such as lrpe or gqpe; got {type(encoding).__name__}")
        if groups is not None and encoding.heads != groups:
            raise ValueError(f"the encoding has {encoding.heads} groups, not {groups}")
        if self.mixed % encoding.heads:
            raise ValueError(f"groups divide the {self.mixed} channels that are mixed, got {encoding.heads}")
        own_window = getattr(encoding, "window", self.window)
        if tuple(own_window) != self.window:
            raise ValueError(
                f"the encoding's window is {said(tuple(own_window))}, the unit's {said(self.window)}; use "
                f"encoding.resize({self.window})"
            )
        n = math.prod(self.window)
        self.encoding, self.groups, self.method = encoding, encoding.heads, method
        self._folded = Folded()
        self.bias = nn.Parameter(torch.zeros(n)) if token_bias else None
        self.free = nn.Parameter(nn.init.trunc_normal_(torch.empty(n, n), std=1e-6)) if free else None
        self.gain: Tensor | None
        self.register_buffer("gain", None)  # a resized unit has one

    @classmethod
    def from_reference(
        cls,
        arrays: Mapping[str, Any],
        dim: int,
        window: Sides,
        *,
        symmetric: bool = True,
        generalized: bool = True,
        split: bool = True,
    ) -> PoSGU:
        """From released weights of one unit: its table or its centres and spreads, token_proj_n_bias, and
        token_proj_n_weights where there is a free matrix. symmetric, generalized as in `GQPE.from_reference`."""
        bias, free = find(arrays, "token_proj_n_bias", "tokbias"), find(arrays, "token_proj_n_weights", "extra_weight")
        encoding: Bias
        if find(arrays, "window_relative_position_bias_table", "table") is not None:
            encoding = LRPE.from_reference(arrays, window)
        else:
            encoding = GQPE.from_reference(arrays, window, symmetric, generalized)
        own = cls(dim, window, encoding, token_bias=bias is not None, free=free is not None, split=split)
        own = own.to(next(encoding.parameters()))
        with torch.no_grad():
            for mine, theirs in ((own.bias, bias), (own.free, free)):
                if mine is not None and theirs is not None:
                    mine.copy_(theirs.reshape(mine.shape))
        return own

    def mix(self, u: Tensor) -> Tensor:
        w = u if self.gain is None else u * self.gain
        if u.numel() and self._folded.serves(self.encoding, self.window, self.method):
            check_device(self.encoding, u, "x")
            with exactly(u):
                found = by_matrix(self._folded.of(self.encoding, self.window, w.dtype), w, self.bias)
        else:
            found = window_mix(w, self.encoding, self.window, bias=self.bias, method=self.method)
        return found if self.free is None else found + self.free.to(u.dtype) @ u

    def train(self, mode: bool = True) -> PoSGU:
        self._folded.forget()
        super().train(mode)
        return self

    def resize(self, window: Sides) -> PoSGU:
        """A new unit for another window: the encoding's own `resize`, token biases interpolated like pixels (bicubic).

        Weights that are not normalised are summed over more tokens or fewer then, so they are multiplied by the ratio
        of the two, kept as the buffer `gain`. ValueError for a free matrix besides, which belongs to one size.
        """
        if self.free is not None:
            raise ValueError("a free matrix belongs to one window and cannot be resized")
        other = copy.deepcopy(self)
        other.window = sides_of("window", window, axes=len(self.window))
        if not self.encoding.normalized and other.window != self.window:
            ratio = math.prod(self.window) / math.prod(other.window)
            other.gain = next(self.parameters()).new_tensor(ratio * (1 if self.gain is None else float(self.gain)))
        resize = getattr(self.encoding, "resize", None)
        other.encoding = copy.deepcopy(self.encoding) if resize is None else resize(other.window)
        if self.bias is not None:
            other.bias = nn.Parameter(resized_cells(self.bias[:, None], self.window, other.window)[:, 0])
        return other

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if isinstance(state_dict.get(prefix + "gain"), Tensor) and self.gain is None:
            self.gain = torch.empty_like(state_dict[prefix + "gain"])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, window={said(self.window)}, groups={self.groups}"


class SGU(_Gate):
    """The spatial gating unit of gMLP: x (.., n, dim) to (.., n, dim / 2) with a free matrix over the tokens.

        u, v = halves of x;      out = (W LayerNorm(u) + b) v

    weight (n, n) uniform within 1e-3 / n of 0 and bias (n,) 1, so that the unit starts as v alone (section 2.1). timm's
    version draws the weight with a standard deviation of 1e-6; the copy in the code of PosMLP never calls its own
    initialisation. One matrix serves all channels, and belongs to one size: see `resize`.
    Source: Liu et al. 2021, "Pay Attention to MLPs", eq. 2-3.
    """

    def __init__(self, dim: int, window: Sides, *, norm: bool = True) -> None:
        super().__init__(dim, window)
        n = math.prod(self.window)
        self.norm = nn.LayerNorm(self.mixed) if norm else None
        self.weight = nn.Parameter(torch.empty(n, n).uniform_(-1e-3 / n, 1e-3 / n))
        self.bias = nn.Parameter(torch.ones(n))

    def mix(self, u: Tensor) -> Tensor:
        u = u if self.norm is None else self.norm(u)
        return nn.functional.linear(u.transpose(-1, -2), self.weight, self.bias).transpose(-1, -2)

    def resize(self, window: Sides) -> SGU:
        """A new unit for another window, its matrix interpolated like a picture of pictures (bicubic) over queries and
        over keys, and multiplied by the ratio of the numbers of tokens. The paper has no such thing: a free matrix
        knows absolute places only, and this is the best that can be made of it."""
        other = copy.deepcopy(self)
        other.window = sides_of("window", window, axes=len(self.window))

        def stretched(table: Tensor) -> Tensor:
            return resized_cells(table, self.window, other.window)

        weight = stretched(stretched(self.weight).T.contiguous()).T
        ratio = 1.0 if other.window == self.window else math.prod(self.window) / math.prod(other.window)
        other.weight = nn.Parameter(weight.contiguous() * ratio)
        other.bias = nn.Parameter(stretched(self.bias[:, None])[:, 0])
        return other

    def extra_repr(self) -> str:
        return f"dim={self.dim}, window={said(self.window)}"
