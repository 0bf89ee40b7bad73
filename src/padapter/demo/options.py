"""Options of ``padapter demo``; light, so that ``--help`` stays quick."""

from __future__ import annotations

from dataclasses import dataclass

from padapter.options import option, refuse
from padapter.options.fields import check_choices
from padapter.options.training import DEVICES


@dataclass(kw_only=True)
class DemoOptions:
    """Options of ``padapter demo``."""

    runs: list[str] = option(  # noqa: RUF009 (a field, like all others)
        metavar="RUN", positional=True, help="Folders written by `padapter train`, all over one base model."
    )
    host: str = option("127.0.0.1", help="Address to serve at. 0.0.0.0 lets everybody in who can reach this machine.")
    port: int | None = option(None, help="Port to serve at. (default: the first free one from 7860)")
    browser: bool = option(True, help="Open the page in a browser.")
    device: str = option("auto", choices=DEVICES, metavar="auto|cpu|cuda", help="Where to compute.")

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.runs:
            raise refuse("RUN", "name at least one folder written by `padapter train`")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise refuse("--port", f"must lie between 1 and 65535, got {self.port}")
