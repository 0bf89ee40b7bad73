from __future__ import annotations

import copy
import functools
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import pytest
import torch
from hypothesis import HealthCheck, settings

# Triton decides when it is first imported, which transformers does, whether it compiles kernels or interprets them on
# the CPU. With a GPU the same tests run the compiled kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from transformers import BlipConfig, BlipForConditionalGeneration

import padapter.tuners
from in_turn import mark_the_others_slow

padapter.tuners.register()

# Tests assert behaviour, not time: a busy machine must not fail them.
settings.register_profile("padapter", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("padapter")

WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 2, 40


def build_tiny_blip(seed: int = 0) -> BlipForConditionalGeneration:
    """A random BLIP: 2 layers, width 32, 4 heads, 32 px images, 40 words; large weights."""
    torch.manual_seed(seed)
    config = BlipConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "encoder_hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "sep_token_id": 2,
            "pad_token_id": 0,
            "initializer_range": 0.25,
        },
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "image_size": 32,
            "patch_size": 8,
            "initializer_range": 0.25,  # the default, 1e-10, would make all image tokens equal
        },
        projection_dim=16,
    )
    return BlipForConditionalGeneration(config).eval()


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_the_others_slow(items)


def pytest_collection_finish() -> None:
    """Keep the garbage collector, which the trainer calls in every run, from looking through all that is imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _templates_are_compiled_once() -> Iterator[None]:
    """PEFT writes a card beside every adapter, and compiles its template anew: most of the time that saving takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", functools.cache(jinja2.Environment.compile))
        yield


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Make a test independent of those before it: seed torch; undo that the command line flushes denormal numbers."""
    torch.manual_seed(0)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def _tiny_blip() -> BlipForConditionalGeneration:
    return build_tiny_blip()


@pytest.fixture
def tiny_blip(_tiny_blip: BlipForConditionalGeneration) -> BlipForConditionalGeneration:
    """A fresh copy of the same tiny random BLIP for each test."""
    return copy.deepcopy(_tiny_blip)


@pytest.fixture
def fresh_blip(_tiny_blip: BlipForConditionalGeneration) -> Callable[[], BlipForConditionalGeneration]:
    """Makes further copies of `tiny_blip`."""
    return lambda: copy.deepcopy(_tiny_blip)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra [browser]")
    programs = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, programs)), None)
    if program is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
