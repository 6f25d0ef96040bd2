"""What a bias says of its far ends is what it does there: kernels replace it by a straight line beyond the reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from relpos.encodings import registry
from relpos.encodings.base import Bias
from relpos.positions import Index

KNOWN = {"heads": 3, "dim": 8, "model_dim": 16}
FAR = torch.tensor([0, 1, 2, 3, 17, 1000, 99_999])


def built() -> list[Any]:
    """Every bias on a line that the registry has, causal and not, and forms that its defaults do not show."""
    found = []
    for name, entry in registry.each():
        cls = entry.load()
        if entry.cls is None and issubclass(cls, Bias) and Index in cls.takes:
            for causal in (True, False):
                found.append(pytest.param(name, {"causal": causal}, id=f"{name}-{causal}"))
    more = [
        ("learned_bias", {"max_lag": 5, "beyond": "clip"}),
        ("learned_bias", {"max_lag": 5, "beyond": "zero"}),
        ("learned_bias", {"max_lag": 5, "beyond": "error"}),
        ("t5", {"buckets": 10, "max_distance": 37}),
        ("alibi", {"symmetric": True, "slopes": "geometric"}),
        ("hype", {"slope": [0.5, 2.0, 0.013]}),
        ("hype", {"slope": 0.7, "learned": True}),
    ]
    return [*found, *(pytest.param(name, options, id=f"{name}-{options}") for name, options in more)]


def make(name: str, options: dict[str, Any]) -> Bias:
    torch.manual_seed(0)
    context = {**KNOWN, "causal": options.get("causal", True)}
    encoding = registry.fitted(name, context, {key: x for key, x in options.items() if key != "causal"})
    assert isinstance(encoding, Bias)
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return encoding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), built())
def test_a_bias_beyond_its_reach_is_the_line_of_its_tail(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    encoding = make(name, options).to(dtype)
    tail = encoding.tail()
    if tail is None:
        return
    rates = torch.zeros(3, 2) if tail.rates is None else tail.rates
    assert isinstance(tail.reach, int) and tail.reach >= 0
    assert rates.shape == (3, 2) and (rates >= 0).all() and not rates.requires_grad
    for side, sign in ((0, -1), (1, 1)):
        if side == 1 and encoding.causal_only:
            continue
        got = encoding.at(sign * (FAR + tail.reach))
        line = encoding.at(torch.tensor([sign * tail.reach])) - rates[:, side : side + 1] * FAR
        torch.testing.assert_close(got.double(), line.double(), rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)


def test_which_biases_end() -> None:
    """A free or slowly falling bias says that it does not end; so does a table that refuses to be left."""
    ends = {name: make(name, {}).tail() for name in ("t5", "alibi", "learned_bias", "kerple", "sandwich")}
    assert ends["kerple"] is None and ends["sandwich"] is None
    assert ends["t5"].reach < 128 and ends["t5"].rates is None
    assert ends["alibi"].reach == 0 and torch.equal(ends["alibi"].rates[:, 0], make("alibi", {}).slopes)
    assert ends["learned_bias"].reach == 128
    assert make("learned_bias", {"max_lag": 5, "beyond": "error"}).tail() is None


def test_the_reach_is_no_longer_than_it_must_be() -> None:
    """One token nearer, some head is off the line: a band wider than the bias would be waste."""
    for name, options in (("t5", {}), ("learned_bias", {"max_lag": 5}), ("hype", {"slope": [0.5, 2.0, 0.013]})):
        encoding = make(name, {"causal": True} | options).double()
        reach = encoding.tail().reach
        assert reach > 1 and encoding.tail().rates is None
        ends: Tensor = encoding.at(torch.tensor([-reach - 1, -reach, 1 - reach]))
        assert torch.equal(ends[:, 0], ends[:, 1]) and not torch.equal(ends[:, 1], ends[:, 2])
