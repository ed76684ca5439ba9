"""Any image becomes the pixels a model takes, or is refused in one sentence."""

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import resbackbones as rb
from resbackbones.vision import ResidualImageProcessor

GREY = ResidualImageProcessor(num_channels=1)
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
PICTURE = PIL.Image.fromarray(PIXELS)


def test_arrays_of_many_channels() -> None:
    processor = ResidualImageProcessor(num_channels=5)
    first = torch.randint(0, 256, (5, 8, 9), dtype=torch.uint8)
    last = first.movedim(0, -1).numpy()
    a, b = processor([first, last], return_tensors="pt").pixel_values
    assert torch.equal(a, b)
    with pytest.raises(rb.InputError, match="makes 5 channels"):
        processor(PIL.Image.new("RGB", (8, 8)))


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_of_height_and_width_are_grey(channels: int) -> None:
    processor = ResidualImageProcessor(num_channels=channels)
    grey = PIXELS[..., 0]
    expected = processor(PIL.Image.fromarray(grey), return_tensors="pt").pixel_values
    for given in (grey, torch.from_numpy(grey), [grey], grey[None], [[grey]]):
        assert torch.equal(processor(given, return_tensors="pt").pixel_values, expected)
    two = processor([grey, PICTURE], return_tensors="pt").pixel_values
    assert two.shape == (2, channels, 10, 14) and torch.equal(two[:1], expected)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "there are no images in the list"),
        (None, "an image is given as NoneType; give a PIL image"),
        (PIXELS[..., 0].tolist(), "an image is given as int"),
        ([PICTURE, {"bytes": b""}], "an image is given as dict"),
        (np.zeros(7, np.uint8), r"an image has shape \(7,\); give pixels \(H, W\)"),
        (torch.zeros(1, 1, 3, 8, 8), r"an image has shape \(1, 1, 3, 8, 8\)"),
        (np.zeros((0, 5, 3), np.uint8), r"an image has shape \(0, 5, 3\)"),
        (np.zeros((8, 8), bool), "an image holds bool; give uint8 pixels"),
        (torch.zeros(8, 8, dtype=torch.complex64), "an image holds torch.complex64"),
        (np.full((8, 8), "a"), "an image holds <U1"),
        (
            [PICTURE, PIXELS[:5]],
            '2 sizes cannot be one batch; give the processor a size, as size={"',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused(given: Any, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        GREY(given, return_tensors="pt")


def test_grey_is_what_pil_makes_of_it() -> None:
    from_pil = GREY.process_image(PICTURE)
    from_array = GREY.process_image(PIXELS)
    assert (from_pil.int() - from_array.int()).abs().max() <= 1  # PIL rounds in fixed point


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
    processor = ResidualImageProcessor()
    before = processor.to_dict()
    found = processor(PICTURE, return_tensors="pt", **changes).pixel_values
    expected = ResidualImageProcessor(**changes)(PICTURE, return_tensors="pt").pixel_values
    plain = processor(PICTURE, return_tensors="pt", do_normalize=None).pixel_values
    assert torch.equal(found, expected)
    assert found.shape != plain.shape or not torch.equal(found, plain)
    assert processor.to_dict() == before


def test_a_size_in_a_call_keeps_the_steps_that_are_off() -> None:
    processor = ResidualImageProcessor(size={"height": 6, "width": 8})
    call = {"size": {"height": 4, "width": 4}, "return_tensors": "pt"}
    assert processor(PICTURE, **call).pixel_values.shape[-2:] == (4, 4)
    assert processor(PICTURE, **call, do_resize=False).pixel_values.shape[-2:] == (10, 14)


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
        GREY(PICTURE, **options)


def test_statistics_must_fit_the_channels() -> None:
    with pytest.raises(rb.InputError, match="image_mean has 3 numbers, but num_channels=1"):
        ResidualImageProcessor(num_channels=1, image_mean=[0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"height": 0, "width": 8}},
        {"size": {"shortest_edge": -4}},
        {"crop_size": {"height": 8, "width": 0}},
    ],
    ids=str,
)
def test_a_size_has_pixels(options: dict) -> None:
    with pytest.raises(rb.InputError, match="; give one pixel or more, or leave"):
        ResidualImageProcessor(**options)
    with pytest.raises(rb.InputError, match="; give one pixel or more, or leave"):
        GREY(PICTURE, **options)
