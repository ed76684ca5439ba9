"""Which rows make a batch, each way a pure function of (seed, epoch, rank, world).

Shuffled(items, size)              an epoch cut into updates of equal size
Bucketed(lengths, size, budget)    items of like length together, so that little is padding
InOrder(items, size)               evaluation: every row once, by length where there are lengths
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from resbackbones.errors import InputError

BIN = 1.08  # a bin's upper end over its lower: what lengths within a bucket may differ by


class Batches(Protocol):
    """The rows of each batch of one rank in one epoch, from these four numbers alone.

    In training every rank gets as many batches, and as many in every epoch; `accumulate` of them
    in a row, with those of the other ranks, make an update.
    """

    def __call__(self, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]: ...


@dataclass(frozen=True)
class Shuffled:
    """All rows in an order drawn from (seed, epoch).

    An epoch is cut into `ceil(items / (size * accumulate * world))` updates of equal size, give or
    take one row, and an update into `accumulate * world` batches likewise: a small last update
    would weigh as much as a full one, and a batch of a single item breaks batch norm. So an
    update's rows depend on `size * accumulate * world` alone. One that has fewer rows than batches
    takes some twice, as no batch may be empty; otherwise each row comes exactly once.

    Args:
        items: rows there are.
        size: rows per batch, at most.
        accumulate: batches of one rank per update.

    Raises:
        InputError: a number below 1.

    >>> [len(batch) for batch in Shuffled(10, 4)(seed=0, epoch=0)]
    [4, 3, 3]
    """

    items: int
    size: int
    accumulate: int = 1

    def __post_init__(self) -> None:
        _check(items=self.items, size=self.size, accumulate=self.accumulate)

    def __call__(self, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
        together = self.accumulate * world
        updates = math.ceil(self.items / (self.size * together))
        order = np.random.default_rng((seed, epoch)).permutation(self.items)
        batches: list[np.ndarray] = []
        for update in np.array_split(order, updates):
            batches += np.array_split(np.resize(update, max(len(update), together)), together)
        return _lists(batches[rank::world])


@dataclass(frozen=True, eq=False)
class Bucketed:
    """Items of like length together, in batches that hold so many positions, padding included.

    Lengths fall into bins 8 % wide. Sorted by bin, in an order drawn from (seed, epoch) within each
    bin, the rows are cut into batches, which then are shuffled. Cuts depend on the bins alone, so
    every epoch has as many batches; they are as full as one another where the budget lets them.
    With lengths all equal this is `Shuffled`.

    Args:
        lengths: positions per item (frames, tokens), int64 `(N,)`.
        size: rows per batch, at most.
        budget: positions per batch, at most: rows times the longest. An item that is longer stands
            alone.
        accumulate: batches of one rank per update.

    Raises:
        InputError: a number below 1, or lengths that are none.

    >>> import torch
    >>> bucketed = Bucketed(torch.tensor([5, 100, 5, 99, 5, 5]), size=4, budget=200)
    >>> sorted(len(batch) for batch in bucketed(seed=0, epoch=0))
    [2, 4]
    >>> round(bucketed.padding_share(), 4)
    0.0045
    """

    lengths: Tensor
    size: int
    budget: int
    accumulate: int = 1

    def __post_init__(self) -> None:
        _check_lengths(self.lengths)
        _check(size=self.size, budget=self.budget, accumulate=self.accumulate)

    def __call__(self, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
        generator = np.random.default_rng((seed, epoch))
        lengths = self.lengths.numpy()
        bins = np.ceil(np.log(np.maximum(lengths, 1)) / math.log(BIN)).astype(np.int64)
        order = generator.permutation(len(lengths))
        order = order[np.argsort(-bins[order], kind="stable")]
        longest = np.zeros(bins.max() + 1, np.int64)
        np.maximum.at(longest, bins, lengths)
        room = _room(longest[bins[order]], self.size, self.budget)
        together = self.accumulate * world
        batches = _cut(order, room, multiple=together)
        # With fewer rows than batches in an update some come twice, as no batch may be empty.
        count = math.ceil(len(batches) / together) * together
        shuffled = np.resize(generator.permutation(len(batches)), count)
        return _lists([batches[index] for index in shuffled[rank::world]])

    def padding_share(self) -> float:
        """Share of all positions of the batches that is padding, in one epoch of one process."""
        return padding_share(self.lengths, self(0, 0))


@dataclass(frozen=True, eq=False)
class InOrder:
    """For evaluation: over all ranks every row exactly once, whatever seed and epoch.

    Rank `r` gets batches `r`, `r + world`, … of the one process's: one fewer than others, or none,
    where they do not divide.

    Args:
        items: rows there are.
        size: rows per batch, at most.
        lengths: positions per item, int64 `(N,)`: items of like length go together, longest first.
        budget: positions per batch, at most, if there are lengths; a longer item stands alone.

    Raises:
        InputError: a number below 1, or lengths that are none.

    >>> InOrder(5, 2)(seed=0, epoch=0, rank=1, world=2)
    [[2, 3]]
    >>> import torch
    >>> InOrder(4, 4, torch.tensor([1, 9, 2, 8]), budget=18)()
    [[1, 3], [2, 0]]
    """

    items: int
    size: int
    lengths: Tensor | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        _check(items=self.items, size=self.size)
        if self.budget is not None:
            _check(budget=self.budget)
        if self.lengths is not None:
            _check_lengths(self.lengths)
            if len(self.lengths) != self.items:
                raise InputError(
                    f"lengths of {len(self.lengths)} items do not tell how to batch {self.items}; "
                    "give one per item"
                )

    def __call__(
        self, seed: int = 0, epoch: int = 0, rank: int = 0, world: int = 1
    ) -> list[list[int]]:
        lengths = np.zeros(self.items, np.int64) if self.lengths is None else self.lengths.numpy()
        order = np.argsort(-lengths, kind="stable")
        return _lists(_cut(order, _room(lengths[order], self.size, self.budget))[rank::world])


def padding_share(lengths: Tensor, batches: Sequence[Sequence[int]]) -> float:
    """Share of all positions of some batches that is padding to the longest item of each.

    Args:
        lengths: positions per item, int64 `(N,)`.
        batches: the rows of each.

    >>> import torch
    >>> round(padding_share(torch.tensor([1, 3, 4]), [[0, 1], [2]]), 4)
    0.2
    """
    counts = lengths.numpy()
    held = sum(len(batch) * int(counts[batch].max()) for batch in batches)
    real = sum(int(counts[batch].sum()) for batch in batches)
    return 1 - real / held if held else 0.0


def _room(longest: np.ndarray, size: int, budget: int | None) -> np.ndarray:
    """How many rows a batch may hold if each is as long as this, at least 1."""
    if budget is None:
        return np.full(len(longest), size)
    return np.clip(budget // np.maximum(longest, 1), 1, size)


def _cut(order: np.ndarray, room: np.ndarray, multiple: int = 1) -> list[np.ndarray]:
    """`order` cut into the fewest batches whose number is a multiple, one row each at least.

    Each has at most as many rows as there is `room` in a batch that begins with its first, which
    must not fall along the order. All are filled to the same share, as far as that allows.
    """
    rows = len(order)
    needed = [0] * (rows + 1)  # batches that the rows from here on need
    for start, step in zip(range(rows - 1, -1, -1), room[::-1].tolist(), strict=True):
        needed[start] = 1 + needed[min(rows, start + step)]
    count = min(rows, math.ceil(needed[0] / multiple) * multiple)
    needs = -np.array(needed)  # rising, so that it can be searched
    filled = np.append(np.cumsum(1 / room[::-1])[::-1], 0.0)  # batches that these rows would fill
    batches, start = [], 0
    for left in range(count, 0, -1):
        equal = math.ceil(room[start] * filled[start] / left - 1e-6)
        least = int(np.searchsorted(needs, 1 - left))  # from here on the batches left suffice
        stop = max(start + equal, least)
        batches.append(order[start:stop])
        start = stop
    return batches


def _lists(batches: Sequence[np.ndarray]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name}={value} leaves nothing to batch; give a number from 1 up")


def _check_lengths(lengths: Tensor) -> None:
    """Counts of positions, one per item."""
    whole = not (lengths.is_floating_point() or lengths.is_complex())
    if lengths.ndim != 1 or not whole or not len(lengths) or int(lengths.min()) < 0:
        raise InputError(
            f"lengths of shape {tuple(lengths.shape)} and {lengths.dtype} are no counts of "
            "positions; give whole numbers from 0 up, one per item, in a tensor (N,)"
        )
