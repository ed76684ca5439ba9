"""Metrics count the same, however the batches are split over processes."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from torch import Tensor

from resbackbones.errors import InputError
from resbackbones.metrics import BINS, Confusion, Mean, Metric, MultiLabel


def batches(count: int, classes: int = 5) -> list[tuple[Any, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(count)
    made = []
    for size in torch.randint(1, 9, (count,), generator=generator).tolist():
        logits = 3 * torch.randn(size, classes, generator=generator)
        labels = torch.randint(0, classes, (size,), generator=generator)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        made.append((SimpleNamespace(logits=logits, loss=loss), {"x": labels, "labels": labels}))
    return made


def counted(metric: Metric, some: list[tuple[Any, dict[str, Tensor]]]) -> Metric:
    for output, batch in some:
        metric.update(output, batch)
    return metric


@given(st.integers(1, 12), st.integers(1, 4), st.randoms(use_true_random=False))
def test_any_split_gives_the_same_bits(count: int, world: int, random: Any) -> None:
    whole = batches(count)
    expected = counted(Confusion(5), whole)
    shuffled = random.sample(whole, count)
    parts = [counted(Confusion(5), shuffled[rank::world]) for rank in range(world)]
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(pickle.loads(pickle.dumps(part)))
    assert merged.compute() == expected.compute()
    assert isinstance(merged, Confusion) and isinstance(expected, Confusion)
    assert torch.equal(merged.counts, expected.counts)


def test_a_confusion_agrees_with_scikit_learn() -> None:
    some = batches(30)
    confusion = counted(Confusion(7, names=list("abcdefg")), some)  # two classes never occur
    assert isinstance(confusion, Confusion)
    expected = torch.cat([batch["labels"] for _, batch in some])
    logits = torch.cat([output.logits for output, _ in some])
    predicted = logits.argmax(1)
    figures = confusion.compute()
    assert figures["accuracy"] == accuracy_score(expected, predicted)
    assert figures["macro_f1"] == pytest.approx(f1_score(expected, predicted, average="macro"))
    loss = torch.nn.functional.cross_entropy(logits.double(), expected).item()
    assert figures["loss"] == pytest.approx(loss, rel=1e-6)
    scores = precision_recall_fscore_support(expected, predicted, labels=range(7), zero_division=0)
    for number, name in enumerate("abcdefg"):
        given = confusion.per_class()[name]
        found = [given[key] for key in ("precision", "recall", "f1", "support")]
        assert found == pytest.approx([float(score[number]) for score in scores])


def test_the_five_best_classes_are_asked_for_where_there_are_more() -> None:
    some = batches(30, classes=9)
    confusion = counted(Confusion(9), some)
    expected = torch.cat([batch["labels"] for _, batch in some])
    logits = torch.cat([output.logits for output, _ in some])
    found = confusion.compute()["top_5_accuracy"]
    assert found == top_k_accuracy_score(expected, logits, k=5, labels=range(9))
    assert "top_5_accuracy" not in counted(Confusion(5), batches(3)).compute()


@pytest.mark.parametrize("logits", [torch.zeros(9), torch.full((9,), float("nan"))], ids=str)
def test_classes_that_tie_are_not_all_among_the_best(logits: Tensor) -> None:
    confusion = Confusion(9)
    output = SimpleNamespace(logits=logits.expand(9, 9), loss=torch.tensor(0.0))
    confusion.update(output, {"labels": torch.arange(9)})
    expected = 0 if logits.isnan().any() else 5 / 9
    assert confusion.compute()["top_5_accuracy"] == pytest.approx(expected)


def many(count: int, classes: int = 6, spread: float = 3.0) -> list[tuple[Any, dict[str, Tensor]]]:
    """Batches of items with any number of classes; the first never occurs."""
    made = []
    for output, batch in batches(count, classes):
        logits = output.logits / 3 * spread
        likely = (logits + spread * torch.randn(logits.shape, generator=_noise)) > spread
        labels = likely.float() * (torch.arange(classes) > 0)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        made.append(
            (SimpleNamespace(logits=logits, loss=loss), {"x": batch["x"], "labels": labels})
        )
    return made


_noise = torch.Generator().manual_seed(0)


@given(st.integers(1, 12), st.integers(1, 4), st.randoms(use_true_random=False))
def test_any_split_of_many_labels_gives_the_same_bits(count: int, world: int, random: Any) -> None:
    whole = many(count)
    expected = counted(MultiLabel(6), whole)
    shuffled = random.sample(whole, count)
    parts = [counted(MultiLabel(6), shuffled[rank::world]) for rank in range(world)]
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(pickle.loads(pickle.dumps(part)))
    assert str(merged.compute()) == str(expected.compute())


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])  # also past the levels' ends
def test_many_labels_agree_with_scikit_learn(spread: float) -> None:
    some = many(60, spread=spread)
    metric = counted(MultiLabel(6, list("abcdef")), some)
    assert isinstance(metric, MultiLabel)
    expected = torch.cat([batch["labels"] for _, batch in some]).long()
    logits = torch.cat([output.logits for output, _ in some]).double()
    figures, given = metric.compute(), logits > 0
    assert expected[:, 0].sum() == 0 and expected[:, 1:].sum(0).min() > 0
    assert figures["micro_f1"] == pytest.approx(f1_score(expected, given, average="micro"))
    macro = f1_score(expected, given, average=None, zero_division=0.0)
    seen = (expected.sum(0) + given.sum(0)) > 0
    assert figures["macro_f1"] == pytest.approx(macro[seen.numpy()].mean())
    # Logits at the levels' upper ends, as they are counted.
    rounded = (logits * 64).ceil().clamp(-1023, 1024)
    average = [average_precision_score(expected[:, k], rounded[:, k]) for k in range(1, 6)]
    assert figures["mean_average_precision"] == pytest.approx(sum(average) / 5)
    exact = [average_precision_score(expected[:, k], logits[:, k]) for k in range(1, 6)]
    if spread == 3.0:
        assert figures["mean_average_precision"] == pytest.approx(sum(exact) / 5, abs=2e-3)
    scores = precision_recall_fscore_support(expected, given, zero_division=0.0)
    for number, name in enumerate("abcdef"):
        found = [metric.per_class()[name][key] for key in ("precision", "recall", "f1", "support")]
        assert found == pytest.approx([float(score[number]) for score in scores])
    assert figures["loss"] == pytest.approx(
        torch.nn.functional.binary_cross_entropy_with_logits(logits, expected.double()).item()
    )


def test_a_logit_that_is_no_number_is_no_yes() -> None:
    metric = MultiLabel(2)
    logits = torch.tensor([[float("nan"), float("inf")], [-float("inf"), 0.0]])
    output = SimpleNamespace(logits=logits, loss=torch.tensor(0.0))
    metric.update(output, {"labels": torch.ones(2, 2)})
    assert [score["predicted"] for score in metric.per_class().values()] == [0, 1]


def test_one_class_per_item_cannot_be_counted_as_many() -> None:
    output = SimpleNamespace(logits=torch.zeros(2, 3), loss=torch.tensor(0.0))
    with pytest.raises(InputError, match="do not say which classes an item has"):
        MultiLabel(3).update(output, {"labels": torch.zeros(2, dtype=torch.int64)})
    assert str(MultiLabel(3).compute()["mean_average_precision"]) == "nan"


def test_the_calibration_error_is_that_of_its_bins() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.62, 0.55])
    logits = torch.stack([confidence.log(), (1 - confidence).log()], 1)
    labels = torch.tensor([0, 1, 0, 0])
    output = SimpleNamespace(logits=logits, loss=torch.tensor(0.0))
    confusion = Confusion(2)
    confusion.update(output, {"labels": labels})
    # The bins: both 0.95 (half right), 0.62 and 0.55 (right).
    assert [int(0.62 * BINS), int(0.55 * BINS), int(0.95 * BINS)] == [9, 8, 14]
    gap = abs(1 - 2 * 0.95) + (1 - 0.62) + (1 - 0.55)
    assert confusion.compute()["calibration_error"] == pytest.approx(gap / 4, abs=1e-5)


def test_predicted_classes_alone_have_no_loss() -> None:
    confusion = Confusion.of([0, 1, 1], torch.tensor([0, 1, 0]), ["no", "yes"])
    assert set(confusion.compute()) == {"accuracy", "macro_f1"}
    assert confusion.per_class()["yes"]["recall"] == 0.5


def test_a_mean_weighs_batches_by_what_they_are_a_mean_over() -> None:
    mean = Mean(weight=_tokens)
    for loss, real in ((1.0, 9), (3.0, 1)):
        output = SimpleNamespace(loss=torch.tensor(loss))
        mean.update(output, {"attention_mask": (torch.arange(10) < real).long().unsqueeze(0)})
    assert mean.compute()["loss"] == pytest.approx(1.2)


def _tokens(batch: Any) -> Tensor:
    return batch["attention_mask"].sum()


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e30])
def test_a_loss_that_is_no_number_makes_the_mean_none(loss: float) -> None:
    mean = Mean()
    for value in (1.0, loss, 1.0):
        mean.update(SimpleNamespace(loss=torch.tensor(value)), {"labels": torch.zeros(2)})
    assert str(mean.compute()["loss"]) == "nan"


def test_nothing_counted_is_no_number() -> None:
    assert str(Mean().compute()["loss"]) == "nan"
    assert str(Confusion(2).compute()["accuracy"]) == "nan"


def test_shares_of_classes_cannot_be_counted() -> None:
    output = SimpleNamespace(logits=torch.zeros(2, 3), loss=torch.tensor(0.0))
    with pytest.raises(InputError, match="are no classes to count"):
        Confusion(3).update(output, {"labels": torch.zeros(2, 3)})


def test_scores_alone_tell_all_but_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(50, 3, generator=generator)
    labels = (torch.rand(50, 3, generator=generator) < 0.4).float()
    whole = MultiLabel(3)
    whole.update(SimpleNamespace(logits=logits, loss=torch.tensor(1.0)), {"labels": labels})
    alone = MultiLabel.of(labels, logits, ["a", "b", "c"])
    expected = whole.compute()
    assert expected.pop("loss") == 1.0 and alone.compute() == expected
    assert list(alone.per_class()) == ["a", "b", "c"]


def test_the_most_confused_pairs_come_first() -> None:
    expected = [0] * 5 + [1] * 4 + [2] * 6
    predicted = [0, 1, 1, 1, 2, 1, 1, 0, 2, 2, 2, 2, 2, 0, 0]
    confusion = Confusion.of(expected, predicted, ["a", "b", "c"])
    assert confusion.most_confused(2) == [("a", "b", 3, 5), ("c", "a", 2, 6)]
    assert [pair[:2] for pair in confusion.most_confused(9)] == [
        *[("a", "b"), ("c", "a"), ("a", "c"), ("b", "a"), ("b", "c")],  # and no empty one
    ]
    assert Confusion.of([0, 1], [0, 1], 2).most_confused() == []
