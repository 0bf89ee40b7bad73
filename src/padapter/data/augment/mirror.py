"""Which texts say something that is not true of the mirror image.

Two kinds: words about sides ("left", "clockwise", "east"), and words about something to be read ("sign", "what time",
a quotation), since mirrored writing is not what is written. English only. A row that is not flipped although it could
be costs next to nothing; so the lists lean to that side ("right" is listed though it may mean "correct").
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SIDES = (
    "left|right|lefts|rights|leftmost|rightmost|leftward|leftwards|rightward|rightwards|lefty|righty|lefthand|righthand"
    "|lefthanded|righthanded|clockwise|counterclockwise|anticlockwise|which way|what way|direction|directions|lateral"
    "|laterality|situs|dextrocardia|mirrored|reversed|backwards"
    "|(?:north|south)?-?(?:east|west)(?:ern|ward|wards|bound)?"
    "|[rl](?:ul|ml|ll|uq|lq|v|t)?"  # in radiology: lobes, quadrants, ventricles, or just R and L
    "|o.clock"  # with any apostrophe
)
READING = (
    "text|texts|word|words|worded|letter|letters|lettering|digit|digits|number|numbers|numbered|numeral|numerals|sign"
    "|signs|signage|label|labels|labeled|labelled|logo|logos|brand|brands|branded|name|names|named|title|titles|titled"
    "|entitled|headline|written|writing|writes|read|reads|reading|say|says|saying|spell|spells|spelled|spelling|print"
    "|printed|handwriting|handwritten|script|language|font|inscription|engraved|barcode|qr code|license|licence|clock"
    "|clocks|watch|time|date|dated|expiration|expires|expiry|price|prices|cost|menu|page|screen|display|displays|displaying"
    "|caption|captioned|subtitle|subtitles|screenshot|keyboard|calendar"
)
# Underscores separate words here; letters and digits do not.
_PATTERN = re.compile(rf"(?<![^\W_])(?P<sides>{SIDES})(?![^\W_])|(?<![^\W_])(?P<reading>{READING})(?![^\W_])|[\"“”«»]")


def mirror_word(texts: Iterable[str]) -> tuple[str, str] | None:
    """The first word that forbids to mirror a picture.

    Args:
        texts: what is said about the picture.

    Returns:
        Its kind, ``sides`` or ``reading``, and the word in lower case; ``None`` if there is none.
    """
    for text in texts:
        found = _PATTERN.search(text.lower())
        if found:
            return found.lastgroup or "reading", found[0]
    return None
