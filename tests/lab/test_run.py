"""Run directories: created, resumed, or refused with a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from relpos.lab.compare import choose_rates, compare, fitting_steps
from relpos.lab.errors import LabError, RunDirectoryError
from relpos.lab.report import write_report
from relpos.lab.results import collect
from relpos.lab.run import Run, claim
from relpos.lab.settings import PRESETS, Settings, preset
from tests.lab.conftest import quiet, settings
from tests.lab.toy import Toy

FEW = settings(encodings=("nope",), seeds=(0,), steps=4)


def test_a_folder_of_somebody_else_is_refused_and_left_alone(new_run: Path) -> None:
    new_run.mkdir()
    (new_run / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(RunDirectoryError, match="not a run directory of relpos; choose another --name"):
            compare(Toy(), FEW, new_run, quiet(), fresh=fresh)
    assert [entry.name for entry in new_run.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_directory_is_refused(new_run: Path) -> None:
    new_run.write_text("")
    with pytest.raises(RunDirectoryError, match="is a file"):
        compare(Toy(), FEW, new_run, quiet())


def test_other_settings_are_refused_by_name_and_fresh_replaces(new_run: Path) -> None:
    compare(Toy(), FEW, new_run, quiet())
    other = settings(encodings=("nope",), seeds=(0,), steps=5)
    with pytest.raises(RunDirectoryError, match=r"steps is 4 there, 5 here.*--name.*--fresh"):
        compare(Toy(), other, new_run, quiet())
    assert compare(Toy(), other, new_run, quiet(), fresh=True).steps == 5


def test_other_data_are_refused_by_name(new_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(Toy(), FEW, new_run, quiet())
    monkeypatch.setattr(Toy, "describe", lambda self: {"words": 8})
    with pytest.raises(RunDirectoryError, match="data: words is 7 there, 8 here"):
        compare(Toy(), FEW, new_run, quiet())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{ torn", "not readable JSON"),
        ('{"format": "somebody-elses"}', "not of this version"),
        ("[]", "not of this version"),
        ('{"format": "relpos-run-2", "steps": 3}', "lacks data, settings"),
        ('{"format": "relpos-run-2", "steps": 3, "data": {}, "settings": {"tsak": 1}}', "unknown settings tsak"),
    ],
)
def test_a_broken_config_is_an_error_that_says_what_to_do(new_run: Path, text: str, message: str) -> None:
    compare(Toy(), FEW, new_run, quiet())
    (new_run / "config.json").write_text(text)
    with pytest.raises(RunDirectoryError, match=message):
        compare(Toy(), FEW, new_run, quiet())
    with pytest.raises(RunDirectoryError, match=message):
        Run.read(new_run)
    assert compare(Toy(), FEW, new_run, quiet(), fresh=True).steps == 4


def test_two_processes_cannot_work_on_one_run(new_run: Path) -> None:
    lock = claim(new_run)
    with pytest.raises(RunDirectoryError, match="another process"):
        compare(Toy(), FEW, new_run, quiet())
    lock.close()
    compare(Toy(), FEW, new_run, quiet())


def test_an_unfinished_run_cannot_be_reported_and_names_what_is_missing(finished: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    (copy / "toy_turn-seed1" / "evaluation.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"toy_turn seed 1 missing; run .* again: relpos compare toy"):
        collect(Run.read(copy))
    with pytest.raises(RunDirectoryError, match="there is no run directory"):
        Run.read(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunDirectoryError, match=r"no config\.json"):
        Run.read(tmp_path / "empty")


def test_records_that_were_tampered_with_are_named(finished: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    (copy / "toy_turn-seed0" / "lags.npz").write_bytes(b"PK torn")
    with pytest.raises(RunDirectoryError, match=r"lags\.npz is missing or broken"):
        write_report(Run.read(copy))
    (copy / "nope-seed0" / "samples" / "roll.png").unlink()
    with pytest.raises(RunDirectoryError, match=r"roll\.png cannot be read|lags\.npz"):
        write_report(Run.read(copy))
    (copy / "nope-seed1" / "evaluation.json").write_text('{"rate": 1}')
    with pytest.raises(RunDirectoryError, match="broken or of another version"):
        collect(Run.read(copy))


def test_the_directory_holds_config_environment_and_metrics(finished: Run) -> None:
    config = json.loads((finished.path / "config.json").read_text())
    assert config["data"]["words"] == 7 and config["settings"]["seeds"] == [0, 1]
    assert Settings.from_dict(config["settings"]) == settings()
    environment = json.loads((finished.path / "environment.json").read_text())
    assert {"git", "versions", "processor", "cores", "python"} <= environment.keys()
    lines = (finished.path / "toy_slope-seed0" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 12 and {"step", "loss", "rate"} <= json.loads(lines[0]).keys()


def test_the_sweep_is_alike_for_all_and_takes_the_best_on_validation(new_run: Path) -> None:
    swept = settings(encodings=("nope", "toy_slope"), seeds=(0,), steps=3, rates=(1e-6, 1e-2), sweep_steps=30)
    run = compare(Toy(), swept, new_run, quiet())
    rates = json.loads((new_run / "rates.json").read_text())
    assert {encoding: set(tried) for encoding, tried in rates["trials"].items()} == {
        "nope": {"1e-06", "0.01"},
        "toy_slope": {"1e-06", "0.01"},
    }
    assert rates["chosen"] == {"nope": 0.01, "toy_slope": 0.01}
    assert choose_rates(Toy(), run, quiet()) == rates["chosen"]


def test_a_budget_lowers_the_steps_once_and_a_rerun_keeps_them(new_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = settings(encodings=("nope", "toy_slope"), seeds=(0, 1), steps=1000, budget=0.01)
    monkeypatch.setattr("relpos.lab.compare._step_seconds", lambda *_: 0.01)
    # 0.6 s, 70 % of it for training, two encodings and two seeds at 0.01 s a step
    assert fitting_steps(Toy(), small, quiet()) == 10
    assert compare(Toy(), small, new_run, quiet()).steps == 10
    monkeypatch.setattr("relpos.lab.compare._step_seconds", lambda *_: 0.001)
    assert compare(Toy(), small, new_run, quiet()).steps == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "seeds is empty"),
        ({"encodings": ("nope", "nope")}, "twice"),
        ({"steps": 0}, "steps is 0"),
        ({"rates": (0.0,)}, "learning rates must be above 0"),
        ({"rates": (0.1, 0.2)}, "sweep_steps"),
        ({"budget": -1.0}, "budget"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(LabError, match=message):
        settings(**changes)


def test_presets_are_whole_and_unknown_ones_are_refused() -> None:
    for name in PRESETS:
        assert len(preset(name, "toy").seeds) >= 2
    assert preset("demo", "toy", steps=9).budget is None and preset("demo", "toy", budget=3.0).budget == 3.0
    assert preset("demo", "toy", sizes={"demo": {"steps": 4}}).steps == 4
    assert preset("demo", "toy", model={"dim": 8}).model == {**PRESETS["demo"]["model"], "dim": 8}
    assert preset("demo", "toy", rates=(0.1,)).sweep_steps == 0
    with pytest.raises(LabError, match="did you mean 'demo'"):
        preset("demmo", "toy")
