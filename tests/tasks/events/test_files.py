"""Event sequences in every layout that users have, with files in exactly that layout; and what is refused."""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relpos.tasks import data
from relpos.tasks.data import pickles
from tests.tasks.data.made import put
from tests.tasks.events.reading import by_id

pytestmark = pytest.mark.usefixtures("own_cache")


# --- point-process libraries ------------------------------------------------------------------------------------------

EVENTS = [
    [{"time_since_start": 0.0, "time_since_last_event": 0.0, "type_event": 1},
     {"time_since_start": 1.5, "time_since_last_event": 1.5, "type_event": 0}],
    [{"time_since_start": 0.25, "time_since_last_event": 0.0, "type_event": 2}],
]  # fmt: skip
ROWS = [
    {"dim_process": 3, "seq_idx": 0, "seq_len": 2, "time_since_start": [0.0, 1.5], "time_since_last_event": [0.0, 1.5],
     "type_event": [1, 0]},
    {"dim_process": 3, "seq_idx": 1, "seq_len": 1, "time_since_start": [0.25], "time_since_last_event": [0.0],
     "type_event": [2]},
]  # fmt: skip


@pytest.mark.parametrize("form", ["pickle", "whole", "json", "lines"])
def test_easytpp_in_all_its_forms(form: str, tmp_path: Path) -> None:
    if form == "pickle":
        files = {f"{side}.pkl": pickle.dumps({"dim_process": 4, side: EVENTS}, 2) for side in ("train", "dev", "test")}
    elif form == "whole":  # of THP: every file has all keys, and the others are empty
        full = {"dim_process": 4, "devtest": [], "args": None, "train": [], "dev": [], "test": []}
        files = {f"{side}.pkl": pickle.dumps({**full, side: EVENTS}) for side in ("train", "dev", "test")}
    elif form == "json":
        files = {f"{side}.json": json.dumps(ROWS) for side in ("train", "validation", "test")}
    else:
        files = {f"{side}.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n" for side in ("train", "dev", "test")}
    read = data.load("easytpp", put(tmp_path, files))
    assert {side: rows.tolist() for side, rows in read.split.items()} == {
        "train": [0, 1],
        "validation": [2, 3],
        "test": [4, 5],
    }
    found = by_id(read)
    assert found["test/0"] == ([0.0, 1.5], [1, 0]) and found["validation/1"] == ([0.25], [2])
    assert read.sequences.mark_count == (4 if form in ("pickle", "whole") else 3)
    assert not read.sequences.windowed


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    put(tmp_path, {"train.pkl": pickle.dumps({"dim_process": 1, "train": Evil()})})
    with pytest.raises(ValueError, match=r"train.pkl is refused: it asks for pathlib"):
        data.load("easytpp", tmp_path)
    for content in (pickle.dumps(Evil()), b"\x80\x04cos\nsystem\n."):
        with pytest.raises(ValueError, match="is refused"):
            pickles.frame(content)
        put(tmp_path, {"x.pkl": content})
        with pytest.raises(ValueError, match="is refused"):
            pickles.saved(tmp_path / "x.pkl")
    assert not (tmp_path / "ran").exists()


def test_what_easytpp_lacks_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no file train\.pkl"):
        data.load("easytpp", tmp_path)
    for content, message in (
        (json.dumps([{"time_since_start": [1.0]}]), "sequence 0 lacks type_event"),
        ("{", "is no JSON"),
        ("[3]", "a int, not an object"),
        (json.dumps([{**ROWS[0], "time_since_start": [2.0, 1.5]}]), r"train/0\), event 1: the time falls"),
    ):
        put(tmp_path, {"train.json": content})
        with pytest.raises(ValueError, match=message):
            data.load("easytpp", tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_ifl_tpp_keeps_its_windows(zipped: bool, tmp_path: Path) -> None:
    held = {
        "sequences": [
            {"arrival_times": [0.5, 2.0], "marks": [1, 4], "t_start": 0.0, "t_end": 10.0},
            {"arrival_times": np.array([3.0]), "marks": np.array([0]), "t_start": 1.0, "t_end": 4.0},
        ],
        "num_marks": 5,
    }
    torch.save(held, tmp_path / "x.pkl", _use_new_zipfile_serialization=zipped)
    events = data.load("ifl-tpp", tmp_path / "x.pkl").sequences
    assert events.start.tolist() == [0, 1] and events.end.tolist() == [10, 4] and events.mark_count == 5
    assert events.times.tolist() == [0.5, 2, 3] and events.marks.tolist() == [1, 4, 0] and events.windowed
    held["sequences"][0]["t_end"] = 1.0
    torch.save(held, tmp_path / "x.pkl")
    with pytest.raises(ValueError, match="event 1: the time 2 lies outside of the window 0 to 1"):
        data.load("ifl-tpp", tmp_path / "x.pkl")


class _Parquet:
    """What is asked of `pyarrow.parquet`, which no other test needs: a file of JSON stands for one of parquet."""

    def __init__(self, path: Path) -> None:
        self.table = json.loads(path.read_text())

    @classmethod
    def read_table(cls, path: Path) -> _Parquet:
        return cls(path)

    def to_pydict(self) -> dict[str, Any]:
        return dict(self.table)


def test_hotpp_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", types.SimpleNamespace(parquet=_Parquet))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", _Parquet)
    table = {"id": [7, 8], "timestamps": [[0.0, 1.0], [2.0]], "labels": [[0, 1], [3]]}
    put(tmp_path, {"train.parquet": json.dumps(table), "val.parquet": json.dumps(table)})
    read = data.load("hotpp", tmp_path)
    assert read.sequences.marks.tolist() == [0, 1, 3] * 2 and read.times.tolist() == [0, 1, 2] * 2
    assert {side: rows.tolist() for side, rows in read.split.items()} == {"train": [0, 1], "validation": [2, 3]}
    for changes, message in (
        ({"labels": [[0, 0.5], [3]]}, "sequence 0: labels is not a list of numbers: 0.5"),
        ({"timestamps": [[0.0, 1.0], None]}, "sequence 1: timestamps"),
    ):
        put(tmp_path, {"train.parquet": json.dumps({**table, **changes})})
        with pytest.raises(ValueError, match=message):
            data.load("hotpp", tmp_path)
    put(tmp_path, {"train.parquet": json.dumps({"id": [7], "labels": [[0]]})})
    with pytest.raises(ValueError, match=r"no column timestamps; it has id, labels"):
        data.load("hotpp", tmp_path)


def test_hotpp_without_its_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        data.load("hotpp", put(tmp_path, {"train.parquet": b""}))


def test_seahorse_points_are_profiles(tmp_path: Path) -> None:
    line = json.dumps({"times": [0.5, 1.0], "locations": [[100.0, -2.0], [3.0, 4.0]]})
    read = data.load("seahorse", put(tmp_path, {"train.jsonl": line, "test.jsonl": f"{line}\n{line}\n"}))
    assert read.sequences.profiles.tolist() == [[100, -2], [3, 4]] * 3 and read.places is None
    assert read.profile_names == ("x", "y") and read.split["test"].tolist() == [1, 2]


# --- a line a sequence ------------------------------------------------------------------------------------------------


def test_proactive_actions_and_goals(tmp_path: Path) -> None:
    files = {}
    for side in ("train", "test"):
        files |= {
            f"{side}_ev.txt": "1 3 2\n2 2\n",
            f"{side}_ti.txt": "0.0 5.5 9.0\n0.0 1.0\n",
            f"{side}_go.txt": "2\n1\n",
        }
    read = data.load("proactive", put(tmp_path, files))
    assert by_id(read)["test/0"] == ([0, 5.5, 9], [0, 2, 1])
    assert read.labels.tolist() == [1, 0, 1, 0] and read.classes == ("goal 1", "goal 2")
    put(tmp_path, {"test_go.txt": "1\n"})
    with pytest.raises(ValueError, match="3 goals for 4 sequences"):
        data.load("proactive", tmp_path)
    put(tmp_path, {"test_go.txt": "1\n2\n", "test_ti.txt": "0.0 x 9\n0 1\n"})
    with pytest.raises(ValueError, match=r"test_ti.txt, line 1"):
        data.load("proactive", tmp_path)


def test_neuroseqret_imtpp_and_reformd(tmp_path: Path) -> None:
    files = {"train_query_ev": "1 5\n", "train_query_ti": "0.1 0.9\n"}
    files |= {"train_corpus_ev": "2 2\n4 1\n", "train_corpus_ti": "0.0 1.0\n0.5 0.6\n"}
    one = put(tmp_path / "a", {f"{name}.txt": content for name, content in files.items()})
    read = data.load("neuroseqret", one)
    corpus = {"corpus/0": ([0, 1], [1, 1]), "corpus/1": ([0.5, 0.6], [3, 0])}
    assert by_id(read) == {"train/0": ([0.1, 0.9], [0, 4]), **corpus}
    two = put(tmp_path / "b", {"event_train.txt": "1 2 1\n", "time_train.txt": "0 2 4\n", "event_test.txt": "2\n",
                               "time_test.txt": "7\n"})  # fmt: skip
    assert by_id(data.load("imtpp", two)) == {"train/0": ([0, 2, 4], [0, 1, 0]), "test/0": ([7], [1])}
    three = put(tmp_path / "c", {"Train_Cat": "3 1\n", "Train_Time": "1 2\n", "Train_Dist": "0.5 0.75\n"})
    read = data.load("reformd", three)
    assert by_id(read) == {"train/0": ([1, 2], [2, 0])} and read.profiles.tolist() == [[0.5], [0.75]]
    with pytest.raises(ValueError, match="has none of event_train"):
        data.load("imtpp", three)


def test_annotated_videos_keep_start_and_end(tmp_path: Path) -> None:
    one = put(tmp_path / "a", {"P03_cam01_P03_cereals.txt": "1-30 SIL\n31-150 take_bowl\n", "P04_tea.txt": "5-9 SIL\n"})
    read = data.load("breakfast", one)
    assert by_id(read)["P03_cam01_P03_cereals"] == ([1, 31], ["SIL", "take_bowl"])
    assert read.profiles.ravel().tolist() == [29, 119, 4] and [read.classes[i] for i in read.labels] == [
        "cereals",
        "tea",
    ]
    two = put(tmp_path / "b", {"Run.txt": "v1 2.5 4.0\nv2 0 1\n", "Jump.txt": "v1 1.0 9.0\n"})
    assert by_id(data.load("multithumos", two)) == {"v1": ([1, 2.5], ["Jump", "Run"]), "v2": ([0], ["Run"])}
    put(tmp_path / "b", {"Run.txt": "v1 4.0 2.5\n"})
    with pytest.raises(ValueError, match=r"ends at 2\.5, before its start"):
        data.load("multithumos", tmp_path / "b")


# --- tables -----------------------------------------------------------------------------------------------------------


def test_foursquare_applies_the_offset_once_and_to_the_profile_alone(tmp_path: Path) -> None:
    cells = "470\t49bbd6c0f964a520f4531fe3\t4bf58dd8d48988d127951735\tCaf\xe9\t40.719810\t-74.002581\t-240\t"
    lines = f"{cells}Tue Apr 03 18:00:09 +0000 2012\n{cells}Tue Apr 03 03:30:00 +0000 2012\n"
    read = data.load("foursquare", put(tmp_path, {"dataset_TSMC2014_NYC.txt": lines.encode("iso-8859-1")}))
    expected = np.array(["2012-04-03T03:30:00", "2012-04-03T18:00:09"], "datetime64[s]").astype(float)
    assert read.times.tolist() == expected.tolist() and read.places[0].tolist() == [40.71981, -74.002581]
    np.testing.assert_allclose(read.profiles, [[23.5, 0], [14 + 9 / 3600, 1]])  # Monday night, and Tuesday
    with pytest.raises(ValueError, match="line 1: 2 cells, not 8"):
        data.load("foursquare", put(tmp_path / "a", {"dataset_TSMC2014_NYC.txt": "1\t2\n"}))
    with pytest.raises(ValueError, match="times are like"):
        data.load("foursquare", put(tmp_path / "b", {"dataset_TSMC2014_NYC.txt": f"{cells}2012-04-03\n"}))


def test_gowalla_and_brightkite_take_the_mean_place_and_leave_out_empty_rows(tmp_path: Path) -> None:
    lines = (
        "0\t2010-10-19T23:55:27Z\t30.0\t-97.0\t22847\n0\t2010-10-18T22:17:43Z\t30.2\t-97.2\t22847\n"
        "10\t2010-10-17T00:00:00Z\t0.0\t0.0\t00000\n2\t2010-10-16T00:00:00Z\t40.5\t-70.0\tab12\n"
    )
    for extra in ("", "3\t\t\t\t\n"):
        folder = tmp_path / f"extra{len(extra)}"
        read = data.load("gowalla", put(folder, {"Gowalla_totalCheckins.txt": lines + extra}))
        assert list(by_id(read)) == ["0", "2"]
        np.testing.assert_allclose(read.places, [[30.1, -97.1], [30.1, -97.1], [40.5, -70]])
        assert np.diff(read.times)[0] == 86400 + 5864


def test_ratings_in_their_many_files(tmp_path: Path) -> None:
    expected = {"1": ([5, 5, 9], ["30", "20", "10"]), "12": ([7], ["10"])}
    rows = [("1", "10", "4", "9"), ("12", "10", "3", "7"), ("1", "30", "5", "5"), ("1", "20", "1", "5")]
    lined = {sep: "".join(sep.join(row) + "\n" for row in rows) for sep in ("\t", "::", ",")}
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    cases = (
        ("movielens", "u.data", lined["\t"]),
        ("movielens", "ratings.dat", lined["::"]),
        ("movielens", "ratings.csv", "userId,movieId,rating,timestamp\n" + lined[","]),
        ("recbole", "x.inter", header + lined["\t"]),
        ("tisasrec", "x.txt", lined["\t"]),
        ("tisasrec", "x.txt", "".join(" ".join((u, i, t)) + "\n" for u, i, _, t in rows)),
        ("hstu", "x.csv", "index,user_id,sequence_item_ids,sequence_ratings,sequence_timestamps\n"
         '0,1,"30,20,10","5,1,4","5,5,9"\n1,12,"10","3","7"\n'),
    )  # fmt: skip
    for index, (name, file, content) in enumerate(cases):
        read = data.load(name, put(tmp_path / str(index), {file: content}))
        assert by_id(read) == expected, name
        if index != 5:
            assert read.profiles.ravel().tolist() == [5, 1, 4, 3], name
    put(tmp_path / "bad", {"u.data": "1\t2\t3\tx\n"})
    with pytest.raises(ValueError, match="row 1: the timestamp 'x' is no number"):
        data.load("movielens", tmp_path / "bad")


def test_libcity_places_are_turned_round(tmp_path: Path) -> None:
    files = {
        "x.geo": 'geo_id,type,coordinates\n0,Point,"[-74.0,40.7]"\n1,Point,"[139.7,35.6]"\n',
        "x.dyna": "dyna_id,type,time,entity_id,location\n0,trajectory,2012-04-03T18:00:00Z,5,1\n"
        "1,trajectory,2012-04-03T17:00:00Z,5,0\n",
    }
    read = data.load("libcity", put(tmp_path, files))
    assert read.places.tolist() == [[40.7, -74], [35.6, 139.7]] and by_id(read)["5"][1] == ["0", "1"]
    lost = put(tmp_path / "lost", {**files, "x.geo": "geo_id,type,coordinates\n"})
    with pytest.raises(ValueError, match=r"location 1 of the .dyna is not in the .geo \(2 such"):
        data.load("libcity", lost)
