"""torchvision's two stages of Faster R-CNN and Mask R-CNN, at the strides of our pyramid."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from resbackbones.core.backbone import modes_kept
from resbackbones.vision.heads import SHAPES, Anchors


class Proposals(RPNHead):
    """torchvision's, whose answers are float32: half of it would round places in large images."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, regression = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in regression]


class Predictor(FastRCNNPredictor):
    """torchvision's, whose answers are float32."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, regression = super().forward(x)
        return scores.float(), regression.float()


class Pool(MultiScaleRoIAlign):
    """torchvision's, at the strides of the levels. (By itself it takes them from the first image
    that it sees, and is off where that is small.)"""

    def __init__(self, strides: Sequence[int], size: int) -> None:
        super().__init__([str(number) for number in range(len(strides))], size, sampling_ratio=2)
        self.scales: Any = [1 / stride for stride in strides]
        coarsest, finest = strides[-1].bit_length() - 1, strides[0].bit_length() - 1
        self.map_levels: Any = initLevelMapper(finest, coarsest)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Any) -> Tensor:
        levels = {name: level.float() for name, level in x.items()}
        return super().forward(levels, boxes, image_shapes).to(x["0"].dtype)


class TwoStageHead(nn.Module):
    """Both stages, with the numbers that torchvision has (Ren et al. 2015; Lin et al. 2017a; He et
    al. 2017).

    Args:
        channels: of the levels.
        strides: of the levels.
        pooled: how many of them, from the finest on, regions are cut from; all propose some.
        classes: how many, without the background.
        hidden: features of a region.
        masks: whether each object gets a mask.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        *,
        pooled: int,
        classes: int,
        hidden: int,
        masks: bool,
    ) -> None:
        super().__init__()
        most = {"training": 2000, "testing": 1000}
        self.rpn = RegionProposalNetwork(
            Anchors([(8 * stride,) for stride in strides], SHAPES, strides),
            Proposals(channels, len(SHAPES)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=most,
            post_nms_top_n=most,
            nms_thresh=0.7,
        )
        parts: dict[str, nn.Module] = {}
        if masks:
            parts = {
                "mask_roi_pool": Pool(strides[:pooled], 14),
                "mask_head": MaskRCNNHeads(channels, [channels] * 4, 1),
                "mask_predictor": MaskRCNNPredictor(channels, channels, classes + 1),
            }
        self.roi_heads = RoIHeads(
            Pool(strides[:pooled], 7),
            TwoMLPHead(channels * 7 * 7, hidden),
            Predictor(hidden, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            **parts,
        )

    def _run(
        self, levels: Sequence[Tensor], sizes: list[tuple[int, int]], targets: Any
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        named = OrderedDict((str(number), level) for number, level in enumerate(levels))
        # torchvision looks at the mode for what to compute; no part of it has another use for it.
        with modes_kept(self):
            self.train(targets is not None)
            regions, first = self.rpn(ImageList(levels[0], sizes), named, targets)
            found, second = self.roi_heads(named, regions, sizes, targets)
        return found, first | second

    def loss(
        self,
        levels: Sequence[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
        alike: bool,
    ) -> Tensor:
        """The sum of torchvision's losses.

        Args:
            levels: of the pyramid, `(B, channels, h, w)`.
            sizes: height and width of each image.
            targets: per image "boxes", "labels" from 1 up and, for masks, "masks".
            alike: draw the same each time, and leave the random generators as they are.
        """
        with _same_draws(levels[0].device) if alike else nullcontext():
            _, losses = self._run(levels, sizes, targets)
        return torch.stack([*losses.values()]).sum()

    def find(
        self, levels: Sequence[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Per image "boxes", "scores", "labels" from 0 up and, for masks, "masks" of each box."""
        found, _ = self._run(levels, sizes, None)
        for one in found:
            one["labels"] = one["labels"] - 1
            if "masks" in one:
                one["masks"] = one["masks"].squeeze(1).float()
        return found

    def reset_parameters(self) -> None:
        """Draw anew what tells classes apart."""
        heads = self.roi_heads
        heads.box_predictor.cls_score.reset_parameters()
        heads.box_predictor.bbox_pred.reset_parameters()
        if heads.mask_predictor is not None:
            last = heads.mask_predictor.mask_fcn_logits
            last.reset_parameters()
            nn.init.kaiming_normal_(last.weight, mode="fan_out", nonlinearity="relu")


@contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    """The random generators start anew, and go on afterwards where they were."""
    others = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(others, device_type="cuda" if not others else device.type):
        torch.manual_seed(0)
        yield


__all__: Sequence[str] = ("TwoStageHead",)
