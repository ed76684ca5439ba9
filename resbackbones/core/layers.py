"""What a net is made of, in plain numbers and strings: parts, the layers among them, and stages.

A part is one operation between two tensors of `(B, C, *space)`. It knows the channels it leaves,
its stride, and how far it reads along the last axis (time, tokens, the frames of a spectrogram);
what it becomes is in `blocks.MODULES`. Receptive fields, strides and causality are folded over
parts.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resbackbones.errors import InputError, nearest

Axes = int | tuple[int, ...]  # one number for every axis, or one per axis
LARGEST = (
    65_536  # of any whole number here: what is larger is a slip, and no machine could build it
)


class Part:
    """One operation. A part of your own is a frozen dataclass with these fields or properties, and
    an entry in `blocks.MODULES` that makes its module, called `(x, context)`.

    Attributes:
        channels: channels it leaves.
        stride: a length L becomes ceil(L / stride).
        norm: whether the net's norm stands in it.
        activation: whether it ends in an activation.
        convolutions: how many stand in it, one after another.
    """

    channels: int
    stride: Axes = 1
    norm: bool = False
    activation: bool = False
    convolutions: int = 0

    def reach(self, causal: bool) -> tuple[float, float]:
        """Positions before and after its own that an output reads on the last axis; infinite where
        it reads all of them.

        Args:
            causal: whether the net pads its convolutions on the left only.
        """
        return 0, 0

    def inside(self) -> "tuple[Part, ...]":
        """The layers it is made of, whose kernels are checked as those of any layer."""
        return ()


@dataclass(frozen=True)
class Layer(Part):
    """One convolution with its norm and activation.

    Attributes:
        channels: output channels.
        kernel, stride, dilation: one number, or one per axis (time last). An even kernel has no
            centre: it must equal the stride (patches side by side) or run along a causal axis.
        groups: channel groups of the convolution.
        separable: a depthwise convolution of this kernel, then a 1x1 one (no norm between).
        norm, activation: whether the backbone's norm and activation go with the convolution.
        bias: None means "where no norm of activations makes it useless".
        centred: False lets the windows of an odd kernel, too, begin at their own position on each
            axis that has a stride: patches, which see no zeros before the first one.
    """

    channels: int
    kernel: Axes = 3
    stride: Axes = 1
    dilation: Axes = 1
    groups: int = 1
    separable: bool = False
    norm: bool = True
    activation: bool = True
    bias: bool | None = None
    centred: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def convolutions(self) -> int:  # type: ignore[override]
        return 1 + self.separable

    def reach(self, causal: bool) -> tuple[float, float]:
        extent = (last(self.kernel) - 1) * last(self.dilation)
        if causal:
            return extent, 0
        even = last(self.kernel) % 2 == 0
        if even or (not self.centred and last(self.stride) > 1):  # starts at its own position
            return 0, extent
        return extent // 2, extent // 2


@dataclass(frozen=True)
class Patch(Layer):
    """The layer of patches that takes a stage's stride: an output reads `kernel` positions from its
    own on, `dilation` apart, and where the stride became a dilation, patches overlap."""


@dataclass(frozen=True)
class Stem(Layer):
    """The first layer, or the last of the first layers.

    Attributes:
        pool: the stride of a 3-wide max pooling after it (1: none).
        zero_padded: whether the pooling sees zeros around its input (BiT), not only what is there.
        averaged: whether the pooling is a mean over `pool` positions side by side instead.
        before: layers before this one, as the deep stem of ResNet-D has (He et al. 2019).
    """

    pool: Axes = 1
    zero_padded: bool = False
    before: tuple[Layer, ...] = ()
    averaged: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sequence(self, "before", Layer)
        for name in ("zero_padded", "averaged"):
            if getattr(self, name) and set(per_axis(self.pool, 1)) == {1}:
                raise InputError(
                    f"Stem has {name}=True, which has no effect without a pooling; set pool=2, or "
                    "leave it out"
                )
        if self.zero_padded and self.averaged:
            raise InputError(
                "Stem has zero_padded=True and averaged=True, but a mean sees nothing around its "
                "input; use one of the two"
            )

    def layers(self) -> tuple[Layer, ...]:
        """All of them, in the order they run."""
        own = Layer(*(getattr(self, field.name) for field in dataclasses.fields(Layer)))
        return (*self.before, own)


@dataclass(frozen=True)
class NormActivation(Part):
    """The backbone's norm, then its activation, as far as each is asked for."""

    channels: int
    norm: bool = True
    activation: bool = True


@dataclass(frozen=True)
class Gate(Part):
    """The first half of the channels times the sigmoid of the second (Dauphin et al. 2017, section
    2): `channels` are left of twice as many."""

    channels: int
    activation: bool = True


@dataclass(frozen=True)
class Split(Part):
    """Channels in `scale` groups: the first stays, every other one is convolved together with what
    the one before it gave (Res2Net, Gao et al. 2019, section 3.1).

    Attributes:
        kernel, dilation: of each convolution.
    """

    channels: int
    kernel: Axes = 3
    dilation: Axes = 1
    scale: int = 4

    norm = True

    @property
    def convolutions(self) -> int:  # type: ignore[override]
        return self.scale - 1

    def reach(self, causal: bool) -> tuple[float, float]:
        return _through(self.inside(), causal)

    def inside(self) -> tuple[Layer, ...]:
        layer = Layer(self.channels // self.scale, self.kernel, 1, self.dilation)
        return (layer,) * (self.scale - 1)


@dataclass(frozen=True)
class SubSpectralNorm(Part):
    """A norm with statistics, weights and biases of its own for each of `bands` equal parts of the
    frequency axis (Chang et al. 2021, section 2.2)."""

    channels: int
    bands: int

    norm = True


@dataclass(frozen=True)
class Broadcast(Part):
    """What comes in, plus what a depthwise convolution along time and a 1x1 one make of its mean
    over frequency, the same at every frequency (Kim et al. 2021, section 2.2).

    Attributes:
        kernel, dilation: along time.
        dropout: of whole channels, at the end.
    """

    channels: int
    kernel: int = 3
    dilation: int = 1
    dropout: float = 0.0

    norm = True
    convolutions = 2

    def reach(self, causal: bool) -> tuple[float, float]:
        return _through(self.inside(), causal)

    def inside(self) -> tuple[Layer, Layer]:
        kernel, dilation = (1, self.kernel), (1, self.dilation)
        return (
            Layer(self.channels, kernel, 1, dilation, groups=self.channels),
            Layer(self.channels, 1, norm=False, activation=False),
        )


@dataclass(frozen=True)
class Dropout(Part):
    """Numbers left out in training, each with this probability."""

    channels: int
    probability: float


@dataclass(frozen=True)
class Attention(Part):
    """Channels scaled by a gate computed from their means over all of space: "se" (Hu et al. 2018)
    or "eca" (Wang et al. 2020)."""

    channels: int
    kind: str
    reduction: int
    bias: bool = True

    def reach(self, causal: bool) -> tuple[float, float]:
        return math.inf, math.inf


@dataclass(frozen=True)
class MaxPool(Part):
    """Max over 3 positions around every `stride`-th one, `dilation` apart.

    Attributes:
        kernel: 3, or 1 on an axis that is left alone.
        zero_padded: whether it sees zeros around its input, not only what is there.
    """

    channels: int
    kernel: Axes
    stride: Axes
    dilation: Axes = 1
    zero_padded: bool = False

    def reach(self, causal: bool) -> tuple[float, float]:
        extent = (last(self.kernel) - 1) * last(self.dilation) // 2
        return extent, extent


@dataclass(frozen=True)
class KMaxPool(Part):
    """Of the L numbers of each channel along the last axis the ceil(L / `stride`) largest, in the
    order they stand in (Kalchbrenner et al. 2014, section 3.2)."""

    channels: int
    stride: Axes

    def reach(self, causal: bool) -> tuple[float, float]:
        return math.inf, math.inf


@dataclass(frozen=True)
class AveragePool(Part):
    """Mean over `kernel` positions from every `stride`-th one on, `dilation` apart; a cell cut
    short by the end counts what it has."""

    channels: int
    kernel: Axes
    stride: Axes
    dilation: Axes = 1

    def reach(self, causal: bool) -> tuple[float, float]:
        return 0, (last(self.kernel) - 1) * last(self.dilation)


@dataclass(frozen=True)
class Blur(Part):
    """The weights 1/4, 1/2, 1/4 around every `stride`-th position, `dilation` apart, with zeros
    around the input: what is dropped was blurred into what stays (Zhang 2019, section 3).

    Attributes:
        kernel: 3, or 1 on an axis that is left alone.
    """

    channels: int
    kernel: Axes
    stride: Axes
    dilation: Axes = 1

    def reach(self, causal: bool) -> tuple[float, float]:
        extent = (last(self.kernel) - 1) * last(self.dilation) // 2
        return extent, extent


@dataclass(frozen=True)
class Subsample(Part):
    """Every `stride`-th position, then zero channels appended: no parameters (He et al. 2015,
    option A)."""

    channels: int
    stride: Axes


@dataclass(frozen=True)
class Stage:
    """`blocks` residual blocks of the same width; the first one carries the stride.

    Attributes:
        dilation: of the kernels in all blocks.
        first_dilation: in the first block, of what comes before its stride and carries it, where
            that differs: a stride of `dilation / first_dilation` was turned into a dilation.
    """

    channels: int
    blocks: int
    stride: Axes = 1
    kernel: Axes = 3
    dilation: Axes = 1
    first_dilation: Axes | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def entry_dilation(self) -> Axes:
        """The dilation up to the first block's stride."""
        return self.dilation if self.first_dilation is None else self.first_dilation

    def window(self, dims: int) -> tuple[tuple[int, ...], Axes]:
        """What takes this stage's stride looks at: as many positions per axis as the stride is, or
        was before it became a dilation, and how far apart they are.

        >>> Stage(8, 1, 2).window(2), Stage(8, 1, 1, dilation=4, first_dilation=2).window(1)
        (((2, 2), 1), ((2,), 2))
        """
        strides = per_axis(self.stride, dims)
        if self.first_dilation is None:
            return strides, 1
        whole, first = per_axis(self.dilation, dims), per_axis(self.first_dilation, dims)
        sizes = (s * (w // f) for s, w, f in zip(strides, whole, first, strict=True))
        return tuple(sizes), self.first_dilation


def _through(parts: Sequence[Part], causal: bool) -> tuple[float, float]:
    """How far parts without a stride reach one after another."""
    reaches = [part.reach(causal) for part in parts]
    return sum(before for before, _ in reaches), sum(after for _, after in reaches)


def last(value: Axes) -> int:
    """The number of the last axis.

    >>> last(3), last((2, 1))
    (3, 1)
    """
    return value[-1] if isinstance(value, tuple) else value


def per_axis(value: Axes, dims: int) -> tuple[int, ...]:
    """Spread one number over the axes; a tuple gives one number per axis.

    >>> per_axis(3, 2), per_axis((2, 1), 2)
    ((3, 3), (2, 1))
    """
    return value if isinstance(value, tuple) else (value,) * dims


def from_fields(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass from its fields as JSON has them, dataclasses among them included.

    Raises:
        InputError: a field it does not have (the nearest is named), one missing, or a wrong value.
    """
    check_names(kind, values)
    for field in dataclasses.fields(kind):
        missing = field.default is dataclasses.MISSING
        if missing and field.name not in values:
            raise InputError(f"{kind.__name__} needs {field.name}=, which is missing; add it")
    kinds = _field_kinds(kind)
    return kind(**{name: _from_json(kinds[name], value) for name, value in values.items()})


def _from_json(kind: Any, value: Any) -> Any:
    """A field's value: lists become tuples, and dicts the dataclass that the field holds."""
    inside = next((k for k in typing.get_args(kind) if dataclasses.is_dataclass(k)), None)
    if isinstance(value, Mapping) and isinstance(inside, type):
        return from_fields(inside, value)
    if not isinstance(value, list | tuple):
        return value
    return tuple(_from_json(kind, item) if isinstance(item, Mapping) else item for item in value)


def check_names(kind: type, values: Mapping[str, Any]) -> None:
    """Refuse names that are no fields, naming the nearest one."""
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise InputError(f"{kind.__name__} has no field {name!r}; {nearest(name, known)}")


def check_fields(owner: Any) -> None:
    """Refuse a value of the wrong kind where it is written, not where it is used. Fields of other
    kinds than numbers, strings and truth values are their owner's business."""
    for name, kind in _field_kinds(owner.__class__).items():
        value = getattr(owner, name)
        expected = _expected(name, kind, value)
        if expected:
            raise InputError(f"{type(owner).__name__} has {name}={value!r}; use {expected}")


def check_sequence(owner: Any, name: str, kind: type) -> None:
    """Refuse a field of another content than a sequence of `kind`, and keep it as a tuple."""
    given = getattr(owner, name)
    if not isinstance(given, list | tuple) or not all(isinstance(item, kind) for item in given):
        raise InputError(
            f"{name}={given!r} is no sequence of {kind.__name__}; give one, or the fields of a "
            "whole spec to BackboneSpec.from_dict"
        )
    object.__setattr__(owner, name, tuple(given))


@functools.cache
def _field_kinds(owner: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(owner)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner)}


def _expected(name: str, kind: Any, value: Any) -> str | None:
    """What a field of this kind should hold; None where it does."""
    if kind in (bool, bool | None):
        optional = kind is not bool
        right = type(value) is bool or (optional and value is None)
        return None if right else "True or False" + (" or None" if optional else "")
    if kind in (int, int | None, Axes, Axes | None):
        numbers = value if isinstance(value, tuple) and kind not in (int, int | None) else (value,)
        optional = kind in (int | None, Axes | None)
        if (value is None and optional) or (numbers and all(map(_whole, numbers))):
            return None
        what = f"whole numbers of 1 or more, up to {LARGEST}"
        return what + (", or None" if optional else "")
    if kind is float:
        share = name in ("dropout", "drop_path", "probability")
        right = type(value) in (int, float) and (0 <= value < 1 if share else 0 < value < math.inf)
        return None if right else "a share from 0 to below 1" if share else "a number above 0"
    return "a string" if kind is str and not isinstance(value, str) else None


def _whole(number: Any) -> bool:
    return type(number) is int and 1 <= number <= LARGEST
