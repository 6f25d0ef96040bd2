"""The task on music as tokens: the same tokens at every length, labels of whole pieces, continuations that decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from relpos import tasks
from relpos.tasks.music import events, midifile, sets
from relpos.tasks.music.event_task import STYLE
from relpos.tasks.music.tokens import VOCABULARY


@pytest.fixture(scope="module")
def songs() -> sets.Songs:
    return sets.load("toy", count=12, seed=2)


def made(songs: sets.Songs, **options: Any) -> Any:
    return tasks.get("tokens", **{"songs": songs, "train_length": 24, "judged": 4, **options})


def test_a_batch_is_a_piece_of_a_row_with_the_labels_of_its_place(songs: sets.Songs) -> None:
    task = made(songs)
    tokens, time, *labels = task.batch(0, 0, 3)
    assert tokens.shape == (3, 25) and time.shape == (3, 24) and len(labels) == len(task.levels())
    rows = {i: task.row(i) for i in songs.split["train"].tolist()}
    for b in range(3):
        at = [
            (i, s)
            for i, row in rows.items()
            for s in range(len(row["tokens"]) - 24)
            if np.array_equal(row["tokens"][s : s + 25], tokens[b].numpy())
            and np.array_equal(row["time"][s : s + 24], time[b].numpy())
        ]
        assert at
    assert all(torch.equal(a, b) for a, b in zip(task.batch(0, 0, 3), (tokens, time, *labels), strict=True))


class Bigram(nn.Module):
    """Says that every token follows itself; has no positions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(VOCABULARY) * 3)

    def forward(self, tokens: torch.Tensor, positions: object) -> torch.Tensor:
        return self.weight[tokens]


def test_every_length_scores_the_same_tokens(songs: sets.Songs) -> None:
    task = made(songs)
    found = [task.evaluate(Bigram(), "test", multiple * 24) for multiple in task.multiples]
    assert len({each.count for each in found}) == 1
    assert found[0].loss == pytest.approx(found[1].loss) == pytest.approx(found[2].loss)
    assert found[2].by_position is not None and found[2].by_position.shape == (96,)
    rows = [task.baselines("test", n) for n in (24, 96)]
    assert rows[0]["bigram"]["loss"] == pytest.approx(rows[1]["bigram"]["loss"])
    assert rows[0]["bigram"]["loss"] < rows[0]["unigram"]["loss"] < rows[0]["uniform"]["loss"]


@pytest.mark.parametrize("encoding", ["sinusoidal", "alibi", "fstripe", "sine_spe"])
@pytest.mark.parametrize("mixer", ["softmax", "kernelized"])
def test_networks_go_on_with_valid_music(songs: sets.Songs, encoding: str, mixer: str) -> None:
    task = made(songs)
    torch.manual_seed(0)
    small = {"encoding_options": {"realizations": 4}} if encoding == "sine_spe" else {}
    model = task.model(encoding, dim=16, depth=1, mixer=mixer, **small).eval()
    assert torch.isfinite(task.loss(model, task.batch(0, 0, 2)))
    song, prompt = task.prompts()[0]
    if encoding == "sine_spe":
        torch.manual_seed(1)
    one = task.continued(model, song, prompt, len(prompt) + 20, seed=3)
    before = events.decode(prompt, song.ticks_per_quarter, like=song)
    count = len(before.notes)
    assert len(one.notes) > count or one.ticks > before.ticks
    assert {tuple(n) for n in before.notes[:, :4].tolist()} <= {tuple(n) for n in one.notes[:, :4].tolist()}
    if encoding != "sine_spe":  # whose codes are drawn anew
        same = task.continued(model, song, prompt, len(prompt) + 20, seed=3)
        assert np.array_equal(one.notes, same.notes)


def test_style_is_measured_where_it_is_asked_for(songs: sets.Songs, tmp_path: Path) -> None:
    task = made(songs, style=2)
    assert [metric.name for metric in task.metrics] == [metric.name for metric in STYLE]
    model = task.model("alibi", dim=16, depth=1)
    found = task.evaluate(model, "test", 24)
    assert set(found.metrics) == {"time_pitch", "onset_duration"}
    assert all(0 <= value <= 1 for value in found.metrics.values())
    assert task.evaluate(model, "validation", 24).metrics == {} and made(songs).metrics == ()
    files = task.sample(model, tmp_path, 0)
    assert [len(midifile.read(each.path).notes) > 0 for each in files] == [True, True]


def test_bad_input_is_refused(songs: sets.Songs) -> None:
    for options in ({"train_length": 1}, {"judged": 0}, {"style": -1}):
        with pytest.raises(ValueError, match="got"):
            made(songs, **options)
    with pytest.raises(ValueError, match="must divide"):
        made(songs).evaluate(Bigram(), "test", 7)
    with pytest.raises(ValueError, match="unknown split"):
        made(songs).baselines("more", 24)
    with pytest.raises(ValueError, match="shorter"):
        made(songs, train_length=50_000).batch(0, 0, 1)
