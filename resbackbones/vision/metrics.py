"""Metrics of image tasks whose answers are more than one class per image."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from resbackbones.errors import InputError
from resbackbones.metrics import Confusion, Mean
from resbackbones.vision.processor import at_size


def real_pixels(batch: Mapping[str, Any], ignore_index: int) -> Tensor:
    """How many pixels of a batch's masks have a class."""
    return (batch["labels"] != ignore_index).sum()


class PixelConfusion(Confusion):
    """Which classes pixels were taken for; pixels of no class are left out.

    `compute()` gives, as shares of one, `mean_iou` and `mean_dice` (means over the classes that
    occur or were predicted, of intersection over union and of the Dice coefficient) and
    `pixel_accuracy`, and the mean `loss` per pixel (nats). All are of the whole data set's counts,
    not means over images.

    Args:
        classes: how many.
        names: of the classes; by default their numbers.
        ignore_index: the label of pixels that have no class.

    >>> confusion = PixelConfusion.of([0, 0, 0, 1], [0, 0, 1, 1], 2)
    >>> {name: round(value, 3) for name, value in confusion.compute().items()}
    {'mean_iou': 0.583, 'mean_dice': 0.733, 'pixel_accuracy': 0.75}
    """

    def __init__(
        self, classes: int, names: Sequence[str] | None = None, ignore_index: int = 255
    ) -> None:
        super().__init__(classes, names)
        self.ignore_index = ignore_index
        self.sums = {"counts": self.sums["counts"]}
        self.loss = Mean(weight=partial(real_pixels, ignore_index=ignore_index))

    def update(self, output: Any, batch: Mapping[str, Any]) -> None:
        """Count a batch.

        Args:
            output: `.logits` `(B, K, h, w)`, brought to the labels' size, and `.loss`.
            batch: `labels` int64 `(B, H, W)`.

        Raises:
            InputError: labels of another shape.
        """
        logits, labels = output.logits.detach(), batch["labels"]
        if labels.ndim != 3 or len(labels) != len(logits):
            raise InputError(
                f"labels of shape {tuple(labels.shape)} are no masks of {len(logits)} images; "
                "evaluate on one class per pixel, (B, H, W)"
            )
        self.to(logits.device)
        predicted = at_size(logits, labels.shape[-2:]).argmax(1)
        self.count(labels.to(logits.device), predicted)
        self.loss.update(output, batch)

    def count(self, expected: Tensor, predicted: Tensor) -> None:
        """Count pixels, int64 of any shape, without a loss."""
        expected, predicted = expected.flatten().long(), predicted.flatten().long()
        # What has no class is counted in a place of its own: picking out the others would wait for
        # a GPU.
        nowhere = self.classes**2
        place = (expected * self.classes + predicted).where(expected != self.ignore_index, nowhere)
        if place.device.type == "cpu":
            counts = torch.bincount(place, minlength=nowhere + 1)
        else:
            counts = torch.zeros(nowhere + 1, dtype=torch.int64, device=place.device)
            counts.index_add_(0, place, torch.ones_like(place))
        self.sums["counts"] += counts[:nowhere]

    _count = count  # as `Confusion.of` calls it

    def compute(self) -> dict[str, float]:
        scores = [s for s in self.per_class().values() if s["support"] or s["predicted"]]
        total = int(self.counts.sum())
        right = int(self.counts.diagonal().sum())
        nothing = float("nan")
        figures = {
            "mean_iou": sum(s["iou"] for s in scores) / len(scores) if scores else nothing,
            "mean_dice": sum(s["f1"] for s in scores) / len(scores) if scores else nothing,
            "pixel_accuracy": right / total if total else nothing,
        }
        loss = self.loss.compute()
        return figures | (loss if self.loss.sums["weight"] else {})

    def per_class(self) -> dict[str, dict[str, float]]:
        """What `Confusion` tells of each class, in pixels (its F1 is the Dice coefficient), and its
        intersection over union (`iou`)."""
        scores = super().per_class()
        for score, hit in zip(scores.values(), self.counts.diagonal().tolist(), strict=True):
            score["iou"] = hit / max(1, score["support"] + score["predicted"] - hit)
        return scores
