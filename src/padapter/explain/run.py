"""``padapter explain``: a run, a picture and a text in, an explanation out."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from padapter.data import open_image
from padapter.errors import UserError
from padapter.evaluation.beforehand import one_row
from padapter.evaluation.predict import predict_rows
from padapter.evaluation.source import Source, load_source
from padapter.explain.answers import explain_answer
from padapter.explain.explanation import Explanation
from padapter.explain.options import ExplainOptions
from padapter.tasks.entailment import EntailmentTask

BASE = "base model"


def explain(options: ExplainOptions | None = None, /, **given: Any) -> Explanation:
    """Explain what a run says about a picture.

    Args:
        options: as of ``padapter explain``; or give its fields by name, e.g. ``explain(run="runs/demo", image="x.png",
            text="what is it ?", output="x.html")``. Nothing is written here.
        **given: fields of `ExplainOptions`.

    Returns:
        The explanation: the base model first, then the adapted one; one side where there is no adapter, or with
        ``compare=False``. Both explain the same text.

    Raises:
        UserError: for anything wrong with the options, the run, the model or the picture, and for models of families
            that relevance cannot be followed through.
    """
    options = ExplainOptions(**{"output": "explanation.html", **given}) if options is None else options
    picture = open_image(options.image)
    source = load_source(options)
    rows = one_row(source.task, options.image, options.text)
    said = _answer(source, rows, options)
    text, others = _target(source, said, options)

    def explained(by: Source, title: str, answer: str | None) -> Explanation:
        return explain_answer(
            by.backbone,
            picture,
            source.task.prompt(rows[0]),
            text,
            others=others,
            token=options.token,
            layers=options.chosen_layers(),
            title=title,
            answer=answer,
        )

    found = explained(source, BASE if source.method is None else source.method.name, said)
    if source.method is None or not options.compare:
        return found
    base = _without_adapter(source)
    other = explained(base, BASE, _answer(base, rows, options))
    return replace(found, sides=(*other.sides, *found.sides))


def write(explanation: Explanation, output: Path) -> None:
    """Write an explanation as a page or a picture, as the ending of the file says.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix.lower() == ".png":
            explanation.figure().savefig(output, dpi=150)
        else:
            from padapter.explain.page import render

            output.write_text(render(explanation), encoding="utf-8")
    except OSError as problem:
        raise UserError(f"--output: {output} cannot be written ({problem.strerror or problem})") from problem


def _answer(source: Source, rows: Any, options: ExplainOptions) -> str | None:
    """What a model says; None where it can only rank, has nothing to rank, and an answer is given anyway."""
    if source.asking.inference == "rank" and not source.candidates and options.answer is not None:
        return None
    found = predict_rows(source.backbone, source.task, rows, source.asking, candidates=source.candidates, quiet=True)
    return found[0].text


def _target(source: Source, said: str | None, options: ExplainOptions) -> tuple[str, list[str]]:
    """The text to explain, and the others that it is to be told from: those of a task with a closed set of answers."""
    given = options.answer.strip() if options.answer is not None else None
    if given is not None and isinstance(source.task, EntailmentTask):
        given = source.task.word(given)
    closed = (source.candidates or []) if source.task.default_inference == "rank" else []
    if given is not None and closed and given not in closed:
        raise UserError(f"--answer: {options.answer!r} is none of the run's labels; it has: {', '.join(closed)}")
    text = given or said
    if not text:
        raise UserError("--answer: the model says nothing about this picture; name the answer to explain")
    return text, [other for other in closed if other != text]


def _without_adapter(source: Source) -> Source:
    """The model that the weights were trained on, which looks at pictures as the adapted one does."""
    base = copy.copy(source)
    base.method = base.weights = base._backbone = None
    return base
