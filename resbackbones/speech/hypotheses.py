"""What a recogniser heard: tokens, when, how surely, and the same in words.

Whoever decodes finds a path, one token or the blank at each frame; `collapse` makes hypotheses of
it, so that times and confidences mean the same wherever they come from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from resbackbones.errors import InputError

BLANK = 0
SEPARATORS = (" ", "▁")  # what begins a word: a token of its own, or in front of byte pairs


@dataclass(frozen=True)
class Span:
    """A token or a word, and when it was said.

    Attributes:
        text: as it is written.
        start, end: in seconds.
        confidence: from 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Hypothesis:
    """One reading of an utterance.

    Attributes:
        tokens: their numbers in the model's vocabulary; blanks are none.
        starts: the first frame of each token, in the best path that is read so.
        ends: one past its last frame.
        confidences: the mean posterior of each token over its frames.
        log_prob: natural logarithm of the probability that the net gives it: of its best path
            (`greedy`, `align`), of all its paths (`beam`), or what another decoder tells.
        score: what it was ranked by; beside `log_prob` that of a language model and the like.

    >>> hypothesis = Hypothesis((1, 3, 2), (0, 4, 6), (2, 5, 9), (0.9, 0.8, 0.6), -1.5, -1.5)
    >>> hypothesis.text(["_", "a", "b", " "])
    'a b'
    >>> hypothesis.words(["_", "a", "b", " "], 0.04)[1]
    Span(text='b', start=0.24, end=0.36, confidence=0.6)
    """

    tokens: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    confidences: tuple[float, ...]
    log_prob: float
    score: float

    def text(self, vocabulary: Sequence[str]) -> str:
        """What is written, of the tokens' strings by number; a word begins where a token is or
        begins with a blank or "▁", of which several are one."""
        parts = [parted(vocabulary[token]) for token in self.tokens]
        return " ".join("".join(" " * opens + piece for opens, piece in parts).split())

    def characters(self, vocabulary: Sequence[str], seconds_per_frame: float) -> list[Span]:
        """Each token by itself: characters, where those are the tokens."""
        return [
            Span(vocabulary[token], start * seconds_per_frame, end * seconds_per_frame, sure)
            for token, start, end, sure in self._rows()
        ]

    def words(self, vocabulary: Sequence[str], seconds_per_frame: float) -> list[Span]:
        """The words, from the beginning of the first of their tokens to the end of the last, as
        sure as their tokens are on average."""
        grouped: list[list[tuple[str, int, int, float]]] = [[]]
        for token, first, last, confidence in self._rows():
            opens, piece = parted(vocabulary[token])
            if opens:
                grouped.append([])
            if piece:
                grouped[-1].append((piece, first, last, confidence))
        spans = []
        for tokens in filter(None, grouped):
            start, end = tokens[0][1] * seconds_per_frame, tokens[-1][2] * seconds_per_frame
            sure = sum(token[3] for token in tokens) / len(tokens)
            spans.append(Span("".join(token[0] for token in tokens), start, end, sure))
        return spans

    def then(self, other: "Hypothesis", frames: int) -> "Hypothesis":
        """This and what was heard right behind its `frames` frames, as one: a token that goes on
        there is one token. Of two best paths it is the best path of both.

        >>> first = Hypothesis((1,), (2,), (4,), (0.5,), -1.0, -1.0)
        >>> both = first.then(Hypothesis((1, 2), (0, 3), (2, 4), (1.0, 0.8), -0.5, -0.5), 4)
        >>> both.tokens, both.starts, both.ends, both.confidences, both.log_prob
        ((1, 2), (2, 7), (6, 8), (0.75, 0.8), -1.5)
        """
        known, new = list(self._rows()), list(other._rows())
        moved = [(token, start + frames, end + frames, sure) for token, start, end, sure in new]
        if known and moved and known[-1][0] == moved[0][0] and known[-1][2] == moved[0][1]:
            (token, start, middle, before), (_, _, end, after) = known.pop(), moved.pop(0)
            sure = (before * (middle - start) + after * (end - middle)) / (end - start)
            known.append((token, start, end, sure))
        columns = zip(*known, *moved, strict=True) if known or moved else ((),) * 4
        parts: Any = *columns, self.log_prob + other.log_prob, self.score + other.score
        return Hypothesis(*parts)

    def units(self, vocabulary: Sequence[str], seconds_per_frame: float) -> list[Span]:
        """The words or, where the vocabulary has nothing that separates them, the tokens."""
        divide = self.words if separates(vocabulary) else self.characters
        return divide(vocabulary, seconds_per_frame)

    def split(self, count: int) -> "tuple[Hypothesis, Hypothesis]":
        """The first `count` tokens, with the scores of all, and the others, with none."""
        names = "tokens", "starts", "ends", "confidences"
        first: Any = {name: getattr(self, name)[:count] for name in names}
        others: Any = {name: getattr(self, name)[count:] for name in names}
        return replace(self, **first), replace(self, **others, log_prob=0.0, score=0.0)

    def _rows(self) -> Iterator[tuple[int, int, int, float]]:
        return zip(self.tokens, self.starts, self.ends, self.confidences, strict=True)


def parted(token: str) -> tuple[bool, str]:
    """Whether a token begins a word, and what it writes of it.

    >>> parted("▁the"), parted("the"), parted(" ")
    ((True, 'the'), (False, 'the'), (True, ''))
    """
    opens = token.startswith(SEPARATORS)
    return opens, token[1:] if opens else token


def separates(vocabulary: Sequence[str]) -> bool:
    """Whether texts in a vocabulary have words: some token begins one."""
    return any(parted(token)[0] for token in vocabulary)


def posteriors(
    logits: Tensor, lengths: Tensor, vocabulary: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Log-posteriors in float32, whatever the logits are in, with nothing but blanks behind each
    item's end: a frame that changes no path.

    Args:
        logits: `(B, T, V)`, the blank first.
        lengths: frames of each item, whole numbers `(B,)`.
        vocabulary: the tokens, where their strings are known.

    Returns:
        `(B, T, V)` and int64 `(B,)`, where the logits are.

    Raises:
        InputError: other shapes, logits of other tokens than the vocabulary's, lengths out of
            range, or an item with a NaN.
    """
    if logits.ndim != 3 or not logits.shape[-1] or not logits.is_floating_point():
        raise InputError(
            f"logits are {logits.dtype} of shape {tuple(logits.shape)}, but have to be numbers of "
            "shape (items, frames, tokens) with the blank as the first token"
        )
    items, frames, size = logits.shape
    if vocabulary is not None and len(vocabulary) != size:
        raise InputError(
            f"logits are of {size} tokens, but the vocabulary has {len(vocabulary)}; give the "
            "model's own"
        )
    lengths = torch.as_tensor(lengths)
    if lengths.shape != (items,) or lengths.is_floating_point() or lengths.is_complex():
        raise InputError(
            f"lengths are {lengths.dtype} of shape {tuple(lengths.shape)}, but {items} items need "
            f"whole numbers of shape ({items},)"
        )
    lengths = lengths.to(logits.device, torch.int64)
    wrong = ((lengths < 0) | (lengths > frames)).nonzero()[:, 0].tolist()
    if wrong:
        raise InputError(
            f"item {wrong[0]} is said to have {int(lengths[wrong[0]])} frames of {frames}; give "
            "lengths in frames of the logits"
        )
    inside = torch.arange(frames, device=logits.device) < lengths[:, None]
    log_probs = logits.detach().float().log_softmax(-1)
    broken = (log_probs.isnan().any(-1) & inside).nonzero().tolist()
    if broken:
        item, frame = broken[0]
        raise InputError(
            f"the logits of item {item} are no numbers (NaN or infinite) at frame {frame}; look at "
            "its input and at the model's weights"
        )
    neutral = log_probs.new_full(log_probs.shape[-1:], -torch.inf)
    neutral[BLANK] = 0
    return torch.where(inside[..., None], log_probs, neutral), lengths


def check_count(count: int, width: int) -> None:
    """Refuse to give more hypotheses than a beam holds, or none.

    Raises:
        InputError: say so.
    """
    if type(count) is not int or not 1 <= count <= width:
        raise InputError(
            f"{count!r} hypotheses are asked for; give a number from 1 to the width {width}, or "
            "search with more"
        )


def collapse(
    paths: Tensor, log_probs: Tensor, items: Tensor, told: Tensor, scores: Tensor
) -> list[Hypothesis]:
    """Hypotheses of paths: repeats are one token, and blanks none.

    Args:
        paths: a token per frame, int64 `(N, T)`, blanks behind the end.
        log_probs: as `posteriors` gives them, `(B, T, V)`.
        items: which of the B each path is of, int64 `(N,)`.
        told, scores: of each hypothesis its `log_prob` and `score`, `(N,)`.
    """
    frames = torch.arange(paths.shape[1], device=paths.device)
    real = paths != BLANK
    first = real & (paths != functional.pad(paths, (1, 0))[:, :-1])
    last = real & (paths != functional.pad(paths, (0, 1))[:, 1:])
    rows, starts = first.nonzero(as_tuple=True)
    ends = last.nonzero(as_tuple=True)[1] + 1
    chosen = log_probs[items[:, None], frames, paths].double().exp()
    sums = functional.pad(chosen.cumsum(1), (1, 0))
    sure = ((sums[rows, ends] - sums[rows, starts]) / (ends - starts)).clamp(max=1)
    counts = first.sum(1).tolist()
    columns = [
        [tuple(part.tolist()) for part in column.split(counts)]
        for column in (paths[rows, starts], starts, ends, sure)
    ]
    numbers = told.tolist(), scores.tolist()
    return [Hypothesis(*row) for row in zip(*columns, *numbers, strict=True)]


__all__: Sequence[str] = (
    "Hypothesis",
    "Span",
    "check_count",
    "collapse",
    "parted",
    "posteriors",
    "separates",
)
