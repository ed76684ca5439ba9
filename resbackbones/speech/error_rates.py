"""How much of what was said is written down wrong, and what is taken for what."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Self

from torch import Tensor

from resbackbones.metrics import Mean

KINDS = ("hits", "substitutions", "deletions", "insertions")


def _aligned(found: Any) -> Iterator[tuple[str | None, str | None]]:
    """The pairs (said, written) of an output of jiwer, None where nothing stands on a side."""
    for said, written, chunks in zip(
        found.references, found.hypotheses, found.alignments, strict=True
    ):
        for chunk in chunks:
            yield from zip_longest(
                said[chunk.ref_start_idx : chunk.ref_end_idx],
                written[chunk.hyp_start_idx : chunk.hyp_end_idx],
            )


class ErrorRates:
    """Errors of transcripts, as shares of what was said: `cer` of characters, spaces among them,
    and `wer` of words; the share `empty` of the recordings in which something was said of which
    nothing is written; and the mean `loss` (nats per symbol, and per end of a recording).

    A rate is the number of substitutions, deletions and insertions, as jiwer counts them, over all
    recordings, divided by the number of characters or words that were said: it may be above one.
    Not a number as long as nothing was said.

    Args:
        read: from a batch and what the model made of it to the pairs (said, written).
        weight: what a batch's loss is a mean over.
        beside: the same of other ways to read: "beam" adds `cer_beam` and `wer_beam`.

    Attributes:
        characters, words: how often each was written so: a Counter of pairs (said, written), None
            where nothing stands on a side.
        spoken, empty: recordings in which something was said, and those of which nothing is
            written.

    >>> rates = ErrorRates.of([("a cat", "a cut"), ("no", "no")])
    >>> rates.compute()
    {'cer': 0.14285714285714285, 'wer': 0.3333333333333333, 'empty': 0.0}
    >>> rates.most_confused()
    [('a', 'u', 1)]
    """

    def __init__(
        self,
        read: Callable[[Any, Mapping[str, Any]], Sequence[tuple[str, str]]] | None = None,
        weight: Callable[[Mapping[str, Any]], Tensor | int] | None = None,
        beside: Mapping[str, Self] | None = None,
    ) -> None:
        self.read = read
        self.beside = dict(beside or {})
        self.loss = None if weight is None else Mean(weight=weight)
        self.characters: Counter[tuple[str | None, str | None]] = Counter()
        self.words: Counter[tuple[str | None, str | None]] = Counter()
        self.spoken = self.empty = 0

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]]) -> Self:
        """Of pairs of what was said and what is written."""
        rates = cls()
        rates.count(pairs)
        return rates

    def update(self, output: Any, batch: Mapping[str, Any]) -> None:
        assert self.read is not None
        self.count(self.read(output, batch))
        if self.loss is not None and output.loss is not None:
            self.loss.update(output, batch)
        for other in self.beside.values():
            other.update(output, batch)

    def count(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Count pairs of what was said and what is written, both normalised."""
        import jiwer

        if not pairs:
            return
        said, written = ([pair[side] for pair in pairs] for side in (0, 1))
        self.characters.update(_aligned(jiwer.process_characters(said, written)))
        self.words.update(_aligned(jiwer.process_words(said, written)))
        self.spoken += sum(map(bool, said))
        self.empty += sum(bool(one) and not other for one, other in pairs)

    def merge(self, other: Self) -> None:
        self.characters += other.characters
        self.words += other.words
        self.spoken += other.spoken
        self.empty += other.empty
        if self.loss is not None and other.loss is not None:
            self.loss.merge(other.loss)
        for name, counted in other.beside.items():
            self.beside[name].merge(counted)

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process: counts, and no language model to read by."""
        return {**self.__dict__, "read": None}

    def kinds(self, of: str = "characters") -> dict[str, int]:
        """How many of "characters" or "words" are hits, substitutions, deletions, insertions."""
        found = dict.fromkeys(KINDS, 0)
        for (said, written), count in getattr(self, of).items():
            wrong = "deletions" if written is None else "substitutions"
            wrong = "insertions" if said is None else wrong
            found["hits" if said == written else wrong] += count
        return found

    def most_confused(
        self, most: int = 5, of: str = "characters"
    ) -> list[tuple[str | None, str | None, int]]:
        """The errors that are most frequent: what was said (None where nothing was), what is
        written (None where nothing is), and how often."""
        wrong = [(*pair, n) for pair, n in getattr(self, of).items() if pair[0] != pair[1]]
        return sorted(wrong, key=lambda each: (-each[2], str(each[:2])))[:most]

    def confused(self, most: int = 5) -> Iterator[str]:
        """The same of characters, in words."""
        for said, written, count in self.most_confused(most):
            what = f"{said!r} left out" if written is None else f"{written!r} put in"
            if said is not None and written is not None:
                what = f"{said!r} taken for {written!r}"
            yield f"{what} ({count:,})"

    def compute(self) -> dict[str, float]:
        figures = {}
        for name, of in (("cer", "characters"), ("wer", "words")):
            hits, *wrong = self.kinds(of).values()
            said = hits + wrong[0] + wrong[1]
            figures[name] = sum(wrong) / said if said else math.nan
        figures["empty"] = self.empty / self.spoken if self.spoken else math.nan
        for name, other in self.beside.items():
            found = other.compute()
            figures |= {f"{figure}_{name}": found[figure] for figure in ("cer", "wer")}
        counted = self.loss is not None and bool(self.loss.sums["weight"])
        return figures | self.loss.compute() if counted and self.loss is not None else figures
