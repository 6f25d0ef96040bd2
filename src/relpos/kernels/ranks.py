"""What passes between the ranks of a process group: parts of a sequence, handed on from neighbour to neighbour.

Rank r hands what it holds to rank r + 1 and takes from rank r - 1, the last one to the first. After s hands a rank
holds the part of rank r - s. Parts may be of different lengths. A neighbour that is gone raises `RankLost`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PARTS, GRADIENTS = 0, 1  # tags: what travels at the same time between the same two ranks


class RankLost(RuntimeError):
    """Another process of the group has ended, or has been silent for longer than the group waits."""


@contextmanager
def together(rank: int, world: int) -> Iterator[None]:
    """Errors of the connection in words, whatever the backend calls them."""
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:  # torch has no narrower class for what gloo reports
        raise RankLost(
            f"rank {rank} of {world} has lost touch with the others while a sequence was shared among them: a process "
            "has ended, has been silent for longer than the group's timeout, or does not take part in this call (every "
            "rank runs the same layers, forward and backward). Its own output says why; start all of them again. "
            f"Reported: {error}"
        ) from error


@dataclass(frozen=True)
class Ranks:
    """The ranks of a group in a circle, seen from one of them; lengths: tokens that each holds."""

    group: Any
    rank: int
    world: int
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, group: Any = None) -> Ranks:
        """RuntimeError where no process group is there, ValueError where this process is not in it."""
        if not dist.is_available():
            raise RuntimeError(
                "this build of torch has no torch.distributed, over which ranks exchange keys and values"
            )
        if not dist.is_initialized():
            raise RuntimeError(
                "no process group: start the script by torchrun --nproc-per-node=N and call "
                "relpos.mixers.context_parallel.start() (or torch.distributed.init_process_group) first; a sequence "
                "that one process holds needs only relpos.attention"
            )
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError("this process is not a rank of the given group; call from the ranks of the group only")
        return cls(group, rank, dist.get_world_size(group))

    def start(self, rank: int | None = None) -> int:
        """Where the part of a rank (this one's) begins in the whole."""
        return sum(self.lengths[: self.rank if rank is None else rank])

    def owners(self) -> list[int]:
        """Whose part is held here after 0, 1, .. hands; the last is once more one's own."""
        return [(self.rank - s) % self.world for s in range(self.world + 1)]

    def all(self, said: object) -> list[Any]:
        """What every rank says, in their order."""
        heard: list[Any] = [None] * self.world
        with together(self.rank, self.world):
            dist.all_gather_object(heard, said, group=self.group)
        return heard

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum over the ranks of each tensor, in one exchange a type."""
        found = [torch.empty(0)] * len(tensors)
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            chosen = [i for i, t in enumerate(tensors) if t.dtype == dtype]
            flat = torch.cat([tensors[i].reshape(-1) for i in chosen])
            with together(self.rank, self.world):
                dist.all_reduce(flat, group=self.group)
            for i, part in zip(chosen, flat.split_with_sizes([tensors[i].numel() for i in chosen])):
                found[i] = part.view(tensors[i].shape)
        return found

    def hand_on(self, held: Tensor, size: int, tag: int) -> Hand:
        """Sends `held`, contiguous, to the next rank; from the one before come `size` numbers of its type."""
        if self.world == 1:
            return Hand(self, held, held, [])
        coming = held.new_empty(size)
        after, before = ((self.rank + step) % self.world for step in (1, -1))
        after, before = (
            peer if self.group is None else dist.get_global_rank(self.group, peer) for peer in (after, before)
        )
        with together(self.rank, self.world):
            works = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, held, after, self.group, tag),
                    dist.P2POp(dist.irecv, coming, before, self.group, tag),
                ]
            )
        return Hand(self, held, coming, works)


@dataclass(frozen=True)
class Hand:
    """One exchange on its way; `sent` is kept alive until it has arrived."""

    ranks: Ranks
    sent: Tensor
    coming: Tensor
    works: list[Any]

    def taken(self) -> Tensor:
        """What came, once it is here."""
        with together(self.ranks.rank, self.ranks.world):
            for work in self.works:
                work.wait()
        return self.coming


class Parts:
    """Several tensors of one type, (batch, heads, n, width) each, as one flat message."""

    def __init__(self, *tensors: Tensor) -> None:
        self.shapes = [t.shape for t in tensors]

    def sizes(self, n: int) -> list[int]:
        """Numbers of each tensor for a part of n tokens."""
        return [batch * heads * n * width for batch, heads, _, width in self.shapes]

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.reshape(-1) for t in tensors])

    def apart(self, flat: Tensor, n: int) -> list[Tensor]:
        pieces = flat.split_with_sizes(self.sizes(n))
        return [piece.view(s[0], s[1], n, s[3]) for piece, s in zip(pieces, self.shapes)]


def circulate(ranks: Ranks, tensors: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
    """Every rank's part, one's own first: (owner, its tensors). The next is on its way while one is worked on."""
    parts, owners = Parts(*tensors), ranks.owners()
    held = parts.flat(tensors)
    for s in range(ranks.world):
        last = s + 1 == ranks.world
        hand = None if last else ranks.hand_on(held, sum(parts.sizes(ranks.lengths[owners[s + 1]])), PARTS)
        yield owners[s], parts.apart(held, ranks.lengths[owners[s]])
        if hand is not None:
            held = hand.taken()


class Homeward:
    """Sums that belong to other ranks' parts: each rank adds its share and hands them on, until they are home.

    `add` is called once for every part, in the order of `circulate`; `home` then gives one's own, complete.
    """

    def __init__(self, ranks: Ranks, parts: Parts) -> None:
        self.ranks, self.parts, self.step = ranks, parts, 0
        self.owners = ranks.owners()
        self.hand: Hand | None = None

    def add(self, tensors: Sequence[Tensor]) -> None:
        share = self.parts.flat(tensors)
        if self.hand is not None:
            share += self.hand.taken()
        self.step += 1
        size = sum(self.parts.sizes(self.ranks.lengths[self.owners[self.step]]))
        self.hand = self.ranks.hand_on(share, size, GRADIENTS)

    def home(self) -> list[Tensor]:
        assert self.hand is not None and self.step == self.ranks.world
        return self.parts.apart(self.hand.taken(), self.ranks.lengths[self.ranks.rank])
