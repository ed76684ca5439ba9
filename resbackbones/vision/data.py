"""From image files to batches: one processor for training and inference, augmentation by the batch.

Small sets are decoded once and kept as uint8 pixels, which makes a batch one gather; sets that do
not fit in memory are decoded batch by batch.
"""

import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from resbackbones.data import Items, Source, mixed_labels, read
from resbackbones.errors import InputError, nearest

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # PIL's modes by number of channels
# What a call of the processor may change for its images, and what else it takes.
CHANGEABLE = (
    "num_channels do_resize size resample do_center_crop crop_size do_rescale rescale_factor "
    "do_normalize image_mean image_std"
).split()
PASSING = ["return_tensors", "device", "disable_grouping"]


class ResidualImagesKwargs(ImagesKwargs, total=False):
    """transformers' image options, and the number of channels."""

    num_channels: int


class ResidualImageProcessor(TorchvisionBackend):
    """Images (PIL, arrays or tensors, in any mode) to `pixel_values` `(B, num_channels, H, W)`.

    PIL images are turned upright as their EXIF orientation says, and 16-bit pixels become 8-bit.
    A call may change the options for its images: `processor(image, do_normalize=False)`.

    Args:
        num_channels: 1 turns colour into grey, 3 grey into colour; any other number must be what
            the images have.
        size: `{"height", "width"}`, or `{"shortest_edge"}` with a `crop_size`; None keeps images
            as they are, and a batch then needs images of one size.
        image_mean, image_std: one number a channel, subtracted and divided after scaling pixels to
            0 … 1; the default 0.5 brings them to -1 … 1.

    >>> processor = ResidualImageProcessor(num_channels=1, size={"height": 28, "width": 28})
    >>> image = PIL.Image.new("RGB", (40, 30))
    >>> tuple(processor(image, return_tensors="pt").pixel_values.shape)
    (1, 1, 28, 28)
    """

    valid_kwargs = ResidualImagesKwargs
    num_channels = 3
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    do_normalize = True
    # Set by the base class from the options.
    do_resize: bool
    size: Any
    do_center_crop: bool
    crop_size: Any
    image_mean: list[float]
    image_std: list[float]

    def __init__(self, **options: Any) -> None:
        channels = options.get("num_channels") or self.num_channels
        for name in ("image_mean", "image_std"):
            if options.get(name) is None:
                options[name] = [0.5] * channels
            elif len(options[name]) != channels:
                raise InputError(
                    f"{name} has {len(options[name])} numbers, but num_channels={channels}; give "
                    "one number a channel"
                )
        options.setdefault("do_resize", options.get("size") is not None)
        options.setdefault("do_center_crop", options.get("crop_size") is not None)
        super().__init__(**options)

    def preprocess(self, images: Any, *arguments: Any, **options: Any) -> BatchFeature:
        """Images to `pixel_values`.

        Args:
            images: one or a list.
            arguments: as in transformers.
            options: of the processor, for these images; `return_tensors` and `device`.

        Raises:
            InputError: an option that a call does not have.
        """
        for name, value in options.items():  # transformers would take it and do nothing with it
            if name not in CHANGEABLE + PASSING and value is not None:
                raise InputError(
                    f"a call of the image processor has no option {name!r}; "
                    + nearest(name, CHANGEABLE + PASSING)
                )
        changes = {n: options.pop(n) for n in CHANGEABLE if options.get(n) is not None}
        if not changes:
            return super().preprocess(images, *arguments, **options)
        for step, of in (("do_resize", "size"), ("do_center_crop", "crop_size")):
            if of in changes:
                changes.setdefault(step, True)
        changed = type(self)(**{**self.to_dict(), **changes})
        return changed.preprocess(images, *arguments, **options)

    def process_image(self, image: Any, *_: Any, device: Any = None, **__: Any) -> Tensor:
        """One image, upright, as a tensor `(num_channels, H, W)` of the pixels it has."""
        channels: int = self.num_channels
        if isinstance(image, PIL.Image.Image):
            image = PIL.ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # PIL would make 255 of all that is more
                image = PIL.Image.fromarray(_eight_bits(image).numpy())
            if channels in MODES:
                image = image.convert(MODES[channels])
            image = np.array(image)
        pixels = torch.as_tensor(image)
        if pixels.dtype == torch.uint16:
            pixels = _eight_bits(pixels)
        if pixels.ndim == 2:
            pixels = pixels.unsqueeze(0)
        elif pixels.shape[0] not in (channels, 1, 3) and pixels.shape[-1] in (channels, 1, 3):
            pixels = pixels.movedim(-1, 0)
        if channels == 1 and pixels.shape[0] == 3:
            # ITU-R BT.601, as PIL converts
            weights = torch.tensor([0.299, 0.587, 0.114], device=pixels.device).view(3, 1, 1)
            grey = (pixels.float() * weights).sum(0, keepdim=True)
            pixels = grey if pixels.is_floating_point() else grey.round().to(pixels.dtype)
        elif channels == 3 and pixels.shape[0] == 1:
            pixels = pixels.expand(3, -1, -1)
        if pixels.shape[0] != channels:
            raise InputError(
                f"an image has shape {tuple(pixels.shape)}, but this processor makes {channels} "
                "channels; give images of as many channels"
            )
        return pixels.contiguous().to(device or pixels.device)

    def fit(self, pixels: Tensor) -> Tensor:
        """Bring `(C, H, W)` to the processor's size: resize, then crop, where it does."""
        if self.do_resize:
            pixels = self.resize(pixels, SizeDict(**dict(self.size)), resample=self.resample)
        if self.do_center_crop:
            pixels = self.center_crop(pixels, SizeDict(**dict(self.crop_size)))
        return pixels

    def scale(self, pixels: Tensor) -> Tensor:
        """uint8 `(B, C, H, W)` to normalised float32."""
        return self.rescale_and_normalize(
            pixels,
            self.do_rescale,
            self.rescale_factor,
            self.do_normalize,
            tuple(self.image_mean),  # type: ignore[arg-type]
            tuple(self.image_std),  # type: ignore[arg-type]
        )

    def _preprocess(  # type: ignore[override]
        self, images: list[Tensor], return_tensors: str | None = None, **_: Any
    ) -> BatchFeature:
        fitted = [self.fit(image) for image in images]
        sizes = {tuple(image.shape) for image in fitted}
        if len(sizes) > 1:
            raise InputError(
                f"images of {len(sizes)} sizes cannot be one batch; give the processor a size, or "
                "the images one by one"
            )
        values = {"pixel_values": self.scale(torch.stack(fitted))}
        return BatchFeature(values, tensor_type=return_tensors)


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
        labels: int64 `(N,)`.
        rows: row of each item in the source.
        skipped: the damaged ones, "name: reason".
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
        self.source, self.processor, self.augment = source, processor, augment
        self.num_classes = len(source.labels)
        self.on_bad, self.device = on_bad, torch.device(device)
        self.pixels: Tensor | None = None
        self.rows = list(range(len(source)))
        self.skipped: list[str] = []
        first = _first_size(source, self._decode)
        if math.prod(first) * len(source) <= memory:
            found = read(source, self._decode, on_bad)
            self.rows, self.skipped = found.rows, found.skipped
            self.pixels = _stack(source, found.items, found.rows).to(self.device)
        self.labels = source.label_ids()[self.rows].to(self.device)

    def _decode(self, value: Any) -> Tensor:
        return self.processor.fit(self.processor.process_image(open_image(value)))

    def __len__(self) -> int:
        return len(self.rows)

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
        """Pixels, uint8, and labels of some rows."""
        if self.pixels is not None:
            index = torch.as_tensor(rows, device=self.device)
            return self.pixels[index], self.labels[index]
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(self._load_one, rows))
        rows = [row for row, _ in found]
        pixels = _stack(self.source, [image for _, image in found], rows)
        return pixels.to(self.device), self.labels[torch.as_tensor(rows, device=self.device)]

    def _load_one(self, row: int) -> tuple[int, Tensor]:
        """One image from the source; where damaged ones are skipped, the next good one."""
        for step in range(len(self)):
            there = (row + step) % len(self)
            try:
                return there, read(self.source.select([there]), self._decode, workers=1).items[0]
            except InputError as error:
                if self.on_bad == "error":
                    raise
                if str(error) not in self.skipped:
                    self.skipped.append(str(error))
        raise InputError(f"no image of {self.source.name} can be read; check the files")


def open_image(value: Any) -> Any:
    """An image as it lies in a data set (`{"bytes", "path"}`, PIL or an array), fully decoded and
    turned upright."""
    if not isinstance(value, dict):
        return value
    where = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
    with PIL.Image.open(where) as image:
        image.load()  # a truncated file fails here, not later
        return PIL.ImageOps.exif_transpose(image)


def _eight_bits(image: PIL.Image.Image | Tensor) -> Tensor:
    """16-bit pixels as uint8, rounded."""
    if isinstance(image, PIL.Image.Image):
        image = torch.from_numpy(np.array(image).astype(np.int32))  # in this machine's byte order
        low, high = int(image.min()), int(image.max())
        if low < 0 or high > 65535:
            raise InputError(
                f"a grey image has pixels from {low} to {high}, where 16 bits hold 0 to 65535; "
                "rescale it"
            )
    return ((image.int() + 128) // 257).to(torch.uint8)  # 65535 is 255 times 257


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


def _first_size(source: Source, decode: Any) -> tuple[int, ...]:
    """Shape of the first image that can be read."""
    for row in range(len(source)):
        try:
            return tuple(read(source.select([row]), decode, workers=1).items[0].shape)
        except InputError:
            continue  # named when all are read
    raise InputError(f"no image of {source.name} can be read; check the files")


def _stack(source: Source, images: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """One tensor of images of one size."""
    for image, row in zip(images, rows, strict=True):
        if image.shape != images[0].shape:
            one, other = tuple(images[0].shape), tuple(image.shape)
            raise InputError(
                f"{source.row_name(row)} has shape {other} where others have {one}; give the "
                "processor a size to bring them to"
            )
    return torch.stack(list(images))


__all__: Sequence[str] = ("Augment", "ImageItems", "ResidualImageProcessor")
