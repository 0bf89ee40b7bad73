"""``padapter env``."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from padapter.cli import app
from padapter.functional import dispatch, native


def shown(code=0, **environment):
    result = CliRunner().invoke(app, ["env"], env=environment)
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output


def test_versions_devices_and_cache_are_named(tmp_path):
    text = shown(PADAPTER_CACHE=str(tmp_path))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["torch"].split()[1] == torch.__version__
    assert {"python", "padapter", "transformers", "peft", "triton", "cpu"} <= lines.keys()
    assert str(tmp_path) in lines["cache"]


def test_the_path_on_the_cpu_and_its_reason():
    obstacle = native.obstacle()
    line = shown().splitlines()[-1 - torch.cuda.device_count()]
    assert line.split()[:2] == ["cpu", "native:" if obstacle is None else "eager:"]
    assert (obstacle or "fused kernels") in line
    with dispatch.forced("eager"):
        assert "eager: PADAPTER_KERNEL=eager" in shown()


@pytest.mark.parametrize(("capability", "path"), [((9, 0), "triton: fused kernels"), ((7, 0), "eager: the GPU has")])
def test_the_path_on_a_gpu(monkeypatch, capability, path):
    properties = type("Properties", (), {"name": "A GPU", "major": 9, "minor": 0, "total_memory": 80 * 2**30})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    text = shown()
    assert "A GPU, capability 9.0, 80 GiB" in text
    assert path in text.splitlines()[-1]


def test_a_path_that_cannot_run_is_shown_as_an_error(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with dispatch.forced("triton"):
        assert "error: PADAPTER_KERNEL=triton: the triton kernels cannot run here" in shown()


def test_an_unknown_value_is_a_user_error(monkeypatch):
    monkeypatch.setattr(dispatch, "_wanted", "cuda")
    assert "PADAPTER_KERNEL: got 'cuda', accepted are auto, eager, native, triton" in shown(code=2)
