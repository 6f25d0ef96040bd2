"""Ways to bring the network of the source to a region of few events: what is kept, what begins anew, what learns.

| name        | weights to begin with                | units          | learns from the events of the target |
|-------------|--------------------------------------|----------------|--------------------------------------|
| `scratch`   | none of the source                   | the target's   | everything                           |
| `zero-shot` | all                                  | the source's   | nothing                              |
| `fine-tune` | all                                  | the source's   | everything                           |
| `head`      | all                                  | the region's   | the flows and what is about marks    |
| `ours`      | all                                  | the region's   | what is about marks                  |
| `meta`      | all, trained so that few steps serve | the region's   | everything, by the same few steps    |

The region's units are known from the events of the target that are known and from the source, see `regions`. Any of it
can be changed by options: ``units`` (see `Traveller`), ``reset`` and ``freeze`` (names of `GROUPS` joined by +, or
"none"), ``adapt_steps``, ``adapt_rate``, ``adapt_pull``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from relpos.models import Transferred, transfer
from relpos.tasks.events.transfer.network import Traveller, an_event
from relpos.tasks.events.transfer.regions import Journey

GROUPS: Mapping[str, tuple[str, ...]] = {
    "tables": ("*.channels.*",),
    "flows": ("head.time.*", "head.distance.*"),
    "marks": ("head.mark.*",),
    "items": ("history.mark.*",),
    "body": ("*.attention.[qkvo]*", "*.mlp.*", "*norm*", "history.more.*"),
    "all": ("*",),
}
"""The parts of the network by patterns over names of its parameters."""


@dataclass(frozen=True)
class Method:
    """How a network gets to a target, and what it does there.

    reset, freeze      names of `GROUPS`
    own                units of the target from its known events alone, without the source
    steps, rate, sgd   of the adaptation
    pull               how strongly what learns is held where it began, in nats by the squared distance, against the
                       log likelihood of all events: a Gaussian prior of variance 1 / (2 pull)
    meta               whether training is for it, see `outer`
    """

    reset: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    units: str = "region+size"
    own: bool = False
    steps: int = 20
    rate: float = 1e-3
    pull: float = 0.0
    sgd: bool = False
    meta: bool = False


METHODS: Mapping[str, Method] = {
    "scratch": Method(reset=("all",), units="region", own=True),
    "zero-shot": Method(freeze=("all",), units="source", steps=0),
    "fine-tune": Method(units="source", rate=3e-4),
    "head": Method(freeze=("tables", "body", "items"), rate=3e-4),
    "ours": Method(freeze=("tables", "body", "flows", "items")),
    "meta": Method(steps=2, rate=0.05, sgd=True, meta=True),
}
INNER = 2  # steps within a step of meta-learning
REGIONS = 2  # of a step of meta-learning: each takes as many passes as there are inner steps, and one more


def method(
    name: str,
    reset: str | None = None,
    freeze: str | None = None,
    units: str | None = None,
    steps: int | None = None,
    rate: float | None = None,
    pull: float | None = None,
) -> Method:
    """The method of that name with changes. ValueError for unknown names."""
    if name not in METHODS:
        raise ValueError(f"transfer is one of {', '.join(METHODS)}, got {name!r}")
    changes: dict[str, object] = {}
    for what, value in (("reset", reset), ("freeze", freeze)):
        if value is not None:
            changes[what] = _groups(what, value)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
        raise ValueError(f"adapt_steps is a whole number, 0 or more, got {steps!r}")
    if rate is not None and not 0 < rate < 1:
        raise ValueError(f"adapt_rate lies between 0 and 1, got {rate!r}")
    if pull is not None and not 0 <= pull < math.inf:
        raise ValueError(f"adapt_pull is a number, 0 or more, got {pull!r}")
    numbers = {"units": units, "steps": steps, "rate": rate, "pull": pull}
    changes |= {key: value for key, value in numbers.items() if value is not None}
    return replace(METHODS[name], **changes)  # type: ignore[arg-type]


def _groups(what: str, value: str) -> tuple[str, ...]:
    names = tuple(each.strip() for each in value.split("+") if each.strip() not in ("", "none"))
    if unknown := [each for each in names if each not in GROUPS]:
        raise ValueError(f"{what} takes {', '.join(GROUPS)} joined by +, or none; got {unknown[0]!r}")
    return names


def patterns(names: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns of some groups."""
    return tuple(pattern for name in names for pattern in GROUPS[name])


class Movable(nn.Module):
    """A network of the source that knows how it is to be brought to a target.

    fresh         makes another one, untrained: with the weights that one of the same seed begins its training with
    group, seen   of meta-learning, see `outer`
    """

    def __init__(self, how: Method, fresh: Callable[[], Traveller], group: int = 4, seen: int = 21) -> None:
        super().__init__()
        self.how, self.fresh, self.seed = how, fresh, torch.initial_seed()
        self.group, self.seen = group, seen
        self.network = fresh()

    def forward(self, journey: Journey) -> Tensor:
        """Scalar: what training makes small, in nats an event."""
        if self.how.meta:
            return outer(self.network, journey, self.group, self.seen, self.how.rate)
        return self.network.nats(journey)

    def begin(self) -> tuple[Traveller, Transferred]:
        """A network for a target before it has learned anything there, and what it was made of."""
        if self.how.reset:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                new = self.fresh().to(next(self.network.parameters()).device)
        else:
            new = copy.deepcopy(self.network)
        report = transfer(self.network, new, reset=patterns(self.how.reset), freeze=patterns(self.how.freeze))
        return new, report


def adapt(network: Traveller, journey: Journey, how: Method, told: Callable[[int], None] | None = None) -> Traveller:
    """Lets the network learn from the events of a target, in place: full-batch steps, the rate falling to 0."""
    learning = [p for p in network.parameters() if p.requires_grad]
    if not how.steps or not learning:
        return network.eval()
    network.eval()
    if how.sgd:
        values = descend(network, dict(network.named_parameters()), journey, how.steps, how.rate)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(values[name])
        return network
    loss_of = _loss_of(network, journey)
    optimizer = torch.optim.Adam(learning, lr=how.rate)
    began, strength = [p.detach().clone() for p in learning], how.pull / max(journey.events, 1)
    with torch.enable_grad():
        for step in range(how.steps):
            for group in optimizer.param_groups:
                group["lr"] = how.rate * (1 - step / how.steps)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of()
            if strength:
                loss = loss + strength * sum((p - at).square().sum() for p, at in zip(learning, began))
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            if told is not None:
                told(step + 1)
    return network


def _loss_of(network: Traveller, journey: Journey) -> Callable[[], Tensor]:
    """The nats an event as the network stands; where its history is fixed the states are made only once."""
    if any(p.requires_grad for p in network.history.parameters()):
        return lambda: network.nats(journey)
    with torch.no_grad():
        measured = network.measured(journey)
        states = network.states(measured)
    return lambda: an_event(network.likelihood(measured, states), journey)


def descend(
    network: Traveller, given: Mapping[str, Tensor], journey: Journey, steps: int, rate: float
) -> dict[str, Tensor]:
    """The parameters after some steps of plain gradient descent from ``given``.

    First order: the steps count as constants, so that a derivative by what comes out is one by ``given``.
    """
    values = dict(given)
    for _ in range(steps):
        at = {name: value.detach().requires_grad_() for name, value in values.items()}
        with torch.enable_grad():
            loss = an_event(functional_call(network, at, (journey,)), journey)
            found = torch.autograd.grad(loss, list(at.values()), allow_unused=True)
        size = torch.stack([each.norm() for each in found if each is not None]).norm()
        factor = rate / max(float(size), 1.0)
        values = {
            name: value if slope is None else value - factor * slope
            for (name, value), slope in zip(values.items(), found, strict=True)
        }
    return values


def outer(network: Traveller, journey: Journey, group: int, seen: int, rate: float) -> Tensor:
    """Scalar loss of meta-learning (first-order MAML, Finn et al. 2017): how well the network does on a region after
    `INNER` steps on ``seen`` tokens of it.

    The runs of the journey come in groups of ``group`` of one region: of the first, the first tokens are learned from;
    the others are scored. The first `REGIONS` groups are taken.
    """
    total: Tensor | None = None
    events = 0
    values = dict(network.named_parameters())
    for first in range(0, min(len(journey.sizes), REGIONS * group) - group + 1, group):
        support = beginning(journey.rows(slice(first, first + 1)), seen)
        query = journey.rows(slice(first + 1, first + group))
        adapted = descend(network, values, support, INNER, rate)
        found = -functional_call(network, adapted, (query,)).sum()
        total, events = found if total is None else total + found, events + query.events
    if total is None:
        raise ValueError(f"meta-learning takes batches of at least {group} runs, got {len(journey.sizes)}")
    return total / max(events, 1)


def beginning(journey: Journey, tokens: int) -> Journey:
    """The first tokens of each run."""
    cut = [each if each.shape[1] <= tokens or each is journey.sizes else each[:, :tokens] for each in journey.tensors()]
    return Journey.of(cut)
