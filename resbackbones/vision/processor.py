"""Images as they come to the pixels a model takes: one processor for training and inference."""

from collections.abc import Sequence
from typing import Any

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

from resbackbones.errors import InputError, nearest

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # PIL's modes by number of channels
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as PIL converts
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
    """Images (PIL in any mode; arrays or tensors `(H, W)`, `(C, H, W)`, `(H, W, C)` or batches of
    them) to `pixel_values` `(B, num_channels, H, W)`.

    PIL images are turned upright as their EXIF orientation says, and 16-bit pixels become 8-bit.
    (A transformers pipeline turns images into RGB before, which makes white of most 16-bit grey:
    give it such images as `open_image` opens them.) A call may change the options for its images:
    `processor(image, do_normalize=False)`.

    Args:
        num_channels: 1 turns colour into grey, 3 grey into colour; any other number must be what
            the images have.
        size: `{"height", "width"}`, or `{"shortest_edge"}` with a `crop_size`, in pixels. It is
            saved with the model, so give the one that the model is trained at, as `choose_size`
            finds it. None keeps images as they are, and a batch then needs images of one size.
        image_mean, image_std: one number a channel, subtracted and divided after scaling pixels to
            0 … 1; the default 0.5 brings them to -1 … 1.

    Raises:
        InputError: statistics of another number of channels; a size of less than one pixel.

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
        for name in ("size", "crop_size"):
            for side, pixels in dict(getattr(self, name) or {}).items():
                if pixels is not None and pixels < 1:
                    raise InputError(
                        f"{name} has {side}={pixels}; give one pixel or more, or leave {name} out"
                    )

    def preprocess(self, images: Any, *arguments: Any, **options: Any) -> BatchFeature:
        """Images to `pixel_values`.

        Args:
            images: one or a list.
            arguments: as in transformers.
            options: of the processor, for these images; `return_tensors` and `device`.

        Raises:
            InputError: an option that a call does not have; what is no image; images of several
                sizes where the processor has none to bring them to.
        """
        for name, value in options.items():  # transformers would take it and do nothing with it
            if name not in CHANGEABLE + PASSING and value is not None:
                raise InputError(
                    f"a call of the image processor has no option {name!r}; "
                    + nearest(name, CHANGEABLE + PASSING)
                )
        images = with_channels(images)
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
            image = as_viewed(image)
            if channels in MODES:
                image = image.convert(MODES[channels])
            image = np.atleast_3d(np.array(image)).transpose(2, 0, 1)
        pixels = torch.as_tensor(image)
        if pixels.dtype == torch.uint16:
            pixels = _eight_bits(pixels)
        if pixels.ndim == 2:
            pixels = pixels.unsqueeze(0)
        elif pixels.shape[0] != channels and pixels.shape[-1] in (channels, 1, 3):
            # One row of pixels in colour is (1, W, 3); what could be both ways is channels first.
            if pixels.shape[-1] == channels or pixels.shape[0] not in (1, 3):
                pixels = pixels.movedim(-1, 0)
        if channels == 1 and pixels.shape[0] == 3:
            weights = torch.tensor(GREY, device=pixels.device).view(3, 1, 1)
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
        pixels = self.resized(pixels)
        if self.do_center_crop:
            pixels = self.center_crop(pixels, SizeDict(**dict(self.crop_size)))
        return pixels

    def unfit(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Bring float maps `(B, C, h, w)` over what a model saw back over the image of this height
        and width that it saw, `(B, C, height, width)`, bilinearly; 0 where `fit` cut it off."""
        sized = self.resized(torch.empty(1, height, width, dtype=torch.uint8)).shape[-2:]
        cut = self.crop_size if self.do_center_crop else {"height": sized[0], "width": sized[1]}
        maps = functional.interpolate(maps, (cut["height"], cut["width"]), mode="bilinear")
        # Cutting the centre out and padding around it undo each other.
        maps = self.center_crop(maps, SizeDict(height=sized[0], width=sized[1]))
        return functional.interpolate(maps, (height, width), mode="bilinear")

    def resized(self, pixels: Tensor) -> Tensor:
        """`(C, H, W)` resized, where the processor does so."""
        if not self.do_resize:
            return pixels
        return self.resize(pixels, SizeDict(**dict(self.size)), resample=self.resample)

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

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
    ) -> list[Tensor]:
        """The class of every pixel, int64 `(H, W)` per image.

        Args:
            outputs: `.logits` `(B, K, H, W)`.
            target_sizes: each image's own height and width, which its map then has.

        Raises:
            InputError: not one size per image.
        """
        logits = outputs.logits
        sizes = [logits.shape[2:]] * len(logits) if target_sizes is None else list(target_sizes)
        if len(sizes) != len(logits):
            raise InputError(
                f"there are {len(sizes)} target sizes for {len(logits)} images; give one per image"
            )
        return [
            at_size(each[None], [int(side) for side in size])[0].argmax(0)
            for each, size in zip(logits, sizes, strict=True)
        ]

    def _preprocess(  # type: ignore[override]
        self, images: list[Tensor], return_tensors: str | None = None, **_: Any
    ) -> BatchFeature:
        fitted = [self.fit(image) for image in images]
        sizes = {tuple(image.shape) for image in fitted}
        if len(sizes) > 1:
            raise InputError(
                f"images of {len(sizes)} sizes cannot be one batch; give the processor a size, as "
                'size={"height": 64, "width": 64}, or the images one by one'
            )
        values = {"pixel_values": self.scale(torch.stack(fitted))}
        return BatchFeature(values, tensor_type=return_tensors)


def at_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits `(B, K, h, w)` of resized images as those of the images, `(B, K, *size)`."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, list(size), mode="bilinear", align_corners=False)


def with_channels(images: Any) -> Any:
    """The images of a call, those without an axis of channels `(H, W)` given one.

    Raises:
        InputError: what is no image, or has no pixels.
    """
    if isinstance(images, list | tuple):
        if not images:
            raise InputError("there are no images in the list; give one or more")
        return [with_channels(image) for image in images]
    if isinstance(images, str | PIL.Image.Image):
        return images
    if not isinstance(images, np.ndarray | Tensor):
        raise InputError(
            f"an image is given as {type(images).__name__}; give a PIL image, or an array or a "
            "tensor of pixels"
        )
    if images.ndim not in (2, 3, 4) or 0 in images.shape:
        raise InputError(
            f"an image has shape {tuple(images.shape)}; give pixels (H, W), (C, H, W), (H, W, C) "
            "or a batch of them"
        )
    if isinstance(images, Tensor):
        is_number = images.dtype != torch.bool and not images.is_complex()
    else:
        is_number = images.dtype.kind in "uif"
    if not is_number:
        raise InputError(f"an image holds {images.dtype}; give uint8 pixels from 0 to 255")
    return images[None] if images.ndim == 2 else images


def check_channels(processor: ResidualImageProcessor, takes: int) -> None:
    """Refuse a processor of another number of channels than a backbone takes."""
    if processor.num_channels != takes:
        raise InputError(
            f"the processor makes {processor.num_channels} channels, but the backbone takes "
            f"{takes}; build with in_channels={processor.num_channels}"
        )


def as_viewed(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image as a viewer shows it: turned as its EXIF orientation says, 16-bit grey as 8-bit.

    Raises:
        InputError: grey of more than 16 bits, or of numbers that are not whole.
    """
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise InputError(
            "a grey image has pixels that are floating-point numbers, of which nothing says what "
            "is white; save it with 8 or 16 bits"
        )
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        return image.convert("RGBA")  # of the same colours; PIL would warn of any other way
    if not image.mode.startswith("I"):
        return image
    pixels = np.array(image).astype(np.int32)  # in this machine's byte order
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise InputError(
            f"a grey image has pixels from {low} to {high}, where 16 bits hold 0 to 65535; "
            "rescale it"
        )
    # PIL would make 255 of all that is more.
    return PIL.Image.fromarray(_eight_bits(torch.from_numpy(pixels)).numpy())


def _eight_bits(pixels: Tensor) -> Tensor:
    """16-bit pixels as uint8, rounded."""
    return ((pixels.int() + 128) // 257).to(torch.uint8)  # 65535 is 255 times 257


__all__: Sequence[str] = ("ResidualImageProcessor", "as_viewed", "at_size", "with_channels")
