"""The new-questions domain read back by an independent reader of its English: every answer is true of its scene."""

from __future__ import annotations

import re
from collections import Counter

from padapter.worlds import DOMAINS, load_world
from padapter.worlds.shapes import Scene, Thing, scene_of

# Written from the English meaning of the words, not from the dialect's tables.
_MEANS = {
    "shape": {"disc": "circle", "box": "square", "wedge": "triangle", "rhombus": "diamond", "plus": "cross"},
    "color": {
        "crimson": "red",
        "emerald": "green",
        "azure": "blue",
        "golden": "yellow",
        "violet": "purple",
        "amber": "orange",
    },
    "size": {"tiny": "small", "huge": "large"},
    "texture": {"filled": "solid", "banded": "striped", "open": "hollow"},
}
_NUMBERS = ("nil", "single", "pair", "trio", "quartet", "quintet", "sextet")
_ROWS, _COLUMNS = ("north", "", "south"), ("west", "", "east")


def spoken(kind: str, value: str) -> str:
    return {meaning: word for word, meaning in _MEANS[kind].items()}[value]


def matching(phrase: str, scene: Scene) -> list[Thing]:
    known = {}
    for word in phrase.split():
        for kind, words in _MEANS.items():
            for spelling in (word, word.removesuffix("s"), word.removesuffix("es")):
                if spelling in words:
                    known[kind] = words[spelling]
    assert known or re.search(r"\bitems?\b", phrase), phrase
    return [t for t in scene.things if all(getattr(t, k) == v for k, v in known.items())]


def one(phrase: str, scene: Scene) -> Thing:
    (thing,) = matching(phrase, scene)
    return thing


def truth(value: bool) -> str:
    return "true" if value else "false"


def relation_holds(first: Thing, second: Thing, word: str) -> bool:
    return {
        "westward": first.column < second.column,
        "eastward": first.column > second.column,
        "northward": first.row < second.row,
        "southward": first.row > second.row,
    }[word]


def _sizes(scene: Scene, said: str) -> str:
    here = len(matching(said, scene))
    return truth(2 * here > len(scene.things))


def _edge(scene: Scene, word: str) -> str:
    row = (min if word == "northmost" else max)(t.row for t in scene.things)
    (thing,) = [t for t in scene.things if t.row == row]
    return spoken("color", thing.color)


#: wording -> the true answer, by its named parts
READ = {
    r"(?:name the hue of the|which hue does the) (?P<x>.*?)(?: carry)?\?": lambda s, x: spoken(
        "color", one(x, s).color
    ),
    r"(?:name the form of the|which form does the) (?P<x>.*?)(?: take)?\?": lambda s, x: spoken(
        "shape", one(x, s).shape
    ),
    r"(?:in which region do we find|locate) the (?P<x>.*)\?": lambda s, x: (
        (_ROWS[one(x, s).row] + _COLUMNS[one(x, s).column]) or "core"
    ),
    r"give the tally of (?P<x>.*)\?|what number of (?P<y>.*) do we see\?": lambda s, x, y: _NUMBERS[
        len(matching(x or y, s))
    ],
    r"can we find an? (?P<x>.*) here\?": lambda s, x: truth(bool(matching(x, s))),
    r"does the (?P<x>.*) lie (?P<word>\w+ward) of the (?P<y>.*)\?": lambda s, x, word, y: truth(
        relation_holds(one(x, s), one(y, s), word)
    ),
    r"give the tally of every item\?": lambda s: _NUMBERS[len(s.things)],
    r"are (?P<size>\w+) items the majority\?": lambda s, size: _sizes(s, size),
    r"do the (?P<x>.*) and the (?P<y>.*) share their hue\?": lambda s, x, y: truth(one(x, s).color == one(y, s).color),
    r"does the (?P<x>.*) lie north or south\?": lambda s, x: _ROWS[one(x, s).row],
    r"does the (?P<x>.*) lie west or east\?": lambda s, x: _COLUMNS[one(x, s).column],
    r"which hue does the (?P<word>north|south)most item carry\?": lambda s, word: _edge(s, word + "most"),
}


def true_answer(question: str, scene: Scene) -> str:
    for pattern in reversed(READ):  # the special wordings stand after the general ones
        found = re.fullmatch(pattern, question)
        if found:
            return READ[pattern](scene, **found.groupdict())
    raise AssertionError(f"nobody can read {question!r}")


def test_answers_are_true(without_pictures):
    kinds = Counter()
    for index, row in enumerate(load_world("new-questions", "vqa", "test", 800)):
        scene, _ = scene_of(DOMAINS["new-questions"], "test", index)
        said = Counter(row["answers"]).most_common(1)[0][0]
        assert said == true_answer(row["question"], scene), (row["question"], scene)
        kinds[row["question_type"]] += 1
    assert len(kinds) == 13  # every kind was seen
    assert min(kinds.values()) > 10
