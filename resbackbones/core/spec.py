"""What a residual backbone is, as data: numbers and strings, frozen, to JSON and back.

`REFUSALS` is the one table of combinations that do not exist; a `BackboneSpec` that matches a row
cannot be made.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from resbackbones.errors import InputError, nearest

Axes = int | tuple[int, ...]  # one number for every axis, or one an axis
T = TypeVar("T")

CHOICES: dict[str, tuple[str, ...]] = {
    "order": ("post", "pre", "none"),
    "skip": ("identity", "none"),
    "branch_scale": ("none", "rezero", "skipinit", "layerscale"),
    "init": ("he", "zero_last", "fixup"),
    "shortcut": ("projection", "pad", "average", "always"),
    "norm": ("batch", "group", "layer", "weight", "none"),
    "activation": ("relu", "gelu", "silu", "tanh"),
    "attention": ("none", "se", "eca"),
    "downsample": ("stride", "max"),
}


@dataclass(frozen=True)
class Layer:
    """One convolution with its norm and activation.

    Attributes:
        channels: output channels.
        kernel, stride, dilation: one number, or one an axis (time last).
        groups: channel groups of the convolution.
        separable: a depthwise convolution of this kernel, then a 1x1 one (no norm between).
        norm, activation: whether the backbone's norm and activation go with the convolution.
        bias: None means "where no norm of activations makes it useless".
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

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True)
class Stem(Layer):
    """The first layer, with the stride of a 3-wide max pooling after it (`pool=1`: none)."""

    pool: Axes = 1


@dataclass(frozen=True)
class Stage:
    """`blocks` residual blocks of the same width; the first one carries the stride."""

    channels: int
    blocks: int
    stride: Axes = 1
    kernel: Axes = 3
    dilation: Axes = 1

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True)
class BackboneSpec:
    """A residual backbone: stem, stages of `act(shortcut(x) + scale * drop(branch(x)))`, tail.

    Attributes:
        stages: from shallow to deep.
        dims: 1 for sequences `(B, C, T)`, 2 for images and spectrograms `(B, C, H, W)`.
        in_channels: channels of the input.
        stem: first layer, or None.
        tail: layers after the last stage; the last feature is the tail's output.
        branch: what stands between the skip's two ends, a name in `BRANCHES`.
        order: "post" (activation after the sum, He et al. 2015), "pre" (norm and activation before
            each convolution, He et al. 2016) or "none" ("post" with nothing after the sum).
        skip: "identity", or "none" for the plain control with the same branches.
        branch_scale: "rezero" (a scalar from 0, Bachlechner 2020), "skipinit" (a scalar from
            1/sqrt(blocks), De & Smith 2020), "layerscale" (a number a channel, Touvron 2021).
        init: "he" (He et al. 2015b), "zero_last" (the branch starts at 0, Goyal 2017), "fixup"
            (Zhang 2019: no norm, scalar biases and scales).
        shortcut: where shapes differ: "projection" (1x1), "pad" (subsample, append zero channels:
            He's option A, no parameters), "average" (mean pool, then 1x1: ResNet-D); "always"
            projects on every block (He's option C).
        shortcut_activation: an activation after the projection (TC-ResNet).
        norm: "batch", "group", "layer" (over channels), "weight" (Salimans 2016) or "none".
        attention: "se" (Hu 2018) or "eca" (Wang 2020) at the end of each branch.
        attention_reduction: channels over squeezed channels in "se".
        groups: channel groups of the branch's spatial convolutions (ResNeXt).
        bottleneck_ratio: inner over outer channels of a bottleneck.
        repeats: layers in a separable branch.
        dropout: after the activations inside a branch.
        drop_path: stochastic depth at the last block, rising from 0 (Huang 2016).
        causal: position t of the last axis sees only positions <= t.
        downsample: a stage's stride is taken by its first convolution ("stride") or by a 3-wide
            max pooling before its first block ("max").

    Raises:
        InputError: an unknown value, a field no part of this spec reads, or a refused combination.

    >>> spec = BackboneSpec(stages=(Stage(8, 2), Stage(16, 2, stride=2)), stem=Stem(8))
    >>> BackboneSpec.from_dict(spec.to_dict()) == spec
    True
    """

    stages: tuple[Stage, ...]
    dims: int = 2
    in_channels: int = 3
    stem: Stem | None = None
    tail: tuple[Layer, ...] = ()
    branch: str = "basic"
    order: str = "post"
    skip: str = "identity"
    branch_scale: str = "none"
    init: str = "he"
    shortcut: str = "projection"
    shortcut_activation: bool = False
    norm: str = "batch"
    norm_eps: float = 1e-5
    activation: str = "relu"
    attention: str = "none"
    attention_reduction: int = 16
    groups: int = 1
    bottleneck_ratio: float = 0.25
    repeats: int = 1
    dropout: float = 0.0
    drop_path: float = 0.0
    causal: bool = False
    downsample: str = "stride"

    def __post_init__(self) -> None:
        _check_fields(self)
        for name in ("stages", "tail"):  # a list is welcome, but a frozen spec keeps tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.stages:
            raise InputError("stages is empty; a backbone needs at least one Stage")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                given = getattr(self, name)
                raise InputError(f"{name}={given!r} is not known; {nearest(given, allowed)}")
        self._check_branch_fields()
        self._check_axes()
        for why, refused in REFUSALS.items():
            if refused(self):
                raise InputError(why)

    def _check_axes(self) -> None:
        if self.dims not in (1, 2):
            raise InputError(f"dims={self.dims} is not known; use 1 for sequences or 2 for images")
        branches = [layer for s in self.stages for layer in self.branch_layers(s, s.stride)]
        parts: list[Layer | Stage] = [
            *self.stages,
            *branches,
            *self.tail,
            *([self.stem] if self.stem else []),
        ]
        for part in parts:
            for field in ("kernel", "stride", "dilation", "pool"):
                value = getattr(part, field, 1)
                if isinstance(value, tuple) and len(value) != self.dims:
                    raise InputError(
                        f"{type(part).__name__} has {field}={value}, but dims={self.dims} needs "
                        f"one number or {self.dims}"
                    )
            kernels = part.kernel if isinstance(part.kernel, tuple) else (part.kernel,) * self.dims
            # The causal axis is padded on one side only, so its kernel may be even.
            if any(size % 2 == 0 for size in (kernels[:-1] if self.causal else kernels)):
                raise InputError(
                    f"{type(part).__name__} has an even kernel {part.kernel}, which has no centre; "
                    "use an odd one (even ones exist for the last axis of causal nets)"
                )

    def _check_branch_fields(self) -> None:
        from resbackbones.core.blocks import BRANCHES  # a branch is code; a spec only names it

        if self.branch not in BRANCHES:
            raise InputError(
                f"branch={self.branch!r} is not known; {nearest(self.branch, BRANCHES)}"
            )
        reads = set(inspect.signature(BRANCHES[self.branch]).parameters)
        for field in ("groups", "bottleneck_ratio", "repeats"):
            if getattr(self, field) != _defaults(type(self))[field] and field not in reads:
                raise InputError(
                    f"{field}={getattr(self, field)} has no effect: the {self.branch} branch does "
                    f"not read it; leave {field} out"
                )
        if self.attention != "se" and self.attention_reduction != 16:
            raise InputError(
                f"attention_reduction={self.attention_reduction} has no effect with "
                f"attention={self.attention!r}; leave it out or set attention='se'"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts: ready for JSON."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BackboneSpec":
        """The inverse of `to_dict`.

        Raises:
            InputError: a field no spec has, naming the nearest one.
        """
        values = dict(values)
        _check_names(cls, values)
        if isinstance(values.get("stem"), Mapping):
            values["stem"] = _part(Stem, values["stem"])
        for field, part in (("stages", Stage), ("tail", Layer)):
            if field in values:
                items = values[field]
                values[field] = tuple(
                    _part(part, i) if isinstance(i, Mapping) else i for i in items
                )
        return cls(**values)

    def branch_layers(self, stage: Stage, stride: Axes) -> tuple[Layer, ...]:
        """The layers of one block's branch."""
        from resbackbones.core.blocks import BRANCHES

        branch = BRANCHES[self.branch]
        takes = set(inspect.signature(branch).parameters)
        options = {f: getattr(self, f) for f in ("groups", "bottleneck_ratio", "repeats")}
        options = {name: value for name, value in options.items() if name in takes}
        return tuple(branch(stage.channels, stage.kernel, stride, stage.dilation, **options))

    @property
    def pool_strides(self) -> bool:
        """Whether any 3-wide max pooling stands in the net."""
        stem = self.stem is not None and self.stem.pool not in (1, (1,) * self.dims)
        strided = any(s.stride not in (1, (1,) * self.dims) for s in self.stages)
        return stem or (self.downsample == "max" and strided)


# The compatibility table: why a combination does not exist, and how to recognise it.
REFUSALS: dict[str, Callable[[BackboneSpec], bool]] = {
    "skip='none' with init='zero_last' is a dead net: every branch starts at 0 and nothing goes "
    "around it; use init='he'": lambda s: s.skip == "none" and s.init == "zero_last",
    "skip='none' with init='fixup' is a dead net: every branch ends in a zero convolution and "
    "nothing goes around it; use init='he'": lambda s: s.skip == "none" and s.init == "fixup",
    "skip='none' with branch_scale='rezero' is a dead net: every branch is multiplied by 0 and "
    "nothing goes around it; use branch_scale='none'": (
        lambda s: s.skip == "none" and s.branch_scale == "rezero"
    ),
    "skip='none' with drop_path is a dead net whenever a branch is dropped: nothing goes around "
    "it; use drop_path=0": lambda s: s.skip == "none" and s.drop_path > 0,
    "init='zero_last' with branch_scale='rezero' never learns: both factors of the branch start "
    "at 0, so neither has a gradient; use one of the two": (
        lambda s: s.init == "zero_last" and s.branch_scale == "rezero"
    ),
    "init='zero_last' with norm='weight' divides by the norm of a zero weight; use init='he' or "
    "another norm": lambda s: s.init == "zero_last" and s.norm == "weight",
    "init='fixup' replaces the norm and needs norm='none' (weight norm would divide by the norm of "
    "a zero weight)": lambda s: s.init == "fixup" and s.norm != "none",
    "init='fixup' brings its own branch scale; use branch_scale='none'": (
        lambda s: s.init == "fixup" and s.branch_scale != "none"
    ),
    "init='fixup' is undefined for a branch of one convolution (its exponent is -1/(2m - 2)); use "
    "a branch of two or more": (
        lambda s: s.init == "fixup" and len(s.branch_layers(s.stages[0], 1)) < 2
    ),
    "a branch that ends in ReLU never learns when it starts at 0 (init='zero_last' or 'fixup'): "
    "ReLU has no slope there; use init='he', order='pre' or another activation": (
        lambda s: (
            s.init != "he"
            and s.order != "pre"
            and s.activation == "relu"
            and s.branch_layers(s.stages[0], 1)[-1].activation
        )
    ),
    "causal=True with attention looks ahead: it averages over all of time; use attention='none'": (
        lambda s: s.causal and s.attention != "none"
    ),
    "causal=True with norm='group' looks ahead: its statistics run over all of time; use "
    "norm='batch', 'layer', 'weight' or 'none'": lambda s: s.causal and s.norm == "group",
    "causal=True with max pooling looks ahead: its window is symmetric; use a strided "
    "convolution (downsample='stride', pool=1)": lambda s: s.causal and s.pool_strides,
    "causal=True with shortcut='average' looks ahead: its cell reaches past the position it is "
    "added to; use shortcut='projection'": lambda s: s.causal and s.shortcut == "average",
}


def resolve(name_or_spec: str | BackboneSpec, **changes: Any) -> BackboneSpec:
    """Look a spec up by name and replace fields in it.

    >>> resolve("resnet18", dims=1, in_channels=40).in_channels
    40

    Raises:
        InputError: no such name or field (the nearest is named), or a refused combination.
    """
    from resbackbones.core.zoo import SPECS

    if isinstance(name_or_spec, BackboneSpec):
        spec = name_or_spec
    elif name_or_spec in SPECS:
        spec = SPECS[name_or_spec]
    else:
        raise InputError(f"no spec is called {name_or_spec!r}; {nearest(name_or_spec, SPECS)}")
    _check_names(BackboneSpec, changes)
    return dataclasses.replace(spec, **changes)


def _defaults(kind: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(kind)}


def _check_names(kind: type, values: Mapping[str, Any]) -> None:
    for name in values:
        if name not in _defaults(kind):
            raise InputError(
                f"{kind.__name__} has no field {name!r}; {nearest(name, _defaults(kind))}"
            )


def _part(kind: type[T], values: Mapping[str, Any]) -> T:
    _check_names(kind, values)
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


_MINIMUM = dict.fromkeys(
    ("channels", "kernel", "stride", "dilation", "groups", "pool", "blocks", "in_channels"), 1
) | dict.fromkeys(("repeats", "attention_reduction"), 1)


def _check_fields(part: Any) -> None:
    """Refuse a value of the wrong kind where it is written, not where it is used."""
    owner = type(part).__name__
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name in _MINIMUM:
            numbers = value if isinstance(value, tuple) and field.type == Axes else (value,)
            if not all(type(n) is int and n >= _MINIMUM[field.name] for n in numbers):
                raise InputError(
                    f"{owner} has {field.name}={value!r}; use whole numbers of 1 or more"
                )
        elif field.name in ("dropout", "drop_path") and not 0 <= value < 1:
            raise InputError(f"{owner} has {field.name}={value!r}; use a share from 0 to below 1")
        elif field.name in ("norm_eps", "bottleneck_ratio") and not value > 0:
            raise InputError(f"{owner} has {field.name}={value!r}; use a number above 0")
