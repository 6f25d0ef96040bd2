"""`attention` and `explain`: checks what it is given, lets the encoding speak, and hands one call to one kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Absolute, Encoding, Pairwise, Transform, consecutive
from relpos.kernels import choose
from relpos.kernels.call import exactly, under_autocast
from relpos.kernels.dropout import Dropout
from relpos.kernels.mask import Mask
from relpos.mixers.request import Content, Digest, Request
from relpos.positions import Grid, Index, Positions, as_positions, is_traced

Window = int | tuple[int | None, int | None]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding | str | None = None,
    *,
    q_pos: object = None,
    k_pos: object = None,
    causal: bool = False,
    key_mask: Tensor | None = None,
    segments: Tensor | tuple[Tensor, Tensor] | None = None,
    window: Window | None = None,
    scale: float | None = None,
    content: Content = None,
    codes: Any = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    q_order: Tensor | None = None,
    k_order: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Exact softmax attention with a relative positional encoding, in memory linear in the lengths.

        out_i = sum_j softmax_j(scale q_i . k_j + term(i, j)) (v_j + value term),   lag = key position - query position

    q (batch, heads, n_q, dim); k, v (batch, kv_heads, n_k, dim or dim_v), kv_heads divides heads.
    Returns (batch, heads, n_q, dim_v) in the dtype of q. A row that may see no key gives 0, and 0 gradient.

    encoding       an Encoding, the name of one that takes only heads or dim, or None
    q_pos, k_pos   positions (see relpos.positions); default: keys 0..n_k-1, queries at their end
    causal         a query sees keys of its own order or earlier: integer positions where given, else tensor order
                   aligned at the end; q_order, k_order (n,) or (batch, n) override it
    key_mask       bool (batch, n_k), True = real. Masked keys, values and content are never read, whatever they hold
    segments       integers (batch, n_k), or a pair for queries and keys: packed documents do not see each other
    window         w or (left, right): visible lags of the order are -left..right, inclusive; None is no bound
    scale          factor of q.k only; default 1/sqrt(dim), or what the method was defined with (T5: 1)
    content        the layer's input (batch, n_k, model_dim), for encodings that read it (FoX)
    codes          what a Transform keeps for a whole sequence (see Transform.make_codes); default: made here
    dropout        probability of zeroing a weight; same generator state, same result in every kernel
    kernel         "auto", "dense" (the O(n^2) definition), "tiled" (any term, O(n)), "fused" (torch's own, for
                   transforms), and on CUDA "triton" or "flex" (biases of consecutive lags); `explain` says what auto
                   picks and why

    Tokens that hold NaN or infinity in q, k, v or content make NaN of the rows that see them (or are theirs) and of no
    others: the past, other documents and what lies outside the window keep every bit, and a loss over them every
    gradient, that of bad tokens being 0. FoX, which sums over all tokens, keeps them to rounding. Rows that are NaN
    have no gradient. While tokens are finite this costs one sum over the output and a look at it, which is a
    synchronisation on CUDA; under torch.compile, where nobody may look, a pass over q, k and v instead. Under
    torch.vmap and in exported programs the kernel is taken at its word.

    Autocast has no say here: scores, positions and tables are computed in at least float32 whatever it is set to, and
    the output has the dtype of q. Under it q, k and v may differ in dtype, and are brought to its own, as in torch's
    scaled_dot_product_attention.
    Raises ValueError or TypeError for anything that does not fit, before any work is done. The gradient is defined
    once: differentiating it again raises, but under kernel="dense", which auto takes for small calls.
    """
    q, k, v = under_autocast(q, k, v)
    with exactly(q):
        request = request_of(
            q, k, v, encoding, q_pos=q_pos, k_pos=k_pos, causal=causal, key_mask=key_mask, segments=segments,
            window=window, scale=scale, content=content, codes=codes, dropout=dropout, generator=generator,
            q_order=q_order, k_order=k_order,
        )  # fmt: skip
        return request.run(kernel)


@dataclass(frozen=True)
class Explanation:
    """Which kernel serves a call, why, and what it costs."""

    kernel: str
    reason: str
    memory: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"kernel: {self.kernel}", f"why:    {self.reason}", f"memory: {self.memory}"]
        return "\n".join(lines + [f"note:   {note}" for note in self.notes])


def explain(
    q: Tensor, k: Tensor, v: Tensor, encoding: Encoding | str | None = None, *, kernel: str = "auto", **options: Any
) -> Explanation:
    """Says which kernel `attention` would run for these arguments and why, without running it.

    Takes the arguments of `attention`, or with features=.. those of `linear_attention`. Raises what they would raise.
    """
    generator = options.get("generator")
    if generator is not None:
        options["generator"] = torch.Generator(generator.device).set_state(generator.get_state())
    with exactly(q), torch.random.fork_rng(devices=[]):  # asking draws no random numbers
        if "features" in options:
            from relpos.mixers.linear import explained

            return explained(q, k, v, encoding, kernel, **options)
        call = request_of(q, k, v, encoding, **options).call()
    name, reason = choose.pick(call, kernel)
    notes = list(choose.notes(call, name))
    if k.shape[1] != q.shape[1] and call.k.data_ptr() != k.data_ptr():
        notes.append(f"{k.shape[1]} key heads are expanded to {q.shape[1]} query heads before the kernel")
    return Explanation(name, reason, choose.memory(call, name), tuple(notes))


def request_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding | str | None = None,
    *,
    q_pos: object = None,
    k_pos: object = None,
    causal: bool = False,
    key_mask: Tensor | None = None,
    segments: Tensor | tuple[Tensor, Tensor] | None = None,
    window: Window | None = None,
    scale: float | None = None,
    content: Content = None,
    codes: Any = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    q_order: Tensor | None = None,
    k_order: Tensor | None = None,
    mixer: str = "softmax",
) -> Request:
    batch, heads, n_q, n_k, dim = check_tensors(q, k, v)
    encoding = resolve(encoding, heads, dim, causal, mixer)
    grid = encoding is not None and Grid in encoding.takes and Index not in encoding.takes
    queries = as_positions(q_pos, n_q, n_k - n_q, "q_pos", q.device, batch, grid)
    keys = as_positions(k_pos, n_k, 0, "k_pos", q.device, batch, grid)
    mask = mask_of(batch, n_q, n_k, queries, keys, causal, window, key_mask, segments, q_order, k_order, q.device)
    queries, keys = read_by(encoding, queries, keys, q)
    factor = score_factor(scale, encoding, dim, mixer)
    if mask.key_mask is not None:
        hidden = ~mask.key_mask[:, None, :, None]
        k, v = k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
    if isinstance(encoding, Transform):
        codes = encoding.make_codes(queries, keys, generator) if codes is None else codes
    content = _content(encoding, content, mask.key_mask, batch, n_k)
    drop = None if dropout == 0 else Dropout(rate(dropout), _seed(generator))
    return Request(q, k, v, encoding, queries, keys, mask, factor, content, codes, drop)


def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int, int, int]:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a tensor (batch, heads, n, dim), got {type(x).__name__}")
        if x.dim() != 4:
            raise ValueError(f"{name} has shape (batch, heads, n, dim), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"{name} is floating point, got {x.dtype}")
        if x.dtype != q.dtype or x.device != q.device:
            raise TypeError(
                f"q, k and v have one dtype and device; q is {q.dtype} on {q.device}, {name} {x.dtype} on {x.device}"
            )
    batch, heads, n_q, dim = q.shape
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k and v agree in batch, heads and n; got {tuple(k.shape)} and {tuple(v.shape)}")
    if k.shape[0] != batch or k.shape[3] != dim:
        raise ValueError(f"q and k agree in batch and dim; got {tuple(q.shape)} and {tuple(k.shape)}")
    if heads < 1 or k.shape[1] < 1 or heads % k.shape[1]:
        raise ValueError(f"the key heads divide the query heads; got {k.shape[1]} and {heads}")
    if q.device.type == "meta":
        raise ValueError("q, k and v are on the meta device, which holds no values to attend to; give real tensors")
    return batch, heads, n_q, k.shape[2], dim


def read_by(encoding: Encoding | None, queries: Positions, keys: Positions, q: Tensor) -> tuple[Positions, Positions]:
    """What the encoding reads of the positions; TypeError for a kind that it cannot, ValueError on another device."""
    if encoding is None:
        return queries, keys
    queries, keys = encoding.select(queries), encoding.select(keys)
    encoding.check_positions(queries, keys)
    check_device(encoding.holder(), q)
    return queries, keys


def check_device(module: nn.Module, q: Tensor, name: str = "q") -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device != q.device:
            raise ValueError(
                f"{type(module).__name__} is on {tensor.device} and {name} on {q.device}; move it there with "
                f".to({name}.device)"
            )


def resolve(
    encoding: Encoding | str | None, heads: int, dim: int, causal: bool, mixer: str = "softmax"
) -> Pairwise | Transform | None:
    """The encoding that is meant, checked against the mixer; dim is the width that it will meet."""
    if isinstance(encoding, str):
        from relpos.encodings.registry import fitted

        encoding = fitted(encoding, {"heads": heads, "dim": dim, "causal": causal})
        if any(True for _ in encoding.parameters()):
            raise ValueError(
                f"{type(encoding).__name__} has parameters: build it once with relpos.encoding(...), keep it in your "
                "module, and pass the object; a name would make fresh parameters at every call"
            )
    if encoding is None:
        return None
    if isinstance(encoding, Absolute):
        raise TypeError(
            f"{type(encoding).__name__} is absolute: it acts on the network's input, x = encoding.add(x), or through "
            "relpos.SelfAttention and relpos.models.Transformer; attention itself takes relative encodings"
        )
    if not isinstance(encoding, Pairwise | Transform):
        raise TypeError(f"encoding is a relpos Encoding, a name or None, got {type(encoding).__name__}")
    if mixer not in encoding.mixers:
        takes = " or ".join(encoding.mixers) or "none of the built-in mixers"
        raise TypeError(f"{type(encoding).__name__} has no meaning in {mixer} attention; it works in {takes}")
    if encoding.causal_only and not causal:
        raise ValueError(
            f"{type(encoding).__name__} is defined for keys at or before the query only; pass causal=True, or take a "
            "two-sided bias such as ALiBi(heads, symmetric=True)"
        )
    owned = getattr(encoding, "heads", None)
    if isinstance(owned, int) and owned != heads:
        raise ValueError(f"{type(encoding).__name__} was built for {owned} heads, q has {heads}")
    return encoding


def score_factor(scale: float | None, encoding: Encoding | None, dim: int, mixer: str = "softmax") -> float:
    """The factor of q.k: the caller's, else the method's own, else 1/sqrt(dim), which in pointwise attention is 1."""
    if scale is not None:
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise ValueError(f"scale is a finite number or None, got {scale!r}")
        return float(scale)
    own = None if encoding is None else encoding.score_scale(dim)
    return own if own is not None else 1.0 if mixer == "pointwise" else max(dim, 1) ** -0.5


def rate(dropout: float) -> float:
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1), got {dropout!r}")
    return float(dropout)


def _seed(generator: torch.Generator | None) -> int | Tensor:
    device = "cpu" if generator is None else generator.device
    drawn = torch.randint(2**31 - 1, (), generator=generator, device=device)
    return drawn if is_traced() else int(drawn)


def _content(encoding: Encoding | None, content: Content, key_mask: Tensor | None, batch: int, n_k: int) -> Content:
    """What the encoding reads of it, None where it reads nothing; zeros where padding is hidden."""
    if not isinstance(encoding, Pairwise) or not encoding.needs_content:
        return None
    if content is None:
        raise ValueError(
            f"{type(encoding).__name__} reads the layer's input: pass content=x, (batch, n_k, model_dim); "
            "relpos.SelfAttention does it for you"
        )
    if isinstance(content, Digest):
        return content
    if not isinstance(content, Tensor) or content.dim() != 3 or content.shape[:2] != (batch, n_k):
        got = tuple(content.shape) if isinstance(content, Tensor) else type(content).__name__
        raise ValueError(f"content has shape (batch, n_k, model_dim) = ({batch}, {n_k}, ..), got {got}")
    return content if key_mask is None else content.masked_fill(~key_mask.unsqueeze(-1), 0)


def mask_of(
    batch: int,
    n_q: int,
    n_k: int,
    queries: Positions,
    keys: Positions,
    causal: bool,
    window: Window | None,
    key_mask: Tensor | None,
    segments: Tensor | tuple[Tensor, Tensor] | None,
    q_order: Tensor | None,
    k_order: Tensor | None,
    device: torch.device,
) -> Mask:
    left, right = _window(window)
    if causal:
        right = 0 if right is None else min(right, 0)
    offset: int | None = n_k - n_q
    if q_order is not None or k_order is not None:
        q_order, k_order = (_order(x, n, batch, device) for x, n in ((q_order, n_q), (k_order, n_k)))
        offset = consecutive(Index(q_order), Index(k_order))
    elif isinstance(q_index := _index(queries), Index) and isinstance(k_index := _index(keys), Index):
        offset = consecutive(q_index, k_index) if n_q and n_k else offset
        q_order, k_order = q_index.values, k_index.values
    if offset is not None:  # bounds that hide nothing are no bounds: a single query at the end is not "causal"
        right = None if right is None or offset + right >= n_k - 1 else right
        left = None if left is None or offset + n_q - 1 - left <= 0 else left
    if offset is not None or (left is None and right is None):
        q_order = k_order = None
    q_segments, k_segments = _segments(segments, batch, n_q, n_k, device)
    real = check_key_mask(key_mask, batch, n_k, device)
    return Mask(n_q, n_k, offset or 0, left, right, q_order, k_order, real, q_segments, k_segments)


def _index(positions: Positions) -> object:
    """The channel that orders tokens: the positions themselves, or the one called index."""
    return positions.get("index") if isinstance(positions, Mapping) else positions


def _window(window: Window | None) -> tuple[int | None, int | None]:
    sides = window if isinstance(window, tuple) else (window, window)
    if len(sides) != 2 or any(s is not None and (not isinstance(s, int) or s < 0) for s in sides):
        raise ValueError(f"window is an integer >= 0 or a pair (left, right) of such or None, got {window!r}")
    return sides


def _order(order: Tensor | None, n: int, batch: int, device: torch.device) -> Tensor:
    if order is None:
        raise ValueError("q_order and k_order go together: give both")
    if not _integers(order) or order.shape not in ((n,), (1, n), (batch, n)):
        raise ValueError(f"an order is an integer tensor ({n},) or ({batch}, {n}), got {_described(order)}")
    return order.to(device)


def _integers(x: object) -> bool:
    return isinstance(x, Tensor) and not (x.is_floating_point() or x.is_complex())


def _described(x: object) -> str:
    return f"{x.dtype} {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else type(x).__name__


def check_key_mask(key_mask: Tensor | None, batch: int, n_k: int, device: torch.device) -> Tensor | None:
    if key_mask is None:
        return None
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool or key_mask.device != device:
        raise TypeError(
            f"key_mask is a boolean tensor on {device} with True = real, got {_described(key_mask)}; use mask.bool()"
        )
    if key_mask.shape != (batch, n_k):
        raise ValueError(f"key_mask has shape (batch, n_k) = ({batch}, {n_k}), got {tuple(key_mask.shape)}")
    return None if not is_traced() and bool(key_mask.all()) else key_mask


def _segments(
    segments: Tensor | tuple[Tensor, Tensor] | None, batch: int, n_q: int, n_k: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    if segments is None:
        return None, None
    if isinstance(segments, Tensor):
        if n_q > n_k:
            raise ValueError("with more queries than keys, give segments as a pair (of queries, of keys)")
        segments = (segments[..., max(segments.shape[-1] - n_q, 0) :], segments)
    if not isinstance(segments, tuple) or len(segments) != 2:
        raise TypeError(f"segments is an integer tensor ({batch}, {n_k}) or a pair of them, got {_described(segments)}")
    pair = []
    for given, n, what in zip(segments, (n_q, n_k), ("queries", "keys"), strict=True):
        given = given.expand(batch, -1) if _integers(given) and given.dim() == 1 else given
        if not _integers(given) or given.shape != (batch, n) or given.device != device:
            raise ValueError(f"segments of {what} are integers ({batch}, {n}) on {device}, got {_described(given)}")
        pair.append(given)
    return pair[0], pair[1]
