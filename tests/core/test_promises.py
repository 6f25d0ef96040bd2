"""The six promises of the library, one test each, named after them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relpos as rp
from relpos.kernels.call import Refusal
from relpos.kernels.choose import KERNELS
from tests.core.naive import ToyBias, ToyContent, ToyRow, ToyTurn, gradients, inputs
from tests.core.test_memory import Largest

GOLDEN = Path(__file__).parent.parent / "golden"


def test_one_table_per_head_never_n_squared() -> None:
    """A learned bias is one row of numbers a head, in the parameters, in the states and in what is allocated."""
    n, heads = 3000, 2
    encoding = rp.encodings.LearnedBias(heads, 16)
    assert [tuple(p.shape) for p in encoding.parameters()] == [(heads, 33)] and not list(encoding.buffers())
    q, k, v = inputs(1, heads, n, dtype=torch.float32, grad=True)
    with Largest() as seen:
        rp.attention(q, k, v, encoding, causal=True).sum().backward()
    assert seen.bytes < n * n // 2, seen.operation
    assert encoding.table.grad is not None and encoding.table.grad.shape == (heads, 33)
    assert seen.bytes < n * n // 2


@pytest.mark.parametrize("kernel", ["dense", "hankel", "generic", "auto"])
def test_gradient_of_the_table_is_deterministic(kernel: str) -> None:
    """Two runs agree to the bit, in float32, at a size of several tiles, without any switch."""
    q, k, v = inputs(2, 2, 700, dtype=torch.float32)
    found = []
    for _ in range(2):
        encoding = rp.encodings.LearnedBias(2, 20)
        with torch.no_grad():
            encoding.table.copy_(torch.linspace(-1, 1, 82).view(2, 41))
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = rp.attention(*leaves, encoding, causal=True, kernel=kernel)
        found.append([out, *gradients(out, [*leaves, encoding.table])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_positions_are_explicit_so_cache_memory_packing_and_chunks_are_one_call() -> None:
    """One call with positions covers them all, and each equals its rows of the plain whole."""
    torch.manual_seed(0)
    for encoding in (ToyBias(2), ToyContent(2, 4), ToyTurn(4)):
        encoding = encoding.double()
        q, k, v = inputs(1, 2, 12)
        whole = rp.attention(q, k, v, encoding, causal=True)
        pos = torch.arange(12)
        for a, b in ((11, 12), (4, 12), (0, 5)):  # a cached step, a chunk with a memory, a prefill
            part = (q[:, :, a:b], k[:, :, :b], v[:, :, :b])
            got = rp.attention(*part, encoding, q_pos=pos[a:b], k_pos=pos[:b], causal=True)
            torch.testing.assert_close(got, whole[:, :, a:b], rtol=0, atol=1e-12)
        shuffled = torch.randperm(12)  # a cache in any order, as a ring buffer or pages keep it
        ring = rp.attention(
            q, k[:, :, shuffled], v[:, :, shuffled], encoding, q_pos=pos, k_pos=pos[shuffled], causal=True
        )
        torch.testing.assert_close(ring, whole, rtol=0, atol=1e-12)
        twice = [torch.cat([x, x], 2) for x in (q, k, v)]  # the same document packed behind itself
        packed = rp.attention(*twice, encoding, causal=True, segments=torch.arange(24) // 12)
        torch.testing.assert_close(packed, torch.cat([whole, whole], 2), rtol=0, atol=1e-12)
        restarted = rp.attention(
            *twice, encoding, q_pos=pos.repeat(2), k_pos=pos.repeat(2), causal=True, segments=torch.arange(24) // 12
        )
        torch.testing.assert_close(restarted, packed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["dense", "hankel", "generic", "auto"])
def test_positions_and_tables_stay_float32_under_autocast(kernel: str) -> None:
    """A bias of 20 and more at positions beyond 256 would be off by a tenth in bfloat16, positions by whole tokens."""
    n = 40
    table = ToyBias(2, reach=30)
    with torch.no_grad():
        table.table.mul_(8).add_(20)
    exact = ToyBias(2, reach=30).double()
    exact.load_state_dict(table.state_dict())
    q, k, v = inputs(2, 2, n, dtype=torch.float32, grad=True)
    pos = torch.arange(n) + 4093
    options = {"q_pos": pos, "k_pos": pos, "causal": True}
    want = rp.attention(q.double(), k.double(), v.double(), exact, kernel="dense", **options)  # type: ignore[arg-type]
    expected = gradients(want, [exact.table])[0]
    with torch.autocast("cpu", torch.bfloat16):
        out = rp.attention(q, k, v, table, kernel=kernel, **options)  # type: ignore[arg-type]
        inside = gradients(out, [table.table])[0] if kernel in ("hankel", "generic") else None
    got = gradients(out, [table.table])[0]
    assert inside is None or torch.equal(inside, got)  # not even a backward pass inside autocast is degraded
    assert out.dtype == torch.float32 and got.dtype == torch.float32
    assert (out.double() - want).abs().max() < 2e-5 and (got.double() - expected).abs().max() < 2e-4
    if kernel != "auto":
        return
    turn = ToyTurn(4)
    with torch.autocast("cpu", torch.bfloat16):
        layer = rp.SelfAttention(8, 2, turn)
        short = layer(torch.randn(1, n, 8), q_pos=pos)
        stream = rp.Stream(turn)
        turned = stream.step(q, k, v, position=pos)
    assert short.dtype == torch.bfloat16 and all(p.dtype == torch.float32 for p in layer.parameters())
    whole = rp.attention(q.double(), k.double(), v.double(), ToyTurn(4).double(), **options)  # type: ignore[arg-type]
    assert (turned.double() - whole).abs().max() < 2e-3  # angles of 1000 radians in float32


def test_one_oracle_per_encoding_and_published_vectors() -> None:
    """Every encoding of the library is named in a test with its brute-force truth, every golden file is read by one."""
    tests = "\n".join(p.read_text() for p in (GOLDEN.parent).rglob("test_*.py"))
    ours = {name for name, entry in rp.encodings._registry.each() if entry.cls is None}
    missing = {name for name in ours if f'name = "{name}"' not in tests and f'"{name}"' not in tests}
    assert not missing, f"no oracle for {missing}"
    later = set() if "lrpe" in ours else {"rpe_posmlp.npz"}  # of a method that is not here yet
    for path in GOLDEN.glob("*.npz"):
        if path.name in later:
            continue
        assert path.name in tests, f"{path.name} is tested by nothing"
        with np.load(path) as arrays:
            assert arrays.files


def test_never_falls_back_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """`explain` names the kernel that runs and why; a kernel that cannot serve raises and says what would."""
    q, k, v = inputs(1, 2, 300, dtype=torch.float32)
    mask = (torch.arange(300) % 3 > 0)[None]
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (None, {}, "fused"),
        (ToyTurn(4), {"causal": True}, "fused"),
        (None, {"causal": True, "window": 5}, "tiled"),
        (ToyBias(2), {}, "tiled"),
        (ToyBias(2), {"key_mask": mask}, "tiled"),
        (ToyRow(2), {}, "tiled"),
        (ToyContent(2, 4), {"dropout": 0.1}, "tiled"),
        (ToyBias(2), {"kernel": "dense"}, "dense"),
        (ToyBias(2), {"kernel": "generic"}, "generic"),
    ]
    for encoding, options, name in cases:
        said = rp.explain(q, k, v, encoding, **options)
        assert said.kernel == name and said.kernel in KERNELS
        assert len(said.reason) > 5 and said.memory.startswith("O(") and said.kernel in str(said)
        assert ("O(n)" in said.memory) == (name != "dense")
        ran: list[str] = []

        def spy(call: Any, ran: list[str] = ran, name: str = name, plain: Any = KERNELS[name]) -> Any:
            ran.append(name)
            return plain(call)

        with monkeypatch.context() as patch:
            patch.setitem(KERNELS, name, spy)
            rp.attention(q, k, v, encoding, **options)
        assert ran == [name]  # what was said is what was run
    assert rp.explain(*inputs(1, 2, 16), ToyBias(2)).kernel == "dense"  # small enough that n x n is one tile
    refused: list[tuple[str, Any, dict[str, Any], str]] = [
        ("fused", ToyBias(2), {}, "adds a term"),
        ("fused", None, {"key_mask": mask}, "padding"),
        ("fused", None, {"dropout": 0.5}, "dropout"),
        ("hankel", ToyRow(2), {}, "not a bias of consecutive"),
        ("hankel", ToyBias(2), {"key_mask": mask}, "scattered"),
        ("hankel", ToyBias(2), {"q_pos": torch.arange(300) * 2}, "consecutive"),
    ]
    for kernel, encoding, options, why in refused:
        for call in (rp.attention, rp.explain):
            with pytest.raises(Refusal, match=f'kernel "{kernel}" cannot serve.*{why}.*picks one that can'):
                call(q, k, v, encoding, kernel=kernel, **options)
