"""Every option of every command, once.

The dataclasses of this package are the Python interface (``TrainOptions(task="vqa", ...)``), the keys of a YAML recipe
and the flags of the command line at the same time. Nothing here imports torch: ``--help`` stays quick.
"""

from __future__ import annotations

from padapter.options.answering import EvalOptions, PredictOptions, SourceOptions, SubmitOptions
from padapter.options.comparing import CompareOptions
from padapter.options.data import DataCheckOptions, DataShardOptions
from padapter.options.fields import EPOCH, NEVER, flag_of, option, own_first, parse_settings, refuse, split_method
from padapter.options.reading import options_from, resume_config, to_plain
from padapter.options.topics import topic_of
from padapter.options.training import (
    ATTENTIONS,
    DEVICES,
    INFERENCES,
    PRECISIONS,
    RESIZES,
    InferenceOptions,
    ScoringOptions,
    TrainOptions,
)

__all__ = [
    "ATTENTIONS",
    "DEVICES",
    "EPOCH",
    "INFERENCES",
    "NEVER",
    "PRECISIONS",
    "RESIZES",
    "CompareOptions",
    "DataCheckOptions",
    "DataShardOptions",
    "EvalOptions",
    "InferenceOptions",
    "PredictOptions",
    "ScoringOptions",
    "SourceOptions",
    "SubmitOptions",
    "TrainOptions",
    "flag_of",
    "option",
    "options_from",
    "own_first",
    "parse_settings",
    "refuse",
    "resume_config",
    "split_method",
    "to_plain",
    "topic_of",
]
