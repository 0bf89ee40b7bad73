"""Scores as pure functions: (predictions, references) -> numbers. No model, no files, no torch.

All scores are fractions in [0, 1] (CIDEr: [0, 10]), unrounded. The name of the rule stands beside every number.
"""

from __future__ import annotations

from padapter.metrics.answerability import (
    ANSWERABILITY_RULE,
    AnswerabilityScores,
    answerable_score,
    score_answerability,
)
from padapter.metrics.answers import normalise_answer
from padapter.metrics.caption import CAPTION_RULE, CaptionScores, score_captions
from padapter.metrics.entailment import ENTAILMENT_RULE, ClassScores, EntailmentScores, score_entailment
from padapter.metrics.meteor import Meteor
from padapter.metrics.vqa import VqaScores, choose_vqa_rule, score_vqa
from padapter.metrics.vqa_rules import (
    EXACT_MATCH,
    OFFICIAL,
    OFFICIAL_PRE_2021,
    VIZWIZ_LEAVE_ONE_OUT,
    VIZWIZ_RELEASED,
    VQA_RULES,
    VqaRule,
    exact_match,
    vqa_accuracy,
)

__all__ = [
    "ANSWERABILITY_RULE",
    "CAPTION_RULE",
    "ENTAILMENT_RULE",
    "EXACT_MATCH",
    "OFFICIAL",
    "OFFICIAL_PRE_2021",
    "VIZWIZ_LEAVE_ONE_OUT",
    "VIZWIZ_RELEASED",
    "VQA_RULES",
    "AnswerabilityScores",
    "CaptionScores",
    "ClassScores",
    "EntailmentScores",
    "Meteor",
    "VqaRule",
    "VqaScores",
    "answerable_score",
    "choose_vqa_rule",
    "exact_match",
    "normalise_answer",
    "score_answerability",
    "score_captions",
    "score_entailment",
    "score_vqa",
    "vqa_accuracy",
]
