"""Pictures of a network that reads activities: the goal along a sequence, and continuations beside the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from relpos.tasks.base import Artifact
from relpos.tasks.events import activity_scores as scores
from relpos.tasks.events.activity_writing import write

if TYPE_CHECKING:
    from relpos.tasks.events.activity import Activity as Task

SHOWN = 6
BAYES = "Naive Bayes on marks"
FEWEST = 10  # sequences that a share is still drawn of


def along(model: nn.Module, task: Task, directory: Path) -> list[Artifact]:
    """Two pictures; the sequences are the same for every model."""
    directory.mkdir(parents=True, exist_ok=True)
    test = task.side("test")
    found = task.read(model, "test").log_goals
    tables = {name: each.of(test.sequences) for name, each in task.rows.symbols.items()}
    bayes = np.concatenate([task.rows.bayes[BAYES].prefixes(row) for row in tables[BAYES]])
    return [
        Artifact(_probabilities(found, bayes, task, directory / "goal.png"), "image", "the true goal along sequences"),
        Artifact(_accuracy(found, bayes, task, directory / "seen.png"), "image", "goal accuracy, by events seen"),
    ]


def _probabilities(found: np.ndarray, bayes: np.ndarray, task: Task, path: Path) -> Path:
    from matplotlib.figure import Figure

    test = task.side("test")
    figure = Figure(figsize=(10, 5), dpi=100, layout="constrained")
    for axes, row in zip(figure.subplots(2, SHOWN // 2, sharey=True).ravel(), _spread(test.goals)):
        here = slice(test.sequences.offsets[row], test.sequences.offsets[row + 1])
        goal = test.goals[row]
        seen = np.arange(1, test.sequences.lengths[row] + 1)
        best = np.maximum.accumulate(np.exp(found[here, goal]))
        axes.fill_between(seen, np.exp(found[here, goal]), best, color="tab:red", alpha=0.25, lw=0, label="fall")
        axes.plot(seen, np.exp(found[here, goal]), color="tab:blue", label="network")
        axes.plot(seen, np.exp(bayes[here, goal]), color="0.5", lw=1, ls="--", label="Naive Bayes")
        axes.set_title(f"{_goal(task, goal)}", fontsize=9)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("events seen")
    figure.axes[0].set_ylabel("probability of the true goal")
    figure.axes[0].legend(fontsize=7, loc="lower right")
    figure.savefig(path)
    return path


def _spread(goals: np.ndarray) -> list[int]:
    """Rows that take turns by goal."""
    turns = sorted(range(len(goals)), key=lambda row: (int((goals[:row] == goals[row]).sum()), int(goals[row])))
    return turns[:SHOWN]


def _accuracy(found: np.ndarray, bayes: np.ndarray, task: Task, path: Path) -> Path:
    from matplotlib.figure import Figure

    test = task.side("test")
    s, prior = test.sequences, int(task.rows.log_prior.argmax())
    counts = [k for k in range(1, int(s.lengths.max()) + 1) if (s.lengths >= k).sum() >= FEWEST] or [1]
    figure = Figure(figsize=(6.5, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for log_p, name, style in ((found, "network", "-"), (bayes, "Naive Bayes on marks", "--")):
        right = log_p.argmax(1) == np.repeat(test.goals, s.lengths)
        share = [right[s.offsets[:-1][s.lengths >= k] + k - 1].mean() for k in counts]
        axes.plot(counts, share, style, label=name)
    axes.plot(
        counts, [(test.goals[s.lengths >= k] == prior).mean() for k in counts], ":", color="0.5", label="commonest"
    )
    axes.set_xlabel(f"events seen (of the test sequences that have so many, {FEWEST} at least)")
    axes.set_ylabel("goal accuracy")
    axes.set_ylim(0, 1.02)
    axes.legend()
    figure.savefig(path)
    return path


def _goal(task: Task, goal: int) -> str:
    return task.data.classes[goal] if goal < len(task.data.classes) else str(goal)


def _marks(task: Task) -> tuple[str, ...]:
    s = task.side("train").sequences
    return s.mark_names or tuple(f"action {index + 1}" for index in range(s.mark_count))


def written(model: nn.Module, task: Task, directory: Path, seed: int) -> list[Artifact]:
    """A text and a picture: beginnings, how they went on, and how the network goes on to the goal and to another."""
    directory.mkdir(parents=True, exist_ok=True)
    few, (marks, times), rest = scores.continued(task)
    rows = np.array(_spread(few.goals)[:4])
    goals = max(len(task.data.classes), 2)
    aims = {"written to its goal": few.goals[rows], "written to another": (few.goals[rows] + 1) % goals}
    lines: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"real": [rest[row] for row in rows]}
    for number, (name, aim) in enumerate(aims.items()):
        drawn = write(
            model, marks[rows], times[rows], torch.Generator().manual_seed(1000 * seed + number),  # type: ignore[arg-type]
            goals=torch.from_numpy(aim), most=scores.WRITTEN, silence=task.quiet or float("inf"),
            candidates=scores.CANDIDATES,
        )  # fmt: skip
        lines[name] = scores.parts(drawn, times[rows, -1])
    titles = [
        {name: f"{name}: {_goal(task, int(aim[i]))}" for name, aim in aims.items()} | {"real": "real"}
        for i in range(len(rows))
    ]
    begun = [(marks[row].numpy(), times[row].numpy()) for row in rows]
    heads = [f"{few.sequences.name_of(row)}, goal {_goal(task, int(few.goals[row]))}" for row in rows]
    text = _text(begun, lines, titles, heads, task, directory / "continuations.txt")
    picture = _raster(begun, lines, titles, heads, task, directory / "continuations.png")
    return [
        Artifact(text, "text", "Beginnings, and how they go on"),
        Artifact(picture, "image", "beginnings (left of the line), and how they go on"),
    ]


Parts = list[tuple[np.ndarray, np.ndarray]]


def _text(
    begun: Parts, lines: dict[str, Parts], titles: list[dict[str, str]], heads: list[str], task: Task, path: Path
) -> Path:
    names, found = _marks(task), []
    for i, (marks, times) in enumerate(begun):
        gaps = np.diff(times, prepend=times[:1])
        found += [f"{heads[i]} (gaps in {task.time_unit})", f"  it begins: {_told(marks, gaps, names)}"]
        for name, part in lines.items():
            ends = " (end)" if len(part[i][0]) < scores.WRITTEN else ""
            found += [f"  {titles[i][name]}: {_told(*part[i], names)}{ends}"]
        found += [""]
    path.write_text("\n".join(found), encoding="utf-8")
    return path


def _told(marks: np.ndarray, gaps: np.ndarray, names: tuple[str, ...]) -> str:
    return " ".join(f"+{gap:.3g} {names[mark]}" for mark, gap in zip(marks.tolist(), gaps.tolist()))


def _raster(
    begun: Parts, lines: dict[str, Parts], titles: list[dict[str, str]], heads: list[str], task: Task, path: Path
) -> Path:
    from matplotlib.figure import Figure

    names = _marks(task)
    figure = Figure(figsize=(10, 1.6 * len(begun) + 0.6), dpi=100, layout="constrained")
    for axes, i in zip(figure.subplots(len(begun), 1, squeeze=False)[:, 0], range(len(begun))):
        marks, times = begun[i]
        for height, (name, part) in enumerate(reversed(lines.items())):
            when = np.concatenate([times, times[-1] + np.cumsum(part[i][1])]) - times[-1]
            what = np.concatenate([marks, part[i][0]])
            for mark in np.unique(what):
                at = when[what == mark]
                axes.plot(at, np.full(len(at), height), "|", ms=14, mew=2, color=f"C{mark % 10}")
            axes.text(1.01, height, titles[i][name], transform=axes.get_yaxis_transform(), fontsize=8, va="center")
        axes.axvline(0, color="0.7", lw=1)
        axes.set_xscale("symlog", linthresh=10 * float(task.rows.gaps["log-normal"].median))
        axes.set_yticks([])
        axes.set_ylim(-0.6, len(lines) - 0.4)
        axes.set_title(heads[i], fontsize=8, loc="left")
    figure.axes[-1].set_xlabel(f"{task.time_unit} after the beginning")
    some = names[:10]
    handles = [figure.axes[0].plot([], [], "|", ms=10, mew=2, color=f"C{k}")[0] for k in range(len(some))]
    figure.legend(handles, some, loc="outside upper center", ncols=len(some), fontsize=8)
    figure.savefig(path)
    return path
