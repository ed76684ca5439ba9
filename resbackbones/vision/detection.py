"""Object detectors of one stage: our backbone, torchvision's pyramid, heads, anchors and losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature
from transformers.utils import ModelOutput

from resbackbones.core.backbone import Backbone, modes_kept
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import resolve
from resbackbones.data.paths import reason
from resbackbones.errors import InputError, nearest
from resbackbones.metrics import items
from resbackbones.pretrained import (
    ResidualConfig,
    ResidualPreTrainedModel,
    label_options,
)
from resbackbones.vision.boxes import check_boxes, select
from resbackbones.vision.heads import DETECTORS, FCOSDetection, RetinaNetDetection
from resbackbones.vision.images import open_image
from resbackbones.vision.metrics import AveragePrecision
from resbackbones.vision.processor import ResidualImageProcessor, with_channels
from resbackbones.vision.pyramid import Pyramid, choose_levels

NEVER = -100.0  # a logit: no score, no loss and no gradient comes of it


class ResidualDetectionConfig(ResidualConfig):
    """Configuration of the detectors of one stage.

    Attributes:
        detector: "fcos" or "retinanet".
        levels: strides of the pyramid's levels.
        channels: of the pyramid and the head.
        convolutions: of each of the head's two towers.
    """

    model_type = "residual_detection"

    detector: str = "fcos"
    levels: list[int] | None = None
    channels: int = 256
    convolutions: int = 4


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
            Per image "boxes" `(N, 4)`, "scores" `(N,)` from high to low, and "labels" int64 `(N,)`.
        """
        found = select(outputs, threshold)
        if target_sizes is None:
            return found
        for one, size, target in zip(found, outputs.sizes, target_sizes, strict=True):
            ratio = torch.as_tensor(target).to(one["boxes"]) / size
            one["boxes"] = one["boxes"] * ratio.flip(0).repeat(2)
        return found


@dataclass
class ObjectDetectionOutput(ModelOutput):
    """What a detector makes of a batch: something of each of A anchors.

    Attributes:
        loss: where labels were given.
        logits: of each class being there, `(B, A, K)`.
        pred_boxes: in pixels of the input, within the image, `(B, A, 4)`.
        centerness: logits of a point being in the middle of its box, `(B, A, 1)`; FCOS's alone.
        regression: `pred_boxes` as the net says them, relative to `anchors`, `(B, A, 4)`.
        anchors: in pixels of the input, `(B, A, 4)`; those in an image's padding stand far away.
        sizes: height and width of each image in the input, int64 `(B, 2)`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    centerness: Tensor | None = None
    regression: Tensor | None = None
    anchors: Tensor | None = None
    sizes: Tensor | None = None


class ResidualForObjectDetection(ResidualPreTrainedModel):
    """A residual detector of one stage, FCOS or RetinaNet, for images of any size.

    Every parameter is trained, from scratch. A batch norm learns little from batches of one or two
    images: build with `norm="group"` for those.

    >>> model = ResidualForObjectDetection.build("resnet18", labels=["cell"], levels=(8, 16))
    >>> output = model(pixel_values=torch.zeros(2, 3, 64, 96))
    >>> tuple(output.logits.shape), tuple(output.pred_boxes.shape)
    ((2, 120, 1), (2, 120, 4))
    """

    config_class = ResidualDetectionConfig
    main_input_name = "pixel_values"
    processor_class = ResidualDetectionProcessor
    processor_file = "preprocessor_config.json"
    of_classes = "head.classification_head.cls_logits."

    config: ResidualDetectionConfig
    head: FCOSDetection | RetinaNetDetection

    def __init__(self, config: ResidualDetectionConfig) -> None:
        super().__init__(config)
        spec, levels = choose_levels(config.backbone_spec, config.levels)
        self.backbone = Backbone(spec)
        self.pyramid = Pyramid(self.backbone, levels, config.channels)
        make = DETECTORS[config.detector]
        self.head = make(config.channels, levels, len(config.id2label or {}), config.convolutions)
        self.post_init()

    @classmethod
    def build(
        cls,
        name_or_spec: str | BackboneSpec,
        *,
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        detector: Literal["fcos", "retinanet"] = "fcos",
        levels: Sequence[int] | None = None,
        channels: int = 256,
        convolutions: int = 4,
        processor: ResidualDetectionProcessor | None = None,
        **spec_changes: Any,
    ) -> Self:
        """Make an untrained detector.

        Args:
            name_or_spec: a name in `rb.SPECS`, or a spec. Stages that no level reads are left out.
            num_labels, labels: how many classes, or their names; one is enough.
            detector: "fcos" (Tian et al. 2019), or "retinanet" (Lin et al. 2017b).
            levels: strides of the pyramid's levels, 1 to 5 of them, as (8, 16, 32): those of the
                net's features and, from its coarsest on, their doubles. By default the net's three
                coarsest and two more. A level of FCOS sees objects that reach from 4 to 8 strides
                from their middle, the finest also smaller and the coarsest also larger ones.
            channels: of the pyramid and the head; for FCOS 64, 96, 128, …
            convolutions: of each of the two towers of FCOS's head; those of RetinaNet are 4.
            processor: how images become pixels; by default they keep their size and go from
                0 … 255 to -1 … 1 in as many channels as the spec takes.
            spec_changes: fields of the spec to replace, as `norm="group"`.

        Raises:
            InputError: no or contradicting classes, an unknown name, field or detector, levels or
                channels that cannot be, a processor of another number of channels.
        """
        if detector not in DETECTORS:
            raise InputError(f"detector={detector!r} is not known; {nearest(detector, DETECTORS)}")
        if detector == "retinanet" and convolutions != 4:
            raise InputError(
                f"convolutions={convolutions}, but RetinaNet's towers have 4; leave it out, or use "
                'detector="fcos"'
            )
        # FCOS's norms have 32 groups, and over the one position of a coarse level a group of one
        # channel has no variance.
        step = 32 if detector == "fcos" else 1
        for name, value, of in (("channels", channels, step), ("convolutions", convolutions, 1)):
            least = 2 * of if of > 1 else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least or value % of:
                expected = f"a multiple of {of} from {least} up" if of > 1 else "1 or more"
                raise InputError(f"{name}={value!r} cannot be; give {expected}")
        spec, chosen = choose_levels(resolve(name_or_spec, **spec_changes), levels)
        config = ResidualDetectionConfig(
            spec=spec.to_dict(),
            detector=detector,
            levels=list(chosen),
            channels=channels,
            convolutions=convolutions,
            **label_options(num_labels, labels, least=1),
        )
        model = cls(config)
        model.processor = processor or ResidualDetectionProcessor(num_channels=spec.in_channels)
        model.check_processor(model.processor)
        return model

    def check_processor(self, processor: Any) -> None:
        """Refuse a processor that makes no images as this model takes them.

        Raises:
            InputError: one of another number of channels, or of no detector.
        """
        takes = self.backbone.spec.in_channels
        if not isinstance(processor, ResidualDetectionProcessor):
            raise InputError(
                f"a detector takes a ResidualDetectionProcessor, not a {type(processor).__name__}; "
                "make one of the same options"
            )
        if processor.num_channels != takes:
            raise InputError(
                f"the processor makes {processor.num_channels} channels, but the backbone takes "
                f"{takes}; build with in_channels={processor.num_channels}"
            )

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> ObjectDetectionOutput:
        """Look for objects.

        Args:
            pixel_values: `(B, C, H, W)`, as the processor makes them.
            pixel_mask: `(B, H, W)`, 1 in an image, which begins at the upper left, and 0 in the
                padding around it. Images of a size are then computed together, and what stands in
                the padding changes nothing. None means that there is none.
            labels: per image {"boxes": `(N, 4)`, "class_labels": int64 `(N,)`}, in pixels of
                `pixel_values`; an image without objects has (0, 4) and (0,).

        Returns:
            What was found at each anchor (see there), and `.loss` when labels are given.

        Raises:
            InputError: a mask that is no rectangle, labels that cannot be learnt from, or a batch
                too small for a batch norm to be trained on.
        """
        batch, _, height, width = pixel_values.shape
        device, divisor = pixel_values.device, self.pyramid.divisor
        whole = self.pyramid.grids(*(side + -side % divisor for side in (height, width)))
        grid = self._anchors(whole, device)
        if pixel_mask is None:
            high, wide = (torch.full((batch,), side, device=device) for side in (height, width))
            sizes = torch.stack([high, wide], 1)
            found, anchors = self._look(pixel_values), grid.expand(batch, -1, -1)
        else:
            sizes = _sizes(pixel_values, pixel_mask)
            found, inside = self._look_in_groups(pixel_values, sizes, whole)
            away = grid - 2 * grid.amax()  # wholly left of the image and above it
            anchors = torch.where(inside.unsqueeze(2), grid, away)
        found = {name: value.float() for name, value in found.items()}
        boxes = self.head.decode(found["bbox_regression"], grid).clamp(min=0)
        output = ObjectDetectionOutput(
            logits=found["cls_logits"],
            pred_boxes=torch.minimum(boxes, sizes.flip(1).repeat(1, 2).unsqueeze(1)),
            centerness=found.get("bbox_ctrness"),
            regression=found["bbox_regression"],
            anchors=anchors,
            sizes=sizes,
        )
        if labels is None:
            return output
        return ObjectDetectionOutput(loss=self.loss(output, labels), **output)

    def _look(self, x: Tensor) -> dict[str, Tensor]:
        """What torchvision's head says of images without padding."""
        height, width = x.shape[2:]
        below, right = (-side % self.pyramid.divisor for side in (height, width))
        if torch.compiler.is_compiling() or below or right:
            x = functional.pad(x, (0, right, 0, below))
        try:
            features = self.backbone(x)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"a batch norm cannot be trained on {len(x)} image of {width}x{height} "
                'pixels; give more or larger images, or build the model with norm="group"'
            ) from error
        return self.head(self.pyramid(features))

    def _look_in_groups(
        self, x: Tensor, sizes: Tensor, whole: Sequence[tuple[int, int]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The same of images with padding, those of one size together; and which anchors stand in
        the image, bool `(B, A)`."""
        divisor, per = self.pyramid.divisor, self.head.anchors.num_anchors_per_location()[0]
        total = per * sum(high * wide for high, wide in whole)
        groups: dict[tuple[int, int], list[int]] = {}
        for number, (high, wide) in enumerate(sizes.tolist()):
            groups.setdefault((high + -high % divisor, wide + -wide % divisor), []).append(number)
        inside = torch.zeros(len(x), total, dtype=torch.bool, device=x.device)
        found: dict[str, Tensor] = {}
        x = torch.where(_rectangles(sizes, x).unsqueeze(1), x, 0.0)
        for (high, wide), rows in groups.items():
            some = torch.tensor(rows, device=x.device)
            looked = self._look(x[some, :, :high, :wide])
            places = _places(whole, self.pyramid.grids(high, wide), per).to(x.device)
            at = some.unsqueeze(1), places
            inside[at] = True
            for name, value in looked.items():
                if name not in found:
                    start = NEVER if name == "cls_logits" else 0.0
                    found[name] = value.new_full((len(x), total, value.shape[2]), start)
                found[name] = found[name].index_put(at, value)
        return found, inside

    def _anchors(self, grids: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
        """Of every level, `(A, 4)` in pixels. (torchvision's generator would take the strides
        from the sizes of the levels, and be off by the rounding.)"""
        generator = self.head.anchors
        if generator.cell_anchors[0].device != device:
            generator.set_cell_anchors(torch.float32, device)
        strides: Any = [(stride, stride) for stride in self.pyramid.strides]
        return torch.cat(generator.grid_anchors(grids, strides))

    def loss(self, output: ObjectDetectionOutput, labels: Any) -> Tensor:
        """The sum of torchvision's losses: of the classes (focal), of the boxes (generalized IoU,
        or of RetinaNet L1) and, of FCOS, of the centerness.

        Args:
            output: of the same batch.
            labels: as for `forward`.

        Raises:
            InputError: labels that cannot be learnt from, the first told.
        """
        logits, regression, anchors = output.logits, output.regression, output.anchors
        assert logits is not None and regression is not None and anchors is not None
        check_boxes(labels, len(logits), logits.shape[2])
        targets = [
            {
                "boxes": label["boxes"].to(logits),
                "labels": label["class_labels"].to(logits.device, torch.int64),
            }
            for label in labels
        ]
        outputs = {"cls_logits": logits, "bbox_regression": regression}
        if output.centerness is not None:
            outputs["bbox_ctrness"] = output.centerness
        with torch.autocast(logits.device.type, enabled=False):  # sums over thousands of anchors
            return torch.stack([*self.head.losses(outputs, anchors, targets).values()]).sum()

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
            to low, and "labels", the names of the classes.

        Raises:
            InputError: what is no image, or the model has no processor.

        >>> model = ResidualForObjectDetection.build("resnet18", labels=["cell"])
        >>> [found["labels"] for found in model.predict([torch.zeros(3, 64, 96)])]
        [[]]
        """
        if self.processor is None:
            raise InputError("this model has no processor to read images with; set model.processor")
        if not isinstance(images, list | tuple):
            return self.predict([images], threshold)[0]
        found = []
        with modes_kept(self):
            self.eval()
            for start in range(0, len(images), batch_size):
                some = with_channels([_read(image) for image in images[start : start + batch_size]])
                pixels = [self.processor.process_image(image) for image in some]
                batch = self.processor.batch([self.processor.fit(image) for image in pixels])
                output = self(**{name: value.to(self.device) for name, value in batch.items()})
                sizes = [image.shape[1:] for image in pixels]
                found += self.processor.post_process_object_detection(output, threshold, sizes)
        for one in found:
            one["labels"] = [self.config.id2label[number] for number in one["labels"].tolist()]  # type: ignore[index]
        return found


def _sizes(x: Tensor, mask: Tensor) -> Tensor:
    """Height and width of each image, `(B, 2)`, from a mask that marks it in its padding."""
    expected = (len(x), *x.shape[2:])
    if tuple(mask.shape) != expected:
        raise InputError(
            f"pixel_mask has shape {tuple(mask.shape)}, but pixel_values {tuple(x.shape)}; give "
            f"one of {expected}"
        )
    mask = mask != 0
    sizes = torch.stack([mask.any(2).sum(1), mask.any(1).sum(1)], 1)
    if not mask[:, 0, 0].all() or not torch.equal(mask, _rectangles(sizes, x)):
        raise InputError(
            "pixel_mask marks what is no rectangle at the upper left of each image; put images "
            "there, and their padding at the right and below"
        )
    return sizes


def _rectangles(sizes: Tensor, x: Tensor) -> Tensor:
    """Bool `(B, H, W)`: True in the image."""
    high, wide = (
        torch.arange(side, device=x.device) < size.unsqueeze(1)
        for side, size in zip(x.shape[2:], sizes.unbind(1), strict=True)
    )
    return high.unsqueeze(2) & wide.unsqueeze(1)


def _places(whole: Sequence[tuple[int, int]], part: Sequence[tuple[int, int]], per: int) -> Tensor:
    """Where the anchors of an image, `per` a position, stand among those of a larger one that it
    is the upper left corner of, int64 `(A',)`."""
    places, before = [], 0
    for (height, width), (high, wide) in zip(whole, part, strict=True):
        count = height * width * per
        level = torch.arange(before, before + count).view(height, width, per)
        places.append(level[:high, :wide].flatten())
        before += count
    return torch.cat(places)


def _read(image: Any) -> Any:
    """An image, of a path the one that lies there."""
    if not isinstance(image, str | Path):
        return image
    try:
        return open_image({"bytes": None, "path": str(image)})
    except OSError as error:
        raise InputError(f"{image} cannot be read ({reason(error)}); give an image file") from error


__all__: Sequence[str] = (
    "ObjectDetectionOutput",
    "ResidualDetectionConfig",
    "ResidualDetectionProcessor",
    "ResidualForObjectDetection",
)
