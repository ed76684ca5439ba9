"""Image classifiers: sizes, channels, pipelines."""

from pathlib import Path

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
