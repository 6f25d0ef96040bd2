"""Toy songs: their rules, their optimum, and that a network's score follows from what it is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relpos import tasks
from relpos.tasks.music.aaba import BACK, BAR, DISTANCE, FIRST, FRESH, LETTERS, PATTERNS, SHARED


def test_songs_keep_their_rules() -> None:
    task = tasks.get("aaba", bars=12, letters=3, judged=8)
    drawn = np.random.default_rng(0)
    tokens, labels = task.draw(drawn, 50, LETTERS)
    assert tokens.shape == labels.shape == (50, 25) and (tokens[:, 1::2] == BAR).all()
    assert (tokens[:, 0] == LETTERS).all() and (labels[:, 0] == 0).all()
    assert (labels[:, 1::2] == labels[:, 2::2]).all()  # a bar line has the letter of its bar
    for row, letter in zip(tokens[:, 2::2], labels[:, 2::2], strict=True):
        pattern = dict(zip(letter.tolist(), row.tolist(), strict=True))
        assert [pattern[x] for x in letter.tolist()] == row.tolist()  # one pattern a letter
        assert len(set(pattern.values())) == len(pattern)  # and another for another
    tokens, _ = task.draw(drawn, 50, DISTANCE)
    bars = tokens[:, 2::2]
    share = (bars[:, BACK:] == bars[:, :-BACK]).mean()
    assert abs(share - (1 - FRESH + FRESH / SHARED)) < 0.07 and bars.max() < FIRST + SHARED


def test_the_batch_is_a_function_of_its_arguments() -> None:
    task = tasks.get("aaba")
    one, same, other = task.batch(3, 1, 4), task.batch(3, 1, 4), task.batch(4, 1, 4)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True)) and not torch.equal(one[0], other[0])


class Knowing(nn.Module):
    """The best predictor: reads letters in songs of letters, and four bars back in the others."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor, positions: dict[str, Tensor]) -> Tensor:
        logits = torch.full((*tokens.shape, FIRST + PATTERNS), -60.0)
        labels = positions["section"]
        for b, row in enumerate(tokens.tolist()):
            seen: dict[int, int] = {}
            for t in range(1, len(row), 2):
                if row[0] == DISTANCE:
                    logits[b, t, FIRST : FIRST + SHARED] = math.log(FRESH / SHARED)
                    if t > 2 * BACK:
                        logits[b, t, row[t - 2 * BACK + 1]] = math.log(1 - FRESH + FRESH / SHARED)
                    continue
                known = seen.get(int(labels[b, t]))
                rest = [p for p in range(FIRST, FIRST + PATTERNS) if p not in seen.values()]
                logits[b, t, [known] if known is not None else list(rest)] = 0.0
                if t + 1 < len(row):
                    seen[int(labels[b, t])] = row[t + 1]
        return logits + self.nothing


def test_the_optimum_is_reached_by_who_knows_and_by_nobody_else() -> None:
    task = tasks.get("aaba", bars=10, judged=16)
    found = task.evaluate(Knowing(), "test", task.train_length)
    assert found.metrics["letters"] == pytest.approx(0, abs=1e-6)
    assert found.metrics["distance"] == pytest.approx(0, abs=1e-6)
    assert found.loss == pytest.approx(sum(task.optimum("test")) / 2)
    rows = task.baselines("test", task.train_length)
    assert rows["optimum"]["letters"] == 0 and rows["uniform"]["loss"] == pytest.approx(math.log(PATTERNS))
    assert rows["one of the song's patterns"]["letters"] > 1 < rows["one of the song's patterns"]["distance"]
    fresh = task.evaluate(task.model("nope"), "validation", task.train_length)
    assert fresh.loss == pytest.approx(math.log(PATTERNS), abs=0.1) and fresh.count == 2 * 16 * 10


@pytest.mark.slow(20)
def test_letters_help_whoever_reads_them() -> None:
    """After a short training an encoding of letters is better in songs of letters, one of lags in songs of distance."""
    task = tasks.get("aaba", bars=9, letters=3, judged=64)
    above = {}
    for name in ("same_label", "shaw"):
        torch.manual_seed(0)
        model = task.model(name, dim=32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for step in range(300):
            task.loss(model, task.batch(step, 0, 32)).backward()
            optimizer.step()
            optimizer.zero_grad()
        above[name] = task.evaluate(model, "test", task.train_length).metrics
    assert above["same_label"]["letters"] < above["shaw"]["letters"] - 0.2
    assert above["shaw"]["distance"] < above["same_label"]["distance"] - 0.2


def test_bad_input_is_refused() -> None:
    for options in ({"bars": 4}, {"letters": 1}, {"judged": 0}):
        with pytest.raises(ValueError, match="got"):
            tasks.get("aaba", **options)
    with pytest.raises(ValueError, match="unknown split"):
        tasks.get("aaba").evaluate(nn.Linear(1, 1), "train", 48)
    with pytest.raises(ValueError, match="48 tokens"):
        tasks.get("aaba").evaluate(nn.Linear(1, 1), "test", 24)
