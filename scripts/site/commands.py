"""The reference of the command line, from the very objects that parse it."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from typing import Any

import typer
from scripts.site.docstrings import escaped

from relpos.lab.cli import app, main


def page() -> str:
    """A section a command, in the order of the help."""
    root = typer.main.get_command(app)
    parts = [_options(root, "Options of every command")]
    parts += [_section(path, command) for path, command in _walk(root, ("relpos",))]
    return "\n\n".join(part for part in parts if part)


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, child in getattr(command, "commands", {}).items():
        yield (*path, name), child
        yield from _walk(child, (*path, name))


def _section(path: tuple[str, ...], command: Any) -> str:
    level, title = "#" * min(4, len(path)), " ".join(path)
    if hasattr(command, "commands"):
        return f"{level} {title}\n\n{_prose(command.help or '')}"
    if command.context_settings.get("ignore_unknown_options"):  # argparse reads what follows
        return f"{level} {title}\n\n{_prose(command.help or '')}\n\n```text\n{_help(path)}\n```"
    words = [title, "[OPTIONS]", *(_metavar(p) for p in command.params if p.param_type_name == "argument")]
    return "\n\n".join(
        part
        for part in (
            f"{level} {title}",
            f"```text\n{' '.join(words)}\n```" if len(command.params) > 0 else "",
            _prose(command.help or ""),
            _arguments(command),
            _options(command, ""),
        )
        if part
    )


def _help(path: tuple[str, ...]) -> str:
    kept, sys.argv, out = sys.argv, [*path, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main()
    finally:
        sys.argv = kept
    return re.sub(r"usage: \S+", f"usage: {' '.join(path)}", out.getvalue().strip())


def _plain(text: str) -> str:
    return re.sub(r"\[/?(?:bold|dim|italic)\]", "", text).replace("\\[", "[").replace("\b", "")


def _prose(text: str) -> str:
    """Help as Markdown: paragraphs; an example on its own, to be copied."""
    made = []
    for part in re.split(r"\n\s*\n", re.sub(r"\[/?bold\]", "`", text).replace("\\[", "[").replace("\b", "").strip()):
        found = re.fullmatch(r"Example: `([^`]*)`\.?", " ".join(part.split()))
        made.append(f"```sh\n{found[1]}\n```" if found else escaped(" ".join(part.split())))
    return "\n\n".join(made)


def _metavar(parameter: Any) -> str:
    name = parameter.metavar or (parameter.name or "").upper()
    return name if parameter.required else f"[{name}]"


def _arguments(command: Any) -> str:
    rows = [
        f"| `{_metavar(p)}` | {_cell(getattr(p, 'help', None) or '')} |"
        for p in command.params
        if p.param_type_name == "argument"
    ]
    return "| argument | |\n| --- | --- |\n" + "\n".join(rows) if rows else ""


def _options(command: Any, title: str) -> str:
    rows = []
    for option in command.params:
        if (
            option.param_type_name != "option"
            or option.hidden
            or "--help" in option.opts
            or "--install-completion" in option.opts
        ):
            continue
        spelled = ", ".join(f"`{each}`" for each in [*option.opts, *option.secondary_opts])
        default = option.default if not callable(option.default) and option.default not in (None, False, (), []) else ""
        rows.append(f"| {spelled} | {f'`{default}`' if default != '' else ''} | {_cell(option.help or '')} |")
    head = f"## {title}\n\n" if title else ""
    return head + "| option | default | |\n| --- | --- | --- |\n" + "\n".join(rows) if rows else ""


def _cell(text: str) -> str:
    return escaped(" ".join(_plain(text).split()))
