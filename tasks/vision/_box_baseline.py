"""The simple method that a detector has to beat: windows of the usual sizes all over the image."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, roi_align

from resbackbones.vision import AveragePrecision, BoxItems

BINS = 8  # a window's pixels along each side
SHAPES = 3  # of windows, per class
STEP, LEAST = 1 / 6, 4.0  # how far the next window is: a share of a side, pixels at least
MOST = 20_000  # windows that are learned from
FEATURES = 500  # of the approximated kernel
PER_IMAGE = 200  # of them without an object
LIKE, UNLIKE = 0.6, 0.4  # overlaps with an object from which, and up to which, a window shows it


def baseline(train: BoxItems, test: BoxItems) -> tuple[str, AveragePrecision]:
    """Name and answers on `test` of sliding windows (Dalal and Triggs 2005, section 2, with pixels
    for gradients): of each class's usual sizes, around it its surroundings, told apart by ridge
    regression on RBF features (Williams and Seeger 2001) of their pixels, the best of several that
    overlap kept."""
    from sklearn.decomposition import PCA
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    names = train.source.target.names
    metric = AveragePrecision(names)
    shapes = _shapes(train, len(names))
    random = torch.Generator().manual_seed(0)
    features, classes = [], []
    for image, label in _images(train):
        windows = _grid(image, shapes)
        boxes, kinds = label["boxes"], label["class_labels"]
        kind = torch.full((len(windows),), len(names))
        if len(boxes):
            overlap, nearest = box_iou(windows, boxes).max(1)
            kind[overlap >= LIKE] = kinds[nearest[overlap >= LIKE]]
            kind[(overlap > UNLIKE) & (overlap < LIKE)] = -1
        empty = (kind == len(names)).nonzero()[:, 0]
        some = empty[torch.randperm(len(empty), generator=random)[:PER_IMAGE]]
        shown = torch.cat([windows[(kind >= 0) & (kind < len(names))], boxes, windows[some]])
        features.append(_features(image, shown))
        seen = kind[(kind >= 0) & (kind < len(names))]
        classes.append(torch.cat([seen, kinds, kind[some]]))
    x, y = torch.cat(features), torch.cat(classes)
    chosen = torch.randperm(len(x), generator=random)[:MOST]
    known, expected = x[chosen].numpy(), y[chosen].numpy()
    width = min(64, *known.shape)
    model: Any = make_pipeline(
        PCA(width, whiten=True, svd_solver="randomized", random_state=0),
        Nystroem(gamma=0.5 / width, n_components=min(FEATURES, len(known)), random_state=0),
        Ridge(),
    )
    model.fit(known, np.eye(len(names) + 1, dtype=np.float32)[expected])
    for image, label in _images(test):
        windows = _grid(image, shapes)
        scores = torch.from_numpy(model.predict(_features(image, windows).numpy())).float()
        best, kinds = scores[:, :-1].max(1)
        likely = best > 0.2
        boxes, best, kinds = windows[likely], best[likely], kinds[likely]
        kept = batched_nms(boxes, best, kinds, 0.4)[:100]
        metric.add({"boxes": boxes[kept], "scores": best[kept], "labels": kinds[kept]}, label)
    return "sliding windows + RBF features + ridge", metric


def _images(items: BoxItems) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Each image without augmentation, `(1, C, H, W)`, and its label."""
    plain = copy.copy(items)
    plain.augment = None
    for row in range(len(plain)):
        pixels = plain[row]["pixel_values"]
        height, width = plain.sizes[row]
        yield pixels[None, :, :height, :width].cpu(), plain.labels[row]


def _shapes(items: BoxItems, classes: int) -> Tensor:
    """Usual widths and heights of each class's boxes, `(S, 2)`: their logarithms in groups."""
    from sklearn.cluster import KMeans

    boxes = torch.cat([label["boxes"] for label in items.labels])
    kinds = torch.cat([label["class_labels"] for label in items.labels])
    found = []
    for number in range(classes):
        own = boxes[kinds == number]
        if len(own):
            sides = (own[:, 2:] - own[:, :2]).log().numpy()
            groups = min(SHAPES, len(np.unique(sides, axis=0)))
            means = KMeans(groups, n_init=1, random_state=0).fit(sides)
            found.append(torch.from_numpy(np.exp(means.cluster_centers_)))
    return torch.cat(found).float()


def _grid(image: Tensor, shapes: Tensor) -> Tensor:
    """Windows of these shapes all over an image, `(N, 4)`, a part of them over its rim."""
    height, width = image.shape[2:]
    found = []
    for wide, high in shapes.tolist():
        columns = torch.arange(0, width, max(LEAST, wide * STEP))
        rows = torch.arange(0, height, max(LEAST, high * STEP))
        y, x = (each.flatten() for each in torch.meshgrid(rows, columns, indexing="ij"))
        windows = torch.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], 1)
        found.append(windows.clamp(min=0).minimum(torch.tensor([width, height] * 2)))
    return torch.cat(found)


def _features(image: Tensor, windows: Tensor) -> Tensor:
    """Pixels of windows and of what is around them, and the logarithms of their sides, `(N, D)`."""
    centre = (windows[:, :2] + windows[:, 2:]) / 2
    half = (windows[:, 2:] - windows[:, :2]) / 2
    wider = torch.cat([centre - 1.6 * half, centre + 1.6 * half], 1)
    near, far = (
        roi_align(image, [each], BINS, sampling_ratio=2, aligned=True) for each in (windows, wider)
    )
    sides = (2 * half).clamp(min=1).log()
    return torch.cat([near.flatten(1), far.flatten(1), sides], 1)
