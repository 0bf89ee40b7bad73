"""The kernels compile for real GPUs, though none is here: what the interpreter lets pass, Triton's compiler may not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is built for Linux")

COMPILER = Path(__file__).parent / "kernel_compilation.py"
#: What a block may use on every GPU of compute capability 8.0 and later.
SHARED = 99 * 1024
ATTENTION = ["forward_kernel", "backward_rows_kernel", "backward_columns_kernel"]
DEGREES = [
    "row_statistics_kernel", "column_sums_kernel", "degrees_backward_rows_kernel", "degrees_backward_columns_kernel",
]  # fmt: skip


def variant(
    dtype,
    width,
    *,
    mask=None,
    causal=False,
    restart=True,
    distance=True,
    dropout=False,
    near=None,
    value=None,
    single=False,
    kernels=None,
):
    return {
        "dtype": dtype, "dk": width, "dh": width, "mask": mask, "causal": causal, "restart": restart,
        "distance": distance, "dropout": dropout, "near": near or dtype, "value": value or dtype, "single": single,
        "kernels": kernels or ATTENTION,
    }  # fmt: skip


QUICK = [variant("bfloat16", 64, near="float32", mask="bool", causal=True, dropout=True)]
EVERY = [
    *(
        variant(dtype, width, near=near, mask="bool", causal=True, dropout=dropout)
        for width in (16, 32, 64, 128, 256)
        for dtype, near in (
            ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"),
        )
        for dropout in (False, True)
    ),
    # switches that change the code
    *(
        variant("bfloat16", 64, near="float32", mask=mask, causal=causal, restart=restart, distance=distance)
        for mask, causal, restart, distance in (
            (None, False, True, True), ("added", False, False, True), (None, True, False, False),
            ("bool", False, True, False),
        )
    ),
    # one head, one query, one key: the launcher makes constants of ones
    variant("float32", 32, mask="bool", causal=True, single=True, kernels=ATTENTION + DEGREES),
    # float16 in the symmetric degree, and the bottleneck form: values in float32
    variant("float16", 64, near="float32", value="float32"),
    {**variant("bfloat16", 64, near="float32", value="float32"), "dh": 8},
    *(
        variant(dtype, width, mask=mask, causal=causal, kernels=DEGREES)
        for dtype in ("bfloat16", "float16", "float32")
        for width, mask, causal in ((32, None, False), (64, "bool", True), (128, "added", False), (256, None, False))
    ),
]  # fmt: skip


def compiled(variants, *capabilities):
    """In a process that does not interpret; Triton's own cache makes the second time quick."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, COMPILER, *map(str, capabilities)],
        input="\n".join(map(json.dumps, variants)), env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(capabilities) * sum(len(it["kernels"]) for it in variants)
    return found


def check(found):
    for it in found:
        assert it["shared"] <= SHARED, it
        assert it["atomics"] == 0, it  # the same bits every time
        half = it["variant"]["dtype"] != "float32"
        assert (it["tensor_cores"] > 0) == half, it  # TF32 only where it was asked for


def test_attention_compiles():
    check(compiled(QUICK, 80))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_in_every_variant(capability):
    check(compiled(EVERY, capability))
