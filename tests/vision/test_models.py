"""Image classifiers: sizes, channels, pipelines."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import transformers

import resbackbones as rb
from resbackbones.data import open_dataset
from resbackbones.vision import (
    ResidualForImageClassification,
    ResidualImageProcessor,
    choose_size,
    open_image,
)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(8, 8), (33, 47)])
def test_any_size_and_number_of_channels(channels: int, size: tuple[int, int]) -> None:
    model = ResidualForImageClassification.build("resnet20", num_labels=4, in_channels=channels)
    images = np.random.default_rng(0).integers(0, 256, (2, channels, *size), dtype=np.uint8)
    batch = model.processor(list(images), return_tensors="pt")
    torch.testing.assert_close(
        batch.pixel_values, torch.from_numpy(images / 127.5 - 1).float(), atol=1e-6, rtol=0
    )
    output = model(**batch, labels=torch.tensor([0, 3]))
    assert output.logits.shape == (2, 4) and output.loss.isfinite()


def test_parameters_are_torchvisions() -> None:
    model = ResidualForImageClassification.build("resnet18", num_labels=1000)
    assert rb.count_parameters(model) == 11_689_512


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pipeline(channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    processor = ResidualImageProcessor(num_channels=channels, size={"height": 20, "width": 24})
    model = ResidualForImageClassification.build(
        "resnet20", labels=["cat", "dog", "owl"], in_channels=channels, processor=processor
    ).eval()
    model.save_pretrained(tmp_path)
    image = PIL.Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (31, 40, 3), dtype=np.uint8)
    )
    classify = transformers.pipeline("image-classification", model=str(tmp_path))
    answers = classify([image, image.resize((50, 20))], top_k=3)
    expected = model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0]
    assert {a["label"] for a in answers[0]} == {"cat", "dog", "owl"}
    for answer in answers[0]:
        assert answer["score"] == pytest.approx(
            expected[model.config.label2id[answer["label"]]].item(), abs=1e-6
        )


def test_the_pipeline_answers_at_the_size_of_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    digit = np.kron(np.random.default_rng(0).integers(0, 256, (7, 7)), np.ones((4, 4)))
    image = PIL.Image.fromarray(digit.astype(np.uint8))
    size, _ = choose_size(
        open_dataset(datasets.Dataset.from_dict({"image": [image] * 4, "label": [0, 1, 0, 1]}))
    )
    model = ResidualForImageClassification.build(
        "resnet20",
        num_labels=3,
        in_channels=1,
        processor=ResidualImageProcessor(num_channels=1, size=size),
    ).eval()
    model.save_pretrained(tmp_path)
    classify = transformers.pipeline("image-classification", model=str(tmp_path))
    larger = [image.resize((side, side), PIL.Image.Resampling.NEAREST) for side in (56, 112)]
    small, *answers = classify([image, *larger, image.resize((30, 41))], top_k=3, batch_size=4)
    expected = model(**model.processor(image, return_tensors="pt")).logits.softmax(-1)[0]
    for answer in small:
        number = model.config.label2id[answer["label"]]
        assert answer["score"] == pytest.approx(expected[number].item(), abs=1e-6)
    for answer in answers[:2]:  # the same digit, larger
        assert [a["label"] for a in answer] == [a["label"] for a in small]
        assert [a["score"] for a in answer] == pytest.approx([a["score"] for a in small], abs=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pipeline_takes_sixteen_bits_as_opened(channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ResidualForImageClassification.build("resnet20", num_labels=3, in_channels=channels)
    model.eval().save_pretrained(tmp_path)
    ramp = np.linspace(30_000, 50_000, 400).astype(np.uint16).reshape(20, 20)
    PIL.Image.fromarray(ramp).save(tmp_path / "ramp.png")
    classify = transformers.pipeline("image-classification", model=str(tmp_path))
    image = open_image({"bytes": None, "path": str(tmp_path / "ramp.png")})
    with PIL.Image.open(tmp_path / "ramp.png") as raw:
        values = model.processor(raw, return_tensors="pt")
    assert values.pixel_values.unique().numel() > 50
    expected = model(**values).logits.softmax(-1)[0].sort(descending=True).values.tolist()
    assert [a["score"] for a in classify(image)] == pytest.approx(expected, abs=1e-6)


def test_a_processor_of_other_channels_is_refused() -> None:
    with pytest.raises(rb.InputError, match="makes 1 channels, but the backbone takes 3"):
        ResidualForImageClassification.build(
            "resnet20", num_labels=2, processor=ResidualImageProcessor(num_channels=1)
        )


def test_a_batch_of_images_is_each_image() -> None:
    torch.manual_seed(0)
    model = ResidualForImageClassification.build("resnet20", num_labels=3).eval()
    x = torch.randn(3, 3, 32, 32)
    alone = torch.cat([model(item.unsqueeze(0)).logits for item in x])
    torch.testing.assert_close(model(x).logits, alone, atol=1e-4, rtol=0)


LABELS = ["cat", "dog", "owl"]


def classifier(size: int | None = None, **options: Any) -> ResidualForImageClassification:
    torch.manual_seed(0)
    sides = None if size is None else {"height": size, "width": size}
    processor = ResidualImageProcessor(size=sides)
    return ResidualForImageClassification.build(
        "resnet20", labels=LABELS, processor=processor, **options
    )


def photographs(*sizes: tuple[int, int]) -> list[PIL.Image.Image]:
    """Of these widths and heights."""
    random = np.random.default_rng(0)
    return [
        PIL.Image.fromarray(random.integers(0, 256, (high, wide, 3), dtype=np.uint8))
        for wide, high in sizes
    ]


@pytest.mark.parametrize("size", [None, 20])
def test_predictions_are_those_of_the_pipeline(size: int | None, tmp_path: Path) -> None:
    model = classifier(size)
    model.train()
    pictures = photographs((20, 16), (9, 14), (20, 16), (14, 9), (20, 16))
    found = model.predict(pictures, top_k=2, batch_size=2)
    assert all(module.training for module in model.modules())
    assert model.backbone.stem[0].state_dict().keys()  # still there, and as it was:
    assert all(int(v) == 0 for n, v in model.state_dict().items() if "num_batches" in n)
    model.eval().save_pretrained(tmp_path)
    classify = transformers.pipeline("image-classification", model=str(tmp_path))
    for answers, expected in zip(found, classify(pictures, top_k=2), strict=True):
        assert [a["label"] for a in answers] == [e["label"] for e in expected]
        assert [a["score"] for a in answers] == pytest.approx([e["score"] for e in expected])


def test_one_image_has_one_answer_in_whatever_form_it_comes(tmp_path: Path) -> None:
    model = classifier()
    (picture,) = photographs((20, 16))
    path = tmp_path / "picture.png"
    picture.save(path)
    array = np.array(picture)
    expected = model.predict([picture])
    assert len(expected) == 1 and {a["label"] for a in expected[0]} == set(LABELS)
    assert sum(a["score"] for a in expected[0]) == pytest.approx(1)
    scores = [a["score"] for a in expected[0]]
    assert scores == sorted(scores, reverse=True)
    cell = {"bytes": path.read_bytes(), "path": None}
    channels_first = torch.from_numpy(array).movedim(-1, 0)
    for one in (picture, path, str(path), array, channels_first, cell):
        assert model.predict(one) == expected[0]
    for several in ([picture, path], (picture, array), np.stack([array] * 2)):
        for answers in model.predict(several):  # a batch of two adds up in another order
            assert [a["label"] for a in answers] == [a["label"] for a in expected[0]]
            assert [a["score"] for a in answers] == pytest.approx(scores, abs=1e-6)
    assert len(model.predict(picture, top_k=1)) == 1
    assert len(model.predict(picture, top_k=None)) == 3


def test_predictions_of_any_number_of_classes_stand_for_themselves() -> None:
    model = classifier(problem_type="multi_label_classification")
    (picture,) = photographs((20, 16))
    logits = model.eval()(model.pixel_values(picture)).logits[0]
    found = {answer["label"]: answer["score"] for answer in model.predict(picture)}
    assert [found[name] for name in LABELS] == pytest.approx(logits.sigmoid().tolist())


def test_predictions_have_no_dropout() -> None:
    model = classifier(head={"dropout": 0.9}).train()
    (picture,) = photographs((20, 16))
    assert model.predict(picture) == model.predict(picture)


def test_features_are_what_the_classes_are_told_by() -> None:
    model = classifier(head={"pooling": "mean_max", "norm": "layer", "dropout": 0.5})
    pictures = photographs((20, 16), (9, 14), (20, 16))
    features = model.features(pictures, batch_size=2)
    assert features.shape == (3, model.head.width) == (3, 128)
    assert features.dtype == torch.float32 and not features.requires_grad
    assert model.features(pictures[0]).shape == (1, 128)
    model.eval()
    for row, picture in enumerate(pictures):
        x = model.pixel_values(picture)
        torch.testing.assert_close(
            model.head.linear(features[row]), model(x).logits[0], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        ([], {}, "there are no images in the list"),
        (7, {}, "an image is given as int"),
        ("x.png", {"top_k": 0}, "top_k=0 is no count"),
        ("x.png", {"batch_size": 0}, "batch_size=0 holds no image"),
        ("x.png", {}, "x.png cannot be read"),
    ],
)
def test_what_cannot_be_predicted(images: Any, options: dict, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        classifier().predict(images, **options)


def test_a_saved_processor_of_other_channels_is_refused(tmp_path: Path) -> None:
    model = ResidualForImageClassification.build("resnet20", num_labels=2, in_channels=1)
    model.save_pretrained(tmp_path)
    ResidualImageProcessor(num_channels=3).save_pretrained(tmp_path)
    with pytest.raises(rb.InputError, match=r"makes 3 channels, but the backbone takes 1"):
        ResidualForImageClassification.from_pretrained(tmp_path)


def test_a_model_without_a_processor_says_so() -> None:
    model = classifier()
    model.processor = None
    with pytest.raises(rb.InputError, match="no processor to make pixel_values"):
        model.features(photographs((8, 8)))


def test_layers_learn_at_rates_of_their_own() -> None:
    model = classifier()
    before = {name: value.clone() for name, value in model.named_parameters()}
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 3} for i in range(8)]
    options = rb.train.Options(
        optimizer="adamw", learning_rate=1e-2, layer_decay=0.6, schedule="constant", epochs=1,
        batch_size=8, least_updates=1, device="cpu", progress=False, channels_last=False,
    )  # fmt: skip
    rb.train.fit(model, rows, options=options)
    moved = {n: (v - before[n]).abs().max().item() for n, v in model.named_parameters()}
    last, first = (dict(model.backbone.blocks[at][1].named_parameters()) for at in (-1, 0))
    names = {id(v): n for n, v in model.named_parameters()}
    # AdamW's first step is the rate.
    for depth, block in ((1, last), (9, first)):
        steps = [moved[names[id(v)]] for v in block.values()]
        assert max(steps) == pytest.approx(1e-2 * 0.6**depth, rel=1e-2)
