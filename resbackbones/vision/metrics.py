"""Metrics of image tasks whose answers are more than one class per image."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from resbackbones.data.instances import RunLengths, encode
from resbackbones.errors import InputError
from resbackbones.metrics import Confusion, Mean
from resbackbones.vision.boxes import pasted, select
from resbackbones.vision.processor import at_size

DETECTIONS = 100  # per image that count, as COCO has it
SURE = 0.01  # boxes of less are not looked at
NO_MASK = {"size": [0, 0]}  # an image's size matters where it has masks alone


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


class AveragePrecision:
    """COCO's mean average precision (Lin et al. 2014), by faster-coco-eval.

    `compute()` gives `map` (the mean over the classes that occur and over intersections over union
    of 0.5, 0.55, …, 0.95), `ap50` and `ap75` (of 0.5 and of 0.75 alone), shares of one, and the
    mean `loss`. Boxes may be in any pixels, as long as both an image's are in the same. With masks
    the same of these, too: `mask_map`, `mask_ap50` and `mask_ap75`.

    Args:
        names: of the classes.
        masks: whether objects have masks.

    >>> metric = AveragePrecision(["cat", "dog"])
    >>> box = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    >>> found = {"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([1])}
    >>> metric.add(found, {"boxes": box, "class_labels": torch.tensor([1])})
    >>> metric.compute()
    {'map': 1.0, 'ap50': 1.0, 'ap75': 1.0}
    """

    def __init__(self, names: Sequence[str], masks: bool = False) -> None:
        self.names = tuple(names)
        self.kinds = ("bbox", "segm") if masks else ("bbox",)
        self.loss = Mean()
        # Of each image what was found (box, score, class), what there is (box, class), and the
        # masks of either, run-length encoded.
        self.images: list[tuple[np.ndarray, np.ndarray, list[RunLengths], list[RunLengths]]] = []

    def update(self, output: Any, batch: Mapping[str, Any]) -> None:
        """Count a batch: `output` of a detector, `batch["labels"]` as its forward takes them."""
        if output.get("loss") is not None:
            self.loss.update(output, batch)
        found = select(output, SURE, limit=DETECTIONS)
        for one, label in zip(found, batch["labels"], strict=True):
            if "masks" in one:
                one["masks"] = pasted(one["masks"], one["boxes"], label["masks"].shape[1:])
            self.add(one, label)

    def add(self, found: Mapping[str, Tensor], label: Mapping[str, Tensor]) -> None:
        """Count an image.

        Args:
            found: "boxes" `(N, 4)`, "scores" `(N,)`, "labels" `(N,)`, numbers of classes, and of a
                metric with masks "masks" `(N, H, W)`.
            label: "boxes" `(M, 4)`, "class_labels" `(M,)` and, likewise, "masks" `(M, H, W)`.
        """
        ours = [found["boxes"], found["scores"][:, None], found["labels"][:, None]]
        theirs = [label["boxes"], label["class_labels"][:, None]]
        answers, objects = (
            torch.cat([x.detach().float() for x in side], 1).cpu().numpy()
            for side in (ours, theirs)
        )
        masks = (encode(x["masks"]) if "segm" in self.kinds else [] for x in (found, label))
        self.images.append((answers, objects, *masks))  # type: ignore[arg-type]

    def merge(self, other: Self) -> None:
        self.images += other.images
        self.loss.merge(other.loss)

    def _precision(self, kind: str) -> np.ndarray:
        """Precision by intersection over union (of boxes, "bbox", or masks, "segm"), recall and
        class, -1 where there is no such object."""
        from faster_coco_eval.core.coco import COCO
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster

        # In an order that does not depend on which process saw what: equal scores are told apart by
        # it.
        images = sorted(
            self.images, key=lambda x: (x[1].tobytes(), x[0].tobytes(), repr(x[3]), repr(x[2]))
        )

        def as_coco(side: int) -> COCO:
            annotations = [
                {
                    "id": 0,
                    "image_id": number,
                    "category_id": int(row[-1]),
                    "bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]],
                    "area": (row[2] - row[0]) * (row[3] - row[1]),
                    "iscrowd": 0,
                    **({} if side else {"score": row[4]}),
                    **({"segmentation": image[2:][side][place]} if kind == "segm" else {}),
                }
                for number, image in enumerate(images, 1)
                for place, row in enumerate(image[:2][side].tolist())
            ]
            for number, annotation in enumerate(annotations, 1):
                annotation["id"] = number
            made = COCO()
            made.dataset = {
                "images": [
                    {"id": number, "height": height, "width": width}
                    for number, image in enumerate(images, 1)
                    for height, width in [[*image[2], *image[3], NO_MASK][0]["size"]]
                ],
                "categories": [{"id": n, "name": name} for n, name in enumerate(self.names)],
                "annotations": annotations,
            }
            made.createIndex()
            return made

        evaluation = COCOeval_faster(as_coco(1), as_coco(0), kind)
        evaluation.params.maxDets = [DETECTIONS]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])[:, :, :, 0, 0]

    def _by_class(self, kind: str) -> np.ndarray:
        """Average precision by intersection over union and class, NaN where there is no such
        object."""
        precision = self._precision(kind)
        return np.where((precision > -1).all(1), precision.mean(1), np.nan)

    def compute(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for kind in self.kinds:
            found = np.full(10, np.nan)
            if any(len(image[1]) for image in self.images):
                found = np.nanmean(self._by_class(kind), 1)
            figures |= _named(kind, map=found.mean(), ap50=found[0], ap75=found[5])
        return figures | (self.loss.compute() if self.loss.sums["weight"] else {})

    def per_class(self) -> dict[str, dict[str, float]]:
        """Each class's average precision, over all intersections over union (`ap`) and at 0.5 and
        0.75, that of its masks, how many objects it has (`support`) and how many were found
        (`predicted`)."""
        support, predicted = (
            np.bincount(
                np.concatenate([image[:2][side][:, -1] for image in self.images]).astype(int),
                minlength=len(self.names),
            )
            for side in (1, 0)
        )
        scores: dict[str, dict[str, float]] = {name: {} for name in self.names}
        for kind in self.kinds:
            by_class = np.nan_to_num(self._by_class(kind)).T
            for score, found in zip(scores.values(), by_class, strict=True):
                score |= _named(kind, ap=found.mean(), ap50=found[0], ap75=found[5])
        for number, score in enumerate(scores.values()):
            score |= {"support": int(support[number]), "predicted": int(predicted[number])}
        return scores


def _named(kind: str, **figures: float) -> dict[str, float]:
    """Figures under their names, those of masks told from those of boxes."""
    prefix = "mask_" if kind == "segm" else ""
    return {f"{prefix}{name}": float(value) for name, value in figures.items()}


__all__: Sequence[str] = ("AveragePrecision", "PixelConfusion", "real_pixels")
