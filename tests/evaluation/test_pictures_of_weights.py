"""Weights of a run that are named by themselves see pictures as the run did."""

from __future__ import annotations

from padapter.evaluation.source import load_source
from padapter.options import EvalOptions, TrainOptions
from padapter.training import train


def test_an_adapter_in_its_run_is_asked_with_the_runs_pictures(tmp_path):
    run = tmp_path / "run"
    train(
        TrainOptions(
            task="vqa", model="shapes-blip", train="shapes:source:train:4", output=str(run), max_steps=1, batch_size=2,
            resize="pad", image_size=48, quiet=True,
        )
    )  # fmt: skip
    asked = {"data": "shapes:source:test:2", "quiet": True}
    trained = load_source(EvalOptions(run=str(run), **asked)).backbone.preprocessing()
    named = load_source(EvalOptions(model="shapes-blip", task="vqa", adapter=str(run / "adapter"), **asked))
    assert trained["resize"] == "pad"
    assert named.backbone.preprocessing() == trained
