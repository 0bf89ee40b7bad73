"""The table of docs/architectures.md is made from the registry and the models of the suite.

``python tests/architectures/test_page.py`` writes it anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from test_every_architecture import GENERATING
from test_windows_and_padding import DECODERS, SENSITIVE
from tiny_models import MODELS, build

from padapter.architectures import AttentionSite, Site, find_sites

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"


def classes(sites: Iterable[Site]) -> str:
    names = dict.fromkeys(f"`{site.row.module}`" for site in sites if isinstance(site, AttentionSite))
    return ", ".join(names) or "-"


def table() -> str:
    lines = [
        '| model | class | adapted by default | `where="vision"` | `where="connector"` | seam | tested |',
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(MODELS):
        model = build(name)
        sites = find_sites(model).values()
        generating = [site for site in sites if site.decoder and site.part == "language"]
        shims = {site.row.shim is not None for site in sites if isinstance(site, AttentionSite)}
        seam = {frozenset({True}): "shim", frozenset({False}): "interface"}.get(frozenset(shims), "interface, shim")
        connector = [site for site in sites if site.part == "connector"]
        linear = "linear layers" if connector else "-"
        tested = ["start, gradients, saving, mixed batches"]
        tested += ["generation"] * (name in GENERATING) + ["padding"] * (name in DECODERS and name not in SENSITIVE)
        parts = [
            name,
            f"`{type(model).__name__}`",
            classes(generating or sites),
            classes(site for site in sites if site.part == "vision"),
            classes(connector) if classes(connector) != "-" else linear,
            seam,
            ", ".join(tested),
        ]
        lines.append("| " + " | ".join(parts) + " |")
    return "\n".join(lines) + "\n"


def test_the_page_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert page.split(START)[1].split(END)[0] == table()


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1], encoding="utf-8")
