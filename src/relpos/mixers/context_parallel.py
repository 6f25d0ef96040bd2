"""`context_parallel_attention`: `attention` over a sequence whose tokens lie on several ranks of torch.distributed."""

from __future__ import annotations

import datetime
import os
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from relpos.encodings.base import Encoding
from relpos.kernels.call import exactly
from relpos.kernels.ranks import RankLost as RankLost
from relpos.kernels.ranks import Ranks
from relpos.mixers.functional import Window
from relpos.mixers.sharded import Facts, Given, Whole, agreed


def start(backend: str | None = None, *, timeout: float = 600.0) -> int:
    """Joins the process group that torchrun (or SLURM, or MPI through torchrun's variables) has laid out; the rank.

    backend  "nccl" where there is a GPU, else "gloo"; nccl takes the GPU of this process's number on its machine
    timeout  seconds of silence of another rank after which the others stop with an error instead of waiting on
    RuntimeError where the backend is not in this build of torch, or nothing has laid out a group.
    """
    if not dist.is_available():
        raise RuntimeError("this build of torch has no torch.distributed; install one that has")
    backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    if backend == "nccl" and not (dist.is_nccl_available() and torch.cuda.is_available()):
        have = "no GPU is visible" if dist.is_nccl_available() else "this build of torch has no NCCL"
        raise RuntimeError(f'backend="nccl" cannot be had here: {have}; backend="gloo" works on any machine')
    if not dist.is_initialized():
        try:
            dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
        except ValueError as error:
            raise RuntimeError(
                "nothing says which rank this process is and where the others are; start it by "
                f"torchrun --nproc-per-node=N SCRIPT (reported: {error})"
            ) from error
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return dist.get_rank()


def shard(x: Tensor, dim: int = 1, group: Any = None) -> Tensor:
    """This rank's part of a tensor that all ranks hold whole, contiguous along `dim`: as equal as can be, the first
    ranks one token longer. ValueError where there are more ranks than tokens."""
    ranks = Ranks.of(group)
    n = x.shape[dim]
    if n < ranks.world:
        raise ValueError(
            f"{n} tokens cannot be shared among {ranks.world} ranks, each of which needs one at least; use fewer ranks"
        )
    sizes = [n // ranks.world + (r < n % ranks.world) for r in range(ranks.world)]
    return x.narrow(dim, sum(sizes[: ranks.rank]), sizes[ranks.rank])


def context_parallel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding | str | None = None,
    *,
    group: Any = None,
    q_pos: object = None,
    k_pos: object = None,
    causal: bool = False,
    key_mask: Tensor | None = None,
    segments: Tensor | tuple[Tensor, Tensor] | None = None,
    window: Window | None = None,
    scale: float | None = None,
    content: Tensor | None = None,
    codes: Any = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    q_order: Tensor | None = None,
    k_order: Tensor | None = None,
    method: str = "auto",
    reduce: bool = True,
) -> Tensor:
    """What `attention` gives for one sequence whose tokens lie on several ranks: every rank calls it with its own.

    The whole is the parts one after another in the order of the ranks; they may be of different lengths. All arguments
    are those of `attention`, for this rank's tokens; the output is that of its queries. Results, and gradients of a
    loss that is the sum of the ranks' losses, equal those of one process that holds everything, to rounding.

    group    torch.distributed process group; default: all ranks
    q_pos, k_pos   this rank's; default: the places in the whole. Other shares than contiguous ones (such as a pair of
             an early and a late piece, which balances causal work) are right too where positions are given
    segments       of this rank's keys (its queries being the same tokens), or a pair
    dropout        drops what one process with the same seed would drop; generator: in the same state on every rank
    method   "ring": keys and values go round, memory linear in what one rank holds. "gather": every rank gets all keys
             and values, memory linear in the whole, and runs the kernels of `attention`. "auto" is ring; gather for
             encodings whose states need all tokens at once (FoX, NonStationaryRPE) or that read `content`
    reduce   True: gradients of the encoding's parameters are summed over the ranks, as in one process. False: each rank
             keeps its share, for whoever sums all gradients of a network afterwards, as DistributedDataParallel does

    Every rank takes part in each call, forward and backward. Calls begin with an exchange of what each was given (its
    positions and masks, not keys and values), so bad input raises on all ranks; where a rank is gone, `RankLost` is
    raised on the others within the group's timeout. Memory besides: positions, masks and segments of the whole.
    RuntimeError without a process group; ValueError, TypeError as in `attention`, and where ranks disagree.
    Source: Liu, Zaharia and Abbeel 2023, "Ring Attention with Blockwise Transformers"; the encoding is ours.
    """
    ranks = Ranks.of(group)
    given = Given(q, k, v, encoding, q_pos, k_pos, causal, key_mask, segments, window, scale, content, codes,
                  dropout, generator, q_order, k_order, method, reduce)  # fmt: skip
    with exactly(q):
        try:
            said: Facts | Exception = given.facts()
        except (ValueError, TypeError) as error:
            said = error
        facts = agreed(ranks.all(said))
        ranks = replace(ranks, lengths=tuple(each.n_k for each in facts))
        return Whole.of(ranks, given, facts).run()
