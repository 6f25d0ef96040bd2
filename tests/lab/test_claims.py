"""Claims: the frame that runs them, resumes them and writes their page; and the verdict of the conversion claim."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from relpos.lab.claims import Finding, Order, get, names, prove
from relpos.lab.claims import conversion as conversion_claim
from relpos.lab.claims.frame import PICTURES, spread
from relpos.lab.errors import LabError, RunDirectoryError
from relpos.tasks.parallel import Pairs
from relpos.tasks.translate import Settings, Translate
from tests.lab.conftest import quiet
from tests.tasks.test_translate import sentences


def note(item: tuple[Path, int]) -> None:
    folder, number = item
    if number < 0:
        raise LabError("a negative number")
    (folder / f"{number}.txt").write_text(f"{os.getpid()} {torch.get_num_threads()}")


def squares(order: Order) -> Finding:
    wanted = range(order.settings["count"])
    missing = [(order.folder, i) for i in wanted if not (order.folder / f"{i}.txt").exists()]
    spread(note, missing, order, "squares")
    body = f"![a picture]({PICTURES}/dot.png)"
    return Finding(True, f"{len(missing)} were new.", {"new": len(missing)}, body, {"dot": b"png"})


def claim(**changes: Any) -> Any:
    presets = {"quick": {"count": 2, "side": 1}, "demo": {"count": 4, "side": 1}}
    return SimpleNamespace(
        **{"name": "squares", "title": "Squares", "statement": "All are.", "presets": presets, "run": squares} | changes
    )


def test_a_claim_is_run_written_and_gone_on_with(tmp_path: Path) -> None:
    run, page = tmp_path / "run", tmp_path / "docs" / "squares.md"
    assert prove(claim(), "demo", run, quiet(), markdown=page, command="relpos it").verdict == "4 were new."
    text = page.read_text()
    assert all(part in text for part in ("# Squares", "> All are.", "**It holds here.** 4 were new.", "    relpos it"))
    assert "(squares/dot.png)" in text and (page.parent / "squares" / "dot.png").read_bytes() == b"png"
    assert "(./dot.png)" in (run / "page.md").read_text() and (run / "dot.png").exists()
    (run / "2.txt").unlink()
    assert prove(claim(), "demo", run, quiet()).numbers == {"new": 1}
    assert json.loads((run / "finding.json").read_text())["numbers"] == {"new": 1}
    assert prove(claim(), "demo", run, quiet(), fresh=True).numbers == {"new": 4}
    assert "numbers mean nothing" in _page(prove, tmp_path) and "numbers mean nothing" not in text


def _page(run: Any, folder: Path) -> str:
    run(claim(), "quick", folder / "q", quiet())
    return (folder / "q" / "page.md").read_text()


@pytest.mark.parametrize(
    ("verdict", "words"), [(False, "It does not hold here."), (None, "This run cannot tell."), (True, "It holds here.")]
)
def test_the_verdict_is_put_in_words(tmp_path: Path, verdict: bool | None, words: str) -> None:
    found = claim(run=lambda order: Finding(verdict, "So.", {}, ""))
    prove(found, "demo", tmp_path / "r", quiet())
    assert f"**{words}** So." in (tmp_path / "r" / "page.md").read_text()
    assert prove(found, "quick", tmp_path / "q", quiet()).holds is None


def test_other_settings_and_other_claims_are_refused_by_name(tmp_path: Path) -> None:
    prove(claim(), "demo", tmp_path / "r", quiet())
    with pytest.raises(LabError, match="count is 4 there, 5 here"):
        prove(claim(), "demo", tmp_path / "r", quiet(), changes={"count": 5})
    with pytest.raises(LabError, match="claim is 'squares' there, 'other' here"):
        prove(claim(name="other"), "demo", tmp_path / "r", quiet())
    with pytest.raises(LabError, match="unknown setting of the claim squares 'cuont'; did you mean 'count'"):
        prove(claim(), "demo", tmp_path / "n", quiet(), changes={"cuont": 5})
    with pytest.raises(LabError, match="unknown preset"):
        prove(claim(), "long", tmp_path / "n", quiet())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        prove(claim(), "demo", tmp_path / "mine", quiet(), fresh=True)


def test_work_is_spread_over_processes_and_its_errors_come_back(tmp_path: Path) -> None:
    order = Order({}, tmp_path, quiet(), workers=2)
    spread(note, [(tmp_path, i) for i in range(3)], order, "numbers")
    told = [(tmp_path / f"{i}.txt").read_text().split() for i in range(3)]
    assert all(int(process) != os.getpid() and threads == "1" for process, threads in told)
    with pytest.raises(LabError, match="negative"):
        spread(note, [(tmp_path, -1)], Order({}, tmp_path, quiet()), "numbers")


def test_every_claim_has_what_the_frame_asks_for() -> None:
    for name in names():
        found = get(name)
        assert found.name == name and found.title and found.statement and callable(found.run)
        assert {"quick", "demo", "results"} <= set(found.presets)
        assert len({tuple(sorted(preset)) for preset in found.presets.values()}) == 1
    with pytest.raises(LabError, match="did you mean 'conversion'"):
        get("convertion")


COUNTS = [16, 32, 64, 128, 256, 512]


def cells(**changes: tuple[float, ...]) -> dict[str, Any]:
    table = conversion_claim.PAPER | {key.replace("_", " + "): row for key, row in changes.items()}
    return {
        key: {"exact": {"bleu": row[0], "loss": 2.0}}
        | {f"{m}/{d}": {"bleu": v + d, "loss": 2.5} for m, v in zip(COUNTS, row[1:]) for d in (0, 1)}
        for key, row in table.items()
    }


def conclude(found: dict[str, Any]) -> Finding:
    return conversion_claim.conclude(found, conversion_claim.presets["results"], {"copy": {"bleu": 0.1}})


def test_the_conversion_claim_is_judged_by_the_numbers() -> None:
    paper = conclude(cells())
    assert paper.holds and paper.numbers["ordered"] == 6
    assert "normalised + RPE 34.8 of 35.2" in paper.verdict and "standard 11.5 of 35.2" in paper.verdict
    assert (
        "34.8 ± 0.7" in paper.body and "copy: 0.10 BLEU" in paper.body and paper.pictures["conversion"][1:4] == b"PNG"
    )
    swapped = conclude(cells(normalised=(33.5, 20.0, 30.7, 31.5, 32.2, 32.7, 32.8)))
    assert swapped.holds and swapped.numbers["ordered"] == 5  # below standard + RPE at 16, yet it lost less... of more
    worse = conclude(cells(normalised=(33.5, 35.0, 30.7, 31.5, 32.2, 32.7, 32.8)))
    assert worse.holds is False and "not the best" in worse.verdict
    lost = cells()
    lost["standard"]["16/0"] = {"bleu": 0.0, "loss": None}
    assert "| standard | 2.000 | inf |" in conclude(lost).body


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))
    pairs = Pairs.of(*sentences(150))
    sizes = Settings(vocabulary=90, translated=3)
    monkeypatch.setattr(conversion_claim, "_task", lambda s: Translate(pairs=pairs, settings=sizes))
    return {"steps": 3, "counts": [2, 8], "draws": 2}


def test_the_conversion_claim_runs_and_resumes(tiny: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = prove(conversion_claim, "quick", run, quiet(), changes=tiny)  # type: ignore[arg-type]
    for key in conversion_claim.MODELS:
        found = first.numbers["cells"][key]
        assert list(found) == ["exact", "2/0", "2/1", "8/0", "8/1"]
        assert found["2/0"] != found["2/1"] and found["exact"]["loss"] > 0
    file = run / "standard" / conversion_claim.CELLS
    kept = json.loads(file.read_text())
    weights = (run / "standard" / "checkpoint.safetensors").stat().st_mtime_ns
    file.write_text(json.dumps({key: value for key, value in kept.items() if key != "8/0"}))
    again = prove(conversion_claim, "quick", run, quiet(), changes=tiny)  # type: ignore[arg-type]
    assert again.numbers["cells"]["standard"] == kept
    assert (run / "standard" / "checkpoint.safetensors").stat().st_mtime_ns == weights
