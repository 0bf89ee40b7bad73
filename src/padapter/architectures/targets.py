"""Default targets: which output projections a configuration without ``target_modules`` adapts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from padapter.architectures.sites import AttentionSite, Site
from padapter.architectures.table import PARTS, UNIONS

#: What ``where=`` may be: a part, or several under one name. "decoder" alone means everything in models without one.
WHERE = (*PARTS, *UNIONS)


def default_sites(
    sites: Mapping[str, Site],
    *,
    attention: bool,
    feed_forward: bool,
    where: Collection[str],
    layers: Iterable[int] | None,
) -> list[str]:
    """Names of the output projections that a configuration without ``target_modules`` adapts.

    Args:
        sites: those of the model, by the name of their output projection.
        attention: whether to include attention output projections.
        feed_forward: whether to include feed-forward output projections.
        where: values of `WHERE`; a site is included if one of them includes it.
        layers: indices of the layers to include; None means all. A site's layer is the first number in its name.
    """
    parts = {part for value in where for part in UNIONS.get(value, (value,))}
    everything = "decoder" in where and not any(site.part == "decoder" for site in sites.values())
    kept = None if layers is None else set(layers)

    def included(name: str, site: Site) -> bool:
        if not (attention if isinstance(site, AttentionSite) else feed_forward):
            return False
        if kept is not None and layer_index(name) not in kept:
            return False
        return everything or site.part in parts

    return [name for name, site in sites.items() if included(name, site)]


def as_pattern(chosen: Collection[str], names: Collection[str]) -> str:
    """A regular expression that matches the chosen module names and no other ones of the model.

    Numbers in the names are generalised, so that it is short and fits a deeper model too, and what stands before the
    names is left open, so that an adapter fits a model that is wrapped in another class. Where either would catch
    other modules too, the names stand as they are.

    Args:
        chosen: full module names.
        names: the full names of all modules of the model.
    """
    for numbers, prefix in (("any", r"(?:.*\.)?"), ("these", r"(?:.*\.)?"), ("these", "")):
        shapes = sorted({prefix + _generalised(name, chosen if numbers == "these" else ()) for name in chosen})
        pattern = "|".join(shapes)
        if {name for name in names if re.fullmatch(pattern, name)} == set(chosen):
            return pattern
    return "|".join(re.escape(name) for name in chosen)


def layer_index(name: str) -> int | None:
    """The layer that a module belongs to: the first number in its full name, None if there is none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _generalised(name: str, layers_of: Collection[str]) -> str:
    """The name as an expression: any number for each number, but for the first one those of ``layers_of`` if given."""
    first = r"\d+"
    if layers_of:
        indices = sorted({index for other in layers_of if (index := layer_index(other)) is not None})
        first = "(?:" + "|".join(map(str, indices)) + ")"
    parts = name.split(".")
    seen = False
    for i, part in enumerate(parts):
        if part.isdigit():
            parts[i] = r"\d+" if seen else first
            seen = True
        else:
            parts[i] = re.escape(part)
    return r"\.".join(parts)
