"""Image files: how they are opened, and the size and the channels that suit a set of them."""

import math
import os
from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from resbackbones.data import Source, read
from resbackbones.data.columns import header_size, image_header
from resbackbones.data.paths import reason
from resbackbones.errors import InputError
from resbackbones.vision.processor import as_viewed

SMALL = 64  # pixels of a side up to which images of one size keep it
USUAL = 224  # the side that larger images are usually brought to
LOOKED_AT = 1000  # images, evenly spread, whose size a choice is made from


def open_image(value: Any) -> Any:
    """An image as it lies in a data set (`{"bytes", "path"}`, PIL or an array) or in a file (its
    path), fully decoded, as it should be seen: turned as its EXIF orientation says, 16-bit grey as
    8-bit, of several frames or pages the first. What the processor then makes of it is what a
    transformers pipeline makes of it, 16-bit grey apart: colours of palettes and CMYK become RGB,
    grey is repeated, transparency is left out (what is transparent has the colour it hides).

    Raises:
        OSError: a file that is no image, or is cut off; PIL has other errors for some damages.
        InputError: grey of more than 16 bits or of floating-point numbers.
    """
    if isinstance(value, str | os.PathLike):
        value = {"path": value}
    if not isinstance(value, dict):
        return value
    with image_header(value) as image:
        image.load()  # a truncated file fails here, not later
        return as_viewed(image)


def read_image(image: Any, processor: Any) -> Any:
    """What `open_image` makes of an image that a model is asked about, ready for its processor.

    Raises:
        InputError: the model has no processor; what cannot be read, named where it is a file.
    """
    if processor is None:
        raise InputError(
            "this model has no processor to make pixel_values of an image; set model.processor"
        )
    name = image if isinstance(image, str | os.PathLike) else "the image"
    try:
        image = open_image(image)
        if isinstance(image, PIL.Image.Image):
            image.load()
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever PIL makes of a broken file
        raise InputError(f"{name} cannot be read ({reason(error)}); check the file") from error
    return image


def one_value_refusal(error: ValueError, x: Tensor) -> InputError | None:
    """What to say where a batch norm finds one value per channel in training; None of any other
    error.

    Args:
        error: of the net.
        x: what it was given, `(B, C, H, W)`.
    """
    if "more than 1 value per channel" not in str(error):
        return None
    height, width = x.shape[2:]
    return InputError(
        f"a batch norm cannot be trained on {len(x)} image of {width}x{height} pixels; give more "
        'or larger images, or build the model with norm="group"'
    )


def _header_mode(value: Any) -> str:
    """How PIL calls the kind of pixels of an image in a data set."""
    with image_header(value) as image:
        return image.mode


def choose_size(source: Source, side: int | None = None) -> tuple[dict[str, int], str]:
    """The size to train at and to answer at, for the processor, and a sentence that says it.

    Images of one size of up to 64 pixels a side keep it. Others become squares: of 224 pixels where
    the median of their shorter sides is 160 or more, else of that median rounded to a multiple of
    32. Only headers are read, of up to 1,000 images evenly spread; damaged ones do not count.

    Args:
        source: the training images.
        side: height and width where they are given.

    Returns:
        `{"height", "width"}` in pixels, and the sentence.

    Raises:
        InputError: a side of less than one pixel; not one image that can be read.
    """
    sizes, found, median = look_at_sizes(source, side)
    largest, is_one_size = sizes[-1], len(set(sizes)) == 1
    if side is not None:
        chosen = (side, side)
    elif is_one_size and max(largest) <= SMALL:
        chosen = largest
    elif median >= 160:
        chosen = (USUAL, USUAL)
    else:
        chosen = (max(1, round(median / 32)) * 32,) * 2
    width, height = chosen
    few = len(source) > LOOKED_AT
    who = f"{LOOKED_AT} images that were looked at are" if few else "Images are"
    does = f"all are brought to {width}x{height}" if {chosen} != set(sizes) else "they stay so"
    asked = f"--image-size {side}" if side is not None else "--image-size sets another size"
    return {"height": height, "width": width}, f"{who} {found} pixels; {does} ({asked})."


def look_at_sizes(
    source: Source, side: int | None = None
) -> tuple[list[tuple[int, int]], str, int]:
    """Widths and heights of up to 1,000 images evenly spread, from small to large; the ends of them
    in words; and the median of their shorter sides.

    Raises:
        InputError: a side that is asked for of less than one pixel; not one image that can be read.
    """
    if side is not None and side < 1:
        raise InputError(
            f"images cannot be brought to {side} pixels; give one or more with --image-size, or "
            "leave it out to have a size chosen"
        )
    some = source.select(_looked_at(source))
    sizes = sorted(read(some, header_size, "skip").items, key=math.prod)
    found = "{}x{}".format(*sizes[-1])
    if len(set(sizes)) > 1:
        found = "{}x{} to ".format(*sizes[0]) + found
    return sizes, found, sorted(map(min, sizes))[len(sizes) // 2]


def choose_channels(source: Source) -> int:
    """1 where images are grey, by their headers, else 3; up to 1,000 evenly spread are looked at.

    Raises:
        InputError: not one image that can be read.
    """
    modes = read(source.select(_looked_at(source)), _header_mode, "skip").items
    return 1 if all(mode.startswith(("1", "L", "I", "F")) for mode in modes) else 3


def _looked_at(source: Source) -> Tensor:
    """The rows of up to `LOOKED_AT` images, evenly spread."""
    if len(source) <= LOOKED_AT:
        return torch.arange(len(source))
    return torch.linspace(0, len(source) - 1, LOOKED_AT, dtype=torch.float64).long()


__all__: Sequence[str] = (
    "choose_channels",
    "choose_size",
    "one_value_refusal",
    "open_image",
    "read_image",
)
