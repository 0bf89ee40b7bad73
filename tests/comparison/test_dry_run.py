"""What a dry run says of models, methods, costs and data; and that the paper's recipes hold what they claim."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "backbones"))

from padapter.comparison import dry_run as module
from padapter.comparison import measure as measuring
from padapter.comparison.counting import count, skeletons_of
from padapter.comparison.dry_run import Cell, blip_base_config, dry_run
from padapter.comparison.measure import Cost, measure, run_steps
from padapter.comparison.published import PRINTED, denominators
from padapter.errors import UserError
from padapter.methods import get_method
from padapter.models.shapes_blip import build_config
from padapter.options import TrainOptions

PAPER = Path(__file__).parents[2] / "recipes" / "paper"


def cells_of(path):
    """Base, benchmark, method, and the method's own for the benchmark; the later wins, method options are merged."""
    recipe = yaml.safe_load(path.read_text())
    found = []
    for column, benchmark in recipe["benchmarks"].items():
        for method in recipe["methods"].values():
            merged = {}
            for layer in (recipe["base"], benchmark, method, method.get("benchmarks", {}).get(column, {})):
                settings = {**merged.get("method_options", {}), **layer.get("method_options", {})}
                merged = {**merged, **layer, "method_options": settings}
            options = {k: v for k, v in merged.items() if k not in ("label", "apart", "benchmarks", "tune_split")}
            found.append(Cell(benchmark["label"], method["label"], options))
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


def cell(method="lora", model="shapes-blip", data="shapes:new-questions:train:8", **options):
    return Cell("VQA", method, {"task": "vqa", "model": model, "train": data, "method": method, **options})


def test_a_comparison_that_can_be_run():
    report = dry_run([cell("lora"), cell("full"), cell("lora", seed=7)], target_fraction=0.01, measured=False)
    assert report.ready
    assert [(row.label, row.size, row.count.trainable) for row in report.sized] == [
        ("lora", 5, 25_600),
        ("full", None, 2_658_659),
    ]
    assert [(item.name, item.rows) for item in report.splits] == [("train", 8)]
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
        "./models/blip-large-thing": True,
        "./models/mplug-base": False,
        "OWNER/NAME": False,
        str(tmp_path): False,
    }
    (tmp_path / "config.json").write_text("{")
    report = dry_run([cell(model=name) for name in models], measured=False)
    assert {name: any(row for row in report.sized) for name in models} == dict.fromkeys(models, True)
    assert len(report.sized) == 1
    assert len(report.missing) == 4
    assert report.models["./models/blip-large-thing"].startswith("not here; counted with the published sizes")
    assert any("mPLUG: its class is not in transformers" in sentence for sentence in report.missing)
    build_config().save_pretrained(tmp_path)
    report = dry_run([cell(model=str(tmp_path))], measured=False)
    assert report.missing == (f"model {tmp_path}: the folder holds no weights (*.safetensors)",)
    assert report.sized[0].count.trainable == 40_960
    given = dry_run([cell(model="./x")], configs={"./x": build_config()}, measured=False)
    assert given.ready
    assert given.sized[0].count.trainable == 40_960


def test_mistakes_of_the_recipe_are_errors():
    with pytest.raises(UserError, match="no option 'rr'"):
        dry_run([cell(method_options={"rr": 1})], measured=False)
    with pytest.raises(UserError, match="--batch-size"):
        dry_run([cell(batch_size=0)], measured=False)


def test_a_step_is_measured_in_another_process(monkeypatch):
    cost = measure(build_config(), "adapter", {"reduction_factor": 8}, rows=2, tokens=5)
    assert cost.seconds > 0
    assert 50e6 < cost.peak_bytes < 4e9
    with pytest.raises(UserError, match=r"method 'lora': a training step could not be measured: .*nothing_like_this"):
        measure(build_config(), "lora", {"target_modules": "nothing_like_this"})
    monkeypatch.setattr(module, "measure", lambda config, method, options: Cost(1.5, 3 << 30))
    report = dry_run([cell()])
    assert "  lora: 1.50 s, peak memory 3.00 GiB" in report.lines()


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
    monkeypatch.setattr(module, "measure", lambda config, method, options: Cost(1.5, 3 << 30, own_peak=False))
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
    cells = cells_of(PAPER / f"{name}.yaml")
    assert len(cells) == 30
    assert len({(item.benchmark, item.method) for item in cells}) == 30
    by_place = {(item.benchmark, item.method): TrainOptions(**item.options, output="x") for item in cells}
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
    for benchmark, (rate, epochs, p, mu) in published.items():
        ours = by_place[(benchmark, "p-adapter")]
        assert (ours.learning_rate, ours.epochs, ours.seed, ours.weight_decay) == (rate, epochs, 42, 0.05)
        assert (ours.method_options["p"], ours.method_options["mu"]) == (p, mu)
        assert ours.method_options["reduction_factor"] == 8
        assert by_place[(benchmark, "Full fine-tuning")].learning_rate < 1e-4
        assert by_place[(benchmark, "Adapter")].learning_rate == rate
    assert by_place[("COCO Captions", "LoRA")].num_beams == 5
    assert by_place[("VQA v2", "LoRA")].rank_candidates == 32
    size = count("p-adapter", by_place[("VQA v2", "p-adapter")].method_options, skeletons_of(blip_base_config()))
    assert size.trainable == 7_111_344


def test_a_dry_run_of_the_papers_recipe_says_what_is_missing():
    report = dry_run(cells_of(PAPER / "blip.yaml"), measured=False)
    assert report.cells == 30
    assert len(report.missing) == 1 + 6 * 2
    assert [row.count.trainable for row in report.sized] == [223_679_804, 294_912, 589_824, 5_339_520, 7_111_344]
    text = "\n".join(report.lines())
    assert "./data/snli-ve [test]: there is no such file or folder here" in text
    assert "The slides print 0.71 % and 6.39 %; none of 6 readings gives both at these sizes." in text
    mplug = dry_run(cells_of(PAPER / "mplug.yaml"), measured=False)
    assert mplug.sized == ()
    assert any("padapter cannot read mPLUG" in sentence for sentence in mplug.missing)
