"""mPLUG's tokenizer: BERT's, without ``[SEP]`` behind a single text."""

from __future__ import annotations

from typing import Any

from tokenizers import processors
from transformers import BertTokenizer


class MPlugTokenizer(BertTokenizer):
    """WordPiece over BERT's vocabulary; a single text becomes ``[CLS] words``, a pair ``[CLS] a [SEP] b [SEP]``.

    The published models were trained on questions that end without ``[SEP]``. What the decoder writes does end with
    it: there it is part of the text, ``words [SEP]``.

    Args:
        trailing_sep: whether a single text ends with ``[SEP]`` all the same, as in ModelScope's port.
        **kwargs: those of ``BertTokenizer``.
    """

    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, *args: Any, trailing_sep: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, trailing_sep=trailing_sep, **kwargs)
        self.trailing_sep = trailing_sep
        cls, sep = str(self.cls_token), str(self.sep_token)
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}" if trailing_sep else f"{cls} $A",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, self.cls_token_id), (sep, self.sep_token_id)],
        )
