"""Which words a classifier goes by: integrated gradients, and the text in their colours."""

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resbackbones.core.backbone import modes_kept
from resbackbones.errors import InputError
from resbackbones.text.models import ResidualForSequenceClassification
from resbackbones.text.tfidf import WORD

CHUNK = 16  # steps of the path that pass the net together
FOR, AGAINST = (70, 130, 240), (240, 120, 50)  # blue and orange, which most eyes tell apart
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Which words speak for an answer</title>
<style>
body {{ font: 16px/1.6 sans-serif; max-width: 50em; margin: 2em auto; color: black; background: white }}
blockquote {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 2em }}
</style>
<p>Words in <span style="background: {speaks_for}">blue</span> speak for the answer, words in
<span style="background: {speaks_against}">orange</span> against it; a word's number shows where the
pointer rests.</p>
{texts}
"""  # noqa: E501


@dataclass(frozen=True)
class Attribution:
    """What each word of a text says for a class.

    Attributes:
        text: as it was given.
        label: the class.
        score: its probability.
        spans: first and last-plus-one character of each word, in order; what lies between them has
            no say. Nor has what the tokenizer cut off, unless a TF-IDF classifier, which reads all,
            has a share in the answer.
        values: how far each word moved the class's logit, up or down, float32 `(words,)`. Their sum
            is by how much the logit differs from that of as many tokens without a meaning, and
            without an n-gram that the TF-IDF classifier knows.
    """

    text: str
    label: str
    score: float
    spans: tuple[tuple[int, int], ...]
    values: Tensor

    def ansi(self) -> str:
        """The text for a terminal of 24-bit colours; what would control it is shown as �."""
        parts = []
        for piece, value, share in self._pieces():
            shown = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in piece)
            if value is not None:
                color = ";".join(map(str, _color(share)))
                shown = f"\x1b[30;48;2;{color}m{shown}\x1b[0m"
            parts.append(shown)
        return "".join(parts)

    def html(self) -> str:
        """The text as a paragraph of a page, escaped; `attribution_page` makes the whole."""
        parts = []
        for piece, value, share in self._pieces():
            shown = html.escape(piece)
            if value is not None:
                style = f"background: {_css(_color(share))}"
                shown = f'<span style="{style}" title="{value:+.3f}">{shown}</span>'
            parts.append(shown)
        answer = f"<b>{html.escape(self.label)}</b> {100 * self.score:.1f} %"
        return f"<p>{answer}</p>\n<blockquote>{''.join(parts)}</blockquote>"

    def _pieces(self) -> Iterator[tuple[str, float | None, float]]:
        """The whole text in pieces: each with its value, and its share of the largest one, -1 to 1;
        None where it is of no word."""
        largest = float(self.values.abs().max()) if len(self.values) else 0.0
        end = 0
        for (start, stop), value in zip(self.spans, self.values.tolist(), strict=True):
            yield self.text[end:start], None, 0.0
            yield self.text[start:stop], value, value / largest if largest else 0.0
            end = stop
        yield self.text[end:], None, 0.0


def attribute(
    model: ResidualForSequenceClassification,
    text: str,
    label: str | int | None = None,
    *,
    steps: int = 64,
) -> Attribution:
    """Which words of a text speak for a class: integrated gradients of its logit (Sundararajan et
    al. 2017, section 3) along the straight line from vectors of 0, which is what the padding has,
    to those of the tokens. Special tokens are the same all along. Tokens add up to whole words.
    A TF-IDF classifier with a share in the answer needs no line: `TfidfClassifier.said`.

    Args:
        model: in any mode; its modes and gradients stay as they are.
        text: one; of a text that the tokenizer cuts, the net reads what it keeps.
        label: the class, by name or number; by default the likeliest.
        steps: points on the line. The values add up to the difference of the logits but for an
            error that falls with their number.

    Raises:
        InputError: what is no text, no such class, no steps, or a model without a tokenizer.

    >>> from resbackbones.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["who is it", "what is it"], "character")
    >>> model = ResidualForSequenceClassification.build(
    ...     "dpcnn", labels=["person", "thing"], processor=tokenizer
    ... )
    >>> found = attribute(model, "who is it?", "person")
    >>> [found.text[start:end] for start, end in found.spans]
    ['who', ' ', 'is', ' ', 'it', '?']
    """
    if not isinstance(text, str):
        raise InputError(f"{text!r:.40} is no text; give one string")
    if steps < 1:
        raise InputError(f"steps={steps} make no line; give 1 or more")
    if model.processor is None:
        raise InputError("the model has no tokenizer; set model.processor to its own")
    number = None if label is None else model.class_number(label)
    encoded = model.processor(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0]
    real = offsets[:, 1] > offsets[:, 0]  # special tokens come from no character
    inputs = {
        name: encoded[name].to(model.device)
        for name in ("input_ids", "ngram_ids", "tfidf_logits")
        if name in encoded
    }
    share = model.config.tfidf
    with modes_kept(model), torch.no_grad():
        model.eval()
        scores = model.scores(logits := model(**inputs).logits)[0]
        inputs.pop("tfidf_logits", None)
        vectors = model.embedding(**inputs)
        if number is None:
            number = int(logits[0].argmax())
        moved = vectors * real.to(model.device)
        start = vectors - moved
        total = torch.zeros_like(moved)
        with torch.enable_grad():
            for points in ((torch.arange(steps) + 0.5) / steps).split(CHUNK):
                path = start + points.to(moved).view(-1, 1, 1) * moved
                reached = model.classify(path.requires_grad_())[:, number].sum()
                (gradient,) = torch.autograd.grad(reached, path)
                total += gradient.sum(0)
    values = (1 - share) * (total * moved / steps)[0].sum(0).float().cpu()
    spans, owners = _words(text if share else text[: offsets.max()], offsets[real].tolist())
    summed = torch.zeros(len(spans)).index_add_(0, torch.tensor(owners).long(), values[real])
    if share:
        said = share * model.processor.tfidf.said(text, number)
        summed += torch.tensor([float(said[start:end].sum()) for start, end in spans])
    names = list((model.config.id2label or {}).values())
    return Attribution(text, names[number], float(scores[number]), spans, summed)


def attribution_page(attributions: Iterable[Attribution]) -> str:
    """Texts in the colours of their words, as a page of HTML that needs nothing beside it."""
    return PAGE.format(
        speaks_for=_css(FOR),
        speaks_against=_css(AGAINST),
        texts="\n".join(each.html() for each in attributions),
    )


def _words(
    text: str, tokens: Sequence[Sequence[int]]
) -> tuple[tuple[tuple[int, int], ...], list[int]]:
    """The words that tokens make up, as places in the text, and the number of each token's word.

    A word is a run of letters and digits, or of other signs, and whatever shares a token with it.
    Tokens of blanks alone stand for themselves.

    >>> _words("it's so", [(0, 2), (2, 4), (4, 7)])
    (((0, 2), (2, 4), (5, 7)), [0, 1, 2])
    >>> _words("unheard", [(0, 2), (2, 7)])
    (((0, 7),), [0, 0])
    """
    places = []
    for start, end in tokens:
        piece = text[start:end]
        if piece.strip():
            start, end = end - len(piece.lstrip()), start + len(piece.rstrip())
        places.append((start, end))
    runs = [match.span() for match in WORD.finditer(text)]
    spans: list[list[int]] = []
    for start, end in sorted({*places, *runs}):
        if spans and start < spans[-1][1]:
            spans[-1][1] = max(end, spans[-1][1])
        else:
            spans.append([start, end])
    ends = torch.tensor([end for _, end in spans])
    starts = torch.tensor([start for start, _ in places])
    owners = torch.searchsorted(ends, starts, right=True).tolist() if places else []
    return tuple((start, end) for start, end in spans), owners


def _color(share: float) -> tuple[int, int, int]:
    """From white, of nothing, to the colour of what speaks most for a class, or against it."""
    end = FOR if share > 0 else AGAINST
    red, green, blue = (round(255 + abs(share) * (channel - 255)) for channel in end)
    return red, green, blue


def _css(color: tuple[int, int, int]) -> str:
    return f"rgb({', '.join(map(str, color))})"


__all__: Sequence[str] = ("Attribution", "attribute", "attribution_page")
