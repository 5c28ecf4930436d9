"""Regular expressions that a card brings along, none of which may take long on any name.

Python's engine tries one way through a pattern after another. So the ways are counted beforehand, for the longest name.
"""

import re
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from mmfuse.errors import UserError

LONGEST_NAME = 512
"""Characters of the longest name that is matched, twice what a file's name may have."""

_MOST_WAYS = (LONGEST_NAME + 1) ** 3


def check_pattern(pattern: str, place: str) -> None:
    """Raises a UserError for what is no regular expression, or could be matched in too many ways: over 135 million."""
    try:
        re.compile(pattern)
        ways = _ways(_parser.parse(pattern))
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{place}: {pattern!r} is not a regular expression: {error}; mend it") from None
    if ways > _MOST_WAYS:
        fix = "repeat at most three parts, and none that repeats or branches inside"
        raise UserError(f"{place}: {pattern!r} could take for ever; {fix}")


def matches(pattern: str, name: str) -> bool:
    """Returns whether a checked pattern fits a name as a whole; too long a name fits none."""
    return len(name) <= LONGEST_NAME and re.fullmatch(pattern, name) is not None


def _ways(parsed: Any) -> int:
    """Returns in how many ways a parsed pattern may be matched at most, one more than are allowed for all beyond."""
    ways = 1
    for operation, value in parsed:
        ways = min(ways * _ways_of(str(operation), value), _MOST_WAYS + 1)
    return ways


def _ways_of(operation: str, value: Any) -> int:
    match operation:
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, body = value
            most = min(int(most), LONGEST_NAME)
            return int((most - least + 1) * _ways(body) ** most) if most >= least else 1
        case "BRANCH":
            return sum(map(_ways, value[1]))
        case "SUBPATTERN":
            return _ways(value[3])
        case "ASSERT" | "ASSERT_NOT":
            return _ways(value[1])
        case "ATOMIC_GROUP":
            return _ways(value)
        case "GROUPREF_EXISTS":
            return _ways(value[1]) + (_ways(value[2]) if value[2] else 1)
    return 1
