"""The simple methods that a net of images has to beat: support vectors, kernel ridge regression."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from resbackbones.data import Labels
from resbackbones.metrics import Confusion, MultiLabel
from resbackbones.vision import ImageItems
from tasks._baseline import answers, quality

SIDE = 32  # pixels that larger images are averaged to
COMPONENTS = 128
FEATURES = 2000  # of the approximated kernel, at most
MOST = 10_000  # images that support vectors and choices are made from: the time grows with a square


def baseline(
    train: ImageItems, validation: ImageItems, test: ImageItems
) -> tuple[str, Confusion | MultiLabel]:
    """Name and answers on `test` of what is best on `validation` of two kernel methods on principal
    components of the pixels: support vectors (up to 10,000 images), and ridge regression on up to
    2,000 RBF features (Williams and Seeger 2001, "Using the Nystroem method") of whitened ones.
    Where `validation` is `test`, the first of them that applies. Where an image has any number
    of classes, each is told from the rest."""
    from sklearn.decomposition import PCA
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import RidgeClassifier
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:MOST]
    pixels = np.concatenate(list(_pixels(train, some)))
    reduce = PCA(min(COMPONENTS, *pixels.shape), svd_solver="randomized", random_state=0)
    reduce.fit(pixels)
    del pixels

    def known(items: ImageItems) -> tuple[Any, Any]:
        batches = _pixels(items, torch.arange(len(items)))
        x = np.concatenate([reduce.transform(batch) for batch in batches])
        return x.astype(np.float32), items.labels.cpu().numpy()

    x, y = known(train)
    width = max(1, x.shape[1] // 2)  # the last components are mostly noise, which whitening lifts
    features = min(FEATURES, -(-len(some) // 4))  # a quarter says nearly as much, and is quick
    models = {
        f"PCA + RBF features + ridge, gamma {gamma}": make_pipeline(
            PCA(width, whiten=True),
            Nystroem(gamma=gamma / width, n_components=features, random_state=0),
            RidgeClassifier(),
        )
        for gamma in (0.5, 1.0)
    }
    if len(x) <= MOST:
        vectors = SVC(C=10, cache_size=500)
        many = isinstance(train.source.target, Labels)
        models = {"PCA + SVC": OneVsRestClassifier(vectors) if many else vectors, **models}
    if validation is test:  # no choice is made on what it is then measured on
        models = dict([*models.items()][:1])
    names = train.source.target.names
    checked = known(validation)
    with warnings.catch_warnings():
        # A class that all of train has, or nothing of it, is answered so.
        warnings.filterwarnings("ignore", "Label .* is present in all training examples")
        name = max(
            models,
            key=lambda name: quality(models[name].fit(x[some], y[some]), *checked, names),
        )
        if len(x) > MOST:
            models[name].fit(x, y)
    return name.partition(",")[0], answers(models[name], *known(test), names)


def _pixels(items: ImageItems, rows: torch.Tensor) -> Iterator[Any]:
    """The images of some rows as they are without augmentation, at most 32x32, a row of numbers
    each, by the thousand."""
    plain = copy.copy(items)
    plain.augment = None
    for some in rows.split(1000):
        x = plain.__getitems__(some.tolist())["pixel_values"]
        if max(x.shape[2:]) > SIDE:
            x = adaptive_avg_pool2d(x, SIDE)
        yield x.flatten(1).cpu().numpy()
