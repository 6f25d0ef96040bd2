"""The Triton kernels against dense: on a CUDA device where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.kernels.call import Refusal
from relpos.kernels.triton import call as in_triton
from tests.core.naive import ToyContent
from tests.core.test_memory import Largest

pytest.importorskip("triton", reason="Triton is for Linux only")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = {"forward": (16, 32), "keys": (32, 16), "queries": (16, 16), "bias": (16, 16)}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a few tokens, so that edges are met at small sizes."""
    from relpos.kernels.triton import launch
    from relpos.kernels.triton import toeplitz_matmul as product

    monkeypatch.setattr(launch, "blocks", lambda name, width, size: launch.Blocks(*SMALL[name], 4, 1))
    monkeypatch.setattr(launch, "SIDE", 16)
    for name, size in (("ROWS", 16), ("KEYS", 32), ("COLUMNS", 16), ("SIDE", 16)):
        monkeypatch.setattr(product, name, size)


def table(heads: int, n: int) -> Any:
    encoding = rp.encoding("learned_bias", heads=heads, max_lag=max(n - 1, 1))
    torch.nn.init.normal_(encoding.table)
    return encoding.to(DEVICE)


def results(kernel: str, dtype: torch.dtype, tensors: list[Tensor], encoding: Any, **options: Any) -> list[Tensor]:
    """Output and gradients, of q, k, v and the table."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in tensors]
    out = rp.attention(*leaves, encoding, kernel=kernel, **options)
    weights = torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out).to(dtype)
    wanted = leaves + [p for p in ([] if encoding is None else encoding.parameters()) if p.requires_grad]
    return [out, *torch.autograd.grad((out * weights).sum(), wanted)]


def against_dense(
    shape: tuple[int, ...],
    encoding: Any = None,
    dtype: torch.dtype = torch.float32,
    limit: float = 2e-5,
    **options: Any,
) -> None:
    """shape: batch, heads, n_q, n_k, dim, and if they differ dim_v and key heads. The truth is in float64."""
    batch, heads, n_q, n_k, dim, *more = shape
    dim_v, kv_heads = (*more, *(dim, heads)[len(more) :])
    sizes = ((heads, n_q, dim), (kv_heads, n_k, dim), (kv_heads, n_k, dim_v))
    tensors = [torch.randn(batch, *size, device=DEVICE).to(dtype) for size in sizes]
    got = results("triton", dtype, tensors, encoding, **options)
    want = results("dense", torch.float64, tensors, encoding, **options)
    for x, y in zip(got, want, strict=True):
        assert x.dtype in (dtype, torch.float32)
        torch.testing.assert_close(
            x.double(), y.double(), rtol=limit, atol=limit * max(1.0, y.detach().abs().max().item())
        )


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (7, 3)}, {"window": (None, 0)}])
@pytest.mark.parametrize(("n_q", "n_k"), [(1, 1), (1, 37), (37, 1), (33, 50), (50, 33)])
@pytest.mark.usefixtures("small_blocks")
def test_lengths_and_orders(n_q: int, n_k: int, options: dict[str, Any]) -> None:
    against_dense((1, 1, n_q, n_k, 16), table(1, max(n_q, n_k)), **options)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (11, 20)}])
@pytest.mark.usefixtures("small_blocks")
def test_without_a_bias(options: dict[str, Any]) -> None:
    against_dense((1, 1, 37, 53, 16), **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_documents_and_padding(causal: bool) -> None:
    """Packed one after another, in pieces, with padding anywhere, and rows that see nothing."""
    names = torch.arange(50, device=DEVICE) // 13
    scattered = names[torch.randperm(50)]
    mask = torch.rand(2, 50, device=DEVICE) > 0.4
    mask[1, :20] = False
    for options in (
        {"segments": names},
        {"key_mask": mask},
        {"segments": torch.stack([names, scattered - 7]), "key_mask": mask},
    ):
        against_dense((2, 1, 50, 50, 16), table(1, 50), causal=causal, **options)
    against_dense((2, 1, 29, 50, 16), table(1, 50), causal=causal, segments=(names[:29], names))


@pytest.mark.usefixtures("small_blocks")
def test_a_position_that_is_shifted() -> None:
    """Queries that stand elsewhere than at the end of the keys."""
    for start in (-9, 0, 31):
        q_pos, k_pos = torch.arange(start, start + 21, device=DEVICE), torch.arange(40, device=DEVICE)
        against_dense((1, 1, 21, 40, 16), table(1, 80), q_pos=q_pos, k_pos=k_pos, causal=True)


@pytest.mark.parametrize(("dim", "dim_v"), [(1, 16), (5, 3), (16, 40), (80, 64), (128, 128)])
@pytest.mark.usefixtures("small_blocks")
def test_widths(dim: int, dim_v: int) -> None:
    against_dense((1, 1, 19, 35, dim, dim_v), table(1, 35))


@pytest.mark.usefixtures("small_blocks")
def test_grouped_queries_and_frozen_tables() -> None:
    against_dense((1, 4, 20, 33, 16, 16, 2), table(4, 33), causal=True)
    against_dense((1, 2, 20, 33, 16), table(2, 33).requires_grad_(False))
    against_dense((1, 2, 20, 33, 16), rp.encoding("t5", heads=2, buckets=8, max_distance=16).to(DEVICE), scale=0.3)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_half_precision(causal: bool, dtype: torch.dtype, limit: float) -> None:
    against_dense((1, 2, 45, 45, 32), table(2, 45), dtype, limit, causal=causal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 128])
def test_blocks_as_they_are(dim: int, dtype: torch.dtype) -> None:
    limit = 2e-5 if dtype == torch.float32 else 3e-2
    against_dense((1, 1, 150, 203, dim), table(1, 203), dtype, limit, causal=True)


def test_two_runs_agree_bit_by_bit() -> None:
    tensors = [torch.randn(1, 2, 150, 32, device=DEVICE) for _ in range(3)]
    encoding = table(2, 150)
    first, second = (results("triton", torch.bfloat16, tensors, encoding, causal=True) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    sources = Path(in_triton.__file__).parent.glob("*.py")
    assert not any("tl.atomic" in source.read_text() for source in sources)  # an interpreter has no race to lose


def test_nothing_of_n_times_n() -> None:
    n = 512
    q, k, v = (torch.randn(1, 1, n, 16, device=DEVICE, requires_grad=True) for _ in range(3))
    encoding = table(1, n)
    with Largest() as largest:
        rp.attention(q, k, v, encoding, causal=True, window=(60, 0), kernel="triton").sum().backward()
    assert largest.bytes <= n * n, largest.operation  # a quarter of a float32 tensor of all pairs
    assert encoding.table.grad is not None


def test_bad_tokens_stay_where_they_are() -> None:
    q, k, v = (torch.randn(1, 1, 20, 16, device=DEVICE) for _ in range(3))
    want = rp.attention(q, k, v, table(1, 20), causal=True, kernel="triton")
    v[:, :, 11] = torch.nan
    torch.manual_seed(0)
    got = rp.attention(q, k, v, None, causal=True, kernel="triton")
    clean = rp.attention(q, k, v.nan_to_num(), None, causal=True, kernel="triton")
    assert torch.equal(got[:, :, :11], clean[:, :, :11]) and got[:, :, 11:].isnan().all() and want.isfinite().all()


def test_the_gradient_is_defined_once() -> None:
    q, k, v = (torch.randn(1, 1, 5, 16, device=DEVICE, requires_grad=True) for _ in range(3))
    (first,) = torch.autograd.grad(rp.attention(q, k, v, kernel="triton").square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated again"):
        first.sum().backward()


def test_refusals_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 2, 6, 16, device=DEVICE)
    wide, double = torch.randn(1, 2, 6, 130, device=DEVICE), q.double()
    scattered = torch.tensor([3, 1, 0, 2, 5, 4], device=DEVICE)
    for words, x, encoding, options in (
        ("not torch.float64", double, None, {}),
        ("width 1 to 128, not 130", wide, None, {}),
        ("no dropout", q, None, {"dropout": 0.1}),
        ("ToyContent is not a bias", q, ToyContent(2, 16).to(DEVICE), {}),
        ("pair by pair", q, None, {"q_order": scattered, "k_order": scattered, "causal": True}),
    ):
        with pytest.raises(Refusal, match=words):
            rp.attention(x, x, x, encoding, kernel="triton", **options)
    on_cpu = q.cpu()
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(Refusal, match=r"CUDA device.*TRITON_INTERPRET=1"):
        rp.attention(on_cpu, on_cpu, on_cpu, kernel="triton")
    with pytest.raises(Refusal, match="CUDA device"):
        rp.toeplitz_matmul(torch.ones(3), torch.ones(2, 1), method="triton")
    monkeypatch.setattr(in_triton, "_installed", lambda: False)
    with pytest.raises(Refusal, match=r"not installed: pip install \"relpos\[gpu\]\""):
        rp.attention(q, q, q, kernel="triton")


def test_explained_and_left_alone_by_auto_on_the_cpu() -> None:
    q = torch.randn(1, 2, 600, 16, dtype=torch.bfloat16)
    encoding = table(2, 600).cpu()
    assert rp.explain(q, q, q, encoding).kernel == "tiled"
    if DEVICE == "cpu":
        told = str(rp.explain(q, q, q, encoding, kernel="triton"))
        assert "sums and softmax are float32" in told and "O(n)" in told


PRODUCTS = [(1, 1, 1, 1), (2, 37, 37, 5), (1, 50, 23, 33), (2, 23, 50, 20), (1, 20, 49, 1)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "n_q", "n_k", "width"), PRODUCTS)
@pytest.mark.usefixtures("small_blocks")
def test_toeplitz_matmul(heads: int, n_q: int, n_k: int, width: int, causal: bool) -> None:
    c, x = torch.randn(heads, n_q + n_k - 1, device=DEVICE), torch.randn(heads, n_k, width, device=DEVICE)
    grad = torch.randn(heads, n_q, width, device=DEVICE)
    found = []
    for method, dtype in (("dense", torch.float64), ("triton", torch.float32), ("triton", torch.float32)):
        leaves = [z.to(dtype).requires_grad_() for z in (c, x)]
        y = rp.toeplitz_matmul(*leaves, causal=causal, method=method)
        found.append([y, *torch.autograd.grad((y * grad).sum(), leaves)])
    for want, got, again in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)
        assert torch.equal(got, again)


def test_toeplitz_matmul_as_it_is() -> None:
    """Blocks of real size, a batch that joins the columns, a grid, and a future that has no influence."""
    c, x = torch.randn(3, 299, device=DEVICE), torch.randn(2, 3, 150, 70, device=DEVICE)
    want = rp.toeplitz_matmul(c.double(), x.double(), causal=True, method="dense")
    torch.testing.assert_close(rp.toeplitz_matmul(c, x, causal=True, method="triton").double(), want, rtol=0, atol=1e-4)
    x[:, :, 99] = torch.nan
    late = rp.toeplitz_matmul(c, x, causal=True, method="triton")
    torch.testing.assert_close(late[:, :, :99].double(), want[:, :, :99], rtol=0, atol=1e-4)
    assert late[:, :, 99:].isnan().all()
    c, x = torch.randn(9, 13, device=DEVICE), torch.randn(2, 35, 3, device=DEVICE)
    for causal in (False, True):
        a, b = (rp.toeplitz_matmul(c, x, grid=(5, 7), causal=causal, method=m) for m in ("triton", "dense"))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    with pytest.raises(Refusal, match="float32"):
        rp.toeplitz_matmul(c.double(), x, grid=(5, 7), method="triton")


@pytest.mark.slow(20)
def test_the_kernels_compile_for_devices_that_are_not_here() -> None:
    """By Triton's own compiler and assembler, in a process without the interpreter: what fits, by device."""
    source = Path(in_triton.__file__).parents[3]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join([str(source), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "compile_for.py"), "90"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    shared = json.loads(done.stdout.splitlines()[-1])
    assert len(shared) == 6
    assert all(bytes_ <= 99 * 1024 for bytes_ in shared.values()), shared
