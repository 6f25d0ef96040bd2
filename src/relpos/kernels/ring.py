"""Exact attention over a sequence whose tokens lie on several ranks, in memory linear in what one of them holds.

Each rank keeps its queries. Keys and values go round: against every part the generic tiles give an output and a
log-sum-exp, and two such are merged exactly,

    lse = log(exp(lse_1) + exp(lse_2)),     out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2.

In the backward pass they go round again; the weights are recomputed from the log-sum-exp over all parts, and the
gradients of keys and values travel behind them, every rank adding its share, until they are home.

Source: ring attention (Liu, Zaharia and Abbeel 2023), with an additive term of any form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from relpos.encodings.base import Encoding, Pairwise, States
from relpos.kernels import tiles
from relpos.kernels.call import Call, computing, once
from relpos.kernels.dropout import Dropout
from relpos.kernels.mask import Mask
from relpos.kernels.ranks import Homeward, Parts, Ranks, circulate
from relpos.positions import Positions, narrowed

Result = TypeVar("Result")


@dataclass(frozen=True)
class Shifted(Dropout):
    """Dropout of a part of the pairs: its first query and first key have these numbers in the whole."""

    first_query: int = 0
    first_key: int = 0

    def keep(
        self,
        b0: int,
        b1: int,
        heads: int,
        i0: int,
        i1: int,
        j0: int,
        j1: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        i, j = self.first_query, self.first_key
        return super().keep(b0, b1, heads, i0 + i, i1 + i, j0 + j, j1 + j, device, dtype)


class _Within(nn.Module):
    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.encoding = encoding

    def forward(self, act: Callable[[Any], Any]) -> Any:
        return act(self.encoding)


def acting(encoding: Encoding, parameters: dict[str, Tensor], act: Callable[[Any], Result]) -> Result:
    """act(encoding) with other tensors in the place of its parameters, by name."""
    named = {f"encoding.{name}": tensor for name, tensor in parameters.items()}
    found: Result = torch.func.functional_call(_Within(encoding), named, (act,))
    return found


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.ranks.sum(grads)


def summed(ranks: Ranks, encoding: Encoding, reduce: bool) -> dict[str, Tensor]:
    """The encoding's learned parameters, by name; with `reduce` their gradients are summed over the ranks."""
    learned: dict[str, Tensor] = {name: p for name, p in encoding.named_parameters() if p.requires_grad}
    if not learned or not reduce or not torch.is_grad_enabled():
        return learned
    alike = _Summed.apply(ranks, *learned.values())  # type: ignore[no-untyped-call]
    return dict(zip(learned, alike))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.parts = ranks, Parts(*tensors)
        found = dict(circulate(ranks, tensors))
        return tuple(torch.cat([found[r][i] for r in range(ranks.world)], 2) for i in range(len(tensors)))

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ranks: Ranks = ctx.ranks
        homeward = Homeward(ranks, ctx.parts)
        for owner in ranks.owners()[:-1]:
            homeward.add([grad.narrow(2, ranks.start(owner), ranks.lengths[owner]) for grad in grads])
        return None, *homeward.home()


def gathered(ranks: Ranks, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The whole of each tensor (batch, heads, n of this rank, width), of one type; gradients go back summed."""
    found: tuple[Tensor, ...] = _Gathered.apply(ranks, *tensors)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True)
class Plan:
    """One call as this rank sees it: everything but q, k and v.

    mask, k_pos: own queries against the keys of all ranks. names: of the parameters that travel beside q, k and v.
    """

    ranks: Ranks
    scale: float
    mask: Mask
    q_pos: Positions
    k_pos: Positions
    term: Pairwise | None = None
    names: tuple[str, ...] = ()
    dropout: Shifted | None = None

    def call(self, owner: int, q: Tensor, k: Tensor, v: Tensor) -> Call:
        """Own queries against one part, key heads already expanded."""
        start, n = self.ranks.start(owner), self.ranks.lengths[owner]
        drop = None if self.dropout is None else replace(self.dropout, first_key=start)
        mask = self.mask.against(start, start + n)
        return Call(q, k, v, self.scale, mask, self.term, {}, self.q_pos, self._of(owner), drop)

    def states(self, owner: int, q: Tensor, k: Tensor, parameters: dict[str, Tensor]) -> States:
        if self.term is None:
            return {}
        return acting(self.term, parameters, lambda term: term.prepare(q, k, self.q_pos, self._of(owner), None))

    def _of(self, owner: int) -> Positions:
        start = self.ranks.start(owner)
        return narrowed(self.k_pos, start, start + self.ranks.lengths[owner])


def ring(plan: Plan, q: Tensor, k: Tensor, v: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """softmax(scale q k^T + term) v plus the term of the values, (batch, heads, own n_q, dim_v) in the type of q."""
    plan = replace(plan, names=tuple(parameters))
    out: Tensor = _Ring.apply(plan, q, k, v, *parameters.values())  # type: ignore[no-untyped-call]
    return out.to(q.dtype)


def merged(out: Tensor, lse: Tensor, more: Tensor, lse_more: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts as one; a log-sum-exp of minus infinity says that a row has seen nothing yet."""
    both = torch.logaddexp(lse, lse_more)
    base = both.masked_fill(both == -torch.inf, 0)
    return out * torch.exp(lse - base) + more * torch.exp(lse_more - base), both


def _expanded(x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _folded(x: Tensor, heads: int) -> Tensor:
    """The gradient of key heads that `_expanded` has repeated."""
    batch, many, n, width = x.shape
    return x if many == heads else x.view(batch, heads, many // heads, n, width).sum(2)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, q: Tensor, k: Tensor, v: Tensor, *tensors: Tensor) -> Tensor:
        dtype, heads = computing(q.dtype), q.shape[1]
        wide, parameters = q.to(dtype), dict(zip(plan.names, tensors))
        out, lse = wide.new_zeros(*q.shape[:3], v.shape[-1]), wide.new_full((*q.shape[:3], 1), -torch.inf)
        for owner, part in circulate(plan.ranks, (k, v)):
            keys, values = (_expanded(x, heads, dtype) for x in part)
            states = plan.states(owner, wide, keys, parameters)
            more, lse_more = tiles.attend(plan.call(owner, wide, keys, values), keys, values, states)
            out, lse = merged(out, lse, more, lse_more.masked_fill(lse_more == torch.inf, -torch.inf))
        ctx.save_for_backward(q, k, v, out, lse.masked_fill(lse == -torch.inf, torch.inf), *tensors)
        ctx.plan = plan
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        plan: Plan = ctx.plan
        dtype, heads = computing(q.dtype), q.shape[1]
        wide, delta = q.to(dtype), (grad * out).sum(-1, keepdim=True)
        dq, dtensors = torch.zeros_like(wide), [torch.zeros_like(t) for t in tensors]
        homeward = Homeward(plan.ranks, Parts(k, v))
        for owner, part in circulate(plan.ranks, (k, v)):
            keys, values = (_expanded(x, heads, dtype) for x in part)
            share = _share(plan, owner, (wide, keys, values, lse, delta, grad), dict(zip(plan.names, tensors)))
            dq += share["q"]
            for name, total in zip(plan.names, dtensors):
                if f"parameter.{name}" in share:
                    total += share[f"parameter.{name}"]
            homeward.add([_folded(share["k"], k.shape[1]), _folded(share["v"], v.shape[1])])
        dk, dv = homeward.home()
        return None, dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), *dtensors


def _share(plan: Plan, owner: int, saved: tuple[Tensor, ...], parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of q, k, v and the parameters that come from own queries against one part."""
    q, k, v, lse, delta, grad = saved
    leaves = {f"parameter.{name}": t.detach().requires_grad_() for name, t in parameters.items()}
    leaves |= {"q": q.detach().requires_grad_(), "k": k.detach().requires_grad_()}
    with torch.enable_grad():
        named = {name: leaves[f"parameter.{name}"] for name in parameters}
        states = plan.states(owner, leaves["q"], leaves["k"], named)
    learned = {name: state.tensor for name, state in states.items() if state.tensor.requires_grad}
    bare = {name: state._replace(tensor=state.tensor.detach()) for name, state in states.items()}
    total, dstates = tiles.attend_backward(plan.call(owner, q, k, v), k, v, lse, delta, grad, bare, set(learned))
    if learned:
        grads = [dstates[name] for name in learned]
        found = torch.autograd.grad(list(learned.values()), list(leaves.values()), grads, allow_unused=True)
        for name, part in zip(leaves, found):
            if part is not None:
                total[name] = total[name] + part if name in total else part
    return total
