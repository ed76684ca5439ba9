"""Which words a keyword spotter tells apart: figures of one protocol say nothing of another."""

from collections.abc import Sequence
from dataclasses import replace

from tasks._recipe import Experiment, protocol

TEN = frozenset("yes no up down left right on off stop go".split())


def protocol_of(names: Sequence[str]) -> str:
    """Speech Commands (Warden 2018) has two protocols; any other classes are words of one's own.

    >>> protocol_of([*TEN, "_silence_", "_unknown_"])
    "Speech Commands' 12 classes (10 words, unknown, silence)"
    >>> protocol_of(["hey robot", "other"])
    'own words, 2 classes'
    """
    words = {name.strip("_").lower() for name in names}
    if len(names) == 12 and words == TEN | {"silence", "unknown"}:
        return "Speech Commands' 12 classes (10 words, unknown, silence)"
    if len(names) == 35 and words >= TEN | {"backward", "visual", "zero"}:
        return "Speech Commands' 35 words"
    return f"own words, {len(names)} classes"


def named(made: Experiment, synthesised: int = 0) -> Experiment:
    """The same, its protocol named in what is said and recorded: which words, and how many clips
    of each that training hears are synthesised."""
    which = protocol_of(made.splits.train.target.names)
    if synthesised:
        which += f", {synthesised:,} synthesised clips of each word in training"
    found = f"{which[0].upper()}{which[1:]}. {made.splits.found()}\n{made.found}"
    return replace(made, protocol=f"{which}; {protocol(made)}", found=found)
