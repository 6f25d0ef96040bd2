"""Networks over events with every parameter drawn, and sequences for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from relpos.tasks.events import Sequences
from relpos.tasks.events.neural import History, MixtureHead, Scales, Tape
from relpos.tasks.events.neural.tape import Run

MARKS, WIDTH, HOUR = 3, 4, 3600.0
UNIX = 1.6e9
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "bias": {"channels": "position+time+place+profile+mark"},
    "keys and values": {"channels": "position+time+place+profile+mark", "inject": "key+value", "profiles": WIDTH},
    "rotation": {"channels": [{"feature": "time", "encoder": "rotary", "shortest": 0.5, "longest": 40.0}]},
    "lines of time": {"encoding": "time_rope", "clock": "time", "gap": False},
    "index alone": {"encoding": "t5", "gap": False},
}
each = pytest.mark.parametrize("name", CONFIGURATIONS)


class Network(NamedTuple):
    history: History
    head: MixtureHead

    def score(self, tape: Tape, runs: list[Run] | None = None) -> Tensor:
        """(batch, n) what follows each token of whole sequences, or of some runs."""
        seen, following = tape.take(whole(tape) if runs is None else runs)
        return self.head.log_likelihood(self.history(seen), following)

    def total(self, sequences: Sequences, since: Any = None) -> float:
        return self.score(Tape(sequences, since)).sum().item()


def network(name: str = "bias", scales: Scales | None = None, wide: bool = True, **more: Any) -> Network:
    """With every parameter drawn, so that each of them counts; float64 if ``wide``."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"scales": scales, "length": 24, "dim": 16, "depth": 2, "heads": 2}
    history = History(MARKS, **CONFIGURATIONS[name] | sizes | more)
    head = MixtureHead(16, MARKS, 4, scales)
    with torch.no_grad():
        for parameter in [*history.parameters(), *head.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    made = Network(history, head)
    return Network(history.double(), head.double()) if wide else made


def some(counts: tuple[int, ...] = (6, 0, 1, 9), seed: int = 0, end: float = 20.0, **more: Any) -> Sequences:
    rng = np.random.default_rng(seed)
    times = [np.sort(rng.uniform(1, end, count)) for count in counts]
    return Sequences.of(
        times,
        marks=[rng.integers(MARKS, size=count) for count in counts],
        places=[np.c_[rng.uniform(44, 46, count), rng.uniform(-94, -92, count)] for count in counts],
        profiles=[rng.normal(size=(count, WIDTH)) for count in counts],
        window=(1.0, end), mark_count=MARKS, **more,
    )  # fmt: skip


def whole(tape: Tape) -> list[Run]:
    counts = np.diff(tape.offsets)
    return [Run(row, 0, int(count), 0) for row, count in enumerate(counts) if count]


def first_events(one: Sequences, count: int) -> Sequences:
    return one.keep(np.arange(len(one.times)) < count)
