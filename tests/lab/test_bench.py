"""The bench: its arithmetic on invented timings, and a quick run end to end. Nothing here asserts on a time."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from relpos.lab.bench import main_attention, timing
from relpos.lab.bench.attention import KIND
from relpos.lab.bench.child import ask
from relpos.lab.bench.contestants import ATTENTION, CONTESTANTS, FLOOR, Contestant, chosen
from relpos.lab.bench.goals import goals
from relpos.lab.bench.page import page
from relpos.lab.bench.problem import Prepared, Problem, Refused, call
from relpos.lab.bench.settings import Settings, parse
from relpos.lab.bench.statistics import Sample, slope, summary, thinned
from relpos.lab.bench.tables import all_tables, over_bound
from relpos.lab.bench.timing import Patience, race
from relpos.lab.errors import LabError
from relpos.lab.progress import Reporter

SAME_TABLE = ("learned", "generic", "materialised", "plain", "ready")


def test_a_ratio_cancels_a_linear_drift_of_the_machine() -> None:
    samples = [Sample(1.5 * (1 + 0.1 * t), 1 + 0.1 * (t - 1), 1 + 0.1 * (t + 1)) for t in range(7)]
    found = summary(samples)
    assert found.ratio == pytest.approx(1.5) and found.ratio_high - found.ratio_low == pytest.approx(0, abs=1e-12)
    assert found.seconds == pytest.approx(1.5 * 1.3) and found.rounds == 7


def test_the_median_of_paired_ratios_is_not_the_ratio_of_medians() -> None:
    found = summary([Sample(2, 1, 1), Sample(30, 10, 10), Sample(8, 2, 2)])
    assert found.ratio == 3 and (found.ratio_low, found.ratio_high) == (2.5, 3.5)
    with pytest.raises(ValueError, match="no samples"):
        summary([])


def test_slope_is_the_exponent() -> None:
    lengths = [4096.0, 8192.0, 16384.0]
    assert slope(lengths, [7 * n**1.5 for n in lengths]) == pytest.approx(1.5)
    assert slope([64], [1.0]) is None and slope([64, 64], [1.0, 2.0]) is None


@pytest.mark.parametrize(("rounds", "wanted"), [(1, 3), (5, 3), (25, 3), (3, 3), (7, 1)])
def test_slow_contestants_are_spread_over_the_rounds(rounds: int, wanted: int) -> None:
    found = thinned(rounds, wanted)
    assert len(found) == min(rounds, wanted) and found <= set(range(rounds))


def test_operations_are_those_of_the_products() -> None:
    forward = Problem(100, heads=2, dim=8, backward=False)
    assert forward.flops == 2 * 2 * 100 * 100 * 8 * 2
    assert Problem(100, heads=2, dim=8, causal=True).flops == 7 * 100 * 100 * 8 * 2


@pytest.mark.parametrize("causal", [False, True])
def test_contestants_of_one_bias_compute_the_same(causal: bool) -> None:
    problem = Problem(31, heads=2, dim=8, causal=causal, dtype="float64")
    inputs = problem.inputs()
    truth, *rest = (call(CONTESTANTS[name].prepare(problem), inputs)() for name in SAME_TABLE)
    for name, found in zip(SAME_TABLE[1:], rest, strict=True):
        for a, b in zip(truth, found, strict=False):  # "ready" gets no gradient to its bias
            assert torch.allclose(a.double(), b.double(), atol=1e-6), name
    assert len(truth) == 5 and len(rest[-1]) == 4


def test_contestants_for_one_device() -> None:
    assert "triton" not in {each.name for each in chosen(None)}
    assert "triton" in {each.name for each in chosen(None, device="cuda:0")}
    assert [each.name for each in chosen(("triton",))] == [FLOOR, "triton"]


def test_figures_on_cuda() -> None:
    """Of the shape that they are stated for, and of the Triton kernel alone; not measured where there was no device."""
    rows = [
        {"contestant": name, "n": n, "causal": True, "backward": True, "ratio": ratio}
        for name, n, ratio in (("triton", 8192, 1.2), ("triton", 4096, 9.0), ("flex", 8192, 1.0))
    ] + [{"contestant": "triton", "n": 8192, "causal": False, "backward": False, "skipped": "no CUDA device"}]
    settings = {"dtype": "bfloat16", "heads": 16, "dim": 64, "device": "cuda"}
    found = goals({"settings": settings, "timings": rows})
    assert [(g["measured"], g["met"], g["limit"]) for g in found] == [(1.2, False, 1.15), (None, None, 1.15)]
    assert goals({"settings": {**settings, "dtype": "float32"}, "timings": rows}) == []


def test_every_contestant_runs_or_says_why_not() -> None:
    for contestant in ATTENTION.values():
        problem = Problem(33, heads=2, dim=8, causal=True)
        if contestant.apart:
            with pytest.raises(Refused, match="no backward on the CPU"):
                contestant.prepare(problem)
            continue
        try:
            out = call(contestant.prepare(problem), problem.inputs())()[0]
        except Refused as refusal:
            assert "has no" in str(refusal)
        else:
            assert out.shape == (1, 2, 33, 8) and bool(out.isfinite().all())


class Clock:
    """Time that passes only while a contestant of this test runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns: list[str] = []

    def contestant(self, name: str, cost: float, **options: Any) -> Contestant:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.now += cost
            self.turns.append(name)
            return q + k + v

        return Contestant(name, name, lambda problem: Prepared(attend), **options)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_a_race_takes_turns_and_pairs_with_the_floor(clock: Clock) -> None:
    others = [clock.contestant(name, cost) for name, cost in (("a", 2.0), ("b", 3.0), ("c", 4.0), ("d", 1.0))]
    others.append(clock.contestant("e", 8.0, slow=True))
    shares: list[float] = []
    rows = race(
        Problem(2), clock.contestant("f", 2.0), others, Patience(5, 0, 0), lambda share, _: shares.append(share)
    )
    ratios = {row["contestant"]: row["ratio"] for row in rows}
    assert ratios == {"f": 1.0, "a": 1.0, "b": 1.5, "c": 2.0, "d": 0.5, "e": 4.0}
    assert {row["contestant"]: row["rounds"] for row in rows[1:]} == {"a": 5, "b": 5, "c": 5, "d": 5, "e": 3}
    assert shares == sorted(shares) and shares[-1] == 1
    timed = "".join(clock.turns[6:])
    assert timed.startswith("fabcfde"[:5]) and "ffff" not in timed


def test_short_calls_are_repeated_and_get_more_rounds(clock: Clock) -> None:
    floor, other = clock.contestant("f", 0.25), clock.contestant("a", 0.5)
    row = race(Problem(2), floor, [other], Patience(2, 1.0, 1e9))[1]
    assert row["rounds"] == 10 and row["seconds"] == 0.5 and row["ratio"] == 2
    assert clock.turns.count("a") == 2 + 10 * 2


def test_what_goes_wrong_becomes_a_reason(clock: Clock) -> None:
    def broken(problem: Problem) -> Prepared:
        raise RuntimeError("no such thing\nand more")

    def breaks_later(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError("not here")

    others = [
        Contestant("broken", "", broken),
        Contestant("later", "", lambda problem: Prepared(breaks_later)),
        Contestant("vast", "", broken, heavy=10**15),
    ]
    rows = race(Problem(4), clock.contestant("f", 1.0), others, Patience(1, 0, 0))
    assert [row["skipped"] for row in rows[:3]] == [
        None,
        "RuntimeError: no such thing",
        "NotImplementedError: not here",
    ]
    assert "GiB are free" in rows[3]["skipped"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bench")
    arguments = ["--quick", "--threads", "1", "--out", str(folder), "--name", "run", "--markdown", str(folder / "a.md")]
    return main_attention(arguments, reporter=Reporter(quiet=True)), folder / "a.md"


def test_a_quick_run_writes_every_contestant_or_its_reason(quick: tuple[Path, Path]) -> None:
    folder, markdown = quick
    results = json.loads((folder / "results.json").read_text())
    modes = {(row["n"], row["causal"], row["backward"]) for row in results["timings"]}
    assert len(modes) == 8 and not results["unfinished"]
    for mode in modes:
        rows = [row for row in results["timings"] if (row["n"], row["causal"], row["backward"]) == mode]
        assert {row["contestant"] for row in rows} == set(ATTENTION) - {"triton"}  # which is for CUDA
        assert all((row["skipped"] is None) == ("ratio" in row) for row in rows)
    peaks = {row["contestant"]: row for row in results["memory"]}
    assert set(peaks) == set(ATTENTION) - {"triton"} and peaks[FLOOR]["skipped"] is None and peaks[FLOOR]["peak"] >= 0
    assert all(row["skipped"] or row["difference"] < 1e-10 for row in results["decode"])
    assert results["rates"]["product"] > 0 and results["machine"]["threads"] == 1
    text = markdown.read_text()
    assert all(contestant.title in text for contestant in chosen(None))
    assert "## Forward + backward, causal" in text and "times mean nothing" in text
    for picture in ("time", "memory"):
        assert f"](a/{picture}.png)" in text
        assert (markdown.parent / "a" / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"
    with open(folder / "table.csv") as lines:
        parts = {row["part"] for row in csv.DictReader(lines)}
    assert parts == {"time", "memory", "decode"}


def test_a_finished_run_is_kept_and_can_be_written_again(quick: tuple[Path, Path], tmp_path: Path) -> None:
    folder, markdown = quick
    with pytest.raises(LabError, match="holds a finished bench"):
        main_attention(quick=True, out=folder.parent, name=folder.name, reporter=Reporter(quiet=True))
    main_attention(rewrite=folder, markdown=tmp_path / "a.md", reporter=Reporter(quiet=True))
    assert (tmp_path / "a.md").read_text() == markdown.read_text()
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(LabError, match="not of this command"):
        main_attention(rewrite=tmp_path, reporter=Reporter(quiet=True))


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from relpos.lab.bench import command

    seen = []

    def once(*arguments: Any) -> Any:
        if seen:
            raise KeyboardInterrupt
        seen.append(1)
        return race(*arguments)

    monkeypatch.setattr(command, "race", once)
    with pytest.raises(SystemExit) as end:
        main_attention(quick=True, only=("learned",), out=tmp_path, name="run", reporter=Reporter(quiet=True))
    assert end.value.code == 130
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["unfinished"] and {row["contestant"] for row in results["timings"]} == {FLOOR, "learned"}
    assert "Unfinished" in (tmp_path / "run" / "page.md").read_text()


def test_no_gpu_is_a_reason_and_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = main_attention(quick=True, device="cuda", out=tmp_path, reporter=Reporter(quiet=True))
    results = json.loads((folder / "results.json").read_text())
    assert {row["skipped"] for row in results["timings"]} == {"this machine has no CUDA device"}
    assert "no CUDA device" in (folder / "page.md").read_text()


def invented(ratio: float, peak: float) -> dict[str, Any]:
    """Results of a full run in which every contestant takes `ratio` and memory grows with n."""
    base = {"skipped": None, "seconds": 1.0, "ratio_low": ratio, "ratio_high": ratio, "rounds": 5, "ratio": ratio}
    modes = [(n, c, b) for n in (2048, 4096, 8192) for c in (False, True) for b in (False, True)]
    timings = [
        {
            "contestant": name,
            "n": n,
            "causal": c,
            "backward": b,
            **base,
            **({"ratio": 9} if name == "materialised" else {}),
        }
        for name in ATTENTION
        for n, c, b in modes
    ]
    memory = [
        {"contestant": "learned", "n": n, "causal": False, "backward": True, "skipped": None, "peak": peak * n,
         "share": peak * n / Problem(n).scores}
        for n in (4096, 8192, 16384)
    ]  # fmt: skip
    decode = [{"encoding": "none", "skipped": None, "difference": 1e-14, "steps": [{"cache": 128, "seconds": 1e-4}]}]
    results = {
        "settings": Settings(threads=2).as_dict(), "timings": timings, "memory": memory, "decode": decode,
        "rates": {"product": 1e11, "square": 1e11, "tile": 1e11, "exp": 1e9}, "goals": [],
    }  # fmt: skip
    return {**results, "goals": goals(results)}


def test_goals_are_judged_by_what_was_measured() -> None:
    good, bad = invented(1.05, 1e4)["goals"], invented(5.0, 1e6)["goals"]
    assert len(good) == len(bad) > 20
    assert all(goal["met"] for goal in good)
    missed = [goal["what"] for goal in bad if not goal["met"]]
    assert any("n = 16384" in what for what in missed) and any("materialised" in what for what in missed)
    assert not any("exponent" in what or "decoded" in what for what in missed)
    other = invented(1.0, 1e4)
    other["settings"]["dtype"] = "bfloat16"
    assert goals(other) == []


def test_tables_show_the_distance_to_the_bound_and_the_exponent() -> None:
    results = invented(1.5, 1e4)
    row = next(r for r in results["timings"] if r["n"] == 4096 and not r["causal"] and r["backward"])
    assert over_bound(row, results) == pytest.approx(1e11 / (14 * 4096**2 * 64 * 8))
    tables = {table.title: table for table in all_tables(results)}
    assert tables["Peak memory over the inputs, forward + backward"].rows[0][-1] == "1.00"
    assert np.all([cell.startswith("1.50 (1.50-1.50), 1000 ms") for cell in tables["Forward"].rows[1][1:]])


def test_the_child_reports_what_kills_it() -> None:
    problem = Problem(8, heads=1, dim=8).as_dict()
    job = {"kind": "memory", "contestant": "no such", "threads": 1, "problem": problem}
    assert ask(job, 60)["skipped"].startswith("its process failed: KeyError")
    assert ask(job, 0.01)["skipped"] == "not finished in 0 s"


def test_options() -> None:
    found = Settings.of(
        **parse(["--lengths", "128,256", "--no-causal", "--only", "learned, rope", "--dtype", "bfloat16"])
    )
    assert found.lengths == (128, 256) and not found.causal and found.only == ("learned", "rope")
    assert [contestant.name for contestant in chosen(found.only)] == [FLOOR, "learned", "rope"]
    assert Settings.of(quick=True, heads=3).heads == 3
    for wrong in ({"lengths": [1]}, {"dtype": "int8"}, {"rounds": 0}, {"length": 3}, {"causal": False, "full": False}):
        with pytest.raises(LabError):
            Settings.of(**wrong)
    with pytest.raises(LabError, match="did you mean 'learned'"):
        chosen(("lerned",))
    with pytest.raises(SystemExit):
        parse(["--lengths", "many"])


def test_page_of_invented_results_names_its_command() -> None:
    from relpos.lab.bench.machine import machine

    more = {
        "machine": machine(),
        "load_after": None,
        "rate_samples": [{}],
        "command": "relpos bench x",
        "unfinished": False,
    }
    assert "    relpos bench x\n" in page(KIND, {**invented(1.0, 1e4), **more}, ".", [])
