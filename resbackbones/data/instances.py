"""Masks of single objects, run-length encoded as COCO has them (Lin et al. 2014), by
faster-coco-eval: `{"size": [height, width], "counts": bytes}`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

RunLengths = dict[str, Any]


def encode(masks: Tensor) -> list[RunLengths]:
    """Masks `(N, H, W)`, not 0 in the object, run-length encoded.

    >>> encode(torch.ones(1, 2, 3))
    [{'size': [2, 3], 'counts': b'06'}]
    """
    from faster_coco_eval.core import mask

    pixels = (masks != 0).to(torch.uint8).cpu().numpy().transpose(1, 2, 0)
    return mask.encode(np.asfortranarray(pixels)) if len(masks) else []


def decode(masks: Sequence[RunLengths], size: Sequence[int]) -> Tensor:
    """Run-length encoded masks of this height and width, as uint8 `(N, H, W)`, 1 in the object.

    >>> decode([{"size": [1, 3], "counts": b"12"}], (1, 3))
    tensor([[[0, 1, 1]]], dtype=torch.uint8)
    """
    from faster_coco_eval.core import mask

    if not masks:
        return torch.zeros(0, *size, dtype=torch.uint8)
    return torch.from_numpy(np.ascontiguousarray(mask.decode(list(masks)).transpose(2, 0, 1)))


def counts_of(segmentation: Any, size: tuple[int | None, int | None]) -> str | None:
    """The run lengths of an object's mask, from a COCO annotation's segmentation: polygons, each
    x, y, x, y, …, or run lengths, compressed or not. None of what is no such, of an image of
    another width and height than these or of unknown ones, or of no pixel.

    >>> counts_of([[1, 0, 3, 0, 3, 2, 1, 2]], (4, 2))
    '242'
    >>> counts_of({"size": [1, 3], "counts": [1, 2]}, (3, 1))
    '12'
    >>> counts_of([[1, 0, 3, 0]], (4, 2)), counts_of(None, (4, 2)), counts_of([], (4, 2))
    (None, None, None)
    """
    from faster_coco_eval.core import mask

    width, height = size
    if width is None or height is None:
        return None
    try:
        if isinstance(segmentation, dict):
            if list(segmentation["size"]) != [height, width]:
                return None
            found = segmentation
            if isinstance(segmentation["counts"], list):
                found = mask.frPyObjects(segmentation, height, width)
            mask.decode(found)  # refuses what is not of as many pixels
        else:
            polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
            # Coordinates far away would be drawn, too, pixel by pixel.
            least, most = -max(height, width), 2 * max(height, width)
            for polygon in polygons:
                if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2:
                    return None
                if not ((polygon >= least) & (polygon <= most)).all():
                    return None
            drawn = mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
            found = mask.merge(drawn)
        counts = found["counts"] if int(mask.area(found)) else None
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        RuntimeError,
    ):  # as the decoder raises them
        return None
    return counts.decode() if isinstance(counts, bytes) else counts
