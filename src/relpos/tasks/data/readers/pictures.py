"""Picture files of any size: the drawings of openclipart, and folders of a user's own in the layout of ImageFolder.

A file that cannot be decoded is left out, named and counted; nothing is decoded that would take more than `LARGEST`
pixels, whatever its header promises.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relpos.tasks.base import Progress
from relpos.tasks.data import archives
from relpos.tasks.data.sets import Card, Images
from relpos.tasks.data.splits import hashed

LARGEST = 64_000_000  # pixels: 256 MB once they are decoded
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SHARES = {"train": 0.72, "validation": 0.08, "test": 0.2}
NAMED = 10  # unreadable files that are told by name
SIDE = 32
MOST = 64  # pixels a side of a user's own pictures once they are packed

DRAWINGS = (
    *("animals", "buildings", "computer", "food", "geography", "office"),
    *("people", "recreation", "shapes", "signs_and_symbols", "tools", "transportation"),
)
_CLIPART = "usr/share/openclipart/png/"


class Unreadable(ValueError):
    """A picture file that cannot be decoded, or that would take too much memory."""


def pillow() -> Any:
    """PIL.Image. ModuleNotFoundError says what to install."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures are read with pillow: pip install 'relpos[lab]'", name="PIL") from error
    return Image


def decode(content: bytes | str) -> Any:
    """The picture, from its bytes or its file, as PIL image of mode "L" (grey) or "RGB", transparent parts on white.

    Unreadable says why not: damaged, no picture, or more than `LARGEST` pixels.
    """
    pil = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures: `LARGEST` decides
            with pil.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
                if image.width * image.height > LARGEST:
                    raise Unreadable(f"{image.width} x {image.height} pixels are more than the {LARGEST:,} allowed")
                return _opaque(pil, image)
    except Unreadable:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError and their own
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _opaque(pil: Any, image: Any) -> Any:
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode.startswith("I"):  # 16 bits a pixel, or 32 that hold 16
        values = np.asarray(image, dtype=np.float64) / 257
        return pil.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return pil.alpha_composite(pil.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def openclipart(files: Mapping[str, Path], card: Card, progress: Progress | None = None) -> Images:
    """The 12 larger folders that say what a drawing shows, each drawing brought to 32 x 32 colour pixels.

    Links are left out: they are the same file under a second name. The split goes by the pixels, so drawings that are
    identical at this size stay on one side.
    """
    pil = pillow()
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    broken: list[tuple[str, str]] = []
    wanted = tuple(f"{_CLIPART}{name}/" for name in DRAWINGS)
    about = 6429  # drawings of these folders in version 0.18
    members = archives.members(files["openclipart-png"], lambda name: name.startswith(wanted) and name.endswith(".png"))
    for done, (name, data) in enumerate(members, start=1):
        try:
            image = decode(data).convert("RGB").resize((SIDE, SIDE), pil.Resampling.BILINEAR)
        except Unreadable as error:
            broken.append((name.removeprefix(_CLIPART), str(error)))
            continue
        pixels.append(np.asarray(image))
        labels.append(DRAWINGS.index(name.removeprefix(_CLIPART).split("/")[0]))
        if progress is not None and done % 50 == 0:
            progress(min(done, about), about, "shrinking drawings")
    if not pixels:
        raise ValueError(f"{files['openclipart-png']} holds no drawings below {_CLIPART}: it is another package")
    packed = np.stack(pixels)
    keys = [hashlib.sha256(each.tobytes()).digest() for each in packed]
    counted: dict[str, object] = {"distinct": len(set(keys)), **told(broken, len(pixels))}
    card = dataclasses.replace(card, counts=counted)
    return Images(card, hashed(keys, SHARES), packed, np.array(labels, np.int64), DRAWINGS)


def told(broken: Sequence[tuple[str, str]], readable: int) -> dict[str, object]:
    """A card's lines on files left out, after a warning that names some of them; {} where there are none."""
    if not broken:
        return {}
    more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    names = ", ".join(name for name, _ in broken[:NAMED]) + more
    total = len(broken) + readable
    warnings.warn(f"{len(broken)} of {total} picture files are left out: {names}. First: {broken[0][1]}", stacklevel=3)
    return {"left out": len(broken), "files left out": names}


@dataclass(frozen=True)
class Listing:
    """The picture files of a folder by side ("train", "val", "test", or "" where there are no sides), not opened yet.

    files[side]: paths as text (there may be a million), in order of their names; labels[side]: (count,) int64;
    classes: folder names, sorted.
    """

    files: dict[str, tuple[str, ...]]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...]


def listed(path: Path) -> Listing:
    """The files below DIR/CLASS/, or below DIR/train/CLASS/ and DIR/val/CLASS/ (test/ too where it is there).

    A class is a folder, its label its place among the sorted names, as torchvision's ImageFolder has it; pictures may
    lie deeper. ValueError for a folder without classes, a class without pictures, and for a class of val or test that
    train has not; a class that train alone has is warned of.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no folder; wanted is DIR/CLASS/*.png, or DIR/train/CLASS/ and DIR/val/CLASS/")
    sides = {name: path / name for name in ("train", "val", "test") if (path / name).is_dir()}
    if "train" not in sides or len(sides) == 1:
        sides = {"": path}
    first = next(iter(sides))
    classes = tuple(sorted(each.name for each in sides[first].iterdir() if each.is_dir() and each.name[0] != "."))
    if len(classes) < 2:
        raise ValueError(f"{sides[first]} holds {len(classes)} class folders; wanted are two or more, one a class")
    files: dict[str, tuple[str, ...]] = {}
    labels: dict[str, np.ndarray] = {}
    for side, folder in sides.items():
        found = {name: _pictures(folder / name) for name in classes}
        _check_classes(side, folder, found, first)
        files[side] = tuple(file for each in found.values() for file in each)
        labels[side] = np.repeat(np.arange(len(classes)), [len(each) for each in found.values()])
    return Listing(files, labels, classes)


def _pictures(folder: Path) -> list[str]:
    walk = os.walk(folder, followlinks=True)
    return sorted(f"{place}/{name}" for place, _, names in walk for name in names if name.lower().endswith(SUFFIXES))


def _check_classes(side: str, folder: Path, found: Mapping[str, list[str]], first: str) -> None:
    empty = [name for name, files in found.items() if not files]
    listed = ", ".join(empty[:NAMED]) + (" ..." if len(empty) > NAMED else "")
    if empty and side == first:
        raise ValueError(f"{folder}: no pictures in the class folders {listed}; fill them or remove them")
    if side != first:
        foreign = sorted({each.name for each in folder.iterdir() if each.is_dir()} - set(found))
        if foreign:
            raise ValueError(f"{folder} has classes that train has not: {', '.join(foreign[:NAMED])}")
        if len(empty) == len(found):
            raise ValueError(f"{folder} holds no pictures; fill its class folders or remove it")
        if empty:
            warnings.warn(f"{folder}: no pictures of {listed}, so these classes are not judged there", stacklevel=4)


def folder(path: Path, card: Card, progress: Progress | None = None) -> Images:
    """A user's own pictures, all of one size: their own where it is at most 64 x 64, else the middle square at 64 x 64.

    Without sides 72/8/20 by hash of the file, so that copies stay on one side. Grey where every file is.
    """
    found = listed(path)
    total, done = sum(map(len, found.files.values())), 0
    images: list[Any] = []
    labels: list[int] = []
    broken: list[tuple[str, str]] = []
    keys: dict[str, list[bytes]] = {side: [] for side in found.files}
    for side, files in found.files.items():
        for file, label in zip(files, found.labels[side], strict=True):
            done += 1
            try:
                content = Path(file).read_bytes()
                images.append(_small(decode(content)))
            except (Unreadable, OSError) as error:
                broken.append((str(Path(file).relative_to(path)), str(error)))
                continue
            labels.append(int(label))
            keys[side].append(hashlib.sha256(content).digest())
            if progress is not None:
                progress(done, total, "reading pictures")
    _check_read(found, labels, keys)
    card = dataclasses.replace(card, counts=told(broken, len(images)))
    return Images(card, _sides(keys), _packed(images), np.array(labels, np.int64), found.classes)


def _check_read(found: Listing, labels: list[int], keys: Mapping[str, list[bytes]]) -> None:
    unread = sorted(set(range(len(found.classes))) - set(labels))
    if unread:
        names = ", ".join(found.classes[label] for label in unread[:NAMED])
        raise ValueError(f"no picture of the classes {names} can be read; mend them or remove these folders")
    for side, each in keys.items():
        if not each:
            raise ValueError(f"no picture of {side} can be read")


def _small(image: Any) -> Any:
    if max(image.size) <= MOST:
        return image
    return square(image, MOST)


def square(image: Any, side: int) -> Any:
    """The middle square of a picture at side x side pixels."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return image.resize((side, side), pillow().Resampling.BILINEAR, box=(left, top, left + edge, top + edge))


def _packed(images: list[Any]) -> np.ndarray:
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        side = min(min(size) for size in sizes)
        images = [square(image, side) for image in images]
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    return np.stack([np.asarray(image.convert(mode)) for image in images])


def _sides(keys: Mapping[str, list[bytes]]) -> dict[str, np.ndarray]:
    """Rows by side: by hash; or train and val as they are, val being the test where there is no other."""
    if set(keys) == {""}:
        split = hashed(keys[""], SHARES)
        if not all(len(rows) for rows in split.values()):
            raise ValueError(f"{len(keys[''])} pictures are too few to be split; make folders train and val of them")
        return split
    edges = np.cumsum([0, *(len(each) for each in keys.values())])
    rows = {side: np.arange(edges[i], edges[i + 1]) for i, side in enumerate(keys)}
    if "test" not in rows:
        return {"train": rows["train"], "test": rows["val"]}
    return {"train": rows["train"], **({"validation": rows["val"]} if "val" in rows else {}), "test": rows["test"]}
