"""The residual law, and the modules that the parts of a branch become.

    y = act(shortcut(x) + scale * drop(branch(pre(x))))

`Residual` is that line. `MODULES` says what each part becomes: a module made from `(part, spec,
in_channels)` and called `(x, context)` on `(B, C, H, W)`.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from resbackbones.core import layers, modules
from resbackbones.core.context import WHOLE, Context
from resbackbones.core.layers import Layer, Part
from resbackbones.core.modules import plane
from resbackbones.core.ops import beyond, make_norm, normalise
from resbackbones.core.plan import Block
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError

MOST_WEIGHTS = 2**33  # of one convolution: four times what a large GPU holds

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def make_activation(kind: str, fresh: bool) -> nn.Module:
    """An activation; ReLU works in place where its input is `fresh` (nobody else's)."""
    return nn.ReLU(inplace=fresh) if kind == "relu" else ACTIVATIONS[kind]()


def make_norm_of(spec: BackboneSpec, channels: int) -> nn.Module | None:
    """The spec's norm over so many channels, if it has one of activations."""
    return make_norm(spec.norm, channels, spec.norm_eps, spec.norm_groups, spec.norm_affine)


class Bias(nn.Module):
    """Fixup's scalar bias (Zhang et al. 2019, section 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


class Convolution(nn.Module):
    """One convolution that never reads past an item's end: "same", causal on the last axis, or,
    where an even kernel is as wide as its stride, of patches side by side.

    A length L becomes ceil(L / stride) on every axis.
    """

    def __init__(self, spec: BackboneSpec, in_channels: int, layer: Layer, bias: bool) -> None:
        super().__init__()
        channels, groups = layer.channels, layer.groups
        if in_channels % groups or channels % groups:
            raise InputError(
                f"groups={groups} does not divide {in_channels} input and {channels} "
                "output channels of a convolution; choose groups that divide every width"
            )
        kernel, stride, dilation = (
            plane(value, spec) for value in (layer.kernel, layer.stride, layer.dilation)
        )
        weights = channels * in_channels // groups * math.prod(kernel)
        if weights > MOST_WEIGHTS:
            raise InputError(
                f"a convolution of {weights:,} weights ({in_channels} to {channels} channels, "
                f"kernel {kernel}) fits no machine; choose smaller ones"
            )
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        # Patches are filled up at the end; the causal axis is padded by hand, on the left only.
        apart = [not layer.centred and s > 1 for s in stride]
        self.patches = [k % 2 == 0 or a for k, a in zip(kernel, apart, strict=True)]
        margin = [0 if p else r // 2 for p, r in zip(self.patches, reach, strict=True)]
        self.causal, self.reach, self.stride = spec.causal, reach, stride
        if spec.causal:
            self.patches[-1] = False
            margin[-1] = 0
        self.reads_padding = kernel[-1] > 1 and not spec.causal
        self.conv = nn.Conv2d(
            in_channels,
            channels,
            kernel,
            stride,
            (margin[0], margin[1]),
            dilation,
            groups,
            bias=bias,
        )
        self.bias = Bias() if spec.init == "fixup" else None

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        if self.bias is not None:
            x = self.bias(x)
        if self.reads_padding or (self.reach[-1] and context.leading is not None):
            x = context.mask(x)
        if any(self.patches):
            ends = map(beyond, x.shape[2:], self.stride, self.reach)
            down, right = (p and end for p, end in zip(self.patches, ends, strict=True))
            x = functional.pad(x, (0, right, 0, down))
        if not self.causal:
            return self.conv(x)
        history = self.reach[-1]
        x = context.recall(self, x, history, self.stride[-1])
        one = context.memory is not None and x.shape[-2:] == (1, history + 1)
        if one and self.conv.kernel_size[0] == self.conv.groups == 1:
            return self._one_window(x)
        short = history + 1 - x.shape[-1] if context.memory is not None else 0
        if short > 0:  # a piece of a stream that completes no window
            return self.conv(functional.pad(x, (0, short)))[..., :0]
        return self.conv(x)

    def _one_window(self, x: Tensor) -> Tensor:
        """What is made of `(B, C, 1, reach + 1)`: a product of matrices, which for so little is
        several times faster than a convolution."""
        taps = x[..., :: self.conv.dilation[-1]].flatten(1)
        y = functional.linear(taps, self.conv.weight.flatten(1), self.conv.bias)
        return y[:, :, None, None]


class Standardized(nn.Module):
    """A weight with mean 0 and variance 1 per output channel (Qiao et al. 2019, section 2)."""

    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.reshape(1, len(weight), -1)
        # What is added to the variance is BiT's, as timm and transformers have it.
        flat = functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-8)
        return flat.reshape(weight.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class NormActivation(nn.Module):
    """Norm, then activation, as far as the spec and the part have them; or the other way round."""

    def __init__(
        self,
        part: layers.NormActivation | Layer,
        spec: BackboneSpec,
        channels: int,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        self.norm = make_norm_of(spec, channels) if part.norm else None
        written = part.norm or part.activation
        self.bias = Bias() if spec.init == "fixup" and written else None
        self.norm_last = spec.norm_after_activation
        fresh = isinstance(part, Layer) or (
            not self.norm_last and (self.norm is not None or self.bias is not None)
        )
        kind = activation or spec.activation
        self.activation = make_activation(kind, fresh) if part.activation else None

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        if self.norm_last and self.activation is not None:
            x = self.activation(x)
        if self.norm is not None:
            x = normalise(self.norm, x, context)
        if self.bias is not None:
            x = self.bias(x)
        return x if self.norm_last or self.activation is None else self.activation(x)


class ConvLayer(nn.Module):
    """A `Layer` as a module: convolution, norm, activation.

    Args:
        activation: another one than the spec's.
    """

    def __init__(
        self, layer: Layer, spec: BackboneSpec, in_channels: int, activation: str | None = None
    ) -> None:
        super().__init__()
        bias = layer.bias
        if bias is None:
            between = spec.norm_after_activation and layer.norm and layer.activation
            bias = between or (spec.norm in ("none", "weight") and spec.init != "fixup")
        written = [(in_channels, layer, bias)]
        if layer.separable:
            depthwise = Layer(
                in_channels, layer.kernel, layer.stride, layer.dilation, groups=in_channels
            )
            pointwise = Layer(layer.channels, 1, groups=layer.groups)
            written = [(in_channels, depthwise, False), (in_channels, pointwise, bias)]
        # Registered in the order they run, so that weights listed in order match other libraries.
        self.convolutions = nn.ModuleList()
        for width, each, with_bias in written:
            convolution = Convolution(spec, width, each, with_bias)
            if spec.norm == "weight" and layer.norm:
                parametrizations.weight_norm(convolution.conv)
            if spec.weight_standardized:
                if convolution.conv.weight[0].numel() == 1:
                    raise InputError(
                        f"weight_standardized=True leaves 0 of a convolution of one number per "
                        f"output channel ({width} to {each.channels} channels, kernel "
                        f"{each.kernel}); use a wider one, or weight_standardized=False"
                    )
                parametrize.register_parametrization(convolution.conv, "weight", Standardized())
            self.convolutions.append(convolution)
        self.after = NormActivation(layer, spec, layer.channels, activation)

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        for convolution in cast("Iterable[Convolution]", self.convolutions):
            x = convolution(x, context)
            context = context.strided(convolution.stride[-1])
        return self.after(x, context)


class Split(nn.Module):
    """Groups of channels, each but the first convolved together with what the one before gave."""

    def __init__(self, part: layers.Split, spec: BackboneSpec, in_channels: int) -> None:
        super().__init__()
        width = part.channels // part.scale
        self.groups = nn.ModuleList(ConvLayer(layer, spec, width) for layer in part.inside())

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        first, *rest = x.chunk(len(self.groups) + 1, 1)
        done: list[Tensor] = [first]
        for index, (layer, group) in enumerate(zip(self.groups, rest, strict=True)):
            done.append(layer(group + done[-1] if index else group, context))
        return torch.cat(done, 1)


class SubSpectralNorm(nn.Module):
    """A norm of its own for each of several equal parts of the frequency axis.

    Raises:
        InputError: from `forward`, a frequency axis that they do not divide.
    """

    def __init__(self, part: layers.SubSpectralNorm, spec: BackboneSpec, in_channels: int) -> None:
        super().__init__()
        self.bands = part.bands
        self.norm = make_norm_of(spec, part.channels * part.bands)

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        batch, channels, high, wide = x.shape
        if high % self.bands:
            raise InputError(
                f"{high} rows of frequency are left where {self.bands} equal bands are to be "
                "normalised apart; give features of which each block gets a multiple of "
                f"{self.bands}, as 40 mel bands, or build with branch=Broadcast(bands=1)"
            )
        apart = x.reshape(batch, channels * self.bands, high // self.bands, wide)
        assert self.norm is not None
        return normalise(self.norm, apart, context).reshape(x.shape)


class Broadcast(nn.Module):
    """x, and at every frequency of it what two convolutions make of its mean over frequency."""

    def __init__(self, part: layers.Broadcast, spec: BackboneSpec, in_channels: int) -> None:
        super().__init__()
        along_time, across = part.inside()
        self.along_time = ConvLayer(along_time, spec, in_channels, activation="silu")
        self.across = ConvLayer(across, spec, in_channels)
        self.dropout = nn.Dropout2d(part.dropout)

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        y = self.along_time(x.mean(2, keepdim=True), context)
        return x + self.dropout(self.across(y, context))


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


# What each part becomes, made from (part, spec, in_channels).
MODULES: dict[type[Part], Callable[[Any, BackboneSpec, int], nn.Module]] = {
    Layer: ConvLayer,
    layers.Patch: ConvLayer,
    layers.NormActivation: NormActivation,
    layers.Split: Split,
    layers.SubSpectralNorm: SubSpectralNorm,
    layers.Broadcast: Broadcast,
    layers.Gate: modules.Gate,
    layers.Dropout: modules.Dropout,
    layers.Attention: modules.attention,
    layers.MaxPool: modules.MaxPool,
    layers.KMaxPool: modules.KMaxPool,
    layers.AveragePool: modules.AveragePool,
    layers.Blur: modules.Blur,
    layers.Subsample: modules.Subsample,
}


class Chain(nn.ModuleList):
    """Parts one after another, each at the resolution that the one before left.

    Attributes:
        stride: of all of them together, on `(H, W)`.

    Raises:
        InputError: a part that `MODULES` does not know.
    """

    def __init__(self, parts: Iterable[Part], spec: BackboneSpec, in_channels: int) -> None:
        super().__init__()
        self.strides: list[int] = []
        self.stride = (1, 1)
        for part in parts:
            if type(part) not in MODULES:
                name = type(part).__name__
                raise InputError(f"no module is known for the part {name}; add it to MODULES")
            self.append(MODULES[type(part)](part, spec, in_channels))
            high, wide = plane(part.stride, spec)
            self.strides.append(wide)
            self.stride = (self.stride[0] * high, self.stride[1] * wide)
            in_channels = part.channels

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        for module, stride in zip(self, self.strides, strict=True):
            x = module(x, context)
            context = context.strided(stride)
        return x


class Residual(nn.Module):
    """The law: `y = act(shortcut(x) + scale * drop(branch(pre(x))))`, on `(B, C, H, W)`.

    A projection sees `pre(x)` in pre-activated blocks; an identity shortcut always carries raw `x`.
    With `skip="none"`, and where shapes differ with `shortcut="none"`, the sum is gone and
    everything else stays.

    Args:
        block: its parts.
        position: index of the block, counted over the whole net of `total` blocks.
    """

    def __init__(
        self, block: Block, spec: BackboneSpec, in_channels: int, position: int, total: int
    ) -> None:
        super().__init__()
        self.pre = Chain(block.pre, spec, in_channels)
        self.branch = Chain(block.branch, spec, in_channels)
        shortcut = block.shortcut or ()
        self.shortcut = Chain(shortcut, spec, in_channels)
        self.shortcut_sees_pre = any(part.convolutions for part in shortcut)
        self.stride = self.branch.stride
        self.keeps_shape = self.stride == (1, 1) and in_channels == block.branch[-1].channels
        self.skip = block.shortcut is not None
        self.scale_start = _scale_start(spec, total)
        shape = (block.branch[-1].channels, 1, 1) if spec.branch_scale == "layerscale" else ()
        start = self.scale_start
        self.scale = None if start is None else nn.Parameter(torch.full(shape, start))
        drop = spec.drop_path * position / max(1, total - 1)
        self.drop_path = DropPath(drop) if drop else None
        self.activation: nn.Module | None = None
        if spec.order == "post":
            self.activation = make_activation(spec.activation, fresh=self.skip)

    def forward(self, x: Tensor, context: Context = WHOLE) -> Tensor:
        inside = self.pre(x, context)
        y = self.branch(inside, context)
        if self.drop_path is not None:
            y = self.drop_path(y)
        if self.scale is not None:
            y = self.scale * y
        if self.skip:
            y = y + self.shortcut(inside if self.shortcut_sees_pre else x, context)
        return y if self.activation is None else self.activation(y)


def _scale_start(spec: BackboneSpec, total: int) -> float | None:
    if spec.init == "fixup":
        return 1.0
    if spec.branch_scale == "skipinit":
        return 1 / math.sqrt(total)
    if spec.branch_scale == "layerscale":  # Touvron et al. 2021 (CaiT), section 2
        return 0.1 if total <= 18 else 1e-5 if total <= 24 else 1e-6
    return 0.0 if spec.branch_scale == "rezero" else None
