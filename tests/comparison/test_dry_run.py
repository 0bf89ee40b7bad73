"""What a dry run says of models, methods, costs and data; and that the paper's recipes hold what they claim."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "backbones"))


from padapter.comparison import dry_run as module
from padapter.comparison import measure as measuring
from padapter.comparison.cells import Cell, cells_of
from padapter.comparison.counting import count, skeletons_of
from padapter.comparison.dry_run import _distinct, dry_run
from padapter.comparison.measure import Cost, measure, run_steps
from padapter.comparison.published import PRINTED, blip_base_config, denominators
from padapter.comparison.recipe import read_recipe
from padapter.data.augment import parse_augmentation
from padapter.errors import UserError
from padapter.methods import get_method
from padapter.models.shapes_blip import build_config
from padapter.options import TrainOptions

PAPER = Path(__file__).parents[2] / "recipes" / "paper"


def paper_cells(path):
    """Base, benchmark, method, and the method's own for the benchmark; the later wins, method options are merged."""
    recipe = yaml.safe_load(path.read_text())
    found = []
    for column, benchmark in recipe["benchmarks"].items():
        for name, method in recipe["methods"].items():
            merged = {}
            for layer in (recipe["base"], benchmark, method, method.get("benchmarks", {}).get(column, {})):
                settings = {**merged.get("method_options", {}), **layer.get("method_options", {})}
                merged = {**merged, **layer, "method_options": settings}
            options = {k: v for k, v in merged.items() if k not in ("label", "apart", "benchmarks", "tune_split")}
            found.append(Cell(benchmark["label"], name, options, label=method["label"]))
    return found


@pytest.fixture
def data(tmp_path):
    """A folder with two good rows for training and one bad one for testing."""
    folder = tmp_path / "pets"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    row = {"image": "a.png", "question": "what?", "answer": "cat"}
    (folder / "train.jsonl").write_text((json.dumps(row) + "\n") * 2)
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "image": "b.png"}) + "\n")
    return str(folder)


def cell(method="lora", model="shapes-blip", data="shapes:new-questions:train:8", *, name="", label="", **options):
    options = {"task": "vqa", "model": model, "train": data, "method": method, **options}
    return Cell("VQA", name or method, options, label=label)


def sizes_of(report):
    return [(row.label, row.size, row.count.trainable) for row in _distinct(report.sized).values()]


def test_a_comparison_that_can_be_run():
    report = dry_run([cell("lora:r=5"), cell("full"), cell("lora:r=5", seed=7)], measured=False)
    assert report.ready
    assert sizes_of(report) == [("lora:r=5", 5, 25_600), ("full", None, 2_658_659)]
    assert [(item.name, item.rows) for item in report.splits] == [("train", 8)]
    assert "r=5" in report.lines()[4]
    text = "\n".join(report.lines())
    assert "3 cells" in text
    assert "nothing is missing" in text
    assert "on this machine" not in text


def test_data_that_are_incomplete(data):
    report = dry_run([cell(data=data, eval=data, eval_split="test"), cell(data="./nowhere")], measured=False)
    assert not report.ready
    found = {(item.spec, item.name): (item.rows, item.problem) for item in report.splits}
    assert found[(data, "train")] == (2, "")
    rows, problem = found[(data, "test")]
    assert rows == 2
    assert problem.startswith("1 of 2 rows: ")
    assert problem.endswith("b.png: image not found.")
    assert found[("./nowhere", "train")][1] == "there is no such file or folder here"
    assert len(report.missing) == 2
    (Path(data) / "train.jsonl").write_text('{"image": "a.png", "question": "what?"}\nnot json\n')
    problem = dry_run([cell(data=data)], measured=False).splits[0].problem
    assert problem.startswith("2 of 2 rows: ")
    assert "answer" in problem


def test_models_that_are_missing_or_unknown(tmp_path):
    models = {
        "./models/blip-base-capfilt-l": True,
        "./models/blip-large-thing": False,
        "./models/instructblip": False,
        "./models/mplug-base": True,
        "./models/mplug-owl": False,
        str(tmp_path): False,
    }
    (tmp_path / "config.json").write_text("{")
    report = dry_run([cell(model=name) for name in models], measured=False)
    assert {name: any(key.model == name for key in report.sized) for name in models} == models
    assert len(report.missing) == 6
    assert report.models["./models/blip-base-capfilt-l"].startswith("not here; counted with the published sizes")
    assert report.models["./models/mplug-base"] == "not here; counted with the published sizes of mPLUG base at 384 px"
    build_config().save_pretrained(tmp_path)
    report = dry_run([cell(model=str(tmp_path))], measured=False)
    assert report.missing == (f"model {tmp_path}: the folder holds no weights (*.safetensors)",)
    assert sizes_of(report)[0][2] == 40_960
    given = dry_run([cell(model="./x")], configs={"./x": build_config()}, measured=False)
    assert given.ready
    assert sizes_of(given)[0][2] == 40_960


def test_mistakes_of_the_recipe_are_errors():
    with pytest.raises(UserError, match="no option 'rr'"):
        dry_run([cell(method_options={"rr": 1})], measured=False)
    with pytest.raises(UserError, match="--batch-size"):
        dry_run([cell(batch_size=0)], measured=False)


@pytest.mark.slow
def test_a_step_is_measured_in_another_process(monkeypatch):
    cost = measure(build_config(), "adapter", {"reduction_factor": 8}, rows=2, tokens=5)
    assert cost.seconds > 0
    assert 50e6 < cost.peak_bytes < 4e9
    with pytest.raises(UserError, match=r"method 'lora': a training step could not be measured: .*nothing_like_this"):
        measure(build_config(), "lora", {"target_modules": "nothing_like_this"})
    monkeypatch.setattr(module, "measure", lambda *_: Cost(1.5, 3 << 30))
    report = dry_run([cell()])
    assert "    lora: 1.50 s, peak memory 3.00 GiB" in report.lines()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="VmHWM is Linux's")
def test_the_peak_of_a_step_is_not_that_of_the_process_that_asked():
    ballast = b"\1" * (1 << 30)
    cost = measure(build_config(), "adapter", {"reduction_factor": 8}, rows=2, tokens=5)
    assert cost.peak_bytes < len(ballast)
    assert cost.own_peak


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="VmHWM is Linux's")
def test_what_was_before_the_reset_is_no_peak():
    ballast = b"\1" * (1 << 29)
    before, own = measuring.peak_memory()
    del ballast
    measuring.forget_peak()
    after, _ = measuring.peak_memory()
    assert own
    assert before - after > 1 << 28


def test_a_peak_that_may_be_another_process_s_is_called_so(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "_PROCESS", tmp_path / "none")
    measuring.forget_peak()
    peak, own = measuring.peak_memory()
    assert (peak > 50e6, own) == (True, False)
    monkeypatch.setattr(module, "measure", lambda *_: Cost(1.5, 3 << 30, own_peak=False))
    assert "  lora: 1.50 s, peak memory at most 3.00 GiB (this system may count" in "\n".join(dry_run([cell()]).lines())


def test_the_measured_steps_train(monkeypatch):
    trained = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a: trained.append(len(self.param_groups[0]["params"])) or step(self, *a),
    )
    assert len(run_steps(build_config(), "prefix", {}, rows=2, tokens=4, steps=2)) == 2
    assert trained == [1, 1]


def test_blip_base_has_the_published_shape():
    """Sizes of the official checkpoint: see its table of weights."""
    model = skeletons_of(blip_base_config())("meta").model
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes["vision_model.embeddings.position_embedding"] == (1, 197, 768)
    assert shapes["vision_model.encoder.layers.11.self_attn.qkv.weight"] == (2304, 768)
    assert shapes["text_decoder.bert.embeddings.word_embeddings.weight"] == (30524, 768)
    assert shapes["text_decoder.bert.encoder.layer.11.crossattention.self.key.weight"] == (768, 768)
    assert sum(value.numel() for value in model.parameters()) == 223_679_804


def test_readings_of_the_printed_shares():
    """Shares by hand for two methods; nearest reading first, and a made-up model that gives both to the digit."""
    skeletons = skeletons_of(blip_base_config())
    trainable = {"LoRA": 589_824, "p-adapter": 7_111_344}
    readings = {item.name: item for item in denominators(skeletons, trainable)}
    assert readings["the whole model"].size == 223_679_804
    assert readings["the image tower"].size == 85_798_656
    assert dict(readings["the image tower"].shares)["LoRA"] == pytest.approx(100 * 589_824 / 85_798_656)
    distances = [item.distance for item in denominators(skeletons, trainable)]
    assert distances == sorted(distances)
    assert not any(item.reproduces for item in readings.values())
    exact = {"small": round(PRINTED[0] / 100 * 223_679_804), "large": round(PRINTED[1] / 100 * 223_679_804)}
    assert denominators(skeletons, exact)[0].reproduces
    assert denominators(skeletons, exact)[0].name == "the whole model"


@pytest.mark.parametrize("name", ["blip", "mplug"])
def test_the_papers_recipes_are_two_by_six_by_five(name):
    cells = paper_cells(PAPER / f"{name}.yaml")
    assert len(cells) == 30
    assert len({(item.benchmark, item.method) for item in cells}) == 30
    by_place = {(item.benchmark, item.label): TrainOptions(**item.options, output="x") for item in cells}
    for options in by_place.values():
        get_method(options.method).parse(options.method_options)
    published = {
        "VQA v2": (5e-4, 5, 1.25, 0.1),
        "VizWiz-VQA": (5e-4, 5, 1.25, 0.1),
        "SNLI-VE": (5e-4, 5, 1.5, 10),
        "COCO Captions": (3e-4, 2, 1.75, 0.1),
        "TextCaps": (3e-4, 2, 1.75, 0.1),
        "VizWiz-Captions": (3e-4, 2, 1.75, 0.1),
    }
    assert (
        by_place[("VQA v2", "LoRA")].train_split == by_place[("COCO Captions", "LoRA")].train_split == "karpathy-train"
    )
    assert by_place[("VQA v2", "LoRA")].eval_split == by_place[("COCO Captions", "LoRA")].eval_split == "karpathy-test"
    for benchmark, (rate, epochs, p, mu) in published.items():
        ours = by_place[(benchmark, "p-adapter")]
        assert (ours.learning_rate, ours.epochs, ours.seed, ours.weight_decay) == (rate, epochs, 42, 0.05)
        assert (ours.method_options["p"], ours.method_options["mu"]) == (p, mu)
        assert ours.method_options["reduction_factor"] == 8
        assert by_place[(benchmark, "Full fine-tuning")].learning_rate < 1e-4
        assert by_place[(benchmark, "Adapter")].learning_rate == rate
    strength = {"blip": 5, "mplug": 7}[name]
    for (benchmark, _), options in by_place.items():
        expected = f"crop:p=1:scale=0.5,flip-all:p=0.5,randaugment:p=0.5:n=2:m={strength}"
        if benchmark in ("VizWiz-VQA", "TextCaps", "VizWiz-Captions"):
            expected = expected.replace("flip-all:p=0.5,", "")
        assert str(parse_augmentation(options.augment)) == expected
        assert (options.image_size, options.resize) == ((224, "squash") if name == "blip" else (None, None))
    assert by_place[("COCO Captions", "LoRA")].num_beams == 5
    assert by_place[("VQA v2", "LoRA")].rank_candidates == 32
    size = count("p-adapter", by_place[("VQA v2", "p-adapter")].method_options, skeletons_of(blip_base_config()))
    assert size.trainable == 7_111_344


def test_a_dry_run_of_the_papers_recipe_says_what_is_missing():
    report = dry_run(paper_cells(PAPER / "blip.yaml"), measured=False)
    assert len(report.cells) == 30
    assert len(report.missing) == 1 + 6 * 2
    assert [size for _, _, size in sizes_of(report)] == [223_679_804, 294_912, 589_824, 5_339_520, 7_111_344]
    text = "\n".join(report.lines())
    assert "snli-ve:./data/snli-ve [test]: snli-ve:./data/snli-ve: data/snli-ve: there is no such folder." in text
    assert "The slides print 0.71 % and 6.39 %; none of 6 readings gives both at these sizes." in text


def test_a_dry_run_of_the_papers_mplug_counts_answers_and_captions_apart():
    report = dry_run(paper_cells(PAPER / "mplug.yaml"), measured=False)
    assert len(report.cells) == 30
    assert len(report.missing) == 1 + 6 * 2
    assert [*report.models] == ["./models/mplug-base", "./models/mplug-base for captions"]
    whole, captions = (
        {row.label: row.count for key, row in report.sized.items() if key.model == name} for name in report.models
    )
    # Numbers in those entries of the official file that take part: tests/models/mplug_official.py.
    assert (whole["LoRA"].base, captions["LoRA"].base) == (344_683_578, 223_972_410)
    assert {label: count.trainable for label, count in whole.items() if label != "Full fine-tuning"} == {
        label: count.trainable for label, count in captions.items() if label != "Full fine-tuning"
    }


def test_pictures_of_another_size_are_counted_at_it(monkeypatch):
    """Positions of a patch each: 64 px are 8 x 8 patches of 8 px; and a step is measured at the size of its cell."""
    sides = []
    monkeypatch.setattr(
        module, "measure", lambda config, *_: sides.append(config.vision_config.image_size) or Cost(1.0, 1 << 30)
    )
    plain, large = cell("lora:r=2"), cell("lora:r=2")
    large.options["image_size"] = 96
    report = dry_run([plain, large])
    assert sorted(report.models) == ["shapes-blip", "shapes-blip at 96 px"]
    assert sides == [64, 96]
    before, after = (row.count.base for row in report.sized.values())
    width = build_config().vision_config.hidden_size
    assert after - before == width * (12 * 12 - 8 * 8)
    large.options["image_size"] = 100
    with pytest.raises(UserError, match="--image-size: the model sees patches of 8 px"):
        dry_run([large], measured=False)


def test_methods_are_told_apart_by_model_and_name(tmp_path, monkeypatch):
    """Equal labels, and one method on two models, keep their own sizes and costs."""
    config = build_config()
    config.text_config.num_hidden_layers = 1
    monkeypatch.setattr(
        module, "measure", lambda config, *_: Cost(float(config.text_config.num_hidden_layers), 1 << 30)
    )
    cells = [cell("lora:r=2", name="a", label="L"), cell("lora:r=4", name="b", label="L")]
    report = dry_run([*cells, cell("lora:r=2", "./x", name="a", label="L")], configs={"./x": config})
    small, large, other = sizes_of(report)
    assert (small[:2], large[:2], other[:2]) == (("L", 2), ("L (b)", 4), ("L", 2))
    assert 2 * small[2] == large[2]
    assert other[2] < small[2]
    layers = build_config().text_config.num_hidden_layers
    assert [cost.seconds for cost in report.costs.values()] == [layers, layers, 1.0]


def test_options_of_one_benchmark_make_a_row_only_if_they_change_the_size():
    cells = [cell("p-adapter", method_options=values) for values in ({"p": 1.2}, {"p": 1.5}, {"p": 1.5, "r": 3})]
    assert len(sizes_of(dry_run(cells, measured=False))) == 2


def recipe_file(tmp_path, body):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "base: {model: shapes-blip, max_steps: 2}\nseeds: [0, 1]\nbenchmarks:\n"
        '  vqa: {task: vqa, train: "shapes:new-questions:train:8", eval: DATA}\n'.replace(
            "DATA", str(tmp_path / "pets")
        )
        + body
    )
    return path


def test_the_command_shows_the_sizes_of_the_budget_and_no_other(tmp_path, data):
    body = "budget: 0.01\nmethods:\n  small: {label: Small, method: 'lora:r=2', size: false}\n  lora: {label: L}\n"
    cells, notes = cells_of(read_recipe(recipe_file(tmp_path, body)))
    assert notes == []
    assert [(item.method, item.runs) for item in cells] == [("small", 2), ("lora", 2)]
    assert [row[:2] for row in sizes_of(dry_run(cells, measured=False))] == [("Small", 2), ("L", 5)]
    missing = recipe_file(tmp_path, body)
    missing.write_text(missing.read_text().replace("shapes-blip", "./nowhere"))
    assert "need the models" in cells_of(read_recipe(missing))[1][0]


def test_the_command_looks_at_the_splits_for_tuning(tmp_path, data):
    path = recipe_file(tmp_path, "methods: {lora: }\ntune: {learning_rate: [0.1, 0.2, 0.3]}\n")
    cells, _ = cells_of(read_recipe(path))
    assert [(item.tuning, item.runs) for item in cells] == [(False, 2), (True, 3)]
    report = dry_run(cells, measured=False)
    assert report.lines()[0] == "1 cell, 2 runs; 3 runs to choose learning rates"
    assert any("pets [validation]:" in sentence for sentence in report.missing)


def test_hub_ids_are_not_missing():
    report = dry_run([cell(model="OWNER/NAME", data="OWNER/DATA")], measured=False)
    assert report.ready
    assert report.models == {"OWNER/NAME": "a hub id; not in the local cache, so nothing is counted"}
    assert "  OWNER/DATA [train]: a hub id; nothing is fetched here, so nothing is counted" in report.lines()
    assert not dry_run([cell(data="data/train.jsonl")], measured=False).ready


def test_time_is_extrapolated_from_rows_and_texts(data, monkeypatch):
    """By hand: 4 rows, 2 epochs, steps of 2 rows, 1.5 answers per row, 8 s per 8 rows: 4 steps x 3 s."""
    row = {"image": "a.png", "question": "what?"}
    rows = [{**row, "answers": ["cat", "cat", "dog"]}, {**row, "answers": ["cat"]}] * 2
    (Path(data) / "train.jsonl").write_text("\n".join(json.dumps(item) for item in rows))
    monkeypatch.setattr(module, "measure", lambda *_: Cost(8.0, 1 << 30))
    options = {"batch_size": 1, "gradient_accumulation": 2}
    known = replace(cell(data=data, epochs=2, **options), runs=3)
    cells = [known, cell(data="./no", epochs=2), cell(data="./no", max_steps=5, **options)]
    report = dry_run(cells)
    assert [item.seconds for item in report.durations] == [3 * 4 * 3.0, None, 5 * 2.0]
    assert report.durations[0].found == "3 runs of 4 steps, 1.50 texts per row"
    assert report.durations[1].found == "the rows of ./no [train] are not known"
    assert "1 text per row assumed" in report.durations[2].found
    text = "\n".join(report.lines())
    assert "in all: 0.013 h for all that are known; 1 of 3 are not known" in text
    assert "extrapolated" in text
    few = dry_run([cell(data=data, epochs=2, batch_size=64), cell(data=data, epochs=2, batch_size=1, limit_train=2)])
    assert [item.seconds for item in few.durations] == [2 * 4 * 1.5, 4 * 1.5]
