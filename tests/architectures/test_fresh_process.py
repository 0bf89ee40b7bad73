"""Adapters of every architecture, saved here and loaded by a process that knows nothing of this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from test_every_architecture import CONFIGS, base, outputs, shake
from tiny_models import MODELS

import padapter

#: What the other process does: one line of JSON, the greatest difference of each output from what was expected.
CHILD = """
import sys
import padapter
import json, pathlib, torch
from peft import PeftModel
from test_every_architecture import outputs
from tiny_models import build

folder = pathlib.Path(sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
found = {}
for name in sys.argv[3:]:
    here = folder / name.replace(" ", "_")
    saved = torch.load(here / "saved.pt", weights_only=True)

    def fresh():
        model = build(name, seed=99)
        model.load_state_dict(saved["base"])
        return model

    def compare(key, model):
        with torch.no_grad():
            expected = saved["expected"][key]
            found[name][key] = (outputs(model.eval(), saved["inputs"]) - expected).abs().max().item()

    found[name] = {}
    model = PeftModel.from_pretrained(fresh(), here / "one", adapter_name="other_one")
    model.load_adapter(here / "two", adapter_name="other_two")
    for key in ("one", "two", "one"):
        model.set_adapter(f"other_{key}")
        compare(key, model)
    with model.disable_adapter():
        compare("none", model)
    compare("vanilla", PeftModel.from_pretrained(fresh(), here / "vanilla"))
print(json.dumps(found))
"""


def _write(name: str, folder: Path) -> None:
    """Three adapters of one model: two forms of the p-adapter, by name, and a vanilla one; and what they compute."""
    folder.mkdir()
    inputs = MODELS[name].inputs(2)
    plain = base(name).requires_grad_(False)
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    with torch.no_grad():
        expected = {"none": outputs(plain, inputs)}
        model = get_peft_model(plain, CONFIGS["projected"](where="all", per_head=True, p=1.25), adapter_name="one")
        model.add_adapter("two", CONFIGS["bottleneck form"](where="all", init_weights=False))
        for seed, key in enumerate(("one", "two")):
            model.set_adapter(key)
            shake(model, seed)
            expected[key] = outputs(model.eval(), inputs)
        model.save_pretrained(folder)
        vanilla = CONFIGS["vanilla"](where="all", init_weights=False, scaling="learned")
        model = get_peft_model(model.unload(), vanilla)
        shake(model)
        expected["vanilla"] = outputs(model.eval(), inputs)
        model.save_pretrained(folder / "vanilla")
    keys = sorted(expected)
    for i, one in enumerate(keys):
        for other in keys[i + 1 :]:
            assert not torch.allclose(expected[one], expected[other], atol=1e-3), (name, one, other)
    torch.save({"base": state, "inputs": inputs, "expected": expected}, folder / "saved.pt")


#: One for every shim of the table, and one for the attention interface of transformers with and without a picture.
FAST = ("blip", "git", "vit + trocr", "t5", "qwen2-vl", "vit", "llama")
OTHERS = tuple(name for name in MODELS if name not in FAST)


@pytest.mark.parametrize("names", [FAST, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["fast", "others"])
def test_architectures_in_a_fresh_process(names, tmp_path, monkeypatch):
    monkeypatch.setattr(PeftModel, "create_or_update_model_card", lambda *_: None)  # takes longer than all the rest
    for name in names:
        _write(name, tmp_path / name.replace(" ", "_"))
    paths = [Path(padapter.__file__).parents[1], Path(__file__).parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(torch.get_num_threads()), *names],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == set(names)
    assert all(differences.keys() == {"one", "two", "none", "vanilla"} for differences in found.values())
    too_far = {name: differences for name, differences in found.items() if max(differences.values()) > 1e-5}
    assert not too_far
