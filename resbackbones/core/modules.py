"""What the parts without a weight of space become: gates, attention, poolings.

Each is made from `(part, spec, in_channels)` and called `(x, context)` on `(B, C, H, W)`.
"""

import math

from torch import Tensor, nn
from torch.nn import functional

from resbackbones.core import layers
from resbackbones.core.context import WHOLE, Context
from resbackbones.core.layers import Axes, per_axis
from resbackbones.core.ops import average_pool, blur, k_max_pool, masked_mean, max_pool
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError


def plane(value: Axes, spec: BackboneSpec) -> tuple[int, int]:
    """One number per axis of `(H, W)`: a sequence is an image one row high."""
    height, width = (1,) * (2 - spec.dims) + per_axis(value, spec.dims)
    return height, width


class Gate(nn.Module):
    """The first half of the channels times the sigmoid of the second."""

    def __init__(self, part: layers.Gate, spec: BackboneSpec, in_channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        return functional.glu(x, 1)


class Dropout(nn.Dropout):
    """Numbers left out in training."""

    def __init__(self, part: layers.Dropout, spec: BackboneSpec, in_channels: int) -> None:
        super().__init__(part.probability)

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        return super().forward(x)


class SqueezeExcitation(nn.Module):
    """Scale channels by a gate computed from their means (Hu et al. 2018)."""

    def __init__(self, part: layers.Attention, spec: BackboneSpec, in_channels: int) -> None:
        super().__init__()
        squeezed = max(4, part.channels // part.reduction)
        self.squeeze = nn.Linear(part.channels, squeezed, bias=part.bias)
        self.excite = nn.Linear(squeezed, part.channels, bias=part.bias)

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        means = masked_mean(x, context.lengths)
        gate = self.excite(functional.relu(self.squeeze(means))).sigmoid()
        return x * gate[:, :, None, None]


class EfficientChannelAttention(nn.Module):
    """Scale channels by a gate computed from the means of their neighbours (Wang et al. 2020)."""

    def __init__(self, part: layers.Attention, spec: BackboneSpec, in_channels: int) -> None:
        super().__init__()
        kernel = int(abs(math.log2(part.channels) / 2 + 0.5))
        kernel += 1 - kernel % 2
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        means = masked_mean(x, context.lengths)
        gate = self.conv(means.unsqueeze(1)).squeeze(1).sigmoid()
        return x * gate[:, :, None, None]


class _Window(nn.Module):
    """What looks at windows without weights: kernel, stride and dilation on `(H, W)`."""

    def __init__(
        self,
        part: layers.MaxPool | layers.AveragePool | layers.Blur,
        spec: BackboneSpec,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.window = (
            plane(part.kernel, spec),
            plane(part.stride, spec),
            plane(part.dilation, spec),
        )

    def extra_repr(self) -> str:
        return "kernel={}, stride={}, dilation={}".format(*self.window)


class MaxPool(_Window):
    """Max over 3 positions around every `stride`-th one."""

    def __init__(self, part: layers.MaxPool, spec: BackboneSpec, in_channels: int) -> None:
        super().__init__(part, spec, in_channels)
        self.zero_padded = part.zero_padded

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        return max_pool(x, *self.window, context, self.zero_padded)


class KMaxPool(nn.Module):
    """The largest numbers of each channel, one of `stride`, in their order."""

    def __init__(self, part: layers.KMaxPool, spec: BackboneSpec, in_channels: int) -> None:
        super().__init__()
        self.stride = plane(part.stride, spec)[-1]

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        return k_max_pool(x, self.stride, context)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class AveragePool(_Window):
    """Mean over each cell of `stride` positions."""

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        return average_pool(x, *self.window, context)


class Blur(_Window):
    """The weights 1/4, 1/2, 1/4 around every `stride`-th position."""

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        return blur(x, *self.window, context)


class Subsample(nn.Module):
    """Every `stride`-th position, then zero channels appended."""

    def __init__(self, part: layers.Subsample, spec: BackboneSpec, in_channels: int) -> None:
        super().__init__()
        if part.channels < in_channels:
            raise InputError(
                f"shortcut='pad' cannot go from {in_channels} to {part.channels} channels, it only "
                "adds some; use shortcut='projection'"
            )
        self.stride = plane(part.stride, spec)
        self.extra = part.channels - in_channels

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        high, wide = self.stride
        x = context.recall(self, x, 0, wide)[:, :, ::high, ::wide]
        return functional.pad(x, (0, 0, 0, 0, 0, self.extra))


def attention(part: layers.Attention, spec: BackboneSpec, in_channels: int) -> nn.Module:
    kinds = {"se": SqueezeExcitation, "eca": EfficientChannelAttention}
    return kinds[part.kind](part, spec, in_channels)
