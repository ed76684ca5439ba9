"""From images with boxes to batches: decoded once, varied by the batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import masks_to_boxes

from resbackbones.data import Boxes, Items, Rereader, Source, read
from resbackbones.data.instances import RunLengths, decode, encode
from resbackbones.errors import InputError
from resbackbones.vision.augment import jittered
from resbackbones.vision.detector import ResidualDetectionProcessor
from resbackbones.vision.images import open_image

SMALLEST = 2.0  # pixels of a side that a varied box has at least
LEAST = 12.0  # pixels of a side that nearly every box is to have
DRAWS = 10  # that an image takes, before the partners of a mosaic

Label = dict[str, Any]


@dataclass(frozen=True)
class BoxAugment:
    """What happens to training images and their boxes, each item by its own draws.

    Attributes:
        flip: left and right, every other image.
        upside_down: up and down, every other image: where up is no more than a habit, as under a
            microscope or from the air.
        zoom: the smallest and largest factor that an image is enlarged by; all factors between are
            as likely on a logarithmic scale. What then is larger than before is cut to it, what is
            smaller lies somewhere in the mean colour (large scale jitter, Ghiasi et al. 2021).
        mosaic: the share of images that three others are laid beside, two by two, before a part of
            one image's size is cut out (Bochkovskiy et al. 2020).
        jitter: half-width of the factors on brightness, contrast and (of three channels)
            saturation.
        visible: boxes of which less than this share of the area is left are dropped, as are those
            of less than 2 pixels a side. Where there are masks, the box of what was cut is that of
            what is left of its mask.

    Raises:
        InputError: a number out of range.
    """

    flip: bool = True
    upside_down: bool = False
    zoom: tuple[float, float] = (0.7, 1.4)
    mosaic: float = 0.0
    jitter: float = 0.3
    visible: float = 0.3

    def __post_init__(self) -> None:
        if len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1] < math.inf:
            raise InputError(
                f"zoom={self.zoom!r}; give the smaller factor, above 0, and the larger"
            )
        for name, high in (("mosaic", 1.0), ("jitter", 0.99), ("visible", 1.0)):
            if not 0 <= getattr(self, name) <= high:
                raise InputError(f"{name}={getattr(self, name)!r}; use a number from 0 to {high:g}")


class BoxItems(Items):
    """Images and the boxes of their objects, as `fit` takes them.

    Every image is decoded once as this is made; damaged ones are found then. Those of small sets
    are kept, as uint8.

    Args:
        source: from `open_dataset` or `open_splits` with `target=Boxes()`, or `Boxes(masks=True)`.
        processor: the model's.
        augment: for training; None leaves images alone.
        on_bad: "error" names the first damaged image, "skip" leaves damaged ones out and lists
            them in `skipped`.
        seed: of the augmentation.
        device: where the pixels live and are augmented.
        memory: bytes up to which decoded pixels are kept.

    Attributes:
        source: the rows that are items, in their order.
        labels: of each, {"boxes", "class_labels"}, in pixels of the size the processor brings it
            to; and where the source has them "masks", run-length encoded at that size.
        canvas: height and width of varied images: of the largest, as the processor brings them.
        rows: each item's row in the source as given.
        skipped: the damaged ones, "name: reason".

    Raises:
        InputError: a source without boxes; an image, named, that is damaged or of another size than
            its row says, where such are not skipped.
    """

    def __init__(
        self,
        source: Source,
        processor: ResidualDetectionProcessor,
        augment: BoxAugment | None = None,
        *,
        on_bad: Literal["error", "skip"] = "error",
        seed: int = 0,
        device: str | torch.device = "cpu",
        memory: int = 4 << 30,
    ) -> None:
        super().__init__(seed)
        if not isinstance(source.target, Boxes):
            raise InputError(
                f"{source.name} has no boxes, but {type(source.target).__name__}; open it with "
                "target=Boxes()"
            )
        self.processor, self.augment, self.device = processor, augment, torch.device(device)
        left = memory

        def decoded(value: Any) -> tuple[Any, Any, Tensor | None]:
            nonlocal left
            size, pixels = self._decode(value)
            left -= pixels.nbytes
            return size, pixels.shape[1:], pixels.to(self.device) if left >= 0 else None

        told = source.column().sizes
        assert told is not None  # of a target that is sized

        def check(row: int, item: tuple[Any, Any, Tensor | None]) -> None:
            (height, width), size = item[0], told[row]
            if size != (width, height):
                raise ValueError(
                    f"it is {width}x{height} pixels as it is viewed, but its boxes are told to be "
                    "of {}x{}".format(*size or ("unknown", "size"))
                )

        found = read(source, decoded, on_bad, check=check)
        self.rows, self.skipped = found.rows, found.skipped
        self.source = source.select(self.rows) if self.skipped else source
        self.reread = Rereader(self.source, self._decode)
        # A part of them in memory would only save a part of the decoding.
        self._pixels = [pixels for *_, pixels in found.items] if left >= 0 else []
        self.sizes = [fitted for _, fitted, _ in found.items]
        height, width = (max(sides) for sides in zip(*self.sizes, strict=True))
        self.canvas: tuple[int, int] = (height, width)
        self.labels: list[Label] = []
        targets = self.source.targets()
        for label, (own, fitted, _) in zip(targets, found.items, strict=True):
            ratio = torch.tensor([fitted[1] / own[1], fitted[0] / own[0]]).repeat(2)
            label = {**label, "boxes": label["boxes"] * ratio}
            if "masks" in label:
                label["masks"] = [_fitted(mask, fitted) for mask in label["masks"]]
            self.labels.append(label)

    def _parts(self) -> Iterator[bytes | str]:
        yield from super()._parts()
        yield self.processor.to_json_string()  # other pixels of the same files are other data

    def _decode(self, value: Any) -> tuple[Any, Tensor]:
        """An image's own height and width, and its pixels as the processor fits them."""
        pixels = self.processor.process_image(open_image(value))
        return pixels.shape[1:], self.processor.fit(pixels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Any]:
        """`pixel_values` `(B, C, H, W)`, `labels`, one dictionary per image, and `pixel_mask`
        `(B, H, W)` where images may differ in size: varied ones do not. "masks" are uint8
        `(N, H, W)`, 1 in the object."""
        rows = torch.as_tensor(rows).tolist()
        if self.augment is None:
            batch = self.processor.batch(self._load(rows))
            labels = [dict(self.labels[row]) for row in rows]
            for row, label in zip(rows, labels, strict=True):
                if "masks" in label:
                    label["masks"] = self._masks(row, batch["pixel_values"].shape[2:])
            return {**batch, "labels": self._there(labels)}
        draws = self.draws(rows, DRAWS + 3)
        x, sizes, labels = self._laid(rows, draws)
        x, labels = varied(x, sizes, labels, self.augment, draws, self.canvas)
        if self.augment.jitter:
            x = jittered(x, self.augment.jitter, draws[:, 7:10].to(self.device), self.processor)
        return {"pixel_values": x, "labels": self._there(labels)}

    def _masks(self, row: int, size: Sequence[int], top: int = 0, left: int = 0) -> Tensor:
        """A row's masks, uint8 `(N, *size)`, in which its image begins at top and left."""
        (height, width), (high, wide) = size, self.sizes[row]
        masks = decode(self.labels[row]["masks"], (high, wide))
        return functional.pad(masks, (left, width - left - wide, top, height - top - high))

    def _there(self, labels: list[Label]) -> list[Label]:
        return [{name: value.to(self.device) for name, value in one.items()} for one in labels]

    def _laid(self, rows: list[int], draws: Tensor) -> tuple[Tensor, Tensor, list[Label]]:
        """Normalised images as they are to be cut from: alone or, of a mosaic, two by two; their
        heights and widths `(B, 2)`; and their labels."""
        assert self.augment is not None
        tiled = draws[:, 0] < self.augment.mosaic
        height, width = self.canvas
        several = 2 if tiled.any() else 1
        channels = self.processor.num_channels
        x = torch.zeros(len(rows), channels, several * height, several * width, device=self.device)
        sizes, labels = torch.empty(len(rows), 2), []
        for number, row in enumerate(rows):
            partners = [row]
            if tiled[number]:
                partners += (draws[number, DRAWS:] * len(self)).long().tolist()
            boxes, masks = [], []
            for place, (partner, pixels) in enumerate(
                zip(partners, self._load(partners), strict=True)
            ):
                high, wide = pixels.shape[1:]
                # Side by side at the middle, whatever their sizes.
                top = (height if place & 2 else height - high) if tiled[number] else 0
                left = (width if place & 1 else width - wide) if tiled[number] else 0
                scaled = self.processor.scale(pixels.unsqueeze(0))[0]
                x[number, :, top : top + high, left : left + wide] = scaled
                boxes.append(self.labels[partner]["boxes"] + torch.tensor([left, top, left, top]))
                if "masks" in self.labels[partner]:
                    masks.append(self._masks(partner, x.shape[2:], top, left))
            classes = [self.labels[partner]["class_labels"] for partner in partners]
            label = {"boxes": torch.cat(boxes), "class_labels": torch.cat(classes)}
            labels.append({**label, "masks": torch.cat(masks)} if masks else label)
            whole = (2 * height, 2 * width) if tiled[number] else self.sizes[row]
            sizes[number] = torch.tensor(whole)
        return x, sizes, labels

    def _load(self, rows: Sequence[int]) -> list[Tensor]:
        """Pixels `(C, H, W)`, uint8, of some rows."""
        if self._pixels:
            return [self._pixels[row] for row in rows]
        return [pixels.to(self.device) for _, pixels in self.reread(rows)]


def choose_resolution(
    source: Source,
    side: int | None = None,
    levels: Sequence[int] | None = None,
    finest: int | None = None,
) -> tuple[dict[str, int], tuple[int, ...], str]:
    """The size to look for a data set's objects at, for the processor, and the strides of the
    pyramid's levels to look on; and a sentence that says both.

    The longer side becomes what gives all but the smallest 5 % of the boxes 12 pixels (the root of
    their area), a multiple of 16 of at least 320 pixels and no more than the images have. Images of
    one shape are brought to one size; others keep their shapes. Levels go from a stride of 8 (4
    where many boxes are of less than 12 pixels) to that whose reach of 8 strides from the middle
    holds all but the largest 1 % of the boxes, 64 at most.

    Args:
        source: the training images, with boxes.
        side: the longer one, in pixels, where it is given.
        levels: where they are given.
        finest: of the levels, where only the others are to be chosen.

    Raises:
        InputError: a side of less than 32 pixels.
    """
    if side is not None and side < 32:
        raise InputError(
            f"images cannot be brought to {side} pixels; give 32 or more with --image-size, or "
            "leave it out to have a size chosen"
        )
    sizes = torch.tensor([size for size in source.column().sizes or () if size]).double()
    boxes = torch.cat([label["boxes"] for label in source.targets()]).double()
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
    own = float(sizes.amax())  # of the largest image
    small = float(sides.prod(1).sqrt().quantile(0.05))
    wanted = max(320.0, own * LEAST / small)
    longest = side or max(32, 16 * round(min(wanted, max(own, 32.0)) / 16))
    shapes = sizes[:, 1] / sizes[:, 0]
    if shapes.amax() / shapes.amin() < 1.05:
        ratio = float(shapes.median())
        width, height = (
            max(16, 16 * round(longest * share / 16))
            for share in (min(1, 1 / ratio), min(1, ratio))
        )
        size = {"height": height, "width": width}
        said = f"all are brought to {width}x{height}"
    else:
        size = {"shortest_edge": longest, "longest_edge": longest}
        said = f"the longer side of each is brought to {longest}"
    if levels is None:
        scale = longest / own
        finest = finest or (4 if small * scale < LEAST * 0.9 else 8)
        reach = float(sides.amax(1).quantile(0.99)) * scale
        chosen = [finest]
        while 8 * chosen[-1] < reach and chosen[-1] < 64:
            chosen.append(2 * chosen[-1])
        levels = chosen if len(chosen) > 1 else [finest, 2 * finest]
    strides = ", ".join(map(str, levels))
    largest = "{:.0f}x{:.0f}".format(*sizes[sizes.prod(1).argmax()].tolist())
    asked = f"--image-size {side}" if side is not None else "--image-size sets another size"
    sentence = (
        f"The largest images are {largest} pixels; {said} ({asked}), and looked at on levels of "
        f"strides {strides} (--levels)."
    )
    return size, tuple(levels), sentence


def varied(
    x: Tensor,
    sizes: Tensor,
    labels: Sequence[Label],
    options: BoxAugment,
    draws: Tensor,
    canvas: tuple[int, int],
) -> tuple[Tensor, list[Label]]:
    """Enlarge, cut and flip normalised images and their boxes.

    Args:
        x: `(B, C, H, W)`, at whose upper left the images stand.
        sizes: their heights and widths, `(B, 2)`.
        labels: per image "boxes" `(N, 4)`, "class_labels" `(N,)` and, if there are, "masks"
            `(N, H, W)`, uint8.
        options: what to do.
        draws: uniform numbers in 0 to 1, `(B, 7 or more)`, of which the first is not read.
        canvas: height and width of what comes out.

    Returns:
        `(B, C, *canvas)`, and the labels of what is to be seen there.
    """
    low, high = (math.log(factor) for factor in options.zoom)
    zoom = torch.exp(low + (high - low) * draws[:, 1])
    # Along each axis a position p of an image comes to `scale * p + shift`.
    scale, shift = torch.empty(len(x), 2), torch.empty(len(x), 2)
    theta = torch.zeros(len(x), 2, 3)
    for axis, flipped in ((0, options.upside_down), (1, options.flip)):
        length = sizes[:, axis]
        start = draws[:, 2 + axis] * (canvas[axis] - zoom * length)
        mirrored = (draws[:, 4 + axis] < 0.5) & flipped
        scale[:, axis] = torch.where(mirrored, -zoom, zoom)
        shift[:, axis] = torch.where(mirrored, start + zoom * length, start)
        # affine_grid counts both from -1 to 1.
        own, other = canvas[axis], x.shape[2 + axis]
        theta[:, 1 - axis, 1 - axis] = own / (scale[:, axis] * other)
        theta[:, 1 - axis, 2] = (own - 2 * shift[:, axis]) / (scale[:, axis] * other) - 1
    grid = functional.affine_grid(theta.to(x.device), [len(x), 1, *canvas], align_corners=False)
    x = functional.grid_sample(x, grid, "bilinear", "zeros", align_corners=False)
    found = []
    limits = torch.tensor([canvas[1], canvas[0]]).repeat(2)
    for number, label in enumerate(labels):
        factor, offset = scale[number].flip(0).repeat(2), shift[number].flip(0).repeat(2)
        corners = label["boxes"] * factor + offset
        boxes = torch.cat(
            [torch.minimum(corners[:, :2], corners[:, 2:]),
             torch.maximum(corners[:, :2], corners[:, 2:])], 1
        )  # fmt: skip
        clipped = torch.minimum(boxes.clamp(min=0), limits)
        sides, before = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
        seen = (sides >= SMALLEST).all(1) & (sides.prod(1) >= options.visible * before.prod(1))
        kept = {"boxes": clipped[seen], "class_labels": label["class_labels"][seen]}
        if "masks" in label:
            masks = label["masks"][seen].to(grid.device, torch.float32)
            kept["masks"] = _sampled(masks, grid[number])
            kept = _tightened(kept, (clipped != boxes)[seen].any(1))
        found.append(kept)
    return x, found


def _sampled(masks: Tensor, grid: Tensor) -> Tensor:
    """Masks `(N, H, W)` at the places of a grid `(h, w, 2)`, uint8 `(N, h, w)`."""
    if not len(masks):
        return masks.new_zeros(0, *grid.shape[:2], dtype=torch.uint8)
    soft = functional.grid_sample(masks[None], grid[None], "bilinear", "zeros", align_corners=False)
    return (soft[0] >= 0.5).to(torch.uint8)


def _tightened(label: Label, cut: Tensor) -> Label:
    """What is left of objects with masks, the boxes of those that were cut, bool `(N,)`, around
    what is left of their masks."""
    some = (label["masks"] != 0).flatten(1).any(1).cpu()
    label, cut = {name: value[some.to(value.device)] for name, value in label.items()}, cut[some]
    tight = masks_to_boxes(label["masks"]).cpu() + torch.tensor([0.0, 0, 1, 1])
    # A mask may reach out of its box.
    tight = torch.cat([tight[:, :2].maximum(label["boxes"][:, :2]),
                       tight[:, 2:].minimum(label["boxes"][:, 2:])], 1)  # fmt: skip
    label["boxes"] = torch.where(cut.unsqueeze(1), tight, label["boxes"])
    large = (label["boxes"][:, 2:] - label["boxes"][:, :2] >= SMALLEST).all(1)
    return {name: value[large.to(value.device)] for name, value in label.items()}


def _fitted(mask: RunLengths, size: Sequence[int]) -> RunLengths:
    """A mask at another height and width."""
    if mask["size"] == [*size]:
        return mask
    soft = functional.interpolate(
        decode([mask], mask["size"])[None].float(), tuple(size), mode="bilinear", antialias=True
    )
    return encode(soft[0] >= 0.5)[0]


__all__: Sequence[str] = ("BoxAugment", "BoxItems", "choose_resolution", "varied")
