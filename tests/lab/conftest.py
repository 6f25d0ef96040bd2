"""A small finished comparison that the tests of this folder read."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from relpos.lab.compare import compare
from relpos.lab.progress import Reporter
from relpos.lab.report import write_report
from relpos.lab.run import Run
from relpos.lab.settings import Settings
from tests.lab.toy import Signs, Toy

ENCODINGS = ("nope", "toy_slope", "toy_turn", "toy_places")


def settings(**changes: object) -> Settings:
    """Small enough to finish in a second."""
    values: dict[str, object] = {"task": "toy", "encodings": ENCODINGS, "seeds": (0, 1), "steps": 12, "batch": 4}
    return Settings(**{**values, **changes})  # type: ignore[arg-type]


def quiet() -> Reporter:
    return Reporter(Console(file=open("/dev/null", "w")), quiet=True)


@pytest.fixture(autouse=True, scope="session")
def hears_ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal would have it, here and in what is started here: a shell starts background jobs with it
    ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = compare(Toy(), settings(), tmp_path_factory.mktemp("runs") / "toy", quiet(), command="relpos compare toy")
    write_report(run)
    return run


SIGNS = ("nope", "toy_slope[sign=-1]", "toy_places")


@pytest.fixture(scope="session")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished comparison in classification."""
    plan = settings(task="toy-signs", encodings=SIGNS)
    run = compare(Signs(), plan, tmp_path_factory.mktemp("runs") / "signs", quiet())
    write_report(run)
    return run


@pytest.fixture
def new_run(tmp_path: Path) -> Path:
    return tmp_path / "run"
