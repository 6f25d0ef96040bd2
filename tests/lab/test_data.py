"""`relpos data` lists, fetches and shows; its errors help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from relpos.tasks.data import archives, packages, sources
from relpos.tasks.data.sets import Blob, Card, Texts
from tests.lab import console
from tests.tasks.data import made


def relpos(*words: object, status: int = 0) -> str:
    return console.relpos("data", *words, status=status)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))


def read(files: Mapping[str, Path], card: Card) -> Texts:
    lines = archives.read(files["fake"], "package/lines.txt").split(b"\n")
    labels = np.arange(len(lines)) % 2
    return Texts(card, {"train": np.arange(3), "test": np.arange(3, 5)}, Blob.of(lines), labels, ("ham", "[spam]"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    packages.folder().mkdir(parents=True)
    lines = b"first\nsecond\x1b[31m\n" + b"third " * 100 + b"\nfourth\nfifth"
    package = made.package("npm", "fake", made.npm(packages.folder() / "fake-1.0.tgz", {"lines.txt": lines}))
    record = sources.Source("fake", "Fake mails", "lines", "none", "by hand", (package,), read)
    monkeypatch.setitem(sources.SOURCES, "fake", record)


@pytest.mark.parametrize("word", ["list", "fetch", "inspect"])
def test_every_help_has_an_example(word: str) -> None:
    assert f"Example: relpos data {word}" in " ".join(relpos(word, "--help").split())


def test_the_list_says_what_is_in_the_cache(fake: None) -> None:
    def row(name: str) -> list[str]:
        return next(line.split() for line in relpos("list").splitlines() if line.startswith(f"{name} "))

    assert row("fake")[1:5] == ["0", "MB", "npm", "no"]
    relpos("fetch", "fake")
    assert row("fake")[1:5] == ["0", "MB", "npm", "yes"]
    assert row("text8")[1:4] == ["-", "--path", "-"] and row("spam")[1:4] == ["20", "MB", "npm"]


def test_fetch_tells_counts_and_inspect_shows_card_balance_and_examples(fake: None) -> None:
    assert "fake: documents 5, classes 2" in relpos("fetch", "fake", "fake")
    text = relpos("inspect", "fake", "--examples", "3")
    assert "Fake mails (texts)" in text and "npm  fake  1.0" in text and "as expected: yes" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["ham", "2", "1"] in rows and ["[spam]", "1", "1"] in rows
    assert "[0] ham: first" in text and "(600 characters)" in text and "\x1b" not in text
    assert "fifth" in relpos("inspect", "fake", "--split", "test")


def test_inspect_shows_the_users_own_copy(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"abc " * 1000)
    text = relpos("inspect", "text", "--path", str(tmp_path / "mine"))
    assert str(tmp_path / "mine") in text and "4,000" in text and "abc abc" in text


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    for name, content in made.mnist(20, 3).items():
        (tmp_path / name).write_bytes(content)
    assert "[9] 9\n" in relpos("inspect", "mnist", "--path", str(tmp_path), "--examples", "1")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fetch", "spamm"], "did you mean 'spam'?"),
        (["inspect", "texts8"], "did you mean 'text8'?"),
        (["fetch", "imdb"], "relpos data inspect imdb --path FOLDER"),
        (["inspect", "imdb"], "give your copy with --path, the folder aclImdb"),
        (["inspect", "imdb", "--path", "/nowhere"], "/nowhere does not exist"),
        (["inspect", "fake", "--split", "dev"], "no 'dev' split; it has train, test"),
    ],
)
def test_errors_are_one_line_and_say_what_to_do(words: list[str], told: str, fake: None) -> None:
    text = relpos(*words, status=2)
    assert told in text and "Traceback" not in text
