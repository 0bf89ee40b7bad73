"""How numbers are written: once, for all three forms of the report."""

from __future__ import annotations

import math
from collections.abc import Callable

from padapter.comparison.statistics import Difference

Writer = Callable[[float], str]
MINUS, MISSING = "\N{MINUS SIGN}", "-"
PER_CENT_DIGITS = 2


def per_cent(score: float) -> str:
    """A score in per cent with two decimals, without a sign for what rounds to 0."""
    text = f"{100 * score:.{PER_CENT_DIGITS}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def plus_minus(mean: str, std: str | None) -> str:
    """``71.25 ± 0.31``; without a spread only the mean."""
    return mean if std is None else f"{mean} ± {std}"


def signed(number: str) -> str:
    """``0.31`` as ``+0.31`` and ``-0.31`` with a proper minus sign."""
    if number.startswith("-"):
        return MINUS + number[1:]
    return number if float(number) == 0 else "+" + number


def difference(mean: str, low: str | None, high: str | None) -> str:
    """``+0.31 [-0.10, +0.72]``, with proper minus signs."""
    if low is None or high is None:
        return signed(mean)
    return f"{signed(mean)} [{signed(low)}, {signed(high)}]"


def difference_of(found: Difference) -> str:
    """A difference in percentage points with its interval."""
    low, high = (None if end is None else per_cent(end) for end in (found.low, found.high))
    return difference(per_cent(found.mean), low, high)


def count(number: float) -> str:
    """``52656`` as ``52,656``."""
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes in the largest binary unit that leaves at least 1, with three significant digits: ``1.62 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:,.0f} B" if unit == "B" else f"{significant(number)} {unit}"


def significant(number: float, digits: int = 3) -> str:
    """A plain decimal number with so many significant digits, all of those before the point: ``0.120``, ``1,240``."""
    if number == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return f"{number:,.{decimals}f}"


def rate(number: float) -> str:
    """A learning rate: ``0.0005`` as ``5e-4``."""
    mantissa, _, exponent = f"{number:.3e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def listed(words: list[str] | tuple[str, ...]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def plural(number: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
