"""A local page for asking a model with and without its adapters.

``session.py`` holds the models and answers; it knows nothing of Gradio. ``app.py`` is the page.
"""

from __future__ import annotations

from padapter.demo.options import DemoOptions

__all__ = ["DemoOptions"]
