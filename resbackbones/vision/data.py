"""From image files to batches: a size for them, their pixels, augmentation by the batch.

Every image is decoded once before work starts, so that bad ones are known. The pixels of small sets
are kept, which makes a batch one gather; larger sets are decoded again batch by batch.
"""

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional

from resbackbones.data import Items, Source, mixed_labels, read
from resbackbones.errors import InputError
from resbackbones.vision.processor import ResidualImageProcessor, as_viewed

SMALL = 64  # pixels of a side up to which images of one size keep it
USUAL = 224  # the side that larger images are usually brought to
LOOKED_AT = 1000  # images, evenly spread, whose size a choice is made from
ORIENTATION = 0x0112  # of EXIF
GREY = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


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
    if side is not None and side < 1:
        raise InputError(
            f"images cannot be brought to {side} pixels; give one or more with --image-size, or "
            "leave it out to have a size chosen"
        )
    rows = looked_at(source)
    sizes = sorted(read(source.select(rows), header_size, "skip").items, key=math.prod)
    smallest, largest = sizes[0], sizes[-1]
    is_one_size = len(set(sizes)) == 1
    median = sorted(map(min, sizes))[len(sizes) // 2]
    if side is not None:
        chosen = (side, side)
    elif is_one_size and max(largest) <= SMALL:
        chosen = largest
    elif median >= 160:
        chosen = (USUAL, USUAL)
    else:
        chosen = (max(1, round(median / 32)) * 32,) * 2
    width, height = chosen
    found = "{}x{}".format(*largest)
    if not is_one_size:
        found = "{}x{} to ".format(*smallest) + found
    who = (
        "Images are" if len(rows) == len(source) else f"{len(rows)} images that were looked at are"
    )
    does = f"all are brought to {width}x{height}" if {chosen} != set(sizes) else "they stay so"
    asked = f"--image-size {side}" if side is not None else "--image-size sets another size"
    return {"height": height, "width": width}, f"{who} {found} pixels; {does} ({asked})."


def choose_channels(source: Source) -> int:
    """1 where images are grey, by their headers, else 3; up to 1,000 evenly spread are looked at.

    Raises:
        InputError: not one image that can be read.
    """
    modes = read(source.select(looked_at(source)), _header_mode, "skip").items
    return 1 if all(mode.startswith(("1", "L", "I", "F")) for mode in modes) else 3


def looked_at(source: Source) -> Tensor:
    """The rows of up to `LOOKED_AT` images, evenly spread."""
    if len(source) <= LOOKED_AT:
        return torch.arange(len(source))
    return torch.linspace(0, len(source) - 1, LOOKED_AT, dtype=torch.float64).long()


@dataclass(frozen=True)
class Augment:
    """What happens to training images, each item by its own draws.

    Attributes:
        flip: left and right, every other image.
        shift: up to so many pixels in each direction, the rim filled with the mean colour.
        zoom: a random rectangle of at least this share of the area, brought to full size (random
            resized crop, Szegedy 2015); 1 is off.
        erase: side of a square put to the mean colour, as a share of the image's (cutout, DeVries
            2017); 0 is off.
        mixup: half-width of the share that another image of the set may take, up to 0.5 (Zhang
            2018); labels are mixed alike. 0 is off.
    """

    flip: bool = True
    shift: int = 0
    zoom: float = 1.0
    erase: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        limits = {"zoom": (0.01, 1), "erase": (0, 1), "mixup": (0, 0.5), "shift": (0, math.inf)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"Augment has {name}={value!r}; use a number from {low} to {high}")


class ImageItems(Items):
    """Labelled images as `fit` takes them: a list of rows becomes a batch.

    Every image is decoded once as this is made; damaged ones are found then.

    Args:
        source: from `open_dataset` or `open_splits`.
        processor: the model's.
        augment: for training; None leaves images alone.
        on_bad: "error" names the first damaged image, "skip" leaves damaged ones out and lists
            them in `skipped`.
        seed: of the augmentation.
        device: where the pixels live and are augmented.
        memory: bytes up to which decoded pixels are kept.

    Attributes:
        source: the rows that are items, in their order.
        labels: int64 `(N,)`.
        rows: each item's row in the source as given.
        skipped: the damaged ones, "name: reason".

    Raises:
        InputError: a damaged image, named, where they are not skipped; nothing but damaged ones;
            images of several sizes where the processor has none to bring them to.
    """

    def __init__(
        self,
        source: Source,
        processor: ResidualImageProcessor,
        augment: Augment | None = None,
        *,
        on_bad: Literal["error", "skip"] = "error",
        seed: int = 0,
        device: str | torch.device = "cpu",
        memory: int = 4 << 30,
    ) -> None:
        super().__init__(seed)
        self.processor, self.augment, self.device = processor, augment, torch.device(device)
        self.num_classes = len(source.target.names)
        first = self._first(source, on_bad)
        self.pixels: Tensor | None = None
        if first.nbytes * len(source) <= memory:
            self.pixels = torch.empty(len(source), *first.shape, dtype=first.dtype)
        places = itertools.count()

        def keep(value: Any) -> tuple[int, tuple[int, ...]]:
            """Where one image's pixels are kept, if they are, and its shape."""
            image = self._decode(value)
            if self.pixels is None or image.shape != first.shape:
                return -1, tuple(image.shape)
            # A place for each as it is decoded: a list of all to stack would be the pixels twice.
            place = next(places)
            self.pixels[place] = image
            return place, tuple(image.shape)

        found = read(source, keep, on_bad)
        self.rows, self.skipped = found.rows, found.skipped
        self.source = source.select(self.rows) if self.skipped else source
        for row, (_, shape) in enumerate(found.items):
            if shape != first.shape:
                raise InputError(
                    f"{self.source.row_name(row)} is {shape[2]}x{shape[1]} pixels where others are "
                    f"{first.shape[2]}x{first.shape[1]}; bring all to one size, as with "
                    '--image-size 64 or a processor of size={"height": 64, "width": 64}'
                )
        self.labels = self.source.targets().to(self.device)
        if self.pixels is not None:
            self.pixels = self.pixels.to(self.device)
            self._places = torch.tensor([place for place, _ in found.items], device=self.device)
        inputs = self.source.dataset.select_columns([self.source.columns["input"]])
        self._encoded = inputs.with_format("arrow")

    def _parts(self) -> Iterator[bytes | str]:
        yield from super()._parts()
        yield self.processor.to_json_string()  # other pixels of the same files are other data

    def _decode(self, value: Any) -> Tensor:
        return self.processor.fit(self.processor.process_image(open_image(value)))

    def _first(self, source: Source, on_bad: str) -> Tensor:
        """The first image that can be read."""
        for row in range(len(source)):
            try:
                return read(source.select([row]), self._decode).items[0]
            except InputError:
                if on_bad != "skip":
                    raise
        raise InputError(f"no image of {source.name} can be read; check the files")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`pixel_values` `(B, C, H, W)` and `labels`, `(B,)` or, mixed, `(B, K)`."""
        pixels, labels = self._load(rows)
        if self.augment is None:
            return {"pixel_values": self.processor.scale(pixels), "labels": labels}
        options = self.augment
        draws = self.draws(rows, 8).to(self.device)
        x = augmented(self.processor.scale(pixels), options, draws)
        if options.mixup:
            partners = (draws[:, 7] * len(self)).long().tolist()
            other, other_labels = self._load(partners)
            partner_draws = self.draws(rows, 16)[:, 8:].to(self.device)
            other = augmented(self.processor.scale(other), options, partner_draws)
            share = options.mixup * draws[:, 6]
            x = torch.lerp(x, other, share.view(-1, 1, 1, 1))
            labels = mixed_labels(labels, other_labels, share, self.num_classes)
        return {"pixel_values": x, "labels": labels}

    def _load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pixels `(B, C, H, W)`, uint8, and labels of some rows."""
        index = torch.as_tensor(rows, device=self.device)
        if self.pixels is not None:
            return self.pixels[self._places[index]], self.labels[index]
        rows = index.tolist()
        values = self._encoded[rows].column(0).to_pylist()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            decoded = [pool.submit(self._decode, value) for value in values]
        for row, one in zip(rows, decoded, strict=True):
            if isinstance(error := one.exception(), OSError):
                raise InputError(
                    f"{self.source.row_name(row)} could be read before, but cannot be read now "
                    f"({error}); leave the files as they are during a run"
                ) from error
        pixels = torch.stack([one.result() for one in decoded])
        return pixels.to(self.device), self.labels[index]


def open_image(value: Any) -> Any:
    """An image as it lies in a data set (`{"bytes", "path"}`, PIL or an array), fully decoded,
    turned upright, 16-bit grey as 8-bit: as a transformers pipeline, too, takes it rightly."""
    if not isinstance(value, dict):
        return value
    with _opened(value) as image:
        image.load()  # a truncated file fails here, not later
        return as_viewed(image)


def _opened(value: Any) -> PIL.Image.Image:
    """An image in a data set with its header read alone."""
    return PIL.Image.open(
        io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
    )


def header_size(value: Any) -> tuple[int, int]:
    """Width and height of an image in a data set, turned upright."""
    with _opened(value) as image:
        # Where a PNG has no orientation, asking for it would decode the pixels.
        on_its_side = "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5
        return (image.height, image.width) if on_its_side else image.size


def _header_mode(value: Any) -> str:
    """How PIL calls the kind of pixels of an image in a data set."""
    with _opened(value) as image:
        return image.mode


def augmented(x: Tensor, options: Augment, draws: Tensor) -> Tensor:
    """Augment normalised images.

    Args:
        x: `(B, C, H, W)`.
        options: what to do.
        draws: uniform numbers in 0 to 1, `(B, 6 or more)`.
    """
    height, width = x.shape[-2:]
    if options.zoom < 1:
        x = _zoomed(x, options.zoom, draws[:, 2:6])
    if options.flip:
        x = torch.where((draws[:, 0] < 0.5).view(-1, 1, 1, 1), x.flip(-1), x)
    if options.shift:
        x = _shifted(x, options.shift, draws[:, 2:4])
    if options.erase:
        centre = draws[:, 4:6] * torch.tensor([height, width], device=x.device)
        half = options.erase * min(height, width) / 2
        y, z = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        inside_y = (y + 0.5 - centre[:, :1]).abs() < half
        inside_x = (z + 0.5 - centre[:, 1:]).abs() < half
        x = x.masked_fill((inside_y.unsqueeze(2) & inside_x.unsqueeze(1)).unsqueeze(1), 0.0)
    return x


def _shifted(x: Tensor, most: int, draws: Tensor) -> Tensor:
    """Each image moved by up to `most` whole pixels."""
    batch, _, height, width = x.shape
    padded = functional.pad(x, (most,) * 4)
    start = (draws * (2 * most + 1)).long()
    rows = start[:, :1] + torch.arange(height, device=x.device)
    columns = start[:, 1:] + torch.arange(width, device=x.device)
    item = torch.arange(batch, device=x.device).view(-1, 1, 1)
    return padded.movedim(1, -1)[item, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)


def _zoomed(x: Tensor, smallest: float, draws: Tensor) -> Tensor:
    """A random rectangle of each image, aspect 3/4 to 4/3, brought to the image's size."""
    area = smallest + (1 - smallest) * draws[:, 0]
    aspect = torch.exp((2 * draws[:, 1] - 1) * math.log(4 / 3))
    height, width = (area / aspect).sqrt().clamp(max=1), (area * aspect).sqrt().clamp(max=1)
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2] = (2 * draws[:, 2] - 1) * (1 - width)
    theta[:, 1, 2] = (2 * draws[:, 3] - 1) * (1 - height)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def jittered(x: Tensor, most: float, draws: Tensor, processor: ResidualImageProcessor) -> Tensor:
    """Brightness, contrast and saturation of normalised images times a factor each.

    Args:
        x: `(B, C, H, W)`, as the processor scales them.
        most: half-width of the factors around 1.
        draws: uniform numbers in 0 to 1, `(B, 3)`.
        processor: whose mean and deviation x was normalised with.
    """
    mean, deviation = (
        torch.tensor(values, device=x.device).view(1, -1, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    brightness, contrast, saturation = (
        (1 + most * (2 * draws - 1)).T.reshape(3, -1, 1, 1, 1).unbind()
    )
    x = x * deviation + mean
    x = x * brightness
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True).expand_as(x), x, contrast)
    if x.shape[1] == 3:
        weights = torch.tensor(GREY, device=x.device).view(1, 3, 1, 1)
        x = torch.lerp((x * weights).sum(1, keepdim=True).expand_as(x), x, saturation)
    return (x.clamp(0, 1) - mean) / deviation


__all__: Sequence[str] = (
    "Augment",
    "ImageItems",
    "choose_channels",
    "choose_size",
    "jittered",
    "open_image",
)
