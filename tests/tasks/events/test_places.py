"""The task places: rankings by hand, splits, counts, and networks that learn."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relpos.tasks import get
from relpos.tasks.events.metrics.ranking import ranks, summary
from relpos.tasks.events.places import NextItem
from relpos.tasks.events.places_baselines import Counts
from relpos.tasks.events.sequences import Sequences

ITEMS = 6


def made(count: int = 12, profiles: bool = True, seed: int = 0) -> Sequences:
    """Sequences whose next item is the last one plus one, at places on a line."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(10, 20, count)
    marks = [(rng.integers(ITEMS) + np.arange(n)) % ITEMS for n in lengths]
    times = [np.cumsum(rng.exponential(1.0, n)) for n in lengths]
    more: dict[str, Any] = {"places": [np.c_[m * 1.0, m * 2.0] for m in marks]}
    if profiles:
        more["profiles"] = [np.c_[m % 2, m > 2, m * 0.5 + 1].astype(float) for m in marks]
    return Sequences.of(times, marks=marks, mark_count=ITEMS, unit="hours", **more)


def task(**more: Any) -> NextItem:
    found = NextItem(length=8)
    found.take(made(**more))
    return found


def test_ranks_by_hand() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 5.0, 5.0]])
    assert ranks(scores, np.array([2, 0, 1])).tolist() == [2.0, 2.0, 1.5]
    found = summary(np.array([1.0, 3.0, 11.0]), (1, 5, 20))
    assert found["recall_1"] == pytest.approx(1 / 3) and found["recall_5"] == pytest.approx(2 / 3)
    assert found["recall_20"] == 1.0  # more than there are items
    assert found["ndcg_10"] == pytest.approx((1 + 0.5) / 3) and found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 3)
    for bad, words in (((scores * np.nan, [0, 0, 0]), "NaN"), ((scores, [0, 0, 3]), r"targets are 0\.\.2")):
        with pytest.raises(ValueError, match=words):
            ranks(bad[0], np.array(bad[1]))
    with pytest.raises(ValueError, match="no ranking"):
        summary(np.zeros(0))


def test_constant_scores_are_worth_chance() -> None:
    rank = ranks(np.zeros((100, 5)), np.arange(100) % 5)
    assert (rank == 3).all()


def test_counts_by_hand() -> None:
    train = Sequences.of([[0.0, 1, 2], [0.0, 1]], marks=[[0, 1, 0], [2, 2]], mark_count=3)
    rows = Counts(train, 3).scores(Sequences.of([[5.0, 6]], marks=[[2, 0]], mark_count=3))
    assert rows["popularity"][0].tolist() == [2, 1, 2]
    assert rows["Markov"][0].argmax() == 1  # after 0 came 1, once
    assert rows["frequency in the sequence"][0].argsort()[0] == 1
    with pytest.raises(ValueError, match="no event before"):
        Counts(train, 3).scores(Sequences.of([[]], marks=[[]], mark_count=3, window=(0.0, 1.0)))


def test_what_is_foretold_is_not_seen() -> None:
    """The last item of a sequence changes no logits, and every token's item is that of the next one."""
    one = task()
    torch.manual_seed(0)
    model = one.model("relative_channels").eval()
    test = one.part("test")
    rows = np.arange(len(test))
    logits, guess, items, _ = one._last(model, test, rows, 8)
    assert guess is not None and items.tolist() == test.kinds[test.offsets[1:] - 1].tolist()
    marks, places, profiles = test.kinds.copy(), test.places.copy(), test.profiles.copy()
    last = test.offsets[1:] - 1
    marks[last], places[last], profiles[last] = 0, 80.0, 1.0
    other = Sequences(**{**vars(test), "marks": marks, "places": places, "profiles": profiles})
    assert torch.equal(one._last(model, other, rows, 8)[0], logits)
    *seen, times, items, _ = one.batch(0, 0, 4)
    mask = seen[2] & (items >= 0)
    assert torch.equal(items[:, :-1][mask[:, 1:]], seen[0][:, 1:][mask[:, 1:]])
    assert bool((times >= seen[1]).all())


def test_splits_and_options() -> None:
    one = task()
    whole = made()
    assert len(one.part("train").times) == len(whole.times) - 2 * len(whole)
    assert one._width == 2  # the third column is no yes or no
    assert torch.equal(one.batch(3, 1, 4)[0], one.batch(3, 1, 4)[0])
    assert pickle.loads(pickle.dumps(one))._parts is None
    assert one.describe()["items"] == ITEMS
    for options, words in (({"least": 2}, "least >= 3"), ({"length": 1}, "length >= 2")):
        with pytest.raises(ValueError, match=words):
            get("places", **options)
    with pytest.raises(ValueError, match="no marks"):
        NextItem().take(Sequences.of([[0.0, 1, 2]]))
    with pytest.raises(ValueError, match="at least 10 events"):
        NextItem().take(Sequences.of([[0.0, 1, 2]], marks=[[0, 1, 2]]))


@pytest.mark.parametrize("options", [{}, {"profile": False}, {"query_time": "request"}], ids=str)
def test_networks_learn(options: dict[str, Any], tmp_path: Path) -> None:
    one = task(count=30)
    torch.manual_seed(0)
    model = one.model("relative_channels", **options)
    steps = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(60):
        steps.zero_grad()
        one.loss(model, one.batch(step, 0, 16)).backward()
        steps.step()
    found = one.evaluate(model, "test", 8)
    assert found.metrics["recall_1"] > 0.9 and found.count == 30
    rows = one.baselines("test", 8)
    guess = rows["Markov"]["profile"]
    assert found.metrics["profile"] == guess if options == {"profile": False} else found.metrics["profile"] < guess / 2
    assert rows["Markov"]["recall_1"] == 1.0 and rows["popularity"]["recall_1"] < 0.6
    assert [each.path.exists() for each in one.sample(model, tmp_path, 0)] == [True]
    assert [each.kind for each in one.pictures(model, tmp_path)] == ["image"]


def test_hstu() -> None:
    one = task(profiles=False)
    model = one.model("hstu", mixer="pointwise", query_time="request")
    assert torch.isfinite(one.loss(model, one.batch(0, 0, 4)))
