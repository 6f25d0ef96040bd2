"""The network that reads an activity: the next action and its time, whether there is one, and the goal of it all."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from relpos.tasks.events.neural import Following, History, MixtureHead, Scales, Seen


class ActionHead(MixtureHead):
    """What follows an event, from its state: the end, or else an action after a gap.

        p(end | s) = sigmoid(w.s),   p(gap | s) = (1 - p(end)) f(gap),   p(mark | s) = softmax(W s)

    f is log-normal with one component (the flow of Gupta & Bedathur 2022), a mixture of them with more. The mark does
    not see the gap, so that the next action can be named before it comes. The density of the gap is defective by
    p(end): the silence up to the end of a window costs log(p(end) + (1 - p(end)) S(gap)), that of a sequence whose last
    event ends it, where the gap is inf, log p(end).
    """

    def __init__(self, dim: int, marks: int, components: int = 1, scales: Scales | None = None) -> None:
        super().__init__(dim, marks, components, scales)
        mark = nn.Linear(dim, marks)
        nn.init.zeros_(mark.bias)
        nn.init.normal_(mark.weight, std=0.02)
        self.mark = mark  # type: ignore[assignment]
        self.end = nn.Linear(dim, 1)
        nn.init.normal_(self.end.weight, std=0.02)
        with torch.no_grad():
            self.end.bias.fill_(-3.0)  # an event is seldom the last one
            if components == 1:
                self.time.bias.zero_()

    def end_logit(self, states: Tensor) -> Tensor:
        """(..) float64."""
        logit: Tensor = self.end(states)
        return logit[..., 0].to(torch.float64)

    def log_marks(self, states: Tensor, gaps: Tensor | None = None) -> Tensor:
        logits: Tensor = self.mark(states)
        return logits.to(torch.float64).log_softmax(-1)

    def log_prob(self, states: Tensor, gaps: Tensor, marks: Tensor) -> Tensor:
        chosen = self.log_marks(states).gather(-1, marks[..., None])[..., 0]
        on = nn.functional.logsigmoid(-self.end_logit(states))
        return on + self.density(states).log_prob(gaps) + chosen

    def log_survival(self, states: Tensor, gaps: Tensor) -> Tensor:
        logit = self.end_logit(states)
        ended, on = nn.functional.logsigmoid(logit), nn.functional.logsigmoid(-logit)
        endless = torch.isinf(gaps)
        finite = torch.where(endless, torch.ones_like(gaps), gaps)  # log S(inf) is -inf, and its gradient no number
        late = torch.logaddexp(ended, on + self.density(states).log_survival(finite))
        return torch.where(endless, ended, late)


class Reading(NamedTuple):
    """What the network makes of a batch, for every event as the last one seen.

    log_likelihood  (batch, n) float64: of what follows it; 0 in pads
    log_goals       (batch, n, goals) float64
    states          (batch, n, dim)
    """

    log_likelihood: Tensor
    log_goals: Tensor
    states: Tensor


class Activity(nn.Module):
    """Marks and times to a `Reading`.

    components  of the density of the gap; 1 is a log-normal
    gamma       the k-th event seen (from 0) weighs gamma^k in the loss of the goal: below 1, early answers count more
    goal        weight of the goal's loss beside the log likelihood an event
    margin      weight of the margin: what the probability of the true goal falls below its best so far, mean over
                events; 0 leaves it out
    more        `History`: channels, inject, clock, gap, dim, depth, heads, dropout, ..
    """

    def __init__(
        self,
        marks: int,
        goals: int,
        encoding: str,
        *,
        components: int = 1,
        gamma: float = 0.95,
        goal: float = 1.0,
        margin: float = 1.0,
        scales: Scales | None = None,
        **more: Any,
    ) -> None:
        super().__init__()
        if not (isinstance(gamma, int | float) and 0 < gamma <= 1):
            raise ValueError(f"gamma is above 0 and at most 1, got {gamma!r}")
        for name, value in (("goal", goal), ("margin", margin)):
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ValueError(f"{name} is a weight, 0 or more, got {value!r}")
        if isinstance(components, bool) or not isinstance(components, int) or components < 1:
            raise ValueError(f"components is a whole number, 1 or more, got {components!r}")
        self.gamma, self.weight, self.margin = float(gamma), float(goal), float(margin)
        self.history = History(marks, encoding, scales=scales, **more)
        self.head = ActionHead(self.history.dim, marks, components, self.history.scales)
        self.goals = nn.Linear(self.history.dim, goals)

    def states(self, marks: Tensor, times: Tensor, mask: Tensor) -> Tensor:
        none = torch.zeros(*marks.shape, 0, dtype=torch.float64, device=marks.device)
        states: Tensor = self.history(Seen(marks, times, mask, none, none))
        return states

    def log_goals(self, states: Tensor) -> Tensor:
        logits: Tensor = self.goals(states)
        return logits.to(torch.float64).log_softmax(-1)

    def forward(self, marks: Tensor, times: Tensor, mask: Tensor, gaps: Tensor, following: Tensor) -> Reading:
        """(batch, n) each: events, which are real, and the gap and mark of what follows (-1: the end, or nothing)."""
        states = self.states(marks, times, mask)
        known = mask & ((following >= 0) | (gaps > 0))  # a piece that another one follows tells nothing of its end
        found = self.head.log_likelihood(states, Following(gaps, following, torch.zeros_like(gaps), known))
        return Reading(found, self.log_goals(states), states)


class Loss(NamedTuple):
    """The three parts of the loss: nats an event, nats a sequence, and a probability."""

    events: Tensor
    goal: Tensor
    margin: Tensor


def loss_of(reading: Reading, mask: Tensor, following: Tensor, goals: Tensor, gamma: float) -> Loss:
    """What a batch costs; pads cost nothing, whatever is in them.

    events  - log likelihood of all that follows, a scored event
    goal    sum_k gamma^k (- log p_k(goal)) / sum_k gamma^k over the events k of a sequence, mean over sequences
    margin  max(0, max_{j<k} p_j(goal) - p_k(goal)), mean over the events of a sequence, mean over sequences
    """
    events = -reading.log_likelihood.sum() / (following >= 0).sum().clamp_min(1)
    true = reading.log_goals.gather(-1, goals[:, None, None].expand(-1, mask.shape[1], 1))[..., 0]
    true = torch.where(mask, true, 0.0)
    weights = mask * gamma ** torch.arange(mask.shape[1], dtype=torch.float64, device=mask.device)
    goal = -((weights * true).sum(1) / weights.sum(1)).mean()
    margin = (falls(true.exp(), mask).sum(1) / mask.sum(1)).mean()
    return Loss(events, goal, margin)


def falls(probability: Tensor, mask: Tensor) -> Tensor:
    """(batch, n): how far each probability is below the best before it; 0 where it rises, and in pads.

    The best before is taken as it is, without gradient: else it would be cheaper to know less early than more late.
    """
    best = torch.where(mask, probability.detach(), 0.0).cummax(1).values
    before = torch.cat([torch.zeros_like(best[:, :1]), best[:, :-1]], 1)
    return torch.where(mask, (before - probability).clamp_min(0), 0.0)
