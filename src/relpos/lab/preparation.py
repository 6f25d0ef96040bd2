"""Data before any work: what a user can mend (a path, a client, a network) ends in one line."""

from __future__ import annotations

from typing import Any

from relpos.lab.errors import LabError
from relpos.lab.progress import Reporter
from relpos.tasks.data.packages import FetchError


def prepare(task: Any, reporter: Reporter) -> None:
    """Reads the task's data, with progress. LabError where they are missing, of another layout or not to be fetched."""
    with reporter.step(f"preparing {task.name}") as progress:
        try:
            task.prepare(progress=progress)
        except (OSError, ValueError, FetchError, ModuleNotFoundError) as error:
            raise LabError(f"the data of {task.name} cannot be had: {error}") from error
