"""Counted n-grams: what a language model of convolutions has to beat, and what it can ask.

On texts of a few million characters they are fitted in seconds and tell the next one better than
most nets from scratch do, and they err elsewhere. A `ResidualForCausalLM` that was given a
`KneserNey` therefore answers by both. The net is trained by itself. Of sentences, it is what
`BackoffModel.fit` makes the tables of an ARPA file from.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from resbackbones.errors import InputError

ORDERS = range(2, 11)  # that `fit_best` tries, until one is no better than the one before
PIECE = 2**18  # tokens of a long row that are told at once
DISCOUNTS = 0.5, 1.0, 1.5  # where the counts are too few to tell them, as KenLM has them


class KneserNey(nn.Module):
    """Interpolated n-grams with modified Kneser-Ney discounts (Chen & Goodman 1999, section 3).

    Each gram of n tokens has a number. What is kept of it is the number of its first n - 1 tokens
    times `vocab_size`, plus its last token, in rising order: its number is its place there.

    Args:
        vocab_size: tokens there are, V.
        sizes: how many grams of one token, of two, … there are; as many numbers as the order.
        start: the token that stands before each sentence and is itself never told; None where the
            tokens are one running text.

    Attributes:
        grams: all of them, by the number of their tokens, int64 `(G,)`.
        shares: of each, the part of its context's probability that it has by its own count.
        rests: of each but the longest, and first of no token at all, the part of the probability
            that comes from a context one token shorter.

    >>> tokens = torch.tensor([0, 1, 2] * 9)
    >>> ngrams = KneserNey.fit(tokens, vocab_size=4, order=2)
    >>> probabilities, known = ngrams(torch.tensor([[1], [2], [3]]), torch.arange(4))
    >>> probabilities.argmax(-1)[:2].tolist(), known.tolist()
    ([2, 0], [1, 1, 0])
    """

    def __init__(self, vocab_size: int, sizes: Sequence[int], start: int | None = None) -> None:
        super().__init__()
        self.vocab_size, self.sizes, self.start = vocab_size, list(sizes), start
        self.grams: Tensor
        self.shares: Tensor
        self.rests: Tensor
        self.register_buffer("grams", torch.zeros(sum(sizes), dtype=torch.int64))
        self.register_buffer("shares", torch.zeros(sum(sizes)))
        self.register_buffer("rests", torch.ones(1 + sum(sizes[:-1])))

    @property
    def order(self) -> int:
        """Tokens of the longest grams."""
        return len(self.sizes)

    @property
    def uniform(self) -> float:
        """The probability of each token where nothing is counted."""
        return 1 / (self.vocab_size - (self.start is not None))

    @classmethod
    def fit(cls, tokens: Tensor, vocab_size: int, order: int, start: int | None = None) -> Self:
        """Count the grams of a row of tokens `(N,)`; the same row gives the same model.

        Args:
            tokens: a running text, or sentences one behind the other.
            vocab_size: tokens there are, V.
            order: tokens of the longest grams.
            start: the token that every sentence begins with; no gram reaches over it.

        Raises:
            InputError: fewer tokens than the longest grams have, an order below 1, or a token that
                the vocabulary does not have.
        """
        if not 1 <= order <= len(tokens):
            raise InputError(
                f"{len(tokens)} tokens have no n-grams of {order}; give an order from 1 to as many"
            )
        tokens = tokens.cpu().long()
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            raise InputError(
                f"tokens run from {int(tokens.min())} to {int(tokens.max())}, but a vocabulary of "
                f"{vocab_size} ends at {vocab_size - 1}; give that of the tokenizer"
            )
        levels = list(_levels(tokens, vocab_size, order, start))
        if not len(levels[-1][0]):
            raise InputError(
                f"no sentence is long enough for n-grams of {order}; give an order up to "
                f"{sum(bool(len(grams)) for grams, _ in levels)}"
            )
        made = cls(vocab_size, [len(grams) for grams, _ in levels], start)
        shares, rests, contexts = [], [], 1
        for grams, counts in levels:
            before = torch.div(grams, vocab_size, rounding_mode="floor")
            discounts = _discounts(counts)[counts.clamp(max=3)]
            whole = torch.bincount(before, counts.double(), contexts)
            taken = torch.bincount(before, discounts, contexts)
            shares.append(((counts - discounts) / whole[before]).nan_to_num(0))
            rests.append((taken / whole).nan_to_num(1))
            contexts = len(grams)
        made.grams = torch.cat([grams for grams, _ in levels])
        made.shares, made.rests = torch.cat(shares).float(), torch.cat(rests).float()
        return made

    @classmethod
    def fit_best(cls, tokens: Tensor, vocab_size: int, judges: Tensor) -> Self:
        """The order from 2 to 10 under which the tokens of `judges` are likeliest."""
        best, least = cls.fit(tokens, vocab_size, 1), float("inf")
        for order in ORDERS:
            if order > len(tokens):
                break
            made = cls.fit(tokens, vocab_size, order)
            if (nats := made.nats(judges)) >= least:
                break
            best, least = made, nats
        return best

    def forward(self, history: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """How likely each candidate comes next.

        Args:
            history: the `order - 1` tokens before, the nearest last, `(*, order - 1)`; below 0
                where there is none.
            candidates: tokens, `(*, J)`, or `(J,)` the same ones everywhere.

        Returns:
            Probabilities `(*, J)`, and how many tokens of the history it knew, int64 `(*,)`.
        """
        grams, shares = self.grams.split(self.sizes), self.shares.split(self.sizes)
        rests = self.rests.split([1, *self.sizes[:-1]])
        candidates = candidates.expand(*history.shape[:-1], candidates.shape[-1])
        place, hit = self._find(grams[0], candidates)
        found = shares[0][place] * hit + rests[0] * self.uniform
        if self.start is not None:
            found = found.masked_fill(candidates == self.start, 0)
        met = [torch.zeros_like(candidates[..., :0].sum(-1), dtype=torch.bool)]
        real = history >= 0
        inside = torch.zeros_like(history)  # the gram of so many tokens that ends at each; or -1
        for length in range(1, self.order):
            before = inside if length == 1 else inside[..., :-1]
            wanted = before * self.vocab_size + history[..., length - 1 :]
            place, hit = self._find(grams[length - 1], wanted)
            inside = place.where(hit & real[..., length - 1 :], -1)
            context = inside[..., -1:]
            place, hit = self._find(grams[length], context * self.vocab_size + candidates)
            longer = shares[length][place] * hit + rests[length][context] * found
            found = longer.where(context >= 0, found)
            met.append(context[..., 0] >= 0)
        return found, torch.stack(met).sum(0)

    @staticmethod
    def _find(grams: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The number of each gram, by that of its tokens, and whether it is there; one that begins
        with the gram -1 is below 0, and so is not."""
        place = torch.searchsorted(grams, wanted.contiguous()).clamp(max=len(grams) - 1)
        return place, grams[place] == wanted

    def history(self, tokens: Tensor, before: Tensor | None = None) -> Tensor:
        """What `forward` asks for at each of these tokens, `(B, T, order - 1)`, the token itself
        last.

        Args:
            tokens: `(B, T)`, below 0 where there is none.
            before: the `order - 1` before them, `(B, order - 1)`; None where there are none.
        """
        size = self.order - 1
        if before is None:
            before = tokens.new_full((len(tokens), size), -1)
        return (
            torch.cat([before, tokens], 1)[:, 1:].unfold(1, size, 1)
            if size
            else (tokens[..., None][..., :0])
        )

    def nats(self, tokens: Tensor) -> float:
        """Mean surprise at each token of a row `(N,)` but the first.

        Raises:
            InputError: there is but one, or none.
        """
        if len(tokens) < 2:
            raise InputError(f"a text of {len(tokens)} tokens has none to tell; give 2 or more")
        total = 0.0
        for start in range(0, len(tokens) - 1, PIECE):
            before = max(0, start - self.order)  # what the first of the piece are told by
            row = tokens[before : start + PIECE + 1].long()[None]
            found, _ = self(self.history(row[:, :-1]), row[:, 1:, None])
            total -= float(found[0, start - before :].double().log().sum())
        return total / (len(tokens) - 1)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Called by `to`, `half` and the like: probabilities of half precision would not sum to
        1."""
        exact = self.shares, self.rests
        super()._apply(fn, recurse)
        if not exact[0].is_meta:
            self.shares, self.rests = (each.to(self.grams.device) for each in exact)
        return self

    def extra_repr(self) -> str:
        return f"order={self.order}, grams={sum(self.sizes):,}"


def _levels(
    tokens: Tensor, vocab_size: int, order: int, start: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The grams of one token, of two, … and how often each counts: the longest, and those that
    begin a sentence, as often as they stand there, a shorter one once for each token that it stands
    behind; the start itself is never told, and so counts nothing."""
    start = -1 if start is None else start  # that no token is
    grams, numbers, stands = tokens.unique(return_inverse=True, return_counts=True)
    inner, begins = tokens != start, grams == start  # a gram has the start in front or not at all
    stands = stands.masked_fill(begins, 0)
    for length in range(1, order):
        real = (numbers[:-1] >= 0) & inner[length:]
        longer = (numbers[:-1] * vocab_size + tokens[length:])[real]
        further, others, counts = longer.unique(return_inverse=True, return_counts=True)
        somewhere = torch.empty_like(further)
        somewhere[others] = real.nonzero()[:, 0]
        behind = numbers[somewhere + 1]  # each of the longer ones, without its first token
        behind = torch.bincount(behind, minlength=len(grams))
        yield grams, torch.where(begins, stands, behind)
        begins = begins[torch.div(further, vocab_size, rounding_mode="floor")]
        grams, stands = further, counts
        numbers = torch.full_like(real, -1, dtype=torch.int64).masked_scatter(real, others)
    yield grams, stands


def _discounts(counts: Tensor) -> Tensor:
    """What is taken off a count of 0, 1, 2, and 3 or more (equation 26)."""
    found = [int((counts == count).sum()) for count in (1, 2, 3, 4)]
    taken: tuple[float, ...] = DISCOUNTS
    if all(found):
        share = found[0] / (found[0] + 2 * found[1])
        formula = [k - (k + 1) * share * found[k] / found[k - 1] for k in (1, 2, 3)]
        if min(formula) > 0:
            taken = tuple(formula)
    return torch.tensor([0.0, *taken], dtype=torch.float64)
