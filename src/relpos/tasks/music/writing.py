"""Sampling music, token by token, with a cache; see `guide` for what may be written."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from relpos.positions import Grid
from relpos.tasks.base import Progress
from relpos.tasks.music.grammar import State
from relpos.tasks.music.guide import LEAD, Guide, Plan
from relpos.tasks.music.tokens import BAR, CUT


def places(index: np.ndarray, time: np.ndarray) -> Grid:
    """Positions of tokens for a network that reads a lag in tokens and a lag in ticks."""
    return Grid(torch.from_numpy(np.stack([index, time], -1)))


class Reader:
    """Feeds a network with the latest tokens through its caches, at most ``context`` of them.

    Where the context is full, it begins anew with the bars that fit into half of it: the network never sees a lag that
    it was not trained on, and the cost of a token does not grow with the piece.
    """

    def __init__(self, model: Any, context: int) -> None:
        self.model, self.context = model, context
        self.tokens: list[int] = []
        self.times: list[int] = []
        self.begin = self.fed = 0  # first token in the context, and how many have been read
        self.streams = model.streams()

    def append(self, token: int, time: int) -> None:
        self.tokens.append(token)
        self.times.append(time)

    def logits(self) -> Tensor:
        """(vocabulary,) of the token after all that were appended."""
        if len(self.tokens) - self.begin > self.context:
            self._begin_anew()
        fresh = slice(self.fed, len(self.tokens))
        index = np.arange(fresh.start, fresh.stop) - self.begin
        time = np.array(self.times[fresh], dtype=np.int64) - self.times[self.begin]
        chunk = torch.tensor([self.tokens[fresh]], dtype=torch.int64)
        self.fed = len(self.tokens)
        out: Tensor = self.model(chunk, positions=places(index, time), streams=self.streams)[0, -1]
        return out.float()

    def _begin_anew(self) -> None:
        """From the first bar that leaves at most half of the context; from the middle of one that is too long."""
        earliest = len(self.tokens) - self.context // 2
        bars = (i for i in range(earliest, len(self.tokens)) if BAR <= self.tokens[i] < CUT)
        self.begin = self.fed = next(bars, earliest)
        self.streams = self.model.streams()


def write(
    model: Any,
    plan: Plan,
    prompt: np.ndarray,
    *,
    seed: int,
    ticks_per_quarter: int = 4,
    temperature: float = 0.8,
    top_p: float = 0.9,
    context: int = 512,
    progress: Progress | None = None,
) -> State:
    """What the model writes after ``prompt`` (tokens from BEGIN on, whole bars, no END), to the end of the plan.

    The state holds all notes, the prompt's too. One seed gives the same music on one machine; temperature 0 takes
    the likeliest token. ValueError for settings out of range, or a prompt that the grammar does not allow.
    """
    if not temperature >= 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature is 0 or more and top_p in (0, 1], got {temperature} and {top_p}")
    generator = torch.Generator().manual_seed(seed)
    state = State(ticks_per_quarter, LEAD)
    reader = Reader(model, context)

    def take(token: int) -> None:
        state.advance(token)
        reader.append(token, state.tick)

    for token in prompt.tolist():
        take(token)
    guide = Guide(plan, state)
    first = len(state.bars)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            while state.last != "END":
                token = guide.forced()
                if token is None:
                    token = _draw(guide.weights(), reader, temperature, top_p, generator)
                take(token)
                guide.listen()
                if progress is not None and BAR <= token < CUT:
                    progress(len(state.bars) - first, len(plan.meters) - first, "")
    finally:
        model.train(training)
    return state


def _draw(weights: np.ndarray, reader: Reader, temperature: float, top_p: float, generator: torch.Generator) -> int:
    allowed = np.flatnonzero(weights > -np.inf)
    if not len(allowed):
        raise RuntimeError("no token may follow: the rules of the plan contradict each other")
    if len(allowed) == 1:
        return int(allowed[0])
    chosen = torch.from_numpy(allowed)
    logits = reader.logits()[chosen]
    lean = torch.from_numpy(weights[allowed])
    if temperature == 0:
        return int(allowed[int((logits + lean).argmax())])
    p = (logits / temperature + lean).softmax(-1)
    ordered, order = p.sort(descending=True, stable=True)
    kept = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)  # the likeliest always stays
    return int(allowed[int(order[int(torch.multinomial(kept, 1, generator=generator))])])
