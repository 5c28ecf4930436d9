"""The one exception for what a user can mend, and the words for values that are not allowed and misspelt names."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave; its message is one line that names the value, the place and the fix.

    The command line prints it and exits with 2.
    """


def unknown_name(name: object, known: Iterable[str], what: str) -> str:
    """Returns the message for a name that isn't one of `known`, with the nearest one where there is one."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    fix = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
    return f"{name!r} is not a known {what}; {fix}"


def require(holds: object, place: str, value: object, fix: str) -> None:
    """Raises a UserError that the value at `place` is not allowed, unless the rule `holds`."""
    if not holds:
        shown = list(value) if isinstance(value, tuple) else value
        raise UserError(f"{place}: {shown!r} is not allowed; {fix}")
