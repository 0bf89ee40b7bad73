"""The tokenizers of BERT-based models, from a ``vocab.txt`` or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import BertTokenizer

from padapter.errors import UserError

HUB_ID = "google-bert/bert-base-uncased"

#: Its size, the ids of its special tokens and of three of its words, and the number of ids of two texts (``[CLS]`` and
#: ``[SEP]`` included): a vocabulary of the right size in another order or spelling has others.
BERT_WORDS = 30522
SPECIAL_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
WORD_IDS = {"correct": 6149, "incorrect": 16542, "ambiguous": 20080}
LENGTHS = {"a picture of ": 5, "What does the image describe? ": 8}


def bert_tokenizer(vocab: str | Path | None) -> BertTokenizer:
    """Lower-casing WordPiece over BERT's vocabulary, without token types.

    Args:
        vocab: a ``vocab.txt`` with one token per line; ``None`` takes bert-base-uncased from transformers' cache
            or the hub.

    Raises:
        UserError: if the vocabulary cannot be read or lacks a special token.
    """
    options: dict[str, Any] = {"model_input_names": ["input_ids", "attention_mask"]}
    if vocab is not None:
        return BertTokenizer(vocab=read_vocabulary(vocab), do_lower_case=True, **options)
    problem: Exception | None = None
    try:
        found = BertTokenizer.from_pretrained(HUB_ID, **options)
        if len(found) == BERT_WORDS:  # transformers 5 makes an empty tokenizer where it finds no vocabulary
            return found
    except (OSError, ValueError) as error:
        problem = error
    raise UserError(
        f"--vocab: {HUB_ID} is neither in transformers' cache nor can it be fetched. Give its vocab.txt ({BERT_WORDS} "
        "lines), which every copy of that model holds: --vocab FILE"
    ) from problem


def read_vocabulary(path: str | Path) -> dict[str, int]:
    """Token -> id, the number of its line.

    Raises:
        UserError: naming file and line of an empty or repeated token, or the special tokens that are not there.
    """
    words: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                word = line.rstrip("\n")
                if not word or word in words:
                    what = f"{word!r} stands in line {words[word] + 1} too" if word else "is empty"
                    raise UserError(f"--vocab: {path}, line {number}: {what}; give BERT's own vocab.txt")
                words[word] = number - 1
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "it is no UTF-8 text"
        raise UserError(f"--vocab: {path} cannot be read ({reason}); give a vocab.txt, one token per line") from problem
    lacking = [token for token in SPECIAL_IDS if token not in words]
    if lacking:
        raise UserError(f"--vocab: {path} lacks {', '.join(lacking)}; give BERT's own vocab.txt")
    return words


def check_bert_ids(tokenizer: Any, words: int) -> list[str]:
    """What differs from bert-base-uncased in a tokenizer over ``words`` tokens (added ones apart).

    A vocabulary of another size cannot be compared, so there is nothing to say about it.
    """
    if words != BERT_WORDS:
        return []
    wrong = [
        f"{token} is {found} instead of {wanted}"
        for token, wanted in {**SPECIAL_IDS, **WORD_IDS}.items()
        if (found := tokenizer.convert_tokens_to_ids(token)) != wanted
    ]
    for text, wanted in LENGTHS.items():
        found = len(tokenizer(text).input_ids)
        if found != wanted:
            wrong.append(f"{text!r} gives {found} ids instead of {wanted}")
    return wrong
