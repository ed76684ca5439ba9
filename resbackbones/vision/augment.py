"""Augmentation of whole batches, wherever they lie, each item by its own draws."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as operations

from resbackbones.errors import InputError
from resbackbones.vision.processor import GREY, ResidualImageProcessor

# Which of an item's draws decide what.
FLIP = 0
ERASES = 1
SHIFT = slice(2, 4)
ZOOM = slice(4, 8)
CUTOUT = slice(8, 10)
ERASED = slice(10, 14)
TRIVIAL = slice(14, 17)
SHARE = 17
PARTNER = 18
CUTMIX = slice(19, 22)
DRAWS = 22
# Zhong et al. 2020, section 4.2: the erased share of the area, and its aspect.
AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)
STEP = 4  # pixels that growing images grow by


@dataclass(frozen=True)
class Augment:
    """What happens to training images, each item by its own draws.

    Attributes:
        flip: left and right, every other image.
        shift: up to so many pixels in each direction, the rim filled with the mean colour; as many
            of an image not yet grown as are that share of it.
        zoom: a random rectangle of at least this share of the area, brought to full size (random
            resized crop, Szegedy 2015); 1 is off.
        trivial: one of 14 operations per image, of a strength of its own (TrivialAugment, Müller &
            Hutter 2021, section 3 and its wide space, table 1); for 1 or 3 channels.
        cutout: side of a square put to the mean colour, as a share of the image's (DeVries 2017); 0
            is off.
        erase: share of the images with a rectangle of 2 to 40 % of the area put to the mean colour
            (random erasing, Zhong 2020, algorithm 1); 0 is off.
        mixup: half-width of the share that another image of the set may take, up to 0.5 (Zhang
            2018); labels are mixed alike. 0 is off.
        cutmix: share of the images with a rectangle of another image of the set, of any area; its
            share is that of the labels (Yun 2019, section 3.1). The rest may be mixed up. 0 is off.
        start: side of the images in the first epoch, as a share of the full one (progressive
            resizing: less work at first, and like a zoom). 1 is off.
        growth: epochs until the side is full; it grows evenly, by multiples of 4 pixels.

    >>> [Augment(start=0.5, growth=4).side(32, epoch) for epoch in range(6)]
    [16, 20, 24, 28, 32, 32]
    """

    flip: bool = True
    shift: int = 0
    zoom: float = 1.0
    trivial: bool = False
    cutout: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    start: float = 1.0
    growth: int = 0

    def __post_init__(self) -> None:
        limits = {"shift": math.inf, "cutout": 1, "erase": 1, "mixup": 0.5, "cutmix": 1}
        limits |= {"zoom": 1, "start": 1, "growth": math.inf}
        for name, high in limits.items():
            value, low = getattr(self, name), 0.01 if name in ("zoom", "start") else 0
            if not low <= value <= high:
                raise InputError(f"Augment has {name}={value!r}; use a number from {low} to {high}")
        if self.start < 1 and not self.growth:
            raise InputError(
                f"Augment has start={self.start} but growth=0, so images would be full-sized from "
                "the first epoch; give growth the epochs until they are"
            )

    @property
    def mixes(self) -> bool:
        """Whether items take in others."""
        return self.mixup > 0 or self.cutmix > 0

    def share(self, epoch: int) -> float:
        """The side in an epoch, from 0, as a share of the full one."""
        if epoch >= self.growth:
            return 1.0
        return self.start + (1 - self.start) * epoch / self.growth

    def side(self, full: int, epoch: int) -> int:
        """Pixels in an epoch of a side that is to have so many."""
        share = self.share(epoch)
        return full if share == 1 else min(full, max(1, round(full * share / STEP)) * STEP)


def augmented(
    pixels: Tensor,
    options: Augment,
    draws: Tensor,
    scale: Callable[[Tensor], Tensor],
    mean: Sequence[float],
    epoch: int = 0,
) -> Tensor:
    """Images, augmented and normalised, all but what mixes them.

    Args:
        pixels: uint8 `(B, C, H, W)`.
        options: what to do.
        draws: uniform numbers in 0 to 1, `(B, DRAWS)`, on the CPU.
        scale: from pixels to normalised numbers, of which 0 is the mean colour.
        mean: that colour, a number per channel as pixels have them.
        epoch: which growing images are as large as they are by.
    """
    height, width = pixels.shape[-2:]
    sides = [options.side(height, epoch), options.side(width, epoch)]
    if sides != [height, width]:
        pixels = operations.resize(pixels, sides, antialias=True)
    if options.trivial:
        pixels = trivially_augmented(pixels, draws[:, TRIVIAL], mean)
    draws = draws.to(pixels.device)
    shift = round(options.shift * options.share(epoch))
    # On bytes, before there are four of each.
    flipped = draws[:, FLIP] < 0.5 if options.flip else None
    x, outside = _moved(pixels, flipped, shift, draws[:, SHIFT])
    x = scale(x)
    if outside is not None:
        x = _blank(x, outside)
    if options.zoom < 1:
        x = _zoomed(x, options.zoom, draws[:, ZOOM])
    if options.cutout:
        square = torch.tensor([options.cutout * min(sides)], device=x.device).expand(len(x), 2)
        centres = draws[:, CUTOUT] * torch.tensor(sides, device=x.device)
        x = _blank(x, _inside(sides, centres, square))
    if options.erase:
        chosen = (draws[:, ERASES] < options.erase).view(-1, 1, 1)
        x = _blank(x, _erased(sides, draws[:, ERASED]) & chosen)
    return x


def mixed(x: Tensor, others: Tensor, options: Augment, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Images that took in others, `(B, C, H, W)`, and the others' share of each, `(B,)`.

    Args:
        x, others: normalised images `(B, C, H, W)`.
        options, draws: as `augmented` takes them.
    """
    draws = draws.to(x.device)
    share = options.mixup * draws[:, SHARE]
    if not options.cutmix:
        return torch.lerp(x, others, share.view(-1, 1, 1, 1)), share
    sides, cut = list(x.shape[-2:]), draws[:, CUTMIX][:, 2] < options.cutmix
    full = torch.tensor(sides, device=x.device)
    # Of an area that is evenly distributed, before the image's rim cuts it.
    size = draws[:, SHARE, None].sqrt() * full
    inside = _inside(sides, draws[:, CUTMIX][:, :2] * full, size) & cut.view(-1, 1, 1)
    share = torch.where(cut, inside.float().mean((1, 2)), share)
    weight = torch.where(cut.view(-1, 1, 1), inside.float(), share.view(-1, 1, 1))
    return torch.lerp(x, others, weight.unsqueeze(1)), share


def _moved(
    pixels: Tensor, flipped: Tensor | None, most: int, draws: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Images flipped and then moved by up to `most` whole pixels, and where they are pixels from
    outside, `(B, H, W)`, of any colour; None where there are none."""
    if flipped is None and not most:
        return pixels, None
    batch, channels, height, width = pixels.shape
    row = torch.arange(height, device=pixels.device).expand(batch, height)
    column = torch.arange(width, device=pixels.device).expand(batch, width)
    outside = None
    if most:
        start = (draws * (2 * most + 1)).long() - most
        row, column = row + start[:, :1], column + start[:, 1:]
        beside = (column < 0) | (column >= width)
        outside = ((row < 0) | (row >= height)).unsqueeze(2) | beside.unsqueeze(1)
        row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    if flipped is not None:
        column = torch.where(flipped.unsqueeze(1), width - 1 - column, column)
    place = (row.unsqueeze(2) * width + column.unsqueeze(1)).view(batch, 1, -1)
    taken = pixels.flatten(2).gather(2, place.expand(-1, channels, -1))
    return taken.view(pixels.shape), outside


def _blank(x: Tensor, where: Tensor) -> Tensor:
    """Images with 0, the mean colour, at some pixels, `(B, H, W)`."""
    return x.mul_((~where).to(x.dtype).unsqueeze(1))  # nine times as fast as to fill them


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


def _erased(sides: Sequence[int], draws: Tensor) -> Tensor:
    """A rectangle wholly inside each image, `(B, H, W)`; its aspect is even in its logarithm."""
    full = torch.tensor(sides, device=draws.device)
    area = (AREA[0] + (AREA[1] - AREA[0]) * draws[:, 0]) * full.prod()
    aspect = torch.exp((2 * draws[:, 1] - 1) * math.log(ASPECT[1]))
    size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).minimum(full)
    return _inside(sides, size / 2 + draws[:, 2:] * (full - size), size)


def _inside(sides: Sequence[int], centres: Tensor, sizes: Tensor) -> Tensor:
    """Which pixels lie in a rectangle, `(B, H, W)`; centres and sizes `(B, 2)` in pixels."""
    inside = [
        (torch.arange(side, device=centres.device) + 0.5 - centres[:, axis, None]).abs()
        < sizes[:, axis, None] / 2
        for axis, side in enumerate(sides)
    ]
    return inside[0].unsqueeze(2) & inside[1].unsqueeze(1)


# TrivialAugment

LEVELS = 31
_SHARES = [level / (LEVELS - 1) for level in range(LEVELS)]


def _affine(pixels: Tensor, fill: Sequence[float], **changes: Any) -> Tensor:
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return operations.affine(pixels, **{**still, **changes}, fill=list(fill))


def _sheared(axis: int) -> "Operation":
    def operate(x: Tensor, by: float, fill: Sequence[float]) -> Tensor:
        angles = [0.0, 0.0]
        angles[axis] = math.degrees(math.atan(by))
        return _affine(x, fill, shear=angles, center=[0, 0])

    return operate


def _translated(axis: int) -> "Operation":
    def operate(x: Tensor, by: float, fill: Sequence[float]) -> Tensor:
        pixels = [0, 0]
        pixels[axis] = int(by)
        return _affine(x, fill, translate=pixels)

    return operate


Operation = Callable[[Tensor, float, Sequence[float]], Tensor]
# Each with its strength at level 0 and at the last, and whether that may be turned round.
OPERATIONS: dict[str, tuple[Operation, float, float, bool]] = {
    "identity": (lambda x, by, fill: x, 0, 0, False),
    "shear x": (_sheared(0), 0, 0.99, True),
    "shear y": (_sheared(1), 0, 0.99, True),
    "translate x": (_translated(0), 0, 32, True),
    "translate y": (_translated(1), 0, 32, True),
    "rotate": (lambda x, by, fill: operations.rotate(x, by, fill=list(fill)), 0, 135, True),
    "brightness": (lambda x, by, fill: operations.adjust_brightness(x, 1 + by), 0, 0.99, True),
    "color": (lambda x, by, fill: operations.adjust_saturation(x, 1 + by), 0, 0.99, True),
    "contrast": (lambda x, by, fill: operations.adjust_contrast(x, 1 + by), 0, 0.99, True),
    "sharpness": (lambda x, by, fill: operations.adjust_sharpness(x, 1 + by), 0, 0.99, True),
    "posterize": (lambda x, by, fill: operations.posterize(x, round(by)), 8, 2, False),
    "solarize": (lambda x, by, fill: operations.solarize(x, by), 255, 0, False),
    "autocontrast": (lambda x, by, fill: operations.autocontrast(x), 0, 0, False),
    "equalize": (lambda x, by, fill: operations.equalize(x), 0, 0, False),
}


def trivially_augmented(pixels: Tensor, draws: Tensor, fill: Sequence[float]) -> Tensor:
    """One operation for each image, evenly drawn, at one of 31 strengths, evenly drawn.

    Args:
        pixels: uint8 `(B, 1 or 3, H, W)`.
        draws: `(B, 3)` on the CPU: the operation, its strength, its direction.
        fill: the colour of what comes in from outside, a number per channel.

    Raises:
        InputError: images that are no uint8 of 1 or 3 channels.
    """
    if pixels.shape[1] not in (1, 3) or pixels.dtype != torch.uint8:
        raise InputError(
            f"TrivialAugment is for uint8 images of 1 or 3 channels, but these are {pixels.dtype} "
            f"of {pixels.shape[1]}; leave trivial out"
        )
    which = (draws[:, 0] * len(OPERATIONS)).long()
    level, turned = (draws[:, 1] * LEVELS).long(), (draws[:, 2] < 0.5).long()
    kinds = list(OPERATIONS.values())
    strong = torch.tensor([low != high for _, low, high, _ in kinds])[which]
    signed = torch.tensor([each[-1] for each in kinds])[which]
    # Images of one operation, strength and direction go together.
    key = (which * LEVELS + level * strong) * 2 + turned * (signed & (level > 0))
    keys, counts = key.unique(return_counts=True)
    result = torch.empty_like(pixels)
    for code, rows in zip(keys.tolist(), key.argsort().split(counts.tolist()), strict=True):
        operate, low, high, _ = kinds[code // 2 // LEVELS]
        by = low + (high - low) * _SHARES[code // 2 % LEVELS]
        rows = rows.to(pixels.device)
        some = operate(pixels.index_select(0, rows), -by if code % 2 else by, fill)
        result.index_copy_(0, rows, some)
    return result


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


__all__: Sequence[str] = ("Augment", "jittered")
