"""The simple method that a net of texts has to beat, and may ask: NB-SVM on TF-IDF."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from resbackbones.classifier import ResidualClassifier
from resbackbones.data import Source
from resbackbones.metrics import Confusion, MultiLabel
from resbackbones.text import TextItems, TfidfClassifier, choose_share
from resbackbones.train import World, evaluate
from tasks._running import wrapped

NAME = "NB-SVM on TF-IDF"


def texts(source: Source) -> list[Sequence[str | None]]:
    """A source's texts, a column of them or, of pairs, two."""
    return [source.dataset[source.columns[role]] for role in source.inputs]


def whole(items: TextItems) -> list[str]:
    """The text of each item; of a pair, both."""
    return list(map(" ".join, zip(*texts(items.source.select(items.rows)), strict=True)))


def fit(train: TextItems, balanced: bool) -> TfidfClassifier:
    """The baseline of these items."""
    names = train.source.target.names
    return TfidfClassifier.fit(whole(train), train.labels, len(names), balanced=balanced)


def part_of_the_answer(
    train: TextItems, others: Iterable[TextItems], tokenizer: Any, balanced: bool
) -> TfidfClassifier:
    """Fit the baseline, once for all processes, and hand it to a tokenizer; others than the
    training items, in whose training the net is by itself, are told its logits."""
    tokenizer.tfidf = tfidf = World.now().once(lambda: fit(train, balanced))
    for items in others:
        items.tfidf_logits = tfidf.logits(whole(items))
    return tfidf


def baseline(tfidf: TfidfClassifier, test: TextItems) -> tuple[str, Confusion | MultiLabel]:
    """What it makes of the test's texts."""
    names, labels = test.source.target.names, test.labels
    metric = (Confusion if labels.ndim == 1 else MultiLabel)(len(names), names)
    logits = tfidf.logits(whole(test)) if test.tfidf_logits is None else test.tfidf_logits
    loss = torch.tensor(float("nan"))  # not asked for
    metric.update(SequenceClassifierOutput(loss=loss, logits=logits), {"labels": labels})
    return NAME, metric


def share_out(model: ResidualClassifier, validation: TextItems, **options: Any) -> None:
    """Give the baseline the share in a model's answers that does best on the validation rows."""
    model.config.tfidf, found = 0.0, _Logits()
    evaluate(model, validation, found, **options)
    model.config.tfidf = choose_share(*map(torch.cat, zip(*found.parts, strict=True)))
    if World.now().first:
        share = f"{model.config.tfidf:.0%}".replace("%", " %")
        print(wrapped(f"{NAME} has a share of {share} in the answers, the net the rest"))


class _Logits:
    """Keeps what a net and the baseline answered to each item, and what was right."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, output: Any, batch: Any) -> None:
        found = output.logits, batch["tfidf_logits"], batch["labels"]
        self.parts.append(tuple(each.cpu() for each in found))

    def merge(self, other: "_Logits") -> None:
        self.parts += other.parts

    def compute(self) -> dict[str, float]:
        return {}
