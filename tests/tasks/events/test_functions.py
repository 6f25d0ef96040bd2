"""Pictures of what channels have learned: the curves are the numbers that attention uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from relpos.encodings.content.relative_channels import RelativeChannels
from relpos.mixers.functional import attention
from relpos.positions import Index, Times
from relpos.tasks.events.functions import curves, functions

CHANNELS = {
    "buckets": {"feature": "time", "encoder": "buckets", "unit": 0.5, "clip": 6},
    "log": {"feature": "time", "encoder": "log", "unit": 0.25, "step": 0.5, "clip": 5},
    "edges": {"feature": "time", "encoder": "buckets", "edges": (0.5, 1.0, 4.0)},
    "linear": {"feature": "time", "encoder": "linear", "unit": 1.0, "clip": 4},
    "sinusoid": {"feature": "time", "encoder": "sinusoid", "scales": (3.0, 10.0), "signed": True},
    "decay": {"feature": "time", "encoder": "decay", "scales": (1.0, 5.0)},
    "index": {"feature": "index", "encoder": "buckets", "clip": 4},
}


def scrambled(channel: dict[str, object], inject: str) -> RelativeChannels:
    torch.manual_seed(0)
    encoding = RelativeChannels(8, [{**channel, "inject": inject}], heads=2).double()
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.normal_()
    return encoding


def scores(encoding: RelativeChannels, q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Changes of the score for keys that lie x before the query, against the first of them, by way of attention."""
    keys = {"time": Times(-x.flip(0)), "index": Index(-x.flip(0).round().long())}
    query = {"time": Times(torch.zeros(1, dtype=torch.float64)), "index": Index(torch.zeros(1, dtype=torch.int64))}
    zero, values = torch.zeros(1, 2, len(x), 8, dtype=torch.float64), []
    for first in range(0, len(x), 8):
        hot = zero.clone()
        for at in range(first, min(first + 8, len(x))):
            hot[..., at, at - first] = 1.0
        values.append(attention(q, zero, hot, encoding, q_pos=query, k_pos=keys, kernel="dense")[0, :, 0])
    log_p = torch.cat(values, -1)[:, : len(x)].log().flip(-1)
    return log_p - log_p[:, :1]


@pytest.mark.parametrize("inject", ["bias", "key"])
@pytest.mark.parametrize("name", CHANNELS)
@torch.no_grad()
def test_a_curve_is_what_attention_adds(name: str, inject: str) -> None:
    encoding = scrambled(CHANNELS[name], inject)
    q = torch.randn(1, 2, 1, 8, dtype=torch.float64)
    some = torch.linspace(0, 3, 13, dtype=torch.float64)

    def run() -> object:
        return scores(encoding, q, some)

    (curve,) = curves(encoding, run=run)
    assert curve.what == {"bias": "bias", "key": "score"}[inject] and curve.values.shape == (2, len(curve.x))
    chosen = np.linspace(0, len(curve.x) - 1, min(len(curve.x), 13)).astype(int)
    wanted = scores(encoding, q, torch.from_numpy(curve.x[chosen]))
    values = curve.values[:, chosen]
    np.testing.assert_allclose(values - values[:, :1], wanted.numpy(), atol=1e-9)
    assert "prepare" not in encoding.__dict__


def test_tables_without_data_are_drawn_by_their_length() -> None:
    encoding = scrambled(CHANNELS["buckets"], "value")
    (curve,) = curves(encoding, reach={"time": 2.0})
    table = encoding.channels[0].values
    assert curve.what == "value" and curve.x[-1] == 2.0 and isinstance(table, torch.Tensor)
    np.testing.assert_allclose(curve.values[0, -1], table[4].norm().item())


def test_a_picture_has_a_row_a_layer_and_a_column_a_function(tmp_path: Path) -> None:
    both = [{**CHANNELS["log"], "inject": ("bias", "key")}, {"feature": "mark", "inject": "bias"}]
    model = nn.ModuleList(RelativeChannels(8, both, heads=2) for _ in range(2))
    (made,) = functions(model, tmp_path, {"time": "hours"}, lines={"time": 2.0})
    assert made.path.exists() and made.kind == "image" and "bias, length of key vector" in made.title
    found = curves(model)
    assert [(c.layer, c.feature, c.what) for c in found[:3]] == [
        (1, "time", "bias"), (1, "time", "key"), (1, "mark", "bias"),
    ]  # fmt: skip
    assert len(found) == 6 and all(np.isfinite(c.values).all() for c in found)
    assert functions(nn.Linear(2, 2), tmp_path) == []
