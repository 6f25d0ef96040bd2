"""The command as the tests of this folder run it."""

from __future__ import annotations

from typer.testing import CliRunner

from relpos.lab.cli import app

RUNNER = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def relpos(*words: object, status: int = 0) -> str:
    """What `relpos WORDS` prints, on a terminal of 200 columns; its exit status must be ``status``."""
    result = RUNNER.invoke(app, list(map(str, words)))
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output
