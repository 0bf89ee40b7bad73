"""The vocabulary of the built-in model: the words of the shapes world whole, everything else in pieces."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

from padapter.worlds.shapes.dialects import FANCY, PLAIN

if TYPE_CHECKING:
    from transformers import BertTokenizer

#: BLIP's special tokens; ``[DEC]`` starts a decoder sequence (official ids differ, roles are the same).
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")

_PROMPT_WORDS = "what does the image describe is it correct that incorrect ambiguous question answer picture of photo"

#: Frequent English words, so that a real question is tens of tokens and not hundreds.
_COMMON = """
about above after again all also am an and animal any are arm as at back bag ball be bear bed been before behind below
beside bicycle big bird black blue board boat body bone book both bowl boy brain brown building bus but by cake can car
cat center chair chest child city clock clothes color computer cow cup day desk did different dirt do dog door down
down each eating elephant evidence exactly eye face female few field find fire first flower food foot for found four
from front fruit girl giraffe glass going good grass gray green ground group hair hand has hat have he head heart her
here high his holding home horse house how i if image in inside into it item its kitchen large left less light like
line liver living long looking lot low lung made making male man many mass may me men more most mother mountain much
near no normal not nothing number object ocean of off old on one only open or orange other out outside over page paper
park part people person phone pink pizza plane plate play player playing present purple read red right river road rock
room round running same scan screen see seen several she sheep shirt show side sign sit sitting sky small snow so some
something square standing street surf table tall tennis than that their them then there these they thing this three
three through time to top toilet touching tower traffic train tree truck two umbrella under up used very video view walk
walking wall was water wave we wearing were what when where which while white who why wide will window with woman women
wood yellow yes you young zebra
"""

_ENDINGS = "s es ed er ers est ing ly tion ion al ic ment ness ity y able ous ive ful less"
_PIECES = "th he in er an re on at en nd st es or te ti ar ng al le ou ea ra ri ro li la ch sh ph qu gh ck ll ss ee oo"


def vocabulary() -> list[str]:
    """All tokens in id order: special tokens, world words, common words, characters and word pieces."""
    words = sorted(PLAIN.vocabulary() | FANCY.vocabulary() | set(_PROMPT_WORDS.split()) | set(_COMMON.split()))
    letters = [*string.ascii_lowercase, *string.digits]
    inner = ["##" + piece for piece in (*letters, *_ENDINGS.split(), *_PIECES.split())]
    return list(dict.fromkeys([*SPECIAL, *words, *string.punctuation, *letters, *inner]))


def build_tokenizer() -> BertTokenizer:
    """A ``BertTokenizer`` (lower-casing WordPiece) over :func:`vocabulary`, with BLIP's two extra tokens."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary())}, do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer
