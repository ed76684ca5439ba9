"""Object detectors of two stages: our backbone under torchvision's Faster R-CNN and Mask R-CNN."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from transformers.utils import ModelOutput

from resbackbones.core.backbone import Backbone
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import resolve
from resbackbones.errors import InputError
from resbackbones.pretrained import ResidualConfig, label_options
from resbackbones.vision.boxes import FOUND, check_boxes
from resbackbones.vision.detector import Detector, ResidualDetectionProcessor, image_sizes
from resbackbones.vision.metrics import AveragePrecision
from resbackbones.vision.pyramid import Pyramid, choose_levels
from resbackbones.vision.regions import TwoStageHead

LEVELS = (4, 1)  # by default: of the net's own, and further ones


class ResidualTwoStageConfig(ResidualConfig):
    """Configuration of the detectors of two stages.

    Attributes:
        levels: strides of the pyramid's levels.
        channels: of the pyramid, and of what makes masks.
        hidden: features of a region, of which class and box are made.
        masks: whether each object gets a mask.
    """

    model_type = "residual_two_stage_detection"

    levels: list[int] | None = None
    channels: int = 256
    hidden: int = 1024
    masks: bool = False


@dataclass
class TwoStageDetectionOutput(ModelOutput):
    """What a detector of two stages finds in a batch; in training mode with labels the loss alone.

    Attributes:
        loss: where labels were given.
        boxes: per image `(N, 4)`, in pixels of the input, within the image.
        scores: per image `(N,)`, from high to low, all above 0.05.
        labels: per image int64 `(N,)`, numbers of classes.
        masks: per image `(N, 28, 28)`: how sure each part of a box is to be of the object, 0 to 1.
            The processor lays them into the image.
        sizes: height and width of each image in the input, int64 `(B, 2)`.
    """

    loss: Tensor | None = None
    boxes: list[Tensor] | None = None
    scores: list[Tensor] | None = None
    labels: list[Tensor] | None = None
    masks: list[Tensor] | None = None
    sizes: Tensor | None = None


class ResidualForTwoStageDetection(Detector):
    """A residual detector of two stages, Faster R-CNN (Ren et al. 2015, with the pyramid of Lin et
    al. 2017a) or, with masks, Mask R-CNN (He et al. 2017), for images of any size.

    Regions are proposed at each level of the pyramid, then what stands in each is looked at again.
    Every parameter is trained, from scratch. A batch norm learns little from batches of one or two
    images: build with `norm="group"` for those. `transformers.pipeline("object-detection")` runs
    it; masks come of `predict`. How many boxes there are depends on the image, so it does not go
    through `torch.export`.

    >>> model = ResidualForTwoStageDetection.build("resnet18", labels=["cell"], hidden=64).eval()
    >>> output = model(pixel_values=torch.zeros(2, 3, 64, 96))
    >>> len(output.boxes), output.boxes[0].shape[1:]
    (2, torch.Size([4]))
    """

    config_class = ResidualTwoStageConfig
    of_classes = (
        "head.roi_heads.box_predictor.",
        "head.roi_heads.mask_predictor.mask_fcn_logits.",
    )

    config: ResidualTwoStageConfig
    head: TwoStageHead

    def __init__(self, config: ResidualTwoStageConfig) -> None:
        super().__init__(config)
        spec, levels = choose_levels(config.backbone_spec, config.levels, LEVELS)
        self.backbone = Backbone(spec)
        self.pyramid = Pyramid(self.backbone, levels, config.channels, subsampled=True)
        self.head = TwoStageHead(
            config.channels,
            levels,
            pooled=len(self.pyramid.stages),
            classes=len(config.id2label or {}),
            hidden=config.hidden,
            masks=config.masks,
        )
        self.post_init()

    @classmethod
    def build(
        cls,
        name_or_spec: str | BackboneSpec,
        *,
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        masks: bool = False,
        levels: Sequence[int] | None = None,
        channels: int = 256,
        hidden: int = 1024,
        processor: ResidualDetectionProcessor | None = None,
        **spec_changes: Any,
    ) -> Self:
        """Make an untrained detector.

        Args:
            name_or_spec: a name in `rb.SPECS`, or a spec. Stages that no level reads are left out.
            num_labels, labels: how many classes, or their names, without one for the background;
                one is enough.
            masks: False is Faster R-CNN, True Mask R-CNN, which learns from masks of the objects.
            levels: strides of the pyramid's levels, 1 to 5 of them, each double the one before:
                those of the net's features and, for proposals alone, further ones. By default the
                net's four coarsest and one more. A level proposes objects of about 8 strides.
            channels: of the pyramid, and of what makes masks.
            hidden: features of a region, of which class and box are made.
            processor: how images become pixels; by default they keep their size and go from
                0 … 255 to -1 … 1 in as many channels as the spec takes.
            spec_changes: fields of the spec to replace, as `norm="group"`.

        Raises:
            InputError: no or contradicting classes, an unknown name or field, levels, channels or
                features that cannot be, a processor of another number of channels.
        """
        for name, value in (("channels", channels), ("hidden", hidden)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name}={value!r} cannot be; give 1 or more")
        if not isinstance(masks, bool):
            raise InputError(f"masks={masks!r} is neither True nor False; give one of them")
        spec, chosen = choose_levels(resolve(name_or_spec, **spec_changes), levels, LEVELS)
        if any(chosen[0] * 2**n != stride for n, stride in enumerate(chosen)) or (
            chosen[0] & (chosen[0] - 1)
        ):
            raise InputError(
                f"levels={chosen} are not powers of two, each double the one before, by which a "
                "region finds its level; choose such strides, or use ResidualForObjectDetection"
            )
        config = ResidualTwoStageConfig(
            spec=spec.to_dict(),
            levels=list(chosen),
            channels=channels,
            hidden=hidden,
            masks=masks,
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
    ) -> TwoStageDetectionOutput:
        """Look for objects.

        Args:
            pixel_values: `(B, C, H, W)`, as the processor makes them.
            pixel_mask: `(B, H, W)`, 1 in an image, which begins at the upper left, and 0 in the
                padding around it. Images of a size are then computed together, and what stands in
                the padding changes nothing. None means that there is none.
            labels: per image {"boxes": `(N, 4)`, "class_labels": int64 `(N,)`}, in pixels of
                `pixel_values`, and of Mask R-CNN "masks": `(N, H, W)`, 1 in the object; an image
                without objects has none of each. What reaches out of the image is cut off.

        Returns:
            What was found in each image and, when labels are given, `.loss`: the sum of
            torchvision's, of proposals (whether and where), of boxes (what and where) and of
            masks, a mean over the images. They are of anchors and regions drawn at random, in
            evaluation mode always alike.

        Raises:
            InputError: a mask that is no rectangle, labels that cannot be learnt from, or a batch
                too small for a batch norm to be trained on.
        """
        count = len(pixel_values)
        sizes = image_sizes(pixel_values, pixel_mask)
        targets = None if labels is None else self._targets(labels, pixel_values, sizes)
        groups = (
            [(torch.arange(count, device=pixel_values.device), pixel_values)]
            if pixel_mask is None
            else self.groups(pixel_values, sizes)
        )
        found: list[dict[str, Tensor]] = [{}] * count
        losses = []
        for rows, some in groups:
            levels = self.levels(some)
            shapes = [(high, wide) for high, wide in sizes[rows].tolist()]
            numbers = rows.tolist()
            if targets is not None:
                theirs = [targets[row] for row in numbers]
                loss = self.head.loss(levels, shapes, theirs, alike=not self.training)
                losses.append(loss * (len(numbers) / count))
            if targets is None or not self.training:
                for row, one in zip(numbers, self.head.find(levels, shapes), strict=True):
                    found[row] = one
        return TwoStageDetectionOutput(
            loss=torch.stack(losses).sum() if losses else None,
            sizes=sizes,
            **{name: [one[name] for one in found] for name in FOUND if name in found[0]},
        )

    def metric(self) -> AveragePrecision:
        """COCO's mean average precision of boxes and, of Mask R-CNN, of masks."""
        return AveragePrecision([*(self.config.id2label or {}).values()], self.config.masks)

    def _targets(self, labels: Any, x: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Labels as torchvision takes them: class 0 is the background, boxes end where the image
        does (a larger one would be cut into as many parts as it has pixels)."""
        check_boxes(labels, len(x), len(self.config.id2label or {}))
        targets = []
        for number, (label, size) in enumerate(zip(labels, sizes.tolist(), strict=True)):
            target = {
                "boxes": label["boxes"].to(x.device, torch.float32),
                "labels": label["class_labels"].to(x.device, torch.int64) + 1,
            }
            if self.config.masks:
                masks, expected = label.get("masks"), (len(label["boxes"]), *x.shape[2:])
                if not isinstance(masks, Tensor) or tuple(masks.shape) != expected:
                    given = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks)
                    raise InputError(
                        f'image {number} of the batch has "masks" of {given}, but needs them of '
                        f"{expected}, one per box in pixels of the batch; give them, or build the "
                        "model with masks=False"
                    )
                target["masks"] = masks.to(x.device)
            target["boxes"] = clip_boxes_to_image(target["boxes"], tuple(size))
            seen = (target["boxes"][:, 2:] > target["boxes"][:, :2]).all(1)
            targets.append({name: value[seen] for name, value in target.items()})
        return targets


__all__: Sequence[str] = (
    "ResidualForTwoStageDetection",
    "ResidualTwoStageConfig",
    "TwoStageDetectionOutput",
)
