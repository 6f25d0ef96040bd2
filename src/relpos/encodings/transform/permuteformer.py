"""PermuteFormer: powers of a permutation of the features, and a decay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relpos.encodings.base import Transform, check_heads, positive
from relpos.encodings.buffers import WideBuffers
from relpos.encodings.transform.shared import as_heads
from relpos.positions import Index, Position, Positions


class PermuteFormer(WideBuffers, Transform):
    """Permutes the features of token i by the i-th power of a fixed permutation a head, and lets weights decay.

        weight(i, j) = r^|j - i| sum_c phi(q_i)[c] phi(k_j)[P^(j - i)(c)],   r_h = sigmoid(2 + 3 h/heads), h = 0..

    dim        features (the width of a head in softmax attention)
    decay      False leaves the factor r away
    order, start, length   (heads, dim) buffers, the permutations as their cycles, one behind the other: slot s holds
               feature order[s] of a cycle that begins at slot start[s] and has length[s] members
    rates      (heads,) buffer, -ln r
    generator  of the draw; the same object gives the same permutations whatever the length

    A power costs one addition modulo the length of the cycle, for any position, negative ones too; nothing is stored a
    position. A feature in a cycle of its own tells nothing of the position, and one in a cycle of length L tells it
    modulo L. No parameters. Softmax attention takes the permutation of q and k alone, without the decay.

    Source: Chen 2021, section 4. There the decay is r^i on the queries and r^-i on the keys, and the released code
    computes it so: r^-i leaves float32 after 700 tokens for r = 0.88. Here it is `decay`, a factor of the lag, finite
    at any length; in two-sided attention it falls on both sides, where r^(i - j) would grow without bound for the keys
    after the query. The released code tabulates the powers of 5,000 positions.
    """

    takes = (Index,)
    learned = False
    extrapolates = True
    order: Tensor
    start: Tensor
    length: Tensor
    rates: Tensor
    reference = """@inproceedings{chen2021permuteformer,
  title={PermuteFormer: Efficient Relative Position Encoding for Long Sequences},
  author={Chen, Peng}, booktitle={EMNLP}, year={2021}}"""

    def __init__(self, heads: int, dim: int, decay: bool = True, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.heads, self.dim, self.has_decay = check_heads(heads), positive("dim", dim), bool(decay)
        device = "cpu" if generator is None else generator.device
        drawn = [torch.randperm(dim, generator=generator, device=device).tolist() for _ in range(heads)]
        for name, rows in zip(("order", "start", "length"), zip(*map(_cycles, drawn))):
            self.register_buffer(name, torch.tensor(rows))
        ratio = 2 + 3 * torch.arange(heads, dtype=torch.float64) / heads
        self.register_buffer("rates", nn.functional.softplus(-ratio))

    def decay(self) -> Tensor | None:
        return self.rates if self.has_decay else None

    def powers(self, exponents: Tensor) -> Tensor:
        """P^e(c) of each feature c: integers (..) to (heads, .., dim)."""
        slot = self.order.argsort(-1)  # of each feature
        start, length = self.start.gather(-1, slot), self.length.gather(-1, slot)
        shape = (self.heads, *[1] * exponents.dim(), self.dim)
        start, length, slot = (x.view(shape) for x in (start, length, slot))
        turned = start + (slot - start + exponents.unsqueeze(-1)).remainder(length)
        return self.order.gather(-1, turned.flatten(1)).view(turned.shape)

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: None = None) -> Tensor:
        return self._permuted(q, q_pos)

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: None = None) -> Tensor:
        return self._permuted(as_heads(k, self.heads, "PermuteFormer"), k_pos)

    def _permuted(self, x: Tensor, positions: Positions) -> Tensor:
        self.check_positions(positions)
        assert isinstance(positions, Position)
        if x.shape[1] != self.heads or x.shape[-1] != self.dim:
            raise ValueError(
                f"PermuteFormer was built for {self.heads} heads of width {self.dim}, got {x.shape[1]} of "
                f"{x.shape[-1]}; dim is the number of features in kernelised attention, the width of a head in softmax"
            )
        index = self.powers(positions.values)  # (heads, n, dim) or (heads, batch, n, dim)
        index = index.movedim(0, 1) if index.dim() == 4 else index.unsqueeze(0)
        return x.gather(-1, index.expand(x.shape))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dim={self.dim}, decay={self.has_decay}"


def _cycles(permutation: list[int]) -> tuple[list[int], list[int], list[int]]:
    """order, start and length by slot."""
    order: list[int] = []
    start: list[int] = []
    length: list[int] = []
    seen: set[int] = set()
    for first in range(len(permutation)):
        cycle, at = [], first
        while at not in seen:
            seen.add(at)
            cycle.append(at)
            at = permutation[at]
        start += [len(order)] * len(cycle)
        length += [len(cycle)] * len(cycle)
        order += cycle
    return order, start, length
