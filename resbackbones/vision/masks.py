"""From images and masks to batches: decoded once, varied by the batch; and masks to be looked at.

An image is brought to the processor's size, its mask stays as it is: a model of small images is
judged on the pixels of the large ones. Where training images are varied, both are read at the same
places, the image between pixels and the mask at the nearest one.
"""

import colorsys
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from torch import Tensor
from torch.nn import functional

from resbackbones.data import IGNORED, Items, Masks, Rereader, Source, read
from resbackbones.errors import InputError
from resbackbones.vision.augment import jittered
from resbackbones.vision.images import look_at_sizes, open_image
from resbackbones.vision.processor import ResidualImageProcessor

LARGE = 288  # pixels of a shorter side, above which images are brought to it


@dataclass(frozen=True)
class MaskAugment:
    """What happens to training images and their masks, each item by its own draws.

    Attributes:
        crop: height and width of what is cut out of each image, in pixels of the size the processor
            brings it to; where that is larger than the image, the rest is the mean colour and of no
            class.
        zoom: the smallest and largest factor that an image is enlarged by before; all factors
            between are as likely on a logarithmic scale.
        flip: left and right, every other image.
        jitter: half-width of the factors on brightness, contrast and (of three channels)
            saturation.

    Raises:
        InputError: a number out of range.
    """

    crop: tuple[int, int]
    zoom: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    jitter: float = 0.3

    def __post_init__(self) -> None:
        if len(self.crop) != 2 or not all(type(side) is int and side >= 1 for side in self.crop):
            raise InputError(f"crop={self.crop!r} is no height and width; give two whole numbers")
        if len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1] < math.inf:
            raise InputError(
                f"zoom={self.zoom!r}; give the smaller factor, above 0, and the larger"
            )
        if not 0 <= self.jitter < 1:
            raise InputError(f"jitter={self.jitter!r}; use a number from 0 to below 1")


class MaskItems(Items):
    """Images and a class for each of their pixels, as `fit` takes them.

    Every image and mask is decoded once as this is made; damaged ones are found then. Those of
    small sets are kept, as uint8.

    Args:
        source: from `open_dataset` or `open_splits` with `target=Masks()`.
        processor: the model's.
        augment: for training; None leaves images alone.
        on_bad: "error" names the first damaged item, "skip" leaves damaged ones out and lists them
            in `skipped`.
        seed: of the augmentation.
        device: where the pixels live and are augmented.
        memory: bytes up to which decoded pixels are kept.

    Attributes:
        source: the rows that are items, in their order.
        rows: each item's row in the source as given.
        sizes: the different heights and widths of the images.
        skipped: the damaged ones, "name: reason".

    Raises:
        InputError: a source without masks; a damaged image or mask, or a mask of another size than
            its image, named, where they are not skipped.
    """

    def __init__(
        self,
        source: Source,
        processor: ResidualImageProcessor,
        augment: MaskAugment | None = None,
        *,
        on_bad: Literal["error", "skip"] = "error",
        seed: int = 0,
        device: str | torch.device = "cpu",
        memory: int = 4 << 30,
    ) -> None:
        super().__init__(seed)
        if not isinstance(source.target, Masks):
            raise InputError(
                f"{source.name} has no masks, but {type(source.target).__name__}; open it with "
                "target=Masks()"
            )
        self.processor, self.augment, self.device = processor, augment, torch.device(device)
        self._target, left = source.target, memory
        self.sizes: set[tuple[int, int]] = set()

        def kept(value: Tensor) -> Tensor | None:
            """What was decoded, as long as there is memory for it."""
            nonlocal left
            left -= value.nbytes
            return value.to(self.device) if left >= 0 else None

        def image(value: Any) -> tuple[Any, Tensor | None]:
            pixels = processor.process_image(open_image(value))
            return pixels.shape[1:], kept(processor.fit(pixels))

        def mask(value: Any) -> tuple[Any, Tensor | None]:
            classes = self._mask(value)
            return classes.shape, kept(classes)

        def check(row: int, item: tuple[Any, Tensor | None]) -> None:
            size, own = item[0], found[row][0] if row in found else item[0]
            if own != size:
                raise ValueError(
                    f"it is {size[1]}x{size[0]} pixels as it is viewed, but its mask is "
                    f"{own[1]}x{own[0]}"
                )

        masks = read(_masks_of(source), mask, on_bad)
        found = dict(zip(masks.rows, masks.items, strict=True))
        images = read(source, image, on_bad, check=check)
        self.skipped = images.skipped + masks.skipped
        self.rows: list[int] = []
        self._pixels: list[Tensor | None] = []
        self._masks: list[Tensor | None] = []
        for row, (size, pixels) in zip(images.rows, images.items, strict=True):
            if row not in found:
                continue
            self.rows.append(row)
            self.sizes.add((size[0], size[1]))
            self._pixels.append(pixels)
            self._masks.append(found[row][1])
        if not self.rows:
            raise InputError(
                f"not one item of {source.name} can be used ({self.skipped[0]}); check the files"
            )
        if left < 0:  # a part would only save a part of the decoding
            self._pixels, self._masks = [], []
        self.source = source.select(self.rows) if self.skipped else source
        self.reread = Rereader(self.source, self._decode, ("input", "mask"))

    def _parts(self) -> Iterator[bytes | str]:
        yield from super()._parts()
        yield self.processor.to_json_string()  # other pixels of the same files are other data

    def __len__(self) -> int:
        return len(self.rows)

    def check_batches(self, size: int) -> None:
        """Refuse batches of so many items, before any is made.

        Raises:
            InputError: the images have several sizes and nothing is cropped.
        """
        if size > 1 and len(self.sizes) > 1 and self.augment is None:
            raise InputError(
                f"{self.source.name}: images of {len(self.sizes)} sizes cannot be one batch; take "
                "them one by one (--evaluation-batch-size 1, and --batch-size 1 without crops)"
            )

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`pixel_values` `(B, C, H, W)` and `labels` int64 `(B, H', W')`, 255 where there is no
        class: both of the crop's size, or of the processor's and the masks' own.

        Raises:
            InputError: several sizes where nothing is cropped.
        """
        pixels, masks = self._load(rows)
        sizes = {(*p.shape, *m.shape) for p, m in zip(pixels, masks, strict=True)}
        if self.augment is not None:
            draws = self.draws(rows, 8).to(self.device)
            if len(sizes) == 1:
                groups = [(torch.stack(pixels), torch.stack(masks), draws)]
            else:
                groups = [
                    (p[None], m[None], d[None])
                    for p, m, d in zip(pixels, masks, draws, strict=True)
                ]
            done = [
                varied(self.processor.scale(p), m, self.augment, d, self.processor)
                for p, m, d in groups
            ]
            x, labels = (torch.cat(parts) for parts in zip(*done, strict=True))
            return {"pixel_values": x, "labels": labels}
        self.check_batches(len(sizes))
        x = self.processor.scale(torch.stack(pixels))
        return {"pixel_values": x, "labels": torch.stack(masks).long()}

    def _mask(self, value: Any) -> Tensor:
        return torch.from_numpy(self._target.decode(value))

    def _decode(self, image: Any, mask: Any) -> tuple[Tensor, Tensor]:
        """An image's pixels as the processor fits them, and its mask."""
        pixels = self.processor.process_image(open_image(image))
        return self.processor.fit(pixels), self._mask(mask)

    def _load(self, rows: Sequence[int]) -> tuple[list[Any], list[Any]]:
        """Pixels `(C, H, W)` and masks `(H', W')`, uint8, of some rows."""
        rows = torch.as_tensor(rows).tolist()
        if self._pixels:
            return [self._pixels[row] for row in rows], [self._masks[row] for row in rows]

        done = self.reread(rows)
        return [pixels.to(self.device) for pixels, _ in done], [m.to(self.device) for _, m in done]


def varied(
    x: Tensor,
    masks: Tensor,
    options: MaskAugment,
    draws: Tensor,
    processor: ResidualImageProcessor,
) -> tuple[Tensor, Tensor]:
    """Vary normalised images and their masks.

    Args:
        x: `(B, C, H, W)`.
        masks: uint8 `(B, H', W')`, of the same images.
        options: what to do.
        draws: uniform numbers in 0 to 1, `(B, 7 or more)`.
        processor: whose mean and deviation x was normalised with.

    Returns:
        `(B, C, *crop)`, and int64 `(B, *crop)`, 255 beyond the image's rim.
    """
    low, high = (math.log(factor) for factor in options.zoom)
    zoom = torch.exp(low + (high - low) * draws[:, 0])
    # The crop's share of the image, and where its centre may be: inside, or around the image.
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    for axis, (length, side) in enumerate(zip(x.shape[2:], options.crop, strict=True)):
        share = side / (zoom * length)
        theta[:, 1 - axis, 1 - axis] = share
        theta[:, 1 - axis, 2] = (2 * draws[:, 1 + axis] - 1) * (1 - share).abs()
    if options.flip:
        theta[:, 0, 0] *= torch.where(draws[:, 3] < 0.5, -1.0, 1.0)
    grid = functional.affine_grid(theta, [len(x), 1, *options.crop], align_corners=False)
    if options.jitter:
        x = jittered(x, options.jitter, draws[:, 4:7], processor)
    x = functional.grid_sample(x, grid, "bilinear", "zeros", align_corners=False)
    # What lies outside is 0, so 0 has to be what is of no class.
    shifted = masks.unsqueeze(1).float() - IGNORED
    labels = functional.grid_sample(shifted, grid, "nearest", "zeros", align_corners=False)
    return x, labels[:, 0].long() + IGNORED


def choose_shorter_side(
    source: Source, side: int | None = None
) -> tuple[int, dict[str, int] | None, str]:
    """The shorter side to train at and to answer at, the size for the processor, and a sentence
    that says it. By default images whose shorter sides have a median above 288 pixels are brought
    to 288, and others stay as they are. Only headers are read, of up to 1,000 images evenly spread.

    Returns:
        The side (of images that stay, its median), `{"shortest_edge"}` or None, and the sentence.

    Raises:
        InputError: a side of less than one pixel; not one image that can be read.
    """
    _, found, median = look_at_sizes(source, side)
    chosen = side or (LARGE if median > LARGE else None)
    asked = f"--image-size {side}" if side else "--image-size sets another size"
    if chosen is None:
        return median, None, f"images are {found} pixels; they stay so ({asked})"
    does = f"their shorter side is brought to {chosen}"
    return chosen, {"shortest_edge": chosen}, f"images are {found} pixels; {does} ({asked})"


def pixel_counts(items: MaskItems) -> Tensor:
    """How many pixels of the masks each class has, int64 `(K,)`."""
    classes = len(items.source.target.names)
    counts = torch.zeros(256, dtype=torch.int64)
    for start in range(0, len(items), 32):
        _, masks = items._load(range(start, min(start + 32, len(items))))
        for mask in masks:
            counts += torch.bincount(mask.flatten().cpu().long(), minlength=256)
    return counts[:classes]


def draw_masks(
    image: Any, classes: Any, names: Sequence[str] | None = None, alpha: float = 0.6
) -> PIL.Image.Image:
    """An image with its classes in colours over it.

    Args:
        image: a PIL image, or what `open_image` takes.
        classes: int `(H, W)`, of the image's size, as `predict` gives; 255 stays bare.
        names: of the classes; those that occur are named below the picture.
        alpha: how much of a colour covers the image.

    Raises:
        InputError: classes of another size.
    """
    picture = open_image(image).convert("RGB")
    numbers = np.asarray(classes)
    if numbers.shape != (picture.height, picture.width):
        raise InputError(
            f"the classes have shape {numbers.shape}, but the image is {picture.width}x"
            f"{picture.height} pixels; give one class per pixel (H, W)"
        )
    table = np.array([colour(number) for number in range(256)])
    pixels = np.asarray(picture).astype(np.float64)
    covered = (numbers >= 0) & (numbers != IGNORED)
    pixels[covered] += alpha * (table[numbers[covered]] - pixels[covered])
    drawn = PIL.Image.fromarray(pixels.round().astype(np.uint8))
    if names is None:
        return drawn
    found = [number for number in np.unique(numbers).tolist() if 0 <= number < len(names)]
    return _with_legend(drawn, [(names[number], colour(number)) for number in found])


def colour(number: int) -> tuple[int, int, int]:
    """The colour of a class, unlike those of the numbers near it."""
    hue = number * 0.618034 % 1  # the golden ratio leaves no two near each other
    red, green, blue = colorsys.hsv_to_rgb(
        hue, (0.9, 0.55)[number % 2], (1.0, 0.75)[number // 2 % 2]
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def _with_legend(
    picture: PIL.Image.Image, entries: Sequence[tuple[str, tuple[int, int, int]]]
) -> PIL.Image.Image:
    """A picture with names in their colours below it, as many in a line as fit."""
    line, places, x, y = 16, [], 4, 0
    draw = PIL.ImageDraw.Draw(picture)
    for name, shade in entries:
        wide = 18 + math.ceil(draw.textlength(name)) + 8
        if x > 4 and x + wide > picture.width:
            x, y = 4, y + line
        places.append((x, y, name, shade))
        x += wide
    whole = PIL.Image.new("RGB", (picture.width, picture.height + y + line), "white")
    whole.paste(picture)
    draw = PIL.ImageDraw.Draw(whole)
    for x, y, name, shade in places:
        top = picture.height + y + 3
        draw.rectangle((x, top, x + 10, top + 10), fill=shade)
        draw.text((x + 14, top - 1), name, fill="black")
    return whole


def _masks_of(source: Source) -> Source:
    """The same rows with their masks as what is read."""
    return replace(source, columns={**source.columns, "input": source.columns["mask"]})


__all__: Sequence[str] = (
    "MaskAugment",
    "MaskItems",
    "choose_shorter_side",
    "draw_masks",
    "pixel_counts",
    "varied",
)
