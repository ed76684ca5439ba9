"""The pixel confusion and the average precision: figures, exact under any split."""

import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score

from resbackbones.errors import InputError
from resbackbones.vision import AveragePrecision, PixelConfusion, ResidualForObjectDetection


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


@pytest.mark.parametrize("ignored", [-100, 2, 255])
def test_any_number_may_mean_no_class(ignored: int) -> None:
    metric = PixelConfusion(2, ignore_index=ignored)
    metric.count(torch.tensor([[0, ignored], [1, 1]]), torch.tensor([[0, 1], [1, 0]]))
    assert metric.counts.tolist() == [[1, 0], [1, 1]]


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


# Boxes


def found(boxes: list, scores: list, labels: list) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def there(boxes: list, labels: list) -> dict[str, torch.Tensor]:
    made = found(boxes, [], labels)
    return {"boxes": made["boxes"], "class_labels": made["labels"]}


def test_average_precision_by_hand() -> None:
    metric = AveragePrecision(["a", "b", "c"])
    far = [50, 50, 60, 60]
    # Of class a: the best answer is wrong, the second right, one of two objects is missed: at
    # recalls of 0 to 0.5, 51 of COCO's 101, the precision is a half.
    metric.add(
        found([[30, 0, 40, 10], [0, 0, 10, 10], far], [0.9, 0.8, 0.7], [0, 0, 1]),
        there([[0, 0, 10, 10], far], [0, 0]),
    )
    # Of class b: 6 of 10 pixels in common with 14 in all, an overlap of 0.43 … and one of 0.8.
    metric.add(found([[0, 0, 10, 8]], [0.6], [1]), there([[0, 0, 10, 10]], [1]))
    figures = metric.compute()
    scores = metric.per_class()
    assert scores["a"]["ap50"] == pytest.approx(51 / 101 / 2)
    # The answer at `far` is of another class, and comes first.
    assert scores["b"]["ap50"] == pytest.approx(0.5) and scores["b"]["ap75"] == pytest.approx(0.5)
    assert scores["b"]["ap"] == pytest.approx(0.5 * 7 / 10)  # of 0.5, 0.55, …, 0.8
    assert scores["c"] == {"ap": 0, "ap50": 0, "ap75": 0, "support": 0, "predicted": 0}
    assert [scores[name]["support"] for name in "ab"] == [2, 1]
    assert [scores[name]["predicted"] for name in "ab"] == [2, 2]
    assert figures["ap50"] == pytest.approx((51 / 101 / 2 + 0.5) / 2)  # of what there is


def test_average_precision_of_nothing() -> None:
    metric = AveragePrecision(["a"])
    metric.add(found([], [], []), there([], []))
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.add(found([], [], []), there([[0, 0, 5, 5]], [0]))
    assert metric.compute() == {"map": 0.0, "ap50": 0.0, "ap75": 0.0}
    assert metric.per_class()["a"] == {"ap": 0, "ap50": 0, "ap75": 0, "support": 1, "predicted": 0}


images = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.2, 0.5, 0.9]), st.integers(0, 1))),
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1))),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=25)
@given(images, st.permutations(range(5)), st.integers(0, 5))
def test_average_precision_is_exact_under_any_split(seen: Any, order: list, cut: int) -> None:
    def square(place: int) -> list[int]:
        return [3 * place, 0, 3 * place + 10, 10]

    def counted(numbers: list[int]) -> AveragePrecision:
        metric = AveragePrecision(["a", "b"])
        for answers, objects in (seen[number] for number in numbers if number < len(seen)):
            metric.add(
                found([square(p) for p, *_ in answers], [s for _, s, _ in answers],
                      [k for *_, k in answers]),
                there([square(p) for p, _ in objects], [k for _, k in objects]),
            )  # fmt: skip
        return pickle.loads(pickle.dumps(metric))

    whole, first, second = counted([*range(5)]), counted(order[:cut]), counted(order[cut:])
    first.merge(second)
    assert repr(first.compute()) == repr(whole.compute())


def test_average_precision_of_a_model_has_its_loss() -> None:
    torch.manual_seed(0)
    model = ResidualForObjectDetection.build("resnet20", num_labels=2, levels=(4,), channels=64)
    x, label = torch.randn(3, 3, 32, 32), there([[4, 4, 20, 20]], [1])
    metric, losses = model.metric(), []
    for some in (x[:2], x[2:]):
        batch = {"pixel_values": some, "labels": [label] * len(some)}
        output = model.eval()(**batch)
        losses.append(len(some) * output.loss.item())
        metric.update(output, batch)
    assert metric.compute()["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert set(metric.compute()) == {"map", "ap50", "ap75", "loss"}
