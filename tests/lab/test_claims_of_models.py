"""The claims that train language models: stability and extrapolation, from the runs to the arithmetic of verdicts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relpos.encodings.transform.conv_spe import ConvSPE
from relpos.encodings.transform.sine_spe import SineSPE
from relpos.encodings.transform.spe import SPE
from relpos.lab.claims import extrapolation, prove, stability
from relpos.lab.claims.frame import markdown_table
from relpos.lab.claims.models import Spread, apart
from relpos.tasks.language import BytesLM
from tests.lab.conftest import quiet


def text(length: int = 16) -> BytesLM:
    rng = np.random.default_rng(0)
    sides = {side: rng.integers(97, 105, size=700).astype(np.uint8) for side in ("train", "validation", "test")}
    return BytesLM(train_length=length, judged=2, splits=sides)


@pytest.mark.parametrize("claim", [stability, extrapolation])
def test_a_claim_runs_and_goes_on(claim: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "text_task", lambda s: text(s["length"]))
    folder = tmp_path / "run"
    found = prove(claim, "quick", folder, quiet())
    assert found.holds is None and found.pictures[claim.name][1:4] == b"PNG"
    assert set(found.numbers["cells"]) == set(claim.CONTESTANTS)
    page = (folder / "page.md").read_text()
    assert all(key in page for key in claim.CONTESTANTS) and "*unigram*" in page
    stored = json.loads((folder / "finding.json").read_text())["numbers"]
    records = sorted((folder / "models").rglob("evaluation.json"))
    assert len(records) == len(claim.CONTESTANTS)
    times = {path: path.stat().st_mtime_ns for path in records}
    records[0].unlink()
    prove(claim, "quick", folder, quiet())
    again = json.loads((folder / "finding.json").read_text())["numbers"]
    assert again["cells"] == stored["cells"]
    assert {path: path.stat().st_mtime_ns for path in records[1:]} == {path: times[path] for path in records[1:]}


def test_stability_trains_what_it_says() -> None:
    labels = stability._labels({"count": 8})
    assert labels["PRF + RPE"] == "learned_bias[mixer=kernelized,normalize=false,feature_count=8]"
    assert labels["NPRF"] == "nope[mixer=kernelized,normalize=true,feature_count=8]"
    assert labels["softmax"] == "nope" and "feature_count" not in labels["ELU + 1"]


def test_a_run_is_lost_where_the_module_says() -> None:
    assert stability.lost(None, 2.0, [3.0, 2.5], unigram=3.2) is None
    assert stability.lost(18, None, [3.5], unigram=3.2) == 17
    assert stability.lost(None, 3.3, [3.5, 3.0, 2.9, 3.4], unigram=3.2) == 3 * stability.CHUNK
    assert stability.lost(None, None, [2.0, 2.0], unigram=3.2) == 2 * stability.CHUNK
    assert stability.lost(None, 4.0, [4.5, 4.0], unigram=3.2) == 0


def test_curves_are_averaged_up_to_the_first_loss_that_is_no_number() -> None:
    losses: list[float | None] = [*([2.0] * stability.CHUNK), 5.0, 7.0]
    assert stability.averaged([{"loss": loss} for loss in losses]) == [2.0, 6.0]
    assert stability.averaged([{"loss": loss} for loss in [*losses, None, None]]) == [2.0, 6.0]
    assert stability.rise([3.0, 2.0, 2.5, 1.0, 1.25]) == 0.5
    assert stability.rise([]) == stability.rise([3.0, 2.0]) == 0.0


RATES = [1e-3, 1e-2]


def runs(**changes: list[float | None]) -> dict[str, Any]:
    """Title -> cells of two rates and two seeds, equal but for 0.01 between seeds; None is a run that was lost."""
    losses: dict[str, list[float | None]] = {
        "softmax": [2.4, 2.5], "softmax + RPE": [1.8, 2.0], "PRF": [2.6, None], "PRF + RPE": [2.1, None],
        "NPRF": [2.4, 2.3], "NPRF + RPE": [2.0, 1.9], "ELU + 1": [2.5, 2.4],
    }  # fmt: skip
    losses |= {key.replace("_", " + "): value for key, value in changes.items()}
    return {
        key: [
            {
                "rate": rate, "seed": seed, "loss": None if loss is None else loss + 0.01 * seed,
                "validation": None if loss is None else loss, "lost": 40 if loss is None else None, "rise": 0.25,
                "curve": [3.0, 2.0],
            }
            for rate, loss in zip(RATES, own, strict=True)
            for seed in (0, 1)
        ]
        for key, own in losses.items()
    }  # fmt: skip


def judged(**changes: list[float | None]) -> Any:
    s = stability.presets["results"] | {"rates": RATES, "seeds": [0, 1]}
    return stability.conclude(runs(**changes), s, {"unigram": 3.2})


def test_stability_is_judged_by_the_numbers() -> None:
    found = judged()
    assert found.numbers["gap_closed"] == pytest.approx((2.3 - 1.9) / (2.3 - 1.8)) and found.holds
    assert found.numbers["rates"]["NPRF"] == 1e-2 and found.numbers["rates"]["PRF"] == 1e-3
    assert "RPE closes 80% of the gap" in found.verdict and "unnormalised features 2 and 2" in found.verdict
    assert "PRF diverges at rate 0.01 and lags behind NPRF by 0.300 nats" in found.verdict
    assert "is of softmax + RPE at rate 0.01: by 0.25 nats" in found.body
    assert "lost at step 40, 40" in found.body and "**1.905 ± 0.007**" in found.body and "| 3.200 |  |" in found.body
    assert judged(NPRF=[2.4, None]).holds is False  # the method itself was lost
    assert judged(softmax_RPE=[1.7, 2.0]).holds is False  # two thirds of the gap
    level = judged(PRF=[2.4, 2.3], PRF_RPE=[2.0, 1.9])
    assert level.holds is False and "PRF is level with NPRF" in level.verdict
    ahead = judged(PRF=[2.4, 2.1], PRF_RPE=[2.0, 1.8])
    assert ahead.holds is False and "PRF + RPE is ahead of NPRF + RPE by 0.100" in ahead.verdict
    none = judged(NPRF=[None, None])
    assert none.holds is False and none.numbers["gap_closed"] is None and none.pictures


def test_a_gap_is_closed_by_its_share() -> None:
    assert stability.gap_closed(3.0, 2.0, 1.0) == 0.5
    assert stability.gap_closed(3.0, 0.5, 1.0) == 1.25
    assert stability.gap_closed(3.0, 3.5, 1.0) == -0.25
    assert stability.gap_closed(1.0, 2.0, 1.0) is None


def lengths(**changes: Any) -> Any:
    rows: dict[str, list[float | None]] = {key: [2.0, 2.0, 2.0, 2.01] for key in extrapolation.CONTESTANTS}
    rows |= {"sinusoidal": [1.9, 2.2, 2.8, 3.5], "learned": [1.9, 2.3, 2.7, 3.0]}
    rows |= {key.replace("_", ", "): value for key, value in changes.items()}
    cells = {
        key: [
            {
                "seed": seed, "by_position": [2.0] * 16 + [None],
                "losses": {str(2**i): None if loss is None else loss + 0.1 * seed for i, loss in enumerate(row)},
            }
            for seed in (0, 1)
        ]
        for key, row in rows.items()
    }  # fmt: skip
    noise = {key: None for key in cells} | {"SPE, Gaussian": {"initial": 10.0, "learned": 0.0}}
    s = extrapolation.presets["results"]
    return extrapolation.conclude(cells, noise, {m: m * 128 for m in (1, 2, 4, 8)}, s, {"unigram": 3.2})  # type: ignore[arg-type]


def test_extrapolation_is_judged_by_the_numbers() -> None:
    found = lengths()
    assert found.holds and found.numbers["changes"]["sinusoidal"] == pytest.approx(1.6)
    assert "From 128 to 1024 bytes" in found.verdict and "SPE, Gaussian +0.010 ± 0.000" in found.verdict
    assert "| SPE, Gaussian | +10.0 dB | none |" in found.body and "| none | 2.050 ± 0.071 |" in found.body
    lost = lengths(**{"SPE_Gaussian": [2.0, 2.0, 2.0, 2.05]})
    assert lost.holds is False and lost.numbers["keeps"]["SPE, exact"]
    assert lengths(learned=[1.9, 1.9, 1.9, 1.9]).holds is False  # an absolute encoding kept its loss
    idle = lengths(sinusoidal=[3.2, 3.2, 3.2, 3.2])
    assert idle.holds and idle.numbers["idle"] == ["sinusoidal"]
    assert "left out of the judgement: sinusoidal." in idle.verdict
    assert lengths(sinusoidal=[3.2] * 4, learned=[3.2] * 4).holds is None  # nobody to compare with
    assert lengths(**{"SPE_Gaussian": [3.2] * 4}).holds is None
    refused = lengths(learned=[1.9, None, None, None])
    assert (
        refused.holds
        and "learned no number" in refused.verdict
        and "| learned | 1.950 ± 0.071 | no number" in (refused.body)
    )


def sines() -> SPE:
    return SineSPE(2, 6, sines=2, realizations=16, gated=False)


def kernels() -> SPE:
    return ConvSPE(2, 6, 4, realizations=16, gated=False)


@torch.no_grad()
@pytest.mark.parametrize("made", [sines, kernels])
def test_the_noise_of_a_logit_is_that_of_the_formula(made: Any) -> None:
    """(sX^2 sY^2 / D + L^2) / R in expectation over white q and k, with S the variance of a code's entry."""
    torch.manual_seed(0)
    encoding: SPE = made()
    n = 24
    template = encoding.template(torch.arange(1 - n, n)).double()
    at = torch.arange(n)
    p = template[..., at[None] - at[:, None] + n - 1].square().sum(1)  # E L^2 of a pair
    if isinstance(encoding, SineSPE):
        gains = torch.nn.functional.softplus(encoding.gains.double()).square()
        variances = [gains.sum(-1) / (2 * encoding.sines)] * 2
    else:
        assert isinstance(encoding, ConvSPE)
        variances = [kernel.double().square().sum(-1) for kernel in (encoding.query_kernel, encoding.key_kernel)]
    product = (variances[0].sum(-1) * variances[1].sum(-1)).mean()
    want = float((product + p.mean()) / encoding.realizations / p.mean())
    assert extrapolation.logit_noise(encoding, n, draws=400) == pytest.approx(want, rel=0.1)


def test_exact_noise_is_none_and_orthogonal_noise_is_less() -> None:
    def noise(kind: str) -> float:
        torch.manual_seed(0)
        return extrapolation.logit_noise(SineSPE(2, 8, sines=1, realizations=12, noise=kind), 16, draws=60)  # type: ignore[arg-type]

    assert extrapolation.decibels(noise("exact")) is None
    assert noise("orthogonal") < 0.8 * noise("gaussian")
    assert extrapolation.decibels(0.1) == pytest.approx(-10)


def test_spreads_and_tables() -> None:
    assert Spread.of([1.0]).text() == "1.000" and Spread.of([1.0, 3.0]) == Spread(2.0, math.sqrt(2))
    assert apart(Spread(2.0, None), Spread(1.9, None)) and not apart(Spread(1.9, None), Spread(2.0, None))
    assert not apart(Spread(2.0, 0.3), Spread(1.6, 0.4)) and apart(Spread(2.2, 0.3), Spread(1.6, 0.4))
    assert markdown_table("a", ["b"], {"c": ["d"]}) == "| a | b |\n|---|---:|\n| c | d |"
