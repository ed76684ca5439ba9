"""Beside nets of masks: the simple method they have to beat, and what they say of an image."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from resbackbones.vision import MaskItems, PixelConfusion

SIDE = 60  # the shorter side in pixels that larger images are averaged to
AROUND = (3, 7, 15, 31)  # sides of the squares whose mean colours are known of a pixel
PIXELS = 60_000  # that the forest learns from
TREES = 40


def baseline(
    train: MaskItems, validation: MaskItems, test: MaskItems
) -> tuple[str, PixelConfusion]:
    """Name and answers on `test` of a random forest on each pixel's colour, the mean colours and
    the contrast around it, and its place; classes count as many pixels as they have, or all alike,
    whichever is best on `validation`. Where `validation` is `test`, the latter."""
    from sklearn.ensemble import RandomForestClassifier

    x, y = _some(train)

    def forest(balance: Any) -> Any:
        return RandomForestClassifier(
            TREES, min_samples_leaf=3, class_weight=balance, n_jobs=-1, random_state=0
        ).fit(x, y)

    forests = [forest("balanced_subsample")]
    if validation is not test:
        forests.append(forest(None))
        asked, expected = _some(validation)

    def quality(one: Any) -> float:
        names = train.source.target.names
        return PixelConfusion.of(expected, one.predict(asked), names).compute()["mean_iou"]

    best = forests[0] if validation is test else max(forests, key=quality)
    return "random forest on pixels", _answers(best, test)


def name_shares(model: Any) -> Callable[[Any], Mapping[str, str]]:
    """The three classes with most of an image's pixels."""

    def answer(image: Any) -> Mapping[str, str]:
        (classes,) = model.predict(image)
        count = torch.bincount(classes.flatten()).double() / classes.numel()
        most = count.argsort(descending=True, stable=True)[:3].tolist()
        said = (f"{model.config.id2label[n]} {100 * float(count[n]):.1f} %" for n in most)
        return dict(zip(("first", "second", "third"), said, strict=False))

    return answer


def _answers(forest: Any, items: MaskItems) -> PixelConfusion:
    """What a forest takes the pixels of the masks for."""
    names = items.source.target.names
    metric = PixelConfusion(len(names), names)
    for features, mask in _maps(items):
        predicted = forest.predict(features.reshape(-1, features.shape[-1]))
        small = torch.from_numpy(predicted).reshape(1, 1, *features.shape[:2]).float()
        metric.count(mask, interpolate(small, list(mask.shape))[0, 0].long())
    return metric


def _maps(items: MaskItems) -> Iterator[tuple[np.ndarray, Tensor]]:
    """What is known of the pixels of each image, not augmented, `(h, w, F)`; and its mask."""
    plain = copy.copy(items)
    plain.augment = None
    for row in range(len(plain)):
        batch = plain.__getitems__([row])
        x = batch["pixel_values"].cpu()
        shrink = max(1, min(x.shape[2:]) // SIDE)
        x = avg_pool2d(x, shrink, ceil_mode=True)
        maps = [x]
        for side in AROUND:
            mean = avg_pool2d(x, side, 1, side // 2, count_include_pad=False)
            square = avg_pool2d(x.square(), side, 1, side // 2, count_include_pad=False)
            contrast = (square - mean.square()).mean(1, keepdim=True).clamp(min=0).sqrt()
            maps += [mean, contrast]
        down, across = (torch.linspace(-1, 1, length) for length in x.shape[2:])
        place = torch.stack(torch.meshgrid(down, across, indexing="ij"))
        features = torch.cat([*maps, place[None]], 1)[0].movedim(0, -1)
        yield features.numpy(), batch["labels"][0].cpu()


def _some(items: MaskItems) -> tuple[np.ndarray, np.ndarray]:
    """Up to `PIXELS` pixels that have a class, at random, as many of each image; their classes."""
    random = np.random.default_rng(0)
    count = max(1, PIXELS // len(items))
    known, classes = [], []
    for features, mask in _maps(items):
        small = interpolate(mask[None, None].float(), list(features.shape[:2]))[0, 0]
        places = np.argwhere(small.numpy() != 255)
        down, across = places[random.permutation(len(places))[:count]].T
        known.append(features[down, across])
        classes.append(small.numpy()[down, across].astype(np.int64))
    return np.concatenate(known), np.concatenate(classes)
