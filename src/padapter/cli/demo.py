"""``padapter demo``."""

from __future__ import annotations

from padapter.cli.handlers import prepare
from padapter.demo import DemoOptions


def demo_command(options: DemoOptions) -> None:
    """Open a page on this machine: choose a picture, ask the base model or an adapter, see what the answer rests on."""
    from padapter.demo.extra import require_gradio

    require_gradio()
    prepare()
    from padapter.demo.app import serve
    from padapter.evaluation.processes import refuse_several

    refuse_several("padapter demo")
    serve(options)
