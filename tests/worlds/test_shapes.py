"""The shapes world: deterministic, true to its scenes, and really different between domains."""

from __future__ import annotations

import io
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from padapter.errors import UserError
from padapter.worlds import DOMAINS, export_world, load_world
from padapter.worlds.shapes import SPLITS, Scene, Thing, render, scene_of
from padapter.worlds.shapes.facts import ASK
from padapter.worlds.shapes.rows import draw_fact
from padapter.worlds.shapes.statements import LABELS, captions, hypothesis

SOURCE = DOMAINS["source"]
TASKS = ("vqa", "entailment", "caption")
domains = st.sampled_from(sorted(DOMAINS))
indices = st.integers(0, 10_000)


def majority(answers: list[str]) -> str:
    return Counter(answers).most_common(1)[0][0]


@pytest.mark.parametrize("domain", sorted(DOMAINS))
@pytest.mark.parametrize("task", TASKS)
def test_rows_depend_on_seed_domain_split_and_index_alone(domain, task):
    few, many = (load_world(domain, task, "train", n) for n in (5, 9))
    assert list(few) == list(many)[:5]
    other = [load_world(domain, task, "test", 5), load_world(domain, task, "train", 5, seed=1)]
    for dataset in other:
        assert [r["image"]["bytes"] for r in dataset] != [r["image"]["bytes"] for r in few]
    assert len(set(many["id"])) == 9


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_images_are_64_pixel_rgb(domain):
    row = load_world(domain, "vqa", "validation", 1)[0]
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert (image.size, image.mode) == ((64, 64), "RGB")


@settings(max_examples=60, deadline=None)
@given(domain=domains, index=indices)
def test_no_two_things_of_a_scene_are_alike_or_share_a_cell(domain, index):
    scene, _ = scene_of(DOMAINS[domain], "train", index)
    low, high = DOMAINS[domain].look.count
    assert low <= len(scene.things) <= high
    assert len({t.kind for t in scene.things}) == len({t.place for t in scene.things}) == len(scene.things)


@settings(max_examples=60, deadline=None)
@given(index=indices)
def test_rendering_is_deterministic_and_shows_every_thing(index):
    scene, _ = scene_of(SOURCE, "train", index)
    pixels = np.asarray(render(scene)).astype(int)
    assert (pixels == np.asarray(render(scene))).all()
    background = pixels[31 if scene.matching(place="center") else 0, 0]
    for thing in scene.things:
        rows = slice(64 * thing.row // 3, 64 * (thing.row + 1) // 3)
        columns = slice(64 * thing.column // 3, 64 * (thing.column + 1) // 3)
        empty = Scene((), scene.background, scene.noise, scene.paint_seed)
        changed = np.abs(pixels - np.asarray(render(empty)).astype(int)).sum(-1) > 60
        assert changed[rows, columns].mean() > 0.03, (thing, background)


# --- an independent reading of the English: the source dialect parsed back and checked against the scene


def parse(phrase: str, domain: str = "source") -> dict[str, str]:
    look = DOMAINS[domain].look
    found = {}
    for word in phrase.split():
        stem = {"crosses": "cross"}.get(word, word.removesuffix("s") if word.removesuffix("s") in look.shapes else word)
        for attribute, values in (
            ("shape", look.shapes),
            ("color", look.colors),
            ("size", ("small", "large")),
            ("texture", look.textures),
        ):
            if stem in values:
                found[attribute] = stem
    return found


def true_answer(question: str, scene: Scene, domain: str) -> str | None:
    words = question.rstrip("?")
    if words.startswith("what texture has the "):
        return scene.matching(**parse(words.removeprefix("what texture has the"), domain))[0].texture
    for attribute in ("color", "shape", "size"):
        if words.startswith(f"what {attribute} is the thing at the "):
            place = words.removeprefix(f"what {attribute} is the thing at the ")
            return next(t for t in scene.things if t.place == place).attribute(attribute)
        if words.startswith(f"what {attribute} is the "):
            return scene.matching(**parse(words, domain))[0].attribute(attribute)
    if words.startswith("where is the "):
        return scene.matching(**parse(words, domain))[0].place
    if words.startswith("how many "):
        return str(len(scene.matching(**parse(words, domain))))
    if words.startswith("is there "):
        return "yes" if scene.matching(**parse(words, domain)) else "no"
    for relation, axis, sign in (
        (" left of ", "column", -1),
        (" right of ", "column", 1),
        (" above ", "row", -1),
        (" below ", "row", 1),
    ):
        if relation in words:
            first, second = (scene.matching(**parse(part, domain))[0] for part in words.split(relation))
            return "yes" if sign * (getattr(first, axis) - getattr(second, axis)) > 0 else "no"
    return None


@pytest.mark.parametrize("domain", ["source", "new-pictures"])
def test_answers_are_true(domain, without_pictures):
    dataset = load_world(domain, "vqa", "test", 400)
    for index, row in enumerate(dataset):
        scene, _ = scene_of(DOMAINS[domain], "test", index)
        answer = true_answer(row["question"], scene, domain)
        assert answer is not None, row["question"]
        assert majority(row["answers"]) == answer, (row["question"], scene)


def statement_is_true(text: str, scene: Scene) -> bool:
    for relation in (" left of ", " right of ", " above ", " below "):
        if relation in text:
            return true_answer("is " + text + "?", scene, "source") == "yes"
    if text.startswith("there is "):
        return bool(scene.matching(**parse(text)))
    if text.startswith("there are "):
        number, rest = text.removeprefix("there are ").split(" ", 1)
        return len(scene.matching(**parse(rest))) == int(number)
    subject, predicate = text.split(" is ", 1)
    thing = scene.matching(**parse(subject))[0]
    if predicate.startswith("at the "):
        return thing.place == predicate.removeprefix("at the ")
    return all(thing.attribute(k) == v for k, v in parse(predicate).items())


def test_hypotheses_have_the_truth_their_label_says():
    counts = Counter()
    for index in range(400):
        scene, rng = scene_of(SOURCE, "test", index)
        for label in LABELS:
            text = hypothesis(scene, SOURCE.look, SOURCE.dialect, label, rng)
            hidden = any(word in SOURCE.dialect.hidden for word in text.split())
            assert hidden == (label == "neutral"), text
            if not hidden:
                assert statement_is_true(text, scene) == (label == "entailment"), (text, scene)
                counts[text.split()[0]] += 1
    assert counts["the"] > 200
    assert counts["there"] > 50


@settings(max_examples=50, deadline=None)
@given(domain=domains, index=indices)
def test_the_first_caption_names_every_thing_and_its_place(domain, index):
    where = DOMAINS[domain]
    scene, rng = scene_of(where, "train", index)
    said = captions(scene, where.dialect, rng)
    assert len(said) == 5
    for thing in scene.things:
        assert where.dialect.full_phrase(thing) in said[0]
    parts = said[0].split(" and ")
    assert len(parts) == len(scene.things)
    for part, thing in zip(parts, scene.things, strict=True):
        assert where.dialect.word("place", thing.place) in part


@settings(max_examples=200, deadline=None)
@given(domain=domains, index=indices)
def test_every_fact_can_be_asked_and_answered_in_its_dialect(domain, index):
    where = DOMAINS[domain]
    scene, rng = scene_of(where, "validation", index)
    fact = draw_fact(where, scene, rng)
    question, answer = where.dialect.ask(fact.kind, fact.slots, rng), where.dialect.say(fact.answer)
    assert question.endswith("?")
    assert "{" not in question + answer
    assert set(answer.split()) <= where.dialect.vocabulary()
    assert fact.answer_type in ("yes/no", "number", "other")


def test_domains_differ_where_they_say(without_pictures):
    assert set(DOMAINS["new-questions"].kinds) - set(SOURCE.kinds) == {"total", "more", "same", "half", "extreme"}
    assert all(kind in ASK for domain in DOMAINS.values() for kind in domain.kinds)
    assert DOMAINS["new-questions"].look == SOURCE.look
    assert DOMAINS["new-pictures"].dialect is SOURCE.dialect
    old = {majority(r["answers"]) for r in load_world("source", "vqa", "test", 300)}
    new = {majority(r["answers"]) for r in load_world("new-questions", "vqa", "test", 300)}
    assert not old & new


def test_yes_and_no_are_about_equally_frequent(without_pictures):
    counts = Counter(majority(r["answers"]) for r in load_world("source", "vqa", "test", 1500))
    assert 0.4 < counts["yes"] / (counts["yes"] + counts["no"]) < 0.6


def test_annotators_mostly_agree(without_pictures):
    rows = load_world("source", "vqa", "train", 300)
    dissent = [10 - Counter(r["answers"]).most_common(1)[0][1] for r in rows]
    assert {0, 1, 2} == set(dissent)
    assert 0.1 < np.mean([d > 0 for d in dissent]) < 0.3


def test_export_writes_what_load_gives(tmp_path):
    export_world(tmp_path, "source", "caption", {"train": 3, "test": 2})
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    loaded = load_world("source", "caption", "train", 3)
    assert [r["captions"] for r in rows] == loaded["captions"]
    assert [(tmp_path / r["image"]).read_bytes() for r in rows] == [r["image"]["bytes"] for r in loaded]
    assert len((tmp_path / "test.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mars", "vqa", "train"), "unknown domain 'mars'.*source"),
        (("source", "segmentation", "train"), "task 'segmentation'.*vqa"),
        (("source", "vqa", "dev"), "unknown split 'dev'.*validation"),
        (("source", "vqa", "train", 0), "size of at least 1"),
    ],
)
def test_wrong_names_are_said(arguments, message):
    with pytest.raises(UserError, match=message):
        load_world(*arguments)


def test_default_sizes():
    assert {name: size for name, (_, size) in SPLITS.items()} == {"train": 4096, "validation": 512, "test": 2048}


def test_place_names():
    assert Thing("circle", "red", "small", "solid", 0, 0).place == "top left"
    assert Thing("circle", "red", "small", "solid", 1, 1).place == "center"
    assert Thing("circle", "red", "small", "solid", 2, 1).place == "bottom"
