"""Which kernel serves a call. `auto` names one, with the reason; a kernel that cannot serve refuses in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from relpos.kernels import flex, fused, hankel, node, opaque, tiles
from relpos.kernels.call import Call, Refusal
from relpos.kernels.dense import dense
from relpos.kernels.triton import call as in_triton


def tiled(call: Call) -> Tensor:
    """Any term in O(n) memory: the view of one generator where that is all there is, generic tiles otherwise."""
    return hankel.hankel(call) if _by_view(call) else tiles.generic(call)


def _by_view(call: Call) -> bool:
    return call.q.device.type == "cpu" and hankel.refusal(call) is None


KERNELS: dict[str, Callable[[Call], Tensor]] = {
    "dense": dense,
    "fused": fused.fused,
    "tiled": tiled,
    "hankel": hankel.hankel,  # the two ways of "tiled", by name
    "generic": tiles.generic,
    "triton": in_triton.triton,
    "flex": flex.flex,
}
REFUSALS = {
    "fused": fused.refusal,
    "hankel": hankel.refusal,
    "triton": in_triton.refusal,
    "flex": flex.refusal,
}

SMALL = 2**16  # scores a head up to which the dense formula is quicker than tiles, and its n x n no larger than one


def pick(call: Call, kernel: str = "auto") -> tuple[str, str]:
    """Name of the kernel and the reason for it. ValueError for a name that is not known or cannot serve."""
    if kernel != "auto":
        if kernel not in KERNELS:
            raise ValueError(f"kernel is auto, {', '.join(KERNELS)}; got {kernel!r}")
        refuses = REFUSALS.get(kernel)
        why = None if refuses is None else refuses(call)
        if why is not None:
            raise Refusal(f'kernel "{kernel}" cannot serve this call: {why}; kernel="auto" picks one that can')
        return kernel, "asked for"
    _, _, n_q, n_k = call.shape
    if fused.refusal(call) is None:
        return "fused", "nothing is added to the scores, so torch's fused attention serves as it is"
    if node.wanted() and not node.known_small(n_q, n_k, SMALL):
        return "tiled", "a program that serves every length holds one node, which tiles when it runs"
    if n_q * n_k <= SMALL:
        return "dense", f"{n_q} x {n_k} scores a head fit into one tile, where the plain formula is the quickest"
    return "tiled", _why_tiled(call)


def _why_tiled(call: Call) -> str:
    if _by_view(call):
        what = "the order hides keys by lag alone" if call.term is None else "the bias depends on the lag alone"
        return f"{what}: a strided view of one generator rides in the fused kernel as its mask"
    why = hankel.refusal(call) or f"the view of a generator is for the CPU kernel, not for {call.q.device.type}"
    return f"generic tiles: {why}"


def run(call: Call, kernel: str = "auto") -> Tensor:
    """The output of the call, by the kernel that `pick` names. Empty calls are answered here."""
    name, _ = pick(call, kernel)
    if node.wanted() and name in ("tiled", "hankel", "generic"):
        return opaque.attend(call, name)
    if 0 in call.shape:
        nothing = sum(x[..., :0].sum() for x in (call.q, call.k, call.v))  # 0 in the graph, whatever they hold
        return call.q.new_zeros(*call.shape[:3], call.v.shape[-1]) + nothing
    return KERNELS[name](call)


def memory(call: Call, name: str) -> str:
    """What the kernel allocates beyond inputs and outputs, forward, in words and MiB."""
    batch, heads, n_q, n_k = call.shape
    size = 8 if call.q.element_size() == 8 else 4
    scores = batch * heads * n_q * n_k * size / 2**20
    if name == "dense":
        return f"O(n_q n_k): {scores:.1f} MiB for each of a few score tensors"
    lags = heads * (n_q + n_k) * size / 2**20
    view = name == "hankel" or (name == "tiled" and _by_view(call))
    if name == "triton":
        return f"O(n): {4 * lags:.2f} MiB for a table's gradient, where an n_q x n_k bias would take {scores:.0f} MiB"
    saved = "nothing" if name == "fused" else f"{lags:.2f} MiB of generator" if view else "a few tiles of some MiB"
    return f"O(n): {saved}, where an n_q x n_k bias would take {scores:.0f} MiB"


def notes(call: Call, name: str) -> Iterator[str]:
    """What else a user may want to know."""
    if call.q.element_size() < 4 and name not in ("fused", "triton"):
        yield f"{call.q.dtype} inputs are computed in float32 and rounded once at the end"
    if call.q.element_size() < 4 and name == "triton":
        yield f"products are of {call.q.dtype}, weights included; sums and softmax are float32"
    if name == "tiled" and call.toeplitz and call.q.device.type == "cpu" and not _by_view(call):
        yield "without dropout and with padding at the ends only, the faster view of the generator would serve"
    if name not in ("dense", "fused"):
        yield "the backward pass recomputes the weights; differentiating the gradient again raises"
