"""What every point process here can do. Its likelihood is that of the whole window, in the unit of the times.

    log L = sum_i log lambda_{mark_i}(t_i) - integral over (start, end] of sum_k lambda_k(t) dt

The first gap, from the start of the window, and the survival after the last event belong to it; the intensity at an
event is the left limit, so an event is never part of its own history; the integral is over all marks. With ``since``
only (since, end] is scored and what came before is history: L(start, end) = L(start, since) L(since, end | history).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from relpos.tasks.events.processes.scan import running, summed
from relpos.tasks.events.sequences import Sequences

Since = float | np.ndarray | None


class Process:
    """Base of the classical processes; ``marks`` is the number of kinds of events (1 where events have no marks)."""

    name: ClassVar[str] = ""
    marks: int
    parameters: int

    def log_intensity(self, sequences: Sequences) -> np.ndarray:
        """(events,) log lambda of the mark that occurred, just before it did. Renewal processes: log hazard."""
        raise NotImplementedError

    def compensator(self, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
        """Integral of the intensity by mark: (events, marks) within the gap before each event, and (count, marks)
        within the gap after the last event, up to the end of the window."""
        raise NotImplementedError

    def compensator_from(self, sequences: Sequences, since: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `compensator`, of the parts of the gaps that lie after ``since`` (count,)."""
        raise NotImplementedError

    def log_likelihood(self, sequences: Sequences, since: Since = None) -> np.ndarray:
        """(count,) log likelihood of the window of each sequence, or of its part after ``since``."""
        self._known(sequences)
        scores = self.log_intensity(sequences)
        if since is None:
            gaps, last = self.compensator(sequences)
        else:
            after = after_start(sequences, since)
            scores = np.where(sequences.times > np.repeat(after, sequences.lengths), scores, 0.0)
            gaps, last = self.compensator_from(sequences, after)
        return summed(scores - gaps.sum(-1), sequences.offsets) - last.sum(-1)

    def nats(self, sequences: Sequences, since: Since = None) -> float:
        """Log likelihood an event (nats; of time and mark jointly), over all sequences."""
        count = len(sequences.times)
        if since is not None:
            count = int((sequences.times > np.repeat(after_start(sequences, since), sequences.lengths)).sum())
        if count == 0:
            raise ValueError("there is no event to score")
        return float(self.log_likelihood(sequences, since).sum() / count)

    def cumulative(self, sequences: Sequences) -> np.ndarray:
        """(events, marks) compensator from the start of the window to each event."""
        return running(self.compensator(sequences)[0], sequences.offsets)

    def _known(self, sequences: Sequences) -> None:
        sequences.require_marks(self.marks)


def after_start(sequences: Sequences, since: float | np.ndarray) -> np.ndarray:
    """``since`` as (count,) float64. ValueError where it lies outside of a window."""
    after = np.broadcast_to(np.asarray(since, dtype=np.float64), sequences.start.shape)
    outside = ~((after >= sequences.start) & (after <= sequences.end))
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"since must lie within the window of every sequence; {sequences.name_of(row)} has the window "
            f"{sequences.start[row]:g} to {sequences.end[row]:g}, got {after[row]:g}"
        )
    return after


def previous(sequences: Sequences) -> np.ndarray:
    """(events,) time of the event before, or the start of the window for the first."""
    before = np.empty_like(sequences.times)
    before[1:] = sequences.times[:-1]
    before[sequences.firsts] = sequences.start[sequences.lengths > 0]
    return before
