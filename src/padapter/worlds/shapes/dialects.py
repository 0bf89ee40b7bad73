"""Dialects: how the facts of a scene are put into words. Two tables of words and sentences, and one renderer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from padapter.worlds.shapes.facts import Meaning
from padapter.worlds.shapes.scenes import PLACES, Thing


@dataclass(frozen=True)
class Dialect:
    """Words and sentences of one way of speaking.

    Attributes:
        words: meaning kind -> value -> word; a value that is not listed is its own word.
        noun: what a thing of unknown shape is called.
        plurals: irregular plurals (others take an ``s``).
        order: the attributes before the noun, in the order they are spoken.
        unspoken: attribute values nobody mentions in a caption (solid things are just things).
        questions: question kind -> wordings.
        statements: statement kind -> wordings (see :mod:`padapter.worlds.shapes.statements`).
        captions: wordings of the parts of a caption.
        hidden: properties that no picture shows; a statement about one is neutral.
    """

    words: Mapping[str, Mapping[str, str]]
    noun: str
    plurals: Mapping[str, str]
    order: tuple[str, ...]
    unspoken: tuple[str, ...]
    questions: Mapping[str, tuple[str, ...]]
    statements: Mapping[str, tuple[str, ...]]
    captions: Mapping[str, str]
    hidden: tuple[str, ...]

    def word(self, kind: str, value: str) -> str:
        """The word for a value, e.g. ``word("color", "red")``."""
        return self.words.get(kind, {}).get(value, value)

    def phrase(self, known: Mapping[str, str], plural: bool = False) -> str:
        """A noun phrase without article for some attribute values, e.g. ``small red circle``."""
        parts = [self.word(a, known[a]) for a in self.order if a in known]
        noun = self.word("shape", known["shape"]) if "shape" in known else self.noun
        return " ".join([*parts, self.plurals.get(noun, noun + "s") if plural else noun])

    def full_phrase(self, thing: Thing, attributes: tuple[str, ...] = ("size", "color", "texture")) -> str:
        """The noun phrase with article that names the given attributes and the shape of a thing."""
        known = {a: thing.attribute(a) for a in (*attributes, "shape")}
        phrase = self.phrase({a: v for a, v in known.items() if v not in self.unspoken})
        return with_article(phrase)

    def say(self, meaning: Meaning) -> str:
        """A meaning as it stands in a sentence or as an answer."""
        kind, value = meaning
        if isinstance(value, Mapping):
            return self.phrase(value, plural=kind == "things")
        return self.word(kind, value)

    def ask(self, kind: str, slots: Mapping[str, Meaning], rng: np.random.Generator) -> str:
        """A question of this kind in one of its wordings."""
        return self._fill(self.questions[kind], slots, rng)

    def state(self, kind: str, slots: Mapping[str, Meaning], rng: np.random.Generator) -> str:
        """A statement of this kind in one of its wordings."""
        return self._fill(self.statements[kind], slots, rng)

    def _fill(self, wordings: tuple[str, ...], slots: Mapping[str, Meaning], rng: np.random.Generator) -> str:
        said = {name: self.say(meaning) for name, meaning in slots.items()}
        said.update({f"a_{name}": with_article(text) for name, text in said.items()})
        return wordings[int(rng.integers(len(wordings)))].format(**said)

    def vocabulary(self) -> set[str]:
        """Every word this dialect can utter."""
        texts = [w for table in self.words.values() for w in table.values()]
        texts += [w for group in (self.questions, self.statements) for ws in group.values() for w in ws]
        texts += [*self.captions.values(), *self.hidden, *self.plurals.values(), self.noun, *PLACES]
        words = {w for text in texts for w in "".join(c if c.isalnum() else " " for c in text).split()}
        return words | {self.plurals.get(w, w + "s") for w in (*self.words.get("shape", {}).values(), self.noun)}


def with_article(phrase: str) -> str:
    """``a`` or ``an`` before a phrase."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


_SAME = {
    kind: {v: v for v in values.split()}
    for kind, values in {
        "color": "red green blue yellow purple orange black brown pink teal",
        "shape": "circle square triangle diamond cross star heart arrow moon",
        "size": "small large",
        "texture": "solid striped hollow",
        "number": "0 1 2 3 4 5 6 7 8 9",
        "truth": "yes no",
    }.items()
}

PLAIN = Dialect(
    words=_SAME,
    noun="thing",
    plurals={"cross": "crosses"},
    order=("size", "color", "texture"),
    unspoken=("solid",),
    questions={
        "color": ("what color is the {x}?",),
        "shape": ("what shape is the {x}?",),
        "size": ("what size is the {x}?",),
        "texture": ("what texture has the {x}?",),
        "place": ("where is the {x}?",),
        "color at": ("what color is the thing at the {place}?",),
        "shape at": ("what shape is the thing at the {place}?",),
        "count": ("how many {x} are there?",),
        "exists": ("is there {a_x}?",),
        "relation": ("is the {x} {relation} the {y}?",),
    },
    statements={
        "color": ("the {x} is {value}",),
        "shape": ("the {x} is {a_value}",),
        "size": ("the {x} is {value}",),
        "texture": ("the {x} is {value}",),
        "place": ("the {x} is at the {value}",),
        "exists": ("there is {a_x}",),
        "count": ("there are {number} {x}",),
        "relation": ("the {x} is {relation} the {y}",),
        "hidden": ("the {x} is {value}", "the {x} looks {value}"),
    },
    captions={
        "placed": "{thing} at the {place}",
        "there": "there is {things}",
        "relation": "{first} {relation} {second}",
        "count": "{counts}",
    },
    hidden=("heavy", "old", "new", "cheap", "warm", "cold", "soft", "broken", "mine", "wooden"),
)

#: Another way of speaking about the same pictures: other words, other sentences, other things worth asking.
FANCY = Dialect(
    words={
        "color": {
            "red": "crimson",
            "green": "emerald",
            "blue": "azure",
            "yellow": "golden",
            "purple": "violet",
            "orange": "amber",
        },
        "shape": {
            "circle": "disc",
            "square": "box",
            "triangle": "wedge",
            "diamond": "rhombus",
            "cross": "plus",
        },
        "size": {"small": "tiny", "large": "huge"},
        "texture": {"solid": "filled", "striped": "banded", "hollow": "open"},
        "place": {
            "top left": "northwest",
            "top": "north",
            "top right": "northeast",
            "left": "west",
            "center": "core",
            "right": "east",
            "bottom left": "southwest",
            "bottom": "south",
            "bottom right": "southeast",
        },
        "number": {
            "0": "nil",
            "1": "single",
            "2": "pair",
            "3": "trio",
            "4": "quartet",
            "5": "quintet",
            "6": "sextet",
            "7": "septet",
            "8": "octet",
            "9": "nonet",
        },
        "truth": {"yes": "true", "no": "false"},
        "relation": {
            "left of": "westward of",
            "right of": "eastward of",
            "above": "northward of",
            "below": "southward of",
        },
    },
    noun="item",
    plurals={"box": "boxes", "plus": "pluses", "rhombus": "rhombuses"},
    order=("texture", "size", "color"),
    unspoken=("solid",),
    questions={
        "color": ("name the hue of the {x}?", "which hue does the {x} carry?"),
        "shape": ("name the form of the {x}?", "which form does the {x} take?"),
        "place": ("in which region do we find the {x}?", "locate the {x}?"),
        "count": ("give the tally of {x}?", "what number of {x} do we see?"),
        "exists": ("can we find {a_x} here?",),
        "relation": ("does the {x} lie {relation} the {y}?",),
        "total": ("give the tally of every item?",),
        "more": ("are {size} items the majority?",),
        "same": ("do the {x} and the {y} share their hue?",),
        "half row": ("does the {x} lie north or south?",),
        "half column": ("does the {x} lie west or east?",),
        "highest": ("which hue does the northmost item carry?",),
        "lowest": ("which hue does the southmost item carry?",),
    },
    statements={
        "color": ("we find the hue of the {x} to be {value}", "the {x} carries {value}"),
        "shape": ("the {x} takes the form of {a_value}",),
        "size": ("the {x} appears {value}",),
        "texture": ("the {x} appears {value}",),
        "place": ("the {x} lies in the {value}", "the {value} holds the {x}"),
        "exists": ("we find {a_x} here",),
        "count": ("the tally of {x} comes to {number}",),
        "relation": ("the {x} lies {relation} the {y}",),
        "hidden": ("the {x} seems {value}", "we know the {x} to be {value}"),
    },
    captions={
        "placed": "the {place} holds {thing}",
        "there": "we find {things}",
        "relation": "{first} lies {relation} {second}",
        "count": "we see {counts}",
    },
    hidden=(
        "ancient",
        "costly",
        "fragile",
        "famous",
        "edible",
        "rusty",
        "borrowed",
        "noisy",
        "damp",
        "sacred",
    ),
)
