"""Next-byte prediction on made-up text: windows, baselines known in closed form, the continuation."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import relpos.tasks
from relpos.tasks import Task
from relpos.tasks.language import BytesLM

LETTERS = np.frombuffer(b"abcd", np.uint8)


def chain(count: int, seed: int) -> np.ndarray:
    """A Markov chain on four letters: the next letter in the alphabet with probability 0.7, else any of the others."""
    draw = np.random.default_rng(seed)
    steps = draw.choice([1, 0, 2, 3], size=count, p=[0.7, 0.1, 0.1, 0.1])
    return LETTERS[np.cumsum(steps) % 4]


ENTROPY = -(0.7 * math.log(0.7) + 0.3 * math.log(0.1))


def task(**options: int) -> BytesLM:
    splits = {"train": chain(30_000, 0), "validation": chain(3000, 1), "test": chain(6000, 2)}
    return BytesLM(splits=splits, **{"train_length": 16, "judged": 20, **options})


class Table(nn.Module):
    """Logits that depend on the last token alone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))
        self.lengths: set[int] = set()

    def forward(self, tokens: Tensor) -> Tensor:
        self.lengths.add(tokens.shape[1])
        return self.logits[tokens]


def test_protocol_and_registry(tmp_path: Path) -> None:
    made = task()
    assert isinstance(made, Task) and "bytes-lm" in relpos.tasks.names()
    text = json.loads(json.dumps(made.describe()))
    assert text["bytes"]["test"] == 6000 and text["scored bytes"]["test"] == 20 * 128
    assert made.vocabulary == 5
    torch.manual_seed(0)
    model = made.model("t5", dim=16, depth=1, heads=2)
    assert abs(float(made.loss(model, made.batch(0, 0, 4)).detach()) - math.log(5)) < 0.5
    [page] = made.sample(model, tmp_path / "out", 0)
    text = page.path.read_text()
    raw = LETTERS[made.windows("test")[0]].tobytes().decode()
    assert page.kind == "text" and raw[:16] in text and raw[16:48] in text and text.count("```") == 6
    assert text == made.sample(model, tmp_path / "again", 0)[0].path.read_text()


def test_batches_are_windows_of_the_training_text_and_a_pure_function() -> None:
    made = task()
    batch = made.batch(3, 1, 6)
    assert batch.shape == (6, 17) and torch.equal(batch, task().batch(3, 1, 6))
    assert not torch.equal(batch, made.batch(4, 1, 6)) and not torch.equal(batch, made.batch(3, 2, 6))
    train = LETTERS[made.text("train")].tobytes()
    assert all(LETTERS[row].tobytes() in train for row in batch.numpy())


def test_every_length_scores_the_same_bytes() -> None:
    made, model = task(), Table(5)
    windows = made.windows("test")
    assert windows.shape == (20, 129)
    logs = model.logits.detach().double().log_softmax(-1).numpy()
    expected = -logs[windows[:, :-1], windows[:, 1:]].mean()
    for multiple in made.multiples:
        found = made.evaluate(model, "test", multiple * 16)
        assert found.count == 20 * 128 and found.loss == pytest.approx(expected, abs=1e-6)
        assert found.metrics["bits_per_byte"] == pytest.approx(expected / math.log(2), abs=1e-6)
        assert found.by_position is not None and found.by_position.shape == (multiple * 16,)
    assert model.lengths == {16, 32, 64, 128}
    for bad in (0, 3, 256):
        with pytest.raises(ValueError, match="divide 128"):
            made.evaluate(model, "test", bad)


def test_windows_are_spread_over_the_split_and_do_not_overlap() -> None:
    made = task(judged=10)
    text = made.text("test")
    starts = [
        next(s for s in range(0, 6000, 128) if np.array_equal(text[s : s + 129], row)) for row in made.windows("test")
    ]
    assert starts[0] == 0 and starts[-1] == 45 * 128 and len(set(starts)) == 10
    assert len(task(judged=10**6).windows("test")) == 46


def test_baselines_of_a_chain_are_its_entropy() -> None:
    made = task(judged=1000)
    rows = made.baselines("test", 128)
    assert rows["uniform"]["loss"] == math.log(5)
    assert rows["unigram"]["loss"] == pytest.approx(math.log(4), abs=0.01)
    for name in ("bigram", "trigram", "5-gram"):
        assert rows[name]["loss"] == pytest.approx(ENTROPY, abs=0.03)
        assert rows[name]["bits_per_byte"] == pytest.approx(rows[name]["loss"] / math.log(2))
    assert ENTROPY / math.log(2) < rows["xz"]["bits_per_byte"] < 2.4
    short = made.baselines("test", 16)
    assert short["bz2"] == rows["bz2"] and short["bigram"]["loss"] == pytest.approx(rows["bigram"]["loss"], abs=1e-9)
    assert short["5-gram"]["loss"] != rows["5-gram"]["loss"]  # less to see at the beginning of a part


def test_counts_know_the_contexts_that_were_seen_and_no_others() -> None:
    made = task()
    known = [np.array([0, 2]), np.array([1, 11])]
    levels = made._contexts(np.array([[0, 1, 2, 2, 1]]), known)
    np.testing.assert_array_equal(levels[0], [[0, 0, 0, 0]])
    np.testing.assert_array_equal(levels[1], [[0, -1, 1, 1]])
    np.testing.assert_array_equal(levels[2], [[-1, 0, -1, -1]])  # 0*5+1 = 1, 1*5+2 = 7, 2*5+2 = 12


def test_unseen_bytes_share_a_token() -> None:
    odd = chain(3000, 5).copy()
    odd[::7] = 200
    made = BytesLM(splits={"train": chain(3000, 0), "validation": odd, "test": odd}, train_length=16)
    assert (made.text("test")[::7] == 4).all() and made.vocabulary == 5
    assert math.isfinite(made.baselines("test", 16)["5-gram"]["loss"])


def test_a_chain_is_learned_in_seconds() -> None:
    made = task()
    torch.manual_seed(0)
    model = made.model("alibi", dim=16, depth=1, heads=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for step in range(80):
        optimizer.zero_grad()
        made.loss(model, made.batch(step, 0, 16)).backward()
        optimizer.step()
    assert made.evaluate(model, "test", 16).loss < ENTROPY + 0.1


def test_a_given_text_travels_to_workers() -> None:
    made = pickle.loads(pickle.dumps(task()))
    assert torch.equal(made.batch(0, 0, 2), task().batch(0, 0, 2))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="has 100 bytes"):
        BytesLM(splits={"train": chain(3000, 0), "validation": chain(100, 1), "test": chain(3000, 2)}, train_length=16)
    with pytest.raises(ValueError, match="train_length"):
        BytesLM(train_length=1)
    with pytest.raises(ValueError, match="unknown split"):
        task().windows("dev")
    with pytest.raises(ValueError, match="step and seed"):
        task().batch(0, -1, 4)
