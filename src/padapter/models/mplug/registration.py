"""Making transformers' Auto classes know mPLUG, each no earlier than it is needed.

The configuration is cheap. The models import torch, and transformers imports its Auto classes in the middle of its own
modules, when ours cannot be imported yet; so they are registered when the first `MPlugConfig` is made, which every
Auto class does before it looks for a model.
"""

from __future__ import annotations


def register_config() -> None:
    """``AutoConfig``."""
    from transformers import AutoConfig

    from padapter.models.mplug.configuration import MPlugConfig, MPlugTextConfig, MPlugVisionConfig

    for config in (MPlugConfig, MPlugTextConfig, MPlugVisionConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def register_models() -> None:
    """``AutoModel``, ``AutoModelForImageTextToText`` and ``AutoModelForVisualQuestionAnswering``."""
    from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForVisualQuestionAnswering

    from padapter.models.mplug.base import MPlugModel
    from padapter.models.mplug.configuration import MPlugConfig
    from padapter.models.mplug.modeling import MPlugForConditionalGeneration, MPlugForQuestionAnswering

    AutoModel.register(MPlugConfig, MPlugModel, exist_ok=True)
    AutoModelForImageTextToText.register(MPlugConfig, MPlugForConditionalGeneration, exist_ok=True)
    AutoModelForVisualQuestionAnswering.register(MPlugConfig, MPlugForQuestionAnswering, exist_ok=True)


def register_tokenizer() -> None:
    """``AutoTokenizer``."""
    from transformers import AutoTokenizer

    from padapter.models.mplug.configuration import MPlugConfig
    from padapter.models.mplug.tokenization import MPlugTokenizer

    AutoTokenizer.register(MPlugConfig, MPlugTokenizer, exist_ok=True)


def register_processor() -> None:
    """``AutoProcessor``."""
    from transformers import AutoProcessor

    from padapter.models.mplug.configuration import MPlugConfig
    from padapter.models.mplug.processing import MPlugProcessor

    AutoProcessor.register(MPlugConfig, MPlugProcessor, exist_ok=True)
