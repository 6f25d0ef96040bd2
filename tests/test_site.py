"""The documentation as a site: it builds without a warning, every encoding has a page, claims are linked and true."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.site.docstrings import markdown

import relpos as rp
from relpos.encodings.registry import _ENTRIES
from relpos.kernels.choose import KERNELS
from relpos.kernels.linear.choose import KERNELS as LINEAR

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OWN = [name for name, found in _ENTRIES.items() if found.path]  # what tests register is not of the package
SECTIONS = ("When to use it", "How ours differs from the released code", "Example")
ROW = re.compile(r"^\| (?!---)(?!your situation)(.+?) \|.*\| (.+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with three of the pictures: they are the long part, and one of each kind is enough to see them made."""
    made = tmp_path_factory.mktemp("site")
    keep = {**os.environ, "RELPOS_SITE_PICTURES": "t5,swin,same_label", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(made)],
        cwd=ROOT, env=keep, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not found" not in done.stderr and "WARNING" not in done.stderr, done.stderr
    return made


@pytest.mark.slow(25)
def test_every_encoding_has_a_whole_page(site: Path) -> None:
    for name in OWN:
        text = (site / "methods" / f"{name}.html").read_text(encoding="utf-8")
        cls = getattr(rp.encodings, rp.names()[name].cls)
        assert f"relpos.encodings.{cls.__name__}" in text
        key = re.search(r"@\w+\{([^,]+),", cls.reference)
        assert key is not None and key[1] in text, f"{name}: the BibTeX entry is missing"
        for section in ("What it does", *SECTIONS, "Which kernel", "Source"):
            assert f">{section}<" in re.sub(r"<h2[^>]*>", ">", text), f"{name} lacks {section}"
        assert (site / "methods" / "images" / f"{name}.svg").exists()


@pytest.mark.slow(1)
def test_pictures_are_drawn(site: Path) -> None:
    for name in ("t5", "swin", "same_label"):
        assert (site / "methods" / "images" / f"{name}.svg").stat().st_size > 10_000


@pytest.mark.slow(1)
def test_site_asks_nobody_else_for_anything(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=["']?(?:https?:)?//[^"'> ]+""")
    for page in site.rglob("*.html"):
        assert not loads.findall(page.read_text(encoding="utf-8")), page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


@pytest.mark.slow(1)
def test_reference_knows_the_public_names_and_every_command(site: Path) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    public = [name for name in rp.__all__ if callable(getattr(rp, name))]
    missing = [name for name in public if f'id="relpos.{name}"' not in pages]
    assert not missing
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for command in ("show", "train", "compare", "report", "explain", "bench linear", "music continue", "events fit"):
        assert f">relpos {command}<" in commands
    assert "--encodings" in commands and "--no-decode" in commands and "[bold]" not in html.unescape(commands)


def test_every_encoding_is_written_about_and_no_other() -> None:
    written = {path.stem for path in (DOCS / "methods").glob("*.md")} - {"index"}
    assert written == set(OWN)
    for name in OWN:
        text = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith("# ") and f": `{name}`\n" in text.split("\n\n")[0] + "\n"
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(SECTIONS)
        assert "```python" in text  # and tests/test_repository.py runs it


def test_every_choice_rests_on_a_result_that_says_so() -> None:
    rows = ROW.findall((DOCS / "choosing.md").read_text(encoding="utf-8"))
    assert len(rows) > 10
    for situation, measured in rows:
        links = [(found.start(), found[1]) for found in re.finditer(r"\]\((results/[\w-]+\.md)\)", measured)]
        figures = list(re.finditer(r"\*\*([^*]+)\*\*", measured))
        assert links and figures, f"{situation}: no result, or no figure of it"
        for figure in figures:
            page = next((page for at, page in links if at > figure.start()), None)
            assert page is not None, f"{situation}: {figure[1]} is followed by no result"
            held = re.compile(rf"(?<![\d.,]){re.escape(figure[1])}(?!\d|[.,]\d)")
            assert held.search((DOCS / page).read_text(encoding="utf-8")), f"{situation}: {figure[1]} is not in {page}"


def test_every_kernel_is_described() -> None:
    softmax, linear = (DOCS / "kernels.md").read_text(encoding="utf-8").split("## Linear attention")
    assert set(re.findall(r"^\| `(\w+)`", softmax, re.MULTILINE)) == set(KERNELS)
    assert set(re.findall(r"^\| `(\w+)`", linear.split("\n## ")[0], re.MULTILINE)) == set(LINEAR)


def test_docstrings_keep_formulas_and_set_terms_apart() -> None:
    text = markdown("Adds a_b to x.\n\n    y = a*x\n\nterm   what it is,\n       on two lines\nother  more\n\nEnd [1].")
    assert "a\\_b" in text and "```text\ny = a*x\n```" in text and "End \\[1\\]." in text
    assert text.count("<tr>") == 2 and "what it is, on two lines" in text
    close = markdown("a        one\nlongword two\nBeyond it prose begins.")
    assert close.count("<tr>") == 2 and "<code>longword</code>" in close
    assert close.endswith("\n\nBeyond it prose begins.")
    assert markdown("a ~ b^2 < c") == "a ~ b^2 &lt; c"


@pytest.mark.slow(15)
def test_task_of_the_guide_runs_from_the_command_line(tmp_path: Path) -> None:
    guide = (DOCS / "adding-a-task.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "repeat.py").write_text("\n\n".join(code), encoding="utf-8")
    # One worker trains in the process itself, which saves the import of everything in each of two.
    command = next(line for line in guide.splitlines() if line.startswith("relpos --import"))
    done = subprocess.run(
        [sys.executable, "-m", "relpos.cli", *command.split()[1:], "--workers", "1"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("runs/*/report.html"))


def test_packages_of_the_site_are_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    assert "\nmkdocs-material==" in pins and "\nmkdocstrings==" in pins and "\nmkdocstrings-python==" in pins
    assert importlib.util.find_spec("mkdocs") is not None
