"""The residual law, and what may stand between the skip's two ends.

    y = act(shortcut(x) + scale * drop(branch(pre(x))))

`Residual` is that line. A branch is a function from a block's numbers to the `Layer`s between the
skip's ends; the spec's order, norm, activation, causality and padding apply to any branch alike.
Its further parameters are the fields of `BackboneSpec` it reads; setting any other is refused.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from resbackbones.core.ops import (
    CONV,
    Padding,
    average_pool,
    make_norm,
    mask,
    masked_mean,
    normalise,
    per_axis,
)
from resbackbones.core.spec import Axes, BackboneSpec, Layer, Stage
from resbackbones.errors import InputError


def basic(
    channels: int, kernel: Axes, stride: Axes, dilation: Axes, groups: int
) -> tuple[Layer, ...]:
    """Two convolutions (He et al. 2015, figure 5 left)."""
    return (
        Layer(channels, kernel, stride, dilation, groups),
        Layer(channels, kernel, 1, dilation, groups, activation=False),
    )


def bottleneck(
    channels: int,
    kernel: Axes,
    stride: Axes,
    dilation: Axes,
    groups: int,
    bottleneck_ratio: float,
) -> tuple[Layer, ...]:
    """1x1 down, a (grouped) convolution that carries the stride, 1x1 up (He et al. 2015, figure 5
    right; the stride as in torchvision's "v1.5"; Xie et al. 2017 for groups)."""
    inner = max(groups, int(channels * bottleneck_ratio))
    return (
        Layer(inner, 1),
        Layer(inner, kernel, stride, dilation, groups),
        Layer(channels, 1, activation=False),
    )


def separable(
    channels: int, kernel: Axes, stride: Axes, dilation: Axes, repeats: int
) -> tuple[Layer, ...]:
    """`repeats` depthwise-separable convolutions, the last one carrying the stride (QuartzNet,
    Kriman et al. 2020; Citrinet, Majumdar et al. 2021)."""
    inner = Layer(channels, kernel, 1, dilation, separable=True)
    last = Layer(channels, kernel, stride, dilation, separable=True, activation=False)
    return (*(inner,) * (repeats - 1), last)


def temporal(channels: int, kernel: Axes, stride: Axes, dilation: Axes) -> tuple[Layer, ...]:
    """Two dilated convolutions, each followed by its activation (Bai et al. 2018, figure 1b)."""
    return Layer(channels, kernel, stride, dilation), Layer(channels, kernel, 1, dilation)


BRANCHES: dict[str, Callable[..., Iterable[Layer]]] = {
    "basic": basic,
    "bottleneck": bottleneck,
    "separable": separable,
    "temporal": temporal,
}

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def make_activation(spec: BackboneSpec, fresh: bool) -> nn.Module:
    """The spec's activation; ReLU works in place where its input is `fresh` (nobody else's)."""
    return nn.ReLU(inplace=fresh) if spec.activation == "relu" else ACTIVATIONS[spec.activation]()


class Bias(nn.Module):
    """Fixup's scalar bias (Zhang et al. 2019, section 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


class NormActivation(nn.Module):
    """Norm, then activation, as far as the spec and the layer have them."""

    def __init__(self, spec: BackboneSpec, channels: int, norm: bool, activation: bool) -> None:
        super().__init__()
        self.norm = make_norm(spec.norm, channels, spec.dims, spec.norm_eps) if norm else None
        self.bias = Bias() if spec.init == "fixup" else None
        fresh = self.norm is not None or self.bias is not None
        self.activation = make_activation(spec, fresh) if activation else None

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        if self.norm is not None:
            x = normalise(self.norm, x, padding)
        if self.bias is not None:
            x = self.bias(x)
        return self.activation(x) if self.activation is not None else x


class Convolution(nn.Module):
    """One "same" or causal convolution that never reads past an item's end.

    A length L becomes ceil(L / stride) on every axis.
    """

    def __init__(self, spec: BackboneSpec, in_channels: int, layer: Layer, bias: bool) -> None:
        super().__init__()
        if in_channels % layer.groups or layer.channels % layer.groups:
            raise InputError(
                f"groups={layer.groups} does not divide {in_channels} input and {layer.channels} "
                "output channels of a convolution; choose groups that divide every width"
            )
        kernel, stride, dilation = (
            per_axis(value, spec.dims) for value in (layer.kernel, layer.stride, layer.dilation)
        )
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        # The causal axis is padded by hand, on the left only.
        self.history = reach[-1] if spec.causal else 0
        margin = [r // 2 for r in reach]
        if spec.causal:
            margin[-1] = 0
        self.reads_neighbours = kernel[-1] > 1
        self.stride = stride
        conv = CONV[spec.dims]
        self.conv = conv(
            in_channels,
            layer.channels,
            kernel,
            stride,
            tuple(margin),
            dilation,
            layer.groups,
            bias=bias,
        )
        self.bias = Bias() if spec.init == "fixup" else None

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        if self.bias is not None:
            x = self.bias(x)
        if self.reads_neighbours:
            x = mask(x, padding)
        if self.history:
            x = functional.pad(x, (self.history, 0))
        return self.conv(x)


class ConvLayer(nn.Module):
    """A `Layer` as a module: convolution, norm, activation; or, pre-activated, the other way round.

    Args:
        pre: norm and activation stand before the convolution.
        dropout: after the activation.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        in_channels: int,
        layer: Layer,
        *,
        pre: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre = pre
        self.stride = per_axis(layer.stride, spec.dims)
        bias = layer.bias
        if bias is None:
            bias = spec.norm in ("none", "weight") and spec.init != "fixup"
        around = NormActivation(
            spec, in_channels if pre else layer.channels, layer.norm, layer.activation
        )
        if layer.separable:
            depthwise = Layer(
                in_channels, layer.kernel, layer.stride, layer.dilation, groups=in_channels
            )
            pointwise = Layer(layer.channels, 1, groups=layer.groups)
            convolutions = [
                Convolution(spec, in_channels, depthwise, bias=False),
                Convolution(spec, in_channels, pointwise, bias),
            ]
        else:
            convolutions = [Convolution(spec, in_channels, layer, bias)]
        if spec.norm == "weight" and layer.norm:
            for convolution in convolutions:
                parametrizations.weight_norm(convolution.conv)
        # Registered in the order they run, so that weights listed in order match other libraries.
        if pre:
            self.around = around
        self.convolutions = nn.ModuleList(convolutions)
        if not pre:
            self.around = around
        self.dropout = nn.Dropout(dropout) if dropout and layer.activation else None

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:
        if self.pre:
            x = self._around(x, padding)
        for convolution in cast("Iterable[Convolution]", self.convolutions):
            x = convolution(x, padding)
            padding = after(padding, convolution.stride)
        return x if self.pre else self._around(x, padding)

    def _around(self, x: Tensor, padding: Padding | None) -> Tensor:
        x = self.around(x, padding)
        return self.dropout(x) if self.dropout is not None else x


def after(padding: Padding | None, stride: tuple[int, ...]) -> Padding | None:
    """The padding after an operator with these strides."""
    return None if padding is None else padding.strided(stride[-1])


class SqueezeExcitation(nn.Module):
    """Scale channels by a gate computed from their means (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        squeezed = max(4, channels // reduction)
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        means = masked_mean(x, None if padding is None else padding.lengths)
        gate = self.excite(functional.relu(self.squeeze(means))).sigmoid()
        return x * gate.view(*gate.shape, *(1,) * (x.ndim - 2))


class EfficientChannelAttention(nn.Module):
    """Scale channels by a gate computed from the means of their neighbours (Wang et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = int(abs(math.log2(channels) / 2 + 0.5))
        kernel += 1 - kernel % 2
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        means = masked_mean(x, None if padding is None else padding.lengths)
        gate = self.conv(means.unsqueeze(1)).squeeze(1).sigmoid()
        return x * gate.view(*gate.shape, *(1,) * (x.ndim - 2))


class DropPath(nn.Module):
    """Drop the whole branch of an item with this probability, in training (Huang et al. 2016)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.probability
        kept = torch.empty(len(x), *(1,) * (x.ndim - 1), device=x.device, dtype=x.dtype)
        return x * kept.bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        return f"probability={self.probability:.3g}"


class PadShortcut(nn.Module):
    """Subsample, then append zero channels: no parameters (He et al. 2015, option A)."""

    def __init__(self, in_channels: int, channels: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        if channels < in_channels:
            raise InputError(
                f"shortcut='pad' cannot go from {in_channels} to {channels} channels, it only adds "
                "some; use shortcut='projection'"
            )
        self.stride = stride
        self.extra = channels - in_channels

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        every = tuple(slice(None, None, stride) for stride in self.stride)
        x = x[(slice(None), slice(None), *every)]
        return functional.pad(x, (*(0, 0) * len(self.stride), 0, self.extra))


class Projection(nn.Module):
    """A strided 1x1 convolution; with `average`, a mean pooling takes the stride (He et al. 2019,
    ResNet-D). A pre-activated block projects without a norm."""

    def __init__(
        self, spec: BackboneSpec, in_channels: int, channels: int, stride: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.average = spec.shortcut == "average" and max(stride) > 1
        self.stride = stride
        layer = Layer(
            channels,
            1,
            1 if self.average else stride,
            # Weight norm belongs to the branch; the published nets project with a plain 1x1.
            norm=spec.order != "pre" and spec.norm != "weight",
            activation=spec.shortcut_activation,
        )
        self.layer = ConvLayer(spec, in_channels, layer)

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        if self.average:
            x = average_pool(x, self.stride, padding)
            padding = after(padding, self.stride)
        return self.layer(x, padding)


class Residual(nn.Module):
    """The law: `y = act(shortcut(x) + scale * drop(branch(pre(x))))`, on `(B, C, *space)`.

    A projection sees `pre(x)` in pre-activated blocks; an identity shortcut always carries raw `x`.
    With `skip="none"` the sum is gone and everything else stays.

    Args:
        position: index of the block, counted over the whole net of `total` blocks.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        in_channels: int,
        stage: Stage,
        stride: Axes,
        position: int,
        total: int,
    ) -> None:
        super().__init__()
        channels = stage.channels
        self.stride = per_axis(stride, spec.dims)
        pre = spec.order == "pre"
        self.pre = NormActivation(spec, in_channels, norm=True, activation=True) if pre else None
        self.branch = nn.ModuleList()
        width = in_channels
        for index, layer in enumerate(spec.branch_layers(stage, stride)):
            if pre:  # the first norm and activation are `pre`, which a projection shares
                first = index == 0
                norm = layer.norm and (not first or spec.norm == "weight")
                layer = replace(layer, norm=norm, activation=not first)
            self.branch.append(ConvLayer(spec, width, layer, pre=pre, dropout=spec.dropout))
            width = layer.channels
        if width != channels:
            raise InputError(
                f"the {spec.branch} branch ends in {width} channels, but its stage has {channels}"
            )
        self.attention = _attention(spec, channels)
        self.shortcut = self._make_shortcut(spec, in_channels, channels)
        self.shortcut_sees_pre = pre and isinstance(self.shortcut, Projection)
        self.skip = spec.skip == "identity"
        self.scale_start = _scale_start(spec, total)
        shape = (channels, *(1,) * spec.dims) if spec.branch_scale == "layerscale" else ()
        start = self.scale_start
        self.scale = None if start is None else nn.Parameter(torch.full(shape, start))
        drop = spec.drop_path * position / max(1, total - 1)
        self.drop_path = DropPath(drop) if drop else None
        self.activation = make_activation(spec, fresh=self.skip) if spec.order == "post" else None

    def _make_shortcut(
        self, spec: BackboneSpec, in_channels: int, channels: int
    ) -> nn.Module | None:
        same = in_channels == channels and max(self.stride) == 1
        if spec.skip == "none" or (same and spec.shortcut != "always"):
            return None
        if spec.shortcut == "pad":
            return PadShortcut(in_channels, channels, self.stride)
        return Projection(spec, in_channels, channels, self.stride)

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:
        inside = x if self.pre is None else self.pre(x, padding)
        y, step = inside, padding
        for layer in cast("Iterable[ConvLayer]", self.branch):
            y = layer(y, step)
            step = after(step, layer.stride)
        if self.attention is not None:
            y = self.attention(y, step)
        if self.drop_path is not None:
            y = self.drop_path(y)
        if self.scale is not None:
            y = self.scale * y
        if self.skip:
            if self.shortcut is not None:
                x = self.shortcut(inside if self.shortcut_sees_pre else x, padding)
            y = y + x
        return y if self.activation is None else self.activation(y)


def _attention(spec: BackboneSpec, channels: int) -> nn.Module | None:
    if spec.attention == "se":
        return SqueezeExcitation(channels, spec.attention_reduction)
    return EfficientChannelAttention(channels) if spec.attention == "eca" else None


def _scale_start(spec: BackboneSpec, total: int) -> float | None:
    if spec.init == "fixup":
        return 1.0
    if spec.branch_scale == "skipinit":
        return 1 / math.sqrt(total)
    if spec.branch_scale == "layerscale":  # Touvron et al. 2021 (CaiT), section 2
        return 0.1 if total <= 18 else 1e-5 if total <= 24 else 1e-6
    return 0.0 if spec.branch_scale == "rezero" else None
