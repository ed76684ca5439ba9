"""Metrics that stream: one batch at a time, small, merged once over the processes of a run.

Whatever is added up is kept in whole numbers, whose sum does not depend on the order: any split of
the batches over processes gives the same bits.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from resbackbones.errors import InputError

UNIT = 2.0**-20  # sums of real numbers count these
LIMIT = 2.0**62  # of them, in a whole number of 64 bits
BINS = 15  # of confidence, as Guo et al. 2017 use
_BINNED = ("in_bin", "correct", "confidence")


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


class Confusion(_Sums):
    """Which classes were taken for which, and how sure the model was of it.

    `compute()` gives `accuracy` and `macro_f1` (shares of one; the latter a mean over the classes
    that occur or were predicted), the expected `calibration_error` (Guo et al. 2017, section 2:
    the mean gap between confidence and accuracy over 15 bins of confidence, a share of one) and the
    mean `loss` (nats).

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
        super().__init__({"counts": (classes**2,), **dict.fromkeys(_BINNED, (BINS,))})
        self.classes = classes
        self.names = tuple(names) if names is not None else tuple(map(str, range(classes)))
        self.loss = Mean()

    @classmethod
    def of(cls, expected: Any, predicted: Any, classes: int | Sequence[str]) -> Self:
        """What is known of predicted classes alone: `compute()` has no calibration and no loss.

        Args:
            expected, predicted: numbers of classes, `(N,)` each.
            classes: how many, or their names.
        """
        names = None if isinstance(classes, int) else classes
        confusion = cls(classes if isinstance(classes, int) else len(classes), names)
        confusion._count(torch.as_tensor(expected), torch.as_tensor(predicted))
        return confusion

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
        self.loss.update(output, batch)
        # A confidence that is no number lies in no bin: it counts in the lowest.
        place = (confidence.nan_to_num(0.0) * BINS).long().clamp(max=BINS - 1)
        units = (confidence.nan_to_num(0.0) / UNIT).round().long()
        for name, value in zip(_BINNED, (1, (labels == predicted).long(), units), strict=True):
            self.sums[name].index_add_(0, place, torch.ones_like(place) * value)

    def _count(self, expected: Tensor, predicted: Tensor) -> None:
        place = expected.long() * self.classes + predicted.long()
        self.sums["counts"].index_add_(0, place, torch.ones_like(place))

    def merge(self, other: Self) -> None:
        super().merge(other)
        self.loss.merge(other.loss)

    @property
    def counts(self) -> Tensor:
        return self.sums["counts"].view(self.classes, self.classes).cpu()

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
            gaps = (correct.double() - units.double() * UNIT).abs().sum()
            figures["calibration_error"] = float(gaps) / int(in_bin.sum())
            figures |= self.loss.compute()
        return figures

    def per_class(self) -> dict[str, dict[str, float]]:
        """Each class's precision, recall and F1 (0 where nothing says otherwise), how many items it
        has (`support`) and how many were taken for it (`predicted`)."""
        right = self.counts.diagonal().tolist()
        support, predicted = self.counts.sum(1).tolist(), self.counts.sum(0).tolist()
        return {
            name: {
                "precision": hit / max(1, taken),
                "recall": hit / max(1, there),
                "f1": 2 * hit / max(1, there + taken),
                "support": there,
                "predicted": taken,
            }
            for name, hit, there, taken in zip(self.names, right, support, predicted, strict=True)
        }
