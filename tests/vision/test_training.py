"""Detectors and segmenters in training: what one update is, what moves, and that names survive."""

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
import transformers
from torch import Tensor

from resbackbones.errors import InputError
from resbackbones.train import Options, fit
from resbackbones.vision import (
    ImageItems,
    ResidualDetectionProcessor,
    ResidualForImageClassification,
    ResidualImageProcessor,
)
from tests.vision.helpers import TINY, boxed, detector, images, masked, photo, segmenter, two_stage

DETECTORS = ("fcos", "retinanet")


# What one update is


class Rows:
    """Any batches, as of given rows in turn."""

    def __init__(self, *batches: list[int]) -> None:
        self.batches = list(batches)

    def __call__(self, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
        return self.batches


@pytest.mark.parametrize("kind", DETECTORS)
def test_accumulated_batches_make_a_detectors_update_of_one_large_batch(kind: str) -> None:
    """A mean over objects is none over images: the images have different numbers of them."""

    def fitted(*batches: list[int]) -> tuple[dict[str, Tensor], float]:
        model = detector(kind)
        options = Options(
            epochs=1, accumulate=len(batches), batch_size=4, optimizer=torch.optim.SGD,
            learning_rate=0.1, schedule="constant", precision="float32", device="cpu",
            progress=False, metric="loss", weight_decay=0.0, least_updates=1,
        )  # fmt: skip
        result = fit(model, boxed(model), None, options, batches=Rows(*batches))
        assert [entry["step"] for entry in result.history] == [1]
        return model.state_dict(), result.history[0]["train_loss"]

    whole, loss = fitted([0, 1, 2, 3])
    before = detector(kind).state_dict()
    assert any((whole[name] - value).abs().max() > 1e-3 for name, value in before.items())
    for batches in ([[0], [1], [2, 3]], [[2], [0, 1, 3]]):
        parts, told = fitted(*batches)
        assert told == pytest.approx(loss, rel=1e-5)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detectors_loss_is_a_mean_over_what_it_weighs(kind: str) -> None:
    model = detector(kind)
    items = boxed(model)

    def share(*rows: int) -> tuple[Tensor, Any]:
        batch = items.__getitems__(rows)
        weight = model.weight(batch)
        return model(**batch).loss * weight, weight

    parts = [share(row) for row in range(4)]
    whole, weight = share(0, 1, 2, 3)
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    # Image 3 has no object: alone it counts as one point, in a batch of points it has none.
    surplus = 1 if kind == "fcos" else 0
    assert sum(own for _, own in parts) - surplus == weight and parts[3][1] == 1


# What moves


def classifier() -> tuple[Any, Any]:
    model = ResidualForImageClassification.build(TINY, num_labels=3, norm="batch")
    return model, ImageItems(images(), model.processor)


MODELS: dict[str, Any] = {
    "classes": classifier,
    "fcos": lambda: (m := detector(norm="batch"), boxed(m)),
    "retinanet": lambda: (m := detector("retinanet", norm="batch"), boxed(m)),
    "two stages": lambda: (m := two_stage(norm="batch"), boxed(m)),
    "masks": lambda: (m := segmenter(norm="batch"), masked(m)),
}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_frozen_in_training_from_scratch(name: str) -> None:
    """Statistics of batch norms included, which the papers' detectors keep."""
    model, items = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fit(model, items, None, Options(
        epochs=2, batch_size=4, learning_rate=0.01, precision="float32", device="cpu",
        progress=False, metric="loss", least_updates=1, schedule="constant",
    ))  # fmt: skip
    after = model.state_dict()
    assert [key for key, value in before.items() if torch.equal(value, after[key])] == []


@pytest.mark.parametrize(
    "model",
    [
        lambda norm: detector(norm=norm),
        lambda norm: two_stage(norm=norm),
        lambda norm: segmenter(norm=norm),
        lambda norm: ResidualForImageClassification.build(TINY, num_labels=2, norm=norm),
    ],
    ids=["boxes", "two stages", "masks", "classes"],
)
def test_a_batch_of_one_image_of_one_pixel(model: Any) -> None:
    """What has no variance is told; what needs none is trained."""
    x = torch.randn(1, 3, 1, 1)
    with pytest.raises(InputError, match=r'1 image of \d+x\d+ pixels; .* norm="group"'):
        model("batch").train()(pixel_values=x)
    output = model("group").train()(pixel_values=x)
    assert all(value.isfinite().all() for value in output.values() if isinstance(value, Tensor))


# Names


@pytest.mark.parametrize("task", ["object-detection", "image-segmentation"])
def test_names_and_numbers_survive_training_saving_and_fine_tuning(
    task: str, tmp_path: Path
) -> None:
    build, make = {
        "object-detection": (detector, boxed),
        "image-segmentation": (segmenter, masked),
    }[task]
    kind = ResidualDetectionProcessor if build is detector else ResidualImageProcessor
    size = {"height": 24, "width": 24}
    # In no order of the alphabet, of which config files are fond.
    model = build(labels=["zebra", "ant"], processor=kind(size=size))

    def trained(model: Any, names: list[str], to: Path) -> Any:
        fit(model, make(model), None, Options(
            epochs=1, batch_size=4, learning_rate=1e-4, device="cpu", progress=False,
            metric="loss", least_updates=1,
        ))  # fmt: skip
        model.save_pretrained(to)
        loaded = type(model).from_pretrained(to)
        for one in (model, loaded):
            assert one.config.id2label == dict(enumerate(names))
            assert one.config.label2id == {name: number for number, name in enumerate(names)}
        image = PIL.Image.fromarray(photo(30, 40))
        answers = transformers.pipeline(task, str(to), threshold=0.0)(image)
        if task == "object-detection":
            said = loaded.predict(image, threshold=0.0)["labels"]
            assert [answer["label"] for answer in answers] == said
        else:
            said = [names[number] for number in loaded.predict(image)[0].unique()]
            assert sorted(answer["label"] for answer in answers) == sorted(said)
        assert said and set(said) <= set(names)
        return loaded

    trained(model, ["zebra", "ant"], tmp_path / "first")
    others = ["wolf", "cat", "bee"]
    tuned = type(model).from_pretrained(
        tmp_path / "first", labels=others, ignore_mismatched_sizes=True
    )
    trained(tuned, others, tmp_path / "second")
    renamed = type(model).from_pretrained(tmp_path / "first", labels=["dog", "owl"])
    assert renamed.config.id2label == {0: "dog", 1: "owl"}
    assert renamed.config.label2id == {"dog": 0, "owl": 1}
