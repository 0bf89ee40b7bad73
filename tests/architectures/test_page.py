"""The table of docs/architectures.md is made from the registry and the models of the suite.

``python tests/architectures/test_page.py`` writes it anew.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from test_training_modes import CHECKPOINTED, COMPILED, NOT_CHECKPOINTED
from test_windows_and_padding import DECODERS, SENSITIVE
from tiny_models import MODELS, build

from padapter.architectures import AttentionSite, Site, find_sites

sys.path.insert(0, str(Path(__file__).parents[1] / "backbones"))

READERS = ("text_encoder", "fusion")
PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"

#: Mark, what it means, and the tests that give it: (module, part of the test's name), for every ``name`` they run with.
MARKS: list[tuple[str, str, str, str]] = [
    ("G", "greedy and beam search with the cache as without, and causality", "test_every_architecture", "generation"),
    ("L", "left padding", "test_windows_and_padding", "left_padding"),
    (
        "C",
        "gradient checkpointing of both kinds, with the gradients of training without",
        "test_training_modes",
        "gradient_checkpointing_changes_no_number",
    ),
    ("T", "a training step compiled into one graph by `torch.compile`", "test_training_modes", "step_is_one_graph"),
    ("t", "no graph break beyond those of the base model", "test_training_modes", "no_further_graph_breaks"),
    ("O", "weights offloaded by accelerate", "test_offloading", "trains_its_adapter"),
    ("Q", "a base model quantised by bitsandbytes", "test_quantised_bases", ""),
    ("S", "pictures of different sizes in one batch", "test_image_sizes", "different_sizes"),
    ("K", "`padapter train` from data to score", "test_image_text", "run_from_data_to_score"),
    ("K", "`padapter train` from data to score", "test_encoder_decoder", "run_from_data_to_score"),
]
#: Every run in tests/training and tests/cli is one of this family; no test there takes it as an argument.
ALWAYS_ON_THE_COMMAND_LINE = {"blip"}
#: Mark -> models that do not have it, and why.
EXCEPTIONS = {
    "C": NOT_CHECKPOINTED,
    "L": dict.fromkeys(sorted(SENSITIVE), "the base model's own output depends on padding"),
}


def names_of(module: str, test: str) -> set[str]:
    """The models that the tests of a module whose names contain ``test`` are run with."""
    try:
        functions = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name != module:  # it is there, but something it needs is not
            raise
        return set()
    found: set[str] = set()
    for function in (value for key, value in functions.items() if key.startswith("test_") and test in key):
        for mark in getattr(function, "pytestmark", ()):
            arguments = mark.args[0] if mark.name == "parametrize" else ()
            arguments = arguments.split(",") if isinstance(arguments, str) else list(arguments)
            if "name" in arguments:
                place = arguments.index("name")
                cases = (getattr(case, "values", case) for case in mark.args[1])
                found.update(case if len(arguments) == 1 and isinstance(case, str) else case[place] for case in cases)
    return {row for row in map(row_of, found) if row}


def row_of(name: str) -> str:
    """The model of the suite that a test means by this name, which may say more ("smolvlm, padded")."""
    return max((row for row in MODELS if name.startswith(row)), key=len, default="")


def classes(sites: Iterable[Site]) -> str:
    names = dict.fromkeys(f"`{site.row.module}`" for site in sites if isinstance(site, AttentionSite))
    return ", ".join(names) or "-"


def table() -> str:
    lines = [
        '| model | class | adapted by default | other readers of text | `where="vision"` | `where="connector"` '
        "| seam | tested |",
        "|---|---|---|---|---|---|---|---|",
    ]
    tested = [(mark, names_of(module, test)) for mark, _, module, test in MARKS]
    tested = [(mark, names - EXCEPTIONS.get(mark, {}).keys()) for mark, names in tested]
    tested = [(mark, names | (ALWAYS_ON_THE_COMMAND_LINE if mark == "K" else set())) for mark, names in tested]
    for name in sorted(MODELS):
        model = build(name)
        sites = find_sites(model).values()
        generating = [site for site in sites if site.part == "decoder"]
        shims = {site.row.shim is not None for site in sites if isinstance(site, AttentionSite)}
        seam = {frozenset({True}): "shim", frozenset({False}): "interface"}.get(frozenset(shims), "interface, shim")
        connector = [site for site in sites if site.part == "connector"]
        linear = "linear layers" if connector else "-"
        parts = [
            name,
            f"`{type(model).__name__}`",
            classes(generating or sites),
            ", ".join(part for part in READERS if generating and any(site.part == part for site in sites)) or "-",
            classes(site for site in sites if site.part == "vision"),
            classes(connector) if classes(connector) != "-" else linear,
            seam,
            " ".join(dict.fromkeys(mark for mark, names in tested if name in names)),
        ]
        lines.append("| " + " | ".join(parts) + " |")
    meanings = {mark: meaning for mark, meaning, module, test in MARKS if names_of(module, test)}
    legend = [f"- {mark}: {meaning}" for mark, meaning in meanings.items()]
    without = [f"- {name} without {mark}: {why}" for mark, names in EXCEPTIONS.items() for name, why in names.items()]
    return "\n".join([*lines, "", "Marks under *tested*:", "", *legend, *without]) + "\n"


def test_the_page_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert page.split(START)[1].split(END)[0] == table()


def test_the_marks_are_read_from_the_tests():
    assert names_of("test_windows_and_padding", "left_padding") == set(DECODERS)
    assert names_of("test_training_modes", "gradient_checkpointing_changes_no_number") == set(CHECKPOINTED)
    assert names_of("test_training_modes", "step_is_one_graph") == set(COMPILED)
    assert names_of("no_such_module", "") == set()


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1], encoding="utf-8")
