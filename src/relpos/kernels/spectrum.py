"""Toeplitz products by FFT: one rectangle of a Toeplitz matrix against many columns, in buffers that fit the cache.

torch's CPU FFT runs on one thread, so rectangles and columns are spread over a pool of threads here. Buffers are kept
by each thread and written with `out=`: fresh ones of this size would cost a page fault every 4 KiB.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

ELEMENTS = 2**19  # of a buffer: 2 MiB in float32
T = TypeVar("T")


@lru_cache(maxsize=256)
def fast_length(least: int) -> int:
    """The smallest length of at least `least` whose prime factors are 2, 3 and 5, and which is even beyond 1."""
    if least <= 1:
        return 1
    best = 1 << (least - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            twos = max(1, ((-(-least // three)) - 1).bit_length()) if three < least else 1
            best = min(best, three << twos) if three << twos >= least else best
            three *= 3
        five *= 5
    return best


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "relpos-fft", initializer=lambda: torch.set_num_threads(1))


def spread(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Runs work(item) for every item without autograd, on as many threads as torch may use."""
    items = list(items)
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        with torch.no_grad():
            for item in items:
                work(item)
        return

    def silent(item: T) -> None:
        with torch.no_grad():  # gradient mode belongs to a thread
            work(item)

    for _ in _pool(threads).map(silent, items):
        pass


class Scratch(threading.local):
    """Buffers of the current thread, by name; the contents are whatever was left there."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        count = 1
        for side in shape:
            count *= side
        flat = self.kept.get(name)
        if flat is None or flat.dtype != dtype or flat.device != device or flat.numel() < count:
            with torch.inference_mode(False):  # a buffer made in inference mode could not be written to outside
                flat = torch.empty(count, dtype=dtype, device=device)
            self.kept[name] = flat
        return flat[:count].view(shape)

    def clear(self) -> None:
        self.kept.clear()


def spectrum(generator: Tensor, n_q: int, length: int) -> Tensor:
    """Spectrum of the convolution that a generator (.., n_q + n_k - 1), index j - i + n_q - 1, stands for.

    y_i = sum_j c_{j-i} x_j is the convolution of x with h_s = c_{-s}, s = i - j; negative s wrap round.
    """
    n_k = generator.shape[-1] - n_q + 1
    kernel = generator.new_zeros(*generator.shape[:-1], length)
    reversed_ = generator.flip(-1)  # index s + n_k - 1
    kernel[..., :n_q] = reversed_[..., n_k - 1 :]
    if n_k > 1:
        kernel[..., length - n_k + 1 :] = reversed_[..., : n_k - 1]
    found: Tensor = torch.fft.rfft(kernel)
    return found


def generator_of(kernel: Tensor, n_q: int, n_k: int) -> Tensor:
    """The inverse of the layout of `spectrum`: (.., length) by s modulo the length to (.., n_q + n_k - 1)."""
    parts = [kernel[..., kernel.shape[-1] - n_k + 1 :], kernel[..., :n_q]] if n_k > 1 else [kernel[..., :n_q]]
    return torch.cat(parts, -1).flip(-1)
