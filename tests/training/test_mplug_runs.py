"""All three tasks on a tiny mPLUG: train, evaluate, predict, compare, with the built-in data."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from tiny_blip import make_image
from tiny_mplug_folder import SPECIAL, save_tiny_mplug

from padapter.backbones import load_backbone
from padapter.comparison import compare, read_recipe
from padapter.comparison.cells import cells_of
from padapter.comparison.counting import count, skeletons_of
from padapter.comparison.dry_run import dry_run
from padapter.errors import UserError
from padapter.evaluation import evaluate_source, load_source, predict_source
from padapter.metrics import caption as caption_module
from padapter.models import builtin_path
from padapter.models.mplug import MPlugForConditionalGeneration, MPlugForQuestionAnswering
from padapter.options import CompareOptions, EvalOptions, PredictOptions, TrainOptions
from padapter.training import train

TRAIN, TEST = "shapes:new-questions:train:8", "shapes:new-questions:test:4"
#: learned, and inference: all three ways to answer
TASKS = {"vqa": "rank", "entailment": "rank", "caption": "generate"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A whole model and one for captions, with the words of the built-in world."""
    words = json.loads((builtin_path("shapes-blip") / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word in words if word not in (*SPECIAL, "[DEC]", "[ENC]")]
    root = tmp_path_factory.mktemp("mplug")
    return {kind: save_tiny_mplug(root / kind, words, arrangement=kind) for kind in ("vqa", "caption")}


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """A run of every task with a p-adapter, by name; captions are split at spaces instead of by a Java program."""
    root, found = tmp_path_factory.mktemp("runs"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_module, "tokenise_captions", lambda texts, **_: [" ".join(t.split()) for t in texts])
        for task, inference in TASKS.items():
            options = TrainOptions(
                task=task,
                model=folders["vqa"],
                train=TRAIN,
                eval=TEST,
                eval_split="test",
                inference=inference,
                num_beams=2 if inference == "generate" else None,
                max_new_tokens=6 if inference == "generate" else None,
                epochs=4,
                batch_size=4,
                learning_rate=0.05,
                log_every=1,
                device="cpu",
                quiet=True,
                output=str(root / task),
            )
            found[task] = (options, train(options).metrics)
        found["scores"] = {
            task: evaluate_source(
                EvalOptions(
                    run=str(root / task),
                    data=TEST,
                    device="cpu",
                    quiet=True,
                    meteor=False if task == "caption" else None,
                )
            )
            for task in TASKS
        }
    return found


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_learned_and_scored(runs, task):
    options, metrics = runs[task]
    log = [json.loads(line) for line in (Path(options.output) / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    assert metrics["scores"]["after"]["rows"] == metrics["scores"]["before"]["rows"] == 4
    assert runs["scores"][task]["scores"]["metrics"] == metrics["scores"]["after"]["metrics"]
    wanted = MPlugForConditionalGeneration if task == "caption" else MPlugForQuestionAnswering
    assert metrics["model_class"].endswith(wanted.__name__)


@pytest.mark.parametrize("task", TASKS)
def test_one_picture_is_answered(runs, task, tmp_path):
    options, _ = runs[task]
    make_image(0).save(tmp_path / "a.png")
    text = {"vqa": "what colour is it?", "entailment": "it is red", "caption": None}[task]
    asked = PredictOptions(run=options.output, image=str(tmp_path / "a.png"), text=text, device="cpu", quiet=True)
    (answer,) = predict_source(asked, stream=io.StringIO())
    if TASKS[task] == "rank":
        known = json.loads((Path(options.output) / "candidates.json").read_text())["candidates"]
        assert answer.text in known


@pytest.mark.parametrize("task", TASKS)
def test_the_model_card_loads_the_model_that_was_trained(runs, task):
    options, _ = runs[task]
    card = (Path(options.output) / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    found = {}
    exec(code.replace('"adapter"', repr(str(Path(options.output) / "adapter"))), found)
    wanted = MPlugForConditionalGeneration if task == "caption" else MPlugForQuestionAnswering
    assert type(found["model"].get_base_model()) is wanted


def test_captions_follow_nothing_unless_somebody_says_so(runs, folders):
    options, _ = runs["caption"]
    source = load_source(EvalOptions(run=options.output, data=TEST))
    assert source.task.prompt({}) == ""
    asked = EvalOptions(model=folders["caption"], task="caption", prompt="a picture of", data=TEST)
    source = load_source(asked)
    assert (source.task.prompt({}), source.backbone.asks) == ("a picture of", False)
    blip = load_source(EvalOptions(model="shapes-blip", task="caption", data=TEST))
    assert blip.task.prompt({}) == "What does the image describe? "


def test_questions_to_a_captioner_are_refused_before_anything_is_written(folders, tmp_path):
    for task in ("vqa", "entailment"):
        with pytest.raises(UserError, match="is an mPLUG for captions"):
            train(
                TrainOptions(task=task, model=folders["caption"], train=TRAIN, output=str(tmp_path / "x"), quiet=True)
            )
        assert not (tmp_path / "x").exists()


RECIPE = """
base: {model: MODEL, max_steps: 1, batch_size: 4, device: cpu}
seeds: [0]
benchmarks:
  vqa: {label: VQA, task: vqa, train: TRAIN, eval: TEST}
  caption: {label: Captions, task: caption, train: TRAIN, eval: TEST}
methods:
  lora: {label: LoRA, method: "lora:r=2"}
  p-adapter: {label: p-adapter}
  full: {label: Full, size: false, apart: true}
baseline: lora
"""


def recipe_of(folders, path, more=""):
    text = RECIPE.replace("MODEL", folders["vqa"]).replace("TRAIN", f'"{TRAIN}"').replace("TEST", f'"{TEST}"')
    path.write_text(text + more, encoding="utf-8")
    return path


def test_a_dry_run_counts_answers_and_captions_apart(folders, tmp_path):
    cells, notes = cells_of(read_recipe(recipe_of(folders, tmp_path / "recipe.yaml")))
    report = dry_run(cells, notes=notes, measured=False)
    assert report.ready
    assert [*report.models] == [folders["vqa"], f"{folders['vqa']} for captions"]
    for name, asks in zip(report.models, (True, False), strict=True):
        base = sum(value.numel() for value in load_backbone(folders["vqa"], asks=asks).model.parameters())
        assert {row.count.base for key, row in report.sized.items() if key.model == name} == {base}


def test_a_budget_is_a_share_of_the_model_that_is_trained(folders, tmp_path):
    """The model for captions is smaller, so that the same share of it is too."""
    recipe = recipe_of(folders, tmp_path / "recipe.yaml", "budget: 0.05\n")
    recipe.write_text(re.sub(r"  full: .*\n|  p-adapter: .*\n", "", recipe.read_text()))
    cells, _ = cells_of(read_recipe(recipe))
    config = load_backbone(folders["vqa"]).model.config
    for cell in cells:
        counted = count("lora", cell.options["method_options"], skeletons_of(config, asks=cell.benchmark == "VQA"))
        assert counted.fraction == pytest.approx(0.05, rel=0.1)
    assert [cell.benchmark for cell in cells] == ["VQA", "Captions"]
    assert cells[1].options["method_options"]["r"] < cells[0].options["method_options"]["r"]


@pytest.mark.slow
def test_a_comparison_runs(folders, tmp_path):
    recipe = recipe_of(folders, tmp_path / "recipe.yaml")
    recipe.write_text(re.sub(r"  caption: .*\n|  full: .*\n|  p-adapter: .*\n", "", recipe.read_text()))
    done = compare(CompareOptions(recipe=str(recipe), output=str(tmp_path / "out"), jobs=1, quiet=True))
    assert done.failed == {}
    assert [(run.method, run.benchmark) for run in done.results.records] == [("lora", "vqa")]
    assert "| LoRA |" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
