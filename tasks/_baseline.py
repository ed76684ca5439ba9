"""What the baselines of classifiers share: how a fitted model of scikit-learn is judged."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from resbackbones.metrics import Confusion, MultiLabel


def fitted(model: Any, x: Any, y: Any) -> Any:
    """A model of scikit-learn fitted to classes `(N,)`, or one for each class of `y` `(N, K)`, 1
    where an item has it and 0 where not."""
    from sklearn.multiclass import OneVsRestClassifier

    with warnings.catch_warnings():
        # A class that all of train has, or nothing of it, is answered so.
        warnings.filterwarnings("ignore", "Label .* is present in all training examples")
        return (model if y.ndim == 1 else OneVsRestClassifier(model)).fit(x, y)


def answers(model: Any, x: Any, y: Any, names: Sequence[str]) -> Confusion | MultiLabel:
    """What a fitted model makes of `x`, where `y`, classes `(N,)` or 1 and 0 for each class
    `(N, K)`, is right."""
    if y.ndim == 1:
        return Confusion.of(y, model.predict(x), names)
    scores = model.decision_function(x).reshape(y.shape)
    # The metric tells scores apart by 1/64: as large as it takes them, none becomes another's.
    return MultiLabel.of(y, scores * (16 / max(1e-9, np.abs(scores).max())), names)


def quality(model: Any, x: Any, y: Any, names: Sequence[str]) -> float:
    """What the best is chosen by, on these rows."""
    figures = answers(model, x, y, names).compute()
    return figures.get("accuracy", figures.get("mean_average_precision", 0.0))
