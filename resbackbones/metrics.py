"""Metrics that stream: one batch at a time, small, merged once over the processes of a run.

Whatever is added up is kept in whole numbers, whose sum does not depend on the order: any split of
the batches over processes gives the same bits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from resbackbones.errors import InputError

UNIT = 2.0**-20  # sums of real numbers count these
LIMIT = 2.0**62  # of them, in a whole number of 64 bits
BINS = 15  # of confidence, as Guo et al. 2017 use
_BINNED = ("in_bin", "correct", "confidence")
TOP = 5
LEVELS = 2048  # that logits are counted at, evenly from -16 to 16


class Metric(Protocol):
    """What an evaluation adds up. An object can be pickled, so that processes can exchange it."""

    def update(self, output: Any, batch: Mapping[str, Any]) -> None:
        """Count a batch. `output` is what the model made of it, `.loss` and `.logits`; a GPU is not
        waited for."""

    def merge(self, other: Any) -> None:
        """Add what another one counted."""

    def compute(self) -> dict[str, float]:
        """The figures, by name."""


def items(batch: Mapping[str, Any]) -> int:
    """How many items a batch holds: the length of its first value."""
    return len(next(iter(batch.values())))


class _Sums:
    """Named tensors of int64 that are added up on the device where the first batch lies."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.sums = {n: torch.zeros(shape, dtype=torch.int64) for n, shape in shapes.items()}

    def to(self, device: torch.device) -> None:
        self.sums = {name: value.to(device) for name, value in self.sums.items()}

    def merge(self, other: Self) -> None:
        self.sums = {
            name: value.cpu() + other.sums[name].cpu() for name, value in self.sums.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sums": {name: value.cpu() for name, value in self.sums.items()}}


class Mean(_Sums):
    """The mean of a loss over what it is a mean over.

    Args:
        name: of the figure.
        weight: how many items (tokens, frames) a batch counts for; a function of a module, so that
            it can be pickled.

    >>> from types import SimpleNamespace
    >>> mean = Mean()
    >>> for loss, size in ((1.0, 3), (5.0, 1)):
    ...     mean.update(SimpleNamespace(loss=torch.tensor(loss)), {"labels": torch.zeros(size)})
    >>> mean.compute()
    {'loss': 2.0}
    """

    def __init__(
        self, name: str = "loss", weight: Callable[[Mapping[str, Any]], Tensor | int] = items
    ) -> None:
        super().__init__({"sum": (), "weight": (), "broken": ()})
        self.name, self.weight = name, weight

    def update(self, output: Any, batch: Mapping[str, Any]) -> None:
        loss = output.loss.detach()
        self.to(loss.device)
        weight = torch.as_tensor(self.weight(batch), device=loss.device)
        units = loss.double() * weight / UNIT
        fits = units.abs() < LIMIT  # neither does what is no number
        self.sums["sum"] += units.where(fits, 0).round().long()
        self.sums["weight"] += weight.long()
        self.sums["broken"] += (~fits).long()

    def compute(self) -> dict[str, float]:
        """The mean; not a number where a loss was none."""
        if self.sums["broken"] or not self.sums["weight"]:
            return {self.name: float("nan")}
        return {self.name: int(self.sums["sum"]) * UNIT / int(self.sums["weight"])}


class _OfClasses(_Sums):
    """What is counted of answers of several classes, and the mean loss beside it."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        classes: int,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(shapes)
        self.classes = classes
        self.names = tuple(names) if names is not None else tuple(map(str, range(classes)))
        self.loss = Mean()

    def _count(self, expected: Tensor, answers: Tensor) -> None:
        raise NotImplementedError

    def _counted(self, expected: Any, answers: Any) -> Self:
        self._count(torch.as_tensor(expected), torch.as_tensor(answers))
        return self

    def merge(self, other: Self) -> None:
        super().merge(other)
        self.loss.merge(other.loss)


def _named(classes: int | Sequence[str]) -> tuple[int, Sequence[str] | None]:
    """How many classes, and their names where they have some."""
    return (classes, None) if isinstance(classes, int) else (len(classes), classes)


class Confusion(_OfClasses):
    """Which classes were taken for which, and how sure the model was of it.

    `compute()` gives `accuracy` and `macro_f1` (shares of one; the latter a mean over the classes
    that occur or were predicted), of more than five classes the `top_5_accuracy`, the expected
    `calibration_error` (Guo et al. 2017, section 2: the mean gap between confidence and accuracy
    over 15 bins of confidence, a share of one) and the mean `loss` (nats).

    Args:
        classes: how many.
        names: of the classes; by default their numbers.

    Attributes:
        counts: int64 `(K, K)`, expected class by predicted class.

    >>> confusion = Confusion.of([0, 0, 1, 1], [0, 1, 1, 1], 2)
    >>> confusion.counts.tolist()
    [[1, 1], [0, 2]]
    >>> confusion.compute()["accuracy"]
    0.75
    """

    def __init__(self, classes: int, names: Sequence[str] | None = None) -> None:
        shapes = {"counts": (classes**2,), "top": (), **dict.fromkeys(_BINNED, (BINS,))}
        super().__init__(shapes, classes, names)

    @classmethod
    def of(cls, expected: Any, predicted: Any, classes: int | Sequence[str]) -> Self:
        """What is known of predicted classes alone: `compute()` has no calibration and no loss.

        Args:
            expected, predicted: numbers of classes, `(N,)` each.
            classes: how many, or their names.
        """
        return cls(*_named(classes))._counted(expected, predicted)

    def update(self, output: Any, batch: Mapping[str, Any]) -> None:
        logits, labels = output.logits.detach(), batch["labels"]
        if labels.ndim != 1:
            raise InputError(
                f"labels of shape {tuple(labels.shape)} are no classes to count; evaluate on items "
                "with one class each, (B,)"
            )
        self.to(logits.device)
        confidence, predicted = logits.double().softmax(-1).max(-1)
        labels = labels.to(logits.device)
        self._count(labels, predicted)
        self.sums["top"] += (_ahead(logits, labels) < TOP).sum()
        self.loss.update(output, batch)
        # A confidence that is no number lies in no bin: it counts in the lowest.
        place = (confidence.nan_to_num(0.0) * BINS).long().clamp(max=BINS - 1)
        units = (confidence.nan_to_num(0.0) / UNIT).round().long()
        for name, value in zip(_BINNED, (1, (labels == predicted).long(), units), strict=True):
            self.sums[name].index_add_(0, place, torch.ones_like(place) * value)

    def _count(self, expected: Tensor, predicted: Tensor) -> None:
        place = expected.long() * self.classes + predicted.long()
        self.sums["counts"].index_add_(0, place, torch.ones_like(place))

    @property
    def counts(self) -> Tensor:
        return self.sums["counts"].view(self.classes, self.classes).cpu()

    def most_confused(self, most: int = 3) -> list[tuple[str, str, int, int]]:
        """The pairs of classes that most items were confused in: the one expected, the one it was
        taken for, how many items were, and of how many; those first that were most.

        >>> Confusion.of([0, 0, 1, 1], [1, 0, 1, 1], ["cat", "dog"]).most_confused()
        [('cat', 'dog', 1, 2)]
        """
        counts = self.counts
        wrong = counts - counts.diagonal().diag()
        order = wrong.flatten().sort(descending=True, stable=True).indices[:most].tolist()
        pairs = [divmod(place, self.classes) for place in order]
        there = counts.sum(1).tolist()
        return [
            (self.names[own], self.names[other], int(wrong[own, other]), there[own])
            for own, other in pairs
            if wrong[own, other]
        ]

    def compute(self) -> dict[str, float]:
        right, scores = self.counts.diagonal(), self.per_class()
        total = int(self.counts.sum())
        seen = [name for name, score in scores.items() if score["support"] or score["predicted"]]
        figures = {
            "accuracy": int(right.sum()) / total if total else float("nan"),
            "macro_f1": sum(scores[name]["f1"] for name in seen) / max(1, len(seen)),
        }
        in_bin, correct, units = (self.sums[name].cpu() for name in _BINNED)
        if in_bin.any():
            if self.classes > TOP:
                figures[f"top_{TOP}_accuracy"] = int(self.sums["top"]) / total
            gaps = (correct.double() - units.double() * UNIT).abs().sum()
            figures["calibration_error"] = float(gaps) / int(in_bin.sum())
            figures |= self.loss.compute()
        return figures

    def per_class(self) -> dict[str, dict[str, float]]:
        """Each class's precision, recall and F1 (0 where nothing says otherwise), how many items it
        has (`support`) and how many were taken for it (`predicted`)."""
        return _scores(self.names, self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0))


class MultiLabel(_OfClasses):
    """Which of its classes each item was given, where it may have any number of them.

    `compute()` gives shares of one, a class counting as given where its logit is above 0:
    `mean_average_precision`, over the classes that occur; `macro_f1`, over those that occur or were
    given; `micro_f1`, of all answers together; and the mean `loss` (nats).

    Average precision (the sum over thresholds of precision times the gain in recall) is that of
    logits rounded to one of 2,048 levels from -16 to 16, 1/64 apart: what ties there, ties. So
    memory is 32 KB per class however many items there are.

    Args:
        classes: how many.
        names: of the classes; by default their numbers.

    Attributes:
        counts: int64 `(K, 2, 2048)`, per class how many items without and with it have a logit of
            each level, low to high.

    >>> from types import SimpleNamespace
    >>> metric = MultiLabel(2)
    >>> output = SimpleNamespace(logits=torch.tensor([[3.0, -1], [1, 2]]), loss=torch.tensor(0.5))
    >>> metric.update(output, {"labels": torch.tensor([[1.0, 0], [0, 1]])})
    >>> {name: round(value, 3) for name, value in metric.compute().items()}
    {'mean_average_precision': 1.0, 'macro_f1': 0.833, 'micro_f1': 0.8, 'loss': 0.5}
    """

    def __init__(self, classes: int, names: Sequence[str] | None = None) -> None:
        super().__init__({"counts": (classes * 2 * LEVELS,)}, classes, names)

    @classmethod
    def of(cls, expected: Any, scores: Any, classes: int | Sequence[str]) -> Self:
        """What is known of scores alone, above 0 for yes: `compute()` has no loss.

        Args:
            expected: 1 for each class that an item has, else 0, `(N, K)`.
            scores: `(N, K)`; rounded as logits are.
            classes: how many, or their names.

        >>> MultiLabel.of([[1, 0], [0, 1]], [[0.5, -1], [1, 2]], 2).compute()["micro_f1"]
        0.8
        """
        return cls(*_named(classes))._counted(expected, scores)

    def update(self, output: Any, batch: Mapping[str, Any]) -> None:
        logits = output.logits.detach()
        labels = batch["labels"].to(logits.device)
        if labels.shape != logits.shape:
            raise InputError(
                f"labels of shape {tuple(labels.shape)} do not say which classes an item has; "
                f"evaluate on items with 1 or 0 for each class, {tuple(logits.shape)}"
            )
        self.to(logits.device)
        self._count(labels, logits)
        self.loss.update(output, batch)

    def _count(self, labels: Tensor, logits: Tensor) -> None:
        # Level LEVELS / 2 is the lowest above 0. What is no number is no yes.
        level = (logits.double().nan_to_num(-math.inf) * (LEVELS / 32)).ceil() + (LEVELS // 2 - 1)
        level = level.clamp(0, LEVELS - 1).long()
        row = 2 * torch.arange(self.classes, device=logits.device) + (labels > 0.5).long()
        place = (row * LEVELS + level).flatten()
        self.sums["counts"].index_add_(0, place, torch.ones_like(place))

    @property
    def counts(self) -> Tensor:
        return self.sums["counts"].view(self.classes, 2, LEVELS).cpu()

    def compute(self) -> dict[str, float]:
        if not self.sums["counts"].any():
            return dict.fromkeys(("mean_average_precision", "macro_f1", "micro_f1"), math.nan)
        scores = list(self.per_class().values())
        seen = [score["f1"] for score in scores if score["support"] or score["predicted"]]
        occur = [score["average_precision"] for score in scores if score["support"]]
        right = int(self.counts[:, 1, LEVELS // 2 :].sum())
        both = sum(score["support"] + score["predicted"] for score in scores)
        return {
            "mean_average_precision": sum(occur) / len(occur) if occur else math.nan,
            "macro_f1": sum(seen) / max(1, len(seen)),
            "micro_f1": 2 * right / max(1, both),
            **(self.loss.compute() if self.loss.sums["weight"] else {}),
        }

    def per_class(self) -> dict[str, dict[str, float]]:
        """As a `Confusion`'s, and each class's `average_precision` (0 where it does not occur)."""
        counts = self.counts
        given = counts[:, :, LEVELS // 2 :].sum(-1)
        found = _scores(self.names, given[:, 1], counts[:, 1].sum(-1), given.sum(1))
        positive, negative = counts[:, 1].flip(-1).double(), counts[:, 0].flip(-1).double()
        hits = positive.cumsum(-1)
        precision = hits / (hits + negative.cumsum(-1)).clamp(min=1)
        average = (precision * positive).sum(-1) / hits[:, -1].clamp(min=1)
        for name, value in zip(self.names, average.tolist(), strict=True):
            found[name]["average_precision"] = value
        return found


def _scores(
    names: Sequence[str], right: Tensor, support: Tensor, predicted: Tensor
) -> dict[str, dict[str, float]]:
    """Of each class, from how many items have it and are taken for it, have it, are taken for it:
    `(K,)` each."""
    counts = zip(names, right.tolist(), support.tolist(), predicted.tolist(), strict=True)
    return {
        name: {
            "precision": hit / max(1, taken),
            "recall": hit / max(1, there),
            "f1": 2 * hit / max(1, there + taken),
            "support": there,
            "predicted": taken,
        }
        for name, hit, there, taken in counts
    }


def _ahead(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the expected one, `(B,)`: those of a higher logit, of the same
    one and a lower number, and of none."""
    number = torch.arange(logits.shape[1], device=logits.device)
    own, expected = logits.gather(1, labels.unsqueeze(1)), labels.unsqueeze(1)
    before = (logits > own) | ((logits == own) & (number < expected)) | logits.isnan()
    return before.sum(1)
