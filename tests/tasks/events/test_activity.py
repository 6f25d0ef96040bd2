"""Activities: how sequences are cut and kept apart, what the loss charges, tables by hand, and writing on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relpos import tasks
from relpos.tasks.data.sets import Card, Events
from relpos.tasks.events import Sequences
from relpos.tasks.events.activity_baselines import Gaps, Markov, NaiveBayes, Symbols, pairs
from relpos.tasks.events.activity_data import apart, dequantised, observed, tracks
from relpos.tasks.events.activity_network import ActionHead, Activity, Reading, falls, loss_of
from relpos.tasks.events.activity_scores import judged, padded, variation
from relpos.tasks.events.activity_writing import write
from tests.tasks.data.made import put

HOUR = 3600.0


def events(times: list[list[float]], marks: list[list[int]], labels: list[int], **more: Any) -> Events:
    options = {"mark_names": ("a", "b", "c"), "unit": "seconds", **more}
    found = Sequences.of(times, marks=marks, ids=[f"p{i}" for i in range(len(times))], **options)
    names = tuple(f"goal {i}" for i in range(max(labels) + 1))
    return Events.of(Card("made", "made"), {}, found, labels=np.array(labels), classes=names)


def contacts(people: int = 12, length: int = 40) -> Events:
    """People of two roles; each mostly meets those of its own, the second with gaps ten times as long."""
    draw = np.random.default_rng(0)
    roles = [i % 2 for i in range(people)]
    times = [np.cumsum(draw.exponential(60 * 10**role, length)) for role in roles]
    marks = [np.where(draw.random(length) < 0.8, role, 1 - role) for role in roles]
    return events([t.tolist() for t in times], [m.tolist() for m in marks], roles, window=(0.0, 1e6))


def task_of(found: Events, **options: Any) -> Any:
    task = tasks.get("activity", most=20, least=4, beginning=3, **options)
    task._take(found)
    return task


# --- how sequences are cut --------------------------------------------------------------------------------------------


def test_sessions_end_with_a_silence_and_pieces_tell_nothing_of_their_end() -> None:
    times = [[0.0, 60.0, 120.0, 180.0, 240.0, 240.0 + 5 * HOUR, 300.0 + 5 * HOUR]]
    found = events(times, [[0, 1, 2, 0, 1, 2, 0]], [1], window=(0.0, 6 * HOUR))
    cut = tracks(found, 4 * 60, most=3, least=1, factor=1 / 60)
    s = cut.sequences
    assert s.lengths.tolist() == [3, 2, 2] and cut.sessions.tolist() == [1, 1, 2] and cut.goals.tolist() == [1, 1, 1]
    assert s.times.tolist() == pytest.approx([0, 1, 2, 0, 1, 0, 1])  # each begins at 0, in minutes
    # cut: nothing is known; a silence of four hours; the recording ends after 55 minutes
    assert (s.end - s.latest).tolist() == pytest.approx([0, 240, 55])
    assert len(tracks(found, 240, most=3, least=3, factor=1 / 60)) == 1
    whole = tracks(found, None, most=100, least=1)
    assert len(whole) == 1 and whole.sequences.end[0] == pytest.approx(6 * HOUR)
    unwindowed = events([[0.0, 1.0]], [[0, 1]], [0])
    assert math.isinf(tracks(unwindowed, None, most=100, least=1).sequences.end[0])


def test_events_at_one_tick_are_laid_out_within_it_in_their_order() -> None:
    found = Sequences.of([[0.0, 20.0, 20.0, 20.0, 60.0], [20.0, 40.0]], unit="seconds", window=(0.0, 60.0))
    moved = dequantised(found)
    by = moved.times - found.times
    assert ((by >= 0) & (by < 20)).all() and (np.diff(moved.times[:5]) > 0).all() and (moved.end == 80).all()
    assert len(set(by.tolist())) == 7 and np.array_equal(dequantised(found).times, moved.times)
    free = Sequences.of([[0.0, 1.0]], unit="seconds")
    assert dequantised(free) is free
    with pytest.raises(ValueError, match="one time"):
        dequantised(Sequences.of([[5.0, 5.0]], unit="seconds"))


@given(st.lists(st.integers(0, 2), min_size=9, max_size=40), st.integers(0, 5))
def test_nobody_is_on_two_sides(goals: list[int], fold: int) -> None:
    owners = np.repeat(np.arange(len(goals)), 2)
    sides = apart(owners, np.repeat(goals, 2), (0.5, 0.2, 0.3), fold)
    whose = [set(owners[rows]) for rows in sides.values()]
    assert sum(map(len, whose)) == len(goals) == len(set.union(*whose))
    assert sum(map(len, sides.values())) == len(owners)


def test_a_breakfast_of_one_person_from_two_cameras_is_on_one_side(tmp_path: Path) -> None:
    lines = "1-30 SIL\n31-150 take_bowl\n151-428 pour_cereals\n"
    for person in range(10, 22):
        for camera in ("cam01", "webcam02"):
            put(tmp_path, {f"P{person}_{camera}_P{person}_cereals.txt": lines})
    from relpos.tasks.data.readers import event_files

    task = tasks.get("activity", dataset="breakfast", path=str(tmp_path))
    task._take(event_files.breakfast(tmp_path, Card("breakfast", "")))
    for side in ("train", "validation", "test"):
        people = [name.split("_")[0] for name in task.side(side).sequences.ids]
        assert all(people.count(name) == 2 for name in people)


# --- the loss and the scores ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> Any:
    return task_of(contacts())


def test_pads_are_never_charged(made: Any) -> None:
    torch.manual_seed(0)
    model = made.model("relative_channels")
    train = made.side("train")
    rows = np.argsort(train.sequences.lengths)[[0, -1]]
    batch = padded(train, rows, np.array([3, 0]))
    alone = [padded(train, rows[i : i + 1], np.array([(3, 0)[i]])) for i in range(2)]
    *own, goals = batch
    whole = loss_of(model(*own), own[2], own[4], goals, 0.9)
    parts = []
    for each in alone:
        *events_of, goal = each
        parts.append((loss_of(model(*events_of), events_of[2], events_of[4], goal, 0.9), int((each[4] >= 0).sum())))
    counts = [count for _, count in parts]
    assert whole.events.item() == pytest.approx(sum(p.events.item() * c for p, c in parts) / sum(counts), rel=1e-6)
    assert whole.goal.item() == pytest.approx(sum(p.goal.item() for p, _ in parts) / 2, rel=1e-6)
    assert whole.margin.item() == pytest.approx(sum(p.margin.item() for p, _ in parts) / 2, abs=1e-7)
    # other content in the pads changes nothing
    mask = batch[2]
    other = (torch.where(mask, batch[0], 1), torch.where(mask, batch[1], batch[1] + 7), mask, *batch[3:5])
    again = loss_of(model(*other), mask, batch[4], goals, 0.9)
    assert all(a.item() == pytest.approx(b.item(), abs=1e-7) for a, b in zip(whole, again))


def test_the_scores_do_not_depend_on_the_batch(made: Any) -> None:
    from relpos.tasks.events import activity_scores as scores

    torch.manual_seed(0)
    model = made.model("nope")
    test = made.side("test")
    one, many = scores.read(model, test, 1, None, ""), scores.read(model, test, 100, None, "")
    for percent in (10, 100):
        a, b = judged(one, test, percent), judged(many, test, percent)
        assert all(a[key] == pytest.approx(b[key], abs=1e-6) for key in a)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_the_margin_is_zero_exactly_where_the_probability_never_falls(values: list[float]) -> None:
    mask = torch.ones(1, len(values), dtype=torch.bool)
    rising = torch.tensor([sorted(values)], dtype=torch.float64)
    assert falls(rising, mask).sum() == 0
    given_ = torch.tensor([values], dtype=torch.float64)
    by_hand = [max(0.0, max(values[:k]) - values[k]) if k else 0.0 for k in range(len(values))]
    assert falls(given_, mask)[0].tolist() == pytest.approx(by_hand)


def test_the_margin_moves_only_what_fell() -> None:
    p = torch.tensor([[0.6, 0.4, 0.9]], dtype=torch.float64, requires_grad=True)
    falls(p, torch.ones(1, 3, dtype=torch.bool)).sum().backward()
    assert p.grad is not None and p.grad[0].tolist() == [0.0, -1.0, 0.0]


def test_early_answers_count_more_with_a_smaller_gamma() -> None:
    log_goals = torch.log(torch.tensor([[[0.5, 0.5], [0.8, 0.2], [0.9, 0.1]]], dtype=torch.float64))
    mask, following = torch.tensor([[True, True, True]]), torch.tensor([[0, 0, -1]])
    reading = Reading(torch.tensor([[-1.0, -2.0, -0.5]]), log_goals, torch.zeros(1, 3, 1))
    found = loss_of(reading, mask, following, torch.tensor([0]), 0.5)
    p = -np.log([0.5, 0.8, 0.9])
    assert found.events.item() == pytest.approx(3.5 / 2)
    assert found.goal.item() == pytest.approx((p[0] + 0.5 * p[1] + 0.25 * p[2]) / 1.75)
    assert loss_of(reading, mask, following, torch.tensor([0]), 1.0).goal.item() == pytest.approx(p.mean())


def test_end_and_events_share_one_probability() -> None:
    """The density of the gap and the end sum to 1, and the silence is what is left."""
    torch.manual_seed(1)
    head, state = ActionHead(8, 3), torch.randn(1, 8)
    x = torch.logspace(-8, 8, 40001, dtype=torch.float64)

    def mass(x: torch.Tensor) -> float:
        states = state.expand(len(x), -1)
        parts = [head.log_prob(states, x, torch.full(x.shape, mark)).exp() for mark in range(3)]
        return float(torch.trapezoid(sum(parts), x))

    with torch.no_grad():
        ended = float(torch.sigmoid(head.end_logit(state)))
        late = float(head.log_survival(state, torch.tensor([2.0], dtype=torch.float64)).exp())
        assert mass(x) + ended == pytest.approx(1, abs=1e-5)
        assert late == pytest.approx(mass(x[x >= 2]) + ended, abs=1e-3)
    never = head.log_survival(state, torch.tensor([math.inf], dtype=torch.float64))
    never.sum().backward()
    assert float(never.detach().exp()) == pytest.approx(ended)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in head.parameters())


def test_a_state_knows_nothing_of_what_follows(made: Any) -> None:
    torch.manual_seed(0)
    model = made.model("relative_channels")
    *seen, _ = padded(made.side("test"), np.array([0]), np.array([0]))
    other = [each.clone() for each in seen]
    other[0][:, 5:], other[1][:, 5:] = 1 - other[0][:, 5:], other[1][:, 5:] + 3
    a, b = model(*seen), model(*other)
    assert torch.allclose(a.log_goals[:, :5], b.log_goals[:, :5], atol=1e-6)
    assert torch.allclose(a.log_likelihood[:, :4], b.log_likelihood[:, :4], atol=1e-6)
    assert not torch.allclose(a.log_goals[:, 5:], b.log_goals[:, 5:], atol=1e-6)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_naive_bayes_by_hand() -> None:
    rows, goals = [np.array([0, 0, 1]), np.array([1, 1])], np.array([0, 1])
    table = NaiveBayes(2, 2).count(rows, goals)
    # P(0 | goal 0) = (2 + 1) / (3 + 2), P(0 | goal 1) = (0 + 1) / (2 + 2), equal priors
    odds = (3 / 5) / (1 / 4), (3 / 5) * (2 / 5) / ((1 / 4) * (3 / 4))
    found = np.exp(table.prefixes(np.array([0, 1])))
    assert found[:, 0].tolist() == pytest.approx([x / (1 + x) for x in odds])
    warm = np.exp(NaiveBayes(2, 2, temperature=2.0).count(rows, goals).prefixes(np.array([0]))[0, 0])
    assert warm == pytest.approx(odds[0] ** 0.5 / (1 + odds[0] ** 0.5))


def test_tables_of_marks_and_gaps_by_hand() -> None:
    s = Sequences.of([[0.0, 1.0, 3.0], [0.0, 4.0]], marks=[[0, 1, 0], [1, 1]], window=(0.0, 10.0))
    markov = Markov(s)
    assert np.exp(markov.log_table).tolist() == pytest.approx(np.array([[1 / 3, 2 / 3], [2 / 4, 2 / 4]]))
    last, following = pairs(s)
    assert following.tolist() == [1, 2, 4] and last.tolist() == [0, 1, 3]
    gaps = Gaps(s, "exponential")
    assert gaps.mean == pytest.approx(7 / 3) and gaps.median == 2 and gaps.end == pytest.approx(3 / 7)
    assert gaps.log_prob(np.array([2.0]))[0] == pytest.approx(math.log(4 / 7 / (7 / 3)) - 2 / (7 / 3))
    silence = Gaps(s, "log-normal").log_silence(np.array([0.0, np.inf]))
    assert silence.tolist() == pytest.approx([0, math.log(3 / 7)])
    symbols = Symbols(s, gaps=True)  # quartiles of 1, 2, 4: 1.5, 2, 3
    assert symbols.count == 10 and [row.tolist() for row in symbols.of(s)] == [[0, 6, 3], [5, 9]]
    assert observed(np.array([3, 20, 64]), 10).tolist() == [2, 2, 7]


def test_baselines_are_what_they_say(made: Any) -> None:
    rows = made.baselines("test", 100)
    constant = rows["commonest goal and action, median gap"]
    test = made.side("test").sequences
    last, following = pairs(test)
    gaps = test.times[following] - test.times[last]
    assert constant["time"] == pytest.approx(np.abs(gaps - made.rows.gaps["log-normal"].median).mean())
    assert constant["fall"] == 0 and rows["Naive Bayes on marks"]["goal"] > constant["goal"]
    known = {"loss", *(metric.name for metric in made.metrics)}
    assert all(set(row) <= known for row in rows.values())


# --- a training, and writing ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(made: Any) -> Any:
    torch.manual_seed(0)
    model = made.model("relative_channels", dim=16, depth=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        made.loss(model, made.batch(step, 0, 8)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_a_short_training_beats_what_knows_nothing(made: Any, trained: Any) -> None:
    found, rows = made.evaluate(trained, "test", 100), made.baselines("test", 100)
    constant = rows["commonest goal and action, median gap"]
    assert set(found.metrics) == {metric.name for metric in made.metrics}
    assert found.loss < rows["Poisson"]["loss"] - 0.2
    assert found.metrics["goal"] > constant["goal"] + 0.2 and found.metrics["time"] < constant["time"]
    assert found.metrics["action"] > 0.7


def test_the_batch_is_a_function_of_its_arguments(made: Any) -> None:
    one, same, other = made.batch(3, 1, 4), made.batch(3, 1, 4), made.batch(4, 1, 4)
    assert all(torch.equal(a, b) for a, b in zip(one, same)) and not torch.equal(one[1], other[1])


def test_continuations_are_independent_stop_and_repeat_with_their_generator(made: Any, trained: Any) -> None:
    marks, times = torch.zeros(200, 3, dtype=torch.long), torch.arange(3.0, dtype=torch.float64).expand(200, 3)
    before = torch.get_rng_state()
    one = write(trained, marks, times, torch.Generator().manual_seed(0), most=6)
    assert torch.equal(torch.get_rng_state(), before)
    same = write(trained, marks, times, torch.Generator().manual_seed(0), most=6)
    assert all(torch.equal(a, b) for a, b in zip(one, same))
    assert one.times[:, 0].unique().numel() >= int((one.lengths > 0).sum())  # a draw of its own for every row
    assert (torch.diff(one.times, dim=1) >= 0).all() and (one.lengths[~one.ended] == 6).all()
    assert not bool(write(trained, marks, times, torch.Generator().manual_seed(0), silence=0.0).lengths.any())
    with torch.no_grad():
        never = Activity(3, 2, "nope")
        never.head.end.bias.fill_(-50.0)
        assert not write(never, marks[:5], times[:5], torch.Generator().manual_seed(0), most=4).ended.any()
        never.head.end.bias.fill_(50.0)
        assert write(never, marks[:5], times[:5], torch.Generator().manual_seed(0), most=4).ended.all()


def test_first_gaps_follow_the_predicted_density(trained: Any) -> None:
    count = 2000
    marks, times = torch.zeros(count, 1, dtype=torch.long), torch.zeros(count, 1, dtype=torch.float64)
    drawn = write(trained, marks, times, torch.Generator().manual_seed(2), most=1)
    with torch.no_grad():
        state = trained.states(marks[:1], times[:1], torch.ones(1, 1, dtype=torch.bool))[:, -1]
        gaps = drawn.times[:, 0][~drawn.ended].sort().values
        cdf = trained.head.density(state).log_cdf(gaps).exp()
        ended = float(torch.sigmoid(trained.head.end_logit(state)))
    off = (cdf - (torch.arange(len(gaps)) + 0.5) / len(gaps)).abs().max()
    assert float(off) < 1.63 / len(gaps) ** 0.5  # the 1% point of Kolmogorov and Smirnov
    assert abs(float(drawn.ended.double().mean()) - ended) < 4 * (ended * (1 - ended) / count) ** 0.5 + 1e-3


def test_writing_to_a_goal_changes_what_is_written(trained: Any) -> None:
    marks = torch.tensor([[0, 1]]).repeat(120, 1)
    times = torch.tensor([[0.0, 3.0]], dtype=torch.float64).repeat(120, 1)
    shares = []
    for goal in (0, 1):
        aim = torch.full((120,), goal)
        drawn = write(trained, marks, times, torch.Generator().manual_seed(0), goals=aim, most=6)
        kept = torch.arange(6)[None, :] < drawn.lengths[:, None]
        shares.append(float((drawn.marks[kept] == 1).double().mean()))
    assert shares[1] > shares[0] + 0.2


def test_how_far_written_marks_are_from_real_ones() -> None:
    def parts(*rows: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.array(row, dtype=np.int64), np.ones(len(row))) for row in rows]

    goals = np.array([0, 1])
    assert variation(parts([0, 1], [1]), parts([1, 0], [1]), goals, 2) == 0
    assert variation(parts([0, 0], [1]), parts([1, 0], [1]), goals, 2) == pytest.approx(0.25)
    assert variation(parts([], []), parts([1], [0]), goals, 2) == 1


def test_files_and_numbers_of_a_model(made: Any, trained: Any, tmp_path: Path) -> None:
    assert {"guided", "unguided", "apart", "tempo"} == set(made.cost(trained))
    for artifact in [*made.sample(trained, tmp_path, 0), *made.pictures(trained, tmp_path)]:
        assert artifact.path.stat().st_size > 100
    assert "it begins" in (tmp_path / "continuations.txt").read_text()
    assert made.describe()["unit of time"] == "minutes"


@pytest.mark.usefixtures("own_cache")
def test_the_text_layout_of_proactive(tmp_path: Path) -> None:
    files = {}
    for side, count in (("train", 12), ("test", 4)):
        rows = range(count)
        files[f"{side}_ev.txt"] = "".join(f"{1 + i % 2} 3 2\n" for i in rows)
        files[f"{side}_ti.txt"] = "".join(f"0.0 {1.5 + i} {4.0 + 2 * i}\n" for i in rows)
        files[f"{side}_go.txt"] = "".join(f"{1 + i % 2}\n" for i in rows)
    task = tasks.get("activity", dataset="proactive", path=str(put(tmp_path, files)), beginning=1)
    assert len(task.side("test")) == 4 and len(task.side("train")) + len(task.side("validation")) == 12
    assert task.side("test").goals.tolist() == [0, 1, 0, 1] and task.time_unit == "units of the file"
    assert np.isinf(task.side("test").sequences.end).all()  # the last action ends it
    model = task.model("learned")
    loss = task.loss(model, task.batch(0, 0, 4))
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    for length in task.lengths:
        found = task.evaluate(model, "test", length)
        assert math.isfinite(found.loss) and found.count == 4
    assert task.baselines("test", 100)["Naive Bayes on marks"]["goal"] == 1.0


def test_bad_input_is_refused(made: Any) -> None:
    for options, said in (
        ({"dataset": "storms"}, "hospital"),
        ({"dataset": "proactive"}, "path"),
        ({"silence": 0}, "hours"),
        ({"shares": [0.5, 0.5]}, "three"),
        ({"least": 80}, "least"),
        ({"fold": -1}, "fold"),
    ):
        with pytest.raises(ValueError, match=said):
            tasks.get("activity", **options)
    for options, said in (({"gamma": 0}, "gamma"), ({"margin": -1}, "margin"), ({"components": 0}, "components")):
        with pytest.raises(ValueError, match=said):
            made.model("nope", **options)
    with pytest.raises(ValueError, match="10, 25, 50, 100"):
        made.evaluate(made.model("nope"), "test", 30)
    with pytest.raises(ValueError, match="unknown split"):
        made.side("all")
    unlabelled = contacts()
    with pytest.raises(ValueError, match="no labels"):
        task_of(Events(**{**vars(unlabelled), "labels": None}))
    with pytest.raises(ValueError, match="at least one event"):
        write(made.model("nope"), torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0), torch.Generator())
