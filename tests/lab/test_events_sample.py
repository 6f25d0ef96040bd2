"""`relpos compare events` and `relpos events sample`, from parameters to a page, a file and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from relpos.lab import horizons
from relpos.tasks import data
from relpos.tasks.events.point import PointProcess
from tests.lab import console


def relpos(*words: object, status: int = 0) -> str:
    return " ".join(console.relpos(*words, status=status).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    small = ("--model", "dim=8", "--model", "depth=1", "--steps", 2, "--batch", 2, "--workers", 1)
    words = ("--task", "dataset=hawkes", "--task", "most=1", "--encodings", "nope,relative_channels[head=intensity]")
    relpos(
        "compare",
        "events",
        *words,
        "--seeds",
        0,
        *small,
        "--out",
        folder,
        "--name",
        "it",
        "--markdown",
        folder / "p.md",
    )
    return folder / "it"


@pytest.mark.slow(8)
def test_the_page_has_networks_beside_processes_and_the_truth(run: Path) -> None:
    page = (run.parent / "p.md").read_text()
    for row in ("relative_channels[head=intensity]", "Hawkes of marks", "the truth", "median gap, commonest mark"):
        assert row in page, row
    assert "log likelihood" in page and "KS distance of rescaled gaps" in page
    pictures = [each.name for each in run.rglob("pictures/*.png")]
    assert sorted(set(pictures)) == ["intensity.png", "residuals.png", "time.png"]


@pytest.mark.slow(3)
def test_draws_are_written_as_sequences_and_judged(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "next.jsonl"
    words = ("events", "sample", run, "--encoding", "nope", "--draws", 2, "--horizon", 30)
    said = relpos(*words, "-o", target, "--png", "--judge")
    assert "2 horizons one after the other, 2 draws each" in said and "Poisson, one a sequence" in said
    for name in ("next.png", "next-intensity.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["draw"] for line in lines] == [0, 1]
    again = data.load("easytpp", target).sequences
    cut = PointProcess("hawkes", most=1).plan().cut
    assert again.start.tolist() == np.tile(cut, 2).tolist() and again.end.tolist() == (np.tile(cut, 2) + 30).tolist()
    model = next(each for each in run.iterdir() if each.name.startswith("nope"))
    relpos("events", "sample", model, "--draws", 2, "--horizon", 30, "-o", tmp_path / "same.jsonl")
    assert (tmp_path / "same.jsonl").read_bytes() == target.read_bytes()
    relpos("events", "sample", model, "--draws", 2, "--horizon", 30, "--seed", 1, "-o", tmp_path / "other.jsonl")
    assert (tmp_path / "other.jsonl").read_bytes() != target.read_bytes()


def unfinished(run: Path, folder: Path) -> Path:
    """A run that was stopped before its first model."""
    folder.mkdir()
    (folder / "config.json").write_bytes((run / "config.json").read_bytes())
    return folder


@pytest.mark.slow(3)
def test_horizons_of_all_networks_and_processes_are_one_table(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("events", "horizons", run, "--draws", 2, "--horizon", 30, "--markdown", tmp_path / "page.md")
    relpos(*words)
    page = (tmp_path / "page.md").read_text()
    for row in ("nope |", "relative_channels[head=intensity] |", "*homogeneous Poisson* (baseline) |", "*Hawkes of"):
        assert f"| {row}" in page, row
    assert "OTD: of the networks" in page and "2 horizons one after the other" in page and "renewal" not in page
    assert page.count(" ± ") == 0  # one seed
    monkeypatch.setattr(horizons, "build", lambda *_: horizons.PointNetwork.__new__(horizons.PointNetwork))
    relpos(*words)  # what is there is not judged again
    assert (tmp_path / "page.md").read_text() == page
    monkeypatch.undo()
    relpos(*words[:4], 1, *words[5:])
    assert (tmp_path / "page.md").read_text() != page
    assert "a positive number of units" in relpos("events", "horizons", run, "--horizon", 0, status=2)
    assert "has no finished model" in relpos("events", "horizons", unfinished(run, tmp_path / "none"), status=2)
    said = relpos("events", "horizons", run, "--horizon", 500, status=2)
    assert "shorter than the horizon of 500" in said


def test_what_cannot_be_drawn_is_said_in_a_line(run: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "x.jsonl")
    assert "several contestants; name one with --encoding: nope, relative" in relpos(
        "events", "sample", run, *out, status=2
    )
    said = relpos("events", "sample", run, "--encoding", "alibi", *out, status=2)
    assert "has no finished alibi; finished: nope" in said
    said = relpos("events", "sample", run, "--encoding", "nope", "--horizon", 500, "--judge", *out, status=2)
    assert "shorter than the horizon of 500" in said
    assert "there is no run directory" in relpos("events", "sample", tmp_path / "none", *out, status=2)
