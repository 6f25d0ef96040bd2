"""A network over events with a head: the likelihood of whole windows, and the process that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relpos.encodings.base import Encoding
from relpos.tasks.base import Progress
from relpos.tasks.events.neural.heads import Head, MixtureHead
from relpos.tasks.events.neural.history import History, Scales
from relpos.tasks.events.neural.intensity import IntensityHead
from relpos.tasks.events.neural.rmtpp import RMTPP
from relpos.tasks.events.neural.tape import Following, Run, Seen, Tape
from relpos.tasks.events.processes import Process
from relpos.tasks.events.processes.base import Since, after_start
from relpos.tasks.events.sequences import Sequences

HEADS = ("mixture", "rmtpp", "intensity")
_A_BATCH = 64  # runs at a time


class PointNetwork(nn.Module):
    """What comes next in a sequence of events.

    head          "mixture" (of log-normals), "rmtpp" or "intensity"
    head_options  of its class; an intensity gets the calendar's ``periods`` as its rhythms where none are named
    Further options: `History`.
    """

    def __init__(
        self,
        marks: int,
        encoding: str = "relative_channels",
        *,
        head: str = "mixture",
        head_options: Mapping[str, Any] | None = None,
        scales: Scales | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head is one of {', '.join(HEADS)}, got {head!r}")
        if options.get("query_time", "event") != "event":
            raise ValueError('a process is told nothing of the event to come: query_time="event"')
        self.scales = scales or Scales()
        self.history = History(marks, encoding, scales=self.scales, **options)
        given: dict[str, Any] = dict(head_options or {})
        if head == "intensity":
            given.setdefault("periods", self.history.periods)
        kinds: dict[str, Callable[..., Head]] = {"mixture": MixtureHead, "rmtpp": RMTPP, "intensity": IntensityHead}
        self.head = kinds[head](self.history.dim, marks, scales=self.scales, **given)
        self.marks, self.dim, self.heads = marks, self.history.dim, options.get("heads", 2)

    def forward(self, seen: Seen) -> Tensor:
        """States (batch, n, dim)."""
        states: Tensor = self.history(seen)
        return states

    def log_likelihood(self, seen: Seen, following: Following) -> Tensor:
        """(batch, n) float64, see `Head.log_likelihood`."""
        return self.head.log_likelihood(self(seen), following)

    def encodings(self) -> Iterator[tuple[str, Encoding]]:
        """(name, encoding) of every distinct encoding, from the input up."""
        return self.history.stack.encodings()

    @torch.no_grad()
    def read(
        self,
        tape: Tape,
        visit: Callable[[Tensor, Following, np.ndarray], None],
        length: int = 64,
        history: int | None = None,
        progress: Progress | None = None,
        text: str = "",
    ) -> None:
        """Calls ``visit(states (m, dim), what follows (m,), tokens (m,))`` for all scored tokens of a tape, each once.

        Runs of ``length`` tokens, of which at least ``history`` (half, if left out) come before a scored one, where
        there are so many. The mode of the network is kept.
        """
        device = next(self.parameters()).device
        runs = tape.runs(length, length // 2 if history is None else history)
        training = self.training
        self.eval()
        try:
            for first in range(0, len(runs), _A_BATCH):
                some = runs[first : first + _A_BATCH]
                seen, following = (_moved(part, device) for part in tape.take(some))
                chosen = following.scored
                states = self(seen)[chosen]
                tokens = _tokens(tape, some)[chosen.cpu().numpy()]
                visit(states, Following(*(each[chosen] for each in following)), tokens)
                if progress is not None:
                    progress(min(first + _A_BATCH, len(runs)), len(runs), text)
        finally:
            self.train(training)


def _moved(part: Any, device: torch.device) -> Any:
    return type(part)(*(each.to(device) for each in part))


def _tokens(tape: Tape, runs: Sequence[Run]) -> np.ndarray:
    """(runs, longest) index on the tape of each token of some runs."""
    longest = max(run.end - run.begin for run in runs)
    first = np.array([tape.offsets[run.row] + run.begin for run in runs])
    return first[:, None] + np.arange(longest)


class NeuralProcess(Process):
    """A trained network as a `Process`: what reads compensators (time rescaling, PIT) reads it as any other.

    Marks have no compensator of their own here: `compensator` gives that of all together, (events, 1).
    length, history: as in `PointNetwork.read`.
    """

    name = "network"

    def __init__(self, network: PointNetwork, length: int = 64, history: int | None = None) -> None:
        self.network, self.marks = network, network.marks
        self.length, self.history = length, history
        self.parameters = sum(each.numel() for each in network.parameters())

    def _over(self, sequences: Sequences, since: Since, value: Callable[[Tensor, Following], Tensor]) -> np.ndarray:
        """(tokens,) a value of every token of the sequences, 0 where it is not scored."""
        self._known(sequences)
        tape = Tape(sequences, since)
        found = np.zeros(len(tape))

        def visit(states: Tensor, following: Following, tokens: np.ndarray) -> None:
            found[tokens] = value(states, following).cpu().numpy()

        self.network.read(tape, visit, self.length, self.history)
        return found

    def _silence(self, states: Tensor, following: Following) -> Tensor:
        """The compensator of the scored part of each gap: minus the log survival, less that of the floor."""
        head = self.network.head
        total = -head.log_survival(states, following.gaps)
        begun = following.floors > 0
        if bool(begun.any()):
            total[begun] = total[begun] + head.log_survival(states[begun], following.floors[begun])
        return total

    def compensator(self, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
        return self._split(sequences, self._over(sequences, None, self._silence))

    def compensator_from(self, sequences: Sequences, since: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._split(sequences, self._over(sequences, since, self._silence))

    @staticmethod
    def _split(sequences: Sequences, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        last = np.cumsum(sequences.lengths + 1) - 1
        inner = np.ones(len(values), dtype=bool)
        inner[last] = False
        return values[inner][:, None], values[last][:, None]

    def log_intensity(self, sequences: Sequences) -> np.ndarray:
        def value(states: Tensor, following: Following) -> Tensor:
            rates = self.network.head.log_rates(states, following.gaps)
            return rates.gather(-1, following.marks.clamp(min=0)[:, None])[:, 0]

        return self._split(sequences, self._over(sequences, None, value))[0][:, 0]

    def log_likelihood(self, sequences: Sequences, since: Since = None) -> np.ndarray:
        def value(states: Tensor, following: Following) -> Tensor:
            return self.network.head.log_likelihood(states, following)

        total = self._over(sequences, after_start(sequences, since) if since is not None else None, value)
        ends = np.concatenate([[0], np.cumsum(sequences.lengths + 1)])
        summed = np.concatenate([[0.0], np.cumsum(total)])
        return np.asarray(summed[ends[1:]] - summed[ends[:-1]])

    def states(self, sequences: Sequences) -> Tensor:
        """(tokens, dim) on the CPU: after the start of each window and after each event, sequence by sequence."""
        tape = Tape(sequences)
        found = torch.zeros(len(tape), self.network.dim)

        def visit(states: Tensor, following: Following, tokens: np.ndarray) -> None:
            found[torch.from_numpy(tokens)] = states.cpu()

        self.network.read(tape, visit, self.length, self.history)
        return found

    def gaps(self, sequences: Sequences) -> Any:
        """The `Density` of the gap before each event (events,), given what came before it."""
        last = np.cumsum(sequences.lengths + 1) - 1
        inner = np.ones(len(sequences.times) + len(sequences), dtype=bool)
        inner[last] = False
        with torch.no_grad():
            states = self.states(sequences)[torch.from_numpy(inner)]
            return self.network.head.density(states.to(next(self.network.parameters()).device))

    @torch.no_grad()
    def intensity_at(self, sequences: Sequences, row: int, times: np.ndarray) -> np.ndarray:
        """(n, marks) intensities of sequence ``row`` at any times, just before an event where one is there."""
        one = sequences.select([row])
        last = np.searchsorted(one.times, times, side="left")  # of the token before: 0 is the start
        before = np.concatenate([one.start, one.times])[last]
        states = self.states(one)[torch.from_numpy(last)].to(next(self.network.parameters()).device)
        gaps = torch.from_numpy(np.maximum(times - before, 1e-12)).to(states.device)
        return np.asarray(self.network.head.log_rates(states, gaps).exp().cpu().numpy())
