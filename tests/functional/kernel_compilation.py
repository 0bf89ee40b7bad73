"""Compile the fused kernels for GPUs that need not be there: Triton's own compiler, then ptxas.

Run as a program, since Triton must not be in interpreter mode: ``python kernel_compilation.py CAPABILITY...`` reads
variants as JSON lines from standard input and prints one JSON line for each, with what it needs of the GPU.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from padapter.functional.fused import launch
from padapter.functional.fused.dropout import Dropout

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.bool: "i1",
    torch.int64: "i64",
}
KERNELS = (
    "forward_kernel",
    "backward_rows_kernel",
    "backward_columns_kernel",
    "row_statistics_kernel",
    "column_sums_kernel",
    "degrees_backward_rows_kernel",
    "degrees_backward_columns_kernel",
)


def plans(variant: dict[str, Any]) -> dict[str, launch.Plan]:
    """The launches of one forward and backward pass, on tensors that hold nothing."""
    dtype = getattr(torch, variant["dtype"])
    near = getattr(torch, variant.get("near", variant["dtype"]))
    dk, dh = variant["dk"], variant["dh"]
    B, H, kv_heads, N1, N2 = (1,) * 5 if variant["single"] else (2, 4, 2, 80, 96)

    def empty(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    mask = {None: None, "bool": empty(B, 1, N1, N2, of=torch.bool), "added": empty(B, 1, 1, N2, of=dtype)}
    scores = launch.Scores(
        empty(B, H, N1, dk, of=dtype),
        empty(B, kv_heads, N2, dk, of=dtype),
        mask[variant["mask"]],
        0.125,
        variant["causal"],
    )
    value = empty(B, kv_heads, N2, dh, of=getattr(torch, variant.get("value", variant["dtype"])))
    node = empty(B, H, N1, dh, of=dtype) if variant["restart"] else None
    x, y = (empty(B, H, N, dh, of=near) if variant["distance"] else None for N in (N1, N2))
    restart = empty(H) if variant["restart"] else None
    dropout = Dropout.of(empty(1, of=torch.int64), 0.1) if variant["dropout"] else None
    features = launch.Features(value, node, x, y, empty(H), restart, 1e-6, 1e-19, dropout)
    out, statistic = empty(B, H, N1, dh, of=value.dtype), empty(B, H, N1)
    three, two = (statistic,) * 3, (statistic,) * 2
    rows = launch.RowGradients(scores.query, node, x, statistic, restart, statistic, statistic)
    column, key = empty(B, H, N2), empty(B, H, N2, dk)
    made = [
        launch.forward_plan(scores, features, out, three),
        launch.backward_rows_plan(scores, features, out, three, out, rows),
        launch.backward_columns_plan(scores, features, three, out, rows, (key, empty(B, H, N2, dh), y)),
        launch.degrees_plan(KERNELS[3], scores, two, by_rows=True),
        launch.degrees_plan(KERNELS[4], scores, two, by_rows=False, degrees_ptr=column),
        launch.degrees_plan(
            KERNELS[5], scores, two, by_rows=True, g_ptr=column, dq_ptr=scores.query, delta_ptr=statistic
        ),
        launch.degrees_plan(KERNELS[6], scores, two, by_rows=False, g_ptr=column, dk_ptr=key, delta_ptr=statistic),
    ]
    return {plan.kernel: plan for plan in made}


def compiled(plan: launch.Plan, capability: int) -> dict[str, Any]:
    """Compile one launch down to a binary and say what it needs."""
    import triton
    from triton.backends.compiler import GPUTarget

    kernel = getattr(importlib.import_module(f"{launch.MODULE}.{plan.module}"), plan.kernel)
    signature, attributes, ones = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in plan.constants:
            signature[name] = "constexpr"
            continue
        given = plan.arguments[name]
        if isinstance(given, int) and given == 1:  # the launcher makes constants of these
            signature[name] = "constexpr"
            ones[name] = 1
            continue
        if isinstance(given, torch.Tensor):
            signature[name] = f"*{TYPES[given.dtype]}"
        else:
            signature[name] = "fp32" if isinstance(given, float) else "i32"
        # What the launcher would find out about aligned pointers and strides: it lets loads be pipelined.
        if not isinstance(given, float) and (isinstance(given, torch.Tensor) or (given and given % 16 == 0)):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, constexprs=plan.constants | ones, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=plan.options)
    ptx = binary.asm["ptx"]
    return {
        "kernel": plan.kernel,
        "capability": capability,
        "shared": binary.metadata.shared,
        "atomics": len(re.findall(r"\b(?:atom|red)\.(?!shared)", ptx)),
        "tensor_cores": len(re.findall(r"\bw?g?mma\b", ptx)),
        **resources(binary.asm["cubin"]),
    }


def resources(binary: bytes) -> dict[str, int]:
    """Registers per thread, and bytes per thread that did not fit into registers, as the driver's tool says."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        shown = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = {name: int(re.search(rf"\b{name}:(\d+)", shown.stdout)[1]) for name in ("REG", "STACK")}
    return {"registers": found["REG"], "spilled": found["STACK"]}


def main() -> None:
    for line in sys.stdin:
        variant = json.loads(line)
        wanted = variant.pop("kernels", KERNELS)
        for name, plan in plans(variant).items():
            for capability in map(int, sys.argv[1:]):
                if name in wanted:
                    print(json.dumps({"variant": variant, **compiled(plan, capability)}), flush=True)


if __name__ == "__main__":
    main()
