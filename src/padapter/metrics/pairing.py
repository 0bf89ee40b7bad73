"""One check that every metric makes first: both sides hold the same items."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from padapter.errors import UserError


def require_same_ids(predicted: Collection[str], expected: Collection[str]) -> None:
    """Refuse to score when predictions and references are not about exactly the same items.

    Args:
        predicted: Ids that have a prediction.
        expected: Ids that have references.

    Raises:
        UserError: Nothing to score, or an id on one side only; the message counts and names them.
    """
    if not expected:
        raise UserError("There is nothing to score: no references were given.")
    missing = sorted(set(expected) - set(predicted))
    unknown = sorted(set(predicted) - set(expected))
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"{len(missing)} items have no prediction ({_some(missing)})")
        if unknown:
            parts.append(f"{len(unknown)} predictions belong to no item ({_some(unknown)})")
        raise UserError(f"Every item needs exactly one prediction: {'; '.join(parts)}.")


def _some(ids: Iterable[str], shown: int = 5) -> str:
    listed = list(ids)
    return ", ".join(repr(i) for i in listed[:shown]) + (", ..." if len(listed) > shown else "")
