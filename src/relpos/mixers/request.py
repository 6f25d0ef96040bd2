"""One checked call of attention: what the encoding makes of it, and what tokens that hold NaN may not do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relpos.encodings.base import Pairwise, States, Transform
from relpos.kernels import choose, opaque
from relpos.kernels.call import Call, computing
from relpos.kernels.dropout import Dropout
from relpos.kernels.mask import Mask
from relpos.positions import Positions, is_exporting, is_traced


class Digest(NamedTuple):
    """What an encoding has already kept of the layer's input (see Pairwise.digest), one row a key."""

    tensor: Tensor


Content = Tensor | Digest | None


@dataclass(frozen=True)
class Request:
    """q, k, v and content as they were given, but for zeros where padding is hidden; everything else is settled."""

    q: Tensor
    k: Tensor
    v: Tensor
    encoding: Pairwise | Transform | None
    q_pos: Positions
    k_pos: Positions
    mask: Mask
    scale: float
    content: Content = None  # None where the encoding does not read it
    codes: Any = None
    dropout: Dropout | None = None
    kernels: Callable[[Call, str], Tensor] = choose.run  # what computes a call, by the name of a kernel

    def call(self) -> Call:
        """For the kernels: a transform has acted on q and k, a term has prepared its states, key heads are expanded."""
        q, k, v, heads = self.q, self.k, self.v, self.q.shape[1]
        if isinstance(self.encoding, Transform):
            q = self.encoding.encode_q(q, self.q_pos, self.scale, self.codes)
            k = self.encoding.encode_k(k, self.k_pos, self.scale, self.codes)
        k, v = (x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
        term = self.encoding if isinstance(self.encoding, Pairwise) else None
        states: States = {}
        if term is not None:
            content = self.content
            kept = content.tensor if isinstance(content, Digest) else None if content is None else term.digest(content)
            states = term.prepare(q, k, self.q_pos, self.k_pos, kept)
            check_value_width(term, q, v)
        return Call(q, k, v, self.scale, self.mask, term, states, self.q_pos, self.k_pos, self.dropout)

    def run(self, kernel: str = "auto") -> Tensor:
        """The output. Finite tokens pay one sum over it, which says whether any of them could be otherwise."""
        if is_traced():
            return self._traced(kernel)
        call = self.call()
        out = self.kernels(call, kernel)
        nothing_to_save = self.mask.full and not out.requires_grad  # every query sees every key
        return out if nothing_to_save or _sound(out) else self._unpoisoned(call, kernel, out)

    def _traced(self, kernel: str) -> Tensor:
        """The same without a look at the values: bad tokens are always taken out, in O(n), whether there are any or
        not. An exported program, which is for inference in plain operators, takes them as they come."""
        if is_exporting() or (self.mask.full and not torch.is_grad_enabled()):
            return self.kernels(self.call(), kernel)
        given = self._finite().call()
        call = replace(given, q=cleaned(given.q), k=cleaned(given.k))
        bad, bad_q = self._bad(given)
        lost = opaque.lost(self.mask, bad, bad_q)
        return self.kernels(call, kernel).masked_fill(lost.unsqueeze(-1), torch.nan)

    def _bad(self, call: Call) -> tuple[Tensor, Tensor]:
        """Keys (batch, heads, n_k) and queries (batch, heads, n_q) that are not finite, as given or as encoded."""
        heads = call.q.shape[1]
        bad = undefined(self.k) | undefined(self.v)
        bad = bad.repeat_interleave(heads // bad.shape[1], 1) | undefined(call.k)
        content = self.content.tensor if isinstance(self.content, Digest) else self.content
        if content is not None:
            bad |= undefined(content.flatten(2)).unsqueeze(1)
        return bad, undefined(self.q) | undefined(call.q)

    def _finite(self) -> Request:
        """With zeros in the place of tokens that are not finite."""
        content = self.content.tensor if isinstance(self.content, Digest) else self.content
        if content is not None:
            content = cleaned(content.flatten(2)).view(content.shape)
        return replace(
            self,
            q=cleaned(self.q),
            k=cleaned(self.k),
            v=cleaned(self.v),
            content=Digest(content) if isinstance(self.content, Digest) and content is not None else content,
        )

    def _unpoisoned(self, call: Call, kernel: str, out: Tensor) -> Tensor:
        """Where a token holds NaN or infinity, rows that do not see it are what they are without it.

        0 * NaN is NaN, so such tokens are taken out before the encoding acts, for its gradient too, and the rows that
        see one are NaN by decree; they have no gradient. Scores may overflow: only what is given or encoded counts.
        """
        bad, bad_q = self._bad(call)
        if not bool(bad.any() | bad_q.any()):
            return out
        clean = self._finite().call()
        clean = replace(clean, q=cleaned(clean.q), k=cleaned(clean.k))
        lost = self.mask.seeing(bad) | (bad_q & self.mask.seeing(torch.ones_like(bad)))
        return self.kernels(clean, kernel).masked_fill(lost.unsqueeze(-1), torch.nan)


def check_value_width(term: Pairwise, q: Tensor, v: Tensor) -> None:
    wide = term.value_width(q.shape[-1])
    if wide is not None and v.shape[-1] != wide:
        raise ValueError(
            f"{type(term).__name__} adds vectors of width {wide} to the values, v has width {v.shape[-1]}; "
            "build it without terms of values, or project v to that width"
        )


def _sound(out: Tensor) -> bool:
    """Whether the output is finite everywhere; a sum that overflows is no harm, it only makes the caller look."""
    try:
        return bool(torch.isfinite(out.detach().sum(dtype=computing(out.dtype))))
    except RuntimeError:  # torch.vmap has no single answer; there the kernel is taken at its word
        return True


@torch.no_grad()
def undefined(x: Tensor) -> Tensor:
    """Rows of x that are not finite."""
    return ~torch.isfinite(x).all(-1)


def cleaned(x: Tensor) -> Tensor:
    return x.masked_fill(undefined(x).unsqueeze(-1), 0)
