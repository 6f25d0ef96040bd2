"""Pathfinder: the fast form against the literal one, the released code's statistics, the cache, released folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relpos.tasks.long_range import pathfinder
from relpos.tasks.long_range.pathfinder import draw, snakes, stamps
from relpos.tasks.long_range.pathfinder.rules import released
from tests.tasks.pathfinder_oracle import Picture

EASY = released(32, 6)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("size", "length", "seed", "count"),
    [(32, 6, 1, 12), (32, 6, 2, 12), (32, 9, 3, 6), (32, 14, 4, 1), (64, 6, 5, 3), (128, 6, 6, 3), (256, 6, 7, 1)],
)
def test_the_fast_form_equals_the_literal_one(size: int, length: int, seed: int, count: int) -> None:
    """Every pixel, label, margin and number of attempts, from the same random numbers."""
    rules = released(size, length)
    made = draw.pictures(rules, seed, 10, 10 + count)
    for row in range(count):
        slow = Picture(rules, seed, 10 + row)
        assert (slow.image == made["images"][row]).all()
        found = made["labels"][row], made["margins"][row], made["attempts"][row]
        assert found == (slow.label, slow.margin, slow.attempts)


@pytest.mark.parametrize(
    ("length", "count", "mean", "share", "accepted"),
    [(6, 500, (12.99, 1.8), (0.2277, 0.033), 0.0436), (9, 400, (15.54, 2.0), (0.2680, 0.036), 0.0146)],
)
def test_statistics_of_the_released_code(
    length: int,
    count: int,
    mean: tuple[float, float],
    share: tuple[float, float],
    accepted: float,
) -> None:
    """Mean pixel and share above zero (value, spread over pictures) and accepted attempts, within four errors.

    The values were measured on the 2019 code itself, on 2,733 and 1,212 pictures.
    """
    made = draw.pictures(released(32, length), 0, 0, count)
    images = made["images"]
    assert abs(images.mean() - mean[0]) < 4 * mean[1] / np.sqrt(count)
    assert abs((images > 0).mean() - share[0]) < 4 * share[1] / np.sqrt(count)
    assert abs(count / made["attempts"].sum() / accepted - 1) < 4 / np.sqrt(count)
    assert (images.min(axis=(1, 2)) == 0).all() and (images.max(axis=(1, 2)) == 255).all()
    assert abs(made["labels"].mean() - 0.5) < 2 / np.sqrt(count)


def test_statistics_of_the_hard_pictures() -> None:
    """The 2019 code gives mean 20.37, share 0.346 and takes 300 attempts a picture (461 pictures)."""
    made = draw.pictures(released(32, 14), 1, 0, 60)
    assert abs(made["images"].mean() - 20.37) < 4 * 1.94 / np.sqrt(60)
    assert abs((made["images"] > 0).mean() - 0.346) < 4 * 0.037 / np.sqrt(60)
    assert abs(300 / made["attempts"].mean() - 1) < 4 / np.sqrt(60)


def test_contours_connect_and_their_ends_are_marked() -> None:
    """Paddles begin about paddle + 2 margins apart and turn little; label 1 marks the two ends of one curve."""
    for rules in (EASY, released(64, 6), released(128, 6)):
        numbers = [draw.Numbers(rules, 3, index) for index in range(30)]
        margin = rules.margins[0]
        chosen = [each for each in numbers if each.margin == margin]
        tables = stamps.tables(rules, margin)
        paddles, _, _ = draw._targets(tables, chosen)
        starts = paddles[:, :, 1:, 1:]
        steps = np.diff(starts, axis=2)
        lengths = np.hypot(steps[..., 0], steps[..., 1])
        assert (abs(lengths - rules.paddle - 2 * margin) < 3).all()
        headings = np.arctan2(steps[..., 0], steps[..., 1])
        turns = abs((np.diff(headings, axis=2) + np.pi) % (2 * np.pi) - np.pi)
        assert np.median(turns) < 0.8 / rules.continuity
        images = draw.pictures(rules, 3, 0, 30)["images"]
        shown = [images[index] for index, each in enumerate(numbers) if each.margin == margin]
        for image, each, two in zip(shown, chosen, paddles):
            end = each.origin if each.label == 1 else 1 - each.origin
            peak = max(rules.curve_contrast, 1.0) * 255
            for tip in (two[each.origin, 0, 1:], two[end, -1, 1:]):
                if (tip >= 0).all() and (tip < rules.size).all():
                    assert image[tuple(tip)] >= 0.95 * 255 * 255 / peak


def test_labels_are_balanced_and_margins_drawn() -> None:
    numbers = [draw.Numbers(released(128, 6), 0, index) for index in range(2000)]
    for name, low in (("label", 0), ("origin", 0), ("margin", 2)):
        assert abs(np.mean([getattr(each, name) for each in numbers]) - low - 0.5) < 0.045


def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    rules = released(128, 6)  # two margins, so that a picture's neighbours differ between the runs
    whole = draw.pictures(rules, 8, 0, 9)
    for start, stop in ((0, 1), (3, 7), (8, 9)):
        part = draw.pictures(rules, 8, start, stop)
        for name, array in part.items():
            assert (array == whole[name][start:stop]).all()
    assert not np.array_equal(draw.pictures(rules, 9, 0, 9)["images"], whole["images"])


def test_few_lanes_give_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    many = draw.pictures(EASY, 2, 0, 12)
    monkeypatch.setattr(draw, "_ATTEMPTS", 7)
    few = draw.pictures(EASY, 2, 0, 12)
    assert all((few[name] == many[name]).all() for name in many)


@pytest.mark.slow(10)
def test_the_number_of_processes_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pathfinder, "SHARD", 10)
    loaded = []
    for workers in (1, 2):
        monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / str(workers)))
        loaded.append(pathfinder.load(32, 6, count=25, seed=4, workers=workers))
        assert len(list((tmp_path / str(workers)).rglob("*.npz"))) == 3
    one, two = loaded
    assert (one.images == two.images).all() and (one.labels == two.labels).all() and one.images.shape == (25, 32, 32)


def test_a_stopped_load_goes_on(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(pathfinder, "SHARD", 4)
    calls: list[tuple[int, int]] = []

    def stop(done: int, total: int, text: str) -> None:
        calls.append((done, total))
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pathfinder.load(32, 6, 14, 1, workers=1, progress=stop)
    files = sorted(folder.rglob("*.npz"))
    stamps_before = [file.stat().st_mtime_ns for file in files]
    assert calls == [(0, 14), (4, 14), (8, 14)] and len(files) == 2
    calls.clear()
    found = pathfinder.load(32, 6, 14, 1, workers=1, progress=lambda done, total, text: calls.append((done, total)))
    assert calls == [(8, 14), (12, 14), (14, 14)]
    assert [file.stat().st_mtime_ns for file in files] == stamps_before
    whole = draw.pictures(EASY, 1, 0, 14)
    assert (found.images == whole["images"]).all() and (found.labels == whole["labels"]).all()
    files[0].write_bytes(b"not an archive")
    with pytest.warns(UserWarning, match="making .* again"):
        assert (pathfinder.load(32, 6, 14, 1, workers=1).images == whole["images"]).all()


def test_metadata_are_the_released_fields() -> None:
    found = pathfinder.load(32, 14, count=1, workers=1)
    label = found.labels[0]
    assert found.metadata() == [f"imgs/0 sample_0.png 0 {label} 1.0 14 4 2 0.5 1 1"]


def write_release(base: Path, made: dict[str, np.ndarray], as_array: bool) -> None:
    """Batches 0, 2 and 10 of two pictures each, and an empty file."""
    for number, batch in enumerate((0, 2, 10)):
        (base / "imgs" / str(batch)).mkdir(parents=True)
        (base / "metadata").mkdir(exist_ok=True)
        rows = []
        for index in (0, 1):
            row = 2 * number + index
            Image.fromarray(made["images"][row]).save(base / "imgs" / str(batch) / f"sample_{index}.png")
            rows.append([f"imgs/{batch}", f"sample_{index}.png", index, made["labels"][row], 1.0, 6, 2, 2, 0.5, 1, 1])
        path = base / "metadata" / f"{batch}.npy"
        if as_array:
            np.save(path, np.array(rows).astype(str))
        else:
            path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    (base / "imgs" / "2" / "sample_1.png").write_bytes(b"")


@pytest.mark.parametrize("as_array", [True, False])
def test_released_folders_are_read(tmp_path: Path, as_array: bool) -> None:
    made = draw.pictures(EASY, 5, 0, 6)
    base = tmp_path / "pathfinder32" / "curv_baseline"
    write_release(base, made, as_array)
    for place in (tmp_path, base):
        found = pathfinder.read(place, 32, 6)
        kept = [0, 1, 2, 4, 5]
        assert (found.images == made["images"][kept]).all() and (found.labels == made["labels"][kept]).all()
    with pytest.raises(ValueError, match="read from files"):
        found.metadata()


def test_damaged_releases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no metadata"):
        pathfinder.read(tmp_path, 32, 6)
    write_release(tmp_path, draw.pictures(EASY, 5, 0, 6), as_array=False)
    with pytest.raises(ValueError, match="expected 64 by 64 pixels"):
        pathfinder.read(tmp_path, 64, 6)
    lines = tmp_path / "metadata" / "0.npy"
    for text in ("imgs/0 sample_0.png 0 2 1.0 6 2 2 0.5 1 1\n", "imgs/0 sample_0.png 0 1\n"):
        lines.write_text(text)
        with pytest.raises(ValueError, match="row 1: expected 11 fields"):
            pathfinder.read(tmp_path, 32, 6)
    lines.write_text("imgs/0/../../.. secret.png 0 1 1.0 6 2 2 0.5 1 1\n")
    with pytest.raises(ValueError, match="11 fields"):
        pathfinder.read(tmp_path, 32, 6)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"size": 48}, "size must be one of"),
        ({"length": 7}, "length must be one of"),
        ({"count": 0}, "count must be at least 1"),
        ({"seed": -1}, "seed at least 0"),
        ({"workers": 0}, "workers must be"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        pathfinder.load(**{"count": 1, "workers": 1, **options})


def test_tables_state_the_rules() -> None:
    """Masks clash from a sum of 1.8 on; curves begin only in directions in which a tail can be looked for."""
    values = (np.arange(256) / 255).astype(np.float32).astype(np.float64)
    clash = np.arange(256)[None] >= stamps.CLASH[:, None]
    assert (clash == (values[:, None] + values[None] >= 1.8)).all()
    thin, thick = stamps.tables(EASY, 1), stamps.tables(released(128, 6), 3)
    assert 20 < sum(bool(shifts) for shifts in thin.shifts) < 120 and all(thick.shifts)
    assert all(len(seeds) <= 16 for seeds in thin.seeds)  # the first tail lies in the central 4 by 4 pixels
    assert snakes.SCARCE == 0.01
