"""What MkDocs is told while it builds the site: the pages of methods, results and commands fill themselves in.

What can be known from the code is not written twice: `docs/methods/<name>.md` holds what needs a mind, and this adds
formula, facts, picture and source; `docs/reference/commands.md` is the help of the command.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from scripts.site import commands, methods, pictures  # noqa: E402

ONLY = os.environ.get("RELPOS_SITE_PICTURES")  # names of the encodings to draw, for a quick build; unset: all
BLANK = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'
BORROWED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
CAPTIONS: dict[str, str] = {}


def on_config(config: Any) -> Any:
    """Methods by form and every result go into the navigation; so does a page that nobody has listed, under Guides."""
    docs = Path(config["docs_dir"])
    nav = config["nav"]
    _section(nav, "Methods").extend(
        {form: [f"methods/{n}.md" for n in group]} for form, group in methods.grouped().items()
    )
    results = sorted(p.relative_to(docs).as_posix() for p in docs.glob("results/*.md") if p.name != "index.md")
    _section(nav, "Results").extend(results)
    listed = set(_pages(nav))
    _section(nav, "Guides").extend(p.name for p in sorted(docs.glob("*.md")) if p.name not in listed)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pictures of the methods, and the two pages that live at the root of the repository."""
    for name in (name for group in methods.grouped().values() for name in group):
        wanted = ONLY is None or name in ONLY.split(",")
        drawn, CAPTIONS[name] = pictures.picture(name) if wanted else (BLANK, "Not drawn in this build.")
        files.append(File.generated(config, f"methods/images/{name}.svg", content=drawn))
    for source, target in BORROWED.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fills a page in, and unlinks files of the repository that are no part of the site."""
    folder, _, name = page.file.src_uri.rpartition("/")
    if folder == "methods" and name != "index.md":
        markdown = methods.page(name.removesuffix(".md"), markdown, CAPTIONS[name.removesuffix(".md")])
    fill = {"methods/index.md": methods.index, "reference/commands.md": commands.page,
            "results/index.md": lambda: _results(Path(config["docs_dir"]))}  # fmt: skip
    if page.file.src_uri in fill:
        markdown = markdown.replace("<!-- filled in by the site -->", fill[page.file.src_uri]())
    return re.sub(r"\[([^\]]+)\]\(([^)#\s]+)\)", lambda found: _link(found, page.file.src_uri, config), markdown)


def _link(found: re.Match[str], page: str, config: Any) -> str:
    target = (Path(config["docs_dir"]) / page).parent.joinpath(found[2]).resolve()
    outside = target.is_relative_to(ROOT) and not target.is_relative_to(config["docs_dir"])
    if not outside or not target.exists():
        return found[0]
    borrowed = BORROWED.get(target.relative_to(ROOT).as_posix())
    return f"[{found[1]}]({'../' * page.count('/')}{borrowed})" if borrowed else found[1]


def _results(docs: Path) -> str:
    rows = []
    for path in sorted(docs.glob("results/*.md")):
        if path.name != "index.md":
            title = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
            rows.append(f"| [{path.stem}]({path.name}) | {title} |")
    return "| page | what was measured |\n| --- | --- |\n" + "\n".join(rows)


def _section(nav: list[Any], title: str) -> list[Any]:
    found: list[Any] = next(entry[title] for entry in nav if title in entry)
    return found


def _pages(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for child in (entry.values() if isinstance(entry, dict) else entry) for page in _pages(child)]
