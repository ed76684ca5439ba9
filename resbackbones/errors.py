"""The one exception that means "the input is at fault, and here is what to do"."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, told in one sentence: what was given, what was expected, what to do.

    Recipes print the sentence and exit with code 2; a traceback would add nothing to it.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name `name` comes closest to, for the end of an error sentence.

    >>> nearest("resnet5O", ["resnet50", "dpcnn"])
    "did you mean 'resnet50'?"
    >>> nearest("zzz", ["relu", "silu"])
    "known: 'relu', 'silu'"
    """
    known = list(known)
    if close := difflib.get_close_matches(str(name), known, n=1):
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(map(repr, known))
