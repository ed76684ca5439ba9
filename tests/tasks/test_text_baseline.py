"""The text baseline is as strong as the validation rows make it, and never looks at the test's."""

import random
from typing import Any

import pytest
from datasets import Dataset
from sklearn.svm import LinearSVC

from resbackbones.data import open_dataset
from resbackbones.text import TextItems, train_tokenizer
from tasks.text._baseline import STRENGTHS, baseline


def texts(count: int, seed: int) -> TextItems:
    """Questions and statements: a question mark tells them apart, letters do not."""
    draw = random.Random(seed)
    rows = [" ".join(draw.choices("abcdefg", k=6)) for _ in range(count)]
    labels = [number % 2 for number in range(count)]
    ends = [" ?" if label else " ." for label in labels]
    source = open_dataset(
        Dataset.from_dict(
            {
                "text": [row + end for row, end in zip(rows, ends, strict=True)],
                "label": labels,
            }
        )
    )
    return TextItems(source, train_tokenizer(["a"], "byte"))


def test_punctuation_counts() -> None:
    name, confusion = baseline(texts(30, 0), texts(10, 1), texts(20, 2))
    assert name == "TF-IDF + linear SVC" and confusion.compute()["accuracy"] == 1
    assert confusion.names == ("0", "1")


@pytest.mark.parametrize("kind", ["validation", "none", "the test's", "few"])
def test_what_chooses_is_never_the_test(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int]] = []

    class Recorded(LinearSVC):
        def predict(self, x: Any) -> Any:
            asked.append((self.C, x.shape[0]))
            return super().predict(x)

    monkeypatch.setattr("sklearn.svm.LinearSVC", Recorded)
    train, test = texts(4 if kind == "few" else 30, 0), texts(20, 2)
    validation = {"validation": texts(10, 1), "the test's": test}.get(kind)
    _, confusion = baseline(train, validation, test)
    assert asked.pop()[1] == 20  # the test's, at the very end
    if kind == "validation":
        assert asked == [(strength, 10) for strength in STRENGTHS]
    elif kind == "few":
        assert not asked
    else:
        assert asked == [(strength, 10) for strength in STRENGTHS for _ in range(3)]
    assert confusion.counts.sum() == 20
