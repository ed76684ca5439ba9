"""Any image file is opened as it should be seen, or refused in a sentence; sizes are chosen."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.image_utils import load_image

import resbackbones as rb
from resbackbones.vision import (
    ImageItems,
    ResidualForImageClassification,
    ResidualImageProcessor,
    choose_size,
    open_image,
)
from resbackbones.vision.images import choose_channels
from tests.vision.helpers import encoded, pictures, png, source_of

GREY = ResidualImageProcessor(num_channels=1)

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (12, 16, 3), dtype=np.uint8)
COLOUR = PIL.Image.fromarray(RGB)
ALPHA = PIL.Image.fromarray(RANDOM.integers(0, 256, (12, 16), dtype=np.uint8))
CLEAR = PIL.Image.merge("RGBA", [*COLOUR.split(), ALPHA])
PALETTE = COLOUR.quantize(16)
GREY16 = PIL.Image.fromarray(RANDOM.integers(0, 65536, (12, 16)).astype(np.uint16))
OTHER = COLOUR.rotate(180)


def cut(cell: dict[str, Any], size: int) -> dict[str, Any]:
    return {"bytes": cell["bytes"][:size], "path": None}


# What a file is, and what its pixels are taken for.
FILES: dict[str, tuple[dict[str, Any], PIL.Image.Image | None]] = {
    "grey": (encoded(COLOUR.convert("L")), COLOUR.convert("L")),
    "black and white": (encoded(COLOUR.convert("1")), COLOUR.convert("1")),
    "grey and alpha": (encoded(COLOUR.convert("LA")), COLOUR.convert("L")),
    "alpha": (encoded(CLEAR), COLOUR),
    "palette": (encoded(PALETTE), PALETTE),
    "palette, one colour transparent": (encoded(PALETTE, transparency=3), PALETTE),
    "palette, alpha": (encoded(PALETTE, transparency=bytes(range(0, 256, 16))), PALETTE),
    "one colour transparent": (encoded(COLOUR, transparency=(1, 2, 3)), COLOUR),
    "16 bits": (encoded(GREY16), None),
    "CMYK": (encoded(COLOUR.convert("CMYK"), "tiff"), COLOUR.convert("CMYK")),
    "CMYK, JPEG": (encoded(COLOUR.convert("CMYK"), "jpeg", quality=95), None),
    "several pages": (encoded(COLOUR, "tiff", save_all=True, append_images=[OTHER]), COLOUR),
    "moving GIF": (encoded(PALETTE, "gif", save_all=True, append_images=[OTHER]), PALETTE),
    "moving WebP": (
        encoded(COLOUR, "webp", lossless=True, save_all=True, append_images=[OTHER]),
        COLOUR,
    ),
    "one pixel": (encoded(COLOUR.crop((0, 0, 1, 1))), COLOUR.crop((0, 0, 1, 1))),
    "one row": (encoded(COLOUR.crop((0, 0, 16, 1))), COLOUR.crop((0, 0, 16, 1))),
    "three rows": (encoded(COLOUR.crop((0, 0, 16, 3))), COLOUR.crop((0, 0, 16, 3))),
    "one column": (encoded(COLOUR.crop((0, 0, 1, 12))), COLOUR.crop((0, 0, 1, 12))),
    "bytes behind its end": ({"bytes": png(RGB)["bytes"] + b"more", "path": None}, COLOUR),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of transformers' loader
def test_any_image_is_the_same_in_training_and_in_a_pipeline(
    kind: str, channels: int, tmp_path: Path
) -> None:
    cell, seen = FILES[kind]
    processor = ResidualImageProcessor(num_channels=channels, size={"height": 12, "width": 16})
    items = ImageItems(source_of([cell] * 2), processor)
    found = items.__getitems__([1])["pixel_values"]
    path = tmp_path / "image"
    path.write_bytes(cell["bytes"])
    model = ResidualForImageClassification.build(
        "resnet20", num_labels=2, in_channels=channels, processor=processor
    )
    assert torch.equal(model.pixel_values(path), found)
    assert torch.equal(model.pixel_values(cell), found)
    if kind != "16 bits":  # of which transformers makes white
        with PIL.Image.open(path) as image:
            loaded = processor(load_image(image), return_tensors="pt").pixel_values
        assert (loaded - found).abs().max() <= (2.01 / 255 if channels == 1 else 0)
    if seen is not None:
        expected = np.atleast_3d(np.array(seen.convert({1: "L", 3: "RGB"}[channels])))
        pixels = processor.process_image(open_image(cell)).movedim(0, -1).numpy()
        assert pixels.shape == expected.shape
        # PIL makes grey of a palette's colours before it rounds, or after.
        assert np.abs(pixels.astype(int) - expected).max() <= (1 if channels == 1 else 0)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"bytes": b"", "path": None}, "no image, or of a kind that PIL does not know"),
    "text": ({"bytes": b"who is it", "path": None}, "no image, or of a kind that PIL does not"),
    "JPEG cut off": (cut(encoded(COLOUR.resize((200, 200)), "jpeg"), 3000), "truncated"),
    "PNG cut off": (cut(encoded(COLOUR), 200), "truncated"),
    "GIF cut off": (cut(encoded(PALETTE.resize((90, 90)), "gif"), 900), "truncated"),
    "numbers that are not whole": (
        encoded(PIL.Image.fromarray(RANDOM.random((12, 16)).astype(np.float32)), "tiff"),
        "floating-point numbers",
    ),
    "32 bits": (
        encoded(PIL.Image.fromarray(np.full((12, 16), 70_000, np.int32)), "tiff"),
        "where 16 bits hold 0 to 65535",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_told_in_a_sentence(kind: str, tmp_path: Path) -> None:
    cell, sentence = BROKEN[kind]
    source = source_of([png(RGB), cell, png(RGB)])
    with pytest.raises(rb.InputError, match=f"row 2 .* cannot be read .*{sentence}"):
        ImageItems(source, ResidualImageProcessor())
    items = ImageItems(source, ResidualImageProcessor(), on_bad="skip")
    assert items.rows == [0, 2] and sentence in items.skipped[0]
    model = ResidualForImageClassification.build("resnet20", num_labels=2)
    path = tmp_path / "broken"
    path.write_bytes(cell["bytes"])
    with pytest.raises(rb.InputError, match=sentence):
        model.predict([PIL.Image.fromarray(RGB), path])


def test_a_file_that_is_not_there_is_named() -> None:
    model = ResidualForImageClassification.build("resnet20", num_labels=2)
    with pytest.raises(rb.InputError, match=r"nowhere\.png cannot be read .*No such file"):
        model.predict("nowhere.png")


def test_a_picture_opened_from_a_file_cut_off_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(BROKEN["PNG cut off"][0]["bytes"])
    model = ResidualForImageClassification.build("resnet20", num_labels=2)
    with PIL.Image.open(path) as image, pytest.raises(rb.InputError, match="truncated"):
        model.predict(image)


@pytest.mark.parametrize(
    ("modes", "expected"), [("L L", 1), ("1 L LA", 1), ("L RGB", 3), ("P P", 3), ("CMYK L", 3)]
)
def test_channels_are_those_of_the_images(modes: str, expected: int) -> None:
    cells = [encoded(COLOUR.convert(mode), "tiff") for mode in modes.split()]
    assert choose_channels(source_of(cells)) == expected


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
