"""TF-IDF and a linear classifier: what a net of texts has to beat, and what it can ask.

On small sets it often does better than a net from scratch, and it errs elsewhere. A model whose
tokenizer holds a `TfidfClassifier` therefore answers by both, with a share of each that
`choose_share` finds. The net is trained by itself: one trained on what such a classifier leaves to
say learns its mistakes, and answers worse than either.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import optimize, sparse
from torch import Tensor
from torch.nn import functional

from resbackbones.errors import InputError

# Punctuation and single letters are words, as they are to the net.
WORD = re.compile(r"\w+|[^\w\s]+")
WORDS, CHARACTERS = (1, 2), (2, 5)  # of an n-gram, at least and at most
BUCKETS = 2**20  # that n-grams of words, and those of characters, are hashed to
STRENGTHS = (0.1, 0.3, 1.0, 3.0)  # of a fit (C), from loose to firm
FOLDS = 5
PASSES = 10_000  # over the texts, at most, for a fit
MANY = 5000  # texts of which one fold tells the strengths apart
STEPS = 20  # of the shares that are tried

_yes_and_no = functional.binary_cross_entropy_with_logits


@dataclass(frozen=True, eq=False)
class TfidfClassifier:
    """Linear support vectors over the TF-IDF of words, word pairs and 2 to 5 characters within
    words (scikit-learn's vectorizers), case aside, each times how far it tells a class from the
    rest by naive Bayes (Wang & Manning 2012, "Baselines and bigrams", section 2.3). N-grams are
    hashed, so there is no vocabulary. A text is read whole, however long.

    Attributes:
        columns: the hashes that training saw, rising, int64 `(F,)`; others say nothing.
        idf: of each, float32 `(F,)`.
        weight, bias: of the logits, float32 `(F, K)` and `(K,)`, in the scale in which they are
            likeliest to be right.
    """

    columns: np.ndarray
    idf: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    FILE: ClassVar[str] = "tfidf.safetensors"

    @classmethod
    def fit(
        cls, texts: Sequence[str], labels: Tensor, classes: int, *, balanced: bool = False
    ) -> Self:
        """Learn from texts; the same ones give the same classifier.

        The strength of the fit (C), and the scale of the logits, are those of the likeliest answers
        in five folds; of more than 5,000 texts, in one of them.

        Args:
            texts: of training.
            labels: int64 `(N,)`, or 1 for each class that a text has, float `(N, K)`.
            classes: how many, K.
            balanced: whether all classes count alike, however few texts they have.

        Raises:
            InputError: no texts, none but blank ones, or not as many as labels.
        """
        if not texts or len(texts) != len(labels):
            raise InputError(
                f"there are {len(texts)} texts and {len(labels)} labels; give a label per text"
            )
        counts = _counts(texts)
        found = np.bincount(counts.indices, minlength=counts.shape[1])
        columns = np.flatnonzero(found)
        if not len(columns):
            raise InputError("all texts are blank; give some with words")
        idf = (np.log((1 + len(texts)) / (1 + found[columns])) + 1).astype(np.float32)
        x = cls(columns, idf, np.zeros((0, 0)), np.zeros(0))._weighed(counts)
        single = labels.ndim == 1
        y = functional.one_hot(labels, classes).float() if single else labels.float()
        folds = _folds(labels if single else None, len(texts))

        def judged(strength: float) -> tuple[float, float, float]:
            rows, answers = [], []
            for out in folds[:1] if len(texts) > MANY else folds:
                rest = np.setdiff1d(np.arange(len(texts)), out)
                weight, bias = _linear(x[rest], y[rest].numpy(), strength, single, balanced)
                rows.append(out)
                answers.append(torch.from_numpy(x[out] @ weight + bias))
            scale, loss = _scale(torch.cat(answers), y[np.concatenate(rows)], single)
            return loss, strength, scale

        _, strength, scale = min(map(judged, STRENGTHS))
        weight, bias = _linear(x, y.numpy(), strength, single, balanced)
        return cls(columns, idf, np.float32(scale) * weight, np.float32(scale) * bias)

    def logits(self, texts: Sequence[str]) -> Tensor:
        """Of texts, float32 `(N, K)`."""
        return torch.from_numpy(self._weighed(_counts(texts)) @ self.weight + self.bias)

    def said(self, text: str, number: int) -> Tensor:
        """What each character of a text says for class `number`, float32 `(len(text),)`: together,
        by how much the class's logit differs from its bias, that of a text of no known n-gram.

        What an n-gram adds to the logit is shared alike by the places where it stands, and there by
        its characters; blanks say nothing.
        """
        from sklearn.utils import murmurhash3_32

        lowered = text.lower()
        ngrams = [_word_ngrams(lowered), _character_ngrams(lowered)]
        found = [
            (kind * BUCKETS + abs(murmurhash3_32(ngram)) % BUCKETS, where)  # as FeatureHasher does
            for kind, each in enumerate(ngrams)
            for ngram, where in each
        ]
        places, known = self._places(np.array([column for column, _ in found], dtype=np.int64))
        added = self._weighed(_counts([text])).toarray()[0] * self.weight[:, number]
        times = np.bincount(places[known], minlength=len(self.columns))
        said = np.zeros(len(lowered))
        for index in np.flatnonzero(known):
            where, place = found[index][1], places[index]
            said[where] += added[place] / times[place] / len(where)
        # A character may become two in lower case, but how many never depends on its neighbours.
        owners = [owner for owner, character in enumerate(text) for _ in character.lower()]
        summed = np.bincount(np.array(owners, dtype=np.int64), said, minlength=len(text))
        return torch.from_numpy(summed).float()

    @property
    def classes(self) -> int:
        """How many classes it tells, K."""
        return len(self.bias)

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as safetensors."""
        tensors = {name: torch.from_numpy(value) for name, value in vars(self).items()}
        save_file(tensors, path, {"buckets": str(BUCKETS)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """What `save` wrote.

        Raises:
            InputError: a file of something else.
        """
        try:
            with safe_open(path, "np") as file:
                if (file.metadata() or {}).get("buckets") != str(BUCKETS):
                    raise InputError(f"{path} is no TF-IDF classifier; save the model again")
                return cls(**{each.name: file.get_tensor(each.name) for each in fields(cls)})
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"cannot read the TF-IDF classifier {Path(path)} ({error}); copy or save the model "
                "again"
            ) from error

    def _weighed(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """Counts of n-grams as TF-IDF of the columns that are known, `(N, F)`: those of words and
        those of characters each of length 1."""
        places, known = self._places(counts.indices)
        ends = np.concatenate([[0], known.cumsum()])[counts.indptr]
        values = (1 + np.log(counts.data[known])) * self.idf[places[known]]
        rows = np.repeat(np.arange(counts.shape[0]), np.diff(ends))
        kinds = 2 * rows + (self.columns[places[known]] >= BUCKETS)
        lengths = np.sqrt(np.bincount(kinds, values**2, minlength=2 * counts.shape[0]))
        values = (values / lengths[kinds]).astype(np.float32)
        shape = counts.shape[0], len(self.columns)
        return sparse.csr_matrix((values, places[known], ends), shape)

    def _places(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where columns stand among those that are known, and which of them do."""
        places = np.searchsorted(self.columns, columns)
        return places, np.take(self.columns, places, mode="clip") == columns


def _counts(texts: Sequence[str]) -> sparse.csr_matrix:
    """How often each n-gram stands in each text: of words in the first half of the columns, of
    characters in the second."""
    from sklearn.feature_extraction.text import HashingVectorizer

    options: dict[str, Any] = {"n_features": BUCKETS, "alternate_sign": False, "norm": None}
    words = HashingVectorizer(ngram_range=WORDS, token_pattern=WORD.pattern, **options)
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=CHARACTERS, **options)
    return sparse.hstack([each.transform(texts) for each in (words, characters)], "csr")


def _word_ngrams(lowered: str) -> Iterator[tuple[str, list[int]]]:
    """Those that `_counts` counts, in scikit-learn's order, and the characters of each.

    >>> list(_word_ngrams("is  it"))
    [('is', [0, 1]), ('it', [4, 5]), ('is it', [0, 1, 4, 5])]
    """
    words = list(WORD.finditer(lowered))
    for size in range(WORDS[0], WORDS[1] + 1):
        for run in zip(*(words[first:] for first in range(size)), strict=False):
            where = [place for word in run for place in range(*word.span())]
            yield " ".join(word[0] for word in run), where


def _character_ngrams(lowered: str) -> Iterator[tuple[str, list[int]]]:
    """Likewise; a word stands between two blanks, which are no characters of the text.

    >>> list(_character_ngrams("it"))[:4]
    [(' i', [0]), ('it', [0, 1]), ('t ', [1]), (' it', [0, 1])]
    """
    for word in re.finditer(r"\S+", lowered):
        padded, before = f" {word[0]} ", word.start() - 1
        for size in range(CHARACTERS[0], CHARACTERS[1] + 1):
            for first in range(len(padded) - size + 1):
                start, end = before + first, before + first + size
                where = list(range(max(start, word.start()), min(end, word.end())))
                yield padded[first : first + size], where


def _folds(labels: Tensor | None, count: int) -> list[np.ndarray]:
    """Rows of each fold; of single labels, each fold has as many of a class as any other."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
    return [order[start::FOLDS].sort().values.numpy() for start in range(min(FOLDS, count))]


def _linear(
    x: sparse.csr_matrix, y: np.ndarray, strength: float, single: bool, balanced: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(F, K)` and biases `(K,)` of each class against the rest, `y` `(N, K)`, of features
    as they are; the answers to two of which each text has one mirror each other."""
    from sklearn.svm import LinearSVC

    mirrored = single and y.shape[1] == 2
    options: dict[str, Any] = {"C": strength, "max_iter": PASSES, "random_state": 0}
    options["class_weight"] = "balanced" if balanced else None
    weights, biases = [], []
    for own in y.T[1:] if mirrored else y.T:
        if own.min() == own.max():
            weights.append(np.zeros(x.shape[1]))
            biases.append(2 * own[0] - 1)
            continue
        telling = _telling(x, own)
        fit = LinearSVC(**options).fit(_times(x, telling), own)
        weights.append(telling * fit.coef_[0])
        biases.append(fit.intercept_[0])
    weight, bias = np.stack(weights, 1), np.array(biases)
    if mirrored:
        weight, bias = np.concatenate([-weight, weight], 1), np.concatenate([-bias, bias])
    return weight.astype(np.float32), bias.astype(np.float32)


def _telling(x: sparse.csr_matrix, own: np.ndarray) -> np.ndarray:
    """How far the presence of each feature tells a class (`own` is 1) from the rest, `(F,)`: the
    logarithm of the ratio of its shares in both, each counted once more than it was found, its sign
    aside; in a unit in which texts are as long as they were."""
    shares = []
    for rows in (x[own == 1], x[own != 1]):
        count = 1 + np.bincount(rows.indices, minlength=x.shape[1])
        shares.append(count / count.sum())
    telling = np.abs(np.log(shares[0] / shares[1])).astype(np.float32)
    longer = np.square(_times(x, telling).data).sum() / np.square(x.data).sum()
    return telling / np.sqrt(longer) if longer else np.ones_like(telling)


def _times(x: sparse.csr_matrix, factors: np.ndarray) -> sparse.csr_matrix:
    """Each column times its factor."""
    return sparse.csr_matrix((x.data * factors[x.indices], x.indices, x.indptr), x.shape)


def _scale(answers: Tensor, y: Tensor, single: bool) -> tuple[float, float]:
    """The factor with which answers `(N, K)` are the likeliest logits, and their loss then (Guo et
    al. 2017, section 4.2, temperature scaling), as if two more texts had got it half wrong: where
    all are right, only many can be sure (Platt 1999, section 2.2)."""
    loss = functional.cross_entropy if single else _yes_and_no
    y = torch.lerp(y, torch.tensor(1 / y.shape[1] if single else 0.5), 2 / (len(y) + 2))
    found = optimize.minimize_scalar(
        lambda power: float(loss(10**power * answers, y)), bounds=(-2, 2), method="bounded"
    )
    return float(10**found.x), float(found.fun)


def choose_share(net: Tensor, tfidf: Tensor, labels: Tensor) -> float:
    """The share of a TF-IDF classifier, 0.05 to 1 in steps of 0.05, with which it and a net are
    likeliest to be right, on texts that neither was trained on.

    Args:
        net, tfidf: the logits of each, `(N, K)`.
        labels: int64 `(N,)`, or 1 for each class that a text has, float `(N, K)`.

    >>> net, tfidf = torch.tensor([[3.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 9.0], [0.0, 9.0]])
    >>> choose_share(net, tfidf, torch.tensor([1, 1]))
    1.0
    """
    loss = functional.cross_entropy if labels.ndim == 1 else _yes_and_no
    shares = [step / STEPS for step in range(1, STEPS + 1)]
    return min(shares, key=lambda share: float(loss(torch.lerp(net, tfidf, share), labels)))
