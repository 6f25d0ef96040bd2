"""What is measured and how it is told."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from relpos.lab import plots
from relpos.lab.compare import check_same_tokens, compare
from relpos.lab.measure import parameter_groups, parameters, peak_bytes
from relpos.lab.report import headline, markdown_table, plain_text, write_markdown, write_report
from relpos.lab.results import collect, position_curve, spread
from relpos.lab.run import Run
from relpos.lab.train import evaluating
from tests.lab.conftest import ENCODINGS, quiet, settings
from tests.lab.toy import Toy


def page(run: Run) -> str:
    return (run.path / "report.html").read_text()


def test_the_page_has_every_encoding_and_baseline_and_what_refused(finished: Run) -> None:
    text = page(finished)
    for name in (*ENCODINGS, "uniform (baseline)", "previous token (baseline)"):
        assert name in text
    assert "cannot: the table ends at 16 positions, asked for 32" in text
    assert "Echo: a made-up language" in text and "public domain" in text
    assert "± half the range of two seeds" in text


def test_the_page_needs_nothing_but_itself(finished: Run) -> None:
    links = re.findall(r'(?:src|href)="([^"]*)"', page(finished))
    assert links and all(link.startswith("data:") for link in links)
    assert not re.findall(r"url\((?!#)|@import|<script[^>]* src", page(finished).replace("url(#$", "url(#"))
    assert sum(link.startswith("data:audio/midi") for link in links) == len(ENCODINGS)


def test_a_file_equal_for_all_encodings_is_shown_once(finished: Run) -> None:
    assert page(finished).count("how it really goes on</figcaption>") == 1
    assert page(finished).count("what the model goes on with</figcaption>") == len(ENCODINGS)


def test_the_tables_agree_with_the_evaluations(finished: Run) -> None:
    records = [json.loads((finished.path / f"toy_slope-seed{seed}" / "evaluation.json").read_text()) for seed in (0, 1)]
    losses = [record["lengths"]["64"]["values"]["loss"] for record in records]
    with open(finished.path / "table.csv") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["toy_slope"]["loss_64"]) == pytest.approx(sum(losses) / 2)
    assert float(rows["toy_slope"]["loss_spread_64"]) == pytest.approx(abs(losses[0] - losses[1]) / 2)
    assert rows["toy_places"]["loss_64"] == "" and "table ends" in rows["toy_places"]["refused_64"]
    assert float(rows["uniform"]["loss_16"]) == pytest.approx(math.log(7))
    assert f"{sum(losses) / 2:.3f} ± " in markdown_table(collect(finished))


def test_the_markdown_page_links_figures_that_exist(finished: Run, tmp_path: Path) -> None:
    text = write_markdown(finished, tmp_path / "docs" / "toy.md").read_text()
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert len(links) == 3
    for link in links:
        assert (tmp_path / "docs" / link).read_bytes().startswith(b"\x89PNG")


def test_a_report_can_be_made_again_from_the_directory(finished: Run) -> None:
    before = page(finished)
    (finished.path / "report.html").unlink()
    write_report(Run.read(finished.path))
    assert page(finished) == before


def test_the_headline_names_the_best_and_joins_what_the_spread_cannot_tell_apart(finished: Run) -> None:
    results = collect(finished)
    best = results.ranked(results.loss, 64)
    text = headline(results)
    assert text.startswith("At 4 times the training length (64 tokens)") and best[0].encoding in text
    tied = results.tied(results.loss, 64)
    assert tied[0] is best[0]
    values = [row.values["loss"][64] for row in tied]
    gap = [(value.mean or 0) - (values[0].mean or 0) for value in values]
    room = [(value.spread or 0) + (values[0].spread or 0) for value in values]
    assert all(g <= r for g, r in zip(gap, room, strict=True))


def test_a_diverged_model_is_reported_and_does_not_stop_the_others(
    new_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Explodes(Toy):
        def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
            loss = super().loss(model, batch)
            return loss * float("nan") if any(True for _ in model.encoding.parameters()) else loss

    run = compare(Explodes(), settings(encodings=("nope", "toy_slope"), seeds=(0,)), new_run, quiet())
    write_report(run)
    assert "seed 0 diverged at step 1" in page(run) and "<figcaption>diverged at step 1</figcaption>" in page(run)
    results = collect(run)
    assert results.ranked(results.loss, 16)[0].encoding == "nope"
    assert "seed 0 diverged at step 1" in markdown_table(results) and "toy_slope diverged" in headline(results)


def test_different_numbers_of_scored_tokens_are_an_error(new_run: Path) -> None:
    run = compare(Toy(), settings(encodings=("nope",), steps=2), new_run, quiet())
    file = new_run / "nope-seed1" / "evaluation.json"
    record = json.loads(file.read_text())
    record["lengths"]["16"]["count"] += 1
    file.write_text(json.dumps(record))
    with pytest.raises(RuntimeError, match="different numbers of things"):
        check_same_tokens(run)


def test_an_encoding_that_fails_at_the_training_length_is_an_error(
    new_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no such length")

    monkeypatch.setattr(Toy, "evaluate", refuse)
    with pytest.raises(ValueError, match="no such length"):
        compare(Toy(), settings(encodings=("nope",), steps=1), new_run, quiet())


def test_weight_decay_spares_vectors_and_the_encoding() -> None:
    model = Toy().model("toy_places")
    decayed, free = parameter_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"embed.weight", "project.weight", "out.weight"}  # type: ignore[attr-defined]
    assert {names[id(p)] for p in free["params"]} == {"project.bias", "out.bias", "encoding.table"}  # type: ignore[attr-defined]
    assert free["weight_decay"] == 0.0
    assert parameters(model)[1] == 16 * 16


def test_evaluating_leaves_mode_and_random_state_as_they_were() -> None:
    model = nn.Dropout(0.5).train()
    before = torch.get_rng_state()
    with evaluating(model):
        assert not model.training
        torch.rand(3)
    assert model.training and torch.equal(torch.get_rng_state(), before)


def test_peak_memory_counts_live_tensors_only() -> None:
    model = nn.Linear(100, 100, bias=False)
    x = torch.randn(50, 100)
    # y (50 x 100), its square's input is y itself; then gradients of y and of the weight: 5,000 + 5,000 + 10,000 floats
    # at most, and the gradient of the loss beside them.
    peak = peak_bytes(model, lambda: model(x).pow(2).sum())
    assert 4 * 20_000 <= peak <= 4 * 30_000
    assert all(p.grad is None for p in model.parameters())


def test_spread_is_half_the_range_of_two_and_the_deviation_of_more() -> None:
    assert spread([1.0]) is None
    assert spread([1.0, 3.0]) == 1.0
    assert spread([1.0, 2.0, 3.0]) == 1.0


def test_smoothing_keeps_constants_and_leaves_nan_out() -> None:
    assert plots.smooth(np.full(9, 2.0), 5) == pytest.approx(np.full(9, 2.0))
    assert plots.smooth(np.array([1.0, np.nan, 3.0]), 3) == pytest.approx([1.0, 2.0, 3.0])


def test_looks_differ_for_28_encodings() -> None:
    assert len({(look["color"], look["linestyle"]) for look in map(plots.look, range(28))}) == 28


def test_values_of_a_description_are_written_as_people_do() -> None:
    assert plain_text({"train": {"pieces": 12345}, "test": {"pieces": 7}}) == "train: pieces: 12,345; test: pieces: 7"
    assert plain_text([1, 2.5, "x"]) == "1, 2.5, x"


def test_a_position_that_is_never_asked_has_no_mean_and_warns_of_nothing(finished: Run) -> None:
    """Its mean over the seeds is NaN; numpy said "Mean of empty slice" of it once."""
    row = collect(finished).rows[0]
    longest = str(max(row.values["loss"]))
    rows = [[float("nan"), 1.0, 2.0], [float("nan"), 3.0, float("nan")]]
    records = tuple({"lengths": {longest: {"by_position": each}}} for each in rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = position_curve(dataclasses.replace(row, records=records))
    np.testing.assert_array_equal(found, [np.nan, 2.0, 2.0])
