"""What a model's answer rests on: relevance of patches and words, and where every head looks.

Everything that needs torch is imported when it is first used: the command line's ``--help`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from padapter.explain.options import ExplainOptions

if TYPE_CHECKING:
    from padapter.explain.answers import explain_answer
    from padapter.explain.explanation import AttentionMap, Explanation, Side
    from padapter.explain.rules import Relevance
    from padapter.explain.run import explain, write
    from padapter.explain.views import View

__all__ = [
    "AttentionMap",
    "ExplainOptions",
    "Explanation",
    "Relevance",
    "Side",
    "View",
    "explain",
    "explain_answer",
    "write",
]

_HOMES = {
    "AttentionMap": "explanation",
    "Explanation": "explanation",
    "Relevance": "rules",
    "Side": "explanation",
    "View": "views",
    "explain": "run",
    "explain_answer": "answers",
    "write": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
