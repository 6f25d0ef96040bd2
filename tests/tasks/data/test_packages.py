"""Clients are called as they should be, their failures are told, and a wrong file is not taken."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path

import pytest

from relpos.tasks.data import packages
from relpos.tasks.data.packages import FetchError, obtain
from tests.tasks.data import made


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for commands that act as the package clients; they write their arguments to the file calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.setattr(packages.shutil, "which", lambda name: str(folder / name) if (folder / name).exists() else None)
    return folder


def script(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{body}\n')
    path.chmod(0o755)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


@pytest.mark.skipif(find_spec("pip") is None, reason="this Python has no pip")
def test_pip_brings_a_wheel_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    file = made.wheel(shelf / "fake_data-1.0-py3-none-any.whl", "fake-data", {"fake/data.txt": b"hello"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    wanted = made.package("pip", "fake-data", file)
    (got,) = obtain([wanted])
    assert got.path == packages.folder() / file.name and got.path.read_bytes() == file.read_bytes()
    assert got.record()["version"] == "1.0" and got.expected
    file.unlink()
    assert obtain([wanted]) == [got]  # from the folder, without pip
    assert [each.name for each in packages.folder().iterdir()] == [file.name]  # no scratch left


@pytest.mark.skipif(find_spec("pip") is None, reason="this Python has no pip")
def test_pip_never_takes_an_sdist_whose_setup_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "ran"
    setup = f"open({str(mark)!r}, 'w')\nfrom setuptools import setup\nsetup(name='fake-data', version='1.0')\n"
    (tmp_path / "fake-data-1.0.tar.gz").write_bytes(made.tarred({"fake-data-1.0/setup.py": setup.encode()}))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError, match=r"pip download .* failed"):
        obtain([packages.Package("pip", "fake-data", "1.0", "0" * 64, 1)])
    assert not mark.exists()


def test_npm_packs_without_scripts(tmp_path: Path, client: Path) -> None:
    file = made.npm(tmp_path / "scope-fake-1.0.tgz", {"data.txt": b"hello"})
    script(client, "npm", f"cp {file} .")
    (got,) = obtain([made.package("npm", "@scope/fake", file)])
    assert got.path.name == "scope-fake-1.0.tgz"
    (call,) = calls(client)
    assert call.startswith("pack ") and "--ignore-scripts" in call and call.endswith("@scope/fake@1.0")


def test_apt_is_asked_again_with_lists_of_its_own(tmp_path: Path, client: Path) -> None:
    file = made.deb(tmp_path / "fake_2%3a1.0-1_all.deb", {"x": b"hello"})
    script(client, "apt-get", f'case "$*" in "download fake") exit 100;; *download*) cp {file} .;; esac')
    (got,) = obtain([dataclasses.replace(made.package("apt-get", "fake", file), version="", sha256="0" * 64)])
    first, update, second = calls(client)
    assert first == "download fake" and update.endswith(" update") and second.endswith(" download fake")
    assert all("-oDir::State::Lists=" in call and "-oDir::Cache=" in call for call in (update, second))
    assert got.version == "2:1.0-1"
    assert not got.expected and got.record()["expected"].startswith("no")  # Debian moves: told, not refused


def test_apt_without_a_network_says_so_and_not_that_there_is_no_such_package(client: Path) -> None:
    told = 'case "$*" in *any\\ update) echo "E: Could not connect"; exit 100;; *update) exit 0;;'
    script(client, "apt-get", told + " *) echo none; exit 100;; esac")
    with pytest.raises(FetchError, match="Could not connect"):
        obtain([packages.Package("apt-get", "fake", "", "0" * 64, 1)])
    script(client, "apt-get", 'case "$*" in *update) exit 0;; *) echo no such package; exit 100;; esac')
    with pytest.raises(FetchError, match="no such package"):
        obtain([packages.Package("apt-get", "fake", "", "0" * 64, 1)])


def test_a_missing_client_is_told_and_a_file_put_there_by_hand_is_used(tmp_path: Path, client: Path) -> None:
    file = made.npm(tmp_path / "fake-1.0.tgz", {"x": b"hello"})
    wanted = made.package("npm", "fake", file)
    with pytest.raises(FetchError, match=r"npm is not on this machine.*by hand: fake-1\.0\.tgz"):
        obtain([wanted])
    (packages.folder() / file.name).write_bytes(file.read_bytes())
    assert obtain([wanted])[0].expected


def test_a_failing_client_is_quoted(client: Path) -> None:
    script(client, "npm", "echo 404 no such package >&2; exit 7")
    with pytest.raises(FetchError, match=r"exit status 7\): 404 no such package"):
        obtain([packages.Package("npm", "fake", "1.0", "0" * 64, 1)])
    assert list(packages.folder().iterdir()) == []


def test_a_client_that_brings_nothing_is_told(client: Path) -> None:
    script(client, "npm", "exit 0")
    with pytest.raises(FetchError, match="brought no file"):
        obtain([packages.Package("npm", "fake", "1.0", "0" * 64, 1)])


def test_a_pinned_file_with_another_sha256_is_refused(tmp_path: Path, client: Path) -> None:
    file = made.npm(tmp_path / "fake-1.0.tgz", {"x": b"hello"})
    wanted = made.package("npm", "fake", file)
    packages.folder().mkdir(parents=True)
    (packages.folder() / file.name).write_bytes(file.read_bytes() + b"more")
    with pytest.raises(FetchError, match=f"not {wanted.sha256}"):
        obtain([wanted])


def test_a_client_that_stalls_is_ended(client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "STALL", 0.5)
    script(client, "npm", "exec sleep 60")
    with pytest.raises(FetchError, match="got nothing for"):
        obtain([packages.Package("npm", "fake", "1.0", "0" * 64, 1)])


def test_progress_follows_the_bytes_that_arrive(tmp_path: Path, client: Path) -> None:
    file = made.npm(tmp_path / "fake-1.0.tgz", {"x": bytes(100)})
    script(client, "npm", f"head -c 1000 /dev/zero > part; sleep 0.6; cp {file} .")
    seen: list[tuple[int, int, str]] = []
    wanted = dataclasses.replace(made.package("npm", "fake", file), size=2000)
    obtain([wanted], lambda *event: seen.append(event))
    assert seen and all(total == 2000 and "downloading fake" in text for _, total, text in seen)
    assert 1000 <= max(done for done, _, _ in seen) <= 2000
