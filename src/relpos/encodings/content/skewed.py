"""Vectors laid out by lag, multiplied with queries or keys without an n x n x dim tensor (Huang et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from relpos.encodings.diagonals import skew, unskew


def from_queries(q: Tensor, vectors: Tensor) -> Tensor:
    """q_i . vectors[j - i + t_q - 1]: q (.., t_q, dim), vectors (.., t_q + t_k - 1, dim), to (.., t_q, t_k)."""
    return skew(q @ vectors.mT, vectors.shape[-2] - q.shape[-2] + 1)


def from_queries_backward(grad: Tensor, q: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of q and of the vectors."""
    by_lag = unskew(grad)
    return by_lag @ vectors, (by_lag.mT @ q).sum_to_size(vectors.shape)


def from_keys(k: Tensor, vectors: Tensor) -> Tensor:
    """k_j . vectors[j - i + t_q - 1]: seen from a key, the same vectors lie in the opposite order."""
    return from_queries(k, vectors.flip(-2)).mT


def from_keys_backward(grad: Tensor, k: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of k and of the vectors."""
    by_key, by_vector = from_queries_backward(grad.mT, k, vectors.flip(-2))
    return by_key, by_vector.flip(-2)


def pick(product: Tensor, index: Tensor) -> Tensor:
    """product[.., i, index[i, j]]: product (batch, heads, t, rows), index (t, s) or (batch, t, s), to (.., t, s)."""
    index = index if index.dim() == 2 else index.unsqueeze(1)
    return product.gather(-1, index.expand(*product.shape[:-1], -1))
