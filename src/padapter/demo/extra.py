"""The optional package that the page needs."""

from __future__ import annotations

import importlib.util
import os

from padapter.errors import UserError


def require_gradio() -> None:
    """Find out, before anything slow, whether Gradio is there, and switch off all it would send anywhere.

    Call it before Gradio is imported for the first time: it reads these variables then.

    Raises:
        UserError: with the command that installs it.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("`padapter demo` needs Gradio, which is not installed: pip install 'padapter[demo]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["FASTAPI_OTEL_AUTO_CONFIGURE"] = "false"
