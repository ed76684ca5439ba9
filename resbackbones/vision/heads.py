"""torchvision's heads of one-stage detectors, with their anchors and losses beside them."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

SHAPES = (0.5, 1.0, 2.0)  # of anchors, heights divided by widths


def _draw_classes(convolution: nn.Conv2d) -> None:
    """Draw a head's last convolution, so that every class begins at a score of 0.01 (Lin et al.
    2017b, section 4.1)."""
    nn.init.normal_(convolution.weight, std=0.01)
    nn.init.constant_(convolution.bias, -4.59511985013459)  # type: ignore[arg-type]


class Anchors(AnchorGenerator):
    """torchvision's anchors at the strides of the levels, in float32. (Its own generator takes the
    strides from the sizes of the levels, and is off by the rounding.)

    Args:
        sizes: of each level, the roots of the anchors' areas, in pixels.
        shapes: heights divided by widths.
        strides: of the levels.
    """

    def __init__(
        self, sizes: Sequence[Sequence[int]], shapes: Sequence[float], strides: Sequence[int]
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(shapes),) * len(strides))
        self.strides: Any = [(stride, stride) for stride in strides]

    def over(self, grids: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
        """Of every level, `(A, 4)` in pixels, for as many rows and columns."""
        if self.cell_anchors[0].device != device:
            self.set_cell_anchors(torch.float32, device)
        return torch.cat(self.grid_anchors(grids, self.strides))

    def forward(self, images: ImageList, levels: list[Tensor]) -> list[Tensor]:
        """The same for each image, as torchvision's region proposal network asks for them."""
        grids = [(level.shape[2], level.shape[3]) for level in levels]
        return [self.over(grids, levels[0].device)] * len(images.image_sizes)


class FCOSDetection(FCOSHead):
    """torchvision's FCOS head (Tian et al. 2019), with a point per position of each level."""

    def __init__(
        self, channels: int, strides: Sequence[int], classes: int, convolutions: int
    ) -> None:
        super().__init__(channels, 1, classes, convolutions)
        self.anchors = Anchors([(s,) for s in strides], (1.0,), strides)

    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        """Boxes `(B, A, 4)` of anchors `(A, 4)`."""
        return self.box_coder.decode(regression, anchors)

    def matched(self, anchors: Tensor, targets: list[dict[str, Tensor]]) -> list[Tensor]:
        """Per image, which of its objects each point is to find, int64 `(A,)`; -1 for none."""
        finest, coarsest = (
            int((anchors[0, :, 2] - anchors[0, :, 0] == sizes[0]).sum())
            for sizes in (self.anchors.sizes[0], self.anchors.sizes[-1])
        )
        # torchvision matches and asks its head for the loss in one go: this head stops in between.
        head = SimpleNamespace(compute_loss=lambda *given: given[-1])
        of = SimpleNamespace(head=head, center_sampling_radius=1.5)
        return FCOS.compute_loss(of, targets, {}, list(anchors), [finest, coarsest])

    def weight(self, anchors: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        """What `losses` divides by: how many points of the batch have an object, 1 at least."""
        return (torch.stack(self.matched(anchors, targets)) >= 0).sum().clamp(min=1)

    def losses(
        self, outputs: dict[str, Tensor], anchors: Tensor, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """torchvision's, each a sum over the batch divided by how many points have an object."""
        return self.compute_loss(targets, outputs, list(anchors), self.matched(anchors, targets))

    def reset_parameters(self) -> None:
        """Draw anew what tells classes apart."""
        _draw_classes(self.classification_head.cls_logits)


class RetinaNetDetection(RetinaNetHead):
    """torchvision's RetinaNet head (Lin et al. 2017b), with anchors of three sizes and three shapes
    per position of each level."""

    def __init__(
        self, channels: int, strides: Sequence[int], classes: int, convolutions: int
    ) -> None:
        sizes = [[int(4 * stride * 2 ** (third / 3)) for third in range(3)] for stride in strides]
        super().__init__(channels, 9, classes)
        self.anchors = Anchors(sizes, SHAPES, strides)

    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        """Boxes `(B, A, 4)` of anchors `(A, 4)`."""
        # torchvision decodes several boxes of an anchor; here they are those of several images.
        several = regression.movedim(0, 1).flatten(1)
        boxes = self.regression_head.box_coder.decode_single(several, anchors)
        return boxes.unflatten(1, (-1, 4)).movedim(0, 1)

    def weight(self, anchors: Tensor, targets: list[dict[str, Tensor]]) -> int:
        """What `losses` divides by: how many images there are."""
        return len(targets)

    def losses(
        self, outputs: dict[str, Tensor], anchors: Tensor, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """torchvision's, each a mean over the images of a mean over anchors with an object."""
        matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        of = SimpleNamespace(head=self, proposal_matcher=matcher)
        return RetinaNet.compute_loss(of, targets, outputs, list(anchors))

    def reset_parameters(self) -> None:
        """Draw anew what tells classes apart."""
        _draw_classes(self.classification_head.cls_logits)


DETECTORS: dict[str, Any] = {"fcos": FCOSDetection, "retinanet": RetinaNetDetection}

__all__: Sequence[str] = ("DETECTORS", "SHAPES", "Anchors", "FCOSDetection", "RetinaNetDetection")
