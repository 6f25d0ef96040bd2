"""MIDI files to songs and back: the round trip, files of every make, and broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relpos.tasks.music import midifile
from relpos.tasks.music.bars import bars_and_beats
from relpos.tasks.music.song import Song
from tests.tasks.music import smf


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def song(notes: list[tuple[int, ...]], **fields: object) -> Song:
    array = np.array(notes, dtype=np.int64).reshape(-1, 5)
    ticks = int((array[:, 0] + array[:, 1]).max(initial=0))
    given = {"ticks": ticks, "ticks_per_quarter": 4, "tracks": ("a",), "programs": (0,)} | fields
    return Song(name="made", notes=array, **given)  # type: ignore[arg-type]


# --- the round trip ---------------------------------------------------------------------------------------------------

NOTES = st.lists(
    st.tuples(
        st.integers(0, 90), st.integers(1, 20), st.integers(0, 127), st.integers(0, 2), st.integers(1, 127)
    ),
    max_size=40,
)  # fmt: skip


@given(
    NOTES,
    st.sampled_from([1, 3, 4, 12, 16, 480, 960]),
    st.lists(st.tuples(st.integers(1, 99), st.integers(40, 3000)), max_size=3, unique_by=lambda t: t[0]),
    st.lists(
        st.tuples(st.integers(1, 99), st.integers(1, 13), st.sampled_from([2, 4, 8, 16])),
        max_size=3,
        unique_by=lambda t: t[0],
    ),
)
def test_a_song_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    notes: list[tuple[int, ...]],
    resolution: int,
    tempos: list[tuple[int, int]],
    meters: list[tuple[int, int, int]],
) -> None:
    folder = tmp_path_factory.getbasetemp()
    every = [(0, 1, 60, track, 64) for track in range(3)]  # a track without notes would not come back
    array = midifile.tidy(np.array(notes + every, dtype=np.int64))
    written = song(
        array.tolist(),
        ticks_per_quarter=resolution,
        tracks=("Melodie é", "", "Drums"),
        programs=(5, 52, 0),
        drums=(2,),
        tempos=((0, 97.3), *sorted((tick, tempo / 10) for tick, tempo in tempos)),
        meters=((0, 3, 4), *sorted(meters)),
    )
    midifile.write(folder / "trip.mid", written)
    found = midifile.read(folder / "trip.mid", resolution)
    np.testing.assert_array_equal(found.notes, written.notes)
    for field in ("ticks", "tracks", "programs", "drums", "tempos", "meters"):
        assert getattr(found, field) == getattr(written, field), field


def test_notes_are_counted_at_every_resolution_of_the_file(tmp_path: Path) -> None:
    for division in (24, 96, 480, 960):
        half = division // 2
        path = saved(
            tmp_path / "a.mid",
            smf.file(1, division, smf.track(*[(0, smf.on(0, 60)), (half, smf.off(0, 60))] * 8)),
        )
        found = midifile.read(path)
        np.testing.assert_array_equal(found.notes[:, 0], np.arange(0, 16, 2))
        assert (found.notes[:, 1] == 2).all() and found.ticks == 16


def test_bars_follow_the_meter_with_a_pick_up_and_three_four(tmp_path: Path) -> None:
    head = smf.track((0, smf.meter(1, 2)), (480, smf.meter(3, 2)), (3 * 480, smf.meter(6, 3)))
    notes = smf.track((0, smf.on(0, 60)), (8 * 480, smf.off(0, 60)))
    found = midifile.read(saved(tmp_path / "a.mid", smf.file(1, 480, head, notes)))
    assert found.meters == ((0, 1, 4), (4, 3, 4), (16, 6, 8))
    np.testing.assert_array_equal(found.levels["bar"].values, np.repeat([0, 1, 2, 3], [4, 12, 12, 4]))
    np.testing.assert_array_equal(found.levels["beat"].values, [*range(4), *range(12), *range(12), *range(4)])
    assert found.levels["bar"].source == "time signatures of the file"


def test_bars_that_are_no_whole_ticks_begin_in_the_first_tick_within() -> None:
    bar, beat = bars_and_beats(6, 4, [(0, 3, 32)])  # a bar is a tick and a half
    np.testing.assert_array_equal(bar, [0, 0, 1, 2, 2, 3])
    np.testing.assert_array_equal(beat, [0, 1, 0, 0, 1, 0])
    with pytest.raises(ValueError, match="tick 0"):
        bars_and_beats(6, 4, [(2, 4, 4)])


# --- files of every make ----------------------------------------------------------------------------------------------


def test_format_0_is_split_into_a_track_a_channel(tmp_path: Path) -> None:
    one = smf.track(
        (0, smf.name("All")),
        (0, smf.program(1, 33)),
        (0, smf.on(0, 60)),
        (0, smf.on(1, 40)),
        (0, smf.on(9, 36)),
        (480, smf.off(0, 60)),
        (0, smf.off(1, 40)),
        (0, smf.off(9, 36)),
    )
    found = midifile.read(saved(tmp_path / "a.mid", smf.file(0, 480, one)))
    assert found.tracks == ("All",) * 3
    of = {found.notes[i, 2]: int(found.notes[i, 3]) for i in range(3)}
    assert found.programs[of[40]] == 33 and found.programs[of[60]] == 0 and found.drums == (of[36],)


def test_missing_meter_and_tempo_are_assumed_and_said(tmp_path: Path) -> None:
    found = midifile.read(saved(tmp_path / "tune.mid", smf.file(1, 480, smf.NOTE)))
    assert (found.name, found.tempos, found.meters) == ("tune", ((0, 120.0),), ((0, 4, 4),))
    assert "4/4 assumed" in found.levels["bar"].source and "4/4 assumed" in found.levels["beat"].source


def test_overlaps_zero_lengths_and_repetitions_within_a_tick(tmp_path: Path) -> None:
    notes = smf.track(
        (0, smf.on(0, 60)),
        (240, smf.on(0, 60, 70)),  # the same pitch again while it sounds
        (480, smf.off(0, 60)),
        (480, smf.off(0, 60)),
        (0, smf.on(0, 62)),
        (0, smf.off(0, 62)),  # no length
        (240, smf.on(0, 64, 50)),
        (10, smf.off(0, 64)),
        (5, smf.on(0, 64, 90)),  # again within the tick: one of them is kept, the louder
        (10, smf.off(0, 64)),
    )
    found = midifile.read(saved(tmp_path / "a.mid", smf.file(1, 480, notes)))
    np.testing.assert_array_equal(
        found.notes, [[0, 2, 60, 0, 80], [2, 8, 60, 0, 70], [10, 1, 62, 0, 80], [12, 1, 64, 0, 90]]
    )
    assert found.roll().sum() == 12 and found.onsets().sum() == 4


def test_onsets_and_ends_go_to_the_nearest_tick(tmp_path: Path) -> None:
    times = smf.track(
        (59, smf.on(0, 60)), (120, smf.off(0, 60)), (1, smf.on(0, 61)), (119, smf.off(0, 61)), (2, smf.on(0, 62)),
        (1, smf.off(0, 62)),
    )  # fmt: skip
    found = midifile.read(saved(tmp_path / "a.mid", smf.file(1, 480, times)))
    # a tick is 120: 59 to 179, 180 to 299, and 301 to 302, which is no length and so one tick
    np.testing.assert_array_equal(found.notes[:, :3], [[0, 1, 60], [2, 1, 61], [3, 1, 62]])


def test_sustain_pedal_does_not_lengthen_notes(tmp_path: Path) -> None:
    held = smf.track(
        (0, smf.control(0, 64, 127)), (0, smf.on(0, 60)), (240, smf.off(0, 60)), (960, smf.control(0, 64, 0))
    )  # fmt: skip
    found = midifile.read(saved(tmp_path / "a.mid", smf.file(1, 480, held)))
    np.testing.assert_array_equal(found.notes, [[0, 2, 60, 0, 80]])


# --- broken files -----------------------------------------------------------------------------------------------------

BROKEN = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is no music at all", "does not begin"),
    "cut in the header": (smf.file(1, 480)[:10], "does not begin"),
    "cut in a track": (smf.file(1, 480, smf.NOTE, smf.NOTE)[:-6], r"track 2 of 2 at byte \d+ announces \d+ bytes"),
    "cut between tracks": (smf.file(1, 480, smf.NOTE, announced=3), "3 tracks are announced, 1 are there"),
    "short header": (b"MThd" + bytes(20), "0 bytes long"),
    "no tracks": (smf.file(1, 480), "no notes"),
    "damaged event": (smf.file(1, 480, smf.NOTE.replace(b"\x90\x3c", b"\x90\xfc")), "damaged"),
    "format 2": (smf.file(2, 480, smf.NOTE), "format 2"),
    "SMPTE": (smf.file(1, 0xE728, smf.NOTE), "SMPTE"),
    "no resolution": (smf.file(1, 0, smf.NOTE), "0 ticks a quarter"),
    "no notes": (smf.file(1, 480, smf.track((0, smf.tempo(500_000)))), "no notes"),
    "never ended": (smf.file(1, 480, smf.track((0, smf.on(0, 60)))), "no notes"),
    "tempo 0": (smf.file(1, 480, smf.track((960, smf.tempo(0))), smf.NOTE), r"tick 960 \(quarter 2\) is 0 micro"),
    "absurd tempo": (smf.file(1, 480, smf.track((0, smf.tempo(3))), smf.NOTE), "2000 quarters a minute"),
    "meter 0": (smf.file(1, 480, smf.track((480, smf.meter(0, 2))), smf.NOTE), r"quarter 1\) is 0/4"),
    "endless": (smf.file(1, 1, smf.track((2**27, smf.on(0, 60)), (1, smf.off(0, 60)))), "cut it"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_is_refused_with_its_name_and_the_place(case: str, tmp_path: Path) -> None:
    data, message = BROKEN[case]
    with pytest.raises(ValueError, match=message) as caught:
        midifile.read(saved(tmp_path / "broken.mid", data))
    assert "broken" in str(caught.value)


def test_every_way_of_cutting_a_file_off_is_noticed(tmp_path: Path) -> None:
    whole = smf.file(1, 480, smf.track((0, smf.tempo(500_000))), smf.NOTE)
    for size in range(len(whole)):
        with pytest.raises(ValueError, match=r"not a MIDI file|cut off"):
            midifile.read(saved(tmp_path / "a.mid", whole[:size]))


@given(st.binary(max_size=60), st.integers(0, 40))
def test_damage_never_ends_in_another_error(tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.mid"
    whole = smf.file(1, 480, smf.track((0, smf.tempo(500_000))), smf.NOTE)
    path.write_bytes(whole[: 14 + at] + junk + whole[14 + at + len(junk) :])
    try:
        assert len(midifile.read(path).notes)
    except ValueError as error:
        assert "junk" in str(error)


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tempos": ((0, 0.0),)}, "tempo of 0.0 at tick 0"),
        ({"tempos": ((0, 120.0), (8, float("nan")))}, "tempo of nan at tick 8"),
        ({"meters": ((0, 4, 3),)}, "meter 4/3"),
        ({"meters": ((0, 300, 4),)}, "meter 300/4"),
        ({"ticks_per_quarter": 40_000}, "32767"),
    ],
)
def test_what_a_file_cannot_hold_leaves_no_file(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        midifile.write(tmp_path / "out.mid", song([(0, 4, 60, 0, 80)], **fields))
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "out.mid"
    midifile.write(path, song([(0, 4, 60, 0, 80)]))
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError("no space")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        midifile.write(path, song([(0, 4, 72, 0, 80)]))
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["out.mid"]


# --- going on with a file ---------------------------------------------------------------------------------------------


def events(track: object) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    notes = [(n.time, n.duration, n.pitch, n.velocity) for n in track.notes]  # type: ignore[attr-defined]
    return notes, [(c.time, c.number, c.value) for c in track.controls]  # type: ignore[attr-defined]


def test_append_keeps_every_event_of_the_file_and_adds_the_new_notes(tmp_path: Path) -> None:
    human = smf.track(
        (0, smf.name("Piano")),
        (3, smf.control(0, 64, 127)),
        (4, smf.on(0, 60, 77)),
        (471, smf.off(0, 60)),
        (9, smf.control(0, 64, 0)),
        (1, smf.on(0, 62, 33)),
        (900, smf.off(0, 62)),  # sounds until tick 1388, beyond the start of what is added
    )
    path = saved(tmp_path / "in.mid", smf.file(1, 480, smf.track((0, smf.tempo(600_000)), (0, smf.meter(3, 2))), human))
    score = midifile.read_exact(path)
    new = song(
        [(0, 2, 64, 0, 90), (0, 4, 62, 0, 91), (0, 1, 62, 0, 92), (4, 4, 40, 1, 93)],
        tracks=("Piano", "Bass"),
        programs=(0, 33),
        tempos=((0, 100.0), (4, 90.0)),
        meters=((0, 3, 4),),
    )
    before = events(score.tracks[0])
    midifile.write(tmp_path / "out.mid", midifile.append(score, new, 2))
    assert events(score.tracks[0]) == before, "the score that was given"
    found = midifile.read_exact(tmp_path / "out.mid")
    notes, controls = events(found.tracks[0])
    assert controls == before[1] and set(before[0]) <= set(notes)
    # the D that still sounds delays the D that is added, and leaves nothing of the one of a sixteenth
    assert sorted(set(notes) - set(before[0])) == [(960, 240, 64, 90), (1388, 52, 62, 91)]
    assert [t.name for t in found.tracks] == ["Piano", "Bass"] and events(found.tracks[1])[0] == [(1440, 480, 40, 93)]
    assert [(t.time, t.mspq) for t in found.tempos] == [(0, 600_000), (1440, round(6e7 / 90))]
    assert [(m.time, m.numerator) for m in found.time_signatures] == [(0, 3)]


def test_append_moves_a_new_meter_to_where_it_belongs(tmp_path: Path) -> None:
    score = midifile.read_exact(saved(tmp_path / "a.mid", smf.file(1, 480, smf.NOTE)))
    new = song([(0, 4, 50, 0, 80)], tracks=("b",), meters=((0, 4, 4), (16, 3, 4)))
    result = midifile.append(score, new, 4)
    assert [(m.time, m.numerator, m.denominator) for m in result.time_signatures] == [(8 * 480, 3, 4)]


def test_append_matches_tracks_of_one_name_in_their_order(tmp_path: Path) -> None:
    both = smf.file(1, 480, smf.NOTE, smf.NOTE)
    score = midifile.read_exact(saved(tmp_path / "a.mid", both))
    new = song([(0, 4, 50, 0, 80), (0, 4, 70, 1, 80)], tracks=("", ""), programs=(0, 0))
    result = midifile.append(score, new, 1)
    assert [[n.pitch for n in track.notes] for track in result.tracks] == [[60, 50], [60, 70]]
    with pytest.raises(ValueError, match="0 quarters or later"):
        midifile.append(score, new, -1)
