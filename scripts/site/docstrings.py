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
SPECIAL = re.compile(r"([\\*_<>\[\]#|{}~^])")


def markdown(docstring: str) -> str:
    """The whole docstring, without its indentation."""
    text = inspect.cleandoc(docstring)
    return "\n\n".join(_paragraph(part) for part in re.split(r"\n\s*\n", text))


def lead(docstring: str) -> str:
    """Its first paragraph on one line, as plain text."""
    return " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())


def escaped(text: str) -> str:
    """Prose whose stars and brackets are meant; code between backticks stays code."""
    parts = re.split(r"(``?[^`]+``?)", text)
    return "".join(part if i % 2 else SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts))


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
    rows: list[tuple[str, list[str]]] = []
    while lines and (_is_term(lines) or (rows and lines[0].startswith(" "))):
        found = TERM.fullmatch(lines[0])
        if not lines[0].startswith(" ") and found:
            rows.append((found["term"], [found["text"]]))
        else:
            rows[-1][1].append(lines[0].strip())
        lines.pop(0)
    cells = (
        f"<tr><td><code>{html.escape(term)}</code></td><td>{_inline(' '.join(text))}</td></tr>" for term, text in rows
    )
    return '<table class="terms"><tbody>' + "".join(cells) + "</tbody></table>"


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
