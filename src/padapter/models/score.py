"""Score the built-in model on every domain and task: ``python -m padapter.models.score MODEL OUTPUT.json``.

These are the numbers of its model card. The model is scored as it is, without any adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from padapter.evaluation import evaluate_source
from padapter.options import EvalOptions
from padapter.worlds import DOMAINS

TASKS = ("vqa", "entailment", "caption")
_ROWS = {"vqa": 2048, "entailment": 2048, "caption": 512}


def score_builtin(model: str) -> list[dict[str, Any]]:
    """Scores of a model on the test split of every domain, task by task.

    Args:
        model: a folder or a built-in name.

    Returns:
        one record per domain and task: ``domain``, ``task``, ``rows``, ``rule`` and ``metrics``.
    """
    found = []
    for task in TASKS:
        for domain in DOMAINS:
            report = evaluate_source(
                EvalOptions(
                    model=model,
                    task=task,
                    data=f"shapes:{domain}",
                    split="test",
                    limit=_ROWS[task],
                    num_beams=1,
                    eval_batch_size=64,
                    quiet=True,
                )
            )
            scores = report["scores"]
            found.append({"domain": domain, "task": task, **{k: scores[k] for k in ("rows", "rule", "metrics")}})
    return found


def main() -> None:
    """Write the scores of a model as JSON."""
    model, output = sys.argv[1], Path(sys.argv[2])
    output.write_text(json.dumps(score_builtin(model), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
