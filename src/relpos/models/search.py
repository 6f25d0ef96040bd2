"""Greedy and beam search over anything that gives the next token's logits and can reorder its rows."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Steps(Protocol):
    """A decoder with a cache."""

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of every row, (rows, 1), to logits (rows, vocabulary)."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Keeps these rows, in this order."""
        ...


def greedy(decoder: Steps, first: Tensor, end: int, steps: int) -> Tensor:
    """The likeliest token, again and again: (batch, at most steps). Rows that ended are filled up with `end`."""
    token, out = first, []
    ended = torch.zeros_like(first, dtype=torch.bool)
    for _ in range(steps):
        token = decoder.step(token).argmax(-1, keepdim=True).masked_fill(ended, end)
        ended = ended | (token == end)
        out.append(token)
        if bool(ended.all()):
            break
    return torch.cat(out, 1)


def beam(decoder: Steps, first: Tensor, end: int, steps: int, beams: int, length_penalty: float) -> Tensor:
    """The best of `beams` beginnings at every step, by log p / length^length_penalty: (batch, at most steps).

    A beginning that ended keeps its place and its score, so it goes on competing with those that are still growing.
    """
    batch = first.shape[0]
    rows = torch.arange(batch, device=first.device)
    decoder.reorder(rows.repeat_interleave(beams))
    total = torch.full((batch, beams), -torch.inf, device=first.device)
    total[:, 0] = 0  # all beams begin alike: one of them must do
    length = torch.zeros_like(total)
    ended = torch.zeros_like(total, dtype=torch.bool)
    token = first.repeat_interleave(beams, 0)
    out = first.new_zeros(batch, beams, 0)
    for _ in range(steps):
        log_p = decoder.step(token).float().log_softmax(-1).view(batch, beams, -1)
        stay = torch.full_like(log_p, -torch.inf)
        stay[..., end] = 0
        log_p = torch.where(ended.unsqueeze(-1), stay, log_p)
        grown = length + ~ended
        score = (total.unsqueeze(-1) + log_p) / grown.unsqueeze(-1) ** length_penalty
        chosen = score.flatten(1).topk(beams, -1).indices
        parent, token = chosen // log_p.shape[-1], chosen % log_p.shape[-1]
        total = (total.unsqueeze(-1) + log_p).flatten(1).gather(1, chosen)
        length, ended = grown.gather(1, parent), ended.gather(1, parent) | (token == end)
        out = torch.cat([out.gather(1, parent.unsqueeze(-1).expand(-1, -1, out.shape[-1])), token.unsqueeze(-1)], -1)
        if bool(ended.all()):
            break
        decoder.reorder((rows.unsqueeze(-1) * beams + parent).flatten())
        token = token.flatten().unsqueeze(-1)
    best = (total / length**length_penalty).argmax(-1)
    return out[rows, best]
