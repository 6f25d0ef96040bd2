"""Decoding: one object a layer keeps keys and values, and answers new queries as the parallel causal call would."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.base import Absolute, Encoding, Pairwise, Transform
from relpos.kernels.call import exactly
from relpos.mixers.functional import Window, attention, check_key_mask, check_tensors, score_factor
from relpos.mixers.pointwise import check_length, pointwise_attention
from relpos.mixers.request import Digest
from relpos.positions import Position, Positions, as_positions


class Stream:
    """Softmax attention one token (or chunk) after the other; `step` equals the rows of the parallel causal result.

    Keeps keys (already transformed, where the encoding is a Transform), values, positions, the padding mask and what a
    content-reading encoding needs of each token, in buffers that double when full (in gradient mode: in fresh copies,
    so that every step can be differentiated). A step costs one read of the cache and one row of the encoding's term;
    nothing depends on the number of steps otherwise.

    window     as in `attention`; keys that no later query can see stay in the cache
    codes      what a Transform fixes for the whole sequence; default: made at the first step, for its positions.
               Frequencies that depend on the length (dynamic NTK, LongRoPE) must be fixed for the final length here,
               because keys are cached after the transform.
    mixer      "softmax", or "pointwise", which needs the length that its weights are divided by
    """

    def __init__(
        self,
        encoding: Encoding | None = None,
        *,
        scale: float | None = None,
        window: Window | None = None,
        codes: Any = None,
        kernel: str = "auto",
        mixer: str = "softmax",
        length: int | None = None,
    ) -> None:
        if mixer not in ("softmax", "pointwise"):
            raise ValueError(f'mixer is "softmax" or "pointwise", got {mixer!r}; KernelStream serves "kernelized"')
        if mixer == "pointwise" and check_length(length) is None:
            raise ValueError("weights divided by the number of keys change as keys come; fix length for a stream")
        self.mixer, self._divisor = mixer, length
        if isinstance(encoding, Absolute):
            raise TypeError(f"{type(encoding).__name__} acts on the input; a stream takes relative encodings or None")
        if not isinstance(encoding, Encoding | None):
            raise TypeError(f"encoding is a relpos Encoding or None, got {type(encoding).__name__}")
        self.encoding, self.scale, self.window, self.codes, self.kernel = encoding, scale, window, codes, kernel
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the codes."""
        self.length = 0
        self._padded = False
        self._buffers: dict[str, tuple[Tensor, int]] = {}

    def step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        position: object = None,
        query: object = None,
        key_mask: Tensor | None = None,
        content: Tensor | None = None,
    ) -> Tensor:
        """Adds t tokens and returns their outputs, (batch, heads, t, dim_v).

        q (batch, heads, t, dim); k, v (batch, kv_heads, t, ..); position: of the new tokens, default: they follow on;
        query: where queries ask from, if not from there (the time of the request, which no cached key has);
        key_mask (batch, t), True = real; content (batch, t, model_dim) for encodings that read the layer's input.
        """
        batch, _, t, t_k, dim = check_tensors(q, k, v)
        if t != t_k:
            raise ValueError(f"step takes as many queries as keys, got {tuple(q.shape)} and {tuple(k.shape)}")
        check_key_mask(key_mask, batch, t, q.device)
        new = as_positions(position, t, self.length, "position", q.device, batch)
        asked = new if query is None else as_positions(query, t, self.length, "query", q.device, batch)
        encoding, factor = self.encoding, score_factor(self.scale, self.encoding, dim, self.mixer)
        if isinstance(encoding, Transform):
            read, from_there = encoding.select(new), encoding.select(asked)
            encoding.check_positions(read, from_there)
            if self.codes is None:
                self.codes = encoding.make_codes(from_there, read)
            with exactly(q):
                q, k = (
                    encoding.encode_q(q, from_there, factor, self.codes),
                    encoding.encode_k(k, read, factor, self.codes),
                )
        keys, values = self._append("k", k, 2), self._append("v", v, 2)
        real = torch.ones(batch, t, dtype=torch.bool, device=q.device) if key_mask is None else key_mask
        seen = self._append("mask", real, 1)
        padded = self._padded or key_mask is not None
        places = self._positions(new)
        digest = None
        if isinstance(encoding, Pairwise) and encoding.needs_content:
            if content is None or content.shape[:2] != (batch, t):
                raise ValueError(
                    f"{type(encoding).__name__} reads the layer's input: pass content=x, ({batch}, {t}, ..)"
                )
            content = content if key_mask is None else content.masked_fill(~key_mask.unsqueeze(-1), 0)
            with exactly(q):
                digest = Digest(self._append("content", encoding.digest(content), 1))
        attend = attention if self.mixer == "softmax" else partial(pointwise_attention, length=self._divisor)
        out = attend(
            q, keys, values, encoding if isinstance(encoding, Pairwise) else None,
            q_pos=asked, k_pos=places, causal=True, key_mask=seen if padded else None, window=self.window,
            scale=factor, content=digest, kernel=self.kernel,
        )  # fmt: skip
        self.length, self._padded = self.length + t, padded  # last: a step that raises leaves no trace
        return out

    def reorder(self, rows: Tensor) -> None:
        """Keeps the given batch rows in this order, as beam search needs."""
        for name, (buffer, axis) in self._buffers.items():
            shared = name.startswith("position") and (axis == 0 or buffer.shape[0] == 1)  # one row for the whole batch
            if not shared:
                self._buffers[name] = (buffer.index_select(0, rows), axis)

    def _positions(self, new: Positions) -> Positions:
        if isinstance(new, Position):
            axis = new.values.dim() + new.axis
            return type(new)(self._append("position", new.values, axis))
        return {
            name: type(p)(self._append(f"position.{name}", p.values, p.values.dim() + p.axis))
            for name, p in new.items()
        }

    def _append(self, name: str, x: Tensor, axis: int) -> Tensor:
        """Writes x behind what the named buffer holds and returns the filled part, a view."""
        stop = self.length + x.shape[axis]
        held = self._buffers.get(name) if self.length else None
        if held is not None:
            self._fits(name, held[0], x, axis)
        if torch.is_grad_enabled():  # earlier steps' graphs may hold views of the buffer: never write in place
            whole = x.clone() if held is None else torch.cat([held[0].narrow(axis, 0, self.length), x], axis)
            self._buffers[name] = (whole, axis)
            return whole
        if held is None or held[0].shape[axis] < stop:
            shape = list(x.shape)
            shape[axis] = max(stop, 64, 2 * self.length)
            grown = x.new_zeros(shape)
            if held is not None:
                grown.narrow(axis, 0, self.length).copy_(held[0].narrow(axis, 0, self.length))
            held = (grown, axis)
            self._buffers[name] = held
        held[0].narrow(axis, self.length, x.shape[axis]).copy_(x.detach())
        return held[0].narrow(axis, 0, stop)

    def _fits(self, name: str, held: Tensor, x: Tensor, axis: int) -> None:
        same = [a == b for i, (a, b) in enumerate(zip(held.shape, x.shape)) if i != axis]
        if not all(same) or held.dim() != x.dim() or held.dtype != x.dtype:
            raise ValueError(
                f"this step's {name} is {tuple(x.shape)} {x.dtype}, the stream holds {tuple(held.shape)} {held.dtype}; "
                "start a new stream (or reset) for another batch"
            )
