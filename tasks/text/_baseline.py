"""The simple method that a net of texts has to beat: TF-IDF, linear support vectors."""

from collections.abc import Sequence

import numpy as np

from resbackbones.data import Source
from resbackbones.metrics import Confusion, MultiLabel
from resbackbones.text import TextItems
from tasks._baseline import answers, fitted, quality

STRENGTHS = (0.1, 0.3, 1.0, 3.0)  # of the baseline's fit (C), from loose to firm


def texts(source: Source) -> list[Sequence[str | None]]:
    """A source's texts, a column of them or, of pairs, two."""
    return [source.dataset[source.columns[role]] for role in source.inputs]


def baseline(
    train: TextItems, validation: TextItems | None, test: TextItems
) -> tuple[str, Confusion | MultiLabel]:
    """TF-IDF of words, word pairs and 2 to 5 characters, then linear support vectors; what does
    best on the validation rows, or in three folds of the training rows where there are none but
    the test's. Where a text has any number of classes, each is told from the rest, and without
    validation rows by the usual strength."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_union
    from sklearn.svm import LinearSVC

    def words(items: TextItems) -> list[str]:
        return [
            " ".join(parts) for parts in zip(*texts(items.source.select(items.rows)), strict=True)
        ]

    features = make_union(
        # Punctuation and single letters are words, as they are to the net.
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]+", sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    x, y = features.fit_transform(words(train)), train.labels.numpy()
    names = train.source.target.names
    if validation is not None and validation.source is not test.source:
        checked = features.transform(words(validation)), validation.labels.numpy(), names
        fits = [fitted(LinearSVC(C=strength), x, y) for strength in STRENGTHS]
        model = max(fits, key=lambda fit: quality(fit, *checked))
    elif y.ndim > 1 or np.bincount(y).min() < 3:  # classes that not every fold would have
        model = fitted(LinearSVC(), x, y)
    else:
        model = GridSearchCV(LinearSVC(), {"C": STRENGTHS}, cv=3).fit(x, y)
    known = answers(model, features.transform(words(test)), test.labels.numpy(), names)
    return "TF-IDF + linear SVC", known
