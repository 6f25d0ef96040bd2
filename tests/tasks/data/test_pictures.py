"""Picture files: what cannot be decoded, openclipart out of a package made by hand, and folders of a user's own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from relpos.tasks import data
from relpos.tasks.data.readers import pictures
from relpos.tasks.data.sets import Card
from tests.tasks.data import made

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))


def png(pixels: np.ndarray | object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    image.save(buffer, "PNG")
    return buffer.getvalue()


def flat(red: int, side: int = 8) -> np.ndarray:
    """One colour, with a corner that makes it no plain square."""
    pixels = np.full((side, side, 3), (red, 255 - red, 7), np.uint8)
    pixels[: side // 2, : side // 2] = 255
    return pixels


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


# --- one file ---------------------------------------------------------------------------------------------------------


def test_what_is_transparent_lies_on_white() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (200, 0, 0, 255)
    pixels[0, 1] = (0, 0, 0, 51)
    seen = np.asarray(pictures.decode(png(pixels)))
    assert seen[0, 0].tolist() == [200, 0, 0] and seen[1, 1].tolist() == [255, 255, 255]
    assert seen[0, 1].tolist() == [204, 204, 204]


def test_grey_in_8_and_16_bits_stays_grey() -> None:
    grey = np.array([[0, 128], [255, 3]], np.uint8)
    assert pictures.decode(png(grey)).mode == "L"
    wide = pictures.decode(png(grey.astype(np.uint16) * 257))
    assert wide.mode == "L" and np.asarray(wide).tolist() == grey.tolist()


def test_a_palette_with_a_transparent_colour_is_read_in_colour() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    assert np.asarray(pictures.decode(buffer.getvalue()))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("content", [b"", b"no picture", png(flat(1))[:60], png(flat(1))[:-30]])
def test_damaged_files_are_unreadable(content: bytes) -> None:
    with pytest.raises(pictures.Unreadable):
        pictures.decode(content)


def test_a_huge_picture_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LARGEST", 63)
    with pytest.raises(pictures.Unreadable, match="8 x 8 pixels are more than the 63"):
        pictures.decode(png(flat(1)))


# --- openclipart ------------------------------------------------------------------------------------------------------


def clipart(path: Path, drawings: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    root = "usr/share/openclipart/png/"
    return made.deb(path, {root + name: content for name, content in drawings.items()}, links=links)


def test_openclipart_keeps_identical_pictures_on_one_side(tmp_path: Path) -> None:
    drawings = {
        f"{'animals' if i % 2 else 'food/fruit'}/{i}-{copy}.png": png(flat(i)) for i in range(60) for copy in "ab"
    }
    deb = clipart(
        tmp_path / "x.deb",
        drawings | {"special/1.png": png(flat(1)), "food/readme.txt": b"no"},
        {"usr/share/openclipart/png/food/link.png": "fruit/0-a.png"},
    )
    read = pictures.openclipart({"openclipart-png": deb}, Card("openclipart", "drawings"))
    assert read.pixels.shape == (120, 32, 32, 3) and read.card.counts == {"distinct": 60}
    assert {read.classes[label] for label in read.labels} == {"animals", "food"}
    side_of = {index: side for side, rows in read.split.items() for index in rows}
    assert len(side_of) == 120 and len({side_of[i] for i in range(120)}) == 3
    sides: dict[bytes, set[str]] = {}
    for index, pixels in enumerate(read.pixels):
        sides.setdefault(pixels.tobytes(), set()).add(side_of[index])
    assert all(len(each) == 1 for each in sides.values())


def test_openclipart_leaves_out_what_it_cannot_read_and_counts_it(tmp_path: Path) -> None:
    deb = clipart(tmp_path / "x.deb", {"people/a.png": png(flat(9)), "people/b.png": b"broken"})
    with pytest.warns(UserWarning, match=r"1 of 2 picture files are left out: people/b\.png"):
        read = pictures.openclipart({"openclipart-png": deb}, Card("openclipart", "drawings"))
    assert read.card.counts == {"distinct": 1, "left out": 1, "files left out": "people/b.png"}
    empty = clipart(tmp_path / "y.deb", {"special/a.png": png(flat(9))})
    with pytest.raises(ValueError, match="holds no drawings"):
        pictures.openclipart({"openclipart-png": empty}, Card("openclipart", "drawings"))


# --- folders ----------------------------------------------------------------------------------------------------------


def sided(root: Path, count: int = 3, side: int = 8, grey: bool = False) -> Path:
    for number, name in enumerate(("cat", "dog")):
        for which in ("train", "val"):
            pixels = [flat(40 * number + i + 20 * (which == "val"), side) for i in range(count)]
            files = {f"{which}/{name}/{i}.png": png(p[..., 0] if grey else p) for i, p in enumerate(pixels)}
            put(root, files)
    return root


def test_a_folder_with_sides(tmp_path: Path) -> None:
    read = data.load("folder", sided(tmp_path / "d"))
    assert read.classes == ("cat", "dog") and read.labels.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert {side: rows.tolist() for side, rows in read.split.items()} == {
        "train": [*range(6)],
        "test": [*range(6, 12)],
    }
    assert read.pixels.shape == (12, 8, 8, 3) and read.pixels[4, -1, -1].tolist() == [41, 214, 7]


def test_a_third_side_makes_val_the_validation(tmp_path: Path) -> None:
    root = sided(tmp_path / "d")
    put(root, {"test/cat/x.png": png(flat(99))})
    with pytest.warns(UserWarning, match="no pictures of dog"):
        read = data.load("folder", root)
    assert [len(read.split[side]) for side in ("train", "validation", "test")] == [6, 6, 1]


def test_a_grey_folder_of_large_pictures_has_one_channel_and_one_size(tmp_path: Path) -> None:
    root = sided(tmp_path / "d", side=100, grey=True)
    assert data.load("folder", root).pixels.shape == (12, 64, 64)
    other = sided(tmp_path / "e", side=40, grey=True)
    put(other, {"train/cat/wide.png": png(np.full((30, 50), 3, np.uint8))})
    assert data.load("folder", other).pixels.shape == (13, 30, 30)


def test_a_folder_without_sides_keeps_copies_together(tmp_path: Path) -> None:
    files = {f"{'ab'[i % 2]}/deep/{i}-{copy}.png": png(flat(i)) for i in range(80) for copy in range(2)}
    read = data.load("folder", put(tmp_path / "d", files))
    sides: dict[bytes, set[str]] = {}
    for side, rows in read.split.items():
        assert len(rows)
        for row in rows:
            sides.setdefault(read.pixels[row].tobytes(), set()).add(side)
    assert len(sides) == 80 and all(len(each) == 1 for each in sides.values())


def test_corrupt_files_are_named_and_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    root = sided(tmp_path / "d")
    put(root, {"train/cat/bad.jpg": b"\xff\xd8 no", "val/dog/empty.png": b""})
    with pytest.warns(UserWarning, match=r"2 of 14 picture files are left out: train/cat/bad\.jpg, val/dog/empty\.png"):
        read = data.load("folder", root)
    assert read.card.counts["left out"] == 2 and len(read.pixels) == 12
    assert data.load("folder", root).card.counts["left out"] == 2  # out of the cache, too


def test_folders_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    root = sided(tmp_path / "d")
    (root / "train" / "eel").mkdir()
    with pytest.raises(ValueError, match="no pictures in the class folders eel"):
        data.load("folder", root)
    put(root, {"train/eel/x.png": b"broken"})
    with (
        pytest.warns(UserWarning, match="no pictures of eel"),
        pytest.raises(ValueError, match="no picture of the classes eel can be read"),
    ):
        data.load("folder", root)
    put(root, {"train/eel/x.png": png(flat(3)), "val/fox/x.png": png(flat(3))})
    with pytest.raises(ValueError, match="has classes that train has not: fox"):
        data.load("folder", root)
    put(tmp_path / "e", {"only/x.png": png(flat(3))})
    with pytest.raises(ValueError, match="holds 1 class folders"):
        data.load("folder", tmp_path / "e")
