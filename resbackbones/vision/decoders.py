"""What makes a map of every pixel of a backbone's features: DeepLabV3+, semantic FPN, U-Net.

A decoder is a frozen dataclass that makes its module. The module takes the features, shallow to
deep, and leaves one map; its convolutions have the norm and activation of the backbone's spec.

Whatever enlarges a map does so by a whole factor and is cut to size afterwards. So a position is
made of the same neighbours in an image of any size, odd ones and tiles of a larger one included.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from resbackbones.core.backbone import draw_he
from resbackbones.core.blocks import Chain, Convolution
from resbackbones.core.layers import Layer, check_fields, from_fields
from resbackbones.core.pieces import Reach
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError, nearest

Stride = tuple[int, int]  # input pixels per position, down and across


class Decoder:
    """The base of all decoders: a subclass is a frozen dataclass of numbers, and in `DECODERS`."""

    output_stride: int | None = None  # of the backbone, unless it is told or finer already

    def __post_init__(self) -> None:
        check_fields(self)

    def module(
        self, spec: BackboneSpec, channels: Sequence[int], strides: Sequence[Stride]
    ) -> "DecoderModule":
        """The module on features of these channels and strides."""
        raise NotImplementedError

    def reach(self, spec: BackboneSpec, strides: Sequence[Stride]) -> Reach:
        """Input pixels before and after its own, on the last axis, that a position of the
        decoder's map depends on at most; infinite where something averages over the whole image.
        """
        raise NotImplementedError


class DecoderModule(nn.Module):
    """A decoder as a module: `(features, size)` to `(B, channels, ceil(size / stride))`, where
    `size` is the input's height and width.

    Attributes:
        channels: of the map it leaves.
        stride: input pixels per position of it.
    """

    channels: int
    stride: Stride

    def reset_parameters(self) -> None:
        """Draw the convolutions as a backbone draws its own (He et al. 2015b)."""
        for module in self.modules():
            if isinstance(module, Convolution):
                draw_he(module.conv)


@dataclass(frozen=True)
class DeepLabV3Plus(Decoder):
    """Dilated convolutions side by side on the last feature, then two convolutions on these and on
    a fine feature (Chen et al. 2018, "Encoder-decoder with atrous separable convolution", section
    3.1). The fine one is the deepest of stride 4 or less, but for the last.

    The mean over the image has a bias instead of a norm, so that a batch of one image trains.

    Attributes:
        channels: of every convolution.
        fine_channels: that the fine feature is brought to.
        rates: the dilations where the last feature has stride 16; larger for a finer one.
        separable: depthwise convolutions and 1x1 ones.
        image_pooling: whether the mean over the whole image is one of the branches. Without it the
            decoder is local: an image can be predicted tile by tile with the same outcome.
        dropout: after the branches.
    """

    channels: int = 256
    fine_channels: int = 48
    rates: tuple[int, ...] = (6, 12, 18)
    separable: bool = True
    image_pooling: bool = True
    dropout: float = 0.1

    output_stride = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = self.rates
        if not isinstance(rates, tuple) or not all(type(r) is int and r >= 1 for r in rates):
            raise InputError(
                f"DeepLabV3Plus has rates={rates!r}; use a tuple of dilations of 1 or more, as "
                "(6, 12, 18)"
            )

    def module(
        self, spec: BackboneSpec, channels: Sequence[int], strides: Sequence[Stride]
    ) -> DecoderModule:
        return _DeepLabV3Plus(self, spec, channels, strides)

    def dilated(self, stride: Stride) -> tuple[Layer, ...]:
        """The branches on a feature of this stride."""
        branches = [Layer(self.channels, 1)]
        for rate in self.rates:
            dilation = tuple(max(1, round(rate * 16 / s)) for s in stride)
            branches.append(Layer(self.channels, 3, dilation=dilation, separable=self.separable))
        return tuple(branches)

    def fusing(self) -> tuple[Layer, ...]:
        """The convolutions on both features together."""
        return (Layer(self.channels, 3, separable=self.separable),) * 2

    def fine(self, strides: Sequence[Stride]) -> int:
        """Which feature is the fine one."""
        fitting = [i for i, stride in enumerate(strides[:-1]) if max(stride) <= 4]
        return fitting[-1] if fitting else 0

    def reach(self, spec: BackboneSpec, strides: Sequence[Stride]) -> Reach:
        if self.image_pooling:
            return math.inf, math.inf
        fine = strides[self.fine(strides)]
        branches = [
            _along(spec, spec.reaches[-1], (layer,), strides[-1])
            for layer in self.dilated(strides[-1])
        ]
        coarse = _along(spec, _widest(branches), (Layer(1, 1),), strides[-1])
        coarse = reach_enlarged(coarse, strides[-1], fine)
        shallow = _along(spec, spec.reaches[self.fine(strides)], (Layer(1, 1),), fine)
        return _along(spec, _widest([coarse, shallow]), self.fusing(), fine)


class _DeepLabV3Plus(DecoderModule):
    def __init__(
        self,
        options: DeepLabV3Plus,
        spec: BackboneSpec,
        channels: Sequence[int],
        strides: Sequence[Stride],
    ) -> None:
        super().__init__()
        width, deep = options.channels, channels[-1]
        self.index = options.fine(strides)
        self.stride, self.channels = strides[self.index], width
        self.factor = _ratio(strides[-1], self.stride)
        layers = options.dilated(strides[-1])
        self.branches = nn.ModuleList(Chain((layer,), spec, deep) for layer in layers)
        self.pooled = None
        if options.image_pooling:
            self.pooled = nn.Sequential(nn.Conv2d(deep, width, 1), nn.ReLU(inplace=True))
        count = len(layers) + options.image_pooling
        self.project = Chain((Layer(width, 1),), spec, count * width)
        self.dropout = nn.Dropout(options.dropout)
        self.fine = Chain((Layer(options.fine_channels, 1),), spec, channels[self.index])
        self.fuse = Chain(options.fusing(), spec, width + options.fine_channels)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        deep, fine = features[-1], features[self.index]
        parts = [branch(deep) for branch in self.branches]
        if self.pooled is not None:
            mean = deep.mean((2, 3), keepdim=True)
            parts.append(self.pooled(mean).expand(-1, -1, *deep.shape[2:]))
        coarse = self.dropout(self.project(torch.cat(parts, 1)))
        coarse = enlarged(coarse, self.factor, fine.shape[2:])
        return self.fuse(torch.cat([coarse, self.fine(fine)], 1))


@dataclass(frozen=True)
class SemanticFPN(Decoder):
    """A feature pyramid (Lin et al. 2017) whose levels are brought to the finest one's stride by
    convolutions and doublings, and added up (Kirillov et al. 2019, "Panoptic feature pyramid
    networks", section 3 and figure 3).

    Attributes:
        pyramid_channels: of the pyramid.
        channels: of what is added up.
        dropout: on the sum.
    """

    pyramid_channels: int = 256
    channels: int = 128
    dropout: float = 0.1

    def module(
        self, spec: BackboneSpec, channels: Sequence[int], strides: Sequence[Stride]
    ) -> DecoderModule:
        return _SemanticFPN(self, spec, channels, strides)

    def reach(self, spec: BackboneSpec, strides: Sequence[Stride]) -> Reach:
        levels: list[Reach] = []
        inner = (0.0, 0.0)
        for reach, stride, deeper in zip(
            reversed(spec.reaches), reversed(strides), [None, *reversed(strides)][:-1], strict=True
        ):
            before, after = inner
            if deeper is not None:  # the nearest position of the level above lies before
                inner = before + deeper[-1] - stride[-1], after
            inner = _widest([inner, reach])
            level = inner[0] + stride[-1], inner[1] + stride[-1]  # torchvision's 3x3 convolution
            for step, factor in _doublings(stride, strides[0]):
                level = _along(spec, level, (Layer(1, 3),), step)
                level = reach_enlarged(level, step, _ratio(step, factor))
            levels.append(level)
        return _widest(levels)


class _SemanticFPN(DecoderModule):
    def __init__(
        self,
        options: SemanticFPN,
        spec: BackboneSpec,
        channels: Sequence[int],
        strides: Sequence[Stride],
    ) -> None:
        super().__init__()
        self.stride, self.channels = strides[0], options.channels
        self.pyramid = FeaturePyramidNetwork(list(channels), options.pyramid_channels)
        self.levels = nn.ModuleList()
        self.steps: list[list[tuple[Stride, Stride]]] = []
        for stride in strides:
            steps = _doublings(stride, self.stride)
            self.steps.append(steps)
            widths = [options.pyramid_channels, *(options.channels,) * (len(steps) - 1)]
            layer = Layer(options.channels, 3)
            self.levels.append(nn.ModuleList(Chain((layer,), spec, width) for width in widths))
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        named = {str(number): feature for number, feature in enumerate(features)}
        maps, levels = self.pyramid(named).values(), cast("Iterable[Any]", self.levels)
        total: Any = 0
        for x, level, steps in zip(maps, levels, self.steps, strict=True):
            for convolution, (stride, factor) in zip(level, steps, strict=True):
                x = enlarged(convolution(x), factor, _positions(size, _ratio(stride, factor)))
            total = total + x
        return self.dropout(total)


@dataclass(frozen=True)
class UNet(Decoder):
    """Maps doubled step by step up to the image's own size, each time joined with the feature of
    that stride, where there is one, and convolved twice (Ronneberger et al. 2015, "U-Net", figure
    1; doublings by repetition and channels as in segmentation_models.pytorch).

    Attributes:
        channels: at the image's own size; twice as many with each halving, up to `most_channels`.
        most_channels: of any step.
    """

    channels: int = 16
    most_channels: int = 256

    def module(
        self, spec: BackboneSpec, channels: Sequence[int], strides: Sequence[Stride]
    ) -> DecoderModule:
        return _UNet(self, spec, channels, strides)

    def steps(self, strides: Sequence[Stride]) -> list[tuple[Stride, Stride, int | None, Layer]]:
        """Each step from deep to shallow: the stride it leaves, its factor, the feature it is
        joined with, and its convolutions."""
        steps: list[tuple[Stride, Stride, int | None, Layer]] = []
        stride = strides[-1]
        for index in range(len(strides) - 2, -1, -1):
            factor = _ratio(stride, strides[index])
            stride = strides[index]
            steps.append((stride, factor, index, self._layer(stride)))
        for step, factor in _doublings(stride, (1, 1)) if max(stride) > 1 else []:
            stride = _ratio(step, factor)
            steps.append((stride, factor, None, self._layer(stride)))
        return steps

    def _layer(self, stride: Stride) -> Layer:
        return Layer(min(self.most_channels, self.channels * max(stride)), 3)

    def reach(self, spec: BackboneSpec, strides: Sequence[Stride]) -> Reach:
        reach = spec.reaches[-1]
        for stride, factor, index, layer in self.steps(strides):
            reach = reach[0] + (factor[-1] - 1) * stride[-1], reach[1]
            if index is not None:
                reach = _widest([reach, spec.reaches[index]])
            reach = _along(spec, reach, (layer, layer), stride)
        return reach


class _UNet(DecoderModule):
    def __init__(
        self,
        options: UNet,
        spec: BackboneSpec,
        channels: Sequence[int],
        strides: Sequence[Stride],
    ) -> None:
        super().__init__()
        self.stride, width = (1, 1), channels[-1]
        self.steps = options.steps(strides)
        self.convolutions = nn.ModuleList()
        for _, _, index, layer in self.steps:
            beside = 0 if index is None else channels[index]
            self.convolutions.append(Chain((layer, layer), spec, width + beside))
            width = layer.channels
        self.channels = width

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        x = features[-1]
        for convolutions, (stride, factor, index, _) in zip(
            self.convolutions, self.steps, strict=True
        ):
            x = enlarged(x, factor, _positions(size, stride), "nearest")
            if index is not None:
                x = torch.cat([x, features[index]], 1)
            x = convolutions(x)
        return x


DECODERS: dict[str, type[Decoder]] = {
    "deeplabv3plus": DeepLabV3Plus,
    "fpn": SemanticFPN,
    "unet": UNet,
}


def decoder_of(given: "str | Decoder | Mapping[str, Any]") -> Decoder:
    """A decoder from its name in `DECODERS`, or from `decoder_to_dict`'s plain values.

    >>> decoder_of("unet"), decoder_of({"kind": "unet", "channels": 8}).channels
    (UNet(channels=16, most_channels=256), 8)

    Raises:
        InputError: an unknown name or field (the nearest is named), or a wrong value.
    """
    if isinstance(given, Decoder):
        return given
    fields = {"kind": given} if isinstance(given, str) else given
    if not isinstance(fields, Mapping) or not isinstance(fields.get("kind"), str):
        raise InputError(
            f"decoder={given!r} is no decoder; give a name ({', '.join(DECODERS)}), or one with "
            "its fields, as UNet(channels=8)"
        )
    fields = dict(fields)
    kind = fields.pop("kind")
    if kind not in DECODERS:
        raise InputError(f"decoder={kind!r} is not known; {nearest(kind, DECODERS)}")
    return from_fields(DECODERS[kind], fields)


def decoder_to_dict(decoder: Decoder) -> dict[str, Any]:
    """Plain values, ready for JSON; `decoder_of` reads them back.

    Raises:
        InputError: it is not in `DECODERS`, so that nobody could read it back.
    """
    kind = next((name for name, known in DECODERS.items() if known is type(decoder)), None)
    if kind is None:
        name = type(decoder).__name__
        raise InputError(f"no decoder of DECODERS is {name}; add it, as DECODERS['mine'] = {name}")
    values = dataclasses.asdict(decoder)  # type: ignore[call-overload]
    return {"kind": kind, **{n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}}


def enlarged(x: Tensor, factor: Stride, size: Sequence[int], mode: str = "bilinear") -> Tensor:
    """A map `(B, C, h, w)` made larger by whole factors, and cut to `size`."""
    # `functional.interpolate` takes a size or factors; both together spare the cut, which would tie
    # a captured graph to the sizes that need one.
    high, wide = map(float, factor)
    if max(factor) == 1:
        return x
    if mode == "nearest":
        return torch.ops.aten.upsample_nearest2d(x, size, high, wide)
    return torch.ops.aten.upsample_bilinear2d(x, size, False, high, wide)


def _positions(size: Sequence[int], stride: Stride) -> tuple[int, int]:
    """Positions of a map of this stride on an image of this size."""
    high, wide = (-(-length // step) for length, step in zip(size, stride, strict=True))
    return high, wide


def _ratio(coarse: Stride, fine: Stride) -> Stride:
    return coarse[0] // fine[0], coarse[1] // fine[1]


def _doublings(stride: Stride, target: Stride) -> list[tuple[Stride, Stride]]:
    """The steps from a stride to a finer one: each one's stride before it and its factor, 2 where
    that fits; one step of factor 1 where both are equal."""
    steps: list[tuple[Stride, Stride]] = []
    while stride != target or not steps:
        high, wide = (2 if ratio % 2 == 0 else ratio for ratio in _ratio(stride, target))
        factor = high, wide
        steps.append((stride, factor))
        stride = _ratio(stride, factor)
    return steps


def _widest(reaches: Sequence[Reach]) -> Reach:
    return max(before for before, _ in reaches), max(after for _, after in reaches)


def _along(spec: BackboneSpec, reach: Reach, layers: Sequence[Layer], stride: Stride) -> Reach:
    """How far is reached through layers on a map of this stride."""
    before, after = reach
    for layer in layers:
        behind, ahead = spec.reach(layer)
        before, after = before + behind * stride[-1], after + ahead * stride[-1]
    return before, after


def reach_enlarged(reach: Reach, coarse: Stride, fine: Stride) -> Reach:
    """How far is reached from a map that was made larger bilinearly, at most: a position at j lies
    between two of the coarse map, which stand less than 1.5 coarse strides away from it."""
    factor = coarse[-1] // fine[-1]
    if factor == 1:
        return reach
    return reach[0] + 1.5 * coarse[-1], reach[1] + 1.5 * coarse[-1]
