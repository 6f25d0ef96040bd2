"""The commands `relpos events ..`, from parameters to a file, to a table, to a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from relpos.lab import happenings
from relpos.tasks import data
from relpos.tasks.events import Sequences, anchors
from relpos.tasks.events.processes import Hawkes, PeriodicPoisson, Poisson, Renewal
from tests.lab import console


def relpos(*words: object, status: int = 0) -> str:
    return " ".join(console.relpos("events", *words, status=status).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("events") / "made.jsonl"
    said = relpos("simulate", "--mu", "0.4,0.2", "--alpha", "0.5,0.2;0.2,0.5", "--count", 4, "--seed", 1, "-o", path)
    assert "4 sequences" in said and "spectral radius 0.700" in said
    return path


@pytest.mark.parametrize("name", ["simulate", "fit", "diagnose", "sample"])
def test_every_help_teaches_by_an_example(name: str) -> None:
    assert f"Example: relpos events {name}" in relpos(name, "--help")


def test_what_was_simulated_is_read_again_with_its_windows(made: Path, tmp_path: Path) -> None:
    events = data.load("easytpp", made).sequences
    assert events.windowed and events.end.tolist() == [100] * 4 and events.mark_count == 2
    again = tmp_path / "again.jsonl"
    relpos("simulate", "--mu", "0.4,0.2", "--alpha", "0.5,0.2;0.2,0.5", "--count", 4, "--seed", 1, "-o", again)
    assert again.read_bytes() == made.read_bytes()
    relpos("simulate", "--mu", "1,1", "--alpha", "0", "--method", "inversion", "--png", "-o", again)
    assert again.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_table_is_that_of_the_protocol(made: Path, tmp_path: Path) -> None:
    words = ("--least", 20, "--most", 2, "--period", 10, "--bins", 4)
    said = relpos("fit", "easytpp", "--path", made, *words, "-o", tmp_path / "x.json")
    plan = anchors.protocol(data.load("easytpp", made).sequences, least=20, most=2)
    expected = anchors.score([Poisson.fit(one) for one in plan.train], plan)
    assert f"homogeneous Poisson {expected:.4f} 4" in said and "Hawkes of marks on it" in said
    rows = {row["model"]: row["nats"] for row in json.loads((tmp_path / "x.json").read_text())["rows"]}
    assert rows["homogeneous Poisson"] == pytest.approx(expected) and len(rows) == 7


@pytest.mark.parametrize("model", ["poisson", "renewal", "hawkes"])
def test_a_diagnosis_says_which_model_is_wrong(model: str, made: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.png"
    said = relpos("diagnose", "easytpp", "--path", made, "--model", model, "--least", 20, "-o", target)
    assert ("not as the model says" in said) == (model == "poisson")
    assert target.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def purchases(tmp_path: Path) -> Path:
    """Ten purchases each of 30 people, on whole days of 140."""
    path, rng = tmp_path / "days.inter", np.random.default_rng(0)
    rows = [f"{who}\t0\t{86400 * day}" for who in range(30) for day in np.sort(rng.integers(1, 140, 10))]
    path.write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
    return path


@pytest.mark.slow(4)
def test_rates_by_the_hour_are_not_learned_from_a_clock_of_days(purchases: Path, tmp_path: Path) -> None:
    """They would foretell midnight: by the hour this data scored 2.7 nats above the truth once."""
    words = ("recbole", "--path", purchases, "-o", tmp_path / "x.json")
    said = relpos("fit", *words)
    assert "ticks every 1 day; events are laid out at random within their ticks" in said
    assert "rates by 7 parts of the period in place of 168" in said and "one model is fitted to all of them" in said
    rows = {row["model"]: row for row in json.loads((tmp_path / "x.json").read_text())["rows"]}
    assert rows["periodic Poisson"]["parameters"] == 7
    assert abs(rows["periodic Poisson"]["nats"] - rows["homogeneous Poisson"]["nats"]) < 0.1
    refused = relpos("fit", *words, "--bins", 168, status=2)
    assert "--bins 168 cuts the period of 604800 seconds" in refused and "Give --bins 7, or leave it out" in refused
    target = tmp_path / "x.png"
    words = ("diagnose", "recbole", "--path", purchases, "-o", target, "--model")
    assert "rates by 7 parts" in relpos(*words, "hawkes-periodic") and target.exists()
    assert "--bins 24 cuts" in relpos(*words, "periodic", "--bins", 24, status=2)
    assert "parts" not in relpos(*words, "poisson", "--bins", 24)  # has no rates by parts


def test_what_cannot_be_is_one_clear_line(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.png"
    for words, message in (
        (("fit", "nowhere"), "unknown data set 'nowhere'"),
        (("fit", "easytpp"), "is in no package"),
        (("fit", "easytpp", "--path", made, "--least", 999), "no sequence has at least 999 events"),
        (("diagnose", "easytpp", "--path", made, "--model", "x", "--least", 9, "-o", target), "unknown model 'x'"),
        (("diagnose", "easytpp", "--path", made, "--model", "periodic", "--least", 9), "needs --period"),
        (("diagnose", "easytpp", "--path", made, "--least", 9, "--sequence", "q"), "no sequence 'q' among"),
        (("simulate", "--alpha", "1.5", "-o", tmp_path / "y"), "explodes"),
        (("simulate", "--alpha", "a", "-o", tmp_path / "y"), "numbers by commas"),
        (("simulate", "--method", "magic", "-o", tmp_path / "y"), "thinning, inversion"),
    ):
        with pytest.warns(UserWarning) if "1.5" in words else _nothing():
            assert message in relpos(*words, status=2)
    assert not (tmp_path / "y").exists() and not target.exists()


def test_odd_data_is_one_clear_line_too(tmp_path: Path) -> None:
    """Every case ended in a traceback, or said nothing of where it is, once."""
    path, folder = tmp_path / "x.jsonl", tmp_path / "folder"
    folder.mkdir()
    good = {"time_since_start": [1.0, 4.0, 9.0], "type_event": [0, 0, 0], "t_start": 0, "t_end": 10}
    for changes, words, message in (
        ({"time_since_start": [[1.0, 4.0, 9.0]]}, (), "sequence 0: time_since_start has 2 axes, not 1"),
        ({"time_since_start": 3}, (), "sequence 0: time_since_start has 0 axes"),
        ({"time_since_start": ["a", 2, 3]}, (), "sequence 0: time_since_start is not a list of numbers"),
        ({"type_event": [0, 1.5, 0]}, (), "type_event is not a list of numbers: 1.5 is no whole number"),
        ({"dim_process": "x"}, (), "sequence 0: dim_process is not"),
        ({"time_since_start": [1.0, 2.0, 3.0]}, (), "no event comes after the first 0.8 of the windows"),
        ({"time_since_start": [8.5, 9.0, 9.5]}, (), "sequence 0 (train/0): a renewal process needs at least one event"),
        ({}, ("--period", "inf"), "a period is a positive number, got inf"),
        ({}, ("-o", folder), f"cannot write {folder}: "),
    ):
        path.write_text(json.dumps({**good, **changes}))
        assert message in relpos("fit", "easytpp", "--path", path, "--least", 1, *words, status=2)
    for content, message in ((b"\xff", "is no JSON"), (b"", "no sequence has at least")):
        path.write_bytes(content)
        assert message in relpos("fit", "easytpp", "--path", path, "--least", 1, status=2)
    assert sorted(tmp_path.rglob("*")) == [folder, path]


def test_a_mark_that_comes_only_later_is_impossible_and_the_table_still_is_json(tmp_path: Path) -> None:
    path, table = tmp_path / "x.jsonl", tmp_path / "x.json"
    path.write_text(
        json.dumps({"time_since_start": [1.0, 2.0, 5.0, 9.0], "type_event": [0, 0, 0, 1], "t_start": 0, "t_end": 10})
    )
    assert "homogeneous Poisson -inf" in relpos("fit", "easytpp", "--path", path, "--least", 1, "-o", table)
    assert json.loads(table.read_text())["rows"][0] == {"model": "homogeneous Poisson", "nats": None, "parameters": 2}


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_a_drawn_intensity_is_the_one_that_is_scored() -> None:
    one = Sequences.of([[1.0, 2.0, 2.5]], marks=[[0, 1, 0]], window=(0, 4))
    ground = PeriodicPoisson([[0.5, 0.2], [1.0, 0.1]], 2.0)
    for process in (ground, Hawkes([0.5, 1.0], [[0.3, 0.1], [0.2, 0.1]], 2.0, ground), Renewal.fit(one, "weibull")):
        rates = happenings.rates_at(process, one, one.times)
        np.testing.assert_allclose(np.log(rates[np.arange(3), one.marks]), process.log_intensity(one), atol=1e-10)


def test_ties_at_the_end_of_a_window_have_room() -> None:
    whole = Sequences.of([[1.0, 2.0, 2.0], [1.0, 3.0]], window=(0, [2.0, 4.0]))
    spread = anchors.untied(whole)
    assert spread.start.tolist() == [0, 0] and spread.end.tolist() == [3, 4]
    assert spread.times.tolist() == [1, 2, 2.5, 1, 3]


def test_the_published_table_is_what_the_command_wrote() -> None:
    docs = Path(__file__).parents[2] / "docs"
    found = json.loads((docs / "results" / "events.json").read_text())
    assert (found["data"], found["unit"], found["sequences"], found["scored"]) == ("mpls-stops", "hours", 25, 3936)
    page = (docs / "event-data.md").read_text()
    assert "(3,936 events)" in page
    shown = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| ") and "-3." in line]
    figures = sorted(row["nats"] for row in found["rows"])
    assert sorted(float(nats.strip(" *")) for _, nats in shown) == pytest.approx(figures, abs=5.1e-4)
    assert len(shown) == len(figures) == 7
