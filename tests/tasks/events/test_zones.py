"""Times with a zone, and the two nights a year in which the clock on the wall is turned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from relpos.tasks import data
from relpos.tasks.data.readers.event_packages import utc
from relpos.tasks.events import Sequences
from tests.tasks.data.made import put

pytestmark = pytest.mark.usefixtures("own_cache")

SUMMER, WINTER = timezone(timedelta(hours=2)), timezone(timedelta(hours=1))  # of Berlin


def hours(times: list[datetime]) -> np.ndarray:
    return Sequences.of([times], unit="hours").times


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    """On the wall it is 2:30, 2:10 and 3:00; an hour without its zone would fall, and one would be lost."""
    night = [(2, 30, SUMMER), (2, 10, WINTER), (3, 0, WINTER)]
    found = hours([datetime(2024, 10, 27, hour, minute, tzinfo=zone) for hour, minute, zone in night])
    np.testing.assert_allclose(np.diff(found), [40 / 60, 50 / 60])
    with pytest.raises(ValueError, match="event 1: the time falls"):
        hours([datetime(2024, 10, 27, hour, minute) for hour, minute, _ in night])


def test_the_hour_that_never_comes_is_no_gap() -> None:
    found = hours([datetime(2024, 3, 31, 1, 59, tzinfo=WINTER), datetime(2024, 3, 31, 3, 0, tzinfo=SUMMER)])
    assert np.diff(found) == pytest.approx(1 / 60)


def test_a_zone_moves_a_time_to_utc_and_none_leaves_it() -> None:
    moment = datetime(2024, 7, 1, 12, tzinfo=UTC)
    for zone in (UTC, SUMMER, timezone(timedelta(hours=-9, minutes=-30))):
        assert hours([moment.astimezone(zone)]) == hours([datetime(2024, 7, 1, 12)])
    assert hours([datetime(2024, 7, 1, 12)]) == Sequences.of([np.array(["2024-07-01T12"], "M8[s]")], unit="hours").times
    early = datetime(1969, 12, 31, 23, 59, 59, 999_999)
    assert Sequences.of([[early]], unit="seconds").times[0] == pytest.approx(-1e-6, rel=1e-6)


def test_pandas_times_keep_their_nanoseconds() -> None:
    class Stamp(datetime):  # as pandas.Timestamp is one
        nanosecond = 321

    found = Sequences.of([[Stamp(1970, 1, 1, 0, 0, 0, 7, tzinfo=WINTER)]], unit="seconds").times
    assert found[0] == pytest.approx(-3600 + 7.321e-6, abs=1e-12)


def test_some_with_a_zone_and_some_without_are_refused() -> None:
    mixed = [datetime(2024, 7, 1, tzinfo=UTC), datetime(2024, 7, 2)]
    with pytest.raises(ValueError, match="sequence 0, event 1: the time 2024-07-02 00:00:00 has no zone"):
        hours(mixed)
    with pytest.raises(ValueError, match="dates need a unit"):
        Sequences.of([[mixed[0]]])


def test_offsets_in_files_are_taken_off() -> None:
    same = ["2024-07-01T12:00:00Z", "2024-07-01T14:00:00+02:00", "2024-07-01T02:30:00-0930", "2024-07-01T12:00:00"]
    assert np.array_equal(utc(same), np.array(["2024-07-01T12:00:00"] * 4, "M8[s]"))
    assert np.array_equal(utc(["2024-07-01", "2024-07-02"]), np.array(["2024-07-01", "2024-07-02"], "M8[s]"))


def test_check_ins_of_the_hour_that_comes_twice_keep_their_order(tmp_path: Path) -> None:
    rows = ["7\t2010-10-31T02:10:00+01:00\t52.5\t13.4\t9", "7\t2010-10-31T02:30:00+02:00\t52.5\t13.4\t8"]
    read = data.load("gowalla", put(tmp_path, {"Gowalla_totalCheckins.txt": "\n".join(rows) + "\n"}))
    assert np.diff(read.sequences.times).tolist() == [2400.0]
    names = read.sequences.mark_names
    assert [names[mark] for mark in read.sequences.kinds] == ["8", "9"]


def test_foursquare_hours_follow_the_clock_on_the_wall_over_the_change(tmp_path: Path) -> None:
    """New York, 4 November 2012: 1:30 comes twice, an hour apart in time and at one hour of the day."""
    place = "v\tc\tBar\t40.7\t-74.0"
    rows = [
        f"1\t{place}\t-240\tSun Nov 04 05:30:00 +0000 2012",
        f"1\t{place}\t-300\tSun Nov 04 06:30:00 +0000 2012",
    ]
    read = data.load("foursquare", put(tmp_path, {"dataset_TSMC2014_NYC.txt": "\n".join(rows) + "\n"}))
    assert np.diff(read.sequences.times).tolist() == [3600.0]
    assert read.profiles.tolist() == [[1.5, 6.0], [1.5, 6.0]]
