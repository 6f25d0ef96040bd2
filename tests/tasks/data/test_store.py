"""From a name to a data set: cache, cards, damage, several processes at once, and the shapes' packing."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from relpos.tasks import cache, data
from relpos.tasks.data import archives, packages, sources
from relpos.tasks.data.sets import SHAPES, Blob, Card, Corpus, DataSet, DocumentPairs, Images, Parallel, Texts
from relpos.tasks.data.sources import Source
from tests.tasks.data import made

CARD = Card("x", "X", packages=({"client": "pip", "package": "p"},), counts={"a": 1})
ROWS = {"train": np.array([0, 2]), "test": np.array([1])}
BLOB = Blob.of([b"one", b"", "zwö".encode()])
EXAMPLES: list[DataSet] = [
    Corpus(CARD, {"train": np.array([0, 3])}, np.arange(3, dtype=np.uint8)),
    Corpus(CARD, {"train": np.array([0, 3])}, np.arange(3, dtype=np.uint32), ("", "b", "ä ")),
    Texts(CARD, ROWS, BLOB, np.array([0, 1, 0]), ("a", "b")),
    DocumentPairs(CARD, ROWS, BLOB, np.array([[0, 1], [1, 2], [0, 2]]), np.array([1, 0, 1]), ("x(1)", "y", "z")),
    Parallel(CARD, ROWS, BLOB, BLOB),
    Images(CARD, ROWS, np.zeros((3, 2, 2, 3), np.uint8), np.array([0, 1, 1]), ("a", "b")),
]


def same(one: DataSet, two: DataSet) -> bool:
    first, second = one.arrays(), two.arrays()
    return (
        one.card == two.card
        and first.keys() == second.keys()
        and all(np.array_equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)
    )


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each.shape_name)
def test_a_set_survives_its_arrays_and_its_card_json(example: DataSet, tmp_path: Path) -> None:
    cache.write(tmp_path / "x.npz", {}, example.arrays())
    card = Card.of(json.loads(json.dumps(example.card.json())))
    again = SHAPES[example.shape_name].from_arrays(card, cache.read(tmp_path / "x.npz", {}))
    assert type(again) is type(example) and same(again, example)
    assert getattr(again, "vocabulary", None) == getattr(example, "vocabulary", None)
    assert getattr(again, "classes", None) == getattr(example, "classes", None)


def test_a_blob_gives_views() -> None:
    assert len(BLOB) == 3 and BLOB.lengths.tolist() == [3, 0, 4] and BLOB.text(-1) == "zwö"
    assert np.shares_memory(BLOB[0], BLOB.data) and [item.tobytes() for item in BLOB] == [b"one", b"", "zwö".encode()]
    assert len(Blob.of([])) == 0
    for index in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            BLOB[index]


def test_an_unknown_side_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match="no 'validation' split; it has train, test"):
        EXAMPLES[2].rows("validation")


# --- a source made here -----------------------------------------------------------------------------------------------


def read_lines(files: Mapping[str, Path], card: Card) -> Texts:
    lines = archives.read(files["fake"], "package/lines.txt").split(b"\n")
    return Texts(card, {"train": np.arange(len(lines))}, Blob.of(lines), np.zeros(len(lines), np.int64), ("only",))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """A data set whose package was put into the folder by hand."""
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))
    packages.folder().mkdir(parents=True)
    file = made.npm(packages.folder() / "fake-1.0.tgz", {"lines.txt": b"a\nbb\nccc"})
    record = Source("fake", "Fake", "lines", "none", "all", (made.package("npm", "fake", file),), read_lines)
    monkeypatch.setitem(sources.SOURCES, "fake", record)
    yield record


def test_a_set_is_read_once_and_its_card_says_where_it_came_from(
    fake: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not data.cached("fake")
    first = data.load("fake")
    assert data.cached("fake") and first.card.counts["documents"] == 3 and first.card.counts["longest"] == 3
    (package,) = first.card.packages
    assert package["sha256"] == fake.packages[0].sha256 and package["client"] == "npm" and package["version"] == "1.0"
    sidecar = tmp_path / "cache" / "data" / "fake.json"
    assert json.loads(sidecar.read_text()) == first.card.json()
    packages.folder().joinpath("fake-1.0.tgz").unlink()
    sidecar.unlink()
    assert same(data.load("fake"), first) and sidecar.is_file()


def test_a_raised_revision_and_a_damaged_file_are_read_again(
    fake: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = data.load("fake")
    monkeypatch.setitem(sources.SOURCES, "fake", dataclasses.replace(fake, revision=2))
    with pytest.warns(UserWarning, match="revision is '1', not '2'"):
        data.load("fake")
    file = tmp_path / "cache" / "data" / "fake.npz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="damaged"):
        assert data.load("fake").documents.text(2) == first.documents.text(2)  # type: ignore[attr-defined]


def test_forgetting_takes_the_set_and_its_packages(fake: Source) -> None:
    data.load("fake")
    data.forget("fake")
    assert not data.cached("fake") and list(packages.folder().iterdir()) == []


def test_a_damaged_package_says_what_to_do_and_leaves_no_set(fake: Source) -> None:
    file = packages.folder() / "fake-1.0.tgz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(data.FetchError, match="Delete it and fetch again"):
        data.load("fake")
    assert not data.cached("fake")


def test_names_and_paths_that_make_no_sense_are_told(fake: Source, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'newsgroups'"):
        data.load("newsgroup")
    with pytest.raises(ValueError, match="in no package: give the path of your copy, the file text8"):
        data.load("text8")
    with pytest.raises(ValueError, match="comes out of packages only"):
        data.load("fake", tmp_path)


def test_types_by_name_cover_every_set_and_shape() -> None:
    from relpos.tasks.data import store

    typed = [store.CorpusName, store.TextsName, store.PairsName, store.ParallelName, store.ImagesName, store.EventsName]
    assert sorted(name for each in typed for name in get_args(each)) == sorted(data.names())


def test_every_known_set_says_how_it_is_had() -> None:
    for name in data.names():
        record = data.source(name)
        assert record.name == name and record.title and record.about and record.licence and record.split
        assert bool(record.packages) == (record.from_packages is not None)
        assert record.packages or record.from_path
        assert bool(record.from_path) == bool(record.layout)
        for package in record.packages:
            assert len(package.sha256) == 64 and package.size > 1e5
            assert package.pinned == (package.client != "apt-get")


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from relpos.tasks import data
from relpos.tasks.data import sources
from relpos.tasks.data.sets import Images
def read(files, card):
    with open(sys.argv[1], "a") as log:
        log.write("read\\n")
    time.sleep(1)
    return Images(card, {"train": np.arange(5)}, np.ones((5, 2, 2), np.uint8), np.zeros(5, np.int64), ("a",))
sources.SOURCES["slow"] = sources.Source("slow", "s", "s", "s", "s", (), read)
print(data.load("slow").pixels.sum())
"""


def test_of_two_processes_one_reads_and_the_other_waits(tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = os.environ | {"RELPOS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SLOW, str(log)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == ["20\n", "20\n"]
    assert log.read_text() == "read\n"
