"""mPLUG: an image encoder, a text encoder, a skip-connected fusion network and a text decoder, transformers-style.

Li et al., "mPLUG: Effective and Efficient Vision-Language Learning by Cross-modal Skip-connections", EMNLP 2022.
``import padapter`` makes transformers' Auto classes know these classes (:mod:`padapter.models.mplug.registration`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from padapter.models.mplug.base import MPlugModel
    from padapter.models.mplug.beam_search import official_beam_search
    from padapter.models.mplug.configuration import MPlugConfig, MPlugTextConfig, MPlugVisionConfig
    from padapter.models.mplug.modeling import MPlugForConditionalGeneration, MPlugForQuestionAnswering
    from padapter.models.mplug.processing import MPlugProcessor
    from padapter.models.mplug.tokenization import MPlugTokenizer

__all__ = [
    "MPlugConfig",
    "MPlugForConditionalGeneration",
    "MPlugForQuestionAnswering",
    "MPlugModel",
    "MPlugProcessor",
    "MPlugTextConfig",
    "MPlugTokenizer",
    "MPlugVisionConfig",
    "official_beam_search",
]

_HOMES = {
    "MPlugConfig": "configuration",
    "MPlugForConditionalGeneration": "modeling",
    "MPlugForQuestionAnswering": "modeling",
    "MPlugModel": "base",
    "MPlugProcessor": "processing",
    "MPlugTextConfig": "configuration",
    "MPlugTokenizer": "tokenization",
    "MPlugVisionConfig": "configuration",
    "official_beam_search": "beam_search",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
