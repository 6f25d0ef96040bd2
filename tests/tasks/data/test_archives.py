"""Package files are opened without running or unpacking anything, whatever they hold."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from relpos.tasks.data import archives
from tests.tasks.data import made

FILES = {"a/one.txt": b"1" * 31, "a/two.bin": bytes(range(256)), "b/three.txt": b""}


def everything(path: Path) -> dict[str, bytes]:
    return dict(archives.members(path, lambda name: True))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: made.zipped(path, FILES),
        lambda path: path.write_bytes(made.tarred(FILES, "w:gz")) and path,
        lambda path: path.write_bytes(made.tarred(FILES, "w:xz")) and path,
        lambda path: made.deb(path, FILES, "xz"),
        lambda path: made.deb(path, FILES, "gz"),
    ],
)
def test_every_kind_gives_all_members_and_only_the_wanted(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "archive")
    assert everything(path) == FILES
    assert dict(archives.members(path, lambda name: name.endswith("two.bin"))) == {"a/two.bin": bytes(range(256))}
    assert archives.read(path, "a/one.txt") == FILES["a/one.txt"]
    with pytest.raises(ValueError, match="no member c"):
        archives.read(path, "c")


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the command zstd")
def test_a_deb_packed_with_zstandard(tmp_path: Path) -> None:
    plain = made.tarred({f"./{name}": data for name, data in FILES.items()}, "w")
    packed = subprocess.run(["zstd", "-q"], input=plain, capture_output=True, check=True).stdout
    header = f"{'data.tar.zst':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(packed):<10}`\n".encode()
    path = tmp_path / "x.deb"
    path.write_bytes(b"!<arch>\n" + header + packed)
    assert everything(path) == FILES


def test_zstandard_without_a_reader_for_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.deb(tmp_path / "x.deb", FILES)
    path.write_bytes(path.read_bytes().replace(b"data.tar.xz ", b"data.tar.zst"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "compression", None)
    with pytest.raises(ValueError, match="install the command zstd"):
        everything(path)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_names_that_leave_their_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unsafe name"):
        everything(made.zipped(tmp_path / "z", {name: b"x"}))
    (tmp_path / "t").write_bytes(made.tarred({name: b"x"}))
    with pytest.raises(ValueError, match="unsafe name"):
        everything(tmp_path / "t")


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = made.deb(tmp_path / "x.deb", {"a": b"1"}, links={"./b": "/etc/passwd", "./c": "a"})
    assert everything(path) == {"a": b"1"}


def test_a_member_larger_than_allowed_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = {"zeros": bytes(1_000_000)}
    for path in (made.zipped(tmp_path / "z", bomb), made.deb(tmp_path / "d", bomb)):
        with pytest.raises(ValueError, match="1,000,000 bytes unpacked"):
            list(archives.members(path, lambda name: True, largest=999_999))
        assert dict(archives.members(path, lambda name: True, largest=1_000_000)) == bomb


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["zip", "tar", "deb"])
def test_a_cut_archive_is_called_damaged(kind: str, share: float, tmp_path: Path) -> None:
    files = {"noise": bytes((i * i * 31 + i // 7) % 256 for i in range(50_000))}
    path = tmp_path / "x"
    if kind == "tar":
        path.write_bytes(made.tarred(files))
    else:
        (made.zipped if kind == "zip" else made.deb)(path, files)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="damaged"):
        everything(path)


def test_a_missing_file_is_the_systems_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        everything(tmp_path / "nothing")
