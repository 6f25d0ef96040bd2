"""Every encoding on a CUDA device gives what it gives on the CPU, in values and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import Absolute, Encoding, Pairwise
from relpos.encodings.registry import fitted
from relpos.kernels.call import Refusal
from relpos.kernels.choose import KERNELS
from relpos.positions import Grid, Index, Times

pytestmark = pytest.mark.cuda
HEADS, DIM, SIDE = 2, 16, 9
N = SIDE * SIDE
WINDOWED = ("swin", "log_cpb")
LEVELS = ("melody", "chord", "section", "tempo")


def positions(encoding: Encoding) -> Any:
    index = torch.arange(N)
    if issubclass(dict, encoding.takes):
        return {"index": index, "time": index.double(), **{name: index // (3 + i) % 4 for i, name in enumerate(LEVELS)}}
    if Index in encoding.takes:
        return index
    return index.double() if Times in encoding.takes else Grid.of(SIDE, SIDE).values


def moved(positions: Any, device: str) -> Any:
    return {k: v.to(device) for k, v in positions.items()} if isinstance(positions, dict) else positions.to(device)


def made(name: str, causal: bool) -> Encoding:
    torch.manual_seed(0)
    known = {"heads": HEADS, "dim": DIM, "model_dim": HEADS * DIM, "causal": causal}
    options = {"window": (SIDE, SIDE)} if name in WINDOWED else {}
    return fitted(name, known, options).double()


def results(device: str, encoding: Encoding, run: Any, kernelized: bool) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    shape = (2, HEADS, N, DIM)
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).to(device).requires_grad_() for _ in "qkv"]
    content = torch.randn(2, N, HEADS * DIM, generator=generator, dtype=torch.float64).to(device)
    encoding = copy.deepcopy(encoding).to(device)
    where = moved(positions(encoding), device)
    out = run(*leaves, encoding, where, content)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=device).view_as(out)
    leaves += [p for p in encoding.parameters() if p.requires_grad]
    return [out, *torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)]


def agree(name: str, a: list[Tensor | None], b: list[Tensor | None]) -> None:
    limit = 1e-5 if name == "log_cpb" else 1e-8  # whose coordinates are float32, as in the released code
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None and y is not None:
            torch.testing.assert_close(y.cpu(), x.cpu(), rtol=limit, atol=limit)


# Stochastic encodings draw their noise on the device, so that its numbers differ; they are tested on the CPU.
RELATIVE = [name for name, about in rp.names().items() if about.form != "Absolute" and not name.endswith("_spe")]
LINEAR = [name for name, about in rp.names().items() if about.linear and about.form == "Bias"]


@pytest.mark.parametrize("name", RELATIVE)
def test_softmax_attention(name: str) -> None:
    encoding = made(name, True)

    def run(q: Tensor, k: Tensor, v: Tensor, own: Encoding, where: Any, content: Tensor) -> Tensor:
        more = {"content": content} if isinstance(own, Pairwise) and own.needs_content else {}
        return rp.attention(q, k, v, own, q_pos=where, k_pos=where, causal=True, **more)

    agree(name, results("cpu", encoding, run, False), results("cuda", encoding, run, False))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_kernelised_attention(name: str, causal: bool) -> None:
    encoding = made(name, causal)
    causal |= encoding.causal_only
    phi = rp.features.PRF(DIM, 8).double()

    def run(q: Tensor, k: Tensor, v: Tensor, own: Encoding, where: Any, content: Tensor) -> Tensor:
        features = copy.deepcopy(phi).to(q.device)
        return rp.linear_attention(q, k, v, own, features=features, q_pos=where, k_pos=where, causal=causal)

    agree(name, results("cpu", encoding, run, True), results("cuda", encoding, run, True))


@pytest.mark.parametrize("mixer", ["softmax", "kernelized"])
@pytest.mark.parametrize("name", ["nope", "rope", "t5", "alibi"])
def test_a_network_trains_and_decodes(name: str, mixer: str) -> None:
    torch.manual_seed(0)
    model = rp.models.Transformer(19, 32, 2, HEADS, name, mixer=mixer).cuda()
    tokens = torch.randint(0, 19, (2, 65), device="cuda")
    logits = model(tokens[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        streams = model.streams()
        rows = [model(tokens[:, i : i + 1], streams=streams) for i in range(64)]
        torch.testing.assert_close(torch.cat(rows, 1), model(tokens[:, :-1]), rtol=1e-3, atol=1e-3)
    assert model.generate(tokens[:, :4], 5, generator=torch.Generator("cuda").manual_seed(0)).shape == (2, 9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    encoding = made("t5", True)
    q, k, v = (torch.randn(2, HEADS, N, DIM, device="cuda") for _ in range(3))
    want = rp.attention(q.double(), k.double(), v.double(), encoding.cuda(), causal=True)
    got = rp.attention(q.to(dtype), k.to(dtype), v.to(dtype), encoding.float().cuda(), causal=True)
    assert got.dtype == dtype and (got.double() - want).abs().max() < 5e-2


LIMITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
MASKS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (100, 7)},
    "documents": {"causal": True, "segments": torch.arange(777) // 200},
}


def of_table(kernel: str, dtype: torch.dtype, n: int, dim: int, **options: Any) -> list[Tensor]:
    """Output and gradients, of q, k, v and a table."""
    generator = torch.Generator().manual_seed(2)
    encoding = rp.encoding("learned_bias", heads=3, max_lag=n)
    with torch.no_grad():
        encoding.table.copy_(torch.randn(encoding.table.shape, generator=generator))
    encoding = encoding.cuda()
    leaves = [torch.randn(2, 3, n, dim, generator=generator).to("cuda", dtype) for _ in range(4)]
    grad, *leaves = (leaves[0], *(x.requires_grad_() for x in leaves[1:]))
    options = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in options.items()}
    if kernel == "dense":  # the truth: the same numbers in float64
        leaves = [x.detach().double().requires_grad_() for x in leaves]
        grad, encoding = grad.double(), encoding.double()
    out = rp.attention(*leaves, encoding, kernel=kernel, **options)
    return [out, *torch.autograd.grad(out, [*leaves, *encoding.parameters()], grad)]


@pytest.mark.parametrize("dim", [16, 64, 80, 128])
@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("kernel", ["auto", *(name for name in KERNELS if name not in ("dense", "flex"))])
def test_every_kernel_against_dense(kernel: str, mask: str, dtype: torch.dtype, dim: int) -> None:
    held_against_dense(kernel, mask, dtype, dim)


@pytest.mark.slow(40)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", list(MASKS))
def test_flex_against_dense(mask: str, dtype: torch.dtype) -> None:
    """In fewer shapes, since each is compiled; and from a clean slate, as torch compiles a function only so often."""
    torch._dynamo.reset()
    held_against_dense("flex", mask, dtype, 64)


def held_against_dense(kernel: str, mask: str, dtype: torch.dtype, dim: int) -> None:
    try:
        found = of_table(kernel, dtype, 777, dim, **MASKS[mask])
    except Refusal:
        assert kernel in ("fused", "hankel")
        return
    for got, want in zip(found, of_table("dense", dtype, 777, dim, **MASKS[mask]), strict=True):
        limit = LIMITS[dtype] * max(1.0, want.detach().abs().max().item())
        torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=limit)


def test_auto_takes_triton_for_half_precision() -> None:
    q = torch.randn(1, 2, 600, 64, device="cuda")
    encoding = rp.encoding("learned_bias", heads=2, max_lag=600).cuda()
    assert rp.explain(q, q, q, encoding).kernel == "tiled"
    if torch.cuda.get_device_capability() >= (8, 0):
        assert rp.explain(*[q.bfloat16()] * 3, encoding).kernel == "triton"


@pytest.mark.parametrize("dtype", list(LIMITS))
def test_triton_gives_the_same_bits_twice(dtype: torch.dtype) -> None:
    first, second = (of_table("triton", dtype, 3001, 64, causal=True) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_toeplitz_matmul_in_triton(causal: bool) -> None:
    c, x = torch.randn(3, 2 * 777 - 1, device="cuda"), torch.randn(2, 3, 777, 70, device="cuda")
    found = []
    for method, dtype in (("dense", torch.float64), ("triton", torch.float32), ("triton", torch.float32)):
        leaves = [z.to(dtype).requires_grad_() for z in (c, x)]
        y = rp.toeplitz_matmul(*leaves, causal=causal, method=method)
        found.append([y, *torch.autograd.grad(y.square().mean(), leaves)])
    for want, got, again in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
        assert torch.equal(got, again)


def test_absolute_encodings() -> None:
    for name, about in rp.names().items():
        encoding = made(name, True)
        if about.form == "Absolute" and isinstance(encoding, Absolute):
            x = torch.randn(2, N, HEADS * DIM, dtype=torch.float64)
            where = positions(encoding)
            want = encoding.add(x, where if isinstance(where, dict) else None)
            on_device = where if not isinstance(where, dict) else moved(where, "cuda")
            got = encoding.cuda().add(x.cuda(), on_device if isinstance(where, dict) else None)
            torch.testing.assert_close(got.cpu(), want)


@pytest.mark.parametrize("method", ["dense", "axes"])
@pytest.mark.parametrize("name", ["lrpe", "gqpe"])
def test_gates(name: str, method: str) -> None:
    torch.manual_seed(0)
    unit = rp.PoSGU(12, (5, 7), name, groups=3, method=method).double()
    x = torch.randn(2, 35, 12, dtype=torch.float64, requires_grad=True)
    there, moved = copy.deepcopy(unit).cuda(), x.detach().cuda().requires_grad_()
    grad = torch.randn(2, 35, 6, dtype=torch.float64)
    unit(x).backward(grad)
    there(moved).backward(grad.cuda())
    pairs = [(x, moved), *zip(unit.parameters(), there.parameters(), strict=True)]
    for mine, theirs in pairs:
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(theirs.grad.cpu(), mine.grad, rtol=1e-9, atol=1e-9)
