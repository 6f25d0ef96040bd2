"""Unwarping, model-free distances, the network's relevance, and the task."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relpos.tasks import get
from relpos.tasks.data.sets import Card, Events
from relpos.tasks.events import Sequences
from relpos.tasks.events.neural import Seen
from relpos.tasks.events.retrieval import NeuroSeqRet, Unwarping, baselines, model_free
from relpos.tasks.events.retrieval.documents import Halves, split, two_days
from relpos.tasks.events.retrieval.relevance import hinge
from relpos.tasks.events.retrieval.simulated import bent, simulated
from relpos.tasks.events.retrieval.task import EventRetrieval, read

GOLDEN = Path(__file__).parents[2] / "golden" / "ctes_retrieval.npz"
TINY = {"dim": 8, "depth": 1}


def _bent(seed: int, strength: float = 1.0) -> Unwarping:
    torch.manual_seed(seed)
    curve = Unwarping(span=5.0)
    with torch.no_grad():
        curve.last.weight.normal_(0, strength)
        curve.last.bias.normal_(0, strength)
        curve.offset.fill_(0.2)
    return curve


# ---- unwarping


def test_unwarping_is_the_identity_at_the_start() -> None:
    curve, times = Unwarping(span=7.0), torch.linspace(0, 7, 50, dtype=torch.float64)
    assert torch.allclose(curve(times), times, atol=1e-12)
    assert float(curve.departure().detach()) < 1e-20


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_unwarping_rises(seed: int) -> None:
    times = torch.linspace(0, 5, 400, dtype=torch.float64)
    with torch.no_grad():
        assert (_bent(seed, 2.0)(times).diff() > 0).all()


def test_the_integral_is_that_of_the_rate() -> None:
    curve = _bent(3)
    with torch.no_grad():
        for time in (0.0, 0.4, 3.0, 5.0):
            fine = torch.linspace(0, time / 5, 20_001, dtype=torch.float64)
            area = float(torch.trapezoid(curve.rate(fine), fine))
            start = float(curve(torch.zeros((), dtype=torch.float64)))
            assert float(curve(torch.tensor(time))) - start == pytest.approx(5 * area, abs=1e-6)


def test_unwarping_learns_a_bend_back() -> None:
    curve = Unwarping(span=10.0)
    truth = torch.linspace(0, 1, 80, dtype=torch.float64)
    seen = torch.from_numpy(10 * bent(truth.numpy(), 0.6))
    optimizer = torch.optim.Adam(curve.parameters(), 0.05)
    before = float((curve(seen) - 10 * truth).detach().abs().max())
    for _ in range(400):
        optimizer.zero_grad()
        (curve(seen) - 10 * truth).square().mean().backward()
        optimizer.step()
    assert before > 0.9
    assert float((curve(seen) - 10 * truth).detach().abs().max()) < 0.15


def test_unwarping_refuses_no_window() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Unwarping(0.0)


# ---- model-free distances


def _golden() -> tuple[Seen, float, dict]:
    golden = np.load(GOLDEN)
    given = [golden[f"mf_t{i}"] for i in range(3)]
    sequences = Sequences.of(given, marks=[golden[f"mf_k{i}"] for i in range(3)], window=(0.0, float(golden["mf_T"])))
    seen = read(sequences)
    return Seen(*(part[:, 1:] for part in seen)), float(golden["mf_T"]), golden


def test_distances_agree_with_the_reference() -> None:
    seen, end, golden = _golden()
    time, mark = model_free.distances(seen, seen, end)
    assert np.allclose(time, golden["mf_dist_time"], atol=1e-12)
    assert np.allclose(mark, golden["mf_dist_mark"], atol=1e-12)
    rows, columns = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 0])
    pairs = model_free.pairwise(*(Seen(*(part[at] for part in seen)) for at in (rows, columns)), end)
    assert torch.equal(pairs[0], time[rows, columns]) and torch.equal(pairs[1], mark[rows, columns])


def test_pads_do_not_count() -> None:
    seen, end, golden = _golden()
    spoiled = seen._replace(
        times=torch.where(seen.mask, seen.times, torch.nan), marks=torch.where(seen.mask, seen.marks, 99)
    )
    time, mark = model_free.distances(spoiled, seen, end)
    assert np.allclose(time, golden["mf_dist_time"]) and np.allclose(mark, golden["mf_dist_mark"])


# ---- relevance


def _network(**options: object) -> NeuroSeqRet:
    torch.manual_seed(0)
    return NeuroSeqRet(2, span=10.0, length=32, width=6, **{**TINY, **options})  # type: ignore[arg-type]


def _documents(count: int = 6, seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    times = [np.sort(rng.uniform(0, 10, rng.integers(1, 12))) for _ in range(count)]
    return Sequences.of(times, marks=[rng.integers(2, size=len(t)) for t in times], window=(0.0, 10.0), mark_count=2)


@pytest.mark.parametrize("relevance", ["self", "cross"])
@pytest.mark.parametrize("encoding", ["relative_channels", "nope", "t5", "sinusoidal"])
def test_scores_of_pairs_and_of_all_agree(relevance: str, encoding: str) -> None:
    model = _network(relevance=relevance, encoding=encoding).eval()
    _stir(model)
    with torch.no_grad():
        queries, corpus = model.encode(read(_documents()), True), model.encode(read(_documents(4, 1)), False)
        whole = model.score(queries, corpus, pairs=5)
        rows, columns = torch.tensor([0, 5, 3]), torch.tensor([3, 0, 2])
        pairs = model.score_pairs(queries.take(rows), corpus.take(columns))
    assert whole.shape == (6, 4)
    assert torch.allclose(pairs, whole[rows, columns], atol=1e-5)


def _stir(model: NeuroSeqRet) -> None:
    """What begins as zero, away from it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.3)


def test_cross_begins_as_self() -> None:
    one, two = (_network(relevance=relevance) for relevance in ("self", "cross"))
    two.load_state_dict(one.state_dict(), strict=False)
    one.eval(), two.eval()
    with torch.no_grad():
        given = read(_documents()), read(_documents(4, 1))
        scores = [each.score(each.encode(given[0], True), each.encode(given[1], False)) for each in (one, two)]
    assert torch.allclose(scores[0], scores[1], atol=1e-6)


def test_only_cross_makes_a_query_depend_on_the_pair() -> None:
    """With the model-free term off, self-attention scores are a product of vectors: rank at most the width."""
    for relevance, low in (("self", True), ("cross", False)):
        model = _network(relevance=relevance, model_free=False).eval()
        _stir(model)
        with torch.no_grad():
            documents = read(_documents(16)), read(_documents(16, 1))
            scores = model.score(model.encode(documents[0], True), model.encode(documents[1], False))
        assert (np.linalg.matrix_rank(scores.numpy(), tol=1e-4) <= 6) == low


@pytest.mark.parametrize("relevance", ["self", "cross"])
def test_padding_and_company_change_nothing(relevance: str) -> None:
    model = _network(relevance=relevance).eval()
    _stir(model)
    documents, searched = read(_documents()), read(_documents(4, 1))
    with torch.no_grad():
        whole = model.score(model.encode(documents, True), model.encode(searched, False))
        for query, found in ((0, 1), (3, 0), (5, 3)):
            one, two = _alone(documents, query), _alone(searched, found)
            assert torch.allclose(
                model.score(model.encode(one, True), model.encode(two, False)), whole[query, found], atol=1e-5
            )


def _alone(seen: Seen, row: int) -> Seen:
    """One document without its pads."""
    return Seen(*(part[row : row + 1, : int(seen.mask[row].sum())] for part in seen))


def test_the_gradient_reaches_the_clock() -> None:
    for options in ({"model_free": False}, {"relevance": "cross"}, {}):
        model = _network(**options)
        scores = model.score(model.encode(read(_documents()), True), model.encode(read(_documents(4, 1)), False))
        scores.square().sum().backward()
        assert model.unwarping is not None and model.unwarping.last.bias.grad is not None
        assert float(model.unwarping.last.bias.grad.abs()) > 0
    assert _network(unwarp=False).unwarping is None


def test_hinge_by_hand() -> None:
    scores = torch.tensor([[2.0, 0.5, 1.8], [0.0, 0.0, 0.0]])
    relevant = torch.tensor([[True, False, False], [True, False, True]])
    valid = torch.tensor([[True, True, True], [False, True, True]])
    # first query: 1 - 1.5 -> 0 and 1 - 0.2; second: one pair of equal scores
    assert float(hinge(scores, relevant, valid)) == pytest.approx((0.0 + 0.8 + 1.0) / 3)
    with pytest.raises(ValueError, match="there is none"):
        hinge(scores[:, :1], relevant[:, :1], valid[:, :1])


def test_unknown_relevance() -> None:
    with pytest.raises(ValueError, match="self, cross"):
        _network(relevance="both")


# ---- documents


def _recording() -> Events:
    """Four people, two days of contacts; person d has no second day."""
    times = [[0, 10, 400, 86400, 86930], [200, 86100], [130, 86400 + 125, 86400 + 600], [40, 300]]
    sequences = Sequences.of(times, window=(0.0, 90000.0), ids=tuple("abcd"), unit="seconds")
    return Events.of(Card("made", "made"), {}, sequences, labels=np.array([0, 1, 0, 1]), classes=("x", "y"))


def test_two_days_become_halves() -> None:
    halves = two_days(_recording(), tick=120.0)
    assert halves.corpus.ids == ("a", "b", "c") and halves.labels.tolist() == [0, 1, 0]
    assert halves.span == pytest.approx(1080 / 3600)  # the second day begins 300 s early; ticks of 120 s on both days
    minutes = [np.round(each.times * 60, 6).tolist() for each in halves.corpus]
    assert minutes == [[7.0, 13.0], [9.0], [9.0]]  # 0 and 10 s are one event of two contacts
    assert halves.corpus.marks is not None and halves.corpus.marks.tolist() == [1, 0, 0, 0]
    assert [np.round(each.times * 60, 6).tolist() for each in halves.queries] == [[7.0, 15.0], [1.0], [9.0, 17.0]]


def test_halves_refuse_what_is_not_two_days() -> None:
    with pytest.raises(ValueError, match="tick"):
        two_days(_recording(), 0.0)
    one = Events.of(
        Card("made", "made"), {}, Sequences.of([[0.0, 100000.0, 300000.0]], unit="seconds"), labels=np.array([0])
    )
    with pytest.raises(ValueError, match="two days"):
        two_days(one, 60.0)
    sides = _documents(3), _documents(2)
    with pytest.raises(ValueError, match="3, 2"):
        Halves(*sides, np.zeros(3, dtype=int), ("x",), "made")


def test_splits_hold_out_people_or_classes() -> None:
    halves = simulated(10, 10)
    people, classes = split(halves, "people", 0), split(halves, "classes", 0)
    for sides in (people, classes):
        assert sorted(np.concatenate(list(sides.values())).tolist()) == list(range(100))
    assert [np.bincount(halves.labels[people[side]]).tolist() for side in people] == [[6] * 10, [2] * 10, [2] * 10]
    of = {side: set(halves.labels[rows].tolist()) for side, rows in classes.items()}
    assert [len(kinds) for kinds in of.values()] == [6, 2, 2]
    assert not of["train"] & of["test"]
    with pytest.raises(ValueError, match="people"):
        split(halves, "days", 0)
    with pytest.raises(ValueError, match="needs two classes"):
        split(simulated(2, 10), "classes", 0)


def test_what_is_simulated_is_what_it_says() -> None:
    halves = simulated(4, 400, warp=0.0, rhythm=0.0, seed=3)
    again = simulated(4, 400, warp=0.6, rhythm=0.0, seed=3)
    assert np.allclose(10 * bent(halves.queries.times / 10, 0.6), again.queries.times)
    assert np.array_equal(halves.corpus.times, again.corpus.times)
    for label in range(4):
        counts = halves.corpus.select(halves.labels == label).lengths
        assert 12 < counts.mean() < 40
        one = np.histogram(halves.corpus.select(halves.labels == label).times, bins=5, range=(0, 10))[0]
        assert one[1:].max() < 1.25 * one[1:].min()  # without a rhythm no stretch is busier
    with pytest.raises(ValueError, match="warp < 1"):
        simulated(warp=1.0)


# ---- baselines


def test_baselines_rank_by_what_they_are_called_after() -> None:
    early, late = np.linspace(0.13, 2.97, 8), np.linspace(6.03, 8.91, 8)
    queries = Sequences.of([early, late, early[:2]], window=(0.0, 10.0))
    corpus = Sequences.of([early + 0.01, late + 0.01, late[:2]], window=(0.0, 10.0))
    halves = Halves(queries, corpus, np.array([0, 1, 0]), ("x", "y"), "made")
    rows = np.arange(3)
    assert baselines.time_of_day(halves, rows)[0].argmax() == 0 and baselines.time_of_day(halves, rows)[1].argmax() == 1
    assert baselines.rate(halves, rows)[2].argmax() == 2
    table = baselines.histogram(queries)
    assert np.allclose(np.linalg.norm(table, axis=1), 1)
    shifted = Halves(queries.shifted(5.0), corpus.shifted(-3.0), halves.labels, halves.classes, "made")
    assert np.allclose(baselines.time_of_day(shifted, rows), baselines.time_of_day(halves, rows))


# ---- the task


@pytest.fixture(scope="module")
def task() -> EventRetrieval:
    found = get("event-retrieval", dataset="simulated", hold="people")
    assert isinstance(found, EventRetrieval)
    found._take(simulated(6, 20))
    return found


def test_a_batch_is_of_training_items_and_repeats(task: EventRetrieval) -> None:
    marks, times, mask, labels, items = task.batch(3, 0, 12)
    assert marks.shape == times.shape == mask.shape and marks.shape[:2] == (12, 2)
    assert set(items.tolist()) <= set(task.rows("train").tolist())
    assert (torch.from_numpy(task.halves.labels[items]) == labels).all()
    assert np.unique(labels.numpy(), return_counts=True)[1].tolist() == [4, 4, 4]
    assert all(torch.equal(one, two) for one, two in zip(task.batch(3, 0, 12), (marks, times, mask, labels, items)))
    assert not torch.equal(task.batch(4, 0, 12)[4], items)
    with pytest.raises(ValueError, match="size 4 or more"):
        task.batch(0, 0, 3)


@pytest.mark.slow(4)
def test_training_beats_chance(task: EventRetrieval) -> None:
    torch.manual_seed(0)
    model = task.model("nope", **TINY)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(40):
        loss = task.loss(model, task.batch(step, 0, 16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, floor = task.evaluate(model, "test", task.train_length), task.baselines("test", task.train_length)
    assert found.metrics["map"] > floor["random"]["map"] + 0.1
    assert found.metrics.keys() == floor["random"].keys() == {each.name for each in task.metrics}


def test_the_asker_is_no_candidate(task: EventRetrieval) -> None:
    rows = task.rows("test")
    relevant, valid = task._relevant(rows)
    assert not valid.diagonal().any() and valid.sum() == len(rows) * (len(rows) - 1)
    assert (relevant == (task.halves.labels[rows][:, None] == task.halves.labels[rows])).all()


def test_a_worker_reads_the_data_back() -> None:
    one = EventRetrieval(dataset="simulated", warp=0.3)
    one.prepare()
    two = pickle.loads(pickle.dumps(one))
    assert two._halves is None
    assert np.array_equal(two.halves.queries.times, one.halves.queries.times)
    assert len(pickle.dumps(one)) < 2000


def test_pictures(task: EventRetrieval, tmp_path: Path) -> None:
    model = task.model("nope", **TINY)
    made = [*task.pictures(model, tmp_path), *task.sample(model, tmp_path, 0)]
    assert [each.path.name for each in made] == ["unwarping.png", "found.png"]
    assert all(each.path.read_bytes().startswith(b"\x89PNG") for each in made)
    assert task.pictures(task.model("nope", unwarp=False, **TINY), tmp_path) == []


def test_options() -> None:
    for options, words in (
        ({"dataset": "school"}, "primary-school"), ({"hold": "days"}, "classes"), ({"warp": 1.5}, "warp < 1"),
        ({"tick": 0}, "tick > 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            EventRetrieval(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="validation or test"):
        EventRetrieval(dataset="simulated").evaluate(torch.nn.Linear(1, 1), "train", 256)
