"""The translation task on a made-up language: splits, subwords, batches, what is scored, and what is shown."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relpos import tasks
from relpos.tasks.parallel import SIDES, Nearest, Pairs
from relpos.tasks.subwords import END, PAD, START, Subwords
from relpos.tasks.translate import Settings, Translate

NOUNS = ["king", "well", "house", "stone", "river", "lamb", "bread", "night"]
VERBS = ["saw", "made", "built", "loved", "left", "found"]
MEANING = "rey pozo casa piedra río cordero pan noche vio hizo edificó amó dejó halló"
WORDS = dict(zip(NOUNS + VERBS, MEANING.split())) | {"the": "el", "and": "y"}


def sentences(count: int = 240) -> tuple[list[str], list[str]]:
    draw = np.random.default_rng(5)
    source = []
    for index in range(count):
        parts = [
            f"the {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)}" for _ in range(1 + index % 3)
        ]
        source.append(" and ".join(parts))
    target = [" ".join(WORDS[word] for word in line.split()) for line in source]
    return source, target


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    patch = pytest.MonkeyPatch()
    patch.setenv("RELPOS_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def task(folder: None) -> Translate:
    return Translate(
        pairs=Pairs.of(*sentences()), settings=Settings(dim=16, depth=1, heads=2, vocabulary=90, translated=5, shown=3)
    )


def test_pairs_are_cleaned_and_no_training_text_is_tested() -> None:
    source = ["a  b", "", "c", "d", "a b", "e", "f", "c"]
    target = ["A\tB", "X", "C", "", "A B", "E", "F", "other"]
    split = {"train": np.arange(6), "validation": np.array([6]), "test": np.array([7])}
    pairs = Pairs.of(source, target, split)
    assert pairs.texts("train") == (["a b", "e"], ["A B", "E"])  # empty, double and tested ones are gone
    assert pairs.texts("test") == (["c"], ["other"])
    with pytest.raises(ValueError, match="one line a pair"):
        Pairs.of(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="no pair is left"):
        Pairs.of(["a"], ["b"])


def test_the_hash_split_does_not_depend_on_order_or_company() -> None:
    source, target = sentences()
    whole = Pairs.of(source, target)
    side = {text: side for side in SIDES for text in whole.texts(side)[0]}
    half = Pairs.of(source[::-2], target[::-2])
    assert all(side.get(text, name) == name for name in SIDES for text in half.texts(name)[0])
    shares = [len(whole.split[name]) / sum(map(len, whole.split.values())) for name in SIDES]
    assert 0.8 < shares[0] < 0.97 and min(shares[1:]) > 0


def test_nearest_weighs_rare_words_more() -> None:
    near = Nearest(["the the the lamb", "the river", "the night", "a stone of the well"])
    assert near("the river and the the the") == 1 and near("WELL?") == 3 and near("unknown words") == 0


def test_subwords_round_trip_and_come_from_the_cache() -> None:
    source, target = sentences()
    first, again = Subwords.learned(source + target, 90), Subwords.learned(source + target, 90)
    assert len(first) == len(again) <= 90
    rows = first.encode(target[:20])
    assert all(np.array_equal(a, b) for a, b in zip(rows, again.encode(target[:20])))
    assert first.decode([np.concatenate([row, [END], row]) for row in rows]) == target[:20]
    assert min(int(row.min()) for row in rows) > END
    with pytest.raises(ValueError, match="no vocabulary"):
        Subwords.learned(source, 5)


def test_the_protocol(task: Translate) -> None:
    assert isinstance(task, tasks.Task) and tasks.get("translate").name == "translate"
    described = task.describe()
    assert described["splits"]["train"]["pairs"] == len(task.data.source["train"])
    twin = pickle.loads(pickle.dumps(task))
    assert torch.equal(twin.batch(3, 1, 2)[1], task.batch(3, 1, 2)[1])
    model = task.model("learned_bias")
    assert dict(model.encodings())["decoder, layer 1"].max_lag == task.train_length
    assert task.model("t5", dim=24, heads=3).dim == 24


def test_batches_are_whole_pairs_of_like_length_in_every_pair_equally_often(task: Translate) -> None:
    known = {(tuple(s), tuple(t)) for s, t in zip(task.data.source["train"], task.data.target["train"])}
    seen: dict[tuple[int, ...], int] = {}
    drawn = 0
    for step in range(400):
        source, target = task.batch(step, 0, 1)
        assert source.dtype == target.dtype == torch.int64 and len(source) == len(target)
        assert (target[:, 0] == START).all() and source.shape[0] * source.shape[1] <= task.train_length + 8
        for s, t in zip(source.tolist(), target.tolist()):
            s, t = [x for x in s if x != PAD], [x for x in t if x != PAD]
            assert t[-1] == END and (tuple(s), tuple(t[1:-1])) in known
            seen[tuple(s)] = seen.get(tuple(s), 0) + 1
            drawn += 1
    lengths = np.array([len(s) for s in task.data.source["train"]])
    want = (lengths > np.median(lengths)).mean()
    got = sum(n for s, n in seen.items() if len(s) > np.median(lengths)) / drawn
    assert abs(got - want) < 0.06
    assert not torch.equal(task.batch(0, 0, 2)[0], task.batch(0, 1, 2)[0])
    with pytest.raises(ValueError, match="size 1 or more"):
        task.batch(0, 0, 0)


class Oracle(nn.Module):
    """Knows the answers: gives the right next token the odds `sure`, all others the same."""

    def __init__(self, task: Translate, side: str, sure: float) -> None:
        super().__init__()
        self.answer = {
            tuple(s): [START, *t, END] for s, t in zip(task.data.source[side], task.data.target[side], strict=True)
        }
        self.size, self.sure = len(task.data.subwords), sure

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor) -> Tensor:
        out = torch.zeros(*target.shape, self.size)
        for row, s in enumerate(source.tolist()):
            answer = self.answer[tuple(x for x, real in zip(s, source_mask[row].tolist()) if real)]
            for t in range(min(target.shape[1], len(answer) - 1)):
                out[row, t, answer[t + 1]] = self.sure
        return out

    def translate(self, source: Tensor, mask: Tensor, *, start: int, end: int, steps: int) -> Tensor:
        rows = [self.answer[tuple(s[m].tolist())][1:] for s, m in zip(source, mask)]
        return torch.tensor([(row + [end] * steps)[:steps] for row in rows])


def test_what_is_scored(task: Translate) -> None:
    size, scored = len(task.data.subwords), sum(len(t) + 1 for t in task.data.target["test"])
    found = task.evaluate(Oracle(task, "test", 3.0), "test", 64)
    want = -math.log(math.exp(3) / (math.exp(3) + size - 1))
    assert found.count == scored and found.loss == pytest.approx(want, abs=1e-5)
    assert found.metrics["bleu"] == pytest.approx(100) and found.by_position is None
    assert task.evaluate(Oracle(task, "validation", 3.0), "validation", 64).metrics == {}
    with pytest.raises(ValueError, match="no length of 128"):
        task.evaluate(Oracle(task, "test", 1.0), "test", 128)
    with pytest.raises(ValueError, match="unknown split"):
        task.evaluate(Oracle(task, "test", 1.0), "tests", 64)


def test_training_smooths_labels_and_padding_costs_nothing(task: Translate) -> None:
    oracle = Oracle(task, "train", 9.0)
    batch = task.batch(1, 0, 2)
    sharp = float(task.loss(oracle.eval(), batch))
    assert float(task.loss(oracle.train(), batch)) > sharp + 0.5
    wider = tuple(nn.functional.pad(x, (0, 3), value=PAD) for x in batch)
    assert float(task.loss(oracle.eval(), wider)) == pytest.approx(sharp)


def test_baselines(task: Translate) -> None:
    found = task.baselines("test", 64)
    assert found["unigram"]["loss"] < found["uniform"]["loss"] == pytest.approx(math.log(len(task.data.subwords)))
    assert 0 <= found["copy"]["bleu"] < 5 < found["nearest verse"]["bleu"] < 100


def test_a_real_model_is_evaluated_and_shown(task: Translate, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = task.model("learned_bias").train()
    found = task.evaluate(model, "test", 64)
    assert model.training and 0 <= found.metrics["bleu"] <= 100 and found.loss == pytest.approx(math.log(90), abs=1.5)
    (page,) = task.sample(model, tmp_path, seed=0)
    assert page.kind == "text" and page.path.read_text().count("reference:") == 3


def test_reversed(task: Translate) -> None:
    back = Translate(pairs=task.data.pairs, reverse=True, settings=task.settings)
    assert back.data.texts("train", "source") == task.data.texts("train", "target")
