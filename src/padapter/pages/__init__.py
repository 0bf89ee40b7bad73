"""What the pages that need nothing but themselves have in common: their look, and templates that escape everything."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(package: str, **content: Any) -> str:
    """Fill ``assets/page.html.j2`` of a package.

    Args:
        package: The package; ``assets/page.css`` in it is added to the common style, and the template has both as
            ``style``.
        **content: What the template shows. Text is escaped: nothing in data becomes HTML.

    Returns:
        The page.
    """
    style = _read(__name__, "base.css") + _read(package, "page.css")
    return _environment(package).get_template("page.html.j2").render(style=style, **content)


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath("assets").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment(package: str) -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(lambda name: _read(package, name)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
