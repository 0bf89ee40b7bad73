"""One source for Python, YAML and flags."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from padapter.errors import UserError
from padapter.options import (
    EvalOptions,
    InferenceOptions,
    PredictOptions,
    TrainOptions,
    options_from,
    own_first,
    parse_settings,
    resume_config,
    to_plain,
)

NEEDED = {"task": "vqa", "model": "m", "train": "t", "output": "o"}


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(tmp_path):
    path = recipe(
        tmp_path, "task: vqa\nmodel: m\ntrain: t\noutput: o\nepochs: 3\nbatch_size: 16\nlearning_rate: 1e-3\n"
    )
    options = options_from(TrainOptions, path, {"epochs": 5.0, "model": "other", "seed": None})
    assert (options.epochs, options.model, options.batch_size, options.seed) == (5.0, "other", 16, 42)
    assert options.learning_rate == 0.001  # YAML itself reads 1e-3 as text
    assert options.config == str(path)


def test_unknown_key_names_file_key_and_what_was_meant(tmp_path):
    path = recipe(tmp_path, "task: vqa\nlearning_rat: 1\n")
    with pytest.raises(UserError, match=rf"{path}: unknown key 'learning_rat'; did you mean 'learning_rate'"):
        options_from(TrainOptions, path)
    with pytest.raises(UserError, match="unknown key 'resume'"):
        options_from(TrainOptions, recipe(tmp_path, "resume: true\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [vqa\n", r"recipe.yaml, line \d: not valid YAML"),
        ("- a\n- b\n", "expected 'option: value' lines, found list"),
        ("epochs: soon\n", "recipe.yaml: epochs: expected a number, got 'soon'"),
        ("batch_size: 1.5\n", "recipe.yaml: batch_size: expected an integer, got 1.5"),
        ("seed: true\n", "recipe.yaml: seed: expected an integer, got True"),
        ("skip_bad_rows: 3\n", "recipe.yaml: skip_bad_rows: expected true or false, got 3"),
        ("method_options: 3\n", "recipe.yaml: method_options: expected a mapping of names to values, got 3"),
        ("model: [a]\n", "recipe.yaml: model: expected text"),
    ],
)
def test_bad_recipes(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        options_from(TrainOptions, recipe(tmp_path, text), NEEDED)


def test_missing_recipe(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot read the recipe"):
        options_from(TrainOptions, tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_needed_options(name):
    with pytest.raises(UserError, match=f"--{name}: is needed"):
        options_from(TrainOptions, None, {key: value for key, value in NEEDED.items() if key != name})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size: must be at least 1, got 0"),
        ({"learning_rate": 0}, "--learning-rate: must be greater than 0"),
        ({"learning_rate": float("nan")}, "--learning-rate: must be greater than 0, got nan"),
        ({"warmup_ratio": 1.0}, "--warmup-ratio: must be below 1"),
        ({"precision": "fp8"}, "--precision: 'fp8' is not one of fp32, bf16, fp16"),
        ({"precision": "fp16", "device": "cpu"}, "--precision: fp16 needs a GPU"),
        ({"inference": "guess"}, "--inference: 'guess' is not one of generate, rank"),
        ({"inference": "rank", "num_beams": 3}, "--inference: 'rank' generates nothing"),
        ({"inference": "rank", "min_new_tokens": 3}, "--inference: 'rank' generates nothing"),
        ({"min_new_tokens": -1}, "--min-new-tokens: must be at least 0"),
        ({"lr_scheduler": "magic"}, "--lr-scheduler: 'magic' is not one of"),
        ({"epochs": 1, "max_steps": 2}, "--max-steps: contradicts --epochs"),
        ({"resume": True, "overwrite": True}, "--overwrite: contradicts --resume"),
        ({"eval_every": "epoch"}, "--eval-every: there is nothing to score on"),
        ({"limit_eval": 3}, "--limit-eval: there is nothing to limit"),
        ({"keep": "best"}, "--keep: 'best' needs rows to score on during training; give --eval DATA"),
        ({"keep": "best", "eval": "e"}, "--keep: 'best' compares scores during training; give --eval-every epoch"),
        ({"keep": "first"}, "--keep: 'first' is not one of last, best"),
        ({"save_every": "0"}, "--save-every: '0' is neither"),
        ({"save_every": "sometimes"}, "--save-every: 'sometimes' is neither 'epoch', 'never' nor a positive number"),
        ({"output": " "}, "--output: must not be empty"),
        ({"keep_checkpoints": 0}, "--keep-checkpoints: must be at least 1"),
    ],
)
def test_values_and_contradictions_are_refused_by_flag(changes, message):
    with pytest.raises(UserError, match=message):
        TrainOptions(**{**NEEDED, **changes})


def test_method_options_inline_by_set_and_from_the_recipe(tmp_path):
    inline = TrainOptions(**NEEDED, method="p-adapter:p=1.25,mu=0.1")
    assert (inline.method, inline.method_options) == ("p-adapter", {"p": "1.25", "mu": "0.1"})
    with pytest.raises(UserError, match=r"p=1\.25 contradicts --set p=2"):
        TrainOptions(**NEEDED, method="p-adapter:p=1.25", method_options={"p": "2"})

    path = recipe(tmp_path, "method: p-adapter:p=1.75\nmethod_options: {mu: 10}\n")

    def merged(**given):
        options = options_from(TrainOptions, path, {**NEEDED, **given})
        return options.method, options.method_options

    assert merged() == ("p-adapter", {"p": "1.75", "mu": 10})
    assert merged(method_options={"p": "2"}) == ("p-adapter", {"p": "2", "mu": 10})
    assert merged(method="p-adapter:mu=1") == ("p-adapter", {"p": "1.75", "mu": "1"})
    assert merged(method="p-adapter") == merged()
    assert merged(method="lora") == ("lora", {})
    assert merged(method="lora", method_options={"r": "4"}) == ("lora", {"r": "4"})


def test_settings():
    assert parse_settings(["p=1", "target-modules=a=b"]) == {"p": "1", "target_modules": "a=b"}
    for bad in (["p"], ["=1"], ["p=1", "p=2"]):
        with pytest.raises(UserError, match="--set: "):
            parse_settings(bad)


def test_plain_options_survive_yaml(tmp_path):
    options = TrainOptions(**NEEDED, method="lora:r=4", eval="e", eval_every="5", prompt="{question} A:")
    again = options_from(TrainOptions, recipe(tmp_path, yaml.safe_dump(to_plain(options))))
    again.config = None
    assert again == options


def test_resume_takes_the_runs_own_recipe(tmp_path):
    given = {"resume": True, "output": str(tmp_path)}
    assert resume_config(TrainOptions, {**given, "task": "vqa"}) is None
    with pytest.raises(UserError, match=r"--resume.*holds no run"):
        resume_config(TrainOptions, given)
    (tmp_path / "config.yaml").write_text("{}")
    assert resume_config(TrainOptions, given) == tmp_path / "config.yaml"
    assert resume_config(TrainOptions, {**given, "resume": None}) is None
    assert resume_config(EvalOptions, given) is None


@pytest.mark.parametrize(
    ("cls", "given", "message"),
    [
        (EvalOptions, {"data": "d"}, "--run: give either --run RUN or --model"),
        (EvalOptions, {"data": "d", "run": "r", "model": "m"}, "--run: give either"),
        (EvalOptions, {"data": "d", "run": "r", "adapter": "a"}, "--adapter: contradicts --run"),
        (EvalOptions, {"data": "d", "model": "m"}, "--task: is needed with --model"),
        (PredictOptions, {"run": "r"}, "--image: give either --image"),
        (PredictOptions, {"run": "r", "image": "i", "data": "d"}, "--image: give either --image"),
        (PredictOptions, {"run": "r", "data": "d", "text": "t"}, "--text: belongs to --image"),
    ],
)
def test_sources(cls, given, message):
    with pytest.raises(UserError, match=message):
        cls(**given)


def test_own_fields_come_first_and_all_are_described():
    names = [item.name for item in own_first(TrainOptions)]
    assert names[0] == "task"
    assert set(names) == {item.name for item in fields(TrainOptions)}
    assert names[-len(fields(InferenceOptions)) :] == [item.name for item in own_first(InferenceOptions)]
    assert all(item.metadata["help"].endswith((".", ")")) for item in fields(TrainOptions))


def test_recipes_are_valid():
    """Every recipe of the repository can be read, and names things that exist."""
    from padapter.methods import get_method
    from padapter.tasks import get_task

    found = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert len(found) >= 4
    for path in found:
        options = options_from(TrainOptions, path)
        method = get_method(options.method)
        method.parse(options.method_options)
        get_task(options.task)
