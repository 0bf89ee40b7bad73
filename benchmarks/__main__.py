"""``python -m benchmarks``: all of them. ``--step METHOD`` is one side of the step benchmark, used by the parent."""

from __future__ import annotations

import json
import sys

import torch

torch.set_flush_denormal(True)

from benchmarks import operator, ranking, step  # noqa: E402

if sys.argv[1:2] == ["--step"]:
    print(json.dumps(step.measure(sys.argv[2])))
else:
    operator.main()
    step.main()
    ranking.main()
