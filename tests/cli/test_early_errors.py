"""What is wrong with a command is said before a model, and torch itself, are loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Runs the commands of standard input, and prints for each its exit code, whether torch was imported, and its messages.
COMMANDS = """
import json, sys
from typer.testing import CliRunner
from padapter.cli import app

found = []
for words in json.load(sys.stdin):
    done = CliRunner().invoke(app, words)
    found.append([done.exit_code, "torch" in sys.modules, " ".join(done.output.split())])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def words(data, tmp_path_factory):
    """What each command is given, and a part of its message."""
    root = tmp_path_factory.mktemp("early")
    vqa = data["vqa"]
    (root / "unfinished").mkdir()
    (root / "unfinished" / "config.yaml").write_text("task: vqa\nmodel: m\ntrain: t\noutput: o\n")
    (root / "scored").mkdir()
    (root / "scored" / "metrics.json").write_text("{}")
    (root / "there").write_text("")
    base = ["--model", "shapes-blip", "--task", "vqa", "--data", vqa]
    model = ["--model", "shapes-blip", "--task"]
    both = [
        (["--run", root / "missing", "--data", vqa], "is not a folder written by `padapter train`"),
        (["--run", root / "unfinished", "--data", vqa], "holds no adapter; its training did not finish"),
        (["--run", root / "unfinished", "--data", vqa, "--task", "caption"], "was trained for 'vqa', not 'caption'"),
        ([*model, "vqa", "--data", root / "missing.jsonl"], "missing.jsonl: no such file or folder"),
        ([*base, "--split", "dev"], "has no split 'dev'"),
        ([*model, "vqaa", "--data", vqa], "Unknown task 'vqaa'"),
        ([*model, "entailment", "--data", vqa], "rows cannot be used"),
        ([*base, "--output", root / "there" / "below"], "--output:"),
        ([*base, "--adapter", root / "missing"], "--adapter:"),
        ([*base, "--candidates", root / "missing"], "--candidates: cannot read"),
        (["--model", "./missing", "--task", "vqa", "--data", vqa], "--model: there is no such folder"),
    ]
    (root / "run").mkdir()
    (root / "run" / "config.yaml").write_text("task: vqa\nmodel: shapes-blip\ntrain: t\noutput: o\n")
    train = ["train", "--task", "vqa", "--model", "shapes-blip", "--train", vqa, "--output", root / "new"]
    recipe = {
        "base": {"model": "shapes-blip", "max_steps": 1, "learning_rate": 0.1},
        "benchmarks": {"one": {"task": "vqa", "train": str(vqa), "eval": str(vqa)}},
        "methods": {"lora": None},
    }

    def compare(name, **changes):
        (root / f"{name}.yaml").write_text(json.dumps(recipe | changes))
        return ["compare", root / f"{name}.yaml", "--output", root / "compared"]

    submit = ["submit", str(root / "missing"), "--format", "vqav2", "--data", vqa]
    return [
        *((["eval", *given], message) for given, message in both),
        *((["predict", *given], message) for given, message in both),
        ([*train, "--train", root / "missing.jsonl"], "missing.jsonl: no such file or folder"),
        ([*train, "--eval", vqa, "--eval-split", "dev"], "has no split 'dev'"),
        ([*train, "--task", "vqaa"], "Unknown task 'vqaa'"),
        ([*train, "--task", "entailment"], "rows cannot be used"),
        ([*train, "--prompt", "Say:"], "--prompt: The prompt template 'Say:' has no place for the question"),
        ([*train, "--method", "p-adaptor"], "unknown method 'p-adaptor'. Did you mean 'p-adapter'?"),
        ([*train, "--method", "iia3"], "unknown method 'iia3'. Did you mean 'ia3'?"),
        ([*train, "--method", "qlora"], "unknown method 'qlora'"),
        ([*train, "--set", "pp=2"], "method 'p-adapter' has no option 'pp'. Did you mean 'p'?"),
        ([*train, "--method", "lora", "--set", "r=four"], "method 'lora', option 'r': 'four' is not a whole number"),
        ([*train, "--model", "./missing"], "--model: there is no such folder: ./missing"),
        ([*train, "--output", root / "run"], "run is not empty; choose another folder, give --resume"),
        ([*train, "--output", root / "there"], "--output:"),
        ([*train, "--output", root / "there" / "below"], "--output:"),
        ([*train, "--output", root / "run", "--resume"], "was started with other options: --train was 't'"),
        (["compare", root / "missing.yaml", "--output", root / "compared"], "missing.yaml"),
        ([*compare("good"), "--only", "two"], "--only: 'two' is neither a benchmark nor a method"),
        ([*compare("good")[:-1], root / "there"], "--output:"),
        (compare("task", benchmarks={"one": recipe["benchmarks"]["one"] | {"task": "vqaa"}}), "Unknown task 'vqaa'"),
        (compare("name", methods={"lara": None}), "lara on one: unknown method 'lara'. Did you mean 'lora'?"),
        (compare("set", methods={"p-adapter": {"method": "p-adapter:pp=1"}}), "has no option 'pp'"),
        (compare("data", benchmarks={"one": recipe["benchmarks"]["one"] | {"eval": "no.csv"}}), "no.csv: no such file"),
        (compare("model", base=recipe["base"] | {"model": "./missing"}), "--model: there is no such folder: ./missing"),
        (["eval", *base, "--output", root / "scored"], "already holds results"),
        (["eval", *base, "--rule", "strict"], "is no rule of task 'vqa'"),
        (["predict", *base, "--output", root / "there"], "exists; choose another file or give --overwrite"),
        (["predict", *model, "vqa", "--image", root / "no.png", "--text", "?"], "no.png is not a file"),
        (["predict", *model, "vqa", "--image", root / "there"], "--text: task 'vqa' needs the question"),
        ([*submit, "--output", root / "there"], "exists; choose another file or give --overwrite"),
        ([*submit, "--output", root / "new"], "has no id, by which the server could know it"),
        ([*submit, "--output", root / "new", "--format", "vqa"], "--format: 'vqa' is none of"),
    ]


def test_mistakes_are_noticed_without_torch(words):
    given = json.dumps([[str(word) for word in line] for line, _ in words])
    done = subprocess.run([sys.executable, "-c", COMMANDS], input=given, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == len(words)
    for (line, message), (code, heavy, said) in zip(words, found, strict=True):
        assert (code, heavy) == (2, False), (line, said)
        assert message in said, line
