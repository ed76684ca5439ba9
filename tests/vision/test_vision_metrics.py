"""The pixel confusion: figures against scikit-learn, exact under any split."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score

from resbackbones.errors import InputError
from resbackbones.vision import PixelConfusion


def batches(seed: int, count: int, classes: int = 4) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    torch.manual_seed(seed)
    made = []
    for _ in range(count):
        labels = torch.randint(classes, (2, 5, 6)).where(torch.rand(2, 5, 6) < 0.8, 255)
        logits = torch.randn(2, classes, 5, 6)
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
        made.append((SimpleNamespace(logits=logits, loss=loss), {"labels": labels}))
    return made


def test_against_scikit_learn() -> None:
    metric, made = PixelConfusion(4, list("abcd")), batches(0, 3)
    for output, batch in made:
        metric.update(output, batch)
    labels = torch.cat([batch["labels"].flatten() for _, batch in made])
    predicted = torch.cat([output.logits.argmax(1).flatten() for output, _ in made])
    real = labels != 255
    iou = jaccard_score(labels[real], predicted[real], average=None)
    dice = f1_score(labels[real], predicted[real], average=None)
    figures = metric.compute()
    assert figures["mean_iou"] == pytest.approx(iou.mean())
    assert figures["mean_dice"] == pytest.approx(dice.mean())
    assert figures["pixel_accuracy"] == (labels == predicted)[real].double().mean().item()
    weights = [int((batch["labels"] != 255).sum()) for _, batch in made]
    losses = [output.loss.item() for output, _ in made]
    mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert figures["loss"] == pytest.approx(mean, abs=1e-5)
    assert [s["iou"] for s in metric.per_class().values()] == pytest.approx(iou.tolist())
    assert list(metric.per_class()) == list("abcd")


@given(split=st.integers(0, 5), seed=st.integers(0, 20))
def test_any_split_gives_the_same_bits(split: int, seed: int) -> None:
    made = batches(seed, 5)
    whole, parts = PixelConfusion(4), [PixelConfusion(4), PixelConfusion(4)]
    for number, (output, batch) in enumerate(made):
        whole.update(output, batch)
        parts[number < split].update(output, batch)
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    assert parts[0].compute() == whole.compute()


def test_classes_that_never_occur_are_left_out() -> None:
    metric = PixelConfusion.of([0, 0, 1], [0, 1, 1], 5)
    assert metric.compute()["mean_iou"] == (0.5 + 0.5) / 2


def test_nothing_to_count() -> None:
    metric = PixelConfusion(3)
    loss = torch.tensor(0.0)
    labels = torch.full((1, 4, 4), 255)
    metric.update(SimpleNamespace(logits=torch.zeros(1, 3, 4, 4), loss=loss), {"labels": labels})
    figures = metric.compute()
    assert all(value != value for value in figures.values()) and "mean_iou" in figures


def test_labels_that_are_no_masks() -> None:
    output = SimpleNamespace(logits=torch.zeros(1, 3, 4, 4), loss=torch.tensor(0.0))
    with pytest.raises(InputError, match="are no masks of 1 images"):
        PixelConfusion(3).update(output, {"labels": torch.zeros(1).long()})
