"""Learning rates of their own for some parameters: groups of an optimizer, scaled by the method's factors."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn


def split_rates(optimizer: torch.optim.Optimizer, module: nn.Module, factors: Mapping[str, float]) -> None:
    """Split the groups of a fresh optimizer so that parameters learn at their method's factor of the common rate.

    A schedule multiplies every group's rate alike, so the factors hold from the first step to the last.

    Args:
        optimizer: with the same rate in all groups, before its schedule is made; changed in place.
        module: whose parameters it holds.
        factors: pattern (a regular expression, found anywhere in a parameter's name) -> factor; the first one that is
            found counts, and a parameter without one keeps factor 1.
    """
    factor_of = {id(value): _factor(name, factors) for name, value in module.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        # The common rate first: it is the one that the log shows.
        for factor in sorted(
            {factor_of[id(value)] for value in group["params"]}, key=lambda factor: (factor != 1, factor)
        ):
            params = [value for value in group["params"] if factor_of[id(value)] == factor]
            groups.append({**group, "params": params, "lr": factor * group["lr"]})
    optimizer.param_groups[:] = groups


def _factor(name: str, factors: Mapping[str, float]) -> float:
    return next((factor for pattern, factor in factors.items() if re.search(pattern, name)), 1.0)
