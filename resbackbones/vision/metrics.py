"""How well boxes fit: COCO's average precision."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from resbackbones.metrics import Mean
from resbackbones.vision.boxes import select

DETECTIONS = 100  # per image that count, as COCO has it
SURE = 0.01  # boxes of less are not looked at


class AveragePrecision:
    """COCO's mean average precision (Lin et al. 2014), by faster-coco-eval.

    `compute()` gives `map` (the mean over the classes that occur and over intersections over union
    of 0.5, 0.55, …, 0.95), `ap50` and `ap75` (of 0.5 and of 0.75 alone), shares of one, and the
    mean `loss`. Boxes may be in any pixels, as long as both an image's are in the same.

    Args:
        names: of the classes.

    >>> metric = AveragePrecision(["cat", "dog"])
    >>> box = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    >>> found = {"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([1])}
    >>> metric.add(found, {"boxes": box, "class_labels": torch.tensor([1])})
    >>> metric.compute()
    {'map': 1.0, 'ap50': 1.0, 'ap75': 1.0}
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.loss = Mean()
        # Of each image what was found (box, score, class) and what there is (box, class).
        self.images: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, output: Any, batch: Mapping[str, Any]) -> None:
        """Count a batch: `output` of a detector, `batch["labels"]` as its forward takes them."""
        if output.get("loss") is not None:
            self.loss.update(output, batch)
        found = select(output, SURE, limit=DETECTIONS)
        for one, label in zip(found, batch["labels"], strict=True):
            self.add(one, label)

    def add(self, found: Mapping[str, Tensor], label: Mapping[str, Tensor]) -> None:
        """Count an image.

        Args:
            found: "boxes" `(N, 4)`, "scores" `(N,)` and "labels" `(N,)`, numbers of classes.
            label: "boxes" `(M, 4)` and "class_labels" `(M,)`.
        """
        ours = [found["boxes"], found["scores"][:, None], found["labels"][:, None]]
        theirs = [label["boxes"], label["class_labels"][:, None]]
        self.images.append(
            tuple(
                torch.cat([x.detach().float() for x in side], 1).cpu().numpy()
                for side in (ours, theirs)
            )  # type: ignore[arg-type]
        )

    def merge(self, other: Self) -> None:
        self.images += other.images
        self.loss.merge(other.loss)

    def _precision(self) -> np.ndarray:
        """Precision by intersection over union, recall and class, -1 where there is no such
        object."""
        from faster_coco_eval.core.coco import COCO
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster

        # In an order that does not depend on which process saw what: equal scores are told apart by
        # it.
        images = sorted(self.images, key=lambda image: (image[1].tobytes(), image[0].tobytes()))

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
                }
                for number, image in enumerate(images, 1)
                for row in image[side].tolist()
            ]
            for number, annotation in enumerate(annotations, 1):
                annotation["id"] = number
            made = COCO()
            made.dataset = {
                "images": [{"id": number} for number in range(1, len(images) + 1)],
                "categories": [{"id": n, "name": name} for n, name in enumerate(self.names)],
                "annotations": annotations,
            }
            made.createIndex()
            return made

        evaluation = COCOeval_faster(as_coco(1), as_coco(0), "bbox")
        evaluation.params.maxDets = [DETECTIONS]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])[:, :, :, 0, 0]

    def _by_class(self) -> np.ndarray:
        """Average precision by intersection over union and class, NaN where there is no such
        object."""
        precision = self._precision()
        return np.where((precision > -1).all(1), precision.mean(1), np.nan)

    def compute(self) -> dict[str, float]:
        if not any(len(expected) for _, expected in self.images):
            figures = dict.fromkeys(("map", "ap50", "ap75"), float("nan"))
        else:
            found = np.nanmean(self._by_class(), 1)
            figures = {"map": found.mean(), "ap50": found[0], "ap75": found[5]}
        figures = {name: float(value) for name, value in figures.items()}
        return figures | (self.loss.compute() if self.loss.sums["weight"] else {})

    def per_class(self) -> dict[str, dict[str, float]]:
        """Each class's average precision, over all intersections over union (`ap`) and at 0.5 and
        0.75, how many objects it has (`support`) and how many were found (`predicted`)."""
        support, predicted = (
            np.bincount(
                np.concatenate([image[side][:, -1] for image in self.images]).astype(int),
                minlength=len(self.names),
            )
            for side in (1, 0)
        )
        found = np.nan_to_num(self._by_class())
        return {
            name: {
                "ap": float(found[:, number].mean()),
                "ap50": float(found[0, number]),
                "ap75": float(found[5, number]),
                "support": int(support[number]),
                "predicted": int(predicted[number]),
            }
            for number, name in enumerate(self.names)
        }


__all__: Sequence[str] = ("AveragePrecision",)
