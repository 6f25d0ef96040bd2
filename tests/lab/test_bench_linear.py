"""The linear bench: baselines against what they stand for, goals on invented numbers, a quick run end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import relpos as rp
from relpos.lab.bench import main_linear, spe, timing
from relpos.lab.bench.contestants import CONTESTANTS, LINEAR, Contestant
from relpos.lab.bench.linear import decode
from relpos.lab.bench.linear.command import KIND, LinearSettings
from relpos.lab.bench.linear.goals import crossover, goals, growth
from relpos.lab.bench.linear.tables import all_tables
from relpos.lab.bench.literal import literal
from relpos.lab.bench.ours import random_features
from relpos.lab.bench.problem import Inputs, Prepared, Problem, call
from relpos.lab.bench.timing import Patience, race
from relpos.lab.errors import LabError
from relpos.lab.progress import Reporter
from relpos.positions import as_positions


def gradients(name: str, problem: Problem, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    return call(CONTESTANTS[name].prepare(problem), inputs)()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 2, 31, 257])
def test_the_literal_algorithm_is_the_dense_definition(n: int, causal: bool) -> None:
    problem = Problem(n, heads=2, dim=8, causal=causal, dtype="float64", backward=False, features=5, batch=2)
    q, k, v, _ = problem.inputs().tensors
    features, table = random_features(problem), problem.table().double()
    phi_q, phi_k = (features(torch.nn.functional.normalize(x, dim=-1)) for x in (q, k))
    lag = torch.arange(n) - torch.arange(n)[:, None]
    weight = table.exp()[:, lag + n - 1] * (phi_q @ phi_k.mT)
    weight = weight.tril() if causal else weight
    truth = weight @ v / weight.sum(-1, keepdim=True)
    assert float((literal(phi_q, phi_k, v, table, causal) - truth).abs().max()) < 1e-10


@pytest.mark.parametrize("causal", [False, True])
def test_ours_and_the_literal_algorithm_solve_the_same_problem(causal: bool) -> None:
    problem = Problem(33, heads=2, dim=8, causal=causal, dtype="float64")
    inputs = problem.inputs()
    pairs = zip(gradients("linear-free", problem, inputs), gradients("literal", problem, inputs), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) < 1e-10


def test_a_clipped_table_is_the_middle_of_the_free_one() -> None:
    problem = Problem(65, heads=2, dim=8, dtype="float64")
    inputs = problem.inputs()
    short, free = gradients("linear-clipped", problem, inputs), gradients("linear-free", problem, inputs)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(short, free, strict=True))
    plain = gradients("linear", problem, inputs)
    assert len(plain) == 4 and not torch.allclose(plain[0], free[0], atol=1e-3)


def test_materialised_codes_are_the_library_s_encoding() -> None:
    encoding = rp.encodings.SineSPE(2, 8, 5, 16).double()
    codes = encoding.sample(31)
    q, k = torch.randn(2, 3, 2, 31, 8, dtype=torch.float64)
    assert codes.gating is not None
    found = spe.materialised(encoding, q, k, codes.noise, codes.gating)
    places = as_positions(None, 31, 0, "positions", q.device)
    truth = encoding.encode_q(q, places, 1.0, codes), encoding.encode_k(k, places, 1.0, codes)
    assert max(float((a - b).detach().abs().max()) for a, b in zip(found, truth, strict=True)) < 1e-10


@pytest.mark.parametrize(("cost", "rounds", "calls"), [(1.0, 6, 8), (3.0, 3, 3), (9.0, 1, 1)])
def test_long_calls_are_made_three_times_and_the_longest_once(
    monkeypatch: pytest.MonkeyPatch, cost: float, rounds: int, calls: int
) -> None:
    clock, count = [0.0], [0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def contestant(name: str, seconds: float, counted: int) -> Contestant:
        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            clock[0] += seconds
            count[0] += counted
            return q + k + v

        return Contestant(name, name, lambda problem: Prepared(attend))

    others = [contestant("a", cost / 2 if cost == 1 else cost, 1)]
    row = race(Problem(2), contestant("f", 0.5, 0), others, Patience(6, 0, 0, long=2, once=8))[1]
    assert (row["rounds"], count[0]) == (rounds, calls)
    assert row["ratio"] == row["seconds"] / 0.5


def test_what_is_too_long_or_too_large_says_so() -> None:
    rows = race(
        Problem(64, heads=1, dim=8),
        LINEAR["linear"],
        [
            Contestant("short", "", LINEAR["linear"].make, longest=32),
            Contestant("large", "", LINEAR["linear"].make, holds=lambda problem: 1e18),
        ],
        Patience(1, 0, 0),
    )
    assert "beyond n = 32" in rows[0 if rows[0]["contestant"] == "short" else 1]["skipped"]
    assert "GiB are free" in rows[2]["skipped"]
    small, large = (LINEAR["literal"].needs(Problem(n, features=m)) for n, m in ((1024, 16), (2048, 64)))
    assert large == 8 * small


def test_positions_of_the_decoding_part() -> None:
    assert decode.positions(65536) == [1024, 2048, 4096, 8192, 16384, 32768, 65536]
    assert decode.positions(64) == [32, 64] and decode.positions(1) == [1]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("linear")
    markdown = folder / "docs" / "results" / "linear.md"
    arguments = ["--quick", "--threads", "1", "--out", str(folder), "--name", "run", "--markdown", str(markdown)]
    return main_linear(arguments, reporter=Reporter(quiet=True)), markdown


def test_a_quick_run_writes_every_contestant_or_its_reason(quick: tuple[Path, Path]) -> None:
    folder, markdown = quick
    results = json.loads((folder / "results.json").read_text())
    modes = {(row["n"], row["causal"], row["backward"]) for row in results["timings"]}
    assert (
        len(modes) == 8 and not results["unfinished"] and results["command"].startswith("relpos bench linear --quick")
    )
    for mode in modes:
        rows = [row for row in results["timings"] if (row["n"], row["causal"], row["backward"]) == mode]
        assert {row["contestant"] for row in rows} == set(LINEAR)
        assert all((row["skipped"] is None) != (row["contestant"] == "transforms" and mode[1]) for row in rows)
        assert all(row["features"] == 4 for row in rows)
    assert {(row["contestant"], row["features"]) for row in results["memory"]} >= {("linear-free", 8), ("literal", 4)}
    assert [row["skipped"] for row in results["stochastic"]] == [None, None]
    assert [row["encoding"] for row in results["decode"]] == [
        "linear-clipped", "linear-alibi", "linear-free", "softmax",
    ]  # fmt: skip
    assert all(row["skipped"] is None and row["difference"] < 1e-10 for row in results["decode"])
    assert "total" in results["decode"][2]["steps"][-1] and results["goals"] == []
    text = markdown.read_text()
    assert all(contestant.title in text for contestant in LINEAR.values()) and "times mean nothing" in text
    for picture in ("linear", "decoding"):
        assert f"](../images/{picture}.png)" in text
        assert (markdown.parents[1] / "images" / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"
    with open(folder / "table.csv") as lines:
        assert {row["part"] for row in csv.DictReader(lines)} == {"time", "memory", "decode", "stochastic"}


def test_a_run_can_be_written_again_by_its_own_command(quick: tuple[Path, Path], tmp_path: Path) -> None:
    from relpos.lab.bench import main_attention

    folder, markdown = quick
    main_linear(rewrite=folder, markdown=tmp_path / "linear.md", reporter=Reporter(quiet=True))
    assert (tmp_path / "linear.md").read_text() == markdown.read_text()
    with pytest.raises(LabError, match="not of this command"):
        main_attention(rewrite=folder, reporter=Reporter(quiet=True))


def invented(power: float, unit: float) -> dict[str, Any]:
    """A full run: softmax takes n^2 and the others unit n^power; everything else gets worse with `unit` alike."""
    settings = LinearSettings(threads=2)
    cost = {"softmax": lambda n: 1e-8 * n**2, "literal": lambda n: 4 * unit * n**power}
    timings = []
    for name in LINEAR:
        for n in settings.lengths:
            for mode in range(4):
                seconds = cost.get(name, lambda n: unit * n**power)(n)
                row = {"contestant": name, "n": n, "causal": bool(mode & 1), "backward": bool(mode & 2), "rounds": 5}
                row |= {"features": 16, "seconds": seconds, "seconds_low": seconds, "seconds_high": seconds}
                timings.append({**row, "skipped": None if name != "softmax" or n <= 16384 else "too long"})
    memory = [
        {"contestant": name, "n": n, "features": m, "peak": n * unit * m**0.01, "share": unit * 5e3, "skipped": None,
         "causal": False, "backward": True}
        for name in ("linear-clipped", "linear-free")
        for n, m in ((8192, 16), (16384, 16), (8192, 256))
    ]  # fmt: skip
    stochastic = [
        {"contestant": name, "n": 1024, "heads": 4, "seconds": s, "peak": s, "skipped": None}
        for name, s in (("spe", unit * 1e5), ("spe-features", 5.0))
    ]
    places = decode.positions(65536)
    steps = {
        "linear-alibi": [{"cache": n, "seconds": n ** (power - 1)} for n in places],
        "linear-free": [{"cache": n, "seconds": 1e-3, "total": growth(n) ** power} for n in places],
        "softmax": [{"cache": n, "seconds": 3e-8 * n} for n in places],
    }
    rows = [
        {"encoding": name, "title": name, "skipped": None, "difference": 1e-14, "steps": found}
        for name, found in steps.items()
    ]
    results = {
        "settings": settings.as_dict(), "timings": timings, "memory": memory, "stochastic": stochastic, "decode": rows,
        "rates": {}, "goals": [],
    }  # fmt: skip
    return {**results, "goals": goals(results)}


def test_goals_are_judged_by_what_was_measured() -> None:
    good, bad = invented(1.0, 5e-6)["goals"], invented(1.3, 1e-4)["goals"]
    assert [goal["what"] for goal in good if not goal["met"]] == []
    assert len(good) == len(bad) > 30
    still = [goal["what"] for goal in bad if goal["met"]]
    assert all("float64" in what or "times faster than literal" in what or "features" in what or "peak memory (" in what
               for what in still)  # fmt: skip
    values = {goal["what"]: goal["measured"] for goal in good}
    assert values["T5, forward + backward, causal, n = 16384: times faster than SDPA"] == pytest.approx(1.6384 * 20)
    assert values["free table, forward + backward, n = 4096: times faster than literal"] == pytest.approx(4)
    assert values["SineSPE, forward + backward, batch 2, n = 1024: times faster than codes by feature"] == 10
    other = invented(1.0, 5e-6)
    other["settings"]["features"] = [32]
    assert goals(other) == []
    never = next(goal for goal in invented(2.0, 1e-4)["goals"] if "n from which it is faster" in goal["what"])
    assert never["measured"] is None and never["met"] is False


def test_the_crossover_is_where_all_longer_ones_are_faster() -> None:
    assert crossover({512: 2.0, 1024: 0.9, 2048: 1.1, 4096: 3.0}) == 2048
    assert crossover({512: 2.0, 1024: 0.9}) is None


def test_tables_show_what_softmax_takes_and_where_it_wins() -> None:
    tables = {table.title: table for table in all_tables(invented(1.0, 5e-6))}
    row = next(row for row in tables["Forward, causal"].rows if row[0] == LINEAR["linear-t5"].title)
    assert row[6].startswith("81.9 ms") and row[6].endswith(", 32.8 x") and row[8].endswith(")")
    assert tables["Peak memory by number of features, n = 8192"].columns == ["", "m = 16", "m = 256"]
    note = tables["Decoding: time a token at a position, and equality in float64"].note
    assert "linear-free: from token 65536 on" in note and "linear-alibi: nowhere yet" in note


def test_options() -> None:
    found = LinearSettings.of(features=[8], quick=True)
    assert found.features == (8,) and found.decode_steps == 64 and KIND.settings is LinearSettings
    with pytest.raises(LabError, match="bench linear has no option 'feature'"):
        LinearSettings.of(feature=3)
    with pytest.raises(LabError, match="features are integers"):
        LinearSettings.of(features=())
