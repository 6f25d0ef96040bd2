"""Our docstrings as Markdown: formulas stay as they are set, aligned words and their explanations become a table."""

from __future__ import annotations

import html
import inspect
import re
from typing import Any

try:
    import griffe
except ImportError:  # the pages of methods and commands need no parser of Python
    griffe = None  # type: ignore[assignment]

TERM = re.compile(r"(?P<term>\S(?:.*?\S)?)\s{2,}(?P<text>\S.*)")
SPECIAL = re.compile(r"([\\*_\[\]#|{}])")


def markdown(docstring: str) -> str:
    """The whole docstring, without its indentation."""
    text = inspect.cleandoc(docstring)
    return "\n\n".join(_paragraph(part) for part in re.split(r"\n\s*\n", text))


def escaped(text: str) -> str:
    """Prose whose stars and brackets are meant; code between backticks stays code."""
    parts = re.split(r"(``?[^`]+``?)", text)
    return "".join(part if i % 2 else SPECIAL.sub(r"\\\1", html.escape(part, False)) for i, part in enumerate(parts))


def _paragraph(part: str) -> str:
    """Runs of lines of one kind: formula (indented), terms (a gap after the word), prose."""
    made: list[str] = []
    lines = part.split("\n")
    while lines:
        if lines[0].startswith("    "):
            made.append(_formula(lines))
        elif _is_term(lines):
            made.append(_terms(lines))
        else:
            made.append(_prose(lines))
    return "\n\n".join(made)


def _is_term(lines: list[str]) -> bool:
    found = TERM.fullmatch(lines[0])
    return bool(found) and len(found["term"]) < 40 and ". " not in found["term"]


def _formula(lines: list[str]) -> str:
    taken = [lines.pop(0)]
    while lines and (lines[0].startswith("    ") or not lines[0].strip()):
        taken.append(lines.pop(0))
    return "```text\n" + inspect.cleandoc("\n".join(["", *taken])) + "\n```"


def _terms(lines: list[str]) -> str:
    found = TERM.fullmatch(lines[0])
    assert found is not None
    column, rows = found.start("text"), [(found["term"], [found["text"]])]
    lines.pop(0)
    while lines:
        if _is_term(lines) or _aligned(lines[0], column):
            found = TERM.fullmatch(lines[0])
            cut = found.start("text") if found and _is_term(lines) else column
            rows.append((lines[0][:cut].rstrip(), [lines[0][cut:]]))
        elif lines[0].startswith(" "):
            rows[-1][1].append(lines[0].strip())
        else:
            break
        lines.pop(0)
    cells = (
        f"<tr><td><code>{html.escape(term)}</code></td><td>{_inline(' '.join(text))}</td></tr>" for term, text in rows
    )
    return '<table class="terms"><tbody>' + "".join(cells) + "</tbody></table>"


def _aligned(line: str, column: int) -> bool:
    """A word so long that one space parts it from its explanation, which stands in the column of the others."""
    return line[:1].islower() and len(line) > column and " " not in line[: column - 1] and line[column - 1] == " "


def _inline(text: str) -> str:
    parts = re.split(r"``?([^`]+)``?", text)
    return "".join(f"<code>{html.escape(p)}</code>" if i % 2 else html.escape(p) for i, p in enumerate(parts))


def _prose(lines: list[str]) -> str:
    taken = [lines.pop(0)]
    while lines and not lines[0].startswith("    ") and not _is_term(lines):
        taken.append(lines.pop(0).strip())
    return escaped(" ".join(taken))


if griffe is not None:

    class Docstrings(griffe.Extension):
        """Hands our docstrings to mkdocstrings as Markdown."""

        def on_instance(self, *, obj: Any, **_: Any) -> None:
            if obj.docstring is not None and not obj.is_alias:
                obj.docstring.value = markdown(obj.docstring.value)
