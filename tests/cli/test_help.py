"""Help is quick and complete."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields

import pytest
from typer.testing import CliRunner

import padapter
from padapter.checkpoints.blip import BlipOptions
from padapter.cli import app
from padapter.importers import IMPORTERS
from padapter.options import DataCheckOptions, DataShardOptions, EvalOptions, PredictOptions, TrainOptions, flag_of
from padapter.preview import PreviewOptions

COMMANDS = {
    "train": TrainOptions,
    "eval": EvalOptions,
    "predict": PredictOptions,
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


def test_version():
    assert CliRunner().invoke(app, ["--version"]).stdout.strip() == padapter.__version__


def test_module_is_the_command():
    command = [sys.executable, "-m", "padapter", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == padapter.__version__
