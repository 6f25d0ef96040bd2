"""The tasks that encodings are compared on, by name; a task's module is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from relpos.tasks.base import ACCURACY, Artifact, Batch, Evaluation, Metric, Progress, Task

__all__ = [
    "ACCURACY",
    "Artifact",
    "Batch",
    "Evaluation",
    "Metric",
    "Progress",
    "Task",
    "get",
    "names",
    "presets",
    "register",
    "titles",
]

_TASKS: dict[str, str] = {
    "aaba": "relpos.tasks.music.aaba:AABA",
    "accompaniment": "relpos.tasks.music.roll_tasks:Accompaniment",
    "activity": "relpos.tasks.events.activity:Activity",
    "bytes-lm": "relpos.tasks.language:BytesLM",
    "chorales": "relpos.tasks.music.chorales:Chorales",
    "echo": "relpos.tasks.events.echo:Echo",
    "event-retrieval": "relpos.tasks.events.retrieval.task:EventRetrieval",
    "events": "relpos.tasks.events.point:PointProcess",
    "imagenet": "relpos.tasks.vision.imagenet:ImageNet",
    "images": "relpos.tasks.vision.images:Images",
    "listops": "relpos.tasks.long_range.expressions:ListOps",
    "missing": "relpos.tasks.events.missing:Missing",
    "next-step": "relpos.tasks.music.roll_tasks:NextStep",
    "path-x": "relpos.tasks.long_range.paths:PathX",
    "pathfinder": "relpos.tasks.long_range.paths:Pathfinder",
    "places": "relpos.tasks.events.places:NextItem",
    "pixels": "relpos.tasks.long_range.pixels:Pixels",
    "retrieval": "relpos.tasks.long_range.documents:Retrieval",
    "text": "relpos.tasks.long_range.documents:Text",
    "tokens": "relpos.tasks.music.event_task:Tokens",
    "transfer": "relpos.tasks.events.transfer.task:Transfer",
    "translate": "relpos.tasks.translate:Translate",
}


def names() -> list[str]:
    """Names of the known tasks, sorted."""
    return sorted(_TASKS)


def titles() -> dict[str, str]:
    """The title of each known task; its module is imported, and where that fails, the title says what is missing."""
    found = {}
    for name in names():
        try:
            title = getattr(_load(name), "title", "")
        except ImportError as error:
            title = f"cannot be loaded: {error}"
        found[name] = title if isinstance(title, str) else ""
    return found


def presets(name: str) -> Mapping[str, Mapping[str, Any]]:
    """Sizes of runs that a known task has of its own, by preset; "task_options" are what the task is then made with,
    "encodings" the contestants where none are named."""
    found: Mapping[str, Mapping[str, Any]] = getattr(_load(name), "presets", None) or {}
    return found


def register(name: str, target: str) -> None:
    """Adds a task from outside the package; target is "module:Class". ValueError where the name is taken."""
    if _TASKS.get(name, target) != target:
        raise ValueError(f"the task name {name!r} is taken by {_TASKS[name]}; choose another")
    if target.count(":") != 1:
        raise ValueError(f'target must look like "module:Class", got {target!r}')
    _TASKS[name] = target


def get(name: str, **options: Any) -> Task:
    """The task of that name, made with ``options``.

    ValueError for an unknown name, with the nearest known one; TypeError for options that the task does not take.
    """
    if name not in _TASKS:
        near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown task {name!r}{hint} Known tasks: {', '.join(names())}")
    cls = _load(name)
    taken = [each.name for each in inspect.signature(cls).parameters.values() if each.kind is not each.VAR_KEYWORD]
    if len(taken) == len(inspect.signature(cls).parameters) and (other := sorted(set(options) - set(taken))):
        raise TypeError(f"task {name!r} takes {', '.join(taken) or 'no options'}; got {', '.join(other)}")
    task: Task = cls(**options)
    return task


def _load(name: str) -> Any:
    module, attribute = _TASKS[name].split(":")
    return getattr(importlib.import_module(module), attribute)
