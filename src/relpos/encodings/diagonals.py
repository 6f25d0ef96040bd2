"""Between what is indexed by lag and what is indexed by pairs: constant diagonals, and sums along them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relpos.positions import is_traced


def toeplitz(generator: Tensor, n_q: int) -> Tensor:
    """(.., n_q + n_k - 1) with index j - i + n_q - 1 to the matrix (.., n_q, n_k), as a view of a flipped copy."""
    n_k = generator.shape[-1] - n_q + 1
    if is_traced():  # `unfold` would tie the program to this length
        query, key = (torch.arange(n, device=generator.device) for n in (n_q, n_k))
        return generator[..., key - query[:, None] + n_q - 1]
    return generator.unfold(-1, n_k, 1).flip(-2)


def hankel(generator: Tensor, n_q: int) -> Tensor:
    """`toeplitz` with the order of its rows reversed: entry (r, j) is generator[.., r + j]. A view without a copy."""
    return generator.unfold(-1, generator.shape[-1] - n_q + 1, 1)


def diagonal_sums(matrix: Tensor) -> Tensor:
    """The transpose of `toeplitz`: (.., n_q, n_k) to (.., n_q + n_k - 1), the sums over equal j - i."""
    return antidiagonal_sums(matrix.flip(-2))


def antidiagonal_sums(matrix: Tensor) -> Tensor:
    """The transpose of `hankel`: (.., n_q, n_k) to (.., n_q + n_k - 1), the sums over equal r + j."""
    n_q, n_k = matrix.shape[-2:]
    width = n_q + n_k - 1
    skewed = nn.functional.pad(matrix, (0, n_q))  # row r moves right by r
    flat = skewed.flatten(-2)[..., : n_q * width] if n_q else skewed.flatten(-2)
    return flat.view(*flat.shape[:-1], n_q, width).sum(-2)


def skew(product: Tensor, t_k: int) -> Tensor:
    """(.., t_q, t_q + t_k - 1), each row by lag index, to (.., t_q, t_k): row i reads from t_q - 1 - i on. A view."""
    t_q, width = product.shape[-2:]
    product = product.contiguous()
    strides = (*product.stride()[:-2], width - 1, 1)
    return product.as_strided((*product.shape[:-1], t_k), strides, product.storage_offset() + t_q - 1)


def unskew(matrix: Tensor) -> Tensor:
    """The transpose of `skew`: (.., t_q, t_k) to (.., t_q, t_q + t_k - 1), zeros where no key has that lag."""
    t_q, t_k = matrix.shape[-2:]
    out = matrix.new_zeros(*matrix.shape[:-1], t_q + t_k - 1)
    skew(out, t_k).copy_(matrix)
    return out
