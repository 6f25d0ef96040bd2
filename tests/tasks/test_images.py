"""The task images: pure batches, equal judging at every size, honest baselines, maps, and a run from end to end."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from relpos import tasks
from relpos.tasks.data import Card
from relpos.tasks.data import Images as Pictures
from relpos.tasks.vision import maps
from relpos.tasks.vision.images import CONTESTANTS, Images
from relpos.tasks.vision.pixels import Scale, mirrored, resampled, shifted

SMALL = {"dim": 16, "depth": 1, "heads": 2}


def bars(count: int, side: int = 12, colour: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A bright bar that lies or stands, somewhere: two classes, one twice as common."""
    draw = np.random.default_rng(0)
    labels = (np.arange(count) % 3 == 0).astype(np.int64)
    pixels = draw.integers(0, 60, (count, side, side), dtype=np.uint8)
    for image, label, place in zip(pixels, labels, draw.integers(0, side - 2, count)):
        (image.T if label else image)[place : place + 2] += 180
    return (np.stack([pixels] * 3, -1) if colour else pixels), labels


def made(count: int = 90, side: int = 12, colour: bool = False, **options: object) -> Images:
    pixels, labels = bars(count, side, colour)
    third = count // 3
    split = {
        "train": np.arange(third),
        "validation": np.arange(third, 2 * third),
        "test": np.arange(2 * third, count),
    }
    task = Images("mnist5k", side=side, **options)  # type: ignore[arg-type]
    task._take(Pictures(Card("bars", "bars"), split, pixels, labels, ("lying", "standing")))
    return task


# --- pictures ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7), st.integers(0, 3), st.integers(0, 9))
def test_a_shifted_picture_is_a_part_of_the_picture_with_its_edge_repeated(
    count: int, height: int, width: int, most: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (count, height, width), dtype=np.uint8)
    moved = shifted(pixels, most, np.random.default_rng(seed))
    wide = np.pad(pixels, ((0, 0), (most, most), (most, most)), mode="edge")
    for image, padded in zip(moved, wide):
        parts = [padded[y : y + height, x : x + width] for y in range(2 * most + 1) for x in range(2 * most + 1)]
        assert any((image == part).all() for part in parts)


def test_mirrored_turns_about_half_of_them_left_to_right() -> None:
    pixels, _ = bars(200, colour=True)
    seen = mirrored(pixels, np.random.default_rng(0))
    turned = [bool((a == b[:, ::-1]).all()) and not (a == b).all() for a, b in zip(seen, pixels)]
    kept = [bool((a == b).all()) for a, b in zip(seen, pixels)]
    assert all(t or k for t, k in zip(turned, kept)) and 60 < sum(turned) < 140


@pytest.mark.parametrize("colour", [False, True])
def test_scaled_pixels_have_mean_0_and_spread_1(colour: bool) -> None:
    pixels, _ = bars(60, colour=colour)
    x = Scale.of(pixels)(pixels)
    assert x.shape == (60, 3 if colour else 1, 12, 12)
    assert x.mean((0, 2, 3)).abs().max() < 1e-4 and (x.std((0, 2, 3)) - 1).abs().max() < 1e-2


def test_resampling_keeps_a_flat_picture_flat_at_any_size() -> None:
    x = torch.full((1, 2, 12, 12), 0.7)
    for side in (5, 12, 31):
        assert torch.allclose(resampled(x, side), torch.full((1, 2, side, side), 0.7), atol=1e-6)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_pure_function_of_step_and_seed() -> None:
    one, other = made(), made()
    other.batch(7, 3, 4)
    for a, b in zip(one.batch(5, 1, 8), other.batch(5, 1, 8)):
        assert torch.equal(a, b)
    assert not torch.equal(one.batch(5, 1, 8)[0], one.batch(5, 2, 8)[0])
    with pytest.raises(ValueError, match="0 or more"):
        one.batch(-1, 0, 8)


def test_an_epoch_goes_through_every_training_picture_once() -> None:
    task = made(shift=0, mirror=False)
    pixels = task._tensors(task.data.pixels[task._sides["train"]], 12)
    seen = torch.cat([task.batch(step, 0, 10)[0] for step in range(3)])
    key = lambda x: sorted(map(bytes, (each.numpy() for each in x)))  # noqa: E731
    assert key(seen) == key(pixels)
    assert not torch.equal(seen, torch.cat([task.batch(step, 0, 10)[0] for step in range(3, 6)]))


def test_a_pickled_task_leaves_its_data_behind() -> None:
    whole = made(900)
    assert len(pickle.dumps(whole)) < 4000 < whole.data.pixels.nbytes


# --- judging ----------------------------------------------------------------------------------------------------------


class Mean(nn.Module):
    """Answers "standing" with a probability that grows with the mean of the picture; tells the sizes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(x.shape[-1])
        mean = self.weight * x.mean((1, 2, 3))
        return torch.stack([-mean, mean], -1)

    def resize(self, image: int) -> Mean:
        return self


def test_every_size_judges_the_same_pictures_at_that_size() -> None:
    task = made(judged=(10, 20), sizes=[8, 16])
    assert task.lengths == (8, 12, 16)
    model = Mean().train()
    found = [task.evaluate(model, "test", length) for length in task.lengths]
    assert [each.count for each in found] == [20, 20, 20] and model.sizes == [8, 12, 16] and model.training
    assert abs(found[0].loss - found[1].loss) < 0.05  # a mean does not depend on the size
    with pytest.raises(ValueError, match="one of 8, 12, 16 pixels a side"):
        task.evaluate(model, "test", 20)
    with pytest.raises(ValueError, match="cannot be resized to pictures of 8 x 8"):
        task.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), "test", 8)
    with pytest.raises(ValueError, match="unknown split"):
        task.evaluate(model, "train", 12)


def test_baselines_are_what_they_say() -> None:
    task = made(300)
    for length in task.lengths:
        found = task.baselines("test", length)
        assert found["uniform"] == {"loss": pytest.approx(np.log(2)), "accuracy": 0.5}
        labels = task.data.labels[task.rows("test")]
        assert found["majority"]["accuracy"] == pytest.approx((labels == 0).mean())
    assert set(found) == {"uniform", "majority", "linear on pixels"}


def test_a_linear_model_finds_what_is_linear() -> None:
    task = made(240)
    task.data.pixels[task.data.labels == 1, :6] //= 4
    assert task.baselines("test", task.train_length)["linear on pixels"]["accuracy"] > 0.95


def test_bad_options_are_told_when_the_task_is_made() -> None:
    for options, said in (
        ({"dataset": "cifar"}, "dataset is one of"),
        ({"side": 0}, "side is a positive integer, got 0"),
        ({"side": 1.5}, "side is a positive integer, got 1.5"),
        ({"judged": (0, 5)}, "each of judged is a positive integer, got 0"),
        ({"judged": [5]}, "judged holds two numbers"),
        ({"judged": 5}, "judged is a list of positive integers"),
        ({"sizes": 8}, "sizes is a list of positive integers.*got 8"),
        ({"sizes": [8, "x"]}, "each of sizes is a positive integer, got 'x'"),
        ({"shift": -1}, "shift"),
        ({"shift": 1.5}, "shift is a whole number of pixels.*got 1.5"),
    ):
        with pytest.raises(ValueError, match=said):
            Images(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="network is one of"):
        made().model("nope", network="cnn")


@pytest.mark.parametrize("label", CONTESTANTS)
@pytest.mark.parametrize("colour", [False, True])
def test_every_usual_contestant_reads_pictures_of_all_sizes(label: str, colour: bool) -> None:
    from relpos.lab.labels import read

    pixels, labels = bars(12, 28, colour)
    task = Images("mnist5k", sizes=[16, 56])
    rows = {side: np.arange(12) for side in ("train", "validation", "test")}
    task._take(Pictures(Card("bars", "bars"), rows, pixels, labels, ("lying", "standing")))
    contestant = read(label)
    torch.manual_seed(0)
    model = task.model(contestant.encoding, **contestant.options)
    loss = task.loss(model, task.batch(0, 0, 4))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert all(np.isfinite(task.evaluate(model, "test", length).loss) for length in task.lengths)
    assert task.cost(model)["macs"] > 1e5


# --- maps -------------------------------------------------------------------------------------------------------------


def test_the_map_of_a_bias_is_its_table_seen_from_the_middle() -> None:
    task = made()
    model = task.model("swin", patch=4, **SMALL)
    (found,) = maps.of(model)
    table = dict(model.encodings())["layer 1"].table.detach()  # type: ignore[operator]
    for y in range(3):
        for x in range(3):  # query minus key, plus the window's side less one
            index = (1 - y + 2) * 5 + (1 - x + 2)
            assert np.allclose(found.values[:, y, x], table[index], atol=1e-6)


def test_the_map_of_a_gate_is_its_row_of_weights(tmp_path: Path) -> None:
    task = made()
    free = task.model("nope", network="gmlp", dim=8, depth=2)
    found = maps.of(free)
    assert [each.values.shape for each in found] == [(1, 3, 3)] * 2
    gqpe = task.model("gqpe", network="gmlp", dim=8, depth=2, groups=4)
    for each in maps.of(gqpe):
        assert each.values.shape == (4, 3, 3) and np.allclose(each.values.sum((1, 2)), 1, atol=1e-6)
    (shown,) = task.pictures(gqpe, tmp_path)
    assert shown.path.stat().st_size > 1000 and "weight of every cell" in shown.title
    assert task.pictures(task.model("nope", **SMALL), tmp_path) == []


def test_the_map_of_a_rotation_is_highest_at_the_query() -> None:
    task = made()
    (found, *_) = maps.of(task.model("axial_rope", dim=32, depth=1, heads=2))
    assert found.kind == "change" and found.values[:, 1, 1] == pytest.approx(0, abs=1e-6)
    assert found.values.max() <= 1e-6 and found.values.min() < -1e-3


# --- end to end -------------------------------------------------------------------------------------------------------


@pytest.mark.slow(6)
def test_a_comparison_from_a_folder_to_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    from relpos.lab.compare import compare
    from relpos.lab.progress import Reporter
    from relpos.lab.report import write_markdown, write_report
    from relpos.lab.results import collect
    from relpos.lab.settings import Settings

    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))
    pixels, labels = bars(80)
    for index, (each, label) in enumerate(zip(pixels, labels)):
        file = tmp_path / "pictures" / ("train" if index < 60 else "val") / f"class{label}" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(each).save(file)
    options = {"dataset": "folder", "path": str(tmp_path / "pictures"), "side": 12, "sizes": [8, 16]}
    task = tasks.get("images", **options)
    encodings = ("learned", "lrpe[network=gmlp,depth=1,groups=2]")
    settings = Settings("images", encodings, (0,), steps=3, batch=4, model={"dim": 16}, task_options=options)
    run = compare(task, settings, tmp_path / "run", Reporter(quiet=True))
    results = collect(run)
    assert results.lengths == (8, 12, 16) and results.train_length == results.opening == 12
    assert results.measure.unit == "pixels a side" and all(row.costs["macs"] > 0 for row in results.rows)
    assert all(row.values["accuracy"][length].mean is not None for row in results.rows for length in results.lengths)
    page = write_report(run).read_text()
    for said in ("MACs", "images/s", "At the training size (12 pixels a side)", "What the encodings have learned"):
        assert said in page
    assert "to a lag after training" not in page
    text = write_markdown(run, tmp_path / "page.md").read_text()
    assert "maps.png" in text and any((tmp_path / "page").glob("*maps.png"))
