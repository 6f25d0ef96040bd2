"""The chorales task on invented pieces: what is trained on, what is scored, what is written."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import relpos.tasks
from relpos.tasks import Task
from relpos.tasks.music import markov, midi, roll
from relpos.tasks.music.chorales import Chorales, Settings
from relpos.tasks.ngram import Counts
from tests.tasks import synthetic


@pytest.fixture(scope="module")
def task() -> Chorales:
    return Chorales(pieces=synthetic.pieces())


def random_table(seed: int = 0) -> synthetic.Table:
    return synthetic.Table(torch.randn(roll.VOCABULARY, roll.VOCABULARY, generator=torch.Generator().manual_seed(seed)))


def test_registry_knows_the_task_and_suggests_it() -> None:
    assert "chorales" in relpos.tasks.names()
    found = relpos.tasks.get("chorales", settings=Settings(dim=32))
    assert isinstance(found, Task) and found.settings.dim == 32
    with pytest.raises(ValueError, match="did you mean 'chorales'"):
        relpos.tasks.get("choral")


def test_a_task_can_be_added_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relpos.tasks, "_TASKS", dict(relpos.tasks._TASKS))
    relpos.tasks.register("mine", "tests.tasks.synthetic:Table")
    assert relpos.tasks.get("mine", logits=torch.zeros(2, 2)) is not None
    with pytest.raises(ValueError, match="taken"):
        relpos.tasks.register("chorales", "somewhere:Else")
    with pytest.raises(ValueError, match="module:Class"):
        relpos.tasks.register("other", "somewhere.Else")


def test_batches_are_a_pure_function_of_step_and_seed(task: Chorales) -> None:
    batch = task.batch(7, 1, 5)
    assert batch.shape == (5, task.train_length + 1) and batch.dtype == torch.int64
    again = Chorales(pieces=synthetic.pieces())
    task.batch(3, 2, 4)
    assert torch.equal(batch, again.batch(7, 1, 5))
    assert not torch.equal(batch, task.batch(8, 1, 5))
    assert not torch.equal(batch, task.batch(7, 2, 5))


def test_batches_are_transposed_windows_of_training_pieces_that_begin_with_the_soprano(task: Chorales) -> None:
    def shape(tokens: np.ndarray) -> bytes:
        """The window with its first pitch taken off: the same in every key."""
        pitched = tokens >= roll.FIRST_PITCH
        return np.where(pitched, tokens - tokens[pitched][0] + 1000, tokens).tobytes()

    n = task.train_length + 1
    known = {
        side: {
            shape(task.data.tokens[i][s : s + n])
            for i in task.data.split[side]
            for s in range(0, len(task.data.tokens[i]) - n + 1, 4)
        }
        for side in ("train", "validation", "test")
    }
    rows = torch.cat([task.batch(step, 0, 64) for step in range(4)]).numpy()
    shapes = {shape(row) for row in rows}
    assert shapes <= known["train"]
    assert not shapes & (known["validation"] | known["test"])
    assert len(shapes) > 200
    assert rows.max() < roll.VOCABULARY and (rows[:, 0] == roll.START).any()


@pytest.mark.parametrize("arguments", [(-1, 0, 4), (0, -1, 4), (0, 0, 0)])
def test_bad_batch_arguments_are_refused(task: Chorales, arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="step and seed"):
        task.batch(*arguments)


def test_loss_is_the_mean_over_targets_that_are_not_start(task: Chorales) -> None:
    model = random_table()
    batch = torch.cat([task.batch(step, 0, 32) for step in range(8)])
    assert (batch[:, 1:] == roll.START).any()
    logs = model(batch[:, :-1]).log_softmax(-1).gather(-1, batch[:, 1:, None])[..., 0]
    expected = -logs[batch[:, 1:] != roll.START].mean()
    torch.testing.assert_close(task.loss(model, batch), expected)


def test_every_length_scores_the_same_tokens_once(task: Chorales) -> None:
    model = random_table()
    windows = task.windows("test")
    assert windows.shape[1] == 513
    targets = windows[:, 1:][windows[:, 1:] != roll.START]
    logs = model.logits.detach().double().log_softmax(-1).numpy()
    expected = -logs[windows[:, :-1], windows[:, 1:]][windows[:, 1:] != roll.START].mean()
    for length in (4, 128, 256, 512):
        result = task.evaluate(model, "test", length)
        assert result.count == targets.size
        assert result.loss == pytest.approx(expected, abs=1e-6)
        assert result.by_position.shape == (length,)


def test_a_window_of_the_longest_length_is_read_as_one(task: Chorales) -> None:
    for length in (128, 512):
        model = random_table()
        task.evaluate(model, "test", length)
        assert {n for _, n in model.shapes} == {length}
        assert sum(rows for rows, _ in model.shapes) == len(task.windows("test")) * 512 // length


class ByPosition(nn.Module):
    """Puts more and more weight on the right token (which it is told) the longer the context is."""

    def __init__(self, right: dict[bytes, np.ndarray]) -> None:
        super().__init__()
        self.right = right

    def forward(self, tokens: Tensor) -> Tensor:
        targets = torch.from_numpy(np.stack([self.right[row.tobytes()] for row in tokens.numpy()]))
        weight = torch.arange(1, tokens.shape[1] + 1) / 100
        return nn.functional.one_hot(targets, roll.VOCABULARY) * weight[:, None]


def test_loss_by_position_is_that_of_the_number_of_tokens_read(task: Chorales) -> None:
    parts = task._parts("test", 128)
    model = ByPosition({row[:-1].tobytes(): row[1:] for row in parts})
    result = task.evaluate(model, "test", 128)
    gain = np.arange(1, 129) / 100
    expected = np.log(np.exp(gain) + roll.VOCABULARY - 1) - gain
    np.testing.assert_allclose(result.by_position, expected, atol=1e-5)


def test_a_position_without_scored_tokens_is_not_a_number() -> None:
    task = Chorales(pieces=[synthetic.piece(seed, ticks=140) for seed in range(30)])
    result = task.evaluate(random_table(), "test", 512)
    assert np.isnan(result.by_position[:3]).all() and np.isfinite(result.by_position[3:]).all()
    assert result.count == len(task.windows("test")) * 509


def test_evaluation_leaves_the_mode_of_the_model_and_reports_progress(task: Chorales) -> None:
    model = random_table().train()
    seen: list[tuple[int, int, str]] = []
    task.evaluate(model, "validation", 128, lambda *state: seen.append(state))
    assert model.training and seen[-1][0] == seen[-1][1] > 0
    model.eval()
    task.evaluate(model, "validation", 128)
    assert not model.training


@pytest.mark.parametrize("length", [0, 2, 100, 1024, -128])
def test_lengths_that_would_change_the_scored_tokens_are_refused(task: Chorales, length: int) -> None:
    with pytest.raises(ValueError, match="divides 512"):
        task.evaluate(random_table(), "test", length)


def test_unknown_split_is_refused(task: Chorales) -> None:
    with pytest.raises(ValueError, match="train, validation, test"):
        task.evaluate(random_table(), "dev", 128)


def test_baselines_score_what_evaluate_scores(task: Chorales) -> None:
    counts, strength = task._fitted("bigram")
    unigram, bigram = counts.tables
    flat = np.full(roll.VOCABULARY, 1 / roll.VOCABULARY)
    lower = (unigram[0] + strength * flat) / (unigram[0].sum() + strength)
    table = (bigram + strength * lower) / (bigram.sum(1, keepdims=True) + strength)
    model = synthetic.Table(torch.from_numpy(np.log(table)).float())
    for length in (128, 512):
        rows = {name: values["loss"] for name, values in task.baselines("test", length).items()}
        assert rows["bigram"] == pytest.approx(task.evaluate(model, "test", length).loss, abs=1e-5)
        assert rows["uniform"] == math.log(roll.VOCABULARY)
        assert rows["last note"] < rows["bigram"] < rows["unigram"] < rows["uniform"]
        assert set(rows) == set(markov.MEANING)


def test_baselines_do_not_look_beyond_the_window() -> None:
    rows = np.arange(40)[None] % roll.VOCABULARY + 3
    for contexts, _ in markov.CONTEXTS.values():
        whole, part = contexts(rows), contexts(rows[:, 8:])
        for level, late in zip(whole, part, strict=True):
            known = late >= 0
            np.testing.assert_array_equal(late[known], level[:, 8:][known])
    assert (markov._back(rows, 4)[:, :3] == -1).all() and (markov._back(rows, 4)[:, 3] == rows[:, 0]).all()


def test_last_note_is_what_a_loop_finds() -> None:
    rows = np.random.default_rng(0).choice([1, 1, 1, 2, 10, 11], size=(3, 101))
    note, age = markov._last_note(rows)
    for row in range(3):
        for target in range(1, 101):
            places = [p for p in range(target - 4, -1, -4) if rows[row, p] != roll.HOLD]
            want = (rows[row, places[0]], min((target - places[0]) // 4 - 1, 15)) if places else (-1, -1)
            assert (note[row, target - 1], age[row, target - 1]) == want


def test_counts_follow_their_formula_and_fall_back() -> None:
    counts = Counts(3, (1, 2))
    targets = np.array([[0, 0, 1, 2]])
    counts.add([np.zeros_like(targets), np.array([[1, 1, 1, -1]])], targets)
    zero = np.array([0, 0, 0])
    got = np.exp(-counts.loss([zero, np.array([1, 0, -1])], np.array([0, 0, 2]), 2.0))
    base = (2 + 2 / 3) / 6
    np.testing.assert_allclose(got, [(2 + 2 * base) / 5, base, (1 + 2 / 3) / 6])
    total = sum(np.exp(-counts.loss([zero[:1], np.array([1])], np.array([x]), 2.0))[0] for x in range(3))
    assert total == pytest.approx(1)
    with pytest.raises(ValueError, match="strength"):
        counts.loss([zero, zero], zero, 0)


def test_models_differ_in_their_encoding_only(task: Chorales) -> None:
    small = {"dim": 16, "depth": 1, "heads": 2}
    without = task.model("nope", **small)
    table = task.model("learned_bias", **small)
    shapes = {name: tuple(p.shape) for name, p in table.named_parameters()}
    extra = {name: shapes.pop(name) for name in list(shapes) if "encoding" in name}
    assert shapes == {name: tuple(p.shape) for name, p in without.named_parameters()}
    assert list(extra.values()) == [(2, 2 * 127 + 1)], "the table ends at the longest lag of training"
    given = task.model("learned_bias", encoding_options={"max_lag": 5}, **small)
    assert (2, 11) in {tuple(p.shape) for p in given.parameters()}
    batch = task.batch(0, 0, 3)
    assert abs(task.loss(without, batch).item() - math.log(roll.VOCABULARY)) < 0.5
    assert np.isfinite(task.evaluate(table, "test", 512).loss)


def test_description_is_plain_data(task: Chorales) -> None:
    import json

    text = json.loads(json.dumps(task.describe()))
    assert text["pieces"] == 30 and text["splits"]["test"]["windows"] == len(task.windows("test"))


def test_sample_keeps_the_prompt_and_repeats_with_its_seed(task: Chorales, tmp_path: Path) -> None:
    model = random_table()
    made = task.sample(model, tmp_path / "a", seed=3)
    again = task.sample(model, tmp_path / "b", seed=3)
    other = task.sample(model, tmp_path / "c", seed=4)
    assert [a.kind for a in made] == ["midi", "image", "midi", "image"]
    assert made[0].path.read_bytes() == again[0].path.read_bytes() != other[0].path.read_bytes()
    assert all(a.path.stat().st_size > 100 for a in made)
    piece, prompt = task.prompt()
    ticks = len(prompt) // 4 - 1
    assert piece.name in {task.data.pieces[i].name for i in task.data.split["test"]} and ticks == 32
    real, _ = midi.read(made[2].path)
    np.testing.assert_array_equal(real, piece.pitch[: len(real)])
    drawn, onset = midi.read(made[0].path)
    np.testing.assert_array_equal(drawn[:ticks], piece.pitch[:ticks])
    np.testing.assert_array_equal(onset[:ticks], piece.onset[:ticks])


@pytest.mark.parametrize("token", [roll.START, roll.HOLD, roll.REST, roll.VOCABULARY - 1])
def test_sample_survives_a_model_that_says_one_thing_only(task: Chorales, tmp_path: Path, token: int) -> None:
    logits = torch.full((roll.VOCABULARY, roll.VOCABULARY), -1e4)
    logits[:, token] = 0
    assert len(task.sample(synthetic.Table(logits), tmp_path, 0)) == 4


def test_too_few_or_unnamed_pieces_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        Chorales(pieces=[synthetic.piece(0)])
    with pytest.raises(ValueError, match="unique"):
        Chorales(pieces=[synthetic.piece(0), synthetic.piece(0)])
    short = Chorales(pieces=[synthetic.piece(seed, ticks=20) for seed in range(30)])
    with pytest.raises(ValueError, match="longer"):
        short.batch(0, 0, 1)
    with pytest.raises(ValueError, match="longer"):
        short.windows("test")
