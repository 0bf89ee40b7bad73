from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))
sys.path.insert(0, str(Path(__file__).parent.parent / "models"))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a p-adapter run, as far as it is read, with random weights; and the folder of its data."""
    import torch
    import yaml
    from tiny_world import short_run, write_data, write_model

    from padapter.backbones import load_backbone
    from padapter.methods import get_method
    from padapter.options import to_plain

    root = tmp_path_factory.mktemp("diagnose")
    model, data = write_model(root / "model", layers=1), write_data(root / "data", "vqa")
    folder = root / "run & <b>"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(short_run(model, data, output=str(folder)))))
    backbone, method = load_backbone(model), get_method("p-adapter")
    method.apply(backbone, method.options())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.rand_like(parameter))
    method.save(backbone, folder / "adapter")
    return folder, data
