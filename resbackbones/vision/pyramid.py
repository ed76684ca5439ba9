"""The levels that a detector reads: features of the backbone, and coarser maps made of them."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from resbackbones.core.backbone import Backbone
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError

MOST = 5  # levels, as the papers have


def choose_levels(
    spec: BackboneSpec, levels: Sequence[int] | None = None, default: tuple[int, int] = (3, 2)
) -> tuple[BackboneSpec, tuple[int, ...]]:
    """The strides of a pyramid's levels, and the spec without the stages that none of them reads.

    Args:
        spec: of a net with dims=2.
        levels: strides, fine to coarse: those the net has, and from its coarsest on their doubles.
            None takes the default.
        default: so many of the net's coarsest (of 2 and more), and so many further ones; three and
            two, as FCOS and RetinaNet do, are 8, 16, 32, 64, 128 of a ResNet.

    Raises:
        InputError: dims other than 2; levels that are not 1 to 5 strides, rising, that this net
            can have.
    """
    if spec.dims != 2:
        raise InputError(
            f"a pyramid needs a spec with dims=2, but this one has dims={spec.dims}; add dims=2"
        )
    with torch.device("meta"):
        strides = Backbone(spec).strides
    own = sorted({high for high, wide in strides if high == wide and high > 1})
    if not own:
        raise InputError(
            f"the features of this net have strides {strides}, none of them 2 or more on both axes "
            "alike; give its stages strides"
        )
    if levels is None:
        count, more = default
        levels = (*own[-count:], *(own[-1] * 2 ** (n + 1) for n in range(more)))
    try:
        chosen = tuple(map(int, levels))
    except (TypeError, ValueError):
        chosen = ()
    if not 1 <= len(chosen) <= MOST or chosen != tuple(sorted(set(chosen))):
        raise InputError(
            f"levels={levels!r:.60} are not 1 to {MOST} rising strides; give them as (8, 16, 32)"
        )
    read = [stride for stride in chosen if stride in own]
    further = [own[-1] * 2 ** (n + 1) for n in range(len(chosen) - len(read))]
    if not read or [*read, *further] != list(chosen) or (further and read[-1] != own[-1]):
        known = ", ".join(map(str, own))
        raise InputError(
            f"levels={chosen} do not fit this net, whose features have strides {known}; choose of "
            f"these, and further ones from {own[-1]} on as {2 * own[-1]}, {4 * own[-1]}, …"
        )
    deepest = _stage(strides, read[-1])
    if deepest + 1 < len(spec.stages):
        spec = replace(spec, stages=spec.stages[: deepest + 1], tail=())
    return spec, chosen


def _stage(strides: Sequence[tuple[int, ...]], stride: int) -> int:
    """The deepest stage whose feature has this stride on both axes."""
    return max(i for i, (high, wide) in enumerate(strides) if high == wide == stride)


class Coarser(ExtraFPNBlock):
    """Further levels of the pyramid, each from the one before by a convolution of stride 2, with a
    ReLU between (P6 and P7 of Lin et al. 2017b, section 4, made of P5 as FCOS does)."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(count)
        )
        for convolution in self.convolutions:
            nn.init.kaiming_uniform_(convolution.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        y = results[-1]
        for number, convolution in enumerate(self.convolutions):
            y = convolution(functional.relu(y) if number else y)
            results.append(y)
            names.append(f"further{number}")
        return results, names


class Subsampled(ExtraFPNBlock):
    """Further levels of the pyramid, each every other position of the one before (P6 of Lin et al.
    2017a, section 4.1)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        for number in range(self.count):
            results.append(results[-1][:, :, ::2, ::2])
            names.append(f"further{number}")
        return results, names


class Pyramid(nn.Module):
    """torchvision's feature pyramid network (Lin et al. 2017a, section 3) over a backbone.

    Args:
        net: the backbone, whose stages are all needed, as `choose_levels` leaves it.
        levels: strides, from `choose_levels`.
        channels: of every level.
        subsampled: whether further levels are every other position of the coarsest one, and not
            made by convolutions.

    Attributes:
        strides: of the levels, fine to coarse.
        divisor: what height and width of the backbone's input must be multiples of, for each level
            to be exactly so many times smaller: only then is a picture with padding around it the
            same to the pyramid as without.
    """

    def __init__(
        self, net: Backbone, levels: Sequence[int], channels: int, subsampled: bool = False
    ) -> None:
        super().__init__()
        self.strides = tuple(levels)
        own = [stride for stride in levels if (stride, stride) in net.strides]
        self.stages = [_stage(net.strides, stride) for stride in own]
        self.divisor = math.lcm(*own)
        count = len(levels) - len(own)
        further = Subsampled(count) if subsampled else Coarser(channels, count)
        self.network = FeaturePyramidNetwork(
            [net.channels[stage] for stage in self.stages],
            channels,
            further if count else None,
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The levels `(B, channels, h, w)` of a backbone's features."""
        named = OrderedDict((str(stage), features[stage]) for stage in self.stages)
        return list(self.network(named).values())

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Rows and columns of each level, for an input of multiples of `divisor`."""
        found: list[tuple[int, int]] = []
        for number, stride in enumerate(self.strides):
            if number < len(self.stages):
                found.append((height // stride, width // stride))
            else:
                high, wide = found[-1]
                found.append(((high + 1) // 2, (wide + 1) // 2))
        return found
