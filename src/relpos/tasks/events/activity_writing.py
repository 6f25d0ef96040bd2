"""Writing an activity on: from its first events, towards a goal, until it ends."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from relpos.tasks.events.activity_network import Activity


class Written(NamedTuple):
    """Continuations, (batch, most) each but for lengths.

    marks, times  of the events that were drawn; times go on from those of the beginning
    lengths       (batch,) events drawn before the end
    ended         (batch,) bool: False where the limit was reached
    """

    marks: Tensor
    times: Tensor
    lengths: Tensor
    ended: Tensor


@torch.no_grad()
def write(
    model: Activity,
    marks: Tensor,
    times: Tensor,
    generator: torch.Generator,
    *,
    goals: Tensor | None = None,
    most: int = 32,
    silence: float = math.inf,
    candidates: int = 8,
) -> Written:
    """Goes on from beginnings (batch, k), each row with draws of its own, until it ends or ``most`` events are drawn.

    A step draws the end with p(end | history), else a gap and a mark; a gap longer than ``silence`` ends a sequence
    too. Towards ``goals`` (batch,), a step draws several candidates and takes one with odds p(goal | history, event):
    as p(event | history, goal) ~ p(event | history) p(goal | history, event), this is the network's own distribution
    given the goal, the better the more candidates there are. An end leaves the odds of the goal as they are.
    """
    if marks.shape[1] < 1:
        raise ValueError("a beginning has at least one event")
    if most < 1 or candidates < 1:
        raise ValueError(f"most and candidates are 1 or more, got {most} and {candidates}")
    count, begin = marks.shape
    tries = 1 if goals is None else candidates
    ended = torch.zeros(count, dtype=torch.bool)
    lengths = torch.full((count,), most)
    for step in range(most):
        states = model.states(marks, times, torch.ones_like(marks, dtype=torch.bool))[:, -1]
        stop, gap, mark = _drawn(model, states, tries, silence, generator)
        if goals is not None:
            odds = _odds(model, marks, times, states, (stop, gap, mark), goals)
            taken = torch.multinomial(odds, 1, generator=generator)
            stop, gap, mark = (each.gather(1, taken) for each in (stop, gap, mark))
        lengths = torch.where(stop[:, 0] & ~ended, step, lengths)
        ended = ended | stop[:, 0]
        marks = torch.cat([marks, torch.where(stop, 0, mark)], 1)
        times = torch.cat([times, times[:, -1:] + torch.where(stop, 0.0, gap)], 1)
        if bool(ended.all()):
            break
    drawn_marks, drawn_times = marks[:, begin:], times[:, begin:]
    left = most - drawn_marks.shape[1]
    drawn_marks = torch.nn.functional.pad(drawn_marks, (0, left))
    drawn_times = torch.cat([drawn_times, drawn_times[:, -1:].expand(-1, left)], 1)
    return Written(drawn_marks, drawn_times, lengths, ended)


def _drawn(
    model: Activity, states: Tensor, tries: int, silence: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, tries) each: whether it ends, the gap and the mark of independent candidates."""
    gap = model.head.density(states).sample(tries, generator).T
    chance = torch.sigmoid(model.head.end_logit(states))[:, None].expand(-1, tries)
    stop = torch.bernoulli(chance.contiguous(), generator=generator).bool() | (gap > silence)
    mark = torch.multinomial(model.head.log_marks(states).exp(), tries, replacement=True, generator=generator)
    return stop, gap, mark


def _odds(
    model: Activity, marks: Tensor, times: Tensor, states: Tensor, drawn: tuple[Tensor, Tensor, Tensor], goals: Tensor
) -> Tensor:
    """(batch, tries): the probability of the goal after each candidate, divided by the largest."""
    stop, gap, mark = drawn
    tries = mark.shape[1]
    longer = torch.cat([marks.repeat_interleave(tries, 0), mark.reshape(-1, 1)], 1)
    gap = torch.where(stop, 0.0, gap)  # of an end nothing is read
    later = torch.cat([times.repeat_interleave(tries, 0), times[:, -1:].repeat_interleave(tries, 0)], 1)
    later[:, -1] += gap.reshape(-1)
    after = model.states(longer, later, torch.ones_like(longer, dtype=torch.bool))[:, -1]
    chosen = goals[:, None, None].expand(-1, tries, 1)
    then = model.log_goals(after).reshape(len(marks), tries, -1).gather(-1, chosen)[..., 0]
    now = model.log_goals(states).gather(-1, goals[:, None])
    found = torch.where(stop, now, then)
    return (found - found.max(1, keepdim=True).values).exp()
