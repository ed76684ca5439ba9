"""CTC prefix beam search (Graves 2012, section 7.5; Hannun et al. 2014), of many utterances at
once.

The probability of a text is the sum over all paths that are read as it. A beam holds the most
likely beginnings, prefixes, each with the probability of its paths that end in a blank and of those
that do not. A step over a frame is a handful of operations on `(items, width, tokens)`; no prefix
is touched one by one.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from resbackbones.errors import InputError, nearest
from resbackbones.ngrams import BackoffModel
from resbackbones.speech.alignment import best_paths
from resbackbones.speech.fusion import Fusion, TokenFusion, WordFusion
from resbackbones.speech.hypotheses import BLANK, Hypothesis, check_count, collapse, posteriors

Unit = Literal["word", "token"]
UNITS: tuple[Unit, ...] = ("word", "token")
EMPTY, NO_PARENT, DEAD = 1, -2, -3  # what stands for a prefix that no hash does


class BeamSearch:
    """The likeliest texts, by the net and by what is known of the language.

    A text's score is `log P(text | sound) + lm_weight * log P_lm(text) + length_bonus * length`,
    plus the bonus of each hot or unknown word in it; as long as the beam holds all prefixes it is
    exact.

    Args:
        vocabulary: the tokens' strings by number, the blank first; words begin where a token is or
            begins with a blank or "▁". Needed with a language model, lexicon or hot words.
        width: prefixes that are kept.
        lm: a model of n-grams, or the path of its ARPA file.
        lm_unit: what it tells, "word" or "token". A word is told once it has ended.
        lm_weight: of its natural logarithms, alpha.
        length_bonus: beta, per word where the language model tells words, else per token.
        unknown_bonus: added to the score for each word that a language model of words does not
            know; without, two words that are one by mistake cost no more than one of them.
        lexicon: the words that there may be; None allows all. One prefix more is then kept, the
            best that could end where it is, so that there always is an answer.
        hot_words: words that are likelier here than elsewhere, or the bonus of each.
        hot_word_bonus: added to the score for each of them, where they have none of their own.

    >>> logits = torch.tensor([[[2.0, 1.0, 0.0], [2.0, 1.9, 0.0], [0.0, 0.0, 2.0]]])
    >>> search = BeamSearch(["_", "a", "b"], width=8)
    >>> [h.text(search.vocabulary) for h in search.n_best(logits, torch.tensor([3]), 2)[0]]
    ['ab', 'b']

    Raises:
        InputError: numbers out of range, no vocabulary where one is needed, or a language model,
            lexicon or hot words that it cannot write.
    """

    def __init__(
        self,
        vocabulary: Sequence[str] | None = None,
        width: int = 16,
        *,
        lm: BackoffModel | str | Path | None = None,
        lm_unit: Unit = "word",
        lm_weight: float = 0.5,
        length_bonus: float = 0.0,
        unknown_bonus: float = -10.0,
        lexicon: Iterable[str] | None = None,
        hot_words: Mapping[str, float] | Iterable[str] | None = None,
        hot_word_bonus: float = 5.0,
    ) -> None:
        if type(width) is not int or width < 1:
            raise InputError(f"width={width!r} is no number of prefixes; give 1 or more")
        if lm_unit not in UNITS:
            raise InputError(f"lm_unit={lm_unit!r} is not known; {nearest(lm_unit, UNITS)}")
        if isinstance(lexicon, str) or isinstance(hot_words, str):
            raise InputError("lexicon and hot_words are lists of words, not one string; give lists")
        needed = {"lm": lm, "lexicon": lexicon, "hot_words": hot_words}
        if vocabulary is None and (given := [n for n, v in needed.items() if v is not None]):
            raise InputError(f"{given[0]} is of words and tokens, but vocabulary is not given")
        self.width = width
        self.vocabulary = None if vocabulary is None else tuple(vocabulary)
        tokens = self.vocabulary or ()
        if isinstance(lm, str | Path):
            lm = BackoffModel.read(lm)
        if not isinstance(hot_words, Mapping):
            hot_words = dict.fromkeys(hot_words or (), hot_word_bonus)
        words = lm if lm_unit == "word" else None
        self.strict = lexicon is not None
        self.fusions: list[Fusion] = []
        if words is not None or self.strict or hot_words:
            fusion = WordFusion(
                tokens, words, lm_weight, length_bonus, unknown_bonus, lexicon, hot_words
            )
            self.fusions.append(fusion)
        if words is None and (lm is not None or length_bonus):
            self.fusions.append(TokenFusion(tokens, lm, lm_weight, length_bonus))

    def __call__(self, logits: Tensor, lengths: Tensor) -> list[Hypothesis]:
        """The best hypothesis of each item; see `n_best`."""
        return [hypotheses[0] for hypotheses in self.n_best(logits, lengths, 1)]

    @torch.inference_mode()
    def n_best(self, logits: Tensor, lengths: Tensor, count: int) -> list[list[Hypothesis]]:
        """The best hypotheses of each item, as many as asked for or as there are, best first. The
        search itself runs on the CPU.

        Times and confidences are those of the best path that is read so.

        Args:
            logits: `(B, T, V)`, the blank first.
            lengths: frames of each, whole numbers `(B,)`.
            count: 1 or more, up to `width`.

        Raises:
            InputError: as `posteriors`, another count, or nothing that the lexicon allows has a
                probability above 0.
        """
        check_count(count, self.width)
        log_probs, lengths = posteriors(logits, lengths, self.vocabulary)
        told, scores, slots, trace = self._search(log_probs.cpu(), lengths.cpu())
        scores, best = scores.sort(dim=1, descending=True, stable=True)
        scores, best = scores[:, :count], best[:, :count]
        if never := scores[:, :1].isneginf().nonzero()[:, 0].tolist():
            raise InputError(
                f"nothing that the lexicon allows has a probability above 0 in item {never[0]}; "
                "its logits rule everything else out, look at them"
            )
        items, ranks = (~scores.isneginf()).nonzero(as_tuple=True)
        rows = _traced(best, slots, trace)[items, ranks]
        said = rows != BLANK
        counts = said.sum(1)
        labels = rows.new_zeros(rows.shape)  # the tokens moved to the front
        labels[torch.arange(rows.shape[1]) < counts[:, None]] = rows[said]
        labels = labels[:, : int(counts.max()) if len(counts) else 0]
        device = log_probs.device
        items = items.to(device)
        paths, _ = best_paths(log_probs, lengths, labels.to(device), counts.to(device), items)
        told = told.gather(1, best)[items.cpu(), ranks]
        found = iter(collapse(paths, log_probs, items, told, scores[items.cpu(), ranks]))
        each = torch.bincount(items.cpu(), minlength=len(logits)).tolist()
        return [list(itertools.islice(found, number)) for number in each]

    def _search(
        self, log_probs: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Run over the frames.

        Returns:
            Of the last beam the logarithms of the prefixes' probabilities, and with everything that
            is added, `(B, W)` each; and of each frame which prefix before each was, and by which
            token it is longer, the blank meaning none.
        """
        items, _, size = log_probs.shape
        blank = torch.zeros(items, 1)  # paths that end in one
        other = torch.full((items, 1), -torch.inf)
        last = torch.zeros(items, 1, dtype=torch.int64)
        own, parent = torch.full_like(last, EMPTY), torch.full_like(last, NO_PARENT)
        added = torch.zeros(items, 1)
        states = [fusion.start.expand(items, 1, -1) for fusion in self.fusions]
        gains = self._gains([fusion.start[None] for fusion in self.fusions], size)
        gains = gains.expand(items, 1, -1)
        slots, trace = [], []
        for frame, log_prob in enumerate(log_probs.unbind(1)):
            width = own.shape[1]
            total = torch.logaddexp(blank, other)
            repeat = log_prob.gather(1, last)
            stay_blank, stay_other = total + log_prob[:, :1], other + repeat
            longer = total[..., None] + log_prob[:, None]
            # A token behind itself is another one only where a blank stands between.
            longer.scatter_(2, last[..., None], (blank + repeat)[..., None])
            longer[..., BLANK] = -torch.inf
            longer = longer.flatten(1)
            # What is longer may be in the beam already: one prefix, one place.
            held, slot = (parent[:, :, None] == own[:, None]).max(2)
            place = torch.where(held, slot * size + last, BLANK)
            stay_other = torch.logaddexp(stay_other, longer.gather(1, place))
            longer.scatter_(1, place, -torch.inf)
            stay = torch.logaddexp(stay_blank, stay_other) + added
            grown = longer.view(items, width, size) + (added[..., None] + gains)
            ranks = torch.cat([stay, grown.flatten(1)], 1)
            kept = min(self.width + self.strict, ranks.shape[1])
            rank, index = ranks.topk(kept)
            if self.strict and kept > self.width:
                spare = self._ends(states, stay).argmax(1, keepdim=True)
                absent = ~(index[:, :-1] == spare).any(1, keepdim=True)
                index[:, -1:] = torch.where(absent, spare, index[:, -1:])
                rank = ranks.gather(1, index)
            ended = (frame >= lengths)[:, None]
            index = torch.where(ended, torch.arange(kept), index)
            rank = torch.where(ended, ranks[:, :kept], rank)
            further = index >= width
            place = (index - width).clamp(min=0)
            slot = torch.where(further, place // size, index)
            token = torch.where(further, place % size, BLANK)
            blank = stay_blank.gather(1, slot).masked_fill(further, -torch.inf)
            other = torch.where(further, longer.gather(1, place), stay_other.gather(1, slot))
            before = own.gather(1, slot)
            dead = rank.isneginf()
            own = torch.where(further, _mixed(before, token), before).masked_fill(dead, DEAD)
            parent = torch.where(further, before, parent.gather(1, slot))
            parent = parent.masked_fill(dead, NO_PARENT)
            last = torch.where(further, token, last.gather(1, slot)).masked_fill(dead, BLANK)
            gained = torch.where(further & ~dead, gains.flatten(1).gather(1, place), 0)
            added = added.gather(1, slot) + gained
            blank, other = (p.masked_fill(dead, -torch.inf) for p in (blank, other))
            gains = _chosen(gains, slot)
            states = [_chosen(state, slot) for state in states]
            fresh = (further & ~dead).nonzero(as_tuple=True)  # alone need to be looked at
            if self.fusions and len(fresh[0]):
                grown_by = token[fresh]
                for number, fusion in enumerate(self.fusions):
                    after = fusion.after(states[number][fresh], grown_by)
                    states[number] = states[number].index_put(fresh, after)
                gains = gains.index_put(fresh, self._gains([s[fresh] for s in states], size))
            slots.append(slot)
            trace.append(token)
        total = torch.logaddexp(blank, other)
        return total, self._ends(states, total + added), slots, trace

    def _gains(self, states: Sequence[Tensor], size: int) -> Tensor:
        """What each token adds to each prefix, `(N, V)`; of no fusion `(1, V)`."""
        gains = torch.zeros(1, size)
        for fusion, state in zip(self.fusions, states, strict=True):
            gains = gains + fusion.gains(state)
        return gains

    def _ends(self, states: Sequence[Tensor], scores: Tensor) -> Tensor:
        """The scores `(B, W)` of prefixes that end there."""
        for fusion, state in zip(self.fusions, states, strict=True):
            scores = scores + fusion.ends(state.flatten(0, 1)).view_as(scores)
        return scores


def beam(
    logits: Tensor,
    lengths: Tensor,
    vocabulary: Sequence[str] | None = None,
    width: int = 16,
    **knowledge: Any,
) -> list[Hypothesis]:
    """The best hypothesis of each item by a `BeamSearch`, which says what there is to know; make
    one where many batches are searched."""
    return BeamSearch(vocabulary, width, **knowledge)(logits, lengths)


def n_best(
    logits: Tensor,
    lengths: Tensor,
    count: int,
    vocabulary: Sequence[str] | None = None,
    width: int = 16,
    **knowledge: Any,
) -> list[list[Hypothesis]]:
    """The best hypotheses of each item by a `BeamSearch`, best first; see `beam`."""
    return BeamSearch(vocabulary, width, **knowledge).n_best(logits, lengths, count)


def _chosen(values: Tensor, slot: Tensor) -> Tensor:
    """Of values `(B, W, C)` those at some places `(B, K)`."""
    return values.gather(1, slot[..., None].expand(-1, -1, values.shape[-1]))


def _mixed(prefixes: Tensor, tokens: Tensor) -> Tensor:
    """The hash, of 64 bits, of each prefix longer by a token (the finaliser of SplitMix64)."""
    x = prefixes * -7046029254386353131 + tokens
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)


def _traced(best: Tensor, slots: Sequence[Tensor], trace: Sequence[Tensor]) -> Tensor:
    """The tokens by which the prefixes `best` `(B, N)` of the last beam grew longer, at their
    frames, and blanks, `(B, N, T)`."""
    grown = [best.new_zeros(*best.shape, 0)]
    for slot, token in zip(reversed(slots), reversed(trace), strict=True):
        grown.append(token.gather(1, best)[..., None])
        best = slot.gather(1, best)
    return torch.cat(grown[::-1], 2)


__all__: Sequence[str] = ("BeamSearch", "beam", "n_best")
