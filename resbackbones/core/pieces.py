"""An input larger than memory, read in pieces with the outcome of the whole.

What a net makes of a position depends on those around it as far as the net reaches. A piece that
reads so much more than its own, and begins where every feature of the net has a position, gives its
own positions what the whole input gives them.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

from resbackbones.errors import InputError

Reach = tuple[float, float]  # input positions before and after its own that a position depends on
Part = tuple[slice, ...]  # of an input: a slice per axis


class Approximate(UserWarning):
    """An input was read in pieces that do not give what the whole gives."""


class Pieces:
    """How inputs are cut.

    Args:
        reach: of the net, per axis; infinite where something looks at all positions, or nobody has
            counted.
        step: what pieces begin at multiples of, per axis: the coarsest stride.
        size: positions of what is each one's own, along every axis, rounded up to a multiple of
            `step`.
        overlap: positions that are read before and after these; None takes those within reach.
        name, unit: what errors call a piece, which is also the argument of its size, and positions.
        why: may keep this net from being local; for an error too.

    Attributes:
        is_exact: whether pieces give what the whole gives.

    Raises:
        InputError: a size of less than one position or a negative overlap; no overlap where the
            reach is infinite.

    >>> pieces = Pieces([(1, 1)], [2], 4)
    >>> for (read,), (own,) in pieces.cut([10]):
    ...     print(read.start, read.stop, own.start, own.stop)
    0 6 0 4
    2 10 4 8
    6 10 8 10
    """

    def __init__(
        self,
        reach: Sequence[Reach],
        step: Sequence[int],
        size: int,
        overlap: int | None = None,
        *,
        name: str = "size",
        unit: str = "positions",
        why: str = "looks at the whole input",
    ) -> None:
        for argument, value, low in ((name, size, 1), ("overlap", overlap, 0)):
            if value is not None and (type(value) is not int or value < low):
                raise InputError(
                    f"{argument}={value!r} is no number of {unit}; give a whole one from {low} up"
                )
        sides = list(itertools.chain(*reach))
        if overlap is None and not all(map(math.isfinite, sides)):
            raise InputError(
                f"this net {why}, so that no {name} gives what the whole gives; build it without, "
                f"or give overlap= in {unit} for an approximation"
            )
        self.step, self.size = step, size
        self.margins = reach if overlap is None else [(overlap, overlap)] * len(reach)
        self.is_exact = overlap is None or overlap >= max(sides)

    @property
    def sides(self) -> list[tuple[int, int, int]]:
        """Per axis, the positions of a piece in the middle: what it reads before its own, its own,
        and what it reads behind, all of them multiples of `step`."""
        return [
            (_up(before, unit), _up(self.size, unit), _up(after, unit))
            for (before, after), unit in zip(self.margins, self.step, strict=True)
        ]

    def cut(self, lengths: Sequence[int]) -> Iterator[tuple[Part, Part]]:
        """The pieces of an input of these lengths, one per axis: what each reads, and what of it is
        its own."""
        axes = [
            [
                (
                    slice(max(0, start - before), min(length, start + own + after)),
                    slice(start, min(length, start + own)),
                )
                for start in range(0, length, own)
            ]
            for length, (before, own, after) in zip(lengths, self.sides, strict=True)
        ]
        for parts in itertools.product(*axes):
            yield tuple(read for read, _ in parts), tuple(own for _, own in parts)


def _up(value: float, unit: int) -> int:
    """The next multiple of a unit."""
    return math.ceil(value / unit) * unit
