from pathlib import Path

import pytest
import yaml

from padapter.comparison.plan import choose_rates, tuning_jobs
from padapter.comparison.plan import test_jobs as jobs_of_table
from padapter.comparison.recipe import cell_options, read_recipe
from padapter.errors import UserError

ROOT = Path(__file__).parents[2]
BODY = """
title: Two methods
base: {model: shapes-blip, batch_size: 4, method_options: {}}
seeds: [3, 1]
benchmarks:
  vqa: {label: VQA, task: vqa, train: "shapes:new-questions", eval: "shapes:new-questions"}
  snli: {task: entailment, train: A, eval: B, eval_split: dev, max_steps: 7}
methods:
  full: {apart: true, size: false}
  lora: "lora:r=4"
  p-adapter: {label: P, grid: {p: [1.5, 2.5], mu: [0, 1]}, benchmarks: {snli: {learning_rate: 0.5}}}
baseline: lora
budget: 0.02
tune: {learning_rate: {lora: [0.01, 0.001], full: [1e-5]}, seed: 9, max_steps: 3}
"""


def recipe_of(tmp_path, text=BODY, **changes):
    if changes:
        text = yaml.safe_dump({**yaml.safe_load(text), **changes})
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path)


def test_a_recipe_is_read_with_its_types_and_its_grid(tmp_path):
    recipe = recipe_of(tmp_path)
    assert recipe.title == "Two methods"
    assert recipe.seeds == (3, 1)
    assert recipe.budget == 0.02
    assert [item.name for item in recipe.methods] == [
        "full",
        "lora",
        "p-adapter[p=1.5,mu=0]",
        "p-adapter[p=1.5,mu=1]",
        "p-adapter[p=2.5,mu=0]",
        "p-adapter[p=2.5,mu=1]",
    ]
    assert recipe.method("lora").options == {"method": "lora", "method_options": {"r": "4"}}
    assert recipe.method("p-adapter[p=2.5,mu=1]").label == "P (p=2.5, mu=1)"
    assert recipe.method("full").apart
    assert not recipe.method("full").sized
    assert recipe.benchmark("vqa").options["eval_split"] == "test"
    assert recipe.benchmark("snli").options["eval_split"] == "dev"
    assert recipe.tuning.rates == {"lora": (0.001, 0.01), "full": (1e-5,)}


def test_a_benchmark_may_have_a_grid_of_its_own(tmp_path):
    tuning = recipe_of(tmp_path, tune={"learning_rate": [0.1, 0.2], "benchmarks": {"snli": {"lora": [0.01]}}}).tuning
    assert tuning.grid("vqa", "lora") == tuning.grid("snli", "full") == (0.1, 0.2)
    assert tuning.grid("snli", "lora") == (0.01,)
    assert tuning.options == {}


@pytest.mark.parametrize(
    ("special", "match"),
    [
        ({"nli": [0.1]}, r"tune: benchmarks: .*nli"),
        ({"snli": {"lorra": [0.1]}}, r"tune: benchmarks: snli: .*lorra"),
        ({"snli": {"lora": [0]}}, r"tune: benchmarks: snli: lora: a rate is above 0"),
        ([0.1], r"tune: benchmarks: expected 'benchmark: rates' lines"),
    ],
)
def test_a_grid_that_belongs_nowhere_is_refused(tmp_path, special, match):
    with pytest.raises(UserError, match=match):
        recipe_of(tmp_path, tune={"learning_rate": [0.1], "benchmarks": special})


def test_the_more_special_option_wins(tmp_path):
    recipe = recipe_of(tmp_path)
    method = recipe.method("p-adapter[p=1.5,mu=0]")
    here, there = (cell_options(recipe, recipe.benchmark(name), method) for name in ("vqa", "snli"))
    assert "learning_rate" not in here
    assert "max_steps" not in here
    assert there["learning_rate"] == 0.5
    assert there["max_steps"] == 7
    assert there["batch_size"] == 4
    assert there["method_options"] == {"p": 1.5, "mu": 0}


def test_tuning_never_sees_the_rows_of_the_table(tmp_path):
    recipe = recipe_of(tmp_path)
    jobs = tuning_jobs(recipe, {})
    assert [(job.benchmark, job.method, job.options["learning_rate"]) for job in jobs] == [
        (name, method, rate)
        for name in ("vqa", "snli")
        for method, rate in (("full", 1e-5), ("lora", 0.001), ("lora", 0.01))
    ]
    assert {job.options["eval_split"] for job in jobs} == {"validation"}
    assert {job.seed for job in jobs} == {9}
    assert {job.options["max_steps"] for job in jobs} == {3}
    other_name = BODY.replace("label: VQA,", "label: VQA, tune_split: validation, eval_split: val,")
    with pytest.raises(UserError, match=r"vqa: tune_split and eval_split are both 'validation'"):
        tuning_jobs(recipe_of(tmp_path, other_name.replace("shapes:new-questions", "vqav2:nowhere")), {})
    with pytest.raises(UserError, match=r"vqa: tune_split and eval_split are both 'test'"):
        tuning_jobs(recipe_of(tmp_path, BODY.replace("label: VQA,", "label: VQA, tune_split: test,")), {})


def test_the_table_has_one_run_per_cell_and_seed_with_the_chosen_rates(tmp_path):
    recipe = recipe_of(tmp_path)
    sizes = {"snli": {"lora": {"set": {"r": 16}, "drop": []}}}
    jobs = jobs_of_table(recipe, sizes, {("vqa", "lora"): 0.25})
    assert len(jobs) == len({job.name for job in jobs}) == len({job.key for job in jobs}) == 2 * 6 * 2
    assert [job.seed for job in jobs] == [3] * 12 + [1] * 12
    lora = {job.benchmark: job for job in jobs if job.method == "lora" and job.seed == 1}
    assert lora["vqa"].options["learning_rate"] == 0.25
    assert "learning_rate" not in lora["snli"].options
    assert lora["snli"].options["method_options"] == {"r": 16}
    assert lora["vqa"].options["method_options"] == {"r": "4"}
    assert [(job.benchmark, job.method, job.seed) for job in jobs if job.options["score_base"]] == [
        ("vqa", "full", 3),
        ("snli", "full", 3),
    ]


def test_the_key_tells_what_computes_from_what_watches(tmp_path):
    recipe = recipe_of(tmp_path)
    key = jobs_of_table(recipe, {}, {})[0].key
    assert (
        key
        == jobs_of_table(recipe_of(tmp_path, BODY.replace("batch_size: 4", "batch_size: 4, save_every: 7")), {}, {})[
            0
        ].key
    )
    otherwise = recipe_of(tmp_path, BODY.replace("batch_size: 4", "batch_size: 4, attention: eager"))
    assert key == jobs_of_table(otherwise, {}, {})[0].key
    for changed in ("batch_size: 5", "batch_size: 4, weight_decay: 0.1", "batch_size: 4, precision: bf16"):
        assert key != jobs_of_table(recipe_of(tmp_path, BODY.replace("batch_size: 4", changed)), {}, {})[0].key


@pytest.mark.parametrize("data", ['"shapes:new-questions:test:64"', "pictures/test.jsonl"])
def test_data_that_is_one_split_needs_other_data_to_tune_on(tmp_path, data):
    text = BODY.replace('eval: "shapes:new-questions"', f"eval: {data}")
    with pytest.raises(UserError, match=r"is one split, whatever tune_split says.*tune_eval"):
        tuning_jobs(recipe_of(tmp_path, text), {})
    with pytest.raises(UserError, match="tune_eval and eval are the same rows"):
        tuning_jobs(recipe_of(tmp_path, text.replace("label: VQA,", f"label: VQA, tune_eval: {data},")), {})
    jobs = tuning_jobs(recipe_of(tmp_path, text.replace("label: VQA,", "label: VQA, tune_eval: elsewhere,")), {})
    assert {job.options["eval"] for job in jobs if job.benchmark == "vqa"} == {"elsewhere"}


class Scored:
    def __init__(self, score, diverged=False):
        self.score = score
        self.diverged = diverged


def test_the_best_rate_is_chosen_and_of_equals_the_smallest(tmp_path):
    jobs = [job for job in tuning_jobs(recipe_of(tmp_path), {}) if job.method == "lora"]
    names = [job.name for job in jobs]
    scores = dict(zip(names, map(Scored, (0.5, 0.6, 0.4, 0.4)), strict=True))
    assert choose_rates(jobs, scores) == {("vqa", "lora"): 0.01, ("snli", "lora"): 0.001}
    scores[names[1]] = Scored(0.9, diverged=True)
    assert choose_rates(jobs, scores)["vqa", "lora"] == 0.001
    scores[names[0]] = Scored(0.9, diverged=True)
    with pytest.raises(UserError, match="lora on vqa: the loss was no number at every rate"):
        choose_rates(jobs, scores)
    del scores[names[0]]
    assert choose_rates(jobs, scores) == {("snli", "lora"): 0.001}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Two", "titel: Two", r"recipe.yaml: unknown key 'titel'; did you mean 'title'"),
        ("batch_size: 4", "batch_sise: 4", r"base: unknown key 'batch_sise'; did you mean 'batch_size'"),
        ("batch_size: 4", "seed: 4", r"base: 'seed' is set by the comparison"),
        ("batch_size: 4", "keep: best", r"base: 'keep' is set by the comparison"),
        ("batch_size: 4", "batch_size: four", r"base: batch_size: expected an integer, got 'four'"),
        ("batch_size: 4", "batch_size: 0", r"full on vqa: --batch-size: must be at least 1"),
        ("model: shapes-blip, ", "", r"base: 'model' is needed"),
        ("seeds: [3, 1]", "seeds: [1, 1]", r"seeds: 1: given twice"),
        ("seeds: [3, 1]", "seeds: 3", r"seeds: expected a list of whole numbers, got 3"),
        ("seeds: [3, 1]", "seeds: [-1]", r"seeds: a seed is at least 0"),
        ("task: entailment, ", "", r"benchmarks: snli: 'task' is needed"),
        ("train: A", "trian: A", r"benchmarks: snli: unknown key 'trian'; did you mean 'train'"),
        ("benchmarks: {snli:", "benchmarks: {snly:", r"benchmarks: unknown name 'snly'; did you mean 'snli'"),
        ("grid: {p: [1.5, 2.5]", "grid: {p: 1.5", r"p-adapter: grid: expected 'option: \[value, ...\]' lines"),
        ("baseline: lora", "baseline: lara", r"baseline: unknown name 'lara'; did you mean 'lora'"),
        ("budget: 0.02", "budget: 2", r"budget: is a share of all parameters between 0 and 1, got 2"),
        ("{lora: [0.01, 0.001]", "{lara: [0.01, 0.001]", r"tune: learning_rate: unknown name 'lara'"),
        ("full: [1e-5]", "full: [0]", r"tune: learning_rate: full: a rate is above 0"),
        ('lora: "lora:r=4"', 'lo/ra: "lora:r=4"', r"methods: 'lo/ra' cannot be a file's name"),
        ('lora: "lora:r=4"', 'lora: "lora:r"', r"expected NAME=VALUE"),
        ('lora: "lora:r=4"', 'lo--ra: "lora:r=4"', r"methods: 'lo--ra' cannot be a file's name"),
        ('lora: "lora:r=4"', "lora: {eval_split: validation}", r"lora: 'eval_split' belongs to the benchmark"),
        ('lora: "lora:r=4"', "lora: {rule: label-accuracy}", r"lora: 'rule' belongs to the benchmark"),
        ("benchmarks: {snli: {learning_rate: 0.5}}", "benchmarks: {snli: {train: B}}", r"'train' belongs to the bench"),
        ("seed: 9", "seed: 9, eval_split: test", r"tune: 'eval_split' belongs to the benchmark"),
        ("{p: [1.5, 2.5], mu", "{activation: [a/b], mu", r"'p-adapter\[activation=a/b,mu=0\]' cannot be a file's name"),
        ("full: {apart: true,", "full: {label: lora, apart: true,", r"methods: label: lora: given twice"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, old, new, message):
    assert old in BODY
    with pytest.raises(UserError, match=message):
        recipe_of(tmp_path, BODY.replace(old, new, 1))


@pytest.mark.parametrize("key", ["benchmarks", "methods"])
def test_no_methods_or_benchmarks_is_refused(tmp_path, key):
    parts = {"benchmarks": "{a: {task: vqa, train: A, eval: B}}", "methods": "{lora: }"}
    text = "".join(f"{name}: {body if name != key else '{}'}\n" for name, body in parts.items())
    with pytest.raises(UserError, match=f"{key}: expected at least one"):
        recipe_of(tmp_path, "base: {model: m}\n" + text)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/*.yaml")), ids=lambda path: path.name)
def test_the_recipes_of_this_project_are_recipes(path):
    recipe = read_recipe(path)
    assert jobs_of_table(recipe, {}, {})
