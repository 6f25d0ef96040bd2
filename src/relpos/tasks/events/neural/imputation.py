"""Where an `IMTPP` expects hidden events, by cells of time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from relpos.tasks.events.imputers import Cells, Masses
from relpos.tasks.events.neural.imtpp import IMTPP
from relpos.tasks.events.neural.tape import Following, Run, Seen, Tape
from relpos.tasks.events.neural.truncated import TruncatedLogNormal


class Pieces:
    """The parts of cells that lie within the scored gaps of some runs.

    batch, token, row, cell (pieces,): whose gap and which cell; low, high: from the gap's beginning.
    """

    def __init__(self, tape: Tape, runs: list[Run], following: Following, cells: Cells) -> None:
        batch, token = following.scored.numpy().nonzero()
        row = np.array([runs[b].row for b in batch], dtype=np.int64)
        begin = tape.times[tape.offsets[row] + np.array([runs[b].begin for b in batch], dtype=np.int64) + token]
        gap = following.gaps.numpy()[batch, token]
        since = begin - cells.start[row]
        first = np.floor(since / cells.width).astype(np.int64)
        last = np.maximum(np.ceil((since + gap) / cells.width).astype(np.int64), first + 1)
        counts = last - first
        own = np.repeat(np.arange(len(row)), counts)
        cell = first[own] + np.arange(len(own)) - np.repeat(np.cumsum(counts) - counts, counts)
        low = np.maximum(cell * cells.width - since[own], 0.0)
        high = np.minimum((cell + 1) * cells.width - since[own], gap[own])
        self.batch, self.token, self.row = batch[own], token[own], row[own]
        self.cell = np.clip(cell, 0, cells.counts[self.row] - 1)
        self.low, self.high = torch.from_numpy(low), torch.from_numpy(high)

    def add(self, masses: Masses, values: np.ndarray) -> None:
        """values (pieces, marks) into the cells."""
        for row in np.unique(self.row):
            own = self.row == row
            np.add.at(masses[row], self.cell[own], values[own])


@torch.no_grad()
def masses_of(
    model: IMTPP, seen: Seen, following: Following, pieces: Pieces, share: float, draws: int,
    generator: torch.Generator | None = None,
) -> np.ndarray:  # fmt: skip
    """(pieces, marks) expected hidden events: the mean over paths of the posterior's own densities.

    Of a deterministic posterior: its points, with their weights. Without hidden events: share / (1 - share) times the
    hazard of a recorded one, given what was recorded before.
    """
    states = model.history(seen)
    if not model.latent:
        return _by_hazard(model, states, seen, pieces, share)
    points = model.posterior == "deterministic"
    count = 1 if points else draws
    paths = model.paths(states, seen, following, share, count, generator, model.posterior)
    reached, marks = paths.reached(), paths.log_marks.exp()
    found = torch.zeros(len(pieces.batch), model.marks, dtype=torch.float64)
    since = paths.gaps.cumsum(-1) - paths.gaps
    for draw in range(count):
        at = (torch.from_numpy(pieces.batch) + draw * len(seen.marks), torch.from_numpy(pieces.token))
        for slot, density in enumerate(paths.densities):
            begun = since[..., slot][at]
            if points:
                there = begun + paths.gaps[..., slot][at]
                inside = ((there >= pieces.low) & (there < pieces.high)).double()
            else:
                own = _of(density, at)
                inside = own.cdf(pieces.high - begun) - own.cdf(pieces.low - begun)
            found += (inside * reached[..., slot][at])[:, None] * marks[..., slot, :][at]
    return (found / count).clamp_min(0.0).numpy()


def _of(density: TruncatedLogNormal, at: tuple[Tensor, Tensor]) -> TruncatedLogNormal:
    parts = (density.loc[at], density.log_scale[at], density.log_weight[at], density.bound[at])
    return TruncatedLogNormal(*parts)


def _by_hazard(model: IMTPP, states: Tensor, seen: Seen, pieces: Pieces, share: float) -> np.ndarray:
    z = model.states_of(states, seen)[torch.from_numpy(pieces.batch), torch.from_numpy(pieces.token)]
    density = model.head.density(z)
    mass = density.log_survival(pieces.low) - density.log_survival(pieces.high)
    marks = model.head.log_marks(z, (pieces.low + pieces.high) / 2).exp()
    found: np.ndarray = (share / (1 - share) * mass[:, None] * marks).numpy()
    return found
