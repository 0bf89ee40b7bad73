"""Help is quick and complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from typer.testing import CliRunner

import padapter
from padapter.checkpoints.blip import BlipOptions
from padapter.cli import app
from padapter.demo import DemoOptions
from padapter.diagnose import DiagnoseOptions
from padapter.explain import ExplainOptions
from padapter.importers import IMPORTERS
from padapter.options import (
    CompareOptions,
    DataCheckOptions,
    DataShardOptions,
    EvalOptions,
    PredictOptions,
    SubmitOptions,
    TrainOptions,
    flag_of,
)
from padapter.options.topics import TOPICS
from padapter.preview import PreviewOptions

COMMANDS = {
    "train": TrainOptions,
    "eval": EvalOptions,
    "demo": DemoOptions,
    "predict": PredictOptions,
    "explain": ExplainOptions,
    "diagnose": DiagnoseOptions,
    "data check": DataCheckOptions,
    "data shard": DataShardOptions,
    "data preview": PreviewOptions,
    **{f"data from-{importer.name}": importer.options for importer in IMPORTERS.values()},
    "convert": None,
    "convert blip": BlipOptions,
    "data": None,
    "methods": None,
    "env": None,
    "": None,
}

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "numpy", "PIL")
ALL_HELP = """
import contextlib, io, json, sys
from padapter.cli import main
shown = {}
for words in json.loads(sys.argv[1]):
    sys.argv = ["padapter", *words.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    shown[words] = out.getvalue()
print(json.dumps([shown, sorted(sys.modules)]))
"""


def test_every_help_without_heavy_imports():
    words = json.dumps(list(COMMANDS))
    done = subprocess.run([sys.executable, "-c", ALL_HELP, words], capture_output=True, text=True, check=True)
    shown, modules = json.loads(done.stdout)
    assert all("Usage:" in text for text in shown.values())
    assert [name for name in HEAVY if name in modules] == []


@pytest.mark.parametrize("words", [words for words, cls in COMMANDS.items() if cls])
def test_help_has_every_option(words):
    shown = CliRunner().invoke(app, [*words.split(), "--help"], env={"COLUMNS": "200"}).stdout
    for item in fields(COMMANDS[words]):
        assert flag_of(item) in shown


@pytest.mark.parametrize("words", [words for words, cls in COMMANDS.items() if cls])
def test_no_flag_is_cut_off_on_a_narrow_terminal(words):
    shown = CliRunner().invoke(app, [*words.split(), "--help"], env={"COLUMNS": "80"}).stdout
    flags = re.findall(r"(?<!\S)--[a-z-]+…?", shown)
    assert {flag_of(item) for item in fields(COMMANDS[words])} <= {*flags, *re.findall(r"[A-Z]+", shown)}
    assert not [flag for flag in flags if flag.endswith("…")]


def test_options_by_topic():
    every = [name for names in TOPICS.values() for name in names]
    assert len(set(every)) == len(every)
    assert set(every) <= {item.name for cls in (TrainOptions, EvalOptions, PredictOptions) for item in fields(cls)}
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "80"}).stdout
    panels = re.findall(r"╭─ (.+?) ─", shown)
    assert sorted(panels) == sorted(["Options", *TOPICS])
    # What is left comes first: what must be given, and the like.
    rest = {item.name for item in fields(TrainOptions)} - set(every)
    assert rest == {"task", "model", "train", "eval", "method", "method_options", "output", "config", "overwrite"}


def test_names_of_what_is_written():
    """The rules of CONTRIBUTING.md."""
    for words, cls in {**COMMANDS, "compare": CompareOptions, "submit": SubmitOptions}.items():
        items = {flag_of(item): item for item in fields(cls)} if cls else {}
        if "DST" in items:
            assert items["DST"].metadata["positional"], words
        if "--output" in items:
            assert items["--output"].metadata["short"] == "-o", words
        assert "--overwrite" in items or not items.keys() & {"DST", "--output"}, words


def test_predict_offers_no_scoring():
    assert {item.name for item in fields(EvalOptions)} >= {"rule", "meteor"}
    assert not {item.name for item in fields(PredictOptions)} & {"rule", "meteor"}
    refused = CliRunner().invoke(app, ["predict", "--rule", "x"])
    assert refused.exit_code == 2
    assert "No such option" in refused.stderr


def test_version():
    assert CliRunner().invoke(app, ["--version"]).stdout.strip() == padapter.__version__


def test_module_is_the_command():
    command = [sys.executable, "-m", "padapter", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == padapter.__version__
