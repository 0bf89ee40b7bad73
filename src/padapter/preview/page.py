"""Write the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from padapter.data import infer_task
from padapter.data.check import Survey, survey
from padapter.errors import UserError
from padapter.pages import render_page
from padapter.preview.counts import Chart, Shared, SplitCounts, charts, shared_pictures, split_counts
from padapter.preview.options import PreviewOptions
from padapter.preview.reading import Reader
from padapter.preview.samples import SQUARE, Sample, Square, choose, samples
from padapter.tasks import TASKS, Task, get_task

_PROBLEMS = 50


@dataclass(frozen=True)
class Preview:
    """What stands in the page.

    Attributes:
        title: Name of the data.
        task: Name of the task, and what it asks.
        template: The prompt template.
        model: The model that read the rows, or None.
        square: What is shown where no model was asked.
        room: Longest sequence of the model.
        survey: What was read.
        problems: The first problems.
        splits: Counts.
        charts: Answers, beginnings, lengths.
        shared: Pictures in two splits.
        cards: Sample rows by split.
    """

    title: str
    task: Task
    template: str
    model: str | None
    square: Square
    survey: Survey
    problems: list[str]
    splits: list[SplitCounts]
    charts: list[Chart]
    shared: list[Shared]
    cards: dict[str, list[Sample]]


def write_preview(options: PreviewOptions) -> Preview:
    """Write a page about data.

    Args:
        options: Which data, which model, how many rows, where to.

    Returns:
        What stands in the page.

    Raises:
        UserError: There are no data, the task is not certain, the model cannot be loaded, or the page exists.
    """
    output = Path(options.output).expanduser()
    if output.is_dir():
        raise UserError(f"--output: {output} is a folder; name a file, e.g. {output / 'preview.html'}")
    if output.exists() and not options.overwrite:
        raise UserError(f"--output: {output} exists; --overwrite replaces it")
    found = preview(options)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(render(found), encoding="utf-8")
    except OSError as problem:
        raise UserError(f"--output: {output} cannot be written ({problem.strerror or problem})") from problem
    return found


def preview(options: PreviewOptions) -> Preview:
    """Collect what the page shows; arguments and errors as of :func:`write_preview`."""
    task = _task(options)
    reader = None
    if options.model is not None:
        reader = Reader(options.model, task, image_size=options.image_size, resize=options.resize)
        task = reader.task
    square = Square(options.image_size or SQUARE, options.resize or "squash")
    seen = _named(survey(options.data, task, split=options.split, seed=options.seed, decode=False), options.data)
    chosen = choose(seen, options.rows, options.seed)
    return Preview(
        title=Path(options.data).expanduser().resolve().name if Path(options.data).exists() else options.data,
        task=task,
        template=getattr(task, "prompt_template", "") if task.asks else task.prompt({}),
        model=options.model,
        square=square,
        survey=seen,
        problems=[str(problem) for problem in seen.report.problems[:_PROBLEMS]],
        splits=split_counts(seen, task),
        charts=charts(seen, task),
        shared=shared_pictures(seen),
        cards={split: samples(seen, split, rows, task, reader, square) for split, rows in chosen.items()},
    )


def render(found: Preview) -> str:
    """The page as HTML; everything that comes from data is escaped."""
    return render_page("padapter.preview", page=found)


def _named(found: Survey, spec: str) -> Survey:
    """The survey with the splits under names that are true: a file is no split, and a world's spec names its own."""
    file = Path(spec).expanduser()
    names = {split: file.name if file.is_file() else source.split for split, source in found.sources.items()}
    return Survey(
        found.report,
        {names[split]: source for split, source in found.sources.items()},
        {names[split]: examples for split, examples in found.examples.items()},
    )


def _task(options: PreviewOptions) -> Task:
    if options.task is None:
        task = infer_task(options.data, TASKS.values(), split=options.split)
    else:
        task = get_task(options.task)
    if options.prompt is None:
        return task
    from padapter.evaluation.asking import with_prompt

    return with_prompt(task, options.prompt)
