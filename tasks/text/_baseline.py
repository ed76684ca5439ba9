"""The simple method that a net of texts has to beat: TF-IDF, linear support vectors."""

from resbackbones.metrics import Confusion
from resbackbones.text import TextItems

STRENGTHS = (0.1, 0.3, 1.0, 3.0)  # of the baseline's fit (C), from loose to firm


def baseline(
    train: TextItems, validation: TextItems | None, test: TextItems
) -> tuple[str, Confusion]:
    """TF-IDF of words, word pairs and 2 to 5 characters, then linear support vectors; what does
    best on the validation rows, or in three folds of the training rows where there are none but
    the test's."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_union
    from sklearn.svm import LinearSVC

    def texts(items: TextItems) -> list[str]:
        return list(items.source.select(items.rows).dataset[items.source.columns["input"]])

    features = make_union(
        # Punctuation and single letters are words, as they are to the net.
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]+", sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    x, y = features.fit_transform(texts(train)), train.labels.numpy()
    if validation is not None and validation.source is not test.source:
        seen, expected = features.transform(texts(validation)), validation.labels.numpy()
        fits = [LinearSVC(C=strength).fit(x, y) for strength in STRENGTHS]
        model = max(fits, key=lambda fit: fit.score(seen, expected))
    elif train.labels.bincount().min() < 3:  # a class that not every fold would have
        model = LinearSVC().fit(x, y)
    else:
        model = GridSearchCV(LinearSVC(), {"C": STRENGTHS}, cv=3).fit(x, y)
    predicted = model.predict(features.transform(texts(test)))
    return "TF-IDF + linear SVC", Confusion.of(test.labels, predicted, train.source.target.names)
