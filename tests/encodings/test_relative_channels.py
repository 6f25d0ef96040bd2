from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from tests.encodings.case import EncodingCase
from tests.encodings.channels_oracle import brute_score, brute_values, events

RelativeChannels: Any = rp.encodings.RelativeChannels


@pytest.fixture(autouse=True)
def edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges wherever keys are in order, as if these few were many."""
    monkeypatch.setattr("relpos.encodings.pairs.steps.KEYS", 0)


class ChannelsCase(EncodingCase):
    """A configuration, against loops over pairs."""

    name = "relative_channels"
    listed: list[dict[str, Any]]
    width = 8

    def make(self) -> Any:
        return RelativeChannels(self.width, self.listed, self.heads)

    def build(self) -> Any:
        encoding = super().build()
        with torch.no_grad():
            for name, parameter in encoding.named_parameters():
                parameter.copy_(torch.randn_like(parameter) * (0.1 if "scales" in name else 0.5))
        return encoding

    def positions(self, index: Tensor) -> Any:
        if index.dim() == 2:
            rows = [events(row) for row in index]
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return events(index)

    def test_gradcheck(self) -> None:
        """With random directions: there are too many numbers in the tables for one at a time."""
        encoding = self.build()
        q, k, v, content = (x.requires_grad_() for x in self.inputs(4, 4, batch=1))
        leaves = (q, k, v, *encoding.parameters())
        run = lambda *_: self.run(encoding, q, k, v, content)  # noqa: E731
        assert torch.autograd.gradcheck(run, leaves, atol=1e-5, rtol=1e-4, fast_mode=True)

    def current(self, encoding: Any) -> list[dict[str, Any]]:
        """The options, with learned units as they are."""
        found = []
        for channel, c in zip(encoding.channels, self.listed):
            logs = getattr(channel.encoder, "log_scales", None)
            if logs is not None:
                scales = logs.detach().exp().tolist()
                c = {**c, "scales": scales} if "scales" in c else {**c, "unit": scales[0], "encoder": "linear"}
            found.append(c)
        return found

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        return brute_score(encoding, self.current(encoding), q, k, events(q_pos), events(k_pos)).detach()

    def value_truth(self, encoding: Any, p: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor | float:
        found = brute_values(encoding, self.current(encoding), p, events(q_pos), events(k_pos))
        return found.detach() if isinstance(found, Tensor) else found


class TestKeysAndValues(ChannelsCase):
    """The form of ReVAMP: position, time, distance and profile, each with tables for keys and values."""

    listed = [
        {"feature": "index", "clip": 3},
        {"feature": "time", "unit": 0.5, "clip": 6},
        {"feature": "place", "edges": (5.0, 60.0, 300.0)},
        {"feature": "profile", "unit": 0.25, "clip": 4},
    ]


class TestColumnsOfEachHead(ChannelsCase):
    width = 24
    listed = [
        {"feature": "time", "encoder": "log", "unit": 0.5, "step": 0.4, "clip": 5, "signed": True},
        {"feature": "mark", "inject": ("key", "value", "bias")},
        {"feature": "place", "encoder": "linear", "unit": 40.0, "clip": 3, "inject": ("key", "value")},
    ]


class TestNumbers(ChannelsCase):
    listed = [
        {"feature": "index", "clip": 4, "inject": "bias"},
        {"feature": "time", "encoder": "log", "clip": 8, "inject": ("bias",)},
        {"feature": "place", "encoder": "linear", "start": 10.0, "unit": 200.0, "clip": 1, "inject": "bias"},
        {"feature": "profile", "encoder": "decay", "scales": (0.3, 1.0), "inject": "bias"},
        {"feature": "mark", "inject": "bias", "where": "real"},
    ]


class TestSmooth(ChannelsCase):
    listed = [
        {"feature": "time", "encoder": "sinusoid", "scales": (1.3, 5.0), "signed": True, "learned": True},
        {"feature": "time", "unit": "learned", "clip": 5, "inject": ("key", "value", "bias")},
        {"feature": "place", "encoder": "decay", "scales": (30.0, 200.0), "learned": True, "where": "real"},
    ]


class TestGatesAndRotation(ChannelsCase):
    listed = [
        {"feature": "time", "encoder": "rotary", "scales": (2.0, 9.0, 30.0)},
        {"feature": "time", "unit": 1.0, "clip": 3, "inject": ("gate", "bias")},
        {"feature": "place", "encoder": "decay", "scales": (50.0,), "inject": "gate", "learned": True},
        {"feature": "mark", "inject": "gate", "where": "real"},
    ]


class TestAbsolutePlace(ChannelsCase):
    exact_shift = False
    listed = [
        {"feature": "key", "clip": 6, "inject": ("key", "value", "bias")},
        {"feature": "time", "unit": 0.9, "clip": 2, "where": "real"},
    ]
