"""The command line teaches, and its errors help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from relpos.lab.progress import Reporter, seconds_text
from relpos.lab.run import Run
from tests.lab import toy
from tests.lab.console import relpos


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["show"],
        ["train"],
        ["compare"],
        ["report"],
        ["explain"],
        ["bench"],
        ["bench", "attention"],
        ["bench", "linear"],
    ],
)
def test_every_help_has_an_example(words: list[str]) -> None:
    assert f"Example: relpos {words[0]}" in " ".join(relpos(*words, "--help").split())


def test_help_of_the_whole_names_every_command_and_a_first_step() -> None:
    text = relpos("--help")
    for word in ("list", "show", "train", "compare", "report", "explain", "bench", "Start here"):
        assert word in text


def test_parsing_loads_no_training_library() -> None:
    code = "import sys, relpos.lab.cli; print({'lightning', 'matplotlib', 'jinja2'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(root / "src")}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_list_shows_the_form_and_summary_of_each() -> None:
    text = relpos("list")
    assert "learned_bias" in text and "Transform" in text and "toy encoding from outside" in text


@pytest.mark.parametrize(
    "words", [["show", "toy_slop"], ["explain", "toy_slop"], ["train", "toy", "--encoding", "toy_slop"]]
)
def test_an_unknown_encoding_suggests_the_nearest(words: list[str]) -> None:
    assert "did you mean 'toy_slope'?" in relpos(*words, status=2)


def test_an_unknown_task_preset_or_number_is_explained(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path))
    assert "did you mean 'chorales'?" in relpos("compare", "choral", "--encodings", "nope", *out, status=2)
    assert "did you mean 'demo'?" in relpos("compare", "toy", "--encodings", "nope", "--preset", "dem", *out, status=2)
    assert "--seeds takes numbers" in relpos("compare", "toy", "--encodings", "nope", "--seeds", "a", *out, status=2)
    assert "twice" in relpos("compare", "toy", "--encodings", "nope,NoPE", *out, status=2)
    assert not list(tmp_path.iterdir())


def test_compare_show_and_report_work_from_end_to_end(tmp_path: Path) -> None:
    words = [
        "compare",
        "toy",
        "--encodings",
        "toy_slope,toy_turn",
        "--seeds",
        "0",
        "--steps",
        "3",
        "--batch",
        "2",
        "--workers",
        "1",
    ]
    text = relpos(
        *words, "--out", str(tmp_path), "--name", "x", "--model", "dim=8", "--markdown", str(tmp_path / "x.md")
    )
    assert "[2/2] toy_turn seed 0: test loss" in text and "report.html" in text
    assert (tmp_path / "x.md").exists()
    assert Run.read(tmp_path / "x").settings.model == {"dim": 8}
    relpos("show", "toy_slope", "--run", str(tmp_path / "x"), "--output", str(tmp_path / "lags.png"))
    assert (tmp_path / "lags.png").read_bytes().startswith(b"\x89PNG")
    assert "x has no nope" in relpos("show", "nope", "--run", str(tmp_path / "x"), status=2)
    (tmp_path / "x" / "report.html").unlink()
    relpos("report", str(tmp_path / "x"))
    assert (tmp_path / "x" / "report.html").exists()
    again = relpos(*words, "--out", str(tmp_path), "--name", "x", status=2)
    assert "model is {'dim': 8} there, {} here" in again


def test_train_is_a_comparison_of_one(tmp_path: Path) -> None:
    text = relpos("train", "toy", "--encoding", "toy_turn", "--steps", "2", "--seed", "4", "--out", str(tmp_path))
    assert "one seed" in (tmp_path / "toy-toy_turn" / "report.html").read_text() and "toy_turn seed 4" in text


@pytest.mark.parametrize("task", ["bytes-lm", "text", "retrieval", "pixels", "listops", "pathfinder", "translate"])
def test_data_that_are_not_there_end_in_one_line(task: str, tmp_path: Path) -> None:
    """A path alone is enough: no task asks for the name of a layout first, and none answers with a traceback."""
    missing = tmp_path / "missing"
    said = relpos("compare", task, "--task", f"path={missing}", "--encodings", "nope", "--out", str(tmp_path), status=2)
    assert f"the data of {task} cannot be had" in said
    assert str(missing) in said


def test_report_of_nothing_is_an_error(tmp_path: Path) -> None:
    assert "there is no run directory" in relpos("report", str(tmp_path / "none"), status=2)


def test_explain_says_kernel_and_reason() -> None:
    assert "kernel:" in relpos("explain", "toy_slope", "--n", "64", "--causal")
    assert "added to the input" in relpos("explain", "toy_places", "--n", "64")


def test_modules_of_ones_own_are_imported() -> None:
    assert "toy_slope" in relpos("--import", "tests.lab.toy", "list")
    assert "no_such_module" in relpos("--import", "no_such_module", "list", status=2)


def test_plain_progress_prints_lines_with_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(every=0.0).step("reading") as progress:
        progress(1, 4, "a")
        progress(3, 4, "b")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("  reading: 75%, ") and "left" in lines[-1] and lines[-1].endswith("b")


def test_durations_are_written_as_people_do() -> None:
    assert [seconds_text(s) for s in (8, 200, 7500)] == ["8 s", "3 min 20 s", "2 h 05 min"]


assert toy.Toy  # registers the toy task and encodings
