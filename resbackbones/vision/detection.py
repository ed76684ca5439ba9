"""Object detectors of one stage: our backbone, torchvision's pyramid, heads, anchors and losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from resbackbones.core.backbone import Backbone
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import resolve
from resbackbones.errors import InputError, nearest
from resbackbones.pretrained import ResidualConfig, label_options
from resbackbones.vision.boxes import check_boxes
from resbackbones.vision.detector import Detector, ResidualDetectionProcessor, image_sizes
from resbackbones.vision.heads import DETECTORS, FCOSDetection, RetinaNetDetection
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


class ResidualForObjectDetection(Detector):
    """A residual detector of one stage, FCOS or RetinaNet, for images of any size.

    Every parameter is trained, from scratch. A batch norm learns little from batches of one or two
    images: build with `norm="group"` for those. It goes through `torch.export` without
    `pixel_mask`, as images of one size, of which there may be any number.

    >>> model = ResidualForObjectDetection.build("resnet18", labels=["cell"], levels=(8, 16))
    >>> output = model(pixel_values=torch.zeros(2, 3, 64, 96))
    >>> tuple(output.logits.shape), tuple(output.pred_boxes.shape)
    ((2, 120, 1), (2, 120, 4))
    >>> [found["labels"] for found in model.predict([torch.zeros(3, 64, 96)])]
    [[]]
    """

    config_class = ResidualDetectionConfig
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
        whole, grid = self._grid(pixel_values)
        sizes = image_sizes(pixel_values, pixel_mask)
        if pixel_mask is None:
            found = self.head(self.levels(pixel_values))
        else:
            found = self._look_in_groups(pixel_values, sizes, whole)
        found = {name: value.float() for name, value in found.items()}
        boxes = self.head.decode(found["bbox_regression"], grid).clamp(min=0)
        output = ObjectDetectionOutput(
            logits=found["cls_logits"],
            pred_boxes=torch.minimum(boxes, sizes.flip(1).repeat(1, 2).unsqueeze(1)),
            centerness=found.get("bbox_ctrness"),
            regression=found["bbox_regression"],
            anchors=self._anchors(
                whole, grid, pixel_values.shape[0], None if pixel_mask is None else sizes
            ),
            sizes=sizes,
        )
        if labels is None:
            return output
        return ObjectDetectionOutput(loss=self.loss(output, labels), **output)

    def _grid(self, x: Tensor) -> tuple[list[tuple[int, int]], Tensor]:
        """Rows and columns of each level over images of this size, and their anchors `(A, 4)`."""
        whole = self._grids(*x.shape[2:])
        return whole, self.head.anchors.over(whole, x.device)

    def _grids(self, *sides: int) -> list[tuple[int, int]]:
        return self.pyramid.grids(*(side + -side % self.pyramid.divisor for side in sides))

    def _anchors(
        self, whole: Sequence[tuple[int, int]], grid: Tensor, batch: int, sizes: Tensor | None
    ) -> Tensor:
        """The anchors of each image `(B, A, 4)`: of those of `sizes` `(B, 2)`, where there is
        padding, what lies in it stands far away."""
        if sizes is None:
            return grid.expand(batch, -1, -1)
        away = grid - 2 * grid.amax()  # wholly left of the image and above it
        inside = torch.zeros(batch, len(grid), dtype=torch.bool, device=grid.device)
        for row, size in zip(inside, sizes.tolist(), strict=True):
            row[self._places(whole, self._grids(*size)).to(grid.device)] = True
        return torch.where(inside.unsqueeze(2), grid, away)

    def _look_in_groups(
        self, x: Tensor, sizes: Tensor, whole: Sequence[tuple[int, int]]
    ) -> dict[str, Tensor]:
        """What torchvision's head says of images with padding."""
        total = self.head.anchors.num_anchors_per_location()[0] * sum(h * w for h, w in whole)
        found: dict[str, Tensor] = {}
        for rows, some in self.groups(x, sizes):
            levels = self.levels(some)
            grids = [(level.shape[2], level.shape[3]) for level in levels]
            at = rows.unsqueeze(1), self._places(whole, grids).to(x.device)
            for name, value in self.head(levels).items():
                if name not in found:
                    start = NEVER if name == "cls_logits" else 0.0
                    found[name] = value.new_full((len(x), total, value.shape[2]), start)
                found[name] = found[name].index_put(at, value)
        return found

    def _places(self, whole: Sequence[tuple[int, int]], part: Sequence[tuple[int, int]]) -> Tensor:
        """Where the anchors of an image stand among those of a larger one that it is the upper left
        corner of, int64 `(A',)`."""
        per, places, before = self.head.anchors.num_anchors_per_location()[0], [], 0
        for (height, width), (high, wide) in zip(whole, part, strict=True):
            count = height * width * per
            level = torch.arange(before, before + count).view(height, width, per)
            places.append(level[:high, :wide].flatten())
            before += count
        return torch.cat(places)

    def weight(self, batch: Mapping[str, Any]) -> Any:
        """What the loss is a mean over: of RetinaNet the batch's images, of FCOS the points that
        have an object. A batch in which none has counts as one point: it alone makes an accumulated
        update differ from that of one large batch, by one in the divisor."""
        x, mask = batch["pixel_values"], batch.get("pixel_mask")
        sizes = None if mask is None else image_sizes(x, mask)
        anchors = self._anchors(*self._grid(x), len(x), sizes)
        return self.head.weight(anchors, self._targets(batch["labels"], anchors))

    def _targets(self, labels: Any, anchors: Tensor) -> list[dict[str, Tensor]]:
        """Labels as torchvision takes them."""
        check_boxes(labels, len(anchors), len(self.config.id2label or {}))
        return [
            {
                "boxes": label["boxes"].to(anchors),
                "labels": label["class_labels"].to(anchors.device, torch.int64),
            }
            for label in labels
        ]

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
        targets = self._targets(labels, anchors)
        outputs = {"cls_logits": logits, "bbox_regression": regression}
        if output.centerness is not None:
            outputs["bbox_ctrness"] = output.centerness
        with torch.autocast(logits.device.type, enabled=False):  # sums over thousands of anchors
            return torch.stack([*self.head.losses(outputs, anchors, targets).values()]).sum()


__all__: Sequence[str] = (
    "ObjectDetectionOutput",
    "ResidualDetectionConfig",
    "ResidualForObjectDetection",
)
