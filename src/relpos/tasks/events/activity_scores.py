"""How well an activity is read: over the observed part of each sequence, for networks and for tables alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from relpos.tasks.base import Metric, Progress
from relpos.tasks.events.activity_baselines import Gaps, Markov, NaiveBayes, Symbols, pairs
from relpos.tasks.events.activity_data import Tracks, observed
from relpos.tasks.events.activity_network import falls
from relpos.tasks.events.activity_writing import Written, write
from relpos.tasks.events.sequences import Sequences

if TYPE_CHECKING:
    from relpos.tasks.events.activity import Activity as Task

WRITTEN = 24  # events at most of a continuation
CANDIDATES = 8
_CONTINUED = 64  # test sequences
COSTS = (
    Metric("guided", "goal reached, written to it", unit="%", format=".0f", scale=100),
    Metric("unguided", "goal reached, written freely", unit="%", format=".0f", scale=100),
    Metric("apart", "written marks apart from real ones", higher_is_better=False, format=".3f"),
    Metric("tempo", "written gap / real gap", best=1.0, format=".2f"),
)
"""Of continuations, see `generation`."""


def metrics(unit: str) -> tuple[Metric, ...]:
    return (
        Metric("goal", "goal accuracy", unit="%", format=".1f", scale=100),
        Metric("action", "next-action accuracy", unit="%", format=".1f", scale=100),
        Metric("time", "error of the next time", higher_is_better=False, unit=unit, format=".2f"),
        Metric("fall", "fall of the true goal's probability", higher_is_better=False, format=".3f"),
        Metric("goal_nats", "log loss of the goal", higher_is_better=False, unit="nats", format=".3f"),
    )


def padded(tracks: Tracks, rows: np.ndarray, late: np.ndarray) -> tuple[Tensor, ...]:
    """marks, times, mask, gaps, following, (rows, longest) each, and goals (rows,); a sequence begins with event
    ``late`` (rows,), at time 0. Pads have mark 0, the last time, gap 1 and following -1, which nothing reads."""
    s = tracks.sequences
    first, size = s.offsets[rows] + late, s.lengths[rows] - late
    column = np.arange(size.max())[None, :]
    mask = column < size[:, None]
    at = first[:, None] + np.minimum(column, size[:, None] - 1)
    last = column == size[:, None] - 1
    after = np.minimum(at + 1, len(s.times) - 1)
    gaps = np.where(last, (s.end - s.latest)[rows][:, None], s.times[after] - s.times[at])
    arrays = (
        np.where(mask, s.kinds[at], 0),
        s.times[at] - s.times[first][:, None],
        mask,
        np.where(mask, gaps, 1.0),
        np.where(mask & ~last, s.kinds[after], -1),
        tracks.goals[rows],
    )
    return tuple(map(torch.from_numpy, arrays))


class Read(NamedTuple):
    """What is predicted at every event of some sequences, end to end.

    log_likelihood  (events,) of what follows each
    log_goals       (events, goals)
    action          (events,) share of a right answer: 1 where the likeliest mark follows, 0 where another one does
    median          (events,) of the gap to come, given that an event comes
    """

    log_likelihood: np.ndarray
    log_goals: np.ndarray
    action: np.ndarray
    median: np.ndarray


@torch.no_grad()
def read(model: nn.Module, tracks: Tracks, size: int, progress: Progress | None, text: str) -> Read:
    """The network's predictions, its mode kept."""
    training, device = model.training, next(model.parameters()).device
    network: Any = model.eval()
    parts: list[tuple[np.ndarray, ...]] = []
    try:
        for begin in range(0, len(tracks), size):
            rows = np.arange(begin, min(begin + size, len(tracks)))
            *events, _ = (each.to(device) for each in padded(tracks, rows, np.zeros_like(rows)))
            reading = network(*events)
            mask, states = events[2], reading.states
            right = network.head.log_marks(states).argmax(-1) == events[4]
            median = network.head.density(states).quantile(0.5)
            found = (reading.log_likelihood, reading.log_goals, right.double(), median)
            parts.append(tuple(each[mask].cpu().numpy() for each in found))
            if progress is not None:
                progress(int(rows[-1]) + 1, len(tracks), text)
    finally:
        model.train(training)
    return Read(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def judged(read: Read, tracks: Tracks, percent: int) -> dict[str, float]:
    """The loss and the metrics over the first ``percent`` of each sequence."""
    s = tracks.sequences
    seen = observed(s.lengths, percent)
    last, following = pairs(s, percent)
    scored = read.log_likelihood[last].sum()
    if percent == 100:
        scored += read.log_likelihood[s.offsets[1:] - 1].sum()
    errors = np.abs(read.median[last] - (s.times[following] - s.times[last]))
    return {
        "loss": float(-scored / len(last)),
        **goal_scores(read.log_goals, tracks, seen),
        "action": float(read.action[last].mean()),
        "time": float(errors.mean()),
    }


def goal_scores(log_goals: np.ndarray, tracks: Tracks, seen: np.ndarray) -> dict[str, float]:
    """Of the goal after the first ``seen`` events of each sequence: accuracy (equal odds share), log loss, and how far
    the true goal's probability is below its best so far, mean over those events."""
    s = tracks.sequences
    final = log_goals[s.offsets[:-1] + seen - 1]
    best = final == final.max(1, keepdims=True)
    rows = np.arange(len(tracks))
    true = np.exp(log_goals[np.arange(len(s.times)), np.repeat(tracks.goals, s.lengths)])
    each = [
        falls(torch.from_numpy(p[None, :k]), torch.ones(1, k, dtype=torch.bool)).mean().item()
        for p, k in zip(np.split(true, s.offsets[1:-1]), seen.tolist())
    ]
    return {
        "goal": float((best[rows, tracks.goals] / best.sum(1)).mean()),
        "fall": float(np.mean(each)),
        "goal_nats": float(-final[rows, tracks.goals].mean()),
    }


class Rows:
    """The baselines of one task, fitted to its training side; what has free numbers takes them by its validation."""

    def __init__(self, train: Tracks, held: Tracks, goals: int) -> None:
        prior = np.bincount(train.goals, minlength=goals) + 1.0
        self.log_prior = np.log(prior / prior.sum())
        self.symbols = {
            "Naive Bayes on marks": Symbols(train.sequences, gaps=False),
            "Naive Bayes on marks and gaps": Symbols(train.sequences, gaps=True),
        }
        self.bayes = {
            name: NaiveBayes.fit(
                each.count, goals, (each.of(train.sequences), train.goals), (each.of(held.sequences), held.goals)
            )
            for name, each in self.symbols.items()
        }
        self.markov = Markov(train.sequences)
        self.gaps = {kind: Gaps(train.sequences, kind) for kind in ("exponential", "log-normal")}

    def judged(self, tracks: Tracks, percent: int) -> dict[str, dict[str, float]]:
        """{name: values} on the very things that `judged` scores."""
        s = tracks.sequences
        last, following = pairs(s, percent)
        seen = observed(s.lengths, percent)
        gaps, marks = s.times[following] - s.times[last], s.kinds[following]
        constant = np.tile(self.log_prior, (len(s.times), 1))
        common = int(self.markov.log_marks.argmax())
        right = self.markov.log_table[s.kinds[last]].argmax(1) == marks
        known = {
            "commonest goal and action, median gap": {
                **goal_scores(constant, tracks, seen),
                "action": float((marks == common).mean()),
                "time": float(np.abs(gaps - self.gaps["log-normal"].median).mean()),
            },
            **{
                name: goal_scores(
                    np.concatenate([table.prefixes(row) for row in self.symbols[name].of(s)]), tracks, seen
                )
                for name, table in self.bayes.items()
            },
            "Poisson": {"loss": self._loss(s, gaps, self.markov.log_marks[marks].sum(), percent, "exponential")},
            "Markov table, log-normal gaps": {
                "loss": self._loss(s, gaps, self.markov.log_table[s.kinds[last], marks].sum(), percent, "log-normal"),
                "action": float(right.mean()),
            },
        }
        return known  # fmt: skip

    def _loss(self, s: Sequences, gaps: np.ndarray, marks: float, percent: int, kind: str) -> float:
        total = marks + self.gaps[kind].log_prob(gaps).sum()
        if percent == 100:
            total += self.gaps[kind].log_silence(s.end - s.latest).sum()
        return float(-total / len(gaps))

    def judge(self, marks: list[np.ndarray]) -> np.ndarray:
        """(sequences,) the goal that Naive Bayes sees in some marks; -1 where there are none."""
        table = self.bayes["Naive Bayes on marks"]
        return np.array([int(table.prefixes(row)[-1].argmax()) if len(row) else -1 for row in marks])

    def real(self, task: Task) -> str:
        """What the judge of continuations says of the real ones."""
        tracks, _, rest = continued(task)
        right = self.judge([marks for marks, _ in rest]) == tracks.goals
        return f"{right.mean():.0%} of {len(tracks)} are judged to have their goal, by Naive Bayes on their marks"


def continued(task: Task) -> tuple[Tracks, tuple[Tensor, Tensor], list[tuple[np.ndarray, np.ndarray]]]:
    """Some test sequences, their beginnings (count, beginning) each, and up to `WRITTEN` marks and gaps after them."""
    test, k = task.side("test"), task.beginning
    long = np.flatnonzero(test.sequences.lengths > k)
    if not len(long):
        raise ValueError(f"no test sequence has more than {k} events to write on from: give a smaller beginning")
    few = test.select(np.sort(np.random.default_rng(5).permutation(long)[:_CONTINUED]))
    begin = np.stack([few.sequences.offsets[:-1] + i for i in range(k)], 1)
    s = few.sequences
    rest = [
        (s.kinds[a + k : min(a + k + WRITTEN, b)], np.diff(s.times[a + k - 1 : min(a + k + WRITTEN, b)]))
        for a, b in zip(s.offsets[:-1], s.offsets[1:])
    ]
    return few, (torch.from_numpy(s.kinds[begin]), torch.from_numpy(s.times[begin])), rest


def generation(model: Any, task: Task) -> dict[str, float]:
    """Of continuations of test sequences by up to `WRITTEN` events, one draw each, the same random numbers for all.

    guided    share that Naive Bayes on their marks alone judges to have the goal that they were written to; goals are
              drawn at random, so the beginning does not tell them
    unguided  the same of continuations written without a goal
    apart     total variation between the marks of continuations written to the true goals and of the real ones, mean
              over goals
    tempo     median of the gaps of those, divided by that of the real ones
    """
    few, (marks, times), rest = continued(task)
    goals = len(task.data.classes)
    asked = np.random.default_rng(6).integers(goals, size=len(few))
    quiet = float("inf") if task.quiet is None else task.quiet

    def on(towards: np.ndarray | None, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        given = None if towards is None else torch.from_numpy(towards)
        drawn = write(
            model, marks, times, torch.Generator().manual_seed(seed), goals=given, most=WRITTEN, silence=quiet,
            candidates=CANDIDATES,
        )  # fmt: skip
        return parts(drawn, times[:, -1])

    guided, free, true = on(asked, 1), on(None, 2), on(few.goals, 3)
    return {
        "guided": float((task.rows.judge([marks for marks, _ in guided]) == asked).mean()),
        "unguided": float((task.rows.judge([marks for marks, _ in free]) == asked).mean()),
        "apart": variation(true, rest, few.goals, task.side("train").sequences.mark_count),
        "tempo": _median(true) / _median(rest),
    }


def parts(drawn: Written, before: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Marks and gaps of each continuation, up to its end."""
    gaps = torch.diff(drawn.times, dim=1, prepend=before[:, None])
    return [(m[:n].numpy(), g[:n].numpy()) for m, g, n in zip(drawn.marks, gaps, drawn.lengths.tolist(), strict=True)]


def _median(parts: list[tuple[np.ndarray, np.ndarray]]) -> float:
    gaps = np.concatenate([gaps for _, gaps in parts])
    return float(np.median(gaps)) if len(gaps) else 0.0


def variation(
    one: list[tuple[np.ndarray, np.ndarray]], other: list[tuple[np.ndarray, np.ndarray]], goals: np.ndarray, marks: int
) -> float:
    """Half the sum of differences of the shares of marks, mean over the goals that both have events of; 1 of none."""
    found = []
    for goal in np.unique(goals):
        sums = [
            sum((np.bincount(parts[row][0], minlength=marks) for row in np.flatnonzero(goals == goal)), np.zeros(marks))
            for parts in (one, other)
        ]
        if all(each.sum() for each in sums):
            found.append(0.5 * float(np.abs(sums[0] / sums[0].sum() - sums[1] / sums[1].sum()).sum()))
    return float(np.mean(found)) if found else 1.0
