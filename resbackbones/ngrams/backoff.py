"""Backoff language models: what an ARPA file holds, as tensors.

A word that was seen behind the words before it has a probability of its own; another one has that
behind a word less, times what the longer context leaves for it, its backoff weight (Katz 1987). A
context is a state, a number: where a decoder is after each word is all that it has to remember.
"""

import gzip
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Self

import torch
from torch import Tensor

from resbackbones.errors import InputError
from resbackbones.ngrams.kneser_ney import KneserNey
from resbackbones.ngrams.trie import Trie

UNKNOWN, START, END = "<unk>", "<s>", "</s>"
SPACE = "<space>"  # stands in a file for a token that is a blank, which the format cannot hold
NEVER = -99.0  # the decimal logarithm that files give for 0, as SRILM has it
CLOSED = -100.0  # and that of an unknown word where a model tells none, as KenLM has it
LN10 = math.log(10)
Level = dict[tuple[int, ...], tuple[float, float]]  # of each gram, the probability and the backoff


class BackoffModel:
    """Probabilities of the next word, for many states at once.

    A state is the longest known context, as the node that its words lead to; 0 is the empty one.

    Args:
        vocabulary: the words, by their numbers; `<unk>`, `<s>` and `</s>` among them where known.
        trie: all n-grams, of all the vocabulary's words the first, each a path of its words.
        log_probs: decimal logarithm of each node's last word behind the others, float32 `(N,)`.
        backoffs: the same of its weight as a context.

    >>> model = BackoffModel.fit(["the cat sat".split(), "the cat ran".split()], order=2)
    >>> model.order, len(model.vocabulary)
    (2, 7)
    >>> model.log_probs_of(["the cat sat".split(), "sat the cat".split()]).argmax().item()
    0
    """

    def __init__(
        self, vocabulary: Sequence[str], trie: Trie, log_probs: Tensor, backoffs: Tensor
    ) -> None:
        self.vocabulary = tuple(vocabulary)
        self.ids = {word: number for number, word in enumerate(self.vocabulary)}
        self.trie, self.log_probs, self.backoffs = trie, log_probs, backoffs
        self.unknown = self.ids[UNKNOWN]
        parents = torch.div(trie.keys, trie.width, rounding_mode="floor")
        words = trie.keys % trie.width
        lengths = torch.zeros(len(trie), dtype=torch.int64, device=words.device)
        shorter = torch.zeros_like(lengths)  # each without its first words, the longest that is
        edges, level = [1], torch.arange(1, 1 + trie.width, device=words.device)
        while len(level):
            lengths[level] = len(edges)
            edges.append(edges[-1] + len(level))
            level = trie.children(level)[2]
            context, found = parents[level - 1], torch.full_like(level, -1)
            while bool((missing := found < 0).any()):
                context = shorter[context]
                found = torch.where(missing, trie.find(context, words[level - 1]), found)
            shorter[level] = found
        self.order = len(edges) - 1
        self.sizes = [end - first for first, end in itertools.pairwise(edges)]
        self.shorter = shorter
        whole = torch.arange(len(trie), device=words.device)
        self._after = torch.where(lengths < self.order, whole, shorter)
        self.start = 0 if START not in self.ids else int(self._after[1 + self.ids[START]])

    @classmethod
    def fit(
        cls,
        sentences: Iterable[Sequence[str]],
        order: int,
        vocabulary: Iterable[str] | None = None,
    ) -> Self:
        """Count sentences, and smooth by interpolated modified Kneser-Ney as `KneserNey` does;
        grams that begin a sentence count as often as they stand (Heafield et al. 2013, section 3).

        Args:
            sentences: words or other tokens each; a plain string is one of characters.
            order: words of the longest n-grams.
            vocabulary: the words to know, others being `<unk>`; None takes all there are.

        Raises:
            InputError: no sentence, a sentence that holds `<s>` or `</s>`, or an order that is
                below 1 or above what the longest sentence has.
        """
        given = [list(sentence) for sentence in sentences]
        if not given:
            raise InputError("there is no sentence to count n-grams of; give one or more")
        known = set(vocabulary if vocabulary is not None else (w for s in given for w in s))
        words = [UNKNOWN, START, END, *sorted(known - {UNKNOWN, START, END})]
        ids = {word: number for number, word in enumerate(words)}
        for number, sentence in enumerate(given):
            for mark in (START, END):
                if mark in sentence:
                    raise InputError(
                        f"sentence {number} holds {mark!r}, which stands for its edge; take it out"
                    )
        row = [n for s in given for n in (1, *(ids.get(word, 0) for word in s), 2)]
        counted = KneserNey.fit(torch.tensor(row), len(words), order, start=1)
        return cls._of_kneser_ney(counted, words)

    @classmethod
    def _of_kneser_ney(cls, counted: KneserNey, words: Sequence[str]) -> Self:
        """Probabilities for shares: that of a gram is its share, and the rest's part."""
        size = counted.vocab_size
        shares = [part.double() for part in counted.shares.split(counted.sizes)]
        rests = [part.double() for part in counted.rests.split([1, *counted.sizes[:-1]])]
        grams = counted.grams.split(counted.sizes)
        first = torch.full((size,), float(rests[0]) * counted.uniform, dtype=torch.float64)
        first[grams[0]] += shares[0]
        if counted.start is not None:
            first[counted.start] = 0
        ones = torch.ones(size).double()
        probabilities, weights, keys = (
            torch.cat([ones[:1], first]),
            [ones[:1], ones],
            torch.arange(size),
        )
        nodes = 1 + grams[0]  # of each gram of the level before
        shorter = torch.zeros(1 + size, dtype=torch.int64)  # each node without its first word
        if counted.order > 1:
            weights[1][grams[0]] = rests[1]
        for level in range(1, counted.order):
            before, word = torch.div(grams[level], size, rounding_mode="floor"), grams[level] % size
            # Of a gram that stands somewhere every part does.
            lower = Trie(keys, size).find(shorter[nodes[before]], word)
            told = shares[level] + rests[level][before] * probabilities[lower]
            probabilities, shorter = torch.cat([probabilities, told]), torch.cat([shorter, lower])
            keys = torch.cat([keys, nodes[before] * size + word])
            nodes = torch.arange(len(keys) - len(word), len(keys)) + 1
            last = level + 1 == counted.order
            weights.append(torch.ones_like(told) if last else rests[level + 1])
        log_probs = probabilities.log10().clamp(min=NEVER).float()
        return cls(words, Trie(keys, size), log_probs, torch.cat(weights).log10().float())

    def score(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """What comes next, and where it leads.

        Args:
            states: int64 `(*)`.
            words: numbers of the vocabulary, int64 `(*)`.

        Returns:
            Natural logarithms of the probabilities, float32 `(*)`, and the states after, `(*)`.
        """
        total = torch.zeros(states.shape, device=states.device)
        grams = torch.full_like(states, -1)
        for _ in range(self.order):
            found = self.trie.find(states, words)
            grams = torch.where(grams < 0, found, grams)
            missing = grams < 0
            if not bool(missing.any()):
                break
            total = total + self.backoffs[states] * missing
            states = torch.where(missing, self.shorter[states], states)
        return (total + self.log_probs[grams]) * LN10, self._after[grams]

    def rows(self, states: Tensor, words: Tensor) -> Tensor:
        """What `score` gives for each state with each word, without looking for each.

        Args:
            states: int64 `(N,)`.
            words: numbers of the vocabulary, int64 `(K,)`.

        Returns:
            float32 `(N, K)`.
        """
        chosen, places = words.unique(return_inverse=True)
        columns = torch.full((self.trie.width,), len(chosen), device=words.device)
        columns[chosen] = torch.arange(len(chosen), device=words.device)
        chain = [states]
        while len(chain) < self.order - 1 and bool(chain[-1].any()):
            chain.append(self.shorter[chain[-1]])
        last = states.new_zeros(()).to(self.log_probs.dtype)
        rows = torch.cat([self.log_probs[1 + chosen], last[None]]).repeat(len(states), 1)
        for nodes in reversed(chain):  # from the shortest context to the longest
            rows += self.backoffs[nodes, None] * (nodes > 0)[:, None]
            parents, words, grams = self.trie.children(
                torch.where(nodes > 0, nodes, len(self.trie))
            )
            rows[parents, columns[words]] = self.log_probs[grams]
        return rows[:, :-1][:, places] * LN10

    def log_probs_of(self, sentences: Sequence[Sequence[str]], end: bool = True) -> Tensor:
        """Natural logarithms of the probabilities of whole sentences, or of such as go on.

        Args:
            sentences: the words of each; a plain string is one of characters.
            end: whether they end there.

        Returns:
            float64 `(B,)`.
        """
        ends = [self.ids[END]] if end and END in self.ids else []
        words = [[self.ids.get(w, self.unknown) for w in words] + ends for words in sentences]
        device = self.log_probs.device
        total = torch.zeros(len(words), dtype=torch.float64, device=device)
        states = torch.full((len(words),), self.start, device=device)
        for column in itertools.zip_longest(*words, fillvalue=-1):
            word = torch.tensor(column, device=device)
            found, states = self.score(states, word.clamp(min=0))
            total += found.masked_fill(word < 0, 0)
        return total

    def perplexity(self, sentences: Sequence[Sequence[str]]) -> float:
        """Of sentences, over their words and ends.

        Raises:
            InputError: there is none.
        """
        if not sentences:
            raise InputError("there is no sentence to tell; give one or more")
        told = len(sentences) * (END in self.ids) + sum(map(len, sentences))
        return math.exp(-float(self.log_probs_of(sentences).sum()) / told)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        device = torch.device(device)
        if device == self.log_probs.device:
            return self
        parts = (self.trie.to(device), self.log_probs.to(device), self.backoffs.to(device))
        return type(self)(self.vocabulary, *parts)

    def write(self, path: str | Path) -> None:
        """Write an ARPA file, compressed where its name ends in `.gz`; `read` gives the same model
        to the bit. A token that is a blank stands there as `<space>`.

        Raises:
            InputError: a token that the format cannot hold.
        """
        words = [SPACE if word == " " else word for word in self.vocabulary]
        for word in words:
            if not word or word.split() != [word]:
                raise InputError(
                    f"the token {word!r} has white space or nothing in it, which an ARPA file "
                    "cannot hold; replace it"
                )
        with _opened(Path(path), "wt") as file:
            file.write("\\data\\\n")
            for length, size in enumerate(self.sizes, 1):
                file.write(f"ngram {length}={size}\n")
            texts, first = [""], 1
            for length, size in enumerate(self.sizes, 1):
                file.write(f"\n\\{length}-grams:\n")
                nodes = slice(first, first + size)
                keys = self.trie.keys[first - 1 : first - 1 + size]
                parents = torch.div(keys, self.trie.width, rounding_mode="floor").tolist()
                told = zip(
                    parents,
                    (keys % self.trie.width).tolist(),
                    self.log_probs[nodes].tolist(),
                    self.backoffs[nodes].tolist(),
                    strict=True,
                )
                for parent, word, log_prob, backoff in told:
                    text = f"{texts[parent]} {words[word]}".lstrip()
                    texts.append(text)
                    weight = f"\t{backoff:.9g}" if length < self.order else ""
                    file.write(f"{log_prob:.9g}\t{text}{weight}\n")
                first += size
            file.write("\n\\end\\\n")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read an ARPA file, of any tool, as it is or compressed with gzip.

        Without `<unk>` (or `<UNK>`) unknown words have a probability of 1e-100; a missing backoff
        is 1, and an n-gram that is missing though a longer one begins with it has what it is
        backed off to. `<space>` is a blank.

        Raises:
            InputError: no such file, or one that is no ARPA file, by its line.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path} is no file; give the path of an ARPA file")
        levels: list[Level] = []
        ids: dict[str, int] = {}
        with _opened(path, "rt") as file:
            try:
                for length, words, log_prob, backoff in _lines(file, path):
                    if length > len(levels):
                        levels.append({})
                    if length == 1:
                        ids.setdefault(words[0], len(ids))
                    gram = tuple(ids[word] for word in words)
                    levels[-1][gram] = log_prob, backoff
            except KeyError as error:
                raise InputError(
                    f"{path} has an n-gram of {error.args[0]!r}, which is none of its 1-grams; "
                    "give a whole ARPA file"
                ) from None
            except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
                raise InputError(f"{path} is no ARPA file: {error}; give one in UTF-8") from error
        if UNKNOWN not in ids:
            ids[UNKNOWN] = len(ids)
            levels[0][(ids[UNKNOWN],)] = CLOSED, 0.0
        return cls._of_levels(levels, tuple(ids))

    @classmethod
    def _of_levels(cls, levels: Sequence[Level], words: Sequence[str]) -> Self:
        """The model of n-grams by their length, and the words that their numbers stand for."""
        for longer, level in zip(levels[:0:-1], levels[-2::-1], strict=True):
            for gram in longer:
                level.setdefault(gram[:-1], (math.nan, 0.0))
        ordered = [gram for level in levels for gram in level]
        trie, ends = Trie.of(ordered, len(words))
        values = torch.tensor([pair for level in levels for pair in level.values()])
        log_probs, backoffs = torch.zeros(len(trie)), torch.zeros(len(trie))
        log_probs[ends], backoffs[ends] = values.unbind(1)
        model = cls(words, trie, log_probs, backoffs)
        # What a file leaves out has what it is backed off to; shorter ones first.
        for node in log_probs.isnan().nonzero()[:, 0].tolist():
            context, word = divmod(int(trie.keys[node - 1]), trie.width)
            lower, _ = model.score(model.shorter[context], torch.tensor(word))
            log_probs[node] = backoffs[context] + lower / LN10
        return model


def _opened(path: Path, mode: str) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, mode, encoding="utf-8", newline="\n")  # type: ignore[return-value]
    return path.open(mode, encoding="utf-8", newline="\n")


def _lines(file: IO[str], path: Path) -> Iterator[tuple[int, list[str], float, float]]:
    """The length, words, probability and backoff of each n-gram, checked against what the file says
    that it holds."""
    counts: dict[int, int] = {}
    length, left, ended = 0, 0, False

    def check(fine: bool, expected: str) -> None:
        if not fine:
            raise InputError(f"{path}, line {number}, is not of an ARPA file: {expected}")

    number = 0
    for line in file:
        number += 1
        fields = line.split()
        if not fields or (not counts and fields[0] != "ngram"):
            continue  # what stands before the counts is of no meaning
        if fields[0] == "ngram" and not length:
            order, _, count = "".join(fields[1:]).partition("=")
            check(order.isdigit() and count.isdigit(), "'ngram 1=…' was expected")
            check(int(order) == len(counts) + 1, f"the count of {len(counts) + 1}-grams is missing")
            counts[int(order)] = int(count)
        elif fields[0].startswith("\\") and len(fields) == 1:
            check(not left, f"{left} more {length}-grams were expected")
            if fields[0] == "\\end\\":
                ended = True
                break
            length += 1
            check(fields[0] == f"\\{length}-grams:", f"\\{length}-grams: was expected")
            check(length in counts, "the counts do not have it")
            left = counts[length]
        else:
            check(length > 0 and left > 0, "no further n-gram was expected")
            check(len(fields) in (1 + length, 2 + length), f"{length} words were expected")
            try:
                values = [float(field) for field in (fields[0], *fields[1 + length :])]
            except ValueError:
                values = [math.nan]
            check(values[0] <= 1e-4 and values[-1] < math.inf, "its numbers are no logarithms")
            words = [{"<UNK>": UNKNOWN, SPACE: " "}.get(w, w) for w in fields[1 : 1 + length]]
            left -= 1
            yield length, words, max(values[0], CLOSED), values[1] if len(values) > 1 else 0.0
    check(ended and length == len(counts) and length > 0, "it ends before its n-grams do")


__all__: Sequence[str] = ("END", "START", "UNKNOWN", "BackoffModel")
