"""The parts a net consists of, block by block, and how far they read together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from resbackbones.core.layers import Part, last


@dataclass(frozen=True)
class Block:
    """The parts of one residual block. `pre` stands before the branch, and before a shortcut that
    projects; an empty shortcut is the identity, and None is none at all."""

    pre: tuple[Part, ...]
    branch: tuple[Part, ...]
    shortcut: tuple[Part, ...] | None


@dataclass(frozen=True)
class Plan:
    """The parts of a whole net: the stem, per stage what comes before its blocks and the blocks,
    and what comes after the last stage."""

    stem: tuple[Part, ...]
    stages: tuple[tuple[tuple[Part, ...], tuple[Block, ...]], ...]
    tail: tuple[Part, ...]

    def parts(self) -> Iterator[Part]:
        """Every part, in the order they run; blocks that repeat one before are left out."""
        yield from self.stem
        for down, blocks in self.stages:
            yield from down
            for block in dict.fromkeys(blocks):
                yield from (*block.pre, *block.branch, *(block.shortcut or ()))
        yield from self.tail

    def reaches(
        self, reach: Callable[[Part], tuple[float, float]]
    ) -> tuple[tuple[float, float], ...]:
        """Input positions before and after its own (its index times its stride) that a position of
        each feature depends on, on the last axis.

        Args:
            reach: positions before and after its own that a part reads.
        """
        Field = tuple[float, float, int]  # before and after, in input positions, and one step here

        def along(field: Field, parts: tuple[Part, ...]) -> Field:
            before, after, step = field
            for part in parts:
                behind, ahead = reach(part)
                before, after = before + behind * step, after + ahead * step
                step *= last(part.stride)
            return before, after, step

        field = along((0, 0, 1), self.stem)
        reached = []
        for down, blocks in self.stages:
            field = along(field, down)
            for block in blocks:
                before, after, step = along(along(field, block.pre), block.branch)
                around = along(field, block.shortcut or ())
                field = max(before, around[0]), max(after, around[1]), step
            reached.append(field[:2])
        reached[-1] = along(field, self.tail)[:2]
        return tuple(reached)
