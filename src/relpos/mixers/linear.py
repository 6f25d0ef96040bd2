"""`linear_attention`: attention with weights phi(q).phi(k), and any encoding that has a meaning in it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relpos.encodings.base import Bias, Encoding, Transform, consecutive
from relpos.encodings.registry import entry
from relpos.features import Features, unit
from relpos.kernels import node
from relpos.kernels.call import computing, exactly
from relpos.kernels.linear import choose, traced, words
from relpos.kernels.linear.call import LinearCall, Sums
from relpos.kernels.linear.decay import Decay
from relpos.kernels.linear.rows import Rows
from relpos.kernels.mask import Mask
from relpos.mixers.functional import Explanation, check_device, check_key_mask, check_tensors, mask_of, read_by, resolve
from relpos.positions import Grid, Index, Position, Positions, as_positions


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding | str | None = None,
    *,
    features: Features,
    q_pos: object = None,
    k_pos: object = None,
    causal: bool = False,
    key_mask: Tensor | None = None,
    segments: Tensor | tuple[Tensor, Tensor] | None = None,
    temperature: float = 1.0,
    prefix: int = 0,
    codes: Any = None,
    generator: torch.Generator | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Kernelised attention with a relative positional encoding, in O(n) memory whatever the number of features.

        out_i = sum_j c_ij phi(q_i).phi(k_j) v_j / sum_j c_ij phi(q_i).phi(k_j),     c = exp(bias of the lag j - i)

    q (batch, heads, n_q, dim); k, v (batch, kv_heads, n_k, dim or dim_v), kv_heads divides heads.
    Returns (batch, heads, n_q, dim_v) in the dtype of q; sums run in at least float32. A row that may see no key gives
    0. A denominator is never clamped or replaced: trigonometric features may bring it near 0, which is theirs.

    encoding     a Bias (multiplies the weights by its exponential), a Transform (acts before or after the features, as
                 its `side` says), a name, or None. Encodings that depend on content are refused
    features     phi, see relpos.features. Where it normalises, q and k are brought to unit length first and weights
                 stand for exp(q.k / temperature), Luo et al. 2021, Algorithm 1; otherwise for its own kernel
    temperature  divides q.k; 1 is the paper's
    causal, key_mask, segments, q_pos, k_pos   as in `attention`. The future is never touched: NaN there changes nothing
    prefix       the first so many tokens (CLS) stand outside the encoding: pairs with them have bias 0, positions are
                 counted (and given) for the others, so that a grid of patches may have a CLS token before it
    codes        what a Transform keeps for a whole sequence; default: made here, with `generator`
    kernel       "auto", "dense", "tiled" (direct), "band" (O(n), for a bias that becomes constant or geometric),
                 "split" (FFT, for one that is free at every lag) or "grid" (FFT, for the cells of a grid);
                 `explain(..., features=...)` says which and why. Packed documents are taken one by one

    Raises ValueError or TypeError for anything that does not fit. The gradient is defined once.
    Source: Luo et al. 2021 (NPRF), eq. 6, 10-13, Algorithm 1. Their code was not published; the FFT over the whole
    sequence that they describe loses sharp biases in float32, see `kernels/linear/split.py`.
    """
    with exactly(q):
        asked = request(
            q, k, v, encoding, features=features, q_pos=q_pos, k_pos=k_pos, causal=causal, key_mask=key_mask,
            segments=segments, temperature=temperature, prefix=prefix, codes=codes, generator=generator,
        )  # fmt: skip
        return asked.output(kernel).to(q.dtype)


def explained(
    q: Tensor, k: Tensor, v: Tensor, encoding: Encoding | str | None, kernel: str, **options: Any
) -> Explanation:
    """What `explain` says of linear attention."""
    asked = request(q, k, v, encoding, **options)
    main, features, prefix = asked.main, options["features"], options.get("prefix", 0)
    name, reason = choose.pick(main, kernel)
    notes = list(words.notes(main, name))
    if q.element_size() < 4:
        notes.append(f"{q.dtype} inputs are computed in float32 and rounded once at the end")
    if k.shape[1] != q.shape[1]:
        notes.append(f"{k.shape[1]} key heads are expanded to {q.shape[1]} query heads before the kernel")
    if asked.denominator is not None:
        served = choose.pick(asked.denominator, kernel)[0]
        notes.append(f"the denominator is a sum of its own, of features that are not transformed: kernel {served}")
    if asked.beside is not None:
        notes.append(f"{prefix} leading tokens stand outside the encoding, in sums of their own")
    if not features.positive:
        notes.append("weights may be negative, and a denominator near 0: it is neither clamped nor replaced")
    return Explanation(name, reason, words.memory(main, name), tuple(notes))


class Request(NamedTuple):
    """What one call asks of the kernels, and how their sums become the output.

    main         sums over the tokens after the prefix
    denominator  sums of its own, where the numerator alone is transformed
    beside       the same queries against the prefix keys
    above        the prefix queries against all keys
    """

    main: LinearCall
    denominator: LinearCall | None = None
    beside: LinearCall | None = None
    above: LinearCall | None = None

    def output(self, kernel: str) -> Tensor:
        sums = traced.run(self.main, kernel)
        if self.denominator is not None:
            rest = traced.run(self.denominator, kernel)
            sums = Sums(sums.above * (sums.shift - rest.shift).exp(), rest.below, rest.shift)
        if self.beside is not None:
            sums = sums.plus(traced.run(self.beside))
        out = ratio(*sums[:2])
        return out if self.above is None else torch.cat([ratio(*traced.run(self.above)[:2]), out], 2)


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above (.., width) / below (.., 1), which may overwrite `above`; 0 where below is: only where no key is seen, and
    then above is 0 too."""
    below = below.masked_fill(below == 0, 1)
    if node.wanted():
        return above / below
    if not (above.requires_grad or below.requires_grad):
        return above.div_(below)
    out: Tensor = _Ratio.apply(above, below)  # type: ignore[no-untyped-call]
    return out


class _Ratio(torch.autograd.Function):
    """A quotient that keeps its result for the gradient and not the numerator, which it overwrites where that is no
    view of something wider: the kernels' sums are read by nobody else, and a fresh tensor of that size costs a page
    fault every 4 KiB, which at a length of 16,384 is more than the division."""

    @staticmethod
    def forward(ctx: Any, above: Tensor, below: Tensor) -> Tensor:
        if above._is_view():
            out = above / below
        else:
            out = above.div_(below)
            ctx.mark_dirty(above)
        ctx.save_for_backward(out, below)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        out, below = ctx.saved_tensors
        return grad / below, -torch.linalg.vecdot(grad, out).unsqueeze(-1) / below


def request(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding | str | None = None,
    *,
    features: Features,
    q_pos: object = None,
    k_pos: object = None,
    causal: bool = False,
    key_mask: Tensor | None = None,
    segments: Tensor | tuple[Tensor, Tensor] | None = None,
    temperature: float = 1.0,
    prefix: int = 0,
    codes: Any = None,
    generator: torch.Generator | None = None,
) -> Request:
    """The calls of the kernels for these arguments, which are checked here."""
    batch, heads, n_q, n_k, dim = check_tensors(q, k, v)
    check_features(features, temperature, q)
    own = _own_prefix(prefix, n_q, n_k, segments is not None)  # queries that belong to the prefix
    encoding = resolve(encoding, heads, width_met(encoding, dim, features), causal, "kernelized")
    grid = encoding is not None and Grid in encoding.takes and Index not in encoding.takes
    m_q, m_k = n_q - own, n_k - prefix
    queries = as_positions(_beyond(q_pos, n_q, own), m_q, m_k - m_q, "q_pos", q.device, batch, grid)
    keys = as_positions(_beyond(k_pos, n_k, prefix), m_k, 0, "k_pos", q.device, batch, grid)
    real = check_key_mask(key_mask, batch, n_k, q.device)
    rest = None if real is None else real[:, prefix:]
    mask = mask_of(batch, m_q, m_k, queries, keys, causal, None, rest, segments, None, None, q.device)
    queries, keys = read_by(encoding, queries, keys, q)
    if real is not None:
        k, v = (x.masked_fill(~real[:, None, :, None], 0) for x in (k, v))
    k, v = (x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    dtype = computing(q.dtype)
    x_q, x_k = q.to(dtype), k.to(dtype)
    values = v.to(dtype)
    ones = values.new_ones(1, 1, n_k, 1) if real is None else real[:, None, :, None].to(dtype)
    scale = features.scale(dim) / temperature
    phi = Rows(features)
    if not isinstance(encoding, Transform):
        phi, scale = Rows(features, scale), 1.0
    elif features.normalize:
        x_q, x_k = unit(x_q), unit(x_k)
    main, denominator = _calls(
        x_q[:, :, own:], x_k[:, :, prefix:], values[:, :, prefix:], ones[:, :, prefix:], encoding, phi, mask, queries,
        keys, scale, codes, generator,
    )  # fmt: skip
    if not prefix:
        return Request(main, denominator)
    if isinstance(encoding, Transform) and encoding.side == "before":
        raise ValueError(f"{type(encoding).__name__} acts before the features, where a prefix has no meaning; prefix=0")
    x_q, x_k = _times(x_q, scale), _times(x_k, scale)
    first = Mask(m_q, prefix, 0, key_mask=None if real is None else real[:, :prefix])
    top = Mask(own, n_k, n_k - n_q, right=0 if causal else None, key_mask=real)
    k_first, values_first, ones_first = (x[:, :, :prefix] for x in (x_k, values, ones))
    beside = LinearCall(x_q[:, :, own:], k_first, values_first, ones_first, phi, first, offset=0)
    above = LinearCall(x_q[:, :, :own], x_k, values, ones, phi, top, offset=n_k - n_q)
    return Request(main, denominator, beside, above if own else None)


def _calls(
    x_q: Tensor,
    x_k: Tensor,
    values: Tensor,
    ones: Tensor,
    encoding: Encoding | None,
    phi: Rows,
    mask: Mask,
    queries: Positions,
    keys: Positions,
    scale: float,
    codes: Any,
    generator: torch.Generator | None,
) -> tuple[LinearCall, LinearCall | None]:
    """The sums over tokens that have positions, and those of the denominator where they are others."""
    lagged = mask.offset if mask.q_order is None else None
    if not isinstance(encoding, Transform):
        call = LinearCall(x_q, x_k, values, ones, phi, mask, offset=lagged)
        return (call if encoding is None else _biased(call, encoding, queries, keys)), None
    codes = encoding.make_codes(queries, keys, generator) if codes is None else codes
    if encoding.side == "before":
        x_q = _times(encoding.encode_q(x_q, queries, scale, codes), scale)
        x_k = _times(encoding.encode_k(x_k, keys, scale, codes), scale)
        return LinearCall(x_q, x_k, values, ones, phi, mask, offset=lagged), None
    plain = LinearCall(_times(x_q, scale), _times(x_k, scale), values, ones, phi, mask, offset=lagged)
    assert phi.features is not None
    phi_q = encoding.encode_q(phi.features(plain.q), queries, 1.0, codes)
    phi_k = encoding.encode_k(phi.features(plain.k), keys, 1.0, codes)
    call = LinearCall(phi_q, phi_k, values, ones, Rows(None), mask, offset=lagged)
    rates = encoding.decay()
    if rates is not None:
        call, plain = (_biased(one, Decay(rates), queries, keys) for one in (call, plain))
    return call, replace(plain, values=values[..., :0]) if encoding.plain_denominator else None


def _biased(call: LinearCall, encoding: Encoding, queries: Positions, keys: Positions) -> LinearCall:
    assert isinstance(encoding, Bias)
    states = encoding.prepare(call.q, call.k, queries, keys)
    offset = consecutive(queries, keys) if call.offset is not None else None
    offset = offset if offset == call.offset else None
    tail = None if offset is None else encoding.tail()
    near = None if tail is None else encoding.at(torch.arange(-tail.reach, tail.reach + 1, device=call.q.device))
    return replace(call, bias=encoding, states=states, offset=offset, tail=tail, near=near)


def _times(x: Tensor, scale: float) -> Tensor:
    """Queries and keys share the factor of their product."""
    return x if scale == 1 else x * math.sqrt(scale)


def width_met(encoding: object, dim: int, features: Features) -> int:
    """Width of the vectors that an encoding named or given here will meet: features where it acts after them."""
    cls = entry(encoding).load() if isinstance(encoding, str) else type(encoding)
    after = issubclass(cls, Transform) and cls.side == "after"
    return features.width if after and getattr(features, "dim", None) is not None else dim


def check_features(features: object, temperature: float, q: Tensor) -> None:
    if not isinstance(features, Features):
        raise TypeError(
            f"features is one of relpos.features, such as PRF({q.shape[-1]}, 16), got {type(features).__name__}"
        )
    check_device(features, q)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature is a finite number above 0, got {temperature!r}")


def _own_prefix(prefix: int, n_q: int, n_k: int, packed: bool) -> int:
    """How many of the first queries belong to the prefix; queries sit at the end of the keys."""
    if not isinstance(prefix, int) or isinstance(prefix, bool) or not 0 <= prefix <= n_k:
        raise ValueError(f"prefix is a number of leading tokens, 0..{n_k}, got {prefix!r}")
    if prefix and packed:
        raise ValueError("packed documents have no common prefix; give prefix or segments, not both")
    if prefix and n_q > n_k:
        raise ValueError(f"with a prefix there are as many keys as queries or more, got {n_k} and {n_q}")
    return min(max(prefix - (n_k - n_q), 0), n_q) if prefix else 0


def _beyond(positions: object, n: int, prefix: int) -> object:
    """Positions of the tokens after the prefix; those of all n tokens are accepted too."""
    if not prefix or not isinstance(positions, Tensor | Position):
        return positions
    values = positions.values if isinstance(positions, Position) else positions
    axis = positions.axis if isinstance(positions, Position) else (-1 if values.dim() < 2 else values.dim() - 2)
    if values.shape[axis] != n:
        return positions
    cut = values.narrow(axis, prefix, n - prefix)
    return type(positions)(cut) if isinstance(positions, Position) else cut
