"""No tensor of n x n is ever allocated: the largest allocation of any operation, forward and backward, is watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import relpos as rp
from tests.core.naive import ToyBias, ToyContent, ToyRow

HEADS, DIM, N = 2, 8, 4096


def tensors_of(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for item in result:
            yield from tensors_of(item)


class Largest(TorchDispatchMode):
    """Keeps the largest storage, in bytes, that any operation returned, and what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operation = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result):
            size = tensor.untyped_storage().nbytes()
            if size > self.bytes:
                self.bytes, self.operation = size, f"{func} {tuple(tensor.shape)}"
        return result


def bias() -> Any:
    return rp.encodings.LearnedBias(HEADS, 64)


def scattered(n: int) -> Tensor:
    return (torch.arange(n) % 7 != 3).expand(2, n)


def padded(n: int) -> Tensor:
    return torch.stack([torch.arange(n) < n - 5, torch.arange(n) >= n // 3])


def packed(n: int) -> Tensor:
    return torch.arange(n) // (n // 2)


def mixed(n: int) -> Tensor:
    return torch.arange(n) % 2


def batched_gaps(n: int) -> Tensor:
    return 2 * torch.arange(n) + torch.tensor([[0], [1]])


CASES: dict[str, tuple[Callable[[], Any], int, Callable[[int], dict[str, Any]]]] = {
    "bias": (bias, 1, lambda n: {}),
    "causal bias": (bias, 1, lambda n: {"causal": True}),
    "window": (bias, 1, lambda n: {"window": 100}),
    "padding of each row": (bias, 2, lambda n: {"key_mask": padded(n)}),
    "scattered padding": (bias, 2, lambda n: {"key_mask": scattered(n)}),
    "documents": (bias, 1, lambda n: {"segments": packed(n), "causal": True}),
    "mixed documents": (bias, 1, lambda n: {"segments": mixed(n)}),
    "dropout": (bias, 1, lambda n: {"dropout": 0.1}),
    "positions with gaps": (bias, 2, lambda n: {"q_pos": batched_gaps(n), "k_pos": batched_gaps(n)}),
    "order": (bias, 1, lambda n: {"q_order": torch.arange(n).flip(0), "k_order": torch.arange(n), "causal": True}),
    "frozen bias": (lambda: bias().requires_grad_(False), 1, lambda n: {"causal": True}),
    "generic": (bias, 1, lambda n: {"kernel": "generic", "causal": True}),
    "times": (lambda: ToyBias(HEADS), 1, lambda n: {"q_pos": torch.arange(n) * 0.5, "k_pos": torch.arange(n) * 0.5}),
    "row bias": (lambda: ToyRow(HEADS), 1, lambda n: {}),
    "content": (lambda: ToyContent(HEADS, DIM, reach=1), 1, lambda n: {}),
    "nothing": (lambda: None, 1, lambda n: {}),
    "nothing, causal with an offset": (lambda: None, 1, lambda n: {"causal": True, "q_pos": torch.arange(n) + 5}),
    "nothing, padding": (lambda: None, 2, lambda n: {"key_mask": padded(n), "causal": True}),
}


def largest(name: str, n: int, layout: Callable[[Tensor], Tensor] = lambda x: x, **more: Any) -> Largest:
    """The largest allocation in a forward and backward pass; inputs and the table are made before."""
    make, batch, options = CASES[name]
    encoding = make()
    q, k, v = (layout(torch.randn(batch, HEADS, n, DIM)).requires_grad_() for _ in range(3))
    given = options(n) | more
    with Largest() as seen:
        rp.attention(q, k, v, encoding, **given).sum().backward()
    return seen


@pytest.mark.parametrize("name", list(CASES))
def test_nothing_quadratic_is_allocated(name: str) -> None:
    """Well below one n x n mask of booleans, let alone of scores."""
    seen = largest(name, N)
    assert seen.bytes < N * N // 2, seen.operation


@pytest.mark.parametrize("name", list(CASES))
def test_the_largest_allocation_grows_linearly(name: str) -> None:
    """From n to 2 n it at most doubles (a tile of fixed size does not grow at all)."""
    small, large = largest(name, N // 4), largest(name, N // 2)
    assert large.bytes <= 2.1 * small.bytes, (small.operation, large.operation)


@pytest.mark.parametrize("name", ["bias", "nothing"])
def test_inputs_in_another_layout(name: str) -> None:
    """A strided last axis sends torch's own attention down its n x n path."""
    seen = largest(name, N, lambda x: x.transpose(2, 3).contiguous().transpose(2, 3))
    assert seen.bytes < N * N // 2, seen.operation


def test_values_of_another_width() -> None:
    q, k, v = torch.randn(1, 2, N, 8), torch.randn(1, 2, N, 8), torch.randn(1, 2, N, 12)
    for encoding in (None, bias()):
        with Largest() as seen:
            rp.attention(q.requires_grad_(), k, v, encoding).sum().backward()
        assert seen.bytes < N * N // 2, seen.operation


@pytest.mark.parametrize("name", ["bias", "nothing", "padding of each row"])
def test_the_detector_works(name: str) -> None:
    """The dense kernel, which does allocate n x n, trips it, by size and by growth."""
    n = 512
    small, large = largest(name, n // 2, kernel="dense"), largest(name, n, kernel="dense")
    assert large.bytes >= HEADS * n * n * 4 and large.bytes > 3 * small.bytes


def test_decoding_allocates_no_square() -> None:
    """A step against a long cache costs one row."""
    stream = rp.Stream(bias())
    with torch.no_grad():
        stream.step(*(torch.randn(1, HEADS, N, DIM) for _ in range(3)))
        cache = N * 2 * DIM * HEADS * 4
        with Largest() as seen:
            for _ in range(3):
                stream.step(*(torch.randn(1, HEADS, 1, DIM) for _ in range(3)))
    assert seen.bytes <= 2 * cache, seen.operation
