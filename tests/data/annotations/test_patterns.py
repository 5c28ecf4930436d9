"""Patterns of a card end soon on any name, or are refused."""

import re

import pytest

from mmfuse.data.annotations.patterns import LONGEST_NAME, check_pattern, matches
from mmfuse.errors import UserError


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+", "(a|a)*b", "(a|ab)*", "(.*)*", "(a?){60}", "a?" * 40, "((a{1,9}){1,9}){1,9}", ".*.*.*.*x",
        "(?=(a+)+b)a", "(?>a+)+", "(a*?)*?", "(?:(a+)|b)+", "(a)?(?(1)a+|b+)" * 3, "(a+){2,4}",
    ],
)  # fmt: skip
def test_what_could_take_for_ever_is_refused(pattern):
    re.compile(pattern)
    with pytest.raises(UserError, match=r"^only: '.*' could take for ever; repeat at most three parts"):
        check_pattern(pattern, "only")


@pytest.mark.parametrize("pattern", ["[", "(", "a**", "(?P<x>a)(?P<x>b)", "a{3,1}", "a{99999999999999999999}"])
def test_what_is_no_pattern_is_named(pattern):
    with pytest.raises(UserError, match=r"^only: '.*' is not a regular expression: .*; mend it"):
        check_pattern(pattern, "only")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("", ""),
        (".*/Train/.*", "Day/Train/7"),
        ("(?!set02/V004|set04/V001).*", "set03/V000/I1"),
        ("set(03|04|05|09|10|11)/.*", "set11/V000/I1"),
        (r".*\.(?i:bmp|jpe?g|png|tiff?)", "a.JPEG"),
        ("[0-9]+-[0-9]+_.*", "12-7_b"),
        ("x*x*x*", "xx"),
        ("[a-z]{3}(_[a-z]{2})?", "abc_de"),
        (r"(.)\1", "aa"),
    ],
)
def test_what_people_write_is_allowed_and_matches_the_whole_name(pattern, name):
    check_pattern(pattern, "only")
    assert matches(pattern, name)
    assert not matches(pattern, name + "\n")


def test_the_slowest_that_is_allowed_ends():
    pattern = "a*a*a*[bc]"
    check_pattern(pattern, "only")
    assert not matches(pattern, "a" * LONGEST_NAME)
    assert not matches("a*", "a" * (LONGEST_NAME + 1))
