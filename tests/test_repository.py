"""The repository as a whole: what its documents say runs, its version is one, its core is light."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import relpos
from relpos import cli

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """Line number and text of each fenced block of a language."""
    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(2)), found[2]) for found in BLOCK.finditer(text) if found[1] == language]


def requirements(extra: str) -> set[str]:
    """Names of the packages that an extra asks for."""
    found = (re.match(r"[\w-]+", line) for line in PROJECT["optional-dependencies"][extra])
    return {match[0] for match in found if match}


def tracked() -> list[Path]:
    """The files under version control; without git, as in an unpacked archive, the test is skipped."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if blocks(p, "python")], ids=relative)
def test_python_blocks_of_a_document_run_in_order(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))
    namespace: dict[str, object] = {"__name__": "document"}
    for line, text in blocks(path, "python"):
        exec(compile("\n" * line + text, str(path), "exec"), namespace)


def test_readme_has_an_example() -> None:
    assert blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_make_targets_named_in_a_document_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = "\n".join([text for _, text in blocks(path, "sh")] + re.findall(r"`([^`\n]+)`", path.read_text("utf-8")))
    named = set(re.findall(r"^make ([a-z]+)", commands, re.MULTILINE))
    assert named <= targets, f"{relative(path)} names make targets that do not exist: {sorted(named - targets)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_local_links_of_a_document_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", prose)
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing, f"{relative(path)} links to files that do not exist: {missing}"


def test_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert relpos.__version__ == version
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [version]
    assert re.findall(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)[0] == version


def test_every_dependency_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins if "==" in pin}
    core = {re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]}
    assert core == {"torch", "numpy"}
    assert core | requirements("lab") | requirements("music") | requirements("translate") | requirements("dev") <= names


def test_no_file_names_a_path_of_one_machine() -> None:
    # Directories that exist on one computer and not on the reader's; /usr/bin/env and /dev/null are everybody's.
    machine = re.compile(r"(?<![\w.}>])/(?:work|farm|root|tmp|home/\w+|Users/\w+)/")
    found = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # arrays and pictures
        found += [f"{relative(path)}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if machine.search(line)]
    assert not found, "\n".join(found)


def test_importing_the_library_loads_no_extra() -> None:
    extras = sorted(cli.EXTRAS | {"scipy", "pandas"})
    code = f"import relpos, sys; print(*[name for name in {extras} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_launcher_knows_the_packages_of_its_extras() -> None:
    imported = {"pillow": "PIL"}  # where the package is imported under another name
    wanted = requirements("lab") | requirements("music") | requirements("translate")
    assert {imported.get(name, name) for name in wanted} == cli.EXTRAS


@pytest.mark.parametrize("module", ["typer", "music21"])
def test_command_without_an_extra_says_how_to_install_it(module: str, tmp_path: Path) -> None:
    # A package that fails on import in the way of a missing one, found before the installed one.
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('No module', name={module!r})", encoding="utf-8")
    (tmp_path / "relpos_lab_cli.py").write_text(f"def main():\n    import {module}\n", encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import relpos_lab_cli, relpos.cli\n"
        "sys.modules['relpos.lab'] = sys.modules['relpos.lab.cli'] = relpos_lab_cli\n"
        "sys.exit(relpos.cli.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert module in done.stderr
    assert "pip install 'relpos[lab,music,translate]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_launcher_does_not_hide_other_missing_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "relpos.lab", None)
    monkeypatch.delitem(sys.modules, "relpos.lab.cli", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"relpos\.lab"):
        cli.main()
