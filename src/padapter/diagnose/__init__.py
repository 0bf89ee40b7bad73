"""What did adaptation do to attention? Numbers, figures and one page about every attention layer of a model.

from padapter.diagnose import diagnose, figure_heterophily

found = diagnose("runs/valves", "pictures")
figure_heterophily(found).savefig("heterophily.png")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from padapter.diagnose.collect import diagnose
    from padapter.diagnose.embedding import Map, embed
    from padapter.diagnose.figures import (
        figure_calibration,
        figure_gain,
        figure_heterophily,
        figure_p_mu,
        figure_tsne,
    )
    from padapter.diagnose.options import DiagnoseOptions
    from padapter.diagnose.results import Diagnosis, Exponent, Layer, Points, State, Weights
    from padapter.diagnose.streams import Statistic
    from padapter.diagnose.writing import to_csv, to_json

__all__ = [
    "DiagnoseOptions",
    "Diagnosis",
    "Exponent",
    "Layer",
    "Map",
    "Points",
    "State",
    "Statistic",
    "Weights",
    "diagnose",
    "embed",
    "figure_calibration",
    "figure_gain",
    "figure_heterophily",
    "figure_p_mu",
    "figure_tsne",
    "to_csv",
    "to_json",
]

# The command line reads the options, and --help must not import torch or matplotlib.
_HOMES = {
    "collect": ("diagnose",),
    "embedding": ("Map", "embed"),
    "figures": ("figure_calibration", "figure_gain", "figure_heterophily", "figure_p_mu", "figure_tsne"),
    "options": ("DiagnoseOptions",),
    "results": ("Diagnosis", "Exponent", "Layer", "Points", "State", "Weights"),
    "streams": ("Statistic",),
    "writing": ("to_csv", "to_json"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
