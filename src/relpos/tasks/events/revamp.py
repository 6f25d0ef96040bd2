"""ReVAMP: the next item, and the next profile, from relative positions, times, places and profiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relpos.tasks.events.neural import History, Scales, Seen


class ReVAMP(nn.Module):
    """Event sequences to scores of all items, and of the profile of the event to come.

    A token is an item, with its profile where profiles are read; relative channels (position, time, place, profile)
    enter as tables of keys and values (``inject="key+value"``). Items are scored by the dot product of a state with
    their embeddings. profile=False leaves the profiles out of the input and of the loss. mark_scale: see `History`; at
    1 the items drown beside gaps and sines, and rows differ by how long that lasts.

    Source: Gupta and Bedathur 2022, "ReVAMP" (IEEE Transactions on Big Data), as far as it can be known: there is no
    code, and its form here is that of TiSASRec, which it extends. Both train by binary cross-entropy against one drawn
    item a position; here it is the cross-entropy over all items.
    """

    def __init__(
        self,
        items: int,
        encoding: str = "relative_channels",
        *,
        profiles: int = 0,
        profile: bool = True,
        inject: str = "key+value",
        mark_scale: float = 50.0,
        dim: int = 32,
        scales: Scales | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        read = profiles if profile else 0
        self.history = History(
            items, encoding, inject=inject, profiles=read, dim=dim, scales=scales, mark_scale=mark_scale, **options
        )
        self.items = items
        self.bias = nn.Parameter(torch.zeros(items))
        self.project = nn.Linear(dim, dim)
        self.profile = nn.Linear(dim, read) if read else None

    def forward(self, seen: Seen, asked: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (batch, n, items) of the item after each token, and (batch, n, profiles) of its profile or None.

        asked: the times of what follows, where the network queries from there (``query_time="request"``).
        """
        states = self.history(seen, asked if self.history.query_time == "request" else None)
        logits = self.project(states) @ self.history.mark.weight[: self.items].T + self.bias
        return logits, None if self.profile is None else self.profile(states)
