from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from padapter.tuners import TUNERS


@dataclass(frozen=True)
class Case:
    tuner: str
    variant: str

    @property
    def identity_at_start(self) -> bool:
        return TUNERS[self.tuner].variants()[self.variant].identity_at_start

    @property
    def prefix(self) -> str:
        return f"{self.tuner}_"

    def config(self, **changes: Any) -> Any:
        return TUNERS[self.tuner](**(TUNERS[self.tuner].variants()[self.variant].options | changes))


CASES = [Case(name, variant) for name, config in TUNERS.items() for variant in config.variants()]


@pytest.fixture(params=CASES, ids=lambda case: f"{case.tuner}:{case.variant}")
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def disturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Move every trainable parameter away from where it started; p and mu stay in range."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(0.3 * noise.abs() if parameter.dim() == 1 else 0.3 * noise)


@pytest.fixture
def adapted(case: Case, tiny_blip: torch.nn.Module) -> PeftModel:
    """A tiny BLIP with one adapter, called ``default``, that is not the identity."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_blip, case.config()).eval()
    disturb(model)
    return model


@pytest.fixture(scope="session")
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(3, 40, (2, 6), generator=generator),
    }


class Helpers:
    disturb = staticmethod(disturb)

    @staticmethod
    @torch.no_grad()
    def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor], **extra: Any) -> torch.Tensor:
        return model(**batch, **extra).logits


@pytest.fixture(scope="session")
def helpers() -> type[Helpers]:
    return Helpers
