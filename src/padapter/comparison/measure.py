"""One training step of a method at full size, timed and weighed in a process of its own."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from padapter.backbones.cross_attending import CrossAttendingBackbone
from padapter.backbones.loading import family_of
from padapter.backbones.steps import bare_training, random_batch
from padapter.comparison.counting import skeletons_of
from padapter.errors import UserError
from padapter.methods import get_method
from padapter.options import TrainOptions
from padapter.training.defaults import total_steps

ROWS, TOKENS, STEPS = 8, 20, 3
_KILO = 1 if sys.platform == "darwin" else 1024
_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Cost:
    """What a step costs on the machine that measured it.

    Attributes:
        seconds: per optimizer step, the first one left out.
        peak_bytes: largest memory of the process, model and optimizer included (CPU only).
        own_peak: whether that is the process's own. Where Linux does not tell, it is what the system remembers of the
            process, and may be the memory of the process that started it.
    """

    seconds: float
    peak_bytes: int
    own_peak: bool = True


def extrapolate(cost: Cost, options: TrainOptions, rows: int | None, sequences: float) -> tuple[int, float] | None:
    """Optimizer steps of a training and their seconds, in proportion to rows and to sequences.

    A measured step has `ROWS` rows of one sequence each. Loading data, scoring and checkpoints are left out.

    Args:
        cost: of a measured step.
        options: of the training.
        rows: of its data, before ``limit_train``; ``None`` if unknown.
        sequences: mean number of training sequences of a row.

    Returns:
        Steps and seconds; ``None`` where the number of steps follows from rows that are unknown.
    """
    in_step = options.batch_size * options.gradient_accumulation
    if rows is not None:
        rows = min(rows, options.limit_train or rows)
        in_step = min(in_step, rows)
    elif options.max_steps is None:
        return None
    steps = total_steps(rows or 0, options)
    return steps, steps * in_step * sequences * cost.seconds / ROWS


def measure(
    config: PretrainedConfig,
    method: str,
    values: Mapping[str, Any],
    asks: bool = True,
    *,
    rows: int = ROWS,
    tokens: int = TOKENS,
) -> Cost:
    """Train a few steps of a model with random weights and random data on the CPU, in a fresh process.

    Args:
        config: of a BLIP or mPLUG.
        method: name of the method.
        values: its options.
        asks: see :func:`padapter.backbones.load_backbone`.
        rows: in a batch.
        tokens: of every text, and of every question where questions are read apart.

    Raises:
        UserError: if the model is of another family, or the process fails, e.g. for lack of memory.
    """
    if not issubclass(family_of(config, config.model_type), CrossAttendingBackbone):
        raise UserError(f"steps are measured of BLIP and mPLUG only so far, not of '{config.model_type}'.")
    order = {
        "config": config.to_dict(),
        "method": method,
        "values": dict(values),
        "asks": asks,
        "rows": rows,
        "tokens": tokens,
    }
    done = subprocess.run(
        [sys.executable, "-m", "padapter.comparison.measure"], input=json.dumps(order), capture_output=True, text=True
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        raise UserError(f"method '{method}': a training step could not be measured: {last}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def run_steps(
    config: PretrainedConfig,
    method: str,
    values: Mapping[str, Any],
    *,
    asks: bool = True,
    rows: int,
    tokens: int,
    steps: int = STEPS,
) -> list[float]:
    """Seconds of each step; arguments as for :func:`measure`."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    family: Any = family_of(config, config.model_type)
    skeleton = skeletons_of(config, asks=asks)("cpu")
    chosen = get_method(method)
    chosen.apply(skeleton, chosen.parse(values))  # type: ignore[arg-type]
    module = bare_training(family, skeleton.model, "sequence").train()
    optimizer = torch.optim.AdamW([value for value in module.parameters() if value.requires_grad], lr=1e-4)
    batch = random_batch(family, skeleton.base_model, rows=rows, tokens=tokens)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        module(**batch)["loss"].backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def forget_peak() -> None:
    """Make Linux forget the largest memory so far; nothing happens where that cannot be done."""
    # 5 resets VmHWM, see proc(5); some containers refuse, and then VmHWM still starts anew with the program.
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def peak_memory() -> tuple[int, bool]:
    """Largest memory of this process in bytes, and whether it is surely this process's own.

    ``ru_maxrss`` outlives fork and exec: the child of a large process is told its parent's. Linux's VmHWM does not.
    """
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024, True
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILO, False


def main() -> None:
    """Read an order from standard input, write the cost as the last line of standard output."""
    order = json.load(sys.stdin)
    forget_peak()
    given = order.pop("config")
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    seconds = run_steps(config, **order)
    later = sorted(seconds[1:])
    peak, own = peak_memory()
    print(json.dumps({"seconds": later[len(later) // 2], "peak_bytes": peak, "own_peak": own}))


if __name__ == "__main__":
    main()
