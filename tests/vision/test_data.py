"""From files to batches: the same pixels as at inference, augmentation that can be drawn again."""

import io
import re
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
from resbackbones.vision import Augment, ImageItems, ResidualImageProcessor, choose_size
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


def source_of(cells: list) -> Source:
    """A source of these images, of two classes in turn."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": cells, "label": [row % 2 for row in range(len(cells))]}
    return open_dataset(datasets.Dataset.from_dict(rows, features=features))


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
def test_damaged_images_are_named_or_left_out(memory: int) -> None:
    source = images(damage=(0, 4, 6))
    with pytest.raises(rb.InputError, match=re.escape(source.row_name(0))):
        ImageItems(source, GREY, memory=memory)
    items = ImageItems(source, GREY, on_bad="skip", memory=memory)
    kept = [1, 2, 3, 5, 7, 8, 9, 10, 11]
    assert items.rows == kept and len(items) == 9
    assert [name.partition(": ")[0] for name in items.skipped] == [
        source.row_name(row) for row in (0, 4, 6)
    ]
    assert items.source.row_name(3) == source.row_name(5)
    # Each of the good ones with its own pixels and label, in any order and more than once.
    order = [8, 3, 3, 0, 6]
    batch = items.__getitems__(order)
    expected = GREY([pil(source, kept[i]) for i in order], return_tensors="pt").pixel_values
    assert torch.equal(batch["pixel_values"], expected)
    assert batch["labels"].tolist() == [kept[i] % 3 for i in order]


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "by the batch"])
def test_nothing_but_damaged_images(memory: int) -> None:
    with pytest.raises(rb.InputError, match="can be read"):
        ImageItems(images(3, damage=(0, 1, 2)), GREY, on_bad="skip", memory=memory)


def test_an_image_that_goes_away_is_named(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path in paths:
        PIL.Image.new("L", (8, 8)).save(path)
    items = ImageItems(source_of(paths), GREY, memory=0)
    (tmp_path / "2.png").unlink()
    items.__getitems__([0, 1, 3])
    with pytest.raises(rb.InputError, match=r"2\.png could be read before, but cannot be read now"):
        items.__getitems__([3, 2])


def test_pixels_are_kept_where_they_fit() -> None:
    source = images()
    needed = 12 * 3 * 10 * 14
    assert ImageItems(source, ResidualImageProcessor(), memory=needed).pixels is not None
    assert ImageItems(source, ResidualImageProcessor(), memory=needed - 1).pixels is None


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "by the batch"])
def test_images_of_many_sizes_need_a_size(memory: int) -> None:
    both = datasets.concatenate_datasets([images().dataset, images(size=(9, 8, 3)).dataset])
    sentence = "is 8x9 pixels where others are 14x10; bring all to one size, as with --image-size"
    with pytest.raises(rb.InputError, match=sentence):
        ImageItems(open_dataset(both), GREY, memory=memory)
    size, _ = choose_size(open_dataset(both))
    items = ImageItems(open_dataset(both), ResidualImageProcessor(size=size), memory=memory)
    assert items.__getitems__([0, 23])["pixel_values"].shape == (2, 3, 32, 32)


def pictures(*sizes: tuple[int, int]) -> Source:
    """Images of these widths and heights."""
    return source_of([png(np.zeros((height, width), np.uint8)) for width, height in sizes])


@pytest.mark.parametrize(
    ("sizes", "side", "expected", "sentence"),
    [
        ([(28, 20)] * 3, None, (28, 20), "Images are 28x20 pixels; they stay so (--image-size"),
        ([(64, 64)] * 2, None, (64, 64), "Images are 64x64 pixels; they stay so (--image-size"),
        ([(65, 64)] * 2, None, (64, 64), "are 65x64 pixels; all are brought to 64x64"),
        ([(150, 120)] * 2, None, (128, 128), "are 150x120 pixels; all are brought to 128x128"),
        ([(400, 300)] * 2, None, (224, 224), "400x300 pixels; all are brought to 224x224 (--image"),
        ([(9, 5), (300, 9), (7, 6)], None, (32, 32), "are 7x6 to 300x9 pixels; all are brought to"),
        ([(10, 10), (300, 200), (250, 160)], None, (224, 224), "10x10 to 300x200 pixels"),
        ([(10, 12)] * 2, 12, (12, 12), "10x12 pixels; all are brought to 12x12 (--image-size 12)."),
        ([(12, 12)] * 2, 12, (12, 12), "Images are 12x12 pixels; they stay so (--image-size 12)."),
    ],
)
def test_a_size_is_chosen_and_said(
    sizes: list, side: int | None, expected: tuple[int, int], sentence: str
) -> None:
    size, said = choose_size(pictures(*sizes), side)
    assert (size["width"], size["height"]) == expected
    assert sentence in said


def test_a_size_is_chosen_from_a_thousand_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = png(np.zeros((6, 7), np.uint8))
    monkeypatch.setattr(PIL.Image.Image, "load", None)  # no pixel is decoded
    size, said = choose_size(source_of([cell] * 2500))
    assert size == {"height": 6, "width": 7}
    assert said.startswith("1000 images that were looked at are 7x6 pixels")


def test_a_size_is_of_good_images_turned_upright(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("L", (20, 40)).save(tmp_path / "turned.jpg", exif=exif)
    PIL.Image.new("L", (40, 20)).save(tmp_path / "upright.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    paths = [str(tmp_path / name) for name in ("bad.png", "turned.jpg", "upright.png")]
    size, _ = choose_size(source_of(paths))
    assert size == {"height": 20, "width": 40}
    with pytest.raises(rb.InputError, match="can be read"):
        choose_size(source_of(paths[:1] * 2))


@pytest.mark.parametrize("side", [0, -3])
def test_a_size_has_a_pixel(side: int) -> None:
    with pytest.raises(rb.InputError, match=f"{side} pixels; give one or more with --image-size"):
        choose_size(pictures((8, 8), (8, 8)), side)


def test_a_fingerprint_is_of_whatever_makes_the_batches() -> None:
    source = images()

    def fingerprint(source: Source = source, processor: Any = GREY, **options: Any) -> str:
        return ImageItems(source, processor, **options).fingerprint()

    same = fingerprint()
    assert fingerprint() == fingerprint(memory=0) == same
    others = [
        fingerprint(seed=1),
        fingerprint(augment=Augment()),
        fingerprint(source.select(range(11))),
        fingerprint(images(damage=(3,)), on_bad="skip"),
        fingerprint(processor=ResidualImageProcessor(num_channels=1, size={"shortest_edge": 8})),
    ]
    assert len({same, *others}) == 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    path = str(tmp_path / "image.png")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(pixels).save(path, exif=exif)
    source = source_of([path, path])
    processor = ResidualImageProcessor()
    found = ImageItems(source, processor).__getitems__([0])["pixel_values"]
    expected = processor(load_image(path), return_tensors="pt").pixel_values
    assert found.shape[-2:] == ((20, 40) if orientation < 5 else (40, 20))
    assert torch.equal(found, expected)
    assert torch.equal(processor(PIL.Image.open(path), return_tensors="pt").pixel_values, expected)


def test_sixteen_bits_in_training_are_those_of_inference(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    cell = png(ramp)
    (tmp_path / "ramp.png").write_bytes(cell["bytes"])
    with PIL.Image.open(tmp_path / "ramp.png") as image:
        assert image.mode == "I;16"
        expected = GREY(image, return_tensors="pt").pixel_values
    items = ImageItems(source_of([cell] * 2), GREY)
    assert torch.equal(items.__getitems__([0])["pixel_values"], expected)
    by_path = GREY(str(tmp_path / "ramp.png"), return_tensors="pt").pixel_values
    assert torch.equal(by_path, expected)


@pytest.mark.parametrize(
    "options", [{"zoom": 0.0}, {"erase": 2.0}, {"mixup": 0.7}, {"shift": -1}], ids=str
)
def test_wrong_augmentation_is_refused(options: dict) -> None:
    with pytest.raises(rb.InputError, match="Augment has"):
        Augment(**options)
