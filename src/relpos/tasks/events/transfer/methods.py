"""Ways to bring the network of the source to a region of few events: what is kept, what begins anew, what learns.

| name        | weights to begin with                | units of  | learns from the events of the target           |
|-------------|--------------------------------------|-----------|------------------------------------------------|
| `scratch`   | none of the source                   | target    | everything                                     |
| `zero-shot` | all                                  | source    | nothing                                        |
| `fine-tune` | all                                  | source    | everything                                     |
| `ours`      | all but what is about marks          | region    | flows and marks; tables and the rest are fixed |
| `head`      | all                                  | region    | the heads                                      |
| `meta`      | all, trained so that few steps serve | region    | everything, by the same few steps              |

Any of it can be changed by options: ``units``, ``reset`` and ``freeze`` (names of `GROUPS` joined by +, or "none"),
``adapt_steps`` and ``adapt_rate``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from relpos.models import Transferred, transfer
from relpos.tasks.events.transfer.network import Traveller
from relpos.tasks.events.transfer.regions import Journey

GROUPS: Mapping[str, tuple[str, ...]] = {
    "tables": ("*.channels.*",),
    "flows": ("head.time.*", "head.distance.*"),
    "marks": ("history.mark.*", "head.mark.*"),
    "body": ("*.attention.[qkvo]*", "*.mlp.*", "*norm*", "history.more.*"),
    "all": ("*",),
}
"""The parts of the network by patterns over names of its parameters."""


@dataclass(frozen=True)
class Method:
    """reset, freeze: names of `GROUPS`; own: units of the target from its own events alone, without the source;
    steps, rate, sgd: of the adaptation; meta: training for it (see `outer`)."""

    reset: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    units: str = "region"
    own: bool = False
    steps: int = 40
    rate: float = 3e-3
    sgd: bool = False
    meta: bool = False


METHODS: Mapping[str, Method] = {
    "scratch": Method(reset=("all",), own=True, steps=60, rate=1e-2),
    "zero-shot": Method(freeze=("all",), units="source", steps=0),
    "fine-tune": Method(units="source"),
    "ours": Method(reset=("marks",), freeze=("tables", "body")),
    "head": Method(freeze=("tables", "body")),
    "meta": Method(steps=5, rate=0.05, sgd=True, meta=True),
}
INNER = 3  # steps within a step of meta-learning


def method(
    name: str,
    reset: str | None = None,
    freeze: str | None = None,
    units: str | None = None,
    steps: int | None = None,
    rate: float | None = None,
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
    changes |= {key: value for key, value in (("units", units), ("steps", steps), ("rate", rate)) if value is not None}
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
    """A network of the source that knows how it is to be brought to a target. fresh: makes another one, untrained.

    Untrained weights are those that a network of the same seed has at the start of its training.
    """

    def __init__(self, how: Method, fresh: Callable[[], Traveller]) -> None:
        super().__init__()
        self.how, self.fresh, self.seed = how, fresh, torch.initial_seed()
        self.network = fresh()

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
    optimizer = torch.optim.Adam(learning, lr=how.rate)
    with torch.enable_grad():
        for step in range(how.steps):
            for group in optimizer.param_groups:
                group["lr"] = how.rate * (1 - step / how.steps)
            optimizer.zero_grad(set_to_none=True)
            network.nats(journey).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            if told is not None:
                told(step + 1)
    return network


def descend(
    network: Traveller, values: dict[str, Tensor], journey: Journey, steps: int, rate: float
) -> dict[str, Tensor]:
    """The parameters after some steps of plain gradient descent from ``values``.

    First order: the steps count as constants, so that a derivative by what comes out is one by ``values``.
    """
    for _ in range(steps):
        at = {name: value.detach().requires_grad_() for name, value in values.items()}
        with torch.enable_grad():
            nats = functional_call(network, at, (journey,))
            loss = -nats.sum() / max(journey.events, 1)
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
    the others are scored.
    """
    total: Tensor | None = None
    events = 0
    values = dict(network.named_parameters())
    for first in range(0, len(journey.sizes) - group + 1, group):
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
