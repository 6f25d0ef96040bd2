"""Which kernel serves a call of linear attention, and the checks of its result that may call for a better one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from relpos.encodings.base import Tail
from relpos.kernels.call import Refusal
from relpos.kernels.linear.band import Band, banded
from relpos.kernels.linear.call import LinearCall, Sums
from relpos.kernels.linear.documents import Documents
from relpos.kernels.linear.line import Line, laid_out, line_of
from relpos.kernels.linear.split import noise, split
from relpos.kernels.linear.tiles import SAFE, dense, spread_of, tiled

SMALL = 2**16  # scores a head up to which one dense product is the quickest
FREE = 3072**2  # scores a head from which FFT is quicker than direct tiles; five times as many in causal attention,
# where tiles skip half of them and the FFT works on rectangles
TRUSTED = {torch.float32: 2e-5, torch.float64: 1e-10}  # estimated relative error of a denominator up to which the FFT
# is taken at its word, by the type of the inputs
CHUNK = 256  # rows that are searched for NaN at a time
CELLS = 2304**2  # the same for a grid, four times as many in causal attention


def band(call: LinearCall) -> Sums:
    """O(n): a band of direct sums, and running sums for the tail of the bias."""
    assert call.offset is not None
    tail = call.tail or Tail(0)
    near = call.lags_near.to(torch.promote_types(call.lags_near.dtype, call.q.dtype))
    top = _top(near)
    weights = Band((near - top).exp().to(call.q.dtype), tail.reach, tail.rates)
    real = None if bool((call.ones == 1).all()) else call.ones
    sums = banded(call.q, call.k, call.values, weights, call.phi, call.offset, call.causal, real)
    return Sums(*sums, top.to(call.q.dtype).view(1, -1, 1, 1))


def free(call: LinearCall, near: int | None = None) -> Sums:
    """O(n log n): a band of direct sums and FFT for the rest, for a bias that is free at every lag."""
    assert call.offset is not None and call.bias is not None
    lags = call.states["lags"].tensor
    lags = lags.to(torch.promote_types(lags.dtype, call.q.dtype))
    top = _top(lags)
    c = (lags - top).exp().to(call.q.dtype)
    total = split(call.q, call.k, call.both, c, call.phi, call.offset, call.causal, near)
    return Sums.of(total, top.to(call.q.dtype).view(1, -1, 1, 1))


def grid(call: LinearCall) -> Sums:
    """O(n log n) for the cells of a grid: their rows laid out on one line."""
    line = line_of(call)
    assert not isinstance(line, str)
    return free(laid_out(call, line), line.near).rows(line.queries)


def _top(lags: Tensor) -> Tensor:
    highest = lags.detach().amax(-1, keepdim=True)
    return highest.masked_fill(highest == -torch.inf, 0)


KERNELS: dict[str, Callable[[LinearCall], Sums]] = {
    "dense": dense,
    "tiled": tiled,
    "band": band,
    "split": free,
    "grid": grid,
}
DIRECT = ("dense", "tiled")  # take any bias and any mask as they are


def refusal(call: LinearCall, kernel: str) -> str | None:
    """Why a kernel cannot serve, None where it can."""
    if kernel in DIRECT:
        return None
    if kernel == "grid":
        line = line_of(call)
        return line if isinstance(line, str) else _too_wide(spread_of(call.states["table"].tensor))
    if call.offset is None:
        return "the weights do not depend on a lag of consecutive positions alone"
    if not call.ordered:
        return "packed documents or orders of their own need a mask in every tile"
    if kernel == "split":
        if call.bias is None:
            return "there is no bias; the band is exact without any FFT"
        return _too_wide(spread_of(call.states["lags"].tensor))
    if call.bias is None:
        return None
    if call.tail is None:
        return f"{type(call.bias).__name__} is free at every lag: it declares no tail"
    if call.tail.rates is not None and call.tail.rates.requires_grad:
        return "the rates of the tail are learned"
    return _too_wide(spread_of(call.lags_near))


def _too_wide(spread: float) -> str | None:
    if spread <= SAFE[torch.float64]:
        return None
    return f"the bias spans {spread:.0f} nats, more than one factor can keep in range"


def check_name(kernel: str) -> None:
    if kernel not in ("auto", *KERNELS):
        raise ValueError(f"kernel is auto, {', '.join(KERNELS)}; got {kernel!r}")


def pick(call: LinearCall, kernel: str = "auto") -> tuple[str, str]:
    """Name of the kernel and the reason for it. ValueError for a name that is not known or cannot serve."""
    check_name(kernel)
    documents = Documents.of(call) if apart(call, kernel) else None
    if documents is not None and documents.calls:
        name, reason = pick(max(documents.calls, key=lambda part: part.shape[2] * part.shape[3]), kernel)
        return name, f"each document by itself; {reason}"
    if kernel != "auto":
        why = refusal(call, kernel)
        if why is not None:
            raise Refusal(f'kernel "{kernel}" cannot serve this call: {why}; kernel="auto" picks one that can')
        return kernel, "asked for"
    _, _, n_q, n_k = call.shape
    if n_q * n_k <= SMALL:
        return "dense", f"{n_q} x {n_k} scores a head are one small product"
    if refusal(call, "band") is None:
        reach = 0 if call.tail is None else call.tail.reach
        if 4 * reach <= n_k:
            return "band", f"beyond {reach} tokens the weights are constant or geometric: running sums, no FFT"
    if n_q * n_k >= (5 * FREE if call.causal else FREE) and refusal(call, "split") is None:
        return "split", "the bias is free at every lag: direct near the query, FFT beyond"
    if n_q * n_k >= (4 * CELLS if call.causal else CELLS) and refusal(call, "grid") is None:
        return "grid", "the cells of a grid, their rows laid out on one line: direct near the query, FFT beyond"
    return "tiled", _why_tiled(call)


def _why_tiled(call: LinearCall) -> str:
    why = refusal(call, "split")
    if why is None or refusal(call, "band") is None:
        return "at this length direct tiles are quicker than any transform"
    return f"direct tiles: {why}"


def apart(call: LinearCall, kernel: str) -> bool:
    """Whether packed documents are to be taken one by one, where they can be."""
    large = kernel != "auto" or call.shape[2] * call.shape[3] > SMALL
    return call.mask.q_segments is not None and kernel not in DIRECT and large


def run(call: LinearCall, kernel: str = "auto") -> Sums:
    """The sums of the call, by the kernel that `pick` names; see LinearCall for what they are."""
    if 0 in call.shape:
        nothing = sum(x[..., :0].sum() for x in (call.q, call.k, call.values))
        empty = call.values.new_zeros(*call.shape[:3], call.values.shape[-1] + 1) + nothing
        return Sums.of(empty, call.values.new_zeros(1, 1, 1, 1))
    documents = Documents.of(call) if apart(call, kernel) else None
    if documents is not None:
        return documents.joined([run(part, kernel) for part in documents.calls])
    name, _ = pick(call, kernel)
    trusted = TRUSTED[call.q.dtype]
    call = _precise(call, name).at_once(twice=name == "dense")
    sums = _sound(call, name, trusted)
    hides = call.causal or call.mask.q_segments is not None
    if hides and not bool(torch.isfinite(sums.above.detach().sum() + sums.below.detach().sum())):
        return _unpoisoned(call, name, trusted, sums)
    return sums


def _precise(call: LinearCall, name: str) -> LinearCall:
    """In float64 where float32 cannot hold the exponentials of the bias."""
    wide = call.q.dtype != torch.float64 and spread_met(call, name) > SAFE[torch.float32]
    return call.to(torch.float64) if wide else call


@torch.no_grad()
def spread_met(call: LinearCall, name: str) -> float:
    """Nats between the largest and smallest bias that share one factor in this kernel; 0 where rows have their own."""
    if name in DIRECT or call.bias is None:
        return 0.0
    if name == "band":
        return spread_of(call.lags_near)
    return spread_of(call.states["lags" if name == "split" else "table"].tensor)


def _sound(call: LinearCall, name: str, trusted: float) -> Sums:
    """The sums, with better ones of the rows whose denominator rounding or underflow has eaten: none is ever made up.

    The FFT's rounding is in proportion to the largest far weight; where it could reach a row whose own sum is small,
    float64 takes over, and where that is not enough, direct tiles. A row whose near keys are hidden may have weights
    too small for a factor that all rows share; tiles give each row its own. Other rows keep every bit.
    """
    sums = KERNELS[name](call)
    if name in DIRECT or call.bias is None:
        return sums
    below = sums.below.detach()[..., 0].abs().masked_fill(~_sees(call), torch.inf)
    limits = torch.finfo(below.dtype)
    lost = below < limits.tiny / limits.eps
    if name != "band":
        lost |= _noise(call, below) > trusted
    if not bool(lost.any()):
        return sums
    wider = name != "band" and call.q.dtype != torch.float64
    return sums.but(lost.unsqueeze(-1), _sound(call.to(torch.float64), name, trusted) if wider else tiled(call))


@torch.no_grad()
def _sees(call: LinearCall) -> Tensor:
    """Which rows see a key that is not padding, (batch, heads, n_q), where visibility is a matter of the lag."""
    offset = call.mask.offset if call.offset is None else call.offset
    real = call.ones[..., 0] != 0
    if not call.causal:
        return real.any(-1, keepdim=True).expand(call.shape[:3])
    last = torch.arange(call.shape[2], device=real.device) + offset  # a query's own place among the keys
    counts = real.cumsum(-1)[..., last.clamp(0, call.shape[3] - 1)]
    return (counts > 0) & (last >= 0)


@torch.no_grad()
def _noise(call: LinearCall, below: Tensor) -> Tensor:
    """Estimated relative error of each row's denominator, whose size is `below`."""
    line = None if "lags" in call.states else line_of(call)
    if isinstance(line, Line):
        found = _noise_of(laid_out(call, line), line.near)[:, :, line.queries]
    else:
        found = _noise_of(call)
    return found / below


def _noise_of(call: LinearCall, near: int | None = None) -> Tensor:
    assert call.offset is not None
    lags = call.states["lags"].tensor.detach()
    c = (lags - _top(lags)).exp().to(call.q.dtype)
    return noise(call.q, call.k, c, call.phi, call.offset, call.causal, near)


def _unpoisoned(call: LinearCall, name: str, trusted: float, sums: Sums) -> Sums:
    """Where a key holds NaN or infinity, rows that do not see it are what they are without it, to the last bit.

    0 * NaN is NaN, so the key is taken out of the products, and the rows that see it are NaN by decree. A query that
    holds one is taken out too, or a gradient of 0 times its features would be NaN in every key.
    """
    bad = undefined(call, call.k) | ~torch.isfinite(call.values).all(-1)
    bad_q = undefined(call, call.q)
    if not bool(bad.any() | bad_q.any()):
        return sums
    sums = _sound(without(call, bad, bad_q), name, trusted)
    lost = call.mask.seeing(bad) | bad_q
    above, below = (x.masked_fill(lost.unsqueeze(-1), torch.nan) for x in (sums.above, sums.below))
    return Sums(above, below, sums.shift)


def without(call: LinearCall, bad: Tensor, bad_q: Tensor) -> LinearCall:
    """The call with zeros for some keys (batch, heads, n_k) and queries (batch, heads, n_q)."""
    hidden = bad.unsqueeze(-1)
    k, values, ones = (x.masked_fill(hidden, 0) for x in (call.k, call.values, call.ones))
    return replace(call, q=call.q.masked_fill(bad_q.unsqueeze(-1), 0), k=k, values=values, ones=ones)


@torch.no_grad()
def undefined(call: LinearCall, x: Tensor) -> Tensor:
    """Rows of x, (batch, heads, n), that are not finite or have no finite features."""
    parts = torch.split(x, CHUNK, 2)
    return ~torch.cat([torch.isfinite(part).all(-1) & torch.isfinite(call.phi(part)).all(-1) for part in parts], -1)
