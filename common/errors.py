"""Errors that a user can mend. The command line prints the sentence and exits with code 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """One clear sentence: what is wrong, where, and what would be right."""


def unknown(kind: str, name: str, choices: Iterable[str], more: str = "") -> UserError:
    """The error for a name that is not in a table, with the names that come near it, and a sentence more."""
    choices = list(choices)
    near = get_close_matches(name, choices, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(choices)}."
    return UserError(f"Unknown {kind} {name!r}: {hint} {more}".rstrip())
