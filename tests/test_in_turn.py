"""The fast run keeps every value of every parameter, and `make test-slow` has the rest."""

from __future__ import annotations

import pytest

from in_turn import chosen, mark_the_others_slow


def test_every_axis_meets_every_place():
    groups = {(bits, name): [(bits, name, place) for place in range(3)] for bits in "pqr" for name in "uvwx"}
    kept = chosen(groups, start=1)
    assert kept[0] == ("p", "u", 1)
    assert len(kept) == len(groups)
    assert {(bits, place) for bits, _, place in kept} == {(bits, place) for bits in "pqr" for place in range(3)}
    assert {(name, place) for _, name, place in kept} == {(name, place) for name in "uvwx" for place in range(3)}


class Item:
    """As much of a collected test as is looked at."""

    def __init__(self, *markers: pytest.MarkDecorator, **params: object) -> None:
        self.path, self.originalname, self.nodeid = "file.py", "test", "file.py::test"
        self.markers = [marker.mark for marker in markers]
        self.callspec = type("CallSpec", (), {"params": params})

    def get_closest_marker(self, name):
        return next((marker for marker in self.markers if marker.name == name), None)

    def add_marker(self, marker):
        self.markers.append(marker.mark)


def fast(items):
    mark_the_others_slow(items)
    return [tuple(item.callspec.params.values()) for item in items if item.get_closest_marker("slow") is None]


def test_what_is_not_named_stays_and_what_is_named_takes_turns():
    marker = pytest.mark.in_turn("config", "beams")
    items = [Item(marker, beams=b, config=c, name=n) for b in (1, 3) for c in "pq" for n in "uvwxyz"]
    kept = fast(items)
    assert [name for *_, name in sorted(kept, key=lambda each: each[2])] == list("uvwxyz")
    assert {(beams, config) for beams, config, _ in kept} == {(1, "p"), (1, "q"), (3, "p"), (3, "q")}


def test_another_start_keeps_others():
    one, other = (
        fast([Item(pytest.mark.in_turn("config", start=start), config=c, name=n) for c in "pqr" for n in "uvw"])
        for start in (0, 1)
    )
    assert len(one) == len(other) == 3
    assert not set(one) & set(other)


def test_slow_variants_stay_slow_and_other_tests_stay_as_they_are():
    marker = pytest.mark.in_turn("config")
    assert fast([Item(marker, pytest.mark.slow, config="p"), Item(marker, config="q"), Item(config="p")]) == [
        ("q",),
        ("p",),
    ]


@pytest.mark.parametrize("marker", [pytest.mark.in_turn("cnfig"), pytest.mark.in_turn()])
def test_a_marker_must_name_parameters(marker):
    with pytest.raises(pytest.UsageError, match="in_turn names no parameter"):
        mark_the_others_slow([Item(marker, config="p")])
