from __future__ import annotations

from dataclasses import dataclass, fields, make_dataclass
from typing import Literal

import pytest

from padapter.errors import UserError
from padapter.methods import METHODS, get_method
from padapter.methods.options import option, parse_options


@dataclass(frozen=True)
class Sample:
    count: int = option(1, help="A number of things.")
    rate: float = option(0.5, help="A share.")
    flag: bool = option(False, help="Yes or no.")
    word: Literal["red", "blue"] = option("red", help="A colour.")
    width: int | None = option(None, help="Maybe a number.")
    scale: float | Literal["learned"] = option(1.0, help="A number or a word.")
    names: str | None = option(None, help="Maybe a text.")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("count", "3", 3),
        ("count", 4.0, 4),
        ("rate", "1e-3", 1e-3),
        ("rate", 2, 2.0),
        ("flag", "Yes", True),
        ("flag", "off", False),
        ("flag", True, True),
        ("word", "blue", "blue"),
        ("width", "none", None),
        ("width", " 8 ", 8),
        ("width", None, None),
        ("scale", "learned", "learned"),
        ("scale", "0.25", 0.25),
        ("names", "query,value", "query,value"),
        ("names", "none", None),
    ],
)
def test_values_become_what_the_option_says(name, given, expected):
    value = getattr(parse_options(Sample, {name: given}, "sample"), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("count", "three", "a whole number"),
        ("count", 1.5, "a whole number"),
        ("count", True, "a whole number"),
        ("rate", "much", "a number"),
        ("rate", [1], "a number"),
        ("flag", "maybe", "true or false"),
        ("flag", 1, "true or false"),
        ("word", "green", "one of red, blue"),
        ("width", "wide", "none or a whole number"),
        ("scale", "frozen", "a number or one of learned"),
        ("count", None, "a whole number"),
    ],
)
def test_a_value_that_does_not_fit_names_method_option_and_kind(name, given, wanted):
    with pytest.raises(UserError, match=rf"method 'sample', option '{name}': .* is not {wanted}"):
        parse_options(Sample, {name: given}, "sample")


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(UserError, match=r"no option 'cuont'. Did you mean 'count'\? Its options: count, rate, flag"):
        parse_options(Sample, {"cuont": 1}, "sample")


def test_dash_and_underscore_are_the_same_but_not_twice():
    assert get_method("prefix").parse({"num-virtual-tokens": "4"}).num_virtual_tokens == 4
    with pytest.raises(UserError, match="given twice"):
        get_method("prefix").parse({"num-virtual-tokens": 4, "num_virtual_tokens": 4})


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_documented_and_its_default_can_be_written_down(name):
    method = METHODS[name]
    assert method.summary
    assert fields(method.options)
    for field in fields(method.options):
        assert len(field.metadata["help"]) > 10
        default = getattr(method.options(), field.name)
        assert getattr(method.parse({field.name: str(default)}), field.name) == default


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("lora", {"r": 0}, "r must be at least 1"),
        ("lora", {"alpha": 0}, "alpha must be at least 1"),
        ("lora", {"dropout": 1}, "dropout must lie in"),
        ("lora", {"b_lr_factor": 0}, "b_lr_factor must be a number above 0"),
        ("p-adapter", {"p_mu_lr_factor": "nan"}, "p_mu_lr_factor must be a number above 0"),
        ("prefix", {"num_virtual_tokens": 0}, "num_virtual_tokens must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(name, values, message):
    with pytest.raises(UserError, match=message):
        get_method(name).parse(values)


def test_the_order_of_a_unions_members_does_not_matter():
    """Python may list them either way, whichever union was written first in the process."""
    for kind in (str | list[str] | None, list[str] | str | None):
        cls = make_dataclass("Either", [("names", kind, option(None, help="Names."))])
        assert parse_options(cls, {"names": "a|b"}, "sample").names == "a|b"
        assert parse_options(cls, {"names": ["a", "b"]}, "sample").names == ["a", "b"]
    for kind in (int | list[int], list[int] | int):
        cls = make_dataclass("Either", [("layers", kind, option(0, help="Layers."))])
        assert parse_options(cls, {"layers": "7"}, "sample").layers == 7
        assert parse_options(cls, {"layers": "7, 8"}, "sample").layers == [7, 8]
