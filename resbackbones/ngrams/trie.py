"""Many sequences of numbers that share their beginnings, in one sorted table."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor


class Arcs:
    """Ways from nodes to nodes by symbols.

    Args:
        keys: of each way the node that it leaves times `width`, plus its symbol, in rising order,
            int64 `(A,)`.
        width: symbols there are.
        targets: where each leads, int64 `(A,)`.
        size: nodes there are; the number `size` itself stands for a place outside, with no way out.
    """

    def __init__(self, keys: Tensor, width: int, targets: Tensor, size: int) -> None:
        self.keys, self.width, self.targets, self.size = keys, width, targets, size
        # Those of node n are the keys from firsts[n] to firsts[n + 1].
        nodes = torch.arange(size + 2, device=keys.device)
        self.firsts = torch.searchsorted(keys, nodes * width)

    def __len__(self) -> int:
        return self.size

    def find(self, nodes: Tensor, symbols: Tensor) -> Tensor:
        """Where a symbol `(*)` leads from each node `(*)`; -1 where nowhere."""
        wanted = nodes * self.width + symbols
        if not len(self.keys):
            return torch.full_like(wanted, -1)
        place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == wanted, self.targets[place], -1)

    def children(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All ways from some nodes `(N,)`: of each the place of its node among the given, its
        symbol, and where it leads, int64 `(C,)` each."""
        firsts, counts = self.firsts[nodes], self.firsts[nodes + 1] - self.firsts[nodes]
        rows = torch.repeat_interleave(counts)
        shifts = firsts - counts.cumsum(0) + counts
        places = torch.arange(len(rows), device=rows.device) + shifts[rows]
        return rows, self.keys[places] % self.width, self.targets[places]


class Trie(Arcs):
    """A tree of sequences. Node 0 is the root; each other node is a place in `keys` plus one, and
    parents come before their children.

    >>> trie, ends = Trie.of([[0, 1], [0, 2], [3]], width=4)
    >>> ends.tolist(), len(trie)
    ([3, 4, 2], 5)
    >>> trie.find(torch.tensor([0, 1, 1]), torch.tensor([3, 2, 3])).tolist()
    [2, 4, -1]
    """

    def __init__(self, keys: Tensor, width: int) -> None:
        nodes = torch.arange(1, len(keys) + 1, device=keys.device)
        super().__init__(keys, width, nodes, len(keys) + 1)

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], width: int) -> tuple[Self, Tensor]:
        """The tree of these sequences, and the node that each ends at, int64 `(S,)`."""
        lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
        symbols = torch.tensor([s for sequence in sequences for s in sequence], dtype=torch.int64)
        starts = lengths.cumsum(0) - lengths
        ends, keys, nodes = torch.zeros_like(lengths), [lengths[:0]], 1
        for depth in range(int(lengths.max()) if len(lengths) else 0):
            deep = (lengths > depth).nonzero()[:, 0]
            wanted = ends[deep] * width + symbols[starts[deep] + depth]
            found, places = wanted.unique(return_inverse=True)
            keys.append(found)
            ends[deep] = places + nodes
            nodes += len(found)
        return cls(torch.cat(keys), width), ends

    def to(self, device: torch.device) -> Self:
        return type(self)(self.keys.to(device), self.width)


__all__: Sequence[str] = ("Arcs", "Trie")
