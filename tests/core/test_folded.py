"""Matrices that a gate keeps while nobody asks for gradients: always those of the encoding as it is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.mixers import folded


def unit(encoding: str, window: tuple[int, ...] = (5, 4), groups: int = 2) -> rp.PoSGU:
    torch.manual_seed(0)
    made = rp.PoSGU(8, window, encoding, groups=groups)
    with torch.no_grad():
        for x in made.parameters():
            x.add_(0.3 * torch.randn_like(x))
    return made


def kept(made: rp.PoSGU) -> Tensor | None:
    return made._folded._weights


@torch.no_grad()
def without(made: rp.PoSGU, x: Tensor) -> Tensor:
    return made(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("encoding", "window"), [("lrpe", (5, 4)), ("gqpe", (5, 4)), ("lrpe", (20,)), ("gqpe", (20,))])
def test_equal_with_gradients_and_without(encoding: str, window: tuple[int, ...], dtype: torch.dtype) -> None:
    made, x = unit(encoding, window), torch.randn(3, 20, 8, dtype=torch.float64).to(dtype)
    want = made(x).detach()
    assert kept(made) is None  # gradients were asked for
    near = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for _ in range(2):
        out = without(made, x)
        assert out.dtype == dtype
        torch.testing.assert_close(out, want, rtol=near, atol=near)
    assert kept(made) is not None


def _by_data(made: rp.PoSGU) -> None:
    next(made.encoding.parameters()).data.mul_(1.5)


def _by_optimizer(made: rp.PoSGU) -> None:
    for x in made.parameters():
        x.grad = torch.ones_like(x)
    torch.optim.SGD(made.parameters(), 0.1).step()


def _by_state(made: rp.PoSGU) -> None:
    made.load_state_dict({name: 2 * x for name, x in made.state_dict().items()})


def _by_new_storage(made: rp.PoSGU) -> None:
    first = next(made.encoding.parameters())
    first.data = first.data + 1


@pytest.mark.parametrize("change", [_by_data, _by_optimizer, _by_state, _by_new_storage])
@pytest.mark.parametrize("encoding", ["lrpe", "gqpe"])
def test_a_change_of_any_kind_is_seen(encoding: str, change: Callable[[rp.PoSGU], None]) -> None:
    made, x = unit(encoding), torch.randn(3, 20, 8)
    before = without(made, x)
    change(made)
    after = without(made, x)
    assert (after - before).abs().max() > 1e-4
    torch.testing.assert_close(after, made(x).detach(), rtol=1e-5, atol=1e-6)


def test_made_once() -> None:
    made, x = unit("gqpe"), torch.randn(3, 20, 8)
    without(made, x)
    first = kept(made)
    without(made, x[:1])
    assert kept(made) is first
    without(made, x.double())
    assert kept(made) is not first


def test_copies_begin_without_and_training_forgets() -> None:
    made, x = unit("lrpe"), torch.randn(3, 20, 8)
    want = without(made, x)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert kept(other) is None
        torch.testing.assert_close(without(other, x), want, rtol=0, atol=0)
    assert made.train() is made and kept(made) is None
    assert not any("folded" in name for name in made.state_dict())


def test_large_matrices_and_other_methods_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = unit("lrpe"), torch.randn(3, 20, 8)
    want = without(made, x)
    made.train()
    monkeypatch.setattr(folded, "MOST", 2 * 20**2 - 1)
    torch.testing.assert_close(without(made, x), want, rtol=1e-5, atol=1e-6)
    monkeypatch.undo()
    made.method = "axes"
    torch.testing.assert_close(without(made, x), want, rtol=1e-5, atol=1e-6)
    assert kept(made) is None


def test_a_device_that_is_another_is_said() -> None:
    with torch.no_grad(), pytest.raises(ValueError, match="device"):
        unit("lrpe").to("meta")(torch.randn(1, 20, 8))
