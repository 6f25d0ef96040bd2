"""Multiply-accumulates: each kind of module counts its own products, once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import relpos as rp
from relpos.models import ViT, macs


def test_linear_layers_and_convolutions() -> None:
    assert macs(nn.Linear(5, 7), 3, 4, 5) == 3 * 4 * 5 * 7
    assert macs(nn.Conv2d(4, 8, (3, 5), 2, 1, groups=2), 2, 4, 9, 11) == 2 * 8 * 5 * 5 * 3 * 5 * 2
    assert macs(nn.Conv1d(4, 8, 3), 1, 4, 10) == 8 * 8 * 4 * 3
    assert macs(nn.Sequential(nn.LayerNorm(5), nn.GELU(), nn.Dropout(0.5)), 2, 5) == 0


class Own(nn.Module):
    """Knows of its own product; its linear layer is counted by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * x
        return out

    def macs(self, given: tuple[int, ...], out: tuple[int, ...]) -> int:
        return 1000 * given[0] + out[-1]


class Narrow(nn.Linear):
    """A class whose base is known."""


def test_a_module_answers_for_itself_and_is_asked_once_a_call() -> None:
    one = Own()
    assert macs(one, 3, 4) == 3004 + 3 * 16
    assert macs(nn.Sequential(one, one), 3, 4) == 2 * (3004 + 3 * 16)
    assert macs(Narrow(4, 2), 1, 4) == 8


@pytest.mark.parametrize(
    ("encoding", "options", "making"),
    [("lrpe", {}, 0), ("gqpe", {}, 5), ("gqpe", {"kind": "diagonal"}, 4), ("gqpe", {"kind": "isotropic"}, 3)],
)
def test_gates_count_their_dense_form(encoding: str, options: dict[str, str], making: int) -> None:
    gate = rp.PoSGU(16, (3, 5), encoding, groups=4, encoding_options=options)
    assert macs(gate, 2, 7, 15, 16) == 2 * 7 * 15 * 15 * 8 + making * 15 * 15 * 4
    assert macs(rp.SGU(16, (3, 5)), 2, 7, 15, 16) == 2 * 7 * 15 * 15 * 8
    assert macs(rp.PoSGU(16, (15,), "gqpe", groups=4), 15, 16) == 15 * 15 * (8 + 2 * 4)
    assert macs(rp.PoSGU(16, (3, 5), "lrpe", groups=4, free=True), 15, 16) == 2 * 15 * 15 * 8


def test_a_vision_transformer_by_hand() -> None:
    dim, heads, depth, n = 16, 2, 3, 20
    model = ViT((12, 15), 3, 4, dim, depth, heads, "swin", in_channels=1)
    layer = 4 * n * dim * dim + 2 * n * n * dim + 2 * n * dim * 4 * dim
    assert macs(model, 1, 1, 12, 15) == n * 9 * dim + depth * layer + dim * 4
    assert macs(model, 5, 1, 12, 15) == 5 * macs(model, 1, 1, 12, 15)


@pytest.mark.parametrize(("features", "making"), [("prf", 2 * 8 * 6), ("elu1", 0)])
def test_kernelized_attention_is_linear_in_length(features: str, making: int) -> None:
    layer = rp.SelfAttention(16, 2, None, "kernelized", features=features, feature_count=6 if making else None)
    width = 6 if making else 8
    assert macs(layer, 1, 30, 16) == 30 * (4 * 16 * 16 + 2 * (making + 2 * width * 9))


def test_the_network_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Dropout()).double()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert macs(model, 2, 4) == 32
    assert [module.training for module in model] == [True, False, True] and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError):
        macs(model, 2, 5)
    assert model.training and not any(module._forward_hooks for module in model.modules())
