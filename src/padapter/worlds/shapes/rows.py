"""Rows of the three tasks, as a ``datasets.Dataset`` or exported to a folder of images and JSONL files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature

from padapter.errors import UserError
from padapter.worlds.shapes.domains import DOMAINS, Domain
from padapter.worlds.shapes.facts import ASK, Fact, Meaning
from padapter.worlds.shapes.kept import kept
from padapter.worlds.shapes.render import render
from padapter.worlds.shapes.scenes import Scene
from padapter.worlds.shapes.statements import LABELS, captions, hypothesis

#: split name -> (part of the random seed, rows unless a size is asked for)
SPLITS: dict[str, tuple[int, int]] = {"train": (0, 4096), "validation": (1, 512), "test": (2, 2048)}

_ANNOTATORS = 10

Row = dict[str, Any]


def scene_of(domain: Domain, split: str, index: int, seed: int = 0) -> tuple[Scene, np.random.Generator]:
    """Scene number ``index`` of a split, and the generator its texts are drawn with."""
    rng = np.random.default_rng([seed, domain.index, SPLITS[split][0], index])
    return domain.look.sample(rng), rng


def draw_fact(domain: Domain, scene: Scene, rng: np.random.Generator) -> Fact:
    """A random fact of a random kind the domain asks about."""
    while True:
        kind = domain.kinds[int(rng.integers(len(domain.kinds)))]
        fact = ASK[kind](scene, domain.look, rng)
        if fact is not None:
            return fact


def _vqa(domain: Domain, scene: Scene, rng: np.random.Generator) -> Row:
    fact = draw_fact(domain, scene, rng)
    return {
        "question": domain.dialect.ask(fact.kind, fact.slots, rng),
        "answers": _annotators(domain, fact.answer, rng),
        "question_type": fact.kind,
        "answer_type": fact.answer_type,
    }


def _annotators(domain: Domain, answer: Meaning, rng: np.random.Generator) -> list[str]:
    """Ten annotators' answers. One question in five has one or two dissenters, who add what was not asked for."""
    said = domain.dialect.say(answer)
    dissenters = int(rng.integers(1, 3)) if rng.random() < 0.2 else 0
    aside = f"{said} {domain.dialect.noun}"
    answers = [said] * (_ANNOTATORS - dissenters) + [aside] * dissenters
    return [answers[int(i)] for i in rng.permutation(_ANNOTATORS)]


def _entailment(domain: Domain, scene: Scene, rng: np.random.Generator) -> Row:
    label = LABELS[int(rng.integers(len(LABELS)))]
    return {"hypothesis": hypothesis(scene, domain.look, domain.dialect, label, rng), "label": label}


def _caption(domain: Domain, scene: Scene, rng: np.random.Generator) -> Row:
    return {"captions": captions(scene, domain.dialect, rng)}


_STRING = Value("string")
_TEXTS: dict[str, tuple[Callable[[Domain, Scene, np.random.Generator], Row], dict[str, Any]]] = {
    "vqa": (
        _vqa,
        {"question": _STRING, "answers": List(_STRING), "question_type": _STRING, "answer_type": _STRING},
    ),
    "entailment": (_entailment, {"hypothesis": _STRING, "label": _STRING}),
    "caption": (_caption, {"captions": List(_STRING)}),
}


def rows(domain: Domain, task: str, split: str, size: int, seed: int = 0) -> Iterator[Row]:
    """The rows of a split, one scene each: ``id``, ``image`` (PNG bytes) and the task's columns."""
    for index in range(size):
        scene, rng = scene_of(domain, split, index, seed)
        buffer = io.BytesIO()
        render(scene).save(buffer, format="PNG")
        name = f"{domain.name}-{split}-{index:06d}"
        yield {
            "id": name,
            "image": {"bytes": buffer.getvalue(), "path": f"{name}.png"},
            **_TEXTS[task][0](domain, scene, rng),
        }


def _domain(name: str, task: str, split: str) -> Domain:
    if name not in DOMAINS:
        raise UserError(f"unknown domain {name!r} of the shapes world; choose from {', '.join(DOMAINS)}")
    if task not in _TEXTS:
        raise UserError(f"the shapes world has no rows for task {task!r}; choose from {', '.join(_TEXTS)}")
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r} of the shapes world; choose from {', '.join(SPLITS)}")
    return DOMAINS[name]


def load_world(domain: str, task: str, split: str, size: int | None = None, seed: int = 0) -> Dataset:
    """A split of a domain as a ``datasets.Dataset``.

    The first n rows do not depend on ``size``: row i is drawn from ``(seed, domain, split, i)`` alone.

    Args:
        domain: ``"source"``, ``"new-questions"`` or ``"new-pictures"``.
        task: ``"vqa"``, ``"entailment"`` or ``"caption"``.
        split: ``"train"``, ``"validation"`` or ``"test"``; splits share no scene.
        size: number of rows (default 4,096, 512 and 2,048 by split).
        seed: another seed is another world of the same kind.

    Returns:
        columns ``id``, ``image`` (undecoded PNG) and the task's own. Where the environment names a folder as
        ``PADAPTER_CACHE`` it is kept there and read from there.

    Raises:
        UserError: an unknown domain, task or split, or a size below 1.
    """
    where = _domain(domain, task, split)
    if size is not None and size < 1:
        raise UserError(f"a split of the shapes world needs a size of at least 1, got {size}")
    number = SPLITS[split][1] if size is None else size
    features = Features({"id": _STRING, "image": ImageFeature(decode=False), **_TEXTS[task][1]})
    return kept(
        f"{domain}-{task}-{split}-{number}-{seed}",
        lambda: Dataset.from_list(list(rows(where, task, split, number, seed)), features=features),
    )


def export_world(
    directory: str | Path, domain: str, task: str, sizes: dict[str, int] | None = None, seed: int = 0
) -> Path:
    """Write splits of a domain as people keep their own data: ``SPLIT.jsonl`` beside an ``images`` folder.

    Args:
        directory: created if missing; files of the same name are overwritten.
        domain: see :func:`load_world`.
        task: see :func:`load_world`.
        sizes: split -> rows (default: all three splits at their default size).
        seed: see :func:`load_world`.

    Returns:
        the directory.
    """
    root = Path(directory)
    (root / "images").mkdir(parents=True, exist_ok=True)
    for split, size in (sizes or {name: default for name, (_, default) in SPLITS.items()}).items():
        where = _domain(domain, task, split)
        with (root / f"{split}.jsonl").open("w", encoding="utf-8") as out:
            for row in rows(where, task, split, size, seed):
                image = row.pop("image")
                (root / "images" / image["path"]).write_bytes(image["bytes"])
                out.write(json.dumps({**row, "image": f"images/{image['path']}"}, ensure_ascii=False) + "\n")
    return root
