"""Tasks with metrics of their own: classification as the tables, the page and the resumed run see it."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from relpos import tasks
from relpos.lab import plots
from relpos.lab.assess import read_record
from relpos.lab.compare import compare, without_the_unable
from relpos.lab.errors import LabError, RunDirectoryError
from relpos.lab.jobs import Crew
from relpos.lab.report import headline, markdown_table, measured, write_markdown
from relpos.lab.results import Value, collect
from relpos.lab.run import Run
from relpos.tasks import ACCURACY, Evaluation, Metric, Task
from tests.lab.conftest import SIGNS, quiet, settings
from tests.lab.test_cli import relpos
from tests.lab.toy import Signs, Toy

ONE = settings(task="toy-signs", encodings=("nope",), seeds=(0,), steps=2)


def values(run: Run, label: str, metric: str) -> list[float]:
    return [read_record(run.model(label, seed))["lengths"]["16"]["values"][metric] for seed in (0, 1)]


def test_the_toys_are_tasks() -> None:
    assert isinstance(Signs(), Task) and isinstance(Toy(), Task)


def test_a_metric_is_written_in_its_scale_and_knows_its_direction() -> None:
    assert ACCURACY.text(0.4126) == "41.3" and ACCURACY.text(0.05, sign=True) == "+5.0"
    assert ACCURACY.gain(0.5, 0.4) > 0 > Metric("x", "x", higher_is_better=False).gain(0.5, 0.4)


def test_every_metric_is_a_column_with_its_spread_and_baselines_are_rows(signs: Run) -> None:
    lines = markdown_table(collect(signs)).splitlines()
    assert lines[0].startswith("| encoding | accuracy | misses | loss | parameters")
    accuracy = values(signs, "nope", "accuracy")
    mean, spread = 50 * sum(accuracy), 50 * abs(accuracy[0] - accuracy[1])
    assert f"{mean:.1f} ± {spread:.1f}" in next(line for line in lines if line.startswith("| nope |"))
    assert lines[-1].startswith("| *always even* (baseline) | 55.0 | 18.0 | - |")
    with open(signs.path / "table.csv") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["toy_slope[sign=-1]"]["accuracy_16"]) == pytest.approx(
        sum(values(signs, SIGNS[1], "accuracy")) / 2
    )
    assert float(rows["always even"]["misses_16"]) == 18 and rows["always even"]["loss_16"] == ""


def test_the_best_is_marked_by_the_direction_of_each_metric(signs: Run) -> None:
    results = collect(signs)
    for row, accuracy in zip(results.rows, (0.2, 0.9, 0.5), strict=True):
        row.values["accuracy"][16] = Value(accuracy, 0.01, (accuracy,))
        row.values["misses"][16] = Value(40 * (1 - accuracy), 0.4, ())
    lines = markdown_table(results).splitlines()[2:5]
    assert ["**90.0 ± 1.0**" in line and "**4.0 ± 0.4**" in line for line in lines] == [False, True, False]
    assert not any("**20.0" in line or "**32.0" in line for line in lines)
    text = headline(results)
    assert text.startswith(
        "toy_slope[sign=-1] is best: accuracy 90.0 ± 1.0 %, 35.0 above the best trivial predictor (always even)."
    )
    limits = {**results.baselines, "optimum": {"accuracy": {16: 1.0}}}
    bounded = headline(dataclasses.replace(results, baselines=limits, bounds=("optimum",)))
    assert "35.0 above the best trivial predictor (always even) and 10.0 below what can be reached (optimum)" in bounded
    assert measured(results).startswith("Accuracy: %, higher is better. Misses: lower is better. Loss: nats an example")
    assert results.best_baseline(results.metrics[0], 16) == ("always even", 0.55)
    assert results.best_baseline(results.loss, 16) is None


def test_the_page_shows_strips_and_no_curve_by_position_and_no_empty_section(signs: Run, tmp_path: Path) -> None:
    text = (signs.path / "report.html").read_text()
    titles = re.findall(r"<figure[^>]*><h3>([^<]*)</h3>", text)
    assert titles == ["Accuracy, seed by seed", "Misses, seed by seed", "Loss, seed by seed", "Training"]
    assert "toy_slope<wbr>[sign=-1]</td>" in text and "What the models make of it" not in text
    page = write_markdown(signs, tmp_path / "signs.md").read_text()
    assert len(list((tmp_path / "signs").glob("*.png"))) == 4 and "accuracy-by-contestant.png" in page


def test_a_strip_has_a_dot_a_seed_where_its_value_is(signs: Run) -> None:
    results = collect(signs)
    axes = plots.by_contestant(results, ACCURACY).axes[0]
    dots = [np.asarray(line.get_xdata()).tolist() for line in axes.lines if line.get_linestyle() == "None"]
    assert dots == [[100 * each for each in values(signs, label, "accuracy")] for label in SIGNS]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(SIGNS)


def test_language_keeps_its_curves(finished: Run) -> None:
    text = (finished.path / "report.html").read_text()
    titles = re.findall(r"<figure[^>]*><h3>([^<]*)</h3>", text)
    assert titles[:3] == ["Loss against context length", "Training", "Loss against position in the context"]


def test_options_of_a_label_reach_the_network_alone(signs: Run, new_run: Path) -> None:
    """The turned sign of the logits is the turned sign of everything: the model must have it, and no other."""
    seen: dict[str, float] = {}

    class Notes(Signs):
        def loss(self, model: nn.Module, batch: Any) -> Tensor:
            seen[type(model.encoding).__name__] = model.sign  # type: ignore[assignment]
            return super().loss(model, batch)

    assert (signs.path / "nope-seed0").is_dir() and len(list(signs.path.glob("toy_slope-sign-1-*-seed0"))) == 1
    compare(Notes(), settings(task="toy-signs", encodings=SIGNS, seeds=(0,), steps=1), new_run, quiet())
    assert seen == {"NoPE": 1.0, "Slope": -1, "Places": 1.0}


def test_a_network_that_cannot_be_built_is_told_before_any_training(new_run: Path) -> None:
    plan = settings(task="toy-signs", encodings=("nope", "toy_slope[sgin=-1]"), seeds=(0,), steps=2)
    with pytest.raises(LabError, match=r"network of toy_slope\[sgin=-1\] cannot be built: .*'sgin'.*--model key=value"):
        compare(Signs(), plan, new_run, quiet())
    assert not list(new_run.glob("*-seed*"))
    assert without_the_unable(Signs(), plan, quiet()).encodings == ("nope",)


def test_metrics_that_were_not_declared_are_the_task_s_fault(new_run: Path) -> None:
    class Forgets(Signs):
        metrics: tuple[Metric, ...] = (ACCURACY,)

    with pytest.raises(RuntimeError, match=r"declares the metrics \['accuracy'\] and has evaluated .*'misses'"):
        compare(Forgets(), ONE, new_run, quiet())


def test_a_loss_that_is_no_number_at_evaluation_is_reported(new_run: Path) -> None:
    class Breaks(Toy):
        def evaluate(self, model: nn.Module, split: str, length: int, progress: Any = None) -> Evaluation:
            result = super().evaluate(model, split, length, progress)
            return Evaluation(length, float("nan"), None, result.count) if length == 64 else result

    run = compare(Breaks(), settings(encodings=("nope",), seeds=(0,), steps=1), new_run, quiet())
    assert "diverged: loss is nan" in markdown_table(collect(run))
    assert plots.loss_by_position(collect(run)) is not None


def test_resuming_with_another_task_option_is_refused(new_run: Path) -> None:
    def plan(length: int) -> Any:
        return settings(task="toy-signs", encodings=("nope",), seeds=(0,), steps=2, task_options={"length": length})

    compare(Signs(16), plan(16), new_run, quiet())
    with pytest.raises(RunDirectoryError, match=r"task_options is {'length': 16} there, {'length': 8} here"):
        compare(Signs(8), plan(8), new_run, quiet())


@pytest.mark.slow(12)
def test_worker_processes_work_on_the_task_as_it_was_made(new_run: Path) -> None:
    plan = settings(task="toy-signs", encodings=("nope", "toy_slope"), seeds=(0,), steps=2, task_options={"length": 8})
    run = compare(Signs(8), plan, new_run, quiet(), crew=Crew(workers=2, modules=("tests.lab.toy",)))
    assert [list(row.records[0]["lengths"]) for row in collect(run).rows] == [["8"], ["8"]]


def test_labels_and_task_options_work_from_the_command_line(tmp_path: Path) -> None:
    words = ["compare", "toy-signs", "--seeds", "0", "--steps", "1", "--batch", "2", "--out", str(tmp_path)]
    words += ["--encodings", "NoPE,toy_slope[sign=-1,encoding.a=2]", "--workers", "1"]
    text = relpos(*words, "--task", "length=8", "--task", "path=a/b")
    assert "toy_slope[sign=-1,encoding.a=2] seed 0: test accuracy " in text
    run = Run.read(tmp_path / "toy-signs-demo")
    assert run.settings.task_options == {"length": 8, "path": "a/b"} and run.settings.encodings[0] == "nope"
    assert json.loads((run.path / "baselines.json").read_text())["train_length"] == 8
    assert "task_options is" in relpos(*words, "--task", "length=9", status=2)
    picture = tmp_path / "a.png"
    label = "toy_slope[sign=-1,encoding.a=2]"
    relpos("show", label, "--run", str(run.path), "--output", str(picture))
    assert picture.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "lenght=8"], "task 'toy-signs' takes length, path; got lenght"),
        (["--encodings", "toy_slope[sign]"], "'sign' is not key=value"),
        (["--encodings", "toy_slop[sign=1]"], "did you mean 'toy_slope'?"),
        (["--mixer", "kernelized", "--encodings", "nope"], "unexpected keyword argument 'mixer'"),
        (["--mixer", "a", "--model", "mixer=b", "--encodings", "nope"], "'mixer' is given twice"),
    ],
)
def test_wrong_options_are_explained(tmp_path: Path, words: list[str], message: str) -> None:
    assert message in relpos("compare", "toy-signs", "--steps", "1", "--out", str(tmp_path), *words, status=2)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_lists_the_tasks_with_their_titles(command: str) -> None:
    text = relpos(command, "--help")
    assert "toy-signs  Signs: even [or] odd" in text and "chorales" in text
    assert tasks.titles()["toy"] == "Echo: a made-up language"


def test_a_task_that_cannot_be_imported_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks._TASKS, "lost", "no_such_module:Lost")
    assert "no_such_module" in tasks.titles()["lost"]


def test_a_value_may_be_best_from_either_side() -> None:
    ratio = Metric("ratio", "ratio", format=".2f", best=1.0)
    assert ratio.gain(0.9, 0.5) == pytest.approx(0.4) and ratio.gain(1.5, 0.9) == pytest.approx(-0.4)
    assert ratio.gain(0.8, 1.2) == pytest.approx(0.0)
    assert sorted([0.2, 1.1, 3.0], key=lambda value: ratio.gain(value, 0.0)) == [3.0, 0.2, 1.1]
