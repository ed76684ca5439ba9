"""From files to batches: the same pixels as at inference, augmentation that can be drawn again."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from transformers.image_utils import load_image

import resbackbones as rb
from resbackbones.data import Source, open_dataset
from resbackbones.vision import Augment, ImageItems, ResidualImageProcessor
from resbackbones.vision.data import augmented

GREY = ResidualImageProcessor(num_channels=1)


def png(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="png")
    return {"bytes": buffer.getvalue(), "path": None}


def images(count: int = 12, size: tuple[int, ...] = (10, 14, 3), damage: tuple = ()) -> Source:
    random = np.random.default_rng(0)
    cells = [png(random.integers(0, 256, size, dtype=np.uint8)) for _ in range(count)]
    for row in damage:
        cells[row]["bytes"] = cells[row]["bytes"][:60]
    return open_dataset(
        datasets.Dataset.from_dict(
            {"image": cells, "label": [i % 3 for i in range(count)]},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
            ),
        )
    )


def pil(source: Source, row: int) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(source.dataset[row]["image"]["bytes"]))


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "by the batch"])
@pytest.mark.parametrize(
    "processor",
    [
        ResidualImageProcessor(),
        GREY,
        ResidualImageProcessor(size={"height": 8, "width": 8}),
        ResidualImageProcessor(
            size={"shortest_edge": 12},
            crop_size={"height": 8, "width": 8},
            image_mean=[0.4, 0.5, 0.6],
            image_std=[0.2, 0.3, 0.4],
        ),
    ],
    ids=["as they are", "grey", "resized", "cropped"],
)
def test_training_sees_what_inference_sees(processor, memory: int) -> None:
    source = images()
    items = ImageItems(source, processor, memory=memory)
    batch = items.__getitems__([7, 2])
    expected = processor([pil(source, 7), pil(source, 2)], return_tensors="pt").pixel_values
    assert torch.equal(batch["pixel_values"], expected)
    assert batch["labels"].tolist() == [1, 2]


def test_augmentation_depends_on_seed_epoch_and_item_alone() -> None:
    options = Augment(flip=True, shift=3, zoom=0.5, erase=0.3, mixup=0.5)
    items = ImageItems(images(), GREY, options, seed=1)
    again = ImageItems(images(), GREY, options, seed=1)
    items.set_epoch(3)
    again.set_epoch(3)
    together = items.__getitems__([0, 5, 9])
    alone = again.__getitems__([5])
    torch.testing.assert_close(together["pixel_values"][1:2], alone["pixel_values"])
    torch.testing.assert_close(together["labels"][1:2], alone["labels"])
    again.set_epoch(4)
    assert not torch.equal(alone["pixel_values"], again.__getitems__([5])["pixel_values"])
    other = ImageItems(images(), GREY, options, seed=2)
    other.set_epoch(3)
    assert not torch.equal(alone["pixel_values"], other.__getitems__([5])["pixel_values"])


def test_mixed_labels_sum_to_one_and_are_the_pixels_shares() -> None:
    items = ImageItems(images(60), GREY, Augment(flip=False, mixup=0.5))
    batch = items.__getitems__(list(range(60)))
    torch.testing.assert_close(batch["labels"].sum(1), torch.ones(60))
    assert (batch["labels"].amax(1) >= 0.5).all()
    assert (batch["labels"].amax(1) < 0.9).any()


def test_flip_and_shift_only_move_pixels() -> None:
    x = torch.arange(1.0, 241).view(4, 3, 4, 5)
    draws = torch.tensor([[0.9, 0, 0.5, 0.5, 0, 0]] * 3 + [[0.1, 0, 0.99, 0, 0, 0]])
    y = augmented(x, Augment(flip=True, shift=2), draws)
    assert torch.equal(y[:3], x[:3])  # not flipped, and in the middle of the shifts
    expected = torch.zeros(3, 4, 5)  # flipped, two up and two to the right
    expected[:, :2, 2:] = x[3].flip(-1)[:, 2:, :3]
    assert torch.equal(y[3], expected)


def test_erase_puts_a_square_to_zero() -> None:
    y = augmented(torch.ones(1, 1, 8, 8), Augment(flip=False, erase=0.5), torch.full((1, 6), 0.5))
    expected = torch.ones(8, 8)
    expected[2:6, 2:6] = 0
    assert torch.equal(y[0, 0], expected)


def test_zoom_stays_inside_the_image_and_can_be_the_whole() -> None:
    x = torch.linspace(-1, 1, 16).expand(50, 1, 16, 16)
    y = augmented(x, Augment(flip=False, zoom=0.2), torch.rand(50, 6))
    assert y.min() >= -1.001 and y.max() <= 1.001
    span = (y[:, 0, 0, -1] - y[:, 0, 0, 0]) / 2
    assert span.min() > 0.3 and span.max() <= 1.001  # sqrt(0.2 * 3/4) of the width, at least


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "by the batch"])
def test_damaged_images_are_named_or_skipped(memory: int) -> None:
    source = images(damage=(4, 6))
    with pytest.raises(rb.InputError, match="row 4 of"):
        items = ImageItems(source, GREY, memory=memory)
        items.__getitems__(range(12))
    items = ImageItems(source, GREY, on_bad="skip", memory=memory)
    batch = items.__getitems__(range(len(items)))
    assert len(items.skipped) == 2 and "row 4" in min(items.skipped)
    assert batch["pixel_values"].isfinite().all()
    if memory:
        assert len(items) == 10 and items.rows == [0, 1, 2, 3, 5, 7, 8, 9, 10, 11]
    else:
        assert batch["labels"][4] == 2  # the next good one, with its own label


def test_images_of_many_sizes_need_a_size() -> None:
    both = datasets.concatenate_datasets([images().dataset, images(size=(9, 9, 3)).dataset])
    with pytest.raises(rb.InputError, match=r"\(1, 9, 9\) where others have \(1, 10, 14\)"):
        ImageItems(open_dataset(both), GREY)


def test_arrays_of_many_channels() -> None:
    processor = ResidualImageProcessor(num_channels=5)
    first = torch.randint(0, 256, (5, 8, 9), dtype=torch.uint8)
    last = first.movedim(0, -1).numpy()
    a, b = processor([first, last], return_tensors="pt").pixel_values
    assert torch.equal(a, b)
    with pytest.raises(rb.InputError, match="makes 5 channels"):
        processor(PIL.Image.new("RGB", (8, 8)))


def test_grey_is_what_pil_makes_of_it(tmp_path: Path) -> None:
    image = pil(images(), 0)
    from_pil = GREY.process_image(image)
    from_array = GREY.process_image(np.array(image))
    assert (from_pil.int() - from_array.int()).abs().max() <= 1  # PIL rounds in fixed point


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    path = str(tmp_path / "image.png")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(pixels).save(path, exif=exif)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": [path, path], "label": [0, 1]}
    source = open_dataset(datasets.Dataset.from_dict(rows, features=features))
    processor = ResidualImageProcessor()
    found = ImageItems(source, processor).__getitems__([0])["pixel_values"]
    expected = processor(load_image(path), return_tensors="pt").pixel_values
    assert found.shape[-2:] == ((20, 40) if orientation < 5 else (40, 20))
    assert torch.equal(found, expected)
    assert torch.equal(processor(PIL.Image.open(path), return_tensors="pt").pixel_values, expected)


RAMP = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I", "array"])
def test_sixteen_bits_become_eight(kind: str, channels: int) -> None:
    image: Any = RAMP
    if kind == "I;16B":
        image = PIL.Image.frombytes(kind, RAMP.shape, RAMP.astype(">u2").tobytes())
    elif kind != "array":
        image = PIL.Image.fromarray(RAMP.astype(np.int32) if kind == "I" else RAMP)
        assert image.mode == kind
    elif channels == 4:
        image = np.stack([RAMP, RAMP, RAMP, np.full_like(RAMP, 65535)])
    found = ResidualImageProcessor(num_channels=channels).process_image(image)
    expected = torch.from_numpy(np.rint(RAMP / 257).astype(np.uint8))
    assert found.shape[0] == channels and found.dtype == torch.uint8
    assert all(torch.equal(channel, expected) for channel in found[:3])
    assert channels < 4 or (found[3] == 255).all()


def test_sixteen_bits_in_training_are_those_of_inference(tmp_path: Path) -> None:
    source = images()
    cell = png(RAMP)
    (tmp_path / "ramp.png").write_bytes(cell["bytes"])
    with PIL.Image.open(tmp_path / "ramp.png") as image:
        assert image.mode == "I;16"
        expected = GREY(image, return_tensors="pt").pixel_values
    rows = {"image": [cell] * 2, "label": [0, 1]}
    features = source.dataset.features
    items = ImageItems(open_dataset(datasets.Dataset.from_dict(rows, features=features)), GREY)
    assert torch.equal(items.__getitems__([0])["pixel_values"], expected)
    by_path = GREY(str(tmp_path / "ramp.png"), return_tensors="pt").pixel_values
    assert torch.equal(by_path, expected)


def test_more_than_sixteen_bits_are_refused() -> None:
    image = PIL.Image.fromarray(np.array([[0, 65536]], dtype=np.int32))
    with pytest.raises(rb.InputError, match="pixels from 0 to 65536, where 16 bits hold"):
        GREY(image)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"size": {"height": 6, "width": 8}},
        {"crop_size": {"height": 6, "width": 8}, "image_mean": [0.1, 0.2, 0.3]},
        {"num_channels": 1, "image_mean": [0.1], "image_std": [0.2]},
    ],
    ids=str,
)
def test_a_call_changes_the_options_for_its_images(changes: dict) -> None:
    image = pil(images(), 0)
    processor = ResidualImageProcessor()
    before = processor.to_dict()
    found = processor(image, return_tensors="pt", **changes).pixel_values
    expected = ResidualImageProcessor(**changes)(image, return_tensors="pt").pixel_values
    plain = processor(image, return_tensors="pt", do_normalize=None).pixel_values
    assert torch.equal(found, expected)
    assert found.shape != plain.shape or not torch.equal(found, plain)
    assert processor.to_dict() == before


def test_a_size_in_a_call_keeps_the_steps_that_are_off() -> None:
    image = pil(images(), 0)
    processor = ResidualImageProcessor(size={"height": 6, "width": 8})
    call = {"size": {"height": 4, "width": 4}, "return_tensors": "pt"}
    assert processor(image, **call).pixel_values.shape[-2:] == (4, 4)
    assert processor(image, **call, do_resize=False).pixel_values.shape[-2:] == (10, 14)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"do_pad": True}, "no option 'do_pad'"),
        ({"input_data_format": "channels_last"}, "no option 'input_data_format'"),
        ({"do_normalise": False}, "did you mean 'do_normalize'"),
    ],
    ids=str,
)
def test_options_that_a_call_does_not_have_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        GREY(pil(images(), 0), **options)


@pytest.mark.parametrize(
    "options", [{"zoom": 0.0}, {"erase": 2.0}, {"mixup": 0.7}, {"shift": -1}], ids=str
)
def test_wrong_augmentation_is_refused(options: dict) -> None:
    with pytest.raises(rb.InputError, match="Augment has"):
        Augment(**options)


def test_statistics_must_fit_the_channels() -> None:
    with pytest.raises(rb.InputError, match="image_mean has 3 numbers, but num_channels=1"):
        ResidualImageProcessor(num_channels=1, image_mean=[0.1, 0.2, 0.3])
