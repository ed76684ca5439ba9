"""What may stand between the skip's two ends, as data.

A branch is a frozen dataclass with the fields it needs and a method that says its parts. The spec's
order, norm, activation, causality and padding apply to any branch alike. One of your own:

    @dataclass(frozen=True)
    class Mine(Branch):
        factor: int = 2

        def parts(self, stage, in_channels):
            return Layer(self.factor * stage.channels, 1), Layer(stage.channels, activation=False)

    BRANCHES["mine"] = Mine
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resbackbones.core import layers
from resbackbones.core.layers import (
    Gate,
    Layer,
    Part,
    Split,
    Stage,
    SubSpectralNorm,
    check_fields,
    from_fields,
    per_axis,
)
from resbackbones.errors import InputError, nearest


class Branch:
    """The base of all branches: a subclass is a frozen dataclass of numbers and strings."""

    def __post_init__(self) -> None:
        check_fields(self)

    def parts(self, stage: Stage, in_channels: int) -> Sequence[Part]:
        """The parts of one block, in the order they run.

        Args:
            stage: the numbers of this block: its channels, which the last part must leave, kernel,
                and stride, which one part takes. What comes before the stride, and what takes it,
                is dilated by `stage.entry_dilation`, what comes after by `stage.dilation`.
            in_channels: channels that come in.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Basic(Branch):
    """Two convolutions (He et al. 2015, figure 5 left)."""

    groups: int = 1

    def parts(self, stage: Stage, in_channels: int) -> Sequence[Part]:
        channels, kernel = stage.channels, stage.kernel
        return (
            Layer(channels, kernel, stage.stride, stage.entry_dilation, self.groups),
            Layer(channels, kernel, 1, stage.dilation, self.groups, activation=False),
        )


@dataclass(frozen=True)
class Bottleneck(Branch):
    """1x1 down, a (grouped) convolution that carries the stride, 1x1 up (He et al. 2015, figure 5
    right; the stride as in torchvision's "v1.5"; Xie et al. 2017 for groups).

    Attributes:
        ratio: inner over outer channels.
        groups: channel groups of the middle convolution.
    """

    ratio: float = 0.25
    groups: int = 1

    def parts(self, stage: Stage, in_channels: int) -> Sequence[Part]:
        inner = max(self.groups, int(stage.channels * self.ratio))
        return (
            Layer(inner, 1),
            Layer(inner, stage.kernel, stage.stride, stage.entry_dilation, self.groups),
            Layer(stage.channels, 1, activation=False),
        )


@dataclass(frozen=True)
class Separable(Branch):
    """`repeats` depthwise-separable convolutions, the last one carrying the stride (QuartzNet,
    Kriman et al. 2020; Citrinet, Majumdar et al. 2021)."""

    repeats: int = 1

    def parts(self, stage: Stage, in_channels: int) -> Sequence[Part]:
        channels, kernel, dilation = stage.channels, stage.kernel, stage.entry_dilation
        inner = Layer(channels, kernel, 1, dilation, separable=True)
        carrier = Layer(channels, kernel, stage.stride, dilation, separable=True, activation=False)
        return (*(inner,) * (self.repeats - 1), carrier)


@dataclass(frozen=True)
class Temporal(Branch):
    """Two dilated convolutions, each followed by its activation (Bai et al. 2018, figure 1b)."""

    def parts(self, stage: Stage, in_channels: int) -> Sequence[Part]:
        channels, kernel = stage.channels, stage.kernel
        return (
            Layer(channels, kernel, stage.stride, stage.entry_dilation),
            Layer(channels, kernel, 1, stage.dilation),
        )


@dataclass(frozen=True)
class Gated(Branch):
    """One convolution, half of whose channels gate the other half (GLU, Dauphin et al. 2017,
    section 2)."""

    def parts(self, stage: Stage, in_channels: int) -> Sequence[Part]:
        channels, dilation = stage.channels, stage.entry_dilation
        return (
            Layer(2 * channels, stage.kernel, stage.stride, dilation, activation=False),
            Gate(channels),
        )


@dataclass(frozen=True)
class Inverted(Branch):
    """A depthwise convolution with a norm, then 1x1 up, activation, 1x1 down (ConvNeXt, Liu et al.
    2022, figure 4).

    Attributes:
        ratio: inner over outer channels.
    """

    ratio: float = 4.0

    def parts(self, stage: Stage, in_channels: int) -> Sequence[Part]:
        inner = max(1, int(stage.channels * self.ratio))
        return (
            Layer(
                in_channels,
                stage.kernel,
                stage.stride,
                stage.entry_dilation,
                groups=in_channels,
                activation=False,
                bias=True,
            ),
            Layer(inner, 1, norm=False, bias=True),
            Layer(stage.channels, 1, norm=False, activation=False, bias=True),
        )


@dataclass(frozen=True)
class Res2(Branch):
    """1x1, a hierarchy of convolutions between groups of channels, 1x1 (Res2Net, Gao et al. 2019,
    figure 2; as wide inside as outside, as in ECAPA-TDNN, Desplanques et al. 2020, figure 1). The
    first 1x1 takes the stride.

    Attributes:
        scale: groups of channels.
        activation: whether the last 1x1 has one too, as in ECAPA-TDNN.
    """

    scale: int = 4
    activation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale == 1:
            raise InputError("Res2 has scale=1, which leaves nothing to convolve; use 2 or more")

    def parts(self, stage: Stage, in_channels: int) -> Sequence[Part]:
        channels = stage.channels
        if channels % self.scale:
            raise InputError(
                f"Res2 has scale={self.scale}, which does not divide {channels} channels; choose "
                "one that divides every width"
            )
        return (
            Layer(channels, 1, stage.stride),
            Split(channels, stage.kernel, stage.dilation, self.scale),
            Layer(channels, 1, activation=self.activation),
        )


@dataclass(frozen=True)
class Broadcast(Branch):
    """A depthwise convolution along frequency, and on top of it, the same at every frequency, what
    one along time makes of its mean (BC-ResNet, Kim et al. 2021, figure 2); before both a 1x1 layer
    where the width changes. On `(B, C, F, T)`: the kernel, stride and dilation of a stage are
    frequency's and time's.

    Attributes:
        bands: parts of the frequency axis that are normalised apart; they divide what is left of
            it in every block.
        dropout: of whole channels of what is broadcast.
    """

    bands: int = 5
    dropout: float = 0.1

    def parts(self, stage: Stage, in_channels: int) -> Sequence[Part]:
        channels = stage.channels
        high, wide = per_axis(stage.kernel, 2)
        layer = Layer(
            channels,
            (high, 1),
            stage.stride,
            (per_axis(stage.entry_dilation, 2)[0], 1),
            groups=channels,
            norm=self.bands == 1,
            activation=False,
        )
        return (
            *((Layer(channels, 1),) if in_channels != channels else ()),
            layer,
            *((SubSpectralNorm(channels, self.bands),) if self.bands > 1 else ()),
            layers.Broadcast(channels, wide, per_axis(stage.dilation, 2)[1], self.dropout),
        )


BRANCHES: dict[str, type[Branch]] = {
    "basic": Basic,
    "bottleneck": Bottleneck,
    "separable": Separable,
    "temporal": Temporal,
    "gated": Gated,
    "inverted": Inverted,
    "res2": Res2,
    "broadcast": Broadcast,
}

# Fields of a branch, where a dict has them beside the branch's name, and their values when unset.
_BESIDE: dict[str, tuple[str, Any]] = {
    "groups": ("groups", 1),
    "bottleneck_ratio": ("ratio", 0.25),
    "repeats": ("repeats", 1),
}


def branch_to_dict(branch: Branch) -> dict[str, Any]:
    """A branch's name in `BRANCHES`, as "kind", and its fields.

    Raises:
        InputError: it is not in `BRANCHES`, so that nobody could read it back.
    """
    kind = next((name for name, known in BRANCHES.items() if known is type(branch)), None)
    if kind is None:
        name = type(branch).__name__
        raise InputError(f"no branch of BRANCHES is {name}; add it, as BRANCHES['mine'] = {name}")
    return {"kind": kind, **dataclasses.asdict(branch)}  # type: ignore[call-overload]


def branch_from_dict(values: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's fields with the branch among them made: from its own dict, or from its name alone
    with its fields beside it.

    Raises:
        InputError: a branch that `BRANCHES` does not know, or a field it does not have.
    """
    values = dict(values)
    branch = values.get("branch", "basic")
    if isinstance(branch, str):
        beside = {name: values.pop(name) for name in _BESIDE if name in values}
        known = getattr(BRANCHES.get(branch), "__dataclass_fields__", ())
        branch = {"kind": branch}
        for name, value in beside.items():
            field, unset = _BESIDE[name]
            if field in known or value != unset:
                branch[field] = value
    if isinstance(branch, Mapping) and isinstance(branch.get("kind"), str):
        fields = dict(branch)
        kind = fields.pop("kind")
        if kind not in BRANCHES:
            raise InputError(f"branch={kind!r} is not known; {nearest(kind, BRANCHES)}")
        values["branch"] = from_fields(BRANCHES[kind], fields)
    return values
