"""Sequences: what is refused and how it is said, ties, windows, views and splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relpos.positions import Index, Labels, Places, Profiles, Times
from relpos.tasks.events import Sequences
from relpos.tasks.events.splits import by_time, leave_last_out

UNIX = 1_600_000_000
NANO = np.array([1_600_000_000_000_000_001, 1_600_000_000_000_000_004], dtype=np.int64)


def three() -> Sequences:
    return Sequences.of(
        [[1.0, 2.0, 4.0], [], [3.0]], marks=[[0, 1, 0], [], [2]], window=(0.5, 5.0), ids=["a", "b", "c"],
        places=[[[10, 20], [11, 21], [12, 22]], np.zeros((0, 2)), [[-5, 100]]],
        profiles=[np.eye(3), np.zeros((0, 3)), [[1, 1, 1]]],
    )  # fmt: skip


def of(times: Any, **more: Any) -> Sequences:
    return Sequences.of(times, **more)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: of([[1.0], [2.0, 1.0]]), "sequence 1, event 1: the time falls from 2.0 to 1.0"),
        (lambda: of([[1.0, np.nan]], ids=["x"]), r"sequence 0 \(x\), event 1: the time is nan"),
        (lambda: of([[1.0], [np.inf]]), "sequence 1, event 0: the time is inf"),
        (lambda: of([[1.0, 1.0]], ties="error"), "sequence 0, event 1: the same time 1.0"),
        (lambda: of([[1.0]], ties="drop"), "ties is one of keep, error, first, spread"),
        (lambda: of([[1.0], []]), "sequence 1 has no event, so that its window is unknown"),
        (lambda: of([[1.0, 9.0]], window=(0, 5)), "event 1: the time 9 lies outside of the window 0 to 5"),
        (lambda: of([[1.0]], window=(5, 0)), "sequence 0: the window 5.0 to 0.0 is not one"),
        (lambda: of([[1.0]], window=([0, 0], [1, 1])), "two numbers or arrays of 1 entries"),
        (lambda: of([[1.0, 2.0]], marks=[[0, -1]]), "event 1: mark -1 is unknown"),
        (lambda: of([[1.0]], marks=[[3]], mark_count=3), "mark 3 is unknown; marks are 0..2"),
        (lambda: of([[1.0]], marks=[[0, 1]]), "sequence 0 has 1 times and 2 marks"),
        (lambda: of([[1.0]], marks=[[0], [1]]), "marks are of 2 sequences, times of 1"),
        (lambda: of([[1.0]], places=[[[95.0, 10.0]]]), r"the place \(95, 10\) is not .*swapped"),
        (lambda: of([[1.0]], places=[[[50.0, 400.0]]]), r"the place \(50, 400\)"),
        (lambda: of([[1.0, 2.0]], places=[[[50, 4], [np.nan, 4]]]), "event 1: the place is"),
        (lambda: of([[1.0]], profiles=[[[np.nan, 0]]]), "event 0: the profile is"),
        (
            lambda: of([np.array([UNIX], np.float32)]),
            "float32 cannot hold times up to .* are 128 apart",
        ),
        (lambda: of([[UNIX], [UNIX * 1000.0]]), "sequence 1, event 0: .* looks like milliseconds since 1970"),
        (lambda: of([np.array(["2020-01-01"], "datetime64[s]")]), "dates need a unit"),
        (lambda: of([np.array(["NaT"], "datetime64[s]")], unit="hours"), "event 0: the time is missing"),
        (lambda: of([[1.0]], ids=["a", "b"]), "2 ids for 1 sequences"),
        (lambda: Sequences.from_flat([1.0], [0, 2]), "there are 1 times, and offsets end at 2"),
        (lambda: three().require_marks(2), r"sequence 2 \(c\), event 0: mark 2 is unknown to a model of 2 marks"),
        (lambda: three().to_unit("days"), "no conversion from ''"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: of(np.array([1.0, 2.0])), r"for a single one give \[times\]"),
        (lambda: of([["2020-01-01"]]), "numbers or datetime64"),
        (lambda: of([[1.0]], marks=[["a"]]), "number the names"),
        (lambda: of([np.array([1j])]), "real numbers"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_empty_and_single_sequences_are_sequences() -> None:
    assert len(of([])) == 0 and len(of([]).padded()["time"]) == 0
    one = of([[2.0]])
    assert (one.start[0], one.end[0], one.windowed) == (2.0, 2.0, False)
    assert of([[], []], window=(0, 1)).padded()["mask"].shape == (2, 0)
    bare = of([[], []], window=(0, 1), places=[[], []], profiles=[np.zeros((0, 3)), []], marks=[[], []], mark_count=2)
    assert bare.places.shape == (0, 2) and bare.profiles.shape == (0, 3) and bare.mark_count == 2


def test_sorting_is_stable_and_ties_follow_their_policy() -> None:
    times, marks = [[3.0, 1.0, 3.0, 1.0]], [[0, 1, 2, 3]]
    kept = of(times, marks=marks, sort=True)
    assert kept.times.tolist() == [1, 1, 3, 3] and kept.marks.tolist() == [1, 3, 0, 2]
    first = of(times, marks=marks, sort=True, ties="first")
    assert first.times.tolist() == [1, 3] and first.marks.tolist() == [1, 0]
    spread = of([[0.0, 0.0, 0.0, 1.0, 3.0, 3.0], [5.0]], ties="spread")
    np.testing.assert_allclose(spread.times, [0, 1 / 3, 2 / 3, 1, 3, 3.5, 5])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=30), st.randoms())
def test_a_table_gives_the_same_sequences_in_any_order_where_times_differ(rows: Any, random: Any) -> None:
    rows = list({row: None for row in rows})
    shuffled = rows[:]
    random.shuffle(shuffled)
    sides = []
    for each in (rows, shuffled):
        user, time = np.array(each, dtype=np.int64).reshape(-1, 2).T
        sides.append(Sequences.from_columns(user, time.astype(float), marks=time, window=(0, 9)))
    assert np.array_equal(sides[0].times, sides[1].times) and sides[0].ids == sides[1].ids
    assert np.array_equal(sides[0].times, sides[0].kinds)
    for row, one in enumerate(sides[0]):
        expected = sorted(time for user, time in rows if str(user) == sides[0].ids[row])
        assert one.times.tolist() == expected


def test_large_integers_lose_their_origin_before_they_are_rounded() -> None:
    nano = of([NANO], unit="nanoseconds")
    assert nano.times.tolist() == [0.0, 3.0] and nano.origin == float(NANO[0])
    assert nano.gaps()[1] == 3.0
    seconds = of([np.array([UNIX, UNIX + 1])])
    assert seconds.times[1] - seconds.times[0] == 1.0 and seconds.origin == 0
    dates = of([np.array(["1970-01-02T12", "1970-01-03"], dtype="datetime64[h]")], unit="days")
    assert dates.times.tolist() == [1.5, 2.0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_positions_are_those_of_the_library(side: str) -> None:
    view = three().padded(side)
    kinds = {"index": Index, "time": Times, "place": Places, "profile": Profiles, "mark": Labels}
    assert {name: type(view[name]) for name in kinds} == kinds
    mask = view["mask"]
    assert mask.sum(-1).tolist() == [3, 0, 1]
    assert mask[2].tolist() == ([True, False, False] if side == "right" else [False, False, True])
    assert view["time"].values[0].tolist() == [0.5, 1.5, 3.5]  # since the start of the window
    assert view["time"].values[2].tolist() == [2.5] * 3
    assert view["mark"].values[mask].tolist() == [0, 1, 0, 2]
    assert view["place"].values[mask].tolist() == three().places.tolist()
    assert view["index"].values[mask].tolist() == [0, 1, 2, 0]


def test_packed_positions_keep_their_lags() -> None:
    events = three()
    view = events.packed()
    assert view["segments"].tolist() == [0, 0, 0, 2] and view["index"].values.tolist() == [0, 1, 2, 0]
    lags = view["time"].lag(view["time"])
    assert lags[0, 2].item() == pytest.approx(3.0)
    assert view["mark"].values.tolist() == events.marks.tolist()


def test_views_go_into_attention_and_pads_change_nothing() -> None:
    import relpos as rp

    events = of([[1.0, 2.0, 4.0, 4.5], [3.0, 7.0]], window=(0, 8))
    encoding = rp.encoding("time_rope", dim=8)
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(1, 2, 6, 8, generator=generator)
    view = events.packed()
    whole = rp.attention(
        flat, flat, flat, encoding, q_pos=view["time"], k_pos=view["time"], segments=view["segments"][None]
    )
    for side in ("right", "left"):
        pads = events.padded(side)
        x = torch.full((2, 2, 4, 8), 7.0)
        x.transpose(1, 2)[pads["mask"]] = flat[0].transpose(0, 1)
        out = rp.attention(x, x, x, encoding, q_pos=pads["time"], k_pos=pads["time"], key_mask=pads["mask"])
        found = out.transpose(1, 2)[pads["mask"]].transpose(0, 1)
        torch.testing.assert_close(found, whole[0], atol=1e-5, rtol=1e-5)


def test_leave_last_out_goes_by_order_and_scores_one_event_each() -> None:
    events = of([[1, 2, 2, 2], [5.0], [1.0, 3.0, 6.0]], marks=[[0, 1, 2, 3], [4], [5, 6, 7]], window=(0, 9))
    parts = leave_last_out(events)
    assert parts["train"].sequences.marks.tolist() == [0, 1, 4, 5]
    assert parts["train"].sequences.end.tolist() == [2, 9, 1]
    for side, targets in (("validation", [2, 6]), ("test", [3, 7])):
        part = parts[side]
        assert part.sequences.marks[part.scored].tolist() == targets
    assert parts["test"].sequences.end.tolist() == [9, 9]
    with pytest.raises(ValueError, match="at least 3"):
        leave_last_out(events, least=2)


def test_a_split_by_time_scores_every_event_once() -> None:
    events = of([np.arange(1.0, 11), [0.0, 10.0]], window=(0, 10))
    parts = by_time(events, {"train": 0.6, "validation": 0.8, "test": 1.0})
    assert sum(int(part.scored.sum()) for part in parts.values()) == 12
    assert parts["validation"].sequences.times.max() == 8 and parts["validation"].sequences.end.tolist() == [8, 8]
    assert parts["test"].sequences.times[parts["test"].scored].tolist() == [9, 10, 10]
    with pytest.raises(ValueError, match="shares rise"):
        by_time(events, {"train": 0.8, "test": 0.7})


def test_selecting_cutting_and_scaling() -> None:
    events = three()
    again = events.select([2, 0])
    assert again.ids == ("c", "a") and again.times.tolist() == [3, 1, 2, 4] and again.places[0].tolist() == [-5, 100]
    assert [one.ids for one in events] == [("a",), ("b",), ("c",)]
    assert events.select(np.array([True, False, True])).ids == ("a", "c")
    assert events.until(2.0).times.tolist() == [1, 2] and events.until(2.0).end.tolist() == [2, 2, 2]
    assert events.within(2.0, 4.0).times.tolist() == [4, 3] and events.within(2.0, 4.0).start.tolist() == [2, 2, 2]
    hours = of([[1800.0]], window=(0, 3600), unit="seconds").to_unit("hours")
    assert (hours.times[0], hours.end[0], hours.unit) == (0.5, 1.0, "hours")
    assert events.shifted(5).start[0] == 5.5


@pytest.mark.slow(2)
def test_a_million_events_are_read_and_checked_at_once() -> None:
    rng = np.random.default_rng(0)
    user, time = rng.integers(20_000, size=10**6), rng.uniform(0, 1e6, 10**6)
    places = np.c_[rng.uniform(-90, 90, 10**6), rng.uniform(-180, 180, 10**6)]
    events = Sequences.from_columns(user, time, marks=rng.integers(50, size=10**6), places=places, window=(0, 1e6))
    assert len(events.times) == 10**6 and len(events) == 20_000
