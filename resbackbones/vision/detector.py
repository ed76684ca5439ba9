"""What all detectors share: images of several sizes in, names and boxes in their own pixels out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature

from resbackbones.core.backbone import modes_kept
from resbackbones.errors import InputError
from resbackbones.metrics import items
from resbackbones.pretrained import ResidualPreTrainedModel
from resbackbones.vision.boxes import pasted, select
from resbackbones.vision.images import one_value_refusal, read_image
from resbackbones.vision.metrics import AveragePrecision
from resbackbones.vision.processor import (
    ResidualImageProcessor,
    check_channels,
    with_channels,
)
from resbackbones.vision.pyramid import Pyramid


class ResidualDetectionProcessor(ResidualImageProcessor):
    """Images to what a detector takes, and what it found to boxes in the images' own pixels.

    Args:
        size: `{"height", "width"}` brings every image to one size. `{"shortest_edge"}`, with a
            `"longest_edge"` that no side exceeds, keeps its shape; None keeps it as it is. Images
            of several sizes get a rim at the right and below, which `pixel_mask` `(B, H, W)` marks
            with 0 and the model does not see.
        options: as of `ResidualImageProcessor`, but for a crop.

    >>> processor = ResidualDetectionProcessor(size={"shortest_edge": 60, "longest_edge": 80})
    >>> batch = processor([torch.zeros(3, 90, 60), torch.zeros(3, 60, 90)], return_tensors="pt")
    >>> tuple(batch.pixel_values.shape), batch.pixel_mask.sum((1, 2)).tolist()
    ((2, 3, 80, 80), [4240, 4240])
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.do_center_crop:
            raise InputError("a detector sees whole images; leave crop_size out")

    @property
    def one_size(self) -> bool:
        """Whether every image is brought to the same height and width."""
        return bool(self.do_resize and dict(self.size).get("height"))

    def _preprocess(  # type: ignore[override]
        self, images: list[Tensor], return_tensors: str | None = None, **_: Any
    ) -> BatchFeature:
        values = self.batch([self.fit(image) for image in images])
        return BatchFeature(values, tensor_type=return_tensors)

    def batch(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """Images `(C, H, W)`, uint8 and fitted, to `pixel_values` and, where their sizes may
        differ, `pixel_mask`."""
        if self.one_size:
            return {"pixel_values": self.scale(torch.stack(list(images)))}
        # With a longest edge every batch has the same size, so that pipelines can make larger ones.
        longest = (dict(self.size).get("longest_edge") or 0) if self.do_resize else 0
        height, width = (max(longest, *(x.shape[axis] for x in images), 1) for axis in (1, 2))
        device = images[0].device
        pixels = torch.zeros(len(images), images[0].shape[0], height, width, device=device)
        mask = torch.zeros(len(images), height, width, dtype=torch.int64, device=device)
        for number, image in enumerate(images):
            high, wide = image.shape[1:]
            pixels[number, :, :high, :wide] = self.scale(image.unsqueeze(0))[0]
            mask[number, :high, :wide] = 1
        return {"pixel_values": pixels, "pixel_mask": mask}

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None
    ) -> list[dict[str, Tensor]]:
        """What was found in each image, as transformers' object detection pipeline asks for it.

        Args:
            outputs: of the model.
            threshold: scores above it alone.
            target_sizes: height and width of each image, `(B, 2)`, in whose pixels the boxes are to
                be; None for those of the model's input.

        Returns:
            Per image "boxes" `(N, 4)`, "scores" `(N,)` from high to low, "labels" int64 `(N,)` and,
            where the model makes masks, "masks" bool `(N, H, W)`.
        """
        found = select(outputs, threshold)
        targets = outputs.sizes if target_sizes is None else target_sizes
        for one, size, target in zip(found, outputs.sizes, targets, strict=True):
            height, width = (int(side) for side in target)
            ratio = one["boxes"].new_tensor([width, height]) / size.flip(0)
            one["boxes"] = one["boxes"] * ratio.repeat(2)
            if "masks" in one:
                one["masks"] = pasted(one["masks"], one["boxes"], (height, width))
        return found


class Detector(ResidualPreTrainedModel):
    """A backbone and a pyramid, whose levels a head makes boxes of.

    Attributes:
        pyramid: the levels that the head reads.
    """

    main_input_name = "pixel_values"
    processor_class: ClassVar[Any] = ResidualDetectionProcessor
    processor_file = "preprocessor_config.json"

    pyramid: Pyramid

    def check_processor(self, processor: Any) -> None:
        """Refuse a processor that makes no images as this model takes them.

        Raises:
            InputError: one of another number of channels, or of no detector.
        """
        if not isinstance(processor, ResidualDetectionProcessor):
            raise InputError(
                f"a detector takes a ResidualDetectionProcessor, not a {type(processor).__name__}; "
                "make one of the same options"
            )
        check_channels(processor, self.backbone.spec.in_channels)

    def levels(self, x: Tensor) -> list[Tensor]:
        """The pyramid's levels of images without padding, filled up to multiples of its divisor.

        Raises:
            InputError: a batch too small for a batch norm to be trained on.
        """
        height, width = x.shape[2:]
        below, right = (-side % self.pyramid.divisor for side in (height, width))
        whole = x
        if torch.compiler.is_compiling() or below or right:
            whole = functional.pad(x, (0, right, 0, below))
        try:
            return self.pyramid(self.backbone(whole))
        except ValueError as error:
            if (refusal := one_value_refusal(error, x)) is None:
                raise
            raise refusal from error

    def groups(self, x: Tensor, sizes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images with padding, those of one size together.

        Args:
            x: `(B, C, H, W)`.
            sizes: height and width of each image, `(B, 2)`. Those that come to one size when
                filled up to multiples of the pyramid's divisor go together.

        Yields:
            Which images, int64 `(b,)`, and these, `(b, C, h, w)`, with no padding but to that
            multiple, all of it 0.
        """
        divisor = self.pyramid.divisor
        groups: dict[tuple[int, int], list[int]] = {}
        for number, (high, wide) in enumerate(sizes.tolist()):
            groups.setdefault((high + -high % divisor, wide + -wide % divisor), []).append(number)
        x = torch.where(rectangles(sizes, x).unsqueeze(1), x, 0.0)
        for (high, wide), rows in groups.items():
            some = torch.tensor(rows, device=x.device)
            yield some, x[some, :, :high, :wide]

    def metric(self) -> AveragePrecision:
        """What this model is evaluated by: COCO's mean average precision."""
        return AveragePrecision([*(self.config.id2label or {}).values()])

    def weight(self, batch: Mapping[str, Any]) -> int:
        """What the loss counts as a mean over: the batch's images."""
        return items(batch)

    @torch.no_grad()
    def predict(self, images: Any, threshold: float = 0.5, batch_size: int = 8) -> Any:
        """What is to be seen in images.

        Args:
            images: one or a list: a path, a PIL image, or an array or tensor `(H, W)`, `(C, H, W)`
                or `(H, W, C)`.
            threshold: scores above it alone.
            batch_size: images computed at once.

        Returns:
            Per image (or of the one) "boxes" `(N, 4)` in its own pixels, "scores" `(N,)` from high
            to low, "labels", the names of the classes, and, where the model makes masks, "masks"
            bool `(N, H, W)`.

        Raises:
            InputError: what is no image, or the model has no processor.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images], threshold)[0]
        found = []
        with modes_kept(self):
            self.eval()
            for start in range(0, len(images), batch_size):
                given = images[start : start + batch_size]
                some = with_channels([read_image(image, self.processor) for image in given])
                pixels = [self.processor.process_image(image) for image in some]
                batch = self.processor.batch([self.processor.fit(image) for image in pixels])
                output = self(**{name: value.to(self.device) for name, value in batch.items()})
                sizes = [image.shape[1:] for image in pixels]
                found += self.processor.post_process_object_detection(output, threshold, sizes)
        for one in found:
            one["labels"] = [self.config.id2label[number] for number in one["labels"].tolist()]  # type: ignore[index]
        return found


def image_sizes(x: Tensor, mask: Tensor | None) -> Tensor:
    """Height and width of each image, int64 `(B, 2)`, from a mask that marks it in its padding;
    None marks all.

    Raises:
        InputError: a mask that is no rectangle at the upper left of each image.
    """
    if mask is None:
        batch, _, *sides = x.shape  # `len(x)` would be a constant to torch.export
        return torch.stack([torch.full((batch,), side, device=x.device) for side in sides], 1)
    expected = (len(x), *x.shape[2:])
    if tuple(mask.shape) != expected:
        raise InputError(
            f"pixel_mask has shape {tuple(mask.shape)}, but pixel_values {tuple(x.shape)}; give "
            f"one of {expected}"
        )
    mask = mask != 0
    sizes = torch.stack([mask.any(2).sum(1), mask.any(1).sum(1)], 1)
    if not mask[:, 0, 0].all() or not torch.equal(mask, rectangles(sizes, x)):
        raise InputError(
            "pixel_mask marks what is no rectangle at the upper left of each image; put images "
            "there, and their padding at the right and below"
        )
    return sizes


def rectangles(sizes: Tensor, x: Tensor) -> Tensor:
    """Bool `(B, H, W)`: True in the image."""
    high, wide = (
        torch.arange(side, device=x.device) < size.unsqueeze(1)
        for side, size in zip(x.shape[2:], sizes.unbind(1), strict=True)
    )
    return high.unsqueeze(2) & wide.unsqueeze(1)


__all__: Sequence[str] = ("Detector", "ResidualDetectionProcessor", "image_sizes")
