"""The tasks of one answer a sequence, on invented data: protocol, batches, what is judged, what is learned."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import relpos.tasks
from relpos.lab.settings import preset
from relpos.tasks import Task
from relpos.tasks.classification import Classification
from relpos.tasks.examples import Examples
from relpos.tasks.long_range import listops, operations
from relpos.tasks.long_range.documents import Retrieval, Text
from relpos.tasks.long_range.expressions import ListOps
from relpos.tasks.long_range.paths import Pathfinder, PathX
from relpos.tasks.long_range.pixels import Pixels, grey

COUNTS = {"train": 60, "validation": 25, "test": 40}


def texts(seed: int = 0) -> dict[str, Examples]:
    """Label 1 is written in capitals; lengths 3 to 40."""
    draw = np.random.default_rng(seed)
    made = {}
    for side, count in COUNTS.items():
        labels = draw.integers(0, 2, count)
        rows = [draw.integers(65, 91, draw.integers(3, 41)) + 32 * (1 - label) for label in labels]
        made[side] = Examples.of([row.astype(np.uint8) for row in rows], labels.tolist())
    return made


def pairs() -> dict[str, Examples]:
    """Pairs of texts of `texts`: related where both are of one kind."""
    made = {}
    for side, whole in texts().items():
        members = np.random.default_rng(1).integers(0, len(whole), (2 * len(whole), 2))
        made[side] = Examples(
            whole.tokens, whole.offsets, (whole.labels[members[:, 0]] == whole.labels[members[:, 1]]), members
        )
    return made


def pictures(side: int = 6) -> dict[str, Examples]:
    """A bright row (0) or column (1) on dark noise."""
    draw = np.random.default_rng(0)
    made = {}
    for name, count in COUNTS.items():
        labels = draw.integers(0, 2, count)
        images = draw.integers(0, 60, (count, side, side)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            line = image.T if label else image
            line[draw.integers(side)] = 250
        made[name] = Examples.of_rows(images.reshape(count, -1), labels)
    return made


def text_task(**options: Any) -> Text:
    return Text(splits=texts(), classes=("small", "capital"), **{"length": 16, **options})


def pixel_task(**options: Any) -> Pixels:
    return Pixels(splits=pictures(), side=(6, 6), classes=("row", "column"), **options)


def listops_task(**options: Any) -> ListOps:
    return ListOps(length=24, examples=(80, 20, 30), **options)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


MAKERS = {
    "text": text_task,
    "retrieval": lambda: Retrieval(splits=pairs(), length=16),
    "pixels": pixel_task,
    "listops": listops_task,
    "pathfinder": lambda: Pathfinder(examples=(20, 8, 8)),
}


@pytest.fixture(params=sorted(MAKERS))
def task(request: pytest.FixtureRequest) -> Classification:
    made: Classification = MAKERS[request.param]()
    return made


SMALL = {"dim": 16, "depth": 1, "heads": 2}


def test_protocol(task: Classification, tmp_path: Path) -> None:
    assert isinstance(task, Task) and task.name in relpos.tasks.names()
    text = json.loads(json.dumps(task.describe()))
    assert text["task"] == task.name and sum(text["splits"]["test"]["labels"]) == len(task.splits["test"])
    torch.manual_seed(0)
    model = task.model("t5", **SMALL)
    loss = task.loss(model, task.batch(0, 0, 5))
    assert loss.shape == () and 0 < float(loss.detach()) < 3 * math.log(len(task.classes))
    for multiple in task.multiples:
        found = task.evaluate(model, "test", multiple * task.train_length)
        assert found.by_position is None and found.count == len(task.examples("test")) and found.length % 1 == 0
        assert set(found.metrics) == {metric.name for metric in task.metrics} == {"accuracy"}
    rows = task.baselines("test", task.train_length)
    assert rows["uniform"] == pytest.approx({"loss": math.log(len(task.classes)), "accuracy": 1 / len(task.classes)})
    assert len(rows) >= 3 and all(math.isfinite(row["loss"]) and 0 <= row["accuracy"] <= 1 for row in rows.values())
    made = task.sample(model, tmp_path / "out", 0)
    assert all(each.path.stat().st_size > 50 and each.kind in ("image", "text") for each in made)


def test_batches_are_a_pure_function_of_step_and_seed(task: Classification) -> None:
    again = MAKERS[task.name]()
    tokens, labels = task.batch(7, 1, 5)
    task.batch(20, 3, 4)
    for one, two in zip((tokens, labels), again.batch(7, 1, 5), strict=True):
        assert one.dtype == torch.int64 and torch.equal(one, two)
    assert tokens.shape[-1] <= task.train_length and len(tokens) == len(labels) == 5
    other = task.batch(7, 2, 5)
    assert other[0].shape != tokens.shape or not torch.equal(other[0], tokens)


def test_an_epoch_reads_every_example_once_in_an_order_of_its_own() -> None:
    task = pixel_task()
    size = 12
    epochs = [
        np.concatenate([task.batch(step, 0, size)[0].numpy() for step in range(first, first + 5)]) for first in (0, 5)
    ]
    rows = [sorted(row.tobytes() for row in epoch) for epoch in epochs]
    assert rows[0] == rows[1] and len(set(rows[0])) == COUNTS["train"]
    assert not np.array_equal(*epochs)
    across, _ = task.batch(4, 0, 13)  # 52..64: the end of one epoch and the beginning of the next
    np.testing.assert_array_equal(across.numpy(), np.concatenate([*epochs])[52:65])


class Told(nn.Module):
    """Logits made of the number of real tokens, and whether there is a capital; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.shapes.append(tuple(tokens.shape))
        capital = ((tokens > 0) & (tokens < 92)).any(-1).float()
        return torch.stack([1 - capital, capital], -1) * self.weight


def test_evaluation_is_what_a_loop_finds_and_judges_the_same_examples_at_every_length() -> None:
    task, model = text_task(judged=(10, 33)), Told()
    for length in (16, 32):
        found = task.evaluate(model, "test", length)
        assert found.count == 33 and found.metrics["accuracy"] == 1
        assert found.loss == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert max(shape[1] for shape in model.shapes) == 32
    whole = np.arange(40)
    chosen = task.examples("test").members[:, 0]
    assert len(set(chosen)) == 33 and set(chosen) <= set(whole) and not np.array_equal(chosen, whole[:33])
    np.testing.assert_array_equal(task.examples("test").members, text_task(judged=(10, 33)).examples("test").members)
    with pytest.raises(ValueError, match="16, 32"):
        task.evaluate(model, "test", 64)
    with pytest.raises(ValueError, match="train, validation, test"):
        task.evaluate(model, "dev", 16)


def test_answers_come_back_in_the_order_of_the_examples_and_padding_is_not_seen() -> None:
    task = text_task()
    torch.manual_seed(0)
    model = task.model("t5", **SMALL).double()
    examples = task.splits["test"]
    together = task.log_probabilities(model, examples, 16)
    for i in (0, 7, 39):
        alone = model(torch.from_numpy(examples.sequence(i, 16).astype(np.int64) + 1)[None])
        np.testing.assert_allclose(together[i], alone.double().log_softmax(-1).detach().numpy()[0], atol=1e-6)


def test_evaluation_keeps_the_mode_and_reports_progress(task: Classification) -> None:
    model, seen = task.model("nope", **SMALL).train(), []
    task.evaluate(model, "validation", task.train_length, lambda *state: seen.append(state))
    assert model.training and seen[-1][0] == seen[-1][1] == len(task.examples("validation"))


def test_a_worker_is_not_sent_what_it_can_load() -> None:
    task = listops_task()
    task.prepare()
    batch = task.batch(3, 0, 4)
    sent = pickle.dumps(task)
    assert len(sent) < 3000
    assert torch.equal(pickle.loads(sent).batch(3, 0, 4)[0], batch[0])
    given = pickle.loads(pickle.dumps(text_task()))
    assert torch.equal(given.batch(0, 0, 4)[0], text_task().batch(0, 0, 4)[0])


def test_baselines_are_those_of_constructed_data() -> None:
    rows = text_task().baselines("test", 16)
    share = max(np.bincount(texts()["train"].labels)) / COUNTS["train"]
    assert rows["bag of bytes"]["accuracy"] == 1 and rows["bag of bytes"]["loss"] < 0.1
    truth = texts()["test"].labels
    assert rows["majority"]["accuracy"] == pytest.approx(
        np.mean(truth == np.bincount(texts()["train"].labels).argmax())
    )
    assert rows["majority"]["loss"] < math.log(2) + 0.1 and share < 0.7
    rows = pixel_task().baselines("test", 36)
    assert set(rows) == {"uniform", "majority", "linear on pixels"}


def test_models_differ_in_their_encoding_only(task: Classification) -> None:
    without, table = task.model("nope", **SMALL), task.model("learned_bias", **SMALL)
    shapes = {name: tuple(p.shape) for name, p in table.named_parameters()}
    extra = {name: shapes.pop(name) for name in list(shapes) if "encoding" in name}
    assert shapes == {name: tuple(p.shape) for name, p in without.named_parameters()}
    usual = 128
    assert list(extra.values()) == [(2, 2 * min(task.train_length - 1, usual) + 1)]
    front = task.model("learned_bias", pooling="cls", **SMALL)
    assert (2, 2 * min(task.train_length, usual) + 1) in {tuple(p.shape) for p in front.parameters()}


def trained(task: Classification, encoding: str, steps: int, **options: Any) -> float:
    """Accuracy on the test examples after some steps of the laboratory's kind."""
    torch.manual_seed(0)
    model = task.model(encoding, **{**SMALL, **options})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        task.loss(model, task.batch(step, 0, 16)).backward()
        optimizer.step()
    return task.evaluate(model, "test", task.train_length).metrics["accuracy"]


def test_a_separable_task_is_learned() -> None:
    assert trained(text_task(), "nope", 40) > 0.95


def test_a_picture_can_be_read_as_a_picture() -> None:
    task = pixel_task(grid=True)
    cells = task.positions(36)
    assert isinstance(cells, Tensor) and cells[7].tolist() == [1, 1] and cells.shape == (36, 2)
    torch.manual_seed(0)
    model = task.model("swin", **SMALL)
    table = next(e for _, e in model.encodings()).table  # type: ignore[operator]
    assert table.shape == (11 * 11, 2)
    nn.init.normal_(table)
    tokens, labels = task.batch(0, 0, 4)
    expected = nn.functional.cross_entropy(model(tokens, positions=cells), labels)
    torch.testing.assert_close(task.loss(model, (tokens, labels)), expected)
    with pytest.raises(TypeError, match="takes"):
        task.loss(task.model("rope", **SMALL), (tokens, labels))


def test_listops_are_expressions_of_their_lengths_and_say_what_chance_is() -> None:
    task = listops_task()
    for side, count in zip(COUNTS, (80, 20, 30), strict=True):
        part = task.splits[side]
        assert len(part) == count and part.lengths.min() > 6 and part.lengths.max() < 24
        for i in range(5):
            assert operations.evaluate(part.sequence(i)) == part.labels[i]
    text = str(task.describe())
    assert "17%" in text and "easier" in text and "15 to 18%" in text
    assert ListOps(length=2000).rules == listops.Rules() and ListOps(length=2000).count == listops.RELEASED
    for bad in ({"length": 8}, {"length": 2001}, {"examples": (1, 2)}, {"examples": (0, 1, 1)}):
        with pytest.raises(ValueError, match=r"length is|examples are"):
            ListOps(**bad)


def test_published_numbers_stand_beside_the_released_data_only(tmp_path: Path) -> None:
    made = listops_task()
    assert not any(name.startswith("LRA") for name in made.baselines("test", 24))
    for name in ("basic_train.tsv", "basic_val.tsv", "basic_test.tsv"):
        lines = ["( ( ( [MAX 3 ) 5 ) ] )\t5", "( ( ( [MIN 3 ) 5 ) ] )\t3", "7\t7"] * 4
        (tmp_path / name).write_text("\n".join(["Source\tTarget", *lines]) + "\n")
    released = ListOps(path=str(tmp_path))
    rows = released.baselines("test", 2000)
    assert rows["LRA: Transformer"] == {"accuracy": pytest.approx(0.3637)}
    assert not any(name.startswith("LRA") for name in released.baselines("validation", 2000))
    for other in (text_task(dataset="imdb"), Retrieval("lra-retrieval", splits=pairs(), length=16)):
        assert not any(name.startswith("LRA") for name in other.baselines("test", 16))


@pytest.mark.parametrize("name", [*sorted(MAKERS), "path-x", "bytes-lm"])
def test_presets_fit_the_settings_the_task_and_its_network(name: str) -> None:
    for chosen, sizes in relpos.tasks.presets(name).items():
        settings = preset(chosen, name, ("t5",), relpos.tasks.presets(name))
        assert settings.steps == sizes["steps"] and settings.model == sizes["model"]
        assert json.loads(json.dumps(settings.as_dict())) == settings.as_dict()
        assert isinstance(relpos.tasks.get(name, **settings.task_options), Task)
        if name in MAKERS:
            with torch.device("meta"):
                MAKERS[name]().model("t5", **settings.model)


def test_bad_splits_and_names_are_refused() -> None:
    good = texts()
    with pytest.raises(ValueError, match="splits are"):
        Text(splits={"train": good["train"]}, classes=("a", "b"))
    with pytest.raises(ValueError, match="labels lie in"):
        Text(splits=good, classes=("a",))
    with pytest.raises(ValueError, match="is empty"):
        Text(splits={**good, "test": good["test"].take(np.arange(0))}, classes=("a", "b"))
    with pytest.raises(ValueError, match="at least 1"):
        text_task(length=0)
    with pytest.raises(ValueError, match="dataset is one of"):
        Pixels("openclipart")
    with pytest.raises(ValueError, match="6 x 6"):
        Pixels(splits=pictures(5), side=(6, 6), classes=("a", "b"))
    with pytest.raises(ValueError, match="step and seed"):
        text_task().batch(-1, 0, 4)


def test_paths_are_of_their_size_and_difficulty() -> None:
    assert PathX().train_length == 16_384 and Pathfinder().train_length == 1024
    task = Pathfinder("hard", examples=[20, 8, 8])
    assert "hard" in task.source and "14 dashes" in str(task.describe()["difficulty"])
    assert [len(task.splits[side]) for side in COUNTS] == [20, 8, 8]
    for bad in ({"difficulty": "harder"}, {"examples": (1, 2)}):
        with pytest.raises(ValueError, match=r"difficulty is|examples are"):
            Pathfinder(**bad)  # type: ignore[arg-type]


def test_colours_turn_grey_as_the_arena_does() -> None:
    pixels = np.array([[[[255, 255, 255], [10, 20, 30]]]], dtype=np.uint8)
    np.testing.assert_array_equal(grey(pixels), [[[254, 18]]])  # 0.9999 * 255 and 18.15, cut
    with pytest.raises(ValueError, match="pictures are"):
        grey(np.zeros((2, 3)))
