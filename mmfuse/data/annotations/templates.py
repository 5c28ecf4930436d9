"""Templates of file names: `{name}` stands for a part without a slash, `{name:2}` for exactly two characters of it."""

import glob
import re
from collections.abc import Mapping
from functools import cache
from string import Formatter

from mmfuse.errors import UserError

_MOST_FREE = 3


def placeholders(template: str) -> dict[str, int | None]:
    """Returns the names in a template and their lengths in characters, None where any length fits.

    Raises:
        UserError: a brace isn't closed, or a placeholder is more than a name and a length.
    """
    return {name: length for _, name, length in _parts(template) if name}


def fill(template: str, values: Mapping[str, str]) -> str:
    """Returns the text of a template whose placeholders stand for `values`."""
    return "".join(literal + (values[name] if name else "") for literal, name, _ in _parts(template))


def wildcard(template: str, values: Mapping[str, str]) -> str:
    """Returns the glob pattern of all texts that fit a template in which `values` are already known."""
    text = "".join(
        glob.escape(literal) + ("" if not name else glob.escape(values[name]) if name in values else "*")
        for literal, name, _ in _parts(template)
    )
    return re.sub(r"\*{2,}", "*", text)


def matcher(template: str, values: Mapping[str, str], lengths: Mapping[str, int | None]) -> re.Pattern[str]:
    """Returns the pattern, a group for each placeholder, of a template in which `values` are already known.

    `lengths` holds for placeholders that don't say theirs.
    """
    text, seen = "", set()
    for literal, name, length in _parts(template):
        text += re.escape(literal)
        if name in values:
            text += re.escape(values[name])
        elif name in seen:
            text += f"(?P={name})"
        elif name:
            seen.add(name)
            length = length or lengths.get(name)
            text += f"(?P<{name}>[^/]{{{length}}})" if length else f"(?P<{name}>[^/]+)"
    return re.compile(text)


@cache
def _parts(template: str) -> tuple[tuple[str, str, int | None], ...]:
    """Returns (literal text, placeholder after it or nothing, its length)."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{template!r} is not a template: {error}; write names in braces, such as {{id}}") from None
    for _, name, length, conversion in parts:
        good = name is None or (
            re.fullmatch(r"[a-z]\w*", name) and not conversion and re.fullmatch(r"\d*", length or "")
        )
        if not good:
            raise UserError(f"{template!r}: {{{name}}} is not a placeholder; write a name in braces, such as {{id}}")
    seen, beside, free = set(), False, 0
    for literal, name, length, _ in parts:
        beside = beside and "/" not in literal
        if name and not length and name not in seen:
            free += 1 if beside else 0
            beside = True
            seen.add(name)
    if free > _MOST_FREE:
        fix = "part them by a slash, or give their lengths, such as {id:6}"
        raise UserError(f"{template!r}: has too many placeholders in one name to tell where each ends; {fix}")
    return tuple((literal, name or "", int(length) if length else None) for literal, name, length, _ in parts)
