"""Scores as pure functions: (predictions, references) -> numbers. No model, no files, no torch.

All scores are fractions in [0, 1] (CIDEr: [0, 10]), unrounded. The name of the rule stands beside every number.
"""

from __future__ import annotations

from padapter.metrics.caption import CAPTION_RULE, CaptionScores, score_captions
from padapter.metrics.entailment import ENTAILMENT_RULE, EntailmentScores, score_entailment
from padapter.metrics.vqa import (
    EXACT_MATCH,
    OFFICIAL,
    VqaScores,
    choose_vqa_rule,
    exact_match,
    normalise_answer,
    score_vqa,
    vqa_accuracy,
)

__all__ = [
    "CAPTION_RULE",
    "ENTAILMENT_RULE",
    "EXACT_MATCH",
    "OFFICIAL",
    "CaptionScores",
    "EntailmentScores",
    "VqaScores",
    "choose_vqa_rule",
    "exact_match",
    "normalise_answer",
    "score_captions",
    "score_entailment",
    "score_vqa",
    "vqa_accuracy",
]
