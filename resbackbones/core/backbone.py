"""`Backbone`: a spec made into a net that returns one feature a stage."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resbackbones.core.blocks import (
    Bias,
    ConvLayer,
    Convolution,
    NormActivation,
    Residual,
    after,
)
from resbackbones.core.ops import mask, max_pool, per_axis, start_padding
from resbackbones.core.spec import Axes, BackboneSpec, resolve
from resbackbones.errors import InputError

# What else a backbone holds: norms, and the layers inside attention, which torch draws itself.
_TORCH_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.Linear, nn.Conv1d)


class Backbone(nn.Module):
    """A residual backbone on `(B, in_channels, *space)`.

    Attributes:
        spec: what it was made from.
        channels: channels of each feature, shallow to deep; the last one is the tail's.
        strides: input positions an output position of each feature stands for, one an axis.

    >>> net = backbone("resnet20", dims=1, in_channels=40)
    >>> [tuple(f.shape) for f in net(torch.zeros(2, 40, 100))]
    [(2, 16, 100), (2, 32, 50), (2, 64, 25)]
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.in_channels
        stride = (1,) * spec.dims
        self.stem: ConvLayer | None = None
        self.stem_pool = stride
        if spec.stem is not None:
            self.stem = ConvLayer(spec, width, spec.stem)
            self.stem_pool = per_axis(spec.stem.pool, spec.dims)
            stride = _times(stride, self.stem.stride, self.stem_pool)
            width = spec.stem.channels

        total = sum(stage.blocks for stage in spec.stages)
        channels, strides = [], []
        self.stages = nn.ModuleList()
        position = 0
        for stage in spec.stages:
            blocks = nn.ModuleList()
            for index in range(stage.blocks):
                first = index == 0 and spec.downsample == "stride"
                blocks.append(
                    Residual(spec, width, stage, stage.stride if first else 1, position, total)
                )
                width = stage.channels
                position += 1
            self.stages.append(blocks)
            stride = _times(stride, per_axis(stage.stride, spec.dims))
            channels.append(width)
            strides.append(stride)

        # A pre-activated block leaves a raw sum, so the net ends in a norm and an activation.
        pre = spec.order == "pre"
        self.final = NormActivation(spec, width, norm=True, activation=True) if pre else None
        self.tail = nn.ModuleList()
        for tail_layer in spec.tail:
            self.tail.append(ConvLayer(spec, width, tail_layer))
            width = tail_layer.channels
            stride = _times(stride, per_axis(tail_layer.stride, spec.dims))
        channels[-1], strides[-1] = width, stride
        self.channels: tuple[int, ...] = tuple(channels)
        self.strides: tuple[tuple[int, ...], ...] = tuple(strides)
        self.reset_parameters()

    def forward(
        self, x: Tensor, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, ...]:
        """Compute one feature a stage, shallow to deep.

        Args:
            x: `(B, in_channels, *space)`.
            lengths: `(B,)`, real positions of each item on the last axis; None means all.

        Returns:
            Features `(B, channels[i], *space_i)`, `space_i = ceil(space / strides[i])`. What
            stands before an item's length is what the item alone would give (in evaluation); what
            stands past it is 0.

        Raises:
            InputError: x of another shape, or lengths that do not fit it.
        """
        spec = self.spec
        if x.ndim != spec.dims + 2 or x.shape[1] != spec.in_channels:
            space = "T" if spec.dims == 1 else "H, W"
            raise InputError(
                f"the input has shape {tuple(x.shape)}, but this backbone takes "
                f"(B, {spec.in_channels}, {space})"
            )
        padding = start_padding(x, lengths)
        if self.stem is not None:
            x = self.stem(x, padding)
            padding = after(padding, self.stem.stride)
        if max(self.stem_pool) > 1:
            x = max_pool(x, self.stem_pool, padding)
            padding = after(padding, self.stem_pool)
        features = []
        for stage, blocks in zip(spec.stages, self.stages, strict=True):
            stride = per_axis(stage.stride, spec.dims)
            if spec.downsample == "max" and max(stride) > 1:
                x = max_pool(x, stride, padding)
                padding = after(padding, stride)
            for block in cast("Iterable[Residual]", blocks):
                x = block(x, padding)
                padding = after(padding, block.stride)
            features.append(mask(x, padding))
        if self.final is not None:
            x = self.final(x, padding)
        for layer in cast("Iterable[ConvLayer]", self.tail):
            x = layer(x, padding)
            padding = after(padding, layer.stride)
        features[-1] = mask(x, padding)
        return tuple(features)

    @property
    def blocks(self) -> list[tuple[str, Residual]]:
        """Every residual block with its name, shallow to deep."""
        return [(n, m) for n, m in self.named_modules() if isinstance(m, Residual)]

    def output_lengths(self, lengths: Tensor | Sequence[int]) -> tuple[Tensor, ...]:
        """Real positions of each feature on the last axis, int64 `(B,)` a stage."""
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
        return tuple(
            torch.div(lengths + s[-1] - 1, s[-1], rounding_mode="floor") for s in self.strides
        )

    @property
    def receptive_field(self) -> float:
        """Positions of the last axis that one position of the last feature depends on; infinite
        where something averages over the whole axis (attention, group norm)."""
        spec = self.spec
        if spec.attention != "none" or spec.norm == "group":
            return math.inf
        field, jump = 1, 1

        def look(kernel: Axes, stride: Axes, dilation: Axes = 1) -> None:
            nonlocal field, jump
            field += (_last(kernel) - 1) * _last(dilation) * jump
            jump *= _last(stride)

        def pool(stride: Axes) -> None:
            look(3 if _last(stride) > 1 else 1, stride)

        if spec.stem is not None:
            look(spec.stem.kernel, spec.stem.stride, spec.stem.dilation)
            pool(spec.stem.pool)
        for stage in spec.stages:
            stride = stage.stride
            if spec.downsample == "max":
                pool(stride)
                stride = 1
            for _ in range(stage.blocks):
                before = jump
                shortcut = field
                if spec.shortcut == "average" and spec.skip == "identity":
                    shortcut += (_last(stride) - 1) * jump
                for layer in spec.branch_layers(stage, stride):
                    look(layer.kernel, layer.stride, layer.dilation)
                field, jump = max(field, shortcut), before * _last(stride)
                stride = 1
        for layer in spec.tail:
            look(layer.kernel, layer.stride, layer.dilation)
        return field

    @cached_property
    def parameter_difference(self) -> int:
        """Trainable parameters of this net's residual twin minus its own (the twin has the same
        spec but `skip="identity"`): what a parameter-free comparison must know."""
        with torch.device("meta"):
            twin = Backbone(replace(self.spec, skip="identity"))
            own = Backbone(self.spec)
        return count_parameters(twin) - count_parameters(own)

    def reset_parameters(self) -> None:
        """Draw every parameter anew as the spec's `init` says, and restart running statistics."""
        drawn = {m.conv for m in self.modules() if isinstance(m, Convolution)}
        for module in self.modules():
            if isinstance(module, Convolution):
                _draw(module.conv)
            elif isinstance(module, Bias):
                nn.init.zeros_(module.value)
            elif isinstance(module, _TORCH_LAYERS) and module not in drawn:
                module.reset_parameters()
        blocks = [block for _, block in self.blocks]
        for block in blocks:
            if block.scale is not None and block.scale_start is not None:
                nn.init.constant_(block.scale, block.scale_start)
            if self.spec.init != "he":
                _start_at_zero(block, self.spec, len(blocks))


def backbone(name_or_spec: str | BackboneSpec, **changes: Any) -> Backbone:
    """Make a backbone from a name in `SPECS` or a spec, with fields of the spec replaced.

    >>> backbone("resnet18", in_channels=1, skip="none").parameter_difference
    173824

    Raises:
        InputError: no such name or field (the nearest is named), or a refused combination.
    """
    return Backbone(resolve(name_or_spec, **changes))


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_macs(module: nn.Module, *example: Any) -> int:
    """Multiply-adds of the convolutions and matrix products of one forward pass.

    Args:
        example: the inputs, or one mapping of keyword inputs. Running statistics stay untouched.

    >>> count_macs(nn.Linear(3, 2), torch.zeros(1, 3))
    6
    """
    was_training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            if len(example) == 1 and isinstance(example[0], Mapping):
                module(**example[0])
            else:
                module(*example)
    finally:
        for part, training in was_training.items():
            part.training = training
    return counter.get_total_flops() // 2


def _draw(conv: nn.Module) -> None:
    """He initialisation over the outputs a weight feeds (He et al. 2015b, section 2.2); a depthwise
    convolution has no activation after it and so no gain."""
    weight: Tensor = conv.weight  # type: ignore[assignment]
    groups: int = conv.groups  # type: ignore[assignment]
    fan_out = weight.shape[0] // groups * weight[0, 0].numel()
    depthwise = groups == weight.shape[0] and groups > 1
    drawn = torch.empty_like(weight)
    with torch.no_grad():
        nn.init.normal_(drawn, std=math.sqrt((1 if depthwise else 2) / fan_out))
        if hasattr(conv, "parametrizations"):
            conv.weight = drawn  # weight norm splits it into direction and length
        else:
            weight.copy_(drawn)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


def _start_at_zero(block: Residual, spec: BackboneSpec, total: int) -> None:
    """`zero_last`: the branch's last multiplication starts at 0. `fixup`: so does its last
    convolution, and those before shrink by total^(-1/(2m - 2)) (Zhang et al. 2019, section 3)."""
    layers: list[Any] = list(block.branch)
    last_conv = layers[-1].convolutions[-1].conv
    if spec.init == "zero_last":
        # Pre-activated branches end in the convolution itself.
        norm = None if spec.order == "pre" else layers[-1].around.norm
        nn.init.zeros_((last_conv if norm is None else norm).weight)
        return
    with torch.no_grad():
        for layer in layers[:-1]:
            layer.convolutions[-1].conv.weight.mul_(total ** (-1 / (2 * len(layers) - 2)))
    nn.init.zeros_(last_conv.weight)


def _times(*strides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(each) for each in zip(*strides, strict=True))


def _last(value: Axes) -> int:
    return value[-1] if isinstance(value, tuple) else value
