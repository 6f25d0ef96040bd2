"""Compiles the Triton kernels for compute capabilities (80, 90, ..), without a device; prints what each takes.

TRITON_INTERPRET=0 python tests/core/compile_for.py 80 90
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from relpos.kernels.triton import attention, launch
from relpos.kernels.triton import toeplitz_matmul as product

HALF = {"q", "k", "v", "grad", "out", "dq", "dk", "dv"}
FLOAT = {"bias", "lse", "delta", "partial", "c", "x", "y"}
KERNELS = {
    "forward": attention.forward,
    "keys": attention.keys_backward,
    "queries": attention.queries_backward,
    "bias": attention.bias_backward,
}


def compiled(kernel: Any, constants: dict[str, Any], half: str, capability: int, warps: int, stages: int) -> int:
    """Bytes of shared memory that the kernel takes."""
    kinds = {}
    for name in kernel.arg_names:
        if name in constants:
            kinds[name] = "constexpr"
        elif name in HALF | FLOAT:
            kinds[name] = f"*{half}" if name in HALF else "*fp32"
        elif name in ("q_ids", "k_ids", "spans"):
            kinds[name] = "*i32"
        else:
            kinds[name] = "fp32" if name in ("scale", "factor") else "i32"
    source = ASTSource(kernel, kinds, constants)
    target = GPUTarget("cuda", capability, 32)
    found = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})
    assert "ptx" in found.asm and "cubin" in found.asm
    return int(found.metadata.shared)


def attention_kernel(name: str, capability: int, dim: int = 64) -> int:
    size = launch.blocks(name, dim, 2)
    constants: dict[str, Any] = {"DIM": dim, "DIM_V": dim, "D": dim, "W": dim, "PAD": 128, "ORDERED": True}
    constants["MARKED"] = name in ("keys", "bias")
    constants |= {"SIDE": launch.side(2)} if name == "bias" else {"BIASED": True, "ROWS": size.rows, "KEYS": size.keys}
    return compiled(KERNELS[name], constants, "bf16", capability, size.warps, size.stages)


def main(capabilities: list[int]) -> None:
    shared = {}
    for capability in capabilities:
        for name in KERNELS:
            shared[f"{name} {capability}"] = attention_kernel(name, capability)
        common = {"COLUMNS": product.COLUMNS, "ORDERED": True}
        constants = {**common, "PAD": product.ROWS, "ROWS": product.ROWS, "KEYS": product.KEYS}
        shared[f"matmul {capability}"] = compiled(product._matmul, constants, "fp32", capability, 8, 2)
        constants = {**common, "SIDE": product.SIDE}
        shared[f"diagonals {capability}"] = compiled(product._diagonals, constants, "fp32", capability, 4, 2)
    print(json.dumps(shared))


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
