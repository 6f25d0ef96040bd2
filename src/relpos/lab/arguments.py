"""What was typed, read: names that are known, numbers, contestants. Errors say what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from relpos.lab import labels
from relpos.lab.errors import LabError
from relpos.lab.errors import unknown as unknown_name


def known_encoding(name: str) -> str:
    """The registry's spelling of an encoding's name; the nearest ones are suggested for an unknown one."""
    from relpos import names
    from relpos.encodings.registry import key_of

    known = names()
    if key_of(name) not in known:
        raise unknown_name("encoding", name, known)
    return key_of(name)


def contestant(text: str) -> labels.Contestant:
    """A label with the name of a known encoding, in the registry's spelling."""
    read = labels.read(text)
    name = known_encoding(read.encoding)
    return replace(read, encoding=name, label=name + read.label.removeprefix(read.encoding))


def known_presets(name: str) -> Mapping[str, Mapping[str, Any]]:
    """The presets that the task of that name has of its own; the nearest one is suggested for an unknown name."""
    from relpos import tasks

    if name not in tasks.names():
        raise unknown_name("task", name, tasks.names())
    return tasks.presets(name)


def known_task(name: str, options: Mapping[str, object]) -> Any:
    """The task of that name, made with the options; the nearest one is suggested for an unknown name."""
    from relpos import tasks

    if name not in tasks.names():
        raise unknown_name("task", name, tasks.names())
    try:
        return tasks.get(name, **options)
    except (TypeError, ValueError, OSError) as error:
        raise LabError(f"the task {name} cannot be made: {error} (options are given as --task key=value)") from error


def numbers(text: str, kind: Callable[[str], Any], what: str) -> list[Any]:
    """`0,1` as numbers of the given kind."""
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise LabError(f"--{what} takes numbers with commas between them, such as 0,1; got {text!r}") from None
