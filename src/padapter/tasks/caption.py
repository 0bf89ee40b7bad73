"""Captioning: say what an image shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from padapter.data.schema import WEIGHT, Field, has_words
from padapter.metrics.caption import CAPTION_RULE, check_caption_scoring, score_captions
from padapter.tasks.base import GenerationDefaults, Prediction, Row, Scores, Task, by_id, iterate_texts
from padapter.tasks.text import clean_caption

#: The prompt of the p-adapter authors' code in training (it masks and generates with "a picture of ").
LEAD_IN = "What does the image describe? "


@dataclass(frozen=True)
class CaptionTask(Task):
    """Describe an image.

    Attributes:
        prompt_template: The prompt: one for training, masking and generation. None: what the model is used to, or
            :data:`LEAD_IN`.
        max_caption_words: Longer captions are cut in training; scoring uses whole references.
        meteor: Compute METEOR too. Every scoring then starts a Java process for some twelve seconds.
        rule: ``"coco-caption-ptb"``, the only one, or None.
    """

    prompt_template: str | None = None
    max_caption_words: int = 30
    meteor: bool = False
    rule: str | None = None

    name: ClassVar[str] = "caption"
    summary: ClassVar[str] = "describe an image"
    fields: ClassVar[tuple[Field, ...]] = (Field("captions", "texts", alias="caption", keep_empty=True), WEIGHT)
    primary_metric: ClassVar[str] = "cider"
    rules: ClassVar[tuple[str, ...]] = (CAPTION_RULE,)
    loss_reduction: ClassVar[Literal["sequence", "token"]] = "token"
    generation: ClassVar[GenerationDefaults] = GenerationDefaults(num_beams=5, max_new_tokens=40, min_new_tokens=5)
    default_inference: ClassVar[Literal["generate", "rank"]] = "generate"
    asks: ClassVar[bool] = False

    def prompt(self, row: Row) -> str:
        """The same prompt for every image."""
        return LEAD_IN if self.prompt_template is None else self.prompt_template

    def led_by(self, lead_in: str | None) -> CaptionTask:
        """See :meth:`Task.led_by`."""
        return self if self.prompt_template is not None else replace(self, prompt_template=lead_in)

    def shares(self, row: Row) -> list[tuple[str, float]]:
        """Each distinct cleaned caption, weighted by how often it was given (1 for most)."""
        cleaned = (clean_caption(caption, self.max_caption_words) for caption in row["captions"])
        return [(caption, float(count)) for caption, count in Counter(cleaned).items() if has_words(caption)]

    def candidates(self, rows: Iterable[Row]) -> None:
        """Captions are not ranked."""
        return

    def check_scoring(self) -> None:
        """The packages of the caption evaluation, and Java."""
        check_caption_scoring()

    def score(self, predictions: Sequence[Prediction], rows: Iterable[Row]) -> Scores:
        """BLEU-1..4, METEOR if it is wanted, ROUGE-L and CIDEr on PTB tokens; per item: CIDEr."""
        references = {row["id"]: row["captions"] for row in iterate_texts(rows)}
        scores = score_captions(by_id(predictions), references, meteor=self.meteor)
        per_item = {key: values["cider"] for key, values in scores.per_image.items()}
        return Scores(scores.corpus, scores.rule, per_item)
