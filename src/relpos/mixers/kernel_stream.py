"""Decoding of kernelised attention: one object a layer, whose cost a token does not grow where the encoding allows."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.base import Bias, Encoding, Tail, Transform
from relpos.features import Features, unit
from relpos.kernels.cached import PairSums, Rows
from relpos.kernels.call import computing, exactly
from relpos.kernels.linear.decay import Decay
from relpos.kernels.online import BandSums, FreeSums, Logs, online_sums
from relpos.mixers.functional import check_device, check_key_mask, check_tensors, resolve
from relpos.mixers.linear import ratio
from relpos.mixers.order import Order
from relpos.positions import Position, Positions, as_positions


class KernelStream:
    """Causal kernelised attention one token (or chunk) after the other; `step` equals the rows of the parallel result.

        out_i = sum_{j <= i} c_ij phi(q_i).phi(k_j) v_j / sum_{j <= i} c_ij phi(q_i).phi(k_j),   c = exp(bias)

    What is kept, and what a step costs with m features and values of width w (see `kernels/online.py`):
    * no bias, a Transform, or a bias that becomes a straight line beyond a reach R (its `tail`: T5, ALiBi, clipped
      tables): the last rows and one m x w sum a head. O(R (m + w) + m w) a token at any length
    * any other bias of the lag: all rows; read directly up to `online.CROSSOVER` tokens, beyond in O(m w log^2 n) a
      token on average by FFTs of completed blocks, O(n log^2 n) for n tokens. A reach beyond the crossover counts here
    * a bias at positions that are not consecutive (gaps, times, cells): all rows, read directly, O(n (m + w))

    A chunk goes the same way in pieces, so a prompt of n tokens costs what n tokens cost, in large matrix products.
    In gradient mode everything can be differentiated; biases without a tail are then read directly. Without, the bias
    is looked up once: `reset` after its parameters change.

    encoding      a Bias, a Transform or None; features, temperature: as in `linear_attention`
    codes         what a Transform fixes for the whole sequence; default: made at the first step, for its positions
    kernel        "auto", or "direct", which keeps all rows and reads them
    """

    def __init__(
        self,
        encoding: Encoding | None = None,
        *,
        features: Features,
        temperature: float = 1.0,
        codes: Any = None,
        kernel: str = "auto",
    ) -> None:
        if not isinstance(encoding, Encoding | None):
            raise TypeError(f"encoding is a relpos Encoding or None, got {type(encoding).__name__}")
        if not isinstance(features, Features):
            raise TypeError(f"features is one of relpos.features, such as PRF(dim, 16), got {type(features).__name__}")
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise ValueError(f"temperature is a finite number above 0, got {temperature!r}")
        if kernel not in ("auto", "direct"):
            raise ValueError(f'kernel is "auto" or "direct", got {kernel!r}')
        self.encoding = resolve(encoding, getattr(encoding, "heads", 1), 0, True, "kernelized")
        self.features, self.temperature = features, float(temperature)
        self.codes, self.kernel = codes, kernel
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the codes."""
        self.length = 0
        self._like: tuple[object, ...] = ()
        self._order = Order()
        self._sums: BandSums | FreeSums | None = None
        self._below: BandSums | FreeSums | None = None  # the denominator's, where the numerator alone is transformed
        self._pairs: PairSums | None = None
        self._places: Positions | None = None  # of all tokens, where the bias is one of pairs

    def step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        position: object = None,
        key_mask: Tensor | None = None,
        content: Tensor | None = None,
    ) -> Tensor:
        """Adds t tokens and returns their outputs, (batch, heads, t, dim_v), in the dtype of q.

        q (batch, heads, t, dim); k, v (batch, kv_heads, t, ..); key_mask (batch, t), True = real, the others are never
        read. position: of the new tokens, default: they follow on; integers rise from token to token, and a bias with a
        tail asks for consecutive ones. What stands at padding tokens does not matter there, and their own rows of the
        output mean nothing. content is not read.
        """
        batch, heads, t, t_k, _ = check_tensors(q, k, v)
        if t != t_k:
            raise ValueError(f"step takes as many queries as keys, got {tuple(q.shape)} and {tuple(k.shape)}")
        check_key_mask(key_mask, batch, t, q.device)
        like = self._check_like(q, k, v)
        if t == 0:
            return v.new_zeros(batch, heads, 0, v.shape[-1])
        new = as_positions(position, t, self.length, "position", q.device, batch)
        if self.encoding is not None:
            new = self.encoding.select(new)
            self.encoding.check_positions(new)
        order = self._order
        if position is not None or order.given:
            order = order.then(new, self.length, key_mask, batch)
        with exactly(q):
            out = self._output(q, k, v, new, order, key_mask)
        self.length, self._order, self._like = self.length + t, order, like
        return out.to(q.dtype)

    def reorder(self, rows: Tensor) -> None:
        """Keeps the given batch rows in this order, as beam search needs."""
        for held in (self._sums, self._below, self._pairs):
            if held is not None:
                held.reorder(rows)
        self._order = self._order.select(rows)
        if isinstance(self._places, Mapping):
            self._places = {name: _selected(part, rows) for name, part in self._places.items()}
        elif self._places is not None:
            self._places = _selected(self._places, rows)
        self._like = (len(rows), *self._like[1:])

    def _check_like(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[object, ...]:
        """Every step brings the batch, heads, widths and dtype of the first; and the heads are the encoding's."""
        like = (q.shape[0], q.shape[1], k.shape[1], q.shape[3], v.shape[3], q.dtype)
        if self._like and like != self._like:
            raise ValueError(
                "this step's batch, heads, kv_heads, dim, dim_v and dtype are "
                f"{like}, the stream holds {self._like}; start a new stream (or reset) for another batch"
            )
        if not self._like:
            resolve(self.encoding, q.shape[1], q.shape[3], True, "kernelized")
            for module in (self.features, self.encoding):
                if module is not None:
                    check_device(module, q)
        return like

    def _output(self, q: Tensor, k: Tensor, v: Tensor, new: Positions, order: Order, key_mask: Tensor | None) -> Tensor:
        hidden = None if key_mask is None else ~key_mask[:, None, :, None]
        if hidden is not None:
            k, v = k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
        fq, fk, plain = self._features(q, k, new)
        x = torch.cat([v, v.new_ones(*v.shape[:3], 1)], -1).to(fq.dtype)
        x = x if x.shape[1] == fk.shape[1] else x.repeat_interleave(fk.shape[1] // x.shape[1], 1)
        x = x if hidden is None else x.masked_fill(hidden, 0)
        fk = fk if hidden is None else fk.masked_fill(hidden, 0)
        if isinstance(self.encoding, Bias) and (self._pairs is not None or not order.consecutive):
            y = self._paired(fq, fk, x, new)
            return ratio(y[..., :-1], y[..., -1:])
        if self._sums is None:
            self._sums = self._make(q.device)
        sums = [(self._sums, fq, fk, x)]
        if plain is not None:
            self._below = self._make(q.device) if self._below is None else self._below
            gk = plain[1] if hidden is None else plain[1].masked_fill(hidden, 0)
            sums.append((self._below, plain[0], gk, _ones(x, gk)))
        for held, *_ in sums:
            held.masked |= hidden is not None
        y, *below = (held.step(*parts) for held, *parts in sums)
        return ratio(y[..., :-1], below[0] if below else y[..., -1:])

    def _features(self, q: Tensor, k: Tensor, new: Positions) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """What is summed of queries and of keys; and of the denominator, where that is something else."""
        encoding, dtype = self.encoding, computing(q.dtype)
        scale = self.features.scale(q.shape[-1]) / self.temperature
        q, k = (unit(x.to(dtype)) if self.features.normalize else x.to(dtype) for x in (q, k))
        if isinstance(encoding, Transform):
            self.codes = encoding.make_codes(new, new) if self.codes is None else self.codes
            if encoding.side == "before":
                q, k = encoding.encode_q(q, new, scale, self.codes), encoding.encode_k(k, new, scale, self.codes)
        fq, fk = self.features(q * math.sqrt(scale)), self.features(k * math.sqrt(scale))
        if not isinstance(encoding, Transform) or encoding.side == "before":
            return fq, fk, None
        turned = encoding.encode_q(fq, new, 1.0, self.codes), encoding.encode_k(fk, new, 1.0, self.codes)
        return *turned, ((fq, fk) if encoding.plain_denominator else None)

    def _make(self, device: torch.device) -> BandSums | FreeSums:
        logs, tail = _generator(self.encoding, device)
        return FreeSums(logs, crossover=sys.maxsize) if self.kernel == "direct" else online_sums(logs, tail)

    def _paired(self, fq: Tensor, fk: Tensor, x: Tensor, new: Positions) -> Tensor:
        """Sums where the bias is not one of lags: from here on, or from the start."""
        assert isinstance(self.encoding, Bias)
        places = self._places
        if self._pairs is None and self.length:
            assert self._sums is not None
            if len(self._sums.rows) < self.length:
                raise ValueError(
                    f"{type(self.encoding).__name__} ends as a straight line, so tokens at consecutive positions were "
                    'summed up; positions with gaps need all of them: build the stream with kernel="direct"'
                )
            places = self._order.places(self.length, fq.device)
        places = new if places is None else _joined(places, new)
        bias = self.encoding.bias(new, places)
        bias = bias if bias.dim() == 4 else bias.unsqueeze(0)
        held = [] if self._pairs is None and not self.length else [self._held().view()[1]]
        real = torch.cat([z[..., -1] for z in (*held, x.detach())], -1)[:, :1, None] > 0
        n, t = real.shape[-1], fq.shape[2]
        seen = torch.ones(t, n, dtype=torch.bool, device=fq.device).tril(n - t)
        if self._pairs is None:
            self._pairs = PairSums(self._held() if self.length else None)
        self._places, self._sums = places, None
        return self._pairs.step(fq, fk, x, bias.to(fq.dtype).masked_fill(~(seen & real), -math.inf))

    def _held(self) -> Rows:
        held = self._sums if self._pairs is None else self._pairs
        assert held is not None
        return held.rows


def _generator(encoding: Encoding | None, device: torch.device) -> tuple[Logs, Tail | None]:
    """The bias by tokens back, and how it ends."""
    rates = encoding.decay() if isinstance(encoding, Transform) else None
    bias = encoding if rates is None else Decay(rates)
    if not isinstance(bias, Bias):
        return lambda n: torch.zeros(1, n, device=device), Tail(0)
    return lambda n: bias.lags(1, n, n - 1).flip(-1), bias.tail()


def _ones(x: Tensor, fk: Tensor) -> Tensor:
    """The last column of x, one a key head of fk."""
    return x[:, :: x.shape[1] // fk.shape[1], :, -1:]


def _selected(position: Position, rows: Tensor) -> Position:
    return type(position)(position.values.index_select(0, rows)) if position.batched else position


def _joined(held: Positions, new: Positions) -> Positions:
    if isinstance(held, Mapping) or isinstance(new, Mapping):
        if not (isinstance(held, Mapping) and isinstance(new, Mapping)) or held.keys() != new.keys():
            raise TypeError("the positions of every step have the same names; start a new stream for others")
        return {name: _one_after(part, new[name]) for name, part in held.items()}
    return _one_after(held, new)


def _one_after(held: Position, new: Position) -> Position:
    if type(held) is not type(new):
        raise TypeError(f"the stream holds {type(held).__name__} positions, this step brings {type(new).__name__}")
    rows = max(p.values.shape[0] if p.batched else 1 for p in (held, new))
    values = [p.values.expand(rows, *p.values.shape[p.values.dim() + p.axis :]) for p in (held, new)]
    return type(new)(torch.cat(values, new.axis))
