"""The task imagenet on a folder of a few made pictures; timm's part is played by a plain resize where it is missing."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from relpos.tasks.vision import imagenet
from relpos.tasks.vision.imagenet import ImageNet

Image = pytest.importorskip("PIL.Image")


def resized(size: int, is_training: bool, **_: Any) -> Any:
    """A transform that draws from all three sources of chance in training, as timm's do."""

    def transform(image: Any) -> torch.Tensor:
        x = torch.from_numpy(np.array(image.resize((size, size)))).permute(2, 0, 1).float() / 255
        return x + random.random() + float(np.random.rand()) + torch.rand(()) if is_training else x

    return transform


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "_timm", lambda: SimpleNamespace(create_transform=resized))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for side, count in (("train", 10), ("val", 4)):
        for label, name in enumerate(("ant", "bee", "cow")):
            for index in range(count):
                pixels = draw.integers(80 * label, 80 * label + 60, (9 + index, 12, 3), dtype=np.uint8)
                file = tmp_path / "data" / side / name / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
    return tmp_path / "data"


def made(path: Path, **options: Any) -> ImageNet:
    return ImageNet(str(path), **{"side": 8, "held": 0.1, "mixup": 0.0, "cutmix": 0.0, "workers": 0, **options})


def test_validation_is_held_out_of_train(folder: Path) -> None:
    task = made(folder)
    train, held, test = (set(task._pick(split)[0]) for split in ("train", "validation", "test"))
    assert len(train) == task.examples == 27 and len(held) == 3 and len(test) == 12
    assert not train & held and all("/val/" in file for file in test)
    assert made(folder, held=0)._pick("validation")[0] == task._pick("test")[0]


def test_a_batch_is_pure_leaves_chance_alone_and_is_shared_out_without_loss(folder: Path) -> None:
    task = made(folder)
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate()
    x, y = task.batch(3, 1, 4)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    random.random(), np.random.rand(), torch.rand(())
    again = made(folder).batch(3, 1, 4)
    assert torch.equal(x, again[0]) and torch.equal(y, again[1]) and x.shape == (4, 3, 8, 8)
    halves = [task.batch(6 + half, 1, 2) for half in range(2)]
    assert torch.equal(torch.cat([half[0] for half in halves]), x)
    assert not torch.equal(task.batch(3, 2, 4)[0], x)


def test_an_epoch_holds_every_training_picture_once(folder: Path) -> None:
    labels = torch.cat([made(folder).batch(step, 0, 9)[1] for step in range(3)])
    assert torch.bincount(labels).tolist() == np.bincount(made(folder)._pick("train")[1]).tolist()


def test_unreadable_files_are_told_once_and_replaced_by_one_of_their_class(folder: Path) -> None:
    task = made(folder, held=0.0)
    (folder / "train" / "bee" / "3.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match=r"bee/3\.png cannot be read and is replaced \(1 so far\)") as told:
        seen = [task.batch(step, 0, 10) for step in range(6)]
    assert len(told) == 1 and sum(int((y == 1).sum()) for _, y in seen) == 20
    (folder / "val" / "cow" / "0.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"cow/0\.png"):
        assert task.evaluate(Colour(), "test", 8).count == 12
    for file in (folder / "train" / "ant").iterdir():
        file.write_bytes(b"broken")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="of the class ant can be read"):
        [made(folder).batch(step, 0, 10) for step in range(3)]


class Colour(nn.Module):
    """Answers by the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.middles = nn.Parameter(torch.tensor([30.0, 110.0, 190.0]) / 255)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -200 * (x.mean((1, 2, 3))[:, None] - self.middles).square()


def test_evaluation_and_its_baselines_see_the_same_pictures(folder: Path) -> None:
    task = made(folder, judged=[2, 9])
    found = task.evaluate(Colour(), "test", 8)
    assert found.count == 9 and found.metrics == {"accuracy": 1.0, "top5": 1.0}
    assert task.evaluate(Colour(), "validation", 8).count == 2
    rows = task.baselines("test", 8)
    assert rows["uniform"] == {"loss": pytest.approx(np.log(3)), "accuracy": pytest.approx(1 / 3)}
    with pytest.raises(ValueError, match="8 pixels a side"):
        task.evaluate(Colour(), "test", 16)


def test_labels_are_smoothed_in_training_alone(folder: Path) -> None:
    task, model = made(folder), Colour()
    batch = (torch.full((2, 3, 8, 8), 30 / 255), torch.tensor([0, 0]))
    plain = task.loss(model.eval(), batch)
    assert task.loss(model.train(), batch) > plain
    shares = torch.tensor([[0.5, 0.5, 0.0]] * 2)
    expected = -(shares * model(batch[0]).log_softmax(-1)).sum(-1).mean()
    assert torch.isclose(task.loss(model, (batch[0], shares)), expected)


def test_what_is_missing_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--data DIR"):
        ImageNet()
    with pytest.raises(ValueError, match="no folders train and val"):
        made(folder / "train").prepare()
    for options, said in (
        ({"crop": 0}, "crop in"),
        ({"side": 1.5}, "side is a positive integer"),
        ({"scale": 0.5}, "scale is a least and a largest"),
        ({"ratio": [1.5, 0.67]}, "ratio is a least and a largest"),
        ({"judged": [5]}, "judged holds two numbers"),
        ({"smoothing": 1.0}, "smoothing in"),
    ):
        with pytest.raises(ValueError, match=said):
            made(folder, **options)  # type: ignore[arg-type]
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "timm.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"relpos\[vision\]"):
        made(folder).prepare()


def test_the_recipe_of_the_paper_builds_its_network(folder: Path) -> None:
    from relpos.lab.recipe import Recipe
    from relpos.lab.settings import preset, usual_preset

    assert usual_preset(ImageNet.presets) == "paper"
    settings = preset("paper", "imagenet", ("gqpe",), ImageNet.presets)
    recipe = Recipe.of(settings.recipe)
    assert recipe.epochs == 300 and recipe.first * settings.rates[0] == pytest.approx(1e-5)
    assert recipe.last * settings.rates[0] == pytest.approx(1e-6) and recipe.eps == 1e-5
    name, options = settings.network("gqpe")
    model = made(folder, side=224).model(name, **options)
    assert sum(p.numel() for p in model.parameters()) == 20_925_538 - 768 * 997 - 997  # 3 classes in place of 1,000
