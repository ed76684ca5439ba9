"""Boxes `(N, 4)`: x and y of the upper left corner, then of the lower right one, in pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import batched_nms
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from resbackbones.errors import InputError

# A colour per class, again from the first after the last: Okabe and Ito's, told apart by everyone.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")

FOUND = ("boxes", "scores", "labels", "masks")  # of an image, by a detector of two stages


@torch.no_grad()
def select(
    output: Any,
    threshold: float = 0.5,
    overlap: float = 0.6,
    limit: int = 100,
    candidates: int = 1000,
) -> list[dict[str, Tensor]]:
    """What a detector saw, from all that it considered: the best-scored boxes, of several that
    overlap one.

    Args:
        output: of a detector of one stage: `.logits` `(B, A, K)`, `.pred_boxes` `(B, A, 4)` and,
            of FCOS, `.centerness` `(B, A, 1)`, which a box's score is the geometric mean with. One
            of two stages has chosen: `.boxes`, `.scores`, `.labels` and, if there are, `.masks`.
        threshold: scores above it alone.
        overlap: of two boxes of a class whose intersection over union is greater, the better stays.
        limit: boxes per image at most.
        candidates: so many of the best scores are looked at.

    Returns:
        Per image "boxes" `(N, 4)`, "scores" `(N,)` from high to low, "labels" int64 `(N,)` and, of
        a detector that makes them, "masks" `(N, 28, 28)`, each over its box.

    Raises:
        InputError: an output of training that holds a loss alone.
    """
    if output.get("scores") is not None:
        names = [name for name in FOUND if output.get(name) is not None]
        columns = zip(*(output[name] for name in names), strict=True)
        images = [dict(zip(names, values, strict=True)) for values in columns]
        # Scores fall, so that those above the threshold come first.
        counts = [min(limit, int((one["scores"] > threshold).sum())) for one in images]
        return [
            {name: value[:count] for name, value in one.items()}
            for one, count in zip(images, counts, strict=True)
        ]
    if output.get("logits") is None:
        raise InputError(
            "this output holds a loss alone, as a detector of two stages makes it of labels in "
            "training mode; call model.eval() first"
        )
    scores = output.logits.float().sigmoid()
    if output.get("centerness") is not None:
        scores = (scores * output.centerness.float().sigmoid()).sqrt()
    classes = scores.shape[-1]
    best, places = scores.flatten(1).topk(min(candidates, scores[0].numel()))
    found = []
    for values, place, boxes in zip(best, places, output.pred_boxes.float(), strict=True):
        sure = values > threshold
        values, place = values[sure], place[sure]
        boxes, labels = boxes[place // classes], place % classes
        kept = batched_nms(boxes, values, labels, overlap)[:limit]
        found.append({"boxes": boxes[kept], "scores": values[kept], "labels": labels[kept]})
    return found


def pasted(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """What is of each object in an image of this height and width, bool `(N, H, W)`.

    Args:
        masks: how sure each part of a box is to be of the object, `(N, 28, 28)`.
        boxes: `(N, 4)`, in pixels of the image.
    """
    height, width = size
    return paste_masks_in_image(masks.unsqueeze(1), boxes, (height, width)).squeeze(1) > 0.5


def check_boxes(labels: Any, items: int, classes: int) -> None:
    """Refuse labels that no detector can learn from.

    Args:
        labels: what was given for a batch.
        items: images in it.
        classes: how many there are.

    Raises:
        InputError: what is not one {"boxes" (N, 4), "class_labels" (N,)} per image, a box without
            an area, a class that there is not.
    """
    if isinstance(labels, Mapping) or not isinstance(labels, Sequence) or len(labels) != items:
        what = f"{len(labels)} of them" if isinstance(labels, list | tuple) else type(labels)
        raise InputError(
            f"labels of {items} images are {what}; give a list with one "
            '{"boxes": (N, 4), "class_labels": (N,)} per image'
        )
    for number, label in enumerate(labels):
        boxes, names = (
            label.get(key) if isinstance(label, Mapping) else None
            for key in ("boxes", "class_labels")
        )
        if not isinstance(boxes, Tensor) or not isinstance(names, Tensor):
            raise InputError(
                f'the label of image {number} of the batch has no tensors "boxes" and '
                '"class_labels"; give both, of (0, 4) and (0,) where there is no object'
            )
        if boxes.ndim != 2 or boxes.shape[1] != 4 or names.shape != boxes.shape[:1]:
            raise InputError(
                f"image {number} of the batch has boxes {tuple(boxes.shape)} and class_labels "
                f"{tuple(names.shape)}; expected (N, 4) and (N,)"
            )
    boxes = torch.cat([label["boxes"] for label in labels])
    names = torch.cat([label["class_labels"] for label in labels])
    flat = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1))
    strange = (names < 0) | (names >= classes)
    if (flat | strange).any():
        row = int((flat | strange).nonzero()[0])
        image = next(
            number
            for number in range(items)
            if row < sum(len(label["boxes"]) for label in labels[: number + 1])
        )
        box = [round(side, 2) for side in boxes[row].tolist()]
        if flat[row]:
            raise InputError(
                f"image {image} of the batch has the box {box}, which has no area; give x1, y1, "
                "x2, y2 in pixels with x1 < x2 and y1 < y2"
            )
        raise InputError(
            f"image {image} of the batch has a box of class {int(names[row])}, but there are the "
            f"classes 0 to {classes - 1}; number them from 0, without one for the background"
        )


def draw_boxes(
    image: PIL.Image.Image,
    found: Mapping[str, Any],
    names: Sequence[str] | None = None,
    width: int = 2,
) -> PIL.Image.Image:
    """An image with boxes drawn on it, and masks where there are, a colour per class.

    Args:
        image: the boxes' own.
        found: as `predict` gives it: "boxes" `(N, 4)`, "labels" (names or numbers) and, if there
            are, "scores" and "masks" `(N, H, W)`; or a label of a data set, with "class_labels".
        names: of the classes, where labels are numbers.
        width: of the lines, in pixels.
    """
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)
    boxes = torch.as_tensor(found["boxes"]).cpu()
    if not len(boxes):
        return PIL.Image.fromarray(pixels.movedim(0, -1).numpy())
    labels = found["labels"] if "labels" in found else found["class_labels"]
    labels = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    known = list(names) if names is not None else sorted(set(labels))
    said = [known[label] if isinstance(label, int) and names is not None else label
            for label in labels]  # fmt: skip
    colours = [COLOURS[known.index(label) % len(COLOURS)] for label in said]
    if "scores" in found:
        scores = torch.as_tensor(found["scores"]).tolist()
        said = [f"{label} {score:.2f}" for label, score in zip(said, scores, strict=True)]
    if "masks" in found:
        masks = torch.as_tensor(found["masks"]).cpu() != 0
        pixels = draw_segmentation_masks(pixels, masks, alpha=0.5, colors=colours)
    drawn = draw_bounding_boxes(pixels, boxes, list(map(str, said)), colours, width=width)
    return PIL.Image.fromarray(drawn.movedim(0, -1).numpy())


__all__: Sequence[str] = ("check_boxes", "draw_boxes", "pasted", "select")
