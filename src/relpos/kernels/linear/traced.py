"""Sums of linear attention for whoever rewrites programs, as one node; for everybody else, those of `choose`."""

from __future__ import annotations

import torch
from torch import Tensor

from relpos.encodings.base import Bias, Tail
from relpos.features import Features
from relpos.kernels import opaque
from relpos.kernels.call import Refusal
from relpos.kernels.linear import choose
from relpos.kernels.linear.call import LinearCall, Sums
from relpos.kernels.linear.decay import Decay
from relpos.kernels.linear.rows import Rows
from relpos.kernels.linear.tiles import dense
from relpos.kernels.node import JOBS, Given, Job, compute, known_small, transformed, wanted
from relpos.positions import is_exporting

KIND = "linear_attention"


def run(call: LinearCall, kernel: str = "auto") -> Sums:
    """As `choose.run`. Where values may not be looked at, one node looks at them when the program runs; the plain
    formula is itself in the program where it is asked for, and where a call is known to be small."""
    if not wanted():
        return choose.run(call, kernel)
    choose.check_name(kernel)
    if kernel == "dense" or (kernel == "auto" and known_small(*call.shape[2:], choose.SMALL)):
        return _plain(call)
    if is_exporting():
        raise Refusal(
            "the sums of linear attention are Python code, which an exported program cannot hold; "
            'kernel="dense" exports its definition, n_q x n_k, in plain operators'
        )
    return Sums(*compute(KIND, _given(call, kernel)))


def _plain(call: LinearCall) -> Sums:
    """The formula, without a look at the values: where some keys are hidden, bad tokens are always taken out."""
    hides = call.causal or call.mask.q_segments is not None
    if not hides or is_exporting() or transformed():
        return dense(call)
    clean, lost = _cleaned(call)
    sums = dense(clean)
    above, below = (x.masked_fill(lost.unsqueeze(-1), torch.nan) for x in (sums.above, sums.below))
    return Sums(above, below, sums.shift)


def _cleaned(call: LinearCall) -> tuple[LinearCall, Tensor]:
    """The call with zeros for tokens that are not finite, and the queries (batch, heads, n_q) that see one."""
    bad = choose.undefined(call, call.k) | ~torch.isfinite(call.values).all(-1)
    bad_q = choose.undefined(call, call.q)
    return choose.without(call, bad, bad_q), opaque.lost(call.mask, bad, bad_q)


def _given(call: LinearCall, kernel: str) -> Given:
    given = Given({"q": call.q, "k": call.k, "values": call.values, "ones": call.ones}, words={"kernel": kernel})
    given.mask(call.mask)
    given.states(call.states)
    given.module("phi", call.phi.features)
    given.tensors.update({f"phi.{name}": x for name, x in Rows.held_by(call.phi.features).items()})
    if call.phi.scale is not None:
        given.factors["scale"] = call.phi.scale
    if call.offset is not None:
        given.numbers["place"] = call.offset
    if isinstance(call.bias, Decay):
        given.tensors["decay"] = call.bias.rates
    else:
        given.module("bias", call.bias)
    if call.tail is not None and not (call.tail.rates is not None and call.tail.rates.requires_grad):
        given.numbers["reach"] = call.tail.reach
        given.tensors["near"] = call.lags_near
        if call.tail.rates is not None:
            given.tensors["rates"] = call.tail.rates
    return given


def _call(given: Given) -> LinearCall:
    tensors, numbers = given.tensors, given.numbers
    held = {name[4:]: x for name, x in tensors.items() if name.startswith("phi.")}
    phi = Rows(given.module_of("phi", Features), given.factors.get("scale"), held)
    bias: Bias | None = Decay(tensors["decay"]) if "decay" in tensors else given.module_of("bias", Bias)
    tail = Tail(numbers["reach"], tensors.get("rates")) if "reach" in numbers else None
    return LinearCall(
        tensors["q"], tensors["k"], tensors["values"], tensors["ones"], phi, given.mask_of(), bias, given.states_of(),
        numbers.get("place"), tail, tensors.get("near"),
    )  # fmt: skip


def _run(given: Given) -> tuple[Tensor, ...]:
    sums = choose.run(_call(given), given.words["kernel"])
    return sums.above, sums.below, sums.shift.expand_as(sums.below)


def _shapes(given: Given) -> tuple[Tensor, ...]:
    q, values = given.tensors["q"], given.tensors["values"]
    column = values.new_empty(*q.shape[:3], 1)
    return values.new_empty(*q.shape[:3], values.shape[-1]), column, torch.empty_like(column)


JOBS[KIND] = Job(_run, _shapes)
