"""The clock of the data: what its ticks are, and that no model can score by knowing where they stand."""

from __future__ import annotations

import numpy as np
import pytest

from relpos.tasks.events import Sequences, anchors, clock
from relpos.tasks.events.processes import PeriodicPoisson, Poisson
from relpos.tasks.events.processes.poisson import _bins


def ticking(tick: float, unit: str, phase: float = 0.0, count: int = 400, rough: float = 0.0) -> Sequences:
    rng = np.random.default_rng(1)
    times = phase + tick * np.sort(rng.integers(0, 3000, count)).astype(float)
    loose = rng.random(count) < rough
    times[loose] += tick * rng.random(int(loose.sum()))
    return Sequences.of([np.sort(times)], window=(0.0, 4000 * tick), unit=unit)


@pytest.mark.parametrize(
    ("tick", "unit", "phase", "named"),
    [
        (1.0, "days", 0.0, "1 day"),
        (24.0, "hours", 0.0, "1 day"),
        (24.0, "hours", 5.0, "1 day"),  # midnight in another time zone
        (6.0, "hours", 0.0, "6 hours"),
        (20.0, "seconds", 0.0, "20 seconds"),
        (1 / 3600, "hours", 0.0, "1 second"),
        (5 / 60, "hours", 0.25, "5 minutes"),
        (1.0, "", 0.0, "1 of the data's unit"),
        (0.7, "ages", 0.0, "0.7 of the data's unit"),  # no usual tick: the smallest gap
    ],
)
def test_a_clock_is_told_by_its_ticks(tick: float, unit: str, phase: float, named: str) -> None:
    events = ticking(tick, unit, phase)
    found = clock.resolution(events)
    assert found == pytest.approx(tick, rel=1e-9) and clock.named(found, unit) == named


def test_nine_tenths_of_the_times_decide() -> None:
    """The smallest gap alone, which is tiny here, would say that there is no clock."""
    assert clock.resolution(ticking(1.0, "days", rough=0.05)) == 1.0
    assert clock.resolution(ticking(1.0, "days", rough=0.3)) == 0.0


def test_times_without_ticks_and_few_times_have_no_clock() -> None:
    rng = np.random.default_rng(0)
    for unit in ("", "days", "seconds"):
        times = np.sort(rng.uniform(0, 500, 300))
        assert clock.resolution(Sequences.of([times], window=(0, 500), unit=unit)) == 0.0
    assert clock.resolution(Sequences.of([[1.0, 2.0, 5.0]], unit="days")) == 0.0
    assert clock.resolution(Sequences.of([np.full(20, 3.0)], window=(0, 9), unit="days")) > 0  # and no error


def test_parts_of_a_period_hold_whole_ticks() -> None:
    assert clock.parts(7.0, 168, 0.0) == 168
    assert clock.parts(7.0, 168, 1.0) == 7
    assert clock.parts(168.0, 168, 6.0) == 28
    assert clock.parts(168.0, 168, 0.5) == 168
    assert clock.parts(168.0, 100, 1.0) == 84  # 100 would hold one tick or two
    assert clock.parts(168.0, 168, 1 / 3600) == 168
    assert clock.parts(7.3, 168, 1.0) == 1
    assert clock.parts(0.5, 168, 1.0) == 1


def test_jitter_stays_within_the_tick_and_keeps_the_order_of_ties() -> None:
    events = Sequences.of(
        [[0.0, 1.0, 1.0, 1.0, 4.0], [2.0]], marks=[[0, 1, 2, 3, 4], [5]], window=(0.0, 5.0), unit="days"
    )
    moved = anchors.untied(events, "jitter", 1.0)
    assert np.floor(moved.times).tolist() == events.times.tolist() and bool((moved.times != events.times).all())
    assert moved.kinds.tolist() == events.kinds.tolist() and bool((moved.gaps()[1:5] > 0).all())
    assert moved.end.tolist() == [5.0, 5.0]  # the window held the last tick as it was
    tight = Sequences.of([[0.0, 1.0, 4.0]], window=(0.0, 4.0))
    assert anchors.untied(tight, "jitter", 1.0).end.tolist() == [5.0]
    with pytest.raises(ValueError, match="no ticks to lay events out in"):
        anchors.untied(events, "jitter", 0.0)
    with pytest.raises(ValueError, match="ties is one of spread, jitter"):
        anchors.untied(events, "apart")


def test_jitter_where_ticks_show_in_the_gaps_only() -> None:
    days = ticking(1.0, "days")
    assert clock.policy(days, None, 1.0) == "jitter" and clock.policy(days, "first", 1.0) == "first"
    assert clock.policy(days, None, 1e-4) == "spread" and clock.policy(days, None, 0.0) == "spread"


def test_knowing_the_clock_is_worth_nothing_once_events_are_laid_out() -> None:
    """Events of a clock of days at random: rates by the hour win log 24 where events stand at midnight."""
    raw = ticking(1.0, "days")
    gains = []
    for events in (anchors.untied(raw), anchors.untied(raw, "jitter", 1.0)):
        hourly, flat = PeriodicPoisson.fit(events, 7.0, 168), Poisson.fit(events)
        gains.append(hourly.nats(events) - flat.nats(events))
    assert gains[0] > 2.5 and gains[1] < 0.3


def test_a_time_on_the_edge_of_a_part_is_in_the_part_that_it_begins() -> None:
    """547 / 7 is 78.142857, and what is left of it times 7 is 0.99999999999."""
    days = np.arange(0.0, 5000.0)
    assert np.array_equal(_bins(days, 7.0, 7, 0.0), days.astype(int) % 7)
    hours = np.arange(0.0, 24 * 800.0)
    assert np.array_equal(_bins(hours / 24, 7.0, 168, 0.0), hours.astype(int) % 168)
    assert np.array_equal(_bins(hours / 24 + 0.3, 7.0, 168, 0.3), hours.astype(int) % 168)
    assert _bins(np.array([-1.0, 6.999]), 7.0, 7, 0.0).tolist() == [6, 6]
