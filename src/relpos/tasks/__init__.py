"""The tasks that encodings are compared on, by name; a task's module is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from relpos.tasks.base import Artifact, Evaluation, Progress, Task

__all__ = ["Artifact", "Evaluation", "Progress", "Task", "get", "names", "register"]

_TASKS: dict[str, str] = {
    "bytes-lm": "relpos.tasks.language:BytesLM",
    "chorales": "relpos.tasks.music.chorales:Chorales",
    "listops": "relpos.tasks.long_range.expressions:ListOps",
    "path-x": "relpos.tasks.long_range.paths:PathX",
    "pathfinder": "relpos.tasks.long_range.paths:Pathfinder",
    "pixels": "relpos.tasks.long_range.pixels:Pixels",
    "retrieval": "relpos.tasks.long_range.documents:Retrieval",
    "text": "relpos.tasks.long_range.documents:Text",
}


def names() -> list[str]:
    """Names of the known tasks, sorted."""
    return sorted(_TASKS)


def register(name: str, target: str) -> None:
    """Adds a task from outside the package; target is "module:Class". ValueError where the name is taken."""
    if _TASKS.get(name, target) != target:
        raise ValueError(f"the task name {name!r} is taken by {_TASKS[name]}; choose another")
    if target.count(":") != 1:
        raise ValueError(f'target must look like "module:Class", got {target!r}')
    _TASKS[name] = target


def get(name: str, **options: Any) -> Task:
    """The task of that name, made with ``options``. ValueError for an unknown name, with the nearest known one."""
    if name not in _TASKS:
        near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown task {name!r}{hint} Known tasks: {', '.join(names())}")
    module, attribute = _TASKS[name].split(":")
    task: Task = getattr(importlib.import_module(module), attribute)(**options)
    return task
