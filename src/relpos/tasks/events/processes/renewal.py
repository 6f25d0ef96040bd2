"""Renewal processes: gaps are independent draws from one density, marks independent of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from relpos.tasks.events.processes.base import Process, previous
from relpos.tasks.events.processes.densities import Density, LogLogistic, LogNormalMixture, Weibull
from relpos.tasks.events.processes.poisson import positive
from relpos.tasks.events.processes.scan import minimise
from relpos.tasks.events.sequences import Sequences

FAMILIES = ("lognormal", "weibull", "loglogistic", "exponential")


def density(family: str, parameters: Tensor) -> Density:
    """The density of one of `FAMILIES`. parameters: (2,), of log times; the exponential uses the first alone."""
    if family == "lognormal":
        return LogNormalMixture(parameters[:1], parameters[1:])
    if family == "weibull":
        return Weibull(parameters[0], parameters[1])
    if family == "loglogistic":
        return LogLogistic(parameters[0], parameters[1])
    if family == "exponential":
        return Weibull(parameters[0])
    raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")


class Renewal(Process):
    """gaps: a `Density`; shares: (marks,) probability of each mark.

    The start of a window counts as an event. An event at that very time is this event: only its mark is scored.
    """

    name = "renewal"

    def __init__(self, gaps: Density, shares: Any = (1.0,)) -> None:
        self.gaps = gaps
        self.shares = positive(shares, "shares", 1)
        if not np.isclose(self.shares.sum(), 1):
            raise ValueError(f"shares of the marks sum to 1, got {self.shares.sum()}")
        self.marks = len(self.shares)
        self.parameters = 1 + self.marks

    @classmethod
    def fit(cls, sequences: Sequences, family: str = "lognormal") -> Renewal:
        """Maximum likelihood, with the gaps that the ends of the windows cut off as cut-off ones.

        ValueError where a gap is 0 and the family has no density there.
        """
        counts = sequences.count_marks()
        if not counts.sum() > 0:
            raise ValueError("a renewal process needs at least one event")
        gaps = torch.from_numpy(_scored(sequences)[0])
        if not len(gaps):
            raise ValueError("a renewal process needs a gap: no sequence has an event after the start of its window")
        last = torch.from_numpy(sequences.end - sequences.latest)
        logs = torch.log(gaps)
        spread = float(logs.std()) if len(logs) > 1 and float(logs.std()) > 1e-6 else 1.0
        start = [float(logs.mean()), np.log(spread) if family == "lognormal" else -np.log(spread)]

        def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = torch.tensor(point, dtype=torch.float64, requires_grad=True)
            found = density(family, parameters)
            value = -(found.log_prob(gaps).sum() + found.log_survival(last[last > 0]).sum()) / len(gaps)
            value.backward()  # type: ignore[no-untyped-call]
            assert parameters.grad is not None
            return float(value.detach()), parameters.grad.numpy()

        point = minimise(objective, np.array(start))
        return cls(density(family, torch.from_numpy(point)), counts / counts.sum())

    def log_intensity(self, sequences: Sequences) -> np.ndarray:
        gaps, scored = _scored(sequences)
        hazard = np.zeros(len(scored))
        hazard[scored] = self.gaps.log_hazard(torch.from_numpy(gaps)).numpy()
        with np.errstate(divide="ignore"):
            return hazard + np.log(self.shares)[sequences.kinds]

    def compensator(self, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
        return self.compensator_from(sequences, sequences.start)

    def compensator_from(self, sequences: Sequences, since: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before, final, floor = previous(sequences), sequences.latest, np.repeat(since, sequences.lengths)
        gaps = self._hazard(np.maximum(sequences.times, floor) - before) - self._hazard(np.maximum(floor - before, 0))
        last = self._hazard(sequences.end - final) - self._hazard(np.maximum(since - final, 0))
        return gaps[:, None] * self.shares, last[:, None] * self.shares

    def _hazard(self, gaps: np.ndarray) -> np.ndarray:
        """Cumulative hazard since the event before."""
        found = np.zeros_like(gaps)
        some = gaps > 0
        found[some] = -self.gaps.log_survival(torch.from_numpy(gaps[some])).numpy()
        return found


def _scored(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """The gaps that have a density, and where they are (events,). ValueError for a gap of 0 between two events."""
    gaps = sequences.times - previous(sequences)
    begin = np.zeros(len(gaps), dtype=bool)
    begin[sequences.firsts] = True
    zero = gaps <= 0
    tied = zero & ~begin
    if tied.any():
        at = int(tied.argmax())
        raise ValueError(
            f"{sequences.where(at)}: the gap is 0, where densities of gaps are "
            f"0 or infinite ({int(tied.sum())} such gaps). Read the data with ties='spread' or 'first'"
        )
    return gaps[~zero], ~zero
