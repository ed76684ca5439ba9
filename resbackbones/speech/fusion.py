"""What a text is worth besides its sound: language models, lexica and hot words, as a beam search
asks them (shallow fusion).

All that is known of a prefix is its state, a few whole numbers; a step tells what each next token
adds to the score of many prefixes at once, and the end what it adds to have it end there. What is
added depends on the text alone, so the sum over a text's steps is the same along every path.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from resbackbones.errors import InputError
from resbackbones.ngrams import Arcs, BackoffModel, Trie
from resbackbones.ngrams.backoff import END, START, UNKNOWN
from resbackbones.speech.hypotheses import SEPARATORS, parted

SPACES = (*SEPARATORS, "|")  # what language models call the token between words


class Fusion(Protocol):
    """A part of the score that depends on the text alone.

    Attributes:
        start: the state of the empty prefix, int64 `(S,)`.
    """

    start: Tensor

    def gains(self, states: Tensor) -> Tensor:
        """What each token adds to each prefix `(N, S)`: `(N, V)`, -inf where it may not follow."""

    def after(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states of prefixes `(N, S)` longer by one token each `(N,)`, which no blank is."""

    def ends(self, states: Tensor) -> Tensor:
        """What it adds to end there, `(N,)`, -inf where that may not be."""


class TokenFusion:
    """A language model of the model's own tokens, or a bonus per token alone.

    Args:
        vocabulary: tokens there are, V; their strings where there is a language model.
        lm: None gives the bonus alone.
        weight: of its logarithms.
        bonus: per token.
    """

    def __init__(
        self, vocabulary: Sequence[str], lm: BackoffModel | None, weight: float, bonus: float
    ) -> None:
        self.lm, self.weight, self.bonus = lm, weight, bonus
        self.start = torch.zeros(1, dtype=torch.int64)
        if lm is None:
            return
        known = {token: lm.ids.get(token) for token in vocabulary[1:]}
        spaces = [lm.ids[space] for space in SPACES if space in lm.ids]
        for token in SEPARATORS:
            if token in known and known[token] is None and spaces:
                known[token] = spaces[0]
        if all(number is None for number in known.values()):
            raise InputError(
                f"none of the model's {len(known)} tokens, such as {vocabulary[-1]!r}, is known to "
                f"the language model, which tells {_some(lm)}; give one of these tokens, or one of "
                "words with lm_unit='word' (--lm-unit word)"
            )
        numbers = [known[token] for token in vocabulary[1:]]
        self.words = torch.tensor([lm.unknown, *(lm.unknown if n is None else n for n in numbers)])
        self.start = torch.tensor([lm.start])

    def gains(self, states: Tensor) -> Tensor:
        if self.lm is None:
            return torch.tensor(self.bonus, device=states.device)
        words = self.words.to(states.device)
        return self.weight * self.lm.rows(states[:, 0], words) + self.bonus

    def after(self, states: Tensor, tokens: Tensor) -> Tensor:
        if self.lm is None:
            return states
        words = self.words.to(states.device)
        return self.lm.score(states[:, 0], words[tokens])[1][:, None]

    def ends(self, states: Tensor) -> Tensor:
        if self.lm is None:
            return torch.zeros(len(states), device=states.device)
        return self.weight * _ending(self.lm, states[:, 0])


class WordFusion:
    """What is known of words: a language model, which tells each when it ends; a lexicon, beside
    whose words there are none; hot words, each part of which already earns its part of the bonus,
    which is lost again where the word comes to be another.

    A word ends where a token begins another, and at the end. Tokens of any length will do: words
    are spelled in characters, and each token is a way over those that it writes.

    Args:
        vocabulary: the tokens' strings, V.
        lm: of words.
        weight, bonus: of its logarithms, and per word.
        unknown: per word that it does not know, lost as soon as a word can come to be no other.
        lexicon: the words there are; None allows all.
        hot_words: the bonus of each.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        lm: BackoffModel | None,
        weight: float,
        bonus: float,
        unknown: float,
        lexicon: Iterable[str] | None,
        hot_words: Mapping[str, float],
    ) -> None:
        self.lm, self.weight, self.bonus = lm, weight, bonus
        self.strict = lexicon is not None
        parts = [parted(token) for token in vocabulary[1:]]
        symbols = {c: n for n, c in enumerate(sorted({c for _, piece in parts for c in piece}))}
        words = _checked("the lexicon's word", lexicon or (), symbols)
        heated = _checked("the hot word", hot_words, symbols)
        if lexicon is not None:
            if foreign := [word for word in heated if word not in set(words)]:
                raise InputError(
                    f"the hot word {foreign[0]!r} is not in the lexicon, which allows no other; "
                    "add it there"
                )
        else:
            words = heated
            if lm is not None:
                told = [w for w in lm.vocabulary if w not in (UNKNOWN, START, END)]
                spelled = [word for word in told if word and set(word) <= symbols.keys()]
                if not spelled:
                    raise InputError(
                        f"no word of the language model, which tells {_some(lm)}, can be written "
                        f"with the model's tokens, such as {vocabulary[-1]!r}; give one of the "
                        "same language and case, or one of tokens with lm_unit='token' (--lm-unit "
                        "token)"
                    )
                words = list(dict.fromkeys(words + spelled))
        trie, ends = Trie.of([[symbols[c] for c in word] for word in words], max(1, len(symbols)))
        pieces = sorted({piece for _, piece in parts if piece})
        spelt, at = Trie.of([[symbols[c] for c in piece] for piece in pieces], trie.width)
        numbers = torch.full((len(spelt),), -1)
        numbers[at] = torch.arange(len(pieces))
        self.arcs = _joined(trie, spelt, numbers, max(1, len(pieces)))
        self.outside = len(trie)  # where what is none of the words is written
        places = {piece: number for number, piece in enumerate(pieces)}
        # The blank, and a token that writes nothing and begins nothing, lead nowhere.
        nowhere = len(pieces)
        self.pieces = torch.tensor([nowhere, *(places.get(p, nowhere) for _, p in parts)])
        self.opens = torch.tensor([False, *(opens for opens, _ in parts)])
        fresh = self._next(torch.zeros(1, dtype=torch.int64))[0]
        empty = torch.tensor([False, *(opens and not piece for opens, piece in parts)])
        self.fresh = fresh.masked_fill(empty, 0)  # where a word is once a token has begun it
        self.is_word = torch.zeros(len(trie) + 1, dtype=torch.bool)
        self.is_word[ends] = True
        self.words = torch.full((len(trie) + 1,), lm.unknown if lm else 0)
        if lm is not None:
            self.words[ends] = torch.tensor([lm.ids.get(w, lm.unknown) for w in words]).long()
        self.hopes, self.earned = torch.zeros(2, len(trie) + 1)
        nodes = torch.zeros(len(heated), dtype=torch.int64)
        for depth in range(max([0, *map(len, heated)])):
            deep = [n for n, word in enumerate(heated) if len(word) > depth]
            letters = torch.tensor([symbols[heated[n][depth]] for n in deep])
            nodes[deep] = trie.find(nodes[deep], letters)
            part = torch.tensor([hot_words[heated[n]] * (depth + 1) / len(heated[n]) for n in deep])
            self.hopes.scatter_reduce_(0, nodes[deep], part, "amax")
        self.earned[nodes] = torch.tensor([float(hot_words[word]) for word in heated])
        if lm is not None:
            self.hopes[self.outside] = unknown
            self.earned[1:] += unknown * (self.words[1:] == lm.unknown)
        self.start = torch.tensor([0, lm.start if lm else 0])
        self.looks_ahead = self.strict or bool(self.hopes.any())

    def _next(self, nodes: Tensor) -> Tensor:
        """Where each token leads within a word from some nodes `(N,)`: `(N, V)`."""
        found = nodes.new_full((len(nodes), self.arcs.width + 1), self.outside)
        rows, symbols, targets = self.arcs.children(nodes)
        found[rows, symbols] = targets
        found[:, self.arcs.width] = self.outside
        return found[:, self.pieces.clamp(max=self.arcs.width)]

    def _closed(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """What it adds to each prefix to end its word, if it is in one, and where the language
        model is then, `(N,)` each."""
        nodes, contexts = states.unbind(1)
        gain = self.earned[nodes] - self.hopes[nodes]
        within = nodes != 0
        if self.lm is not None:
            told, after = self.lm.score(contexts, self.words[nodes])
            gain = gain + (self.weight * told + self.bonus) * within
            contexts = torch.where(within, after, contexts)
        if self.strict:
            gain = gain.masked_fill(within & ~self.is_word[nodes], -torch.inf)
        return gain, contexts

    def gains(self, states: Tensor) -> Tensor:
        closed = self._closed(states)[0][:, None]
        nodes = states[:, 0]
        if not self.looks_ahead:
            return closed * self.opens
        ahead = torch.where(self.opens, self.fresh, self._next(nodes))
        gains = torch.where(self.opens, closed, -self.hopes[nodes, None]) + self.hopes[ahead]
        return gains.masked_fill(ahead == self.outside, -torch.inf) if self.strict else gains

    def after(self, states: Tensor, tokens: Tensor) -> Tensor:
        opens = self.opens[tokens]
        inner = self.arcs.find(states[:, 0], self.pieces[tokens].clamp(max=self.arcs.width - 1))
        known = (inner >= 0) & (self.pieces[tokens] < self.arcs.width)
        inner = torch.where(known, inner, self.outside)
        nodes = torch.where(opens, self.fresh[tokens], inner)
        contexts = states[:, 1]
        if self.lm is not None:
            contexts = torch.where(opens, self._closed(states)[1], contexts)
        return torch.stack([nodes, contexts], 1)

    def ends(self, states: Tensor) -> Tensor:
        gain, contexts = self._closed(states)
        return gain if self.lm is None else gain + self.weight * _ending(self.lm, contexts)


def _ending(lm: BackoffModel, states: Tensor) -> Tensor:
    """Logarithm of the probability of the end, `(N,)`; 0 of a model that tells none."""
    if END not in lm.ids:
        return torch.zeros(len(states), device=states.device)
    return lm.score(states, torch.full_like(states, lm.ids[END]))[0]


def _joined(words: Trie, pieces: Trie, numbers: Tensor, width: int) -> Arcs:
    """From every node of the words' tree the ways by whole pieces, of which `numbers` has those
    that end at the nodes of their own tree, and else -1."""
    starts = here = torch.arange(len(words))
    there = torch.zeros_like(here)
    keys, targets = [here[:0]], [here[:0]]
    while len(here):
        rows, symbols, nodes = words.children(here)
        found = pieces.find(there[rows], symbols)
        kept = found >= 0
        starts, here, there = starts[rows][kept], nodes[kept], found[kept]
        whole = numbers[there] >= 0
        keys.append(starts[whole] * width + numbers[there[whole]])
        targets.append(here[whole])
    order = torch.cat(keys).argsort()
    return Arcs(torch.cat(keys)[order], width, torch.cat(targets)[order], len(words))


def _checked(what: str, words: Iterable[str], symbols: Mapping[str, int]) -> list[str]:
    """Each word once.

    Raises:
        InputError: one is empty, or has a character that no token writes.
    """
    words = list(dict.fromkeys(words))
    for word in words:
        if not word or any(c.isspace() or c in SEPARATORS for c in word):
            raise InputError(f"{what} {word!r} is none or several; give single words")
        for character in word:
            if character not in symbols:
                raise InputError(
                    f"{what} {word!r} has {character!r}, which the model's tokens cannot write; "
                    "spell it as the model's texts were written, or leave it out"
                )
    return words


def _some(lm: BackoffModel) -> str:
    """A few of a language model's words, for the middle of an error sentence."""
    words = [word for word in lm.vocabulary if word not in (UNKNOWN, START, END)]
    return f"{len(words):,} words such as " + ", ".join(map(repr, words[-3:])) if words else "none"


__all__: Sequence[str] = ("Fusion", "TokenFusion", "WordFusion")
