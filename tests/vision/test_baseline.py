"""The method that a net of images has to beat: strong, chosen on validation, blind to the test."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from resbackbones.data import Labels, open_dataset
from resbackbones.metrics import MultiLabel
from resbackbones.vision import Augment, ImageItems, ResidualImageProcessor
from tasks.vision import _baseline
from tasks.vision._baseline import baseline

NAMES = ["across", "down", "ring"]


def drawn(count: int, seed: int, size: tuple[int, int] = (12, 12)) -> ImageItems:
    """Noisy pictures: bright inside a ring or outside of it, which no line tells apart."""
    random = np.random.default_rng(seed)
    cells, labels = [], [number % 3 for number in range(count)]
    y, x = (np.linspace(-1, 1, side) for side in size)
    for label in labels:
        wave = [x[None] + 0 * y[:, None], y[:, None] + 0 * x[None], x[None] ** 2 + y[:, None] ** 2]
        sign = random.choice([-1, 1])  # either way round: no class has a mean of its own
        pixels = 128 + sign * 50 * wave[label] + random.normal(0, 15, size)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "png")
        cells.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    rows = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    return ImageItems(open_dataset(rows), ResidualImageProcessor(num_channels=1))


@pytest.mark.parametrize(
    ("most", "name"), [(1000, "PCA + SVC"), (100, "PCA + RBF features + ridge")]
)
def test_what_no_line_tells_apart_is_told(
    most: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_baseline, "MOST", most)
    monkeypatch.setattr(_baseline, "COMPONENTS", 8)
    found, confusion = baseline(drawn(150, 0), drawn(60, 1), drawn(60, 2))
    assert found == name
    assert confusion.names == tuple(NAMES) and confusion.counts.sum(1).tolist() == [20] * 3
    assert confusion.compute()["accuracy"] > 0.9


def test_nothing_is_learned_from_the_test_labels_or_augmented() -> None:
    train, validation, test = drawn(60, 0), drawn(30, 1), drawn(30, 2)
    name, confusion = baseline(train, validation, test)
    test.labels = test.labels.roll(1)
    train.augment = Augment(flip=True, shift=4)
    again, other = baseline(train, validation, test)
    assert again == name
    assert torch.equal(other.counts.sum(0), confusion.counts.sum(0))
    assert other.compute()["accuracy"] < 0.5 < confusion.compute()["accuracy"]
    assert train.augment is not None


def test_nothing_is_chosen_on_the_rows_it_is_measured_on() -> None:
    train, test = drawn(15, 0), drawn(30, 2)
    name, confusion = baseline(train, test, test)
    assert name == "PCA + SVC"
    for seed in range(20):  # some of these labels another method would come closer to
        test.labels = torch.randint(3, (30,), generator=torch.Generator().manual_seed(seed))
        again, other = baseline(train, test, test)
        assert again == name and torch.equal(other.counts.sum(0), confusion.counts.sum(0))


def test_large_images_are_averaged() -> None:
    (batch,) = _baseline._pixels(drawn(3, 0, (40, 64)), torch.arange(3))
    assert batch.shape == (3, 32 * 32)


def test_a_handful_of_images() -> None:
    _, confusion = baseline(drawn(6, 0), drawn(3, 1), drawn(3, 2))
    assert confusion.counts.sum() == 3


def tagged(count: int, seed: int) -> ImageItems:
    """The same pictures, whose classes are what they are, that they are no ring, and "all"."""
    items = drawn(count, seed)
    tags = [[NAMES[k], "all", *(["line"] * (k < 2))] for k in items.labels.tolist()]
    rows = items.source.dataset.remove_columns("label").add_column("tags", tags)
    return ImageItems(open_dataset(rows, target=Labels()), ResidualImageProcessor(num_channels=1))


@pytest.mark.parametrize(
    ("most", "name"), [(1000, "PCA + SVC"), (100, "PCA + RBF features + ridge")]
)
def test_each_of_many_classes_is_told_from_the_rest(
    most: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_baseline, "MOST", most)
    monkeypatch.setattr(_baseline, "COMPONENTS", 8)
    found, metric = baseline(tagged(150, 0), tagged(60, 1), tagged(60, 2))
    assert found == name and isinstance(metric, MultiLabel)
    assert metric.names == ("across", "all", "down", "line", "ring")
    figures = metric.compute()
    assert figures["mean_average_precision"] > 0.9 and figures["micro_f1"] > 0.85
    assert metric.per_class()["all"]["recall"] == 1 and "loss" not in figures
