"""The claim about vision: from the runs to the arithmetic of its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relpos.lab.claims import prove, vision, vision_page
from relpos.lab.claims.differences import Difference
from relpos.lab.claims.vision import Found, Outcome, Part
from tests.lab.conftest import quiet
from tests.tasks.test_images import made

SMALL = {"datasets": ["mnist5k"], "attention": ["mnist5k"]}


@pytest.mark.slow(7)
def test_the_claim_runs_goes_on_and_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "images", lambda s, part: made(sizes=[8, 16], judged=(4, 8)))
    folder, page = tmp_path / "run", tmp_path / "vision.md"
    few = {key: vision.ATTENTION[key] for key in ("none", "Swin table (LRPE)")}
    monkeypatch.setattr(vision, "ATTENTION", few)
    monkeypatch.setattr(
        vision, "GATES", {key: vision.GATES[key] for key in ("SGU", "LRPE in groups", "GQPE in groups")}
    )
    found = prove(vision, "quick", folder, quiet(), markdown=page)
    assert found.holds is None
    assert {"gates", "sizes", "maps-mnist5k-lrpe", "maps-mnist5k-gqpe"} <= set(found.pictures)
    assert all(picture[1:4] == b"PNG" for picture in found.pictures.values())
    text = page.read_text()
    assert "| LRPE in groups against LRPE single | no number |" in text
    assert all(f"| {key} |" in text for key in (*vision.GATES, *few)) and "| *the commonest class* |" in text
    assert "| 8 x 8 | 12 x 12 (trained) | 16 x 16 | survives |" in text and "(vision/maps-mnist5k-sgu.png)" in text
    records = sorted(folder.rglob("evaluation.json"))
    assert len(records) == len(vision.GATES) + len(few)
    times = {path: path.stat().st_mtime_ns for path in records}
    records[0].unlink()
    stored = json.loads((folder / "finding.json").read_text())["numbers"]
    prove(vision, "quick", folder, quiet())
    assert json.loads((folder / "finding.json").read_text())["numbers"] == stored
    assert {path: path.stat().st_mtime_ns for path in records[1:]} == {path: times[path] for path in records[1:]}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take longer than all the rest."""
    monkeypatch.setattr(vision_page, "pictures", lambda found: {})


def outcome(*home: float, lost: float = 0.0, parameters: int = 100) -> Outcome:
    there = tuple(value - lost for value in home)
    return Outcome({16: there, 28: home, 36: home}, parameters, 10, 2e6, 5e-3)


def gates(dataset: str = "fashion-mnist", **changes: Outcome) -> Found:
    rows = {
        "SGU": outcome(0.80, 0.81, parameters=120), "LRPE single": outcome(0.82, 0.83, lost=0.03),
        "LRPE in groups": outcome(0.84, 0.851), "GQPE single": outcome(0.81, 0.82),
        "GQPE in groups": outcome(0.83, 0.841, lost=0.0199),
    }  # fmt: skip
    rows |= {key.replace("_", " ").strip(): value for key, value in changes.items()}
    line = {"majority": dict.fromkeys((16, 28, 36), 0.1), "linear on pixels": {16: 0.7, 28: 0.79, 36: 0.78}}
    return Found(Part("gmlp", dataset), 28, rows, line)


def concluded(*found: Found) -> Any:
    return vision.conclude(found or [gates()], vision.presets["results"] | {"seeds": [0, 1], "cells": [-3, 2]})


@pytest.mark.usefixtures("undrawn")
def test_the_claim_is_judged_by_the_intervals() -> None:
    found = concluded()
    assert found.holds is True
    assert found.numbers["differences"]["fashion-mnist"]["LRPE in groups against SGU"][0] == pytest.approx(0.0405)
    assert found.numbers["survived"]["gmlp-fashion-mnist"]["LRPE single"] == [36]
    assert "keeps its accuracy with: SGU, LRPE in groups, GQPE single, GQPE in groups." in found.verdict
    assert "| LRPE in groups against SGU | +4.05 [+3.41, +4.69] **higher** |" in found.body
    assert "| SGU | 80.5 ± 0.7 | 120 | 10 | 2.00 | 0.005 |" in found.body
    assert "| LRPE single | 79.5 (-3.0) | 82.5 ± 0.7 | 82.5 (+0.0) | 36 |" in found.body
    assert "| *linear on the pixels* | 70.0 (-9.0) | 79.0 | 78.0 (-1.0) |  |" in found.body
    assert "rates SGU 0.005, LRPE single 0.005," in found.body and "the largest is chosen" not in found.body
    assert "**Note.**" not in found.body
    assert "pixels is better than SGU: trained too short" in concluded(gates(SGU=outcome(0.78, 0.79))).body
    level = gates(LRPE_in_groups=outcome(0.80, 0.86))
    assert concluded(level).holds is None  # an interval that holds 0
    assert concluded(gates(SGU=outcome(0.90, 0.91, parameters=120))).holds is False
    assert concluded(gates(SGU=outcome(0.80, 0.81, parameters=90))).holds is False  # higher, by more parameters
    assert concluded(gates(), level).holds is None and concluded(gates(), gates("openclipart")).holds is True
    assert concluded(gates(GQPE_in_groups=Outcome({16: (), 28: (), 36: ()}, 1, 1, 1.0, 1.0, "diverged"))).holds is None
    attention = Found(Part("vit", "mnist"), 28, {"none": outcome(0.5, 0.5, lost=0.1)}, {})
    assert concluded(attention).holds is None


def test_attention_alone_is_drawn_by_size_alone() -> None:
    attention = Found(Part("vit", "mnist"), 28, {"none": outcome(0.5, 0.5, lost=0.1)}, {})
    found = concluded(attention)
    assert set(found.pictures) == {"sizes"} and "gates.png" not in found.body


@pytest.mark.usefixtures("undrawn")
def test_one_seed_gives_no_interval() -> None:
    found = concluded(gates(**{key.replace(" ", "_"): outcome(0.8 + 0.01 * i) for i, key in enumerate(vision.GATES)}))
    assert found.holds is None and "| LRPE in groups against SGU | +2.00 |" in found.body


@pytest.mark.usefixtures("undrawn")
def test_what_was_refused_is_said() -> None:
    row = Outcome({16: (), 28: (0.8, 0.8), 36: (0.8, 0.8)}, 1, 1, 1.0, 1.0, "16: cannot: too small")
    found = concluded(gates(SGU=row))
    assert "| SGU | no number | 80.0 ± 0.0 | 80.0 (+0.0) | 36 |" in found.body
    assert "Refused: gMLP on fashion-mnist, SGU: 16: cannot: too small." in found.body


def test_matrices_are_counted_in_gates_alone() -> None:
    task = made()
    options = {"network": "gmlp", "patch": 4, "dim": 8, "depth": 2, "ratio": 4, "groups": 4}
    assert vision.matrices(task.model("nope", **options)) == 2 * 9**2
    assert vision.matrices(task.model("lrpe", **options)) == 2 * 5 * 5 * 4
    assert vision.matrices(task.model("gqpe", **options)) == 2 * 4 * 6
    assert vision.matrices(task.model("swin", patch=4, dim=16, depth=1, heads=2)) == 0


def test_parts_are_those_of_the_settings() -> None:
    s = vision.presets["results"] | {"datasets": ["fashion-mnist", "openclipart"]}
    assert [part.key for part in vision.parts(s)] == ["gmlp-fashion-mnist", "gmlp-openclipart", "vit-fashion-mnist"]
    with pytest.raises(ValueError, match="name at least one data set"):
        vision.parts(s | {"datasets": [], "attention": []})
    task = vision.images(s, Part("gmlp", "openclipart"))
    assert task.lengths == (20, 24, 28, 32, 36, 40, 48) and task.judged == (500, 4000)
    assert vision.images(s, Part("vit", "mnist")).judged == (500, 1000)


def test_the_interval_is_students() -> None:
    found = Difference.of([3.0, 4.0, 8.0], [1.0, 3.0, 5.0])  # 2, 1, 3: deviation 1, 2 degrees of freedom
    assert found.mean == 2 and found.half == pytest.approx(4.303 / 3**0.5) and found.sign == 0
    assert Difference.of([3.0, 3.1], [1.0, 1.1]).sign == 1 and Difference.of([1.0, 1.1], [3.0, 3.1]).sign == -1
    assert Difference.of([0.5], [0.25]).text() == "+25.00" and Difference.of([0.5], [0.25]).sign is None
    many = [float(i % 2) for i in range(100)]
    assert Difference.of(many, [0.0] * 100).half == pytest.approx(1.96 * 0.5025 / 10, rel=1e-3)
    with pytest.raises(ValueError, match="same seeds"):
        Difference.of([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="same seeds"):
        Difference.of([], [])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40), st.floats(0, 1))
def test_a_difference_turns_round_and_does_not_see_what_both_share(pairs: list[Any], shift: float) -> None:
    first, second = [list(each) for each in zip(*pairs)]
    there, back = Difference.of(first, second), Difference.of(second, first)
    assert there.mean == pytest.approx(-back.mean, abs=1e-12) and there.half == pytest.approx(back.half, abs=1e-9)
    moved = Difference.of([a + shift for a in first], [b + shift for b in second])
    assert moved.mean == pytest.approx(there.mean, abs=1e-9) and moved.half == pytest.approx(there.half, abs=1e-6)
