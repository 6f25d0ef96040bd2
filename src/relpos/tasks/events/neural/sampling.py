"""Draws from a network: the next event, and whole continuations of sequences."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from relpos.tasks.base import Progress
from relpos.tasks.events.neural.heads import Head
from relpos.tasks.events.neural.intensity import Intensities, IntensityHead
from relpos.tasks.events.neural.network import PointNetwork
from relpos.tasks.events.neural.tape import Run, Tape
from relpos.tasks.events.sequences import Sequences

METHODS = ("thinning", "inversion")
MOST = 100_000  # events of one continuation


def next_event(
    head: Head,
    states: Tensor,
    generator: torch.Generator | None = None,
    *,
    floor: Tensor | None = None,
    horizon: float | Tensor = math.inf,
    method: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Gap and mark (..) of the next event after each state (.., dim), all draws independent.

    No event: gap inf and mark -1, where none comes within ``horizon`` (or none at all). floor: time that is known to
    have been silent. method: "inversion" of the survival, which every head has, or "thinning", the default of
    `IntensityHead`. Several draws a state: ``states.expand(count, ..)``.
    """
    method = method or ("thinning" if isinstance(head, IntensityHead) else "inversion")
    if method not in METHODS or (method == "thinning" and not isinstance(head, IntensityHead)):
        raise ValueError(f"method is inversion, or thinning for an intensity; got {method!r} for {type(head).__name__}")
    with torch.no_grad():
        if method == "inversion":
            gaps, marks = head.sample(states, generator, floor)
        else:
            density = head.density(states)
            assert isinstance(density, Intensities)
            gaps = thinned(density, generator, floor, horizon)
            marks = head.sample_marks(states, gaps, generator)
        late = gaps > horizon
        return torch.where(late, math.inf, gaps), torch.where(late, -torch.ones_like(marks), marks)


def thinned(
    density: Intensities,
    generator: torch.Generator | None = None,
    floor: Tensor | None = None,
    horizon: float | Tensor = math.inf,
) -> Tensor:
    """A gap for each intensity (..), inf where none comes within the horizon.

    Events are proposed at a rate that bounds the intensity over a stretch ahead, and kept with probability intensity /
    bound; where no proposal falls into the stretch, the next begins, twice as long. Every draw has proposals of its
    own. The intensity is evaluated as it stands, so no quadrature is involved.
    """
    c = density.coefficients
    shape, flat = c.shape[:-2], c.reshape(-1, *c.shape[-2:])
    at = torch.zeros(len(flat), dtype=torch.float64, device=c.device)
    at += 0.0 if floor is None else floor.reshape(-1)
    last = torch.as_tensor(horizon, dtype=torch.float64, device=c.device).expand(shape).reshape(-1)
    stretch = torch.full_like(at, density.unit / 4)
    until, found = at + stretch, torch.full_like(at, math.inf)
    left = torch.arange(len(flat), device=c.device)
    while len(left):
        own = Intensities(flat[left], density.rates, density.periods, density.unit, density.nodes)
        bound = own.bound(at[left], until[left])
        chance = torch.rand(2, len(left), generator=generator, dtype=torch.float64).to(c.device)
        reach = at[left] - torch.log1p(-chance[0]) / bound
        beyond = reach > until[left]
        taken = ~beyond & (chance[1] * bound < own.log_hazard(reach).exp())
        found[left[taken]] = reach[taken]
        stretch[left[beyond]] *= 2
        at[left] = torch.where(beyond, until[left], reach)
        until[left[beyond]] += stretch[left[beyond]]
        over = (at[left] > last[left]) | torch.isinf(at[left])
        left = left[~taken & ~over]
    return torch.where(found > last, math.inf, found).reshape(shape)


class Draw(NamedTuple):
    """One continuation of each sequence. log_marks (events, marks): how likely each mark was when it was drawn."""

    sequences: Sequences
    log_marks: np.ndarray


def continuations(
    network: PointNetwork,
    sequences: Sequences,
    horizon: float,
    count: int = 1,
    generator: torch.Generator | None = None,
    length: int = 64,
    progress: Progress | None = None,
) -> list[Draw]:
    """``count`` independent draws of what comes in (end, end + horizon] of each window, given all of its events.

    Event by event: the network reads the last ``length`` tokens, drawn ones among them. Of each draw the events, in
    windows (end, end + horizon]; silence between the last event and the end of a window is known to it.
    """
    if not (horizon > 0 and math.isfinite(horizon)) or count < 1:
        raise ValueError(f"a horizon above 0 and a count of at least 1, got {horizon} and {count}")
    training = network.training
    network.eval()
    try:
        drawn = _Drawing(network, sequences, horizon, count, generator, length)
        while len(drawn.left):
            drawn.step()
            if progress is not None:
                progress(len(drawn.end) - len(drawn.left), len(drawn.end), "drawing")
        return drawn.result()
    finally:
        network.train(training)


class _Drawing:
    """Sequences x count that grow side by side, one event a step, until each has left its window."""

    def __init__(
        self,
        network: PointNetwork,
        sequences: Sequences,
        horizon: float,
        count: int,
        generator: torch.Generator | None,
        length: int,
    ) -> None:
        self.network, self.generator, self.length, self.count = network, generator, length, count
        self.whole = sequences
        rows = np.tile(np.arange(len(sequences)), count)
        self.began = sequences.end[rows]
        self.end = self.began + horizon
        self.latest = np.where(sequences.lengths > 0, sequences.latest, sequences.start)[rows]
        first = sequences.offsets[:-1][rows]
        last = sequences.offsets[1:][rows]
        # only what a network reads is carried along
        self.events = [np.arange(max(a, b - length), b) for a, b in zip(first, last)]
        self.times = [sequences.times[each] for each in self.events]
        self.marks = [sequences.kinds[each] for each in self.events]
        self.whole_rows = rows
        self.new: list[list[tuple[float, int, np.ndarray]]] = [[] for _ in rows]
        self.left = np.arange(len(rows))

    def step(self) -> None:
        tape = self._tape()
        sizes = np.diff(tape.offsets).tolist()
        seen, _ = tape.take([Run(row, max(0, n - self.length), n, n) for row, n in enumerate(sizes)])
        device = next(self.network.parameters()).device
        with torch.no_grad():
            states = self.network(type(seen)(*(each.to(device) for each in seen)))
        at = seen.mask.sum(1) - 1
        states = states[torch.arange(len(at), device=device), at.to(device)]
        silent = torch.from_numpy(np.maximum(self.began[self.left] - self.latest[self.left], 0.0)).to(device)
        room = torch.from_numpy(self.end[self.left] - self.latest[self.left]).to(device)
        gaps, marks = next_event(self.network.head, states, self.generator, floor=silent, horizon=room)
        finite = torch.where(torch.isfinite(gaps), gaps, torch.ones_like(gaps))
        with torch.no_grad():
            likely = self.network.head.log_marks(states, finite)
        self._grow(gaps.cpu().numpy(), marks.cpu().numpy(), likely.cpu().numpy())

    def _tape(self) -> Tape:
        """The latest tokens of those that are still growing; the start of a window is one only where it is near."""
        offsets = np.concatenate([[0], np.cumsum([len(self.times[each]) for each in self.left])])
        whole = self.whole
        grown = Sequences(
            np.concatenate([self.times[each] for each in self.left]),
            offsets.astype(np.int64),
            whole.start[self.whole_rows[self.left]],
            np.maximum(self.latest[self.left], self.began[self.left]),
            marks=np.concatenate([self.marks[each] for each in self.left]),
            mark_count=whole.mark_count,
            unit=whole.unit,
        )
        return Tape(grown)

    def _grow(self, gaps: np.ndarray, marks: np.ndarray, likely: np.ndarray) -> None:
        going = np.isfinite(gaps)
        for each, gap, mark, among in zip(self.left[going], gaps[going], marks[going], likely[going]):
            now = self.latest[each] + gap
            self.latest[each] = now
            self.times[each] = np.append(self.times[each], now)[-self.length :]
            self.marks[each] = np.append(self.marks[each], mark)[-self.length :]
            self.new[each].append((float(now), int(mark), among))
            if len(self.new[each]) > MOST:
                raise ValueError(f"more than {MOST:,} events in one continuation: the network explodes")
        self.left = self.left[going]

    def result(self) -> list[Draw]:
        whole, size = self.whole, len(self.whole)
        found = []
        for draw in range(self.count):
            some = self.new[draw * size : (draw + 1) * size]
            offsets = np.concatenate([[0], np.cumsum([len(each) for each in some])]).astype(np.int64)
            every = [event for each in some for event in each]
            times = np.array([time for time, _, _ in every], dtype=np.float64)
            kinds = np.array([mark for _, mark, _ in every], dtype=np.int64)
            likely = np.array([among for _, _, among in every], dtype=np.float64).reshape(-1, whole.mark_count)
            drawn = Sequences(
                times, offsets, self.began[:size], self.end[:size], None if whole.marks is None else kinds,
                ids=whole.ids, mark_names=whole.mark_names, mark_count=whole.mark_count, unit=whole.unit,
            )  # fmt: skip
            found.append(Draw(drawn, likely))
        return found
