"""What the processes of test_context_parallel do: the same cases on every rank, each compared with one process."""

from __future__ import annotations

import copy
import datetime
import os
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import relpos as rp
from relpos.encodings.base import Encoding, Pairwise
from relpos.encodings.registry import fitted
from relpos.kernels import tiles
from relpos.mixers.context_parallel import RankLost, shard, start
from relpos.positions import Grid, Index, Times
from tests.core.test_memory import Largest

HEADS, DIM, SIDE, BATCH = 2, 16, 6, 2
N = SIDE * SIDE
LENGTHS = {2: (19, 17), 3: (5, 20, 11)}
WINDOWED = ("swin", "log_cpb")
LEVELS = ("melody", "chord", "section", "tempo")
Case = dict[str, Any]


def relative(mixer: str = "softmax") -> list[str]:
    """Encodings by name that softmax attention takes."""
    names = [name for name, about in rp.names().items() if about.form != "Absolute"]
    return [name for name in names if mixer in made(name, True, torch.float64).mixers]


def made(name: str, causal: bool, dtype: torch.dtype) -> Encoding:
    torch.manual_seed(0)
    known = {"heads": HEADS, "dim": DIM, "model_dim": HEADS * DIM, "causal": causal}
    encoding = fitted(name, known, {"window": (SIDE, SIDE)} if name in WINDOWED else {})
    with torch.no_grad():
        for p in encoding.parameters():  # tables that start at zero would show nothing
            p.add_(0.1 * torch.randn_like(p))
    return encoding.to(dtype)


def places(encoding: Encoding | None) -> Any:
    """Positions of the whole: what the encoding takes, of seconds where it can have them."""
    index = torch.arange(N)
    times = index.double() * 1.5 + (index % 3) * 0.25
    if encoding is None:
        return None
    if issubclass(dict, encoding.takes):
        return {"index": index, "time": times, **{name: index // (3 + i) % 4 for i, name in enumerate(LEVELS)}}
    if Index in encoding.takes:
        return None
    return times if Times in encoding.takes else Grid.of(SIDE, SIDE).values


def cases() -> dict[str, Case]:
    """By name: the encoding's name, causal, and what else `attention` is given, for the whole sequence."""
    found: dict[str, Case] = {}
    for name in relative():
        for causal in (True, False)[: 1 + len(found) % 2]:  # every other one the other way too
            if causal or not made(name, True, torch.float64).causal_only:
                found[f"{name}{' causal' if causal else ''}"] = {"name": name, "causal": causal}
    t = torch.arange(N)
    some = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(4)) > 0.3
    left = torch.stack([t >= 7, t >= 0])  # the first rank of three holds nothing but padding in row 0
    rows = torch.stack([t, t + 3])
    found |= {
        "grouped heads": {"name": "t5", "causal": True, "kv_heads": 1},
        "grouped heads, shaw": {"name": "shaw", "causal": True, "kv_heads": 1},
        "grouped heads, rope": {"name": "rope", "causal": True, "kv_heads": 1},
        "nothing": {"name": None, "causal": False},
        "scattered padding": {"name": "t5", "causal": False, "key_mask": some},
        "padding on the left": {"name": "shaw", "causal": True, "key_mask": left},
        "padding, fox": {"name": "fox", "causal": True, "key_mask": left},
        "documents": {"name": "deberta", "causal": True, "segments": t // 9},
        "documents, rope": {"name": "rope", "causal": False, "segments": (t // 7).expand(BATCH, N)},
        "window": {"name": "fire", "causal": True, "window": 6},
        "window of two sides": {"name": "alibi", "causal": False, "window": (9, 4), "symmetric": True},
        "shuffled": {"name": "t5", "causal": True, "q_pos": (t * 5) % N, "k_pos": (t * 5) % N},
        "shuffled, rope": {"name": "rope", "causal": True, "q_pos": (t * 5) % N, "k_pos": (t * 5) % N},
        "rows of their own": {"name": "shaw", "causal": True, "q_pos": rows, "k_pos": rows},
        "orders": {"name": "t5", "causal": True, "q_order": t // 2, "k_order": t // 2 + 1},
        "times in order": {"name": "time_rope", "causal": True},
        "dropout": {"name": "shaw", "causal": True, "dropout": 0.4},
        "dropout, gathered": {"name": "t5", "causal": True, "dropout": 0.4, "method": "gather"},
        "own scale": {"name": "t5", "causal": False, "scale": 0.3},
        "gathered": {"name": "shaw", "causal": True, "method": "gather", "kv_heads": 1},
        "fewer queries": {"name": "t5", "causal": True, "queries": 22},
        "poisoned": {"name": "shaw", "causal": True, "poison": 30},
        "poisoned query": {"name": "rope", "causal": True, "poison": 8, "of": "q"},
    }  # fmt: skip
    return found


TOKENWISE = ("key_mask", "segments", "q_pos", "k_pos", "q_order", "k_order")


def piece(name: str, x: Any, first: int, n: int) -> Any:
    """Tokens first..first + n - 1 of an argument."""
    if isinstance(x, dict):
        return {key: piece(name, each, first, n) for key, each in x.items()}
    if name in TOKENWISE and isinstance(x, Tensor):
        return x.narrow(-2 if x.dim() > 1 and x.shape[-2:] == (N, 2) else -1, first, n)
    return x


def distance(case: Case, world: int, dtype: torch.dtype, group: Any) -> dict[str, float]:
    """The largest difference of this rank's output and gradients from one process; relative to entries above 1."""
    case = dict(case)
    name, causal, poison, of = case.pop("name"), case["causal"], case.pop("poison", None), case.pop("of", "k")
    n_q, kv_heads, symmetric = case.pop("queries", N), case.pop("kv_heads", HEADS), case.pop("symmetric", False)
    encoding = None if name is None else made(name, causal and not symmetric, dtype)
    draw = torch.Generator().manual_seed(1)
    shapes = {"q": (HEADS, n_q), "k": (kv_heads, N), "v": (kv_heads, N)}
    whole = {x: torch.randn(BATCH, h, n, DIM, generator=draw, dtype=dtype) for x, (h, n) in shapes.items()}
    whole["q"] /= 2  # scores of usual size: of large ones float32 itself keeps fewer digits
    if poison is not None:
        whole[of][0, :, poison] = torch.nan
    content = torch.randn(BATCH, N, HEADS * DIM, generator=draw, dtype=dtype)
    if case.get("key_mask") is not None:  # padding may hold anything
        for x in (whole["k"].mT, whole["v"].mT, content.mT.unsqueeze(1)):
            x.masked_fill_(~case["key_mask"][:, None, None], torch.nan)
    weights = torch.randn(BATCH, HEADS, n_q, DIM, generator=draw, dtype=dtype) / 4
    if "q_pos" not in case and (where := places(encoding)) is not None:
        case |= {"q_pos": where, "k_pos": where}
    reads = isinstance(encoding, Pairwise) and encoding.needs_content

    def run(attend: Callable[..., Tensor], part: tuple[int, int, int, int], **more: Any) -> list[Tensor]:
        q0, q1, k0, k1 = part
        own = copy.deepcopy(encoding)
        bounds = {"q": (q0, q1), "k": (k0, k1), "v": (k0, k1)}
        leaves = [whole[x][:, :, a:b].clone().requires_grad_() for x, (a, b) in bounds.items()]
        options = {x: piece(x, value, *((q0, q1 - q0) if x[0] == "q" else (k0, k1 - k0))) for x, value in case.items()}
        inner = content[:, k0:k1].clone().requires_grad_() if reads else None
        out = attend(*leaves, own, content=inner, generator=torch.Generator().manual_seed(7), **options, **more)
        parameters = [] if own is None else [p for p in own.parameters() if p.requires_grad]
        inputs = [*leaves, *([inner] if inner is not None else []), *parameters]
        loss = (out.nan_to_num() * weights[:, :, q0:q1]).sum()
        grads = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        return [out.detach(), *grads]

    method = case.pop("method", "auto")
    expected = run(rp.attention, (0, n_q, 0, N))
    rank, lengths = dist.get_rank(group), LENGTHS[world]
    k0 = sum(lengths[:rank])
    share = (
        [n - (N - n_q if r == 0 else 0) for r, n in enumerate(lengths)] if n_q != N and world == 2 else list(lengths)
    )
    if n_q != N and world == 3:
        share = [2, 12, 8]
    q0 = sum(share[:rank])
    part = (q0, q0 + share[rank], k0, k0 + lengths[rank])
    case["method"] = method
    got = run(rp.context_parallel_attention, part, group=group)
    worst: dict[str, float] = {}
    parts = {0: part[:2], 1: part[:2], 2: part[2:], 3: part[2:]}
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        what = ("out", "q", "k", "v")[i] if i < 4 else "content" if reads and i == 4 else f"parameter {i}"
        if i in parts:
            a = a[:, :, slice(*parts[i])]
        elif what == "content":
            a = a[:, slice(*part[2:])]
        assert torch.equal(a.isnan(), b.isnan()), f"{what}: NaN in other rows"
        size = max(1.0, float(a.nan_to_num().abs().max())) if a.numel() else 1.0
        worst[what] = float((a - b).nan_to_num().abs().max()) / size if a.numel() else 0.0
    return worst


def refusals(group: Any, rank: int, world: int) -> dict[str, str]:
    """Messages of what every rank must refuse, by name; each names what this rank heard."""
    q = torch.randn(1, 2, 8, 4)
    attend = rp.context_parallel_attention

    def said(act: Callable[[], Any]) -> str:
        try:
            act()
        except (ValueError, TypeError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    wrong = q[:, :, :0] if rank == 1 else q
    other = q.double() if rank == 1 else q
    fox = rp.encodings.FoX(2, 8)
    return {
        "no token": said(lambda: attend(wrong, wrong, wrong, group=group)),
        "another dtype": said(lambda: attend(other, other, other, group=group)),
        "causal here only": said(lambda: attend(q, q, q, causal=rank == 1, group=group)),
        "a mask of another shape": said(
            lambda: attend(q, q, q, key_mask=torch.ones(1, 9 if rank == 1 else 8, dtype=torch.bool), group=group)
        ),
        "positions here only": said(lambda: attend(q, q, q, k_pos=torch.arange(8) if rank else None, group=group)),
        "a ring of all at once": said(
            lambda: attend(q, q, q, fox, causal=True, content=torch.ones(1, 8, 8), method="ring", group=group)
        ),
        "more ranks than tokens": said(lambda: shard(torch.zeros(1, world - 1), group=group)),
        "afterwards": said(lambda: attend(q, q, q, group=group)),
    }


def shares(group: Any) -> dict[str, Any]:
    """What is not a comparison: shares of a tensor, gradients left to others, memory."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    whole = torch.arange(10).expand(2, 10)
    found: dict[str, Any] = {"shard": shard(whole, group=group)[0].tolist()}
    bias = rp.encodings.T5Bias(2)
    q = torch.randn(1, 2, 6, 4, generator=torch.Generator().manual_seed(rank))
    rp.context_parallel_attention(q, q, q, bias, group=group, reduce=False).sum().backward()
    each = bias.table.grad.clone()
    bias.zero_grad()
    rp.context_parallel_attention(q, q, q, bias, group=group).sum().backward()
    total = each.clone()
    dist.all_reduce(total, group=group)
    found["shares of the gradient"] = float((total - bias.table.grad).abs().max())
    found["differs from one share"] = float((total - each).abs().max())
    n = 4096 // world
    q = torch.randn(1, 2, n, 8, requires_grad=True)
    with Largest() as seen:
        rp.context_parallel_attention(
            q, q, q, rp.encodings.LearnedBias(2, 64), causal=True, group=group
        ).sum().backward()
    found["largest of n x n"] = seen.bytes / (n * 4096 * 2 * 4)
    return found


def lost(act: Callable[[], Any]) -> str:
    try:
        act()
    except RankLost as error:
        return str(error)
    return "nothing"


def work(rank: int, port: int, chosen: list[str], answers: Any) -> None:
    """The life of one rank of three; ranks 0 and 1 are also a group of two."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="3")
    try:
        start("gloo", timeout=60)
        groups = {2: dist.new_group([0, 1]), 3: None}
        impatient = dist.new_group([0, 1, 2], timeout=datetime.timedelta(seconds=2))
        known = cases()
        for world, group in groups.items():
            if rank >= world:
                continue
            for index, name in enumerate(chosen):
                special = known[name]["name"] != name.removesuffix(" causal")
                wide, short = special or world == 3 or index % 3 == 0, special or (world == 2 and index % 2 == 0)
                for dtype in [torch.float64] * wide + [torch.float32] * short:
                    try:
                        told: Any = distance(known[name], world, dtype, group)
                    except Exception:
                        told = traceback.format_exc()
                    answers.put((f"{name}, {world} ranks, {dtype}", rank, told))
        answers.put(("refusals", rank, refusals(None, rank, 3)))
        answers.put(("shares", rank, shares(None)))
        q = torch.randn(1, 2, 8, 4)
        if rank == 2:
            time.sleep(4)
        else:
            answers.put(("silent", rank, lost(lambda: rp.context_parallel_attention(q, q, q, group=impatient))))
        if rank == 2:  # in the middle of its work, when the others wait for what it hands on
            tiles.attend = lambda *_: os._exit(3)
        answers.put(("dead", rank, lost(lambda: rp.context_parallel_attention(q, q, q, causal=True))))
    except BaseException:
        answers.put(("crash", rank, traceback.format_exc()))
