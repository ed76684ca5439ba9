"""What a residual backbone is, as data: numbers and strings, frozen, to JSON and back.

A `BackboneSpec` that matches a row of `REFUSALS` cannot be made.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from resbackbones.core.branches import Basic, Branch, branch_from_dict, branch_to_dict
from resbackbones.core.layers import (
    Attention,
    AveragePool,
    Axes,
    Blur,
    Dropout,
    KMaxPool,
    Layer,
    MaxPool,
    NormActivation,
    Part,
    Patch,
    Stage,
    Stem,
    Subsample,
    check_fields,
    check_sequence,
    from_fields,
    per_axis,
)
from resbackbones.core.plan import Block, Plan
from resbackbones.core.refusals import REFUSALS, normalises
from resbackbones.errors import InputError, nearest

CHOICES: dict[str, tuple[str, ...]] = {
    "order": ("post", "pre", "none"),
    "skip": ("identity", "none"),
    "branch_scale": ("none", "rezero", "skipinit", "layerscale"),
    "init": ("he", "zero_last", "fixup"),
    "shortcut": ("projection", "pad", "average", "always", "none"),
    "norm": ("batch", "group", "layer", "weight", "none"),
    "activation": ("relu", "gelu", "silu", "tanh"),
    "attention": ("none", "se", "eca"),
    "downsample": ("stride", "blur", "max", "k_max", "patch"),
    "tail_reads": ("last", "all"),
}


@dataclass(frozen=True)
class BackboneSpec:
    """A residual backbone: stem, stages of `act(shortcut(x) + scale * drop(branch(x)))`, tail.

    Attributes:
        stages: from shallow to deep.
        dims: 1 for sequences `(B, C, T)`, 2 for images and spectrograms `(B, C, H, W)`.
        in_channels: channels of the input.
        stem: first layer or layers, or None.
        tail: layers after the last stage; the last feature is the tail's output.
        branch: what stands between the skip's two ends, as `Bottleneck(groups=32)`.
        order: "post" (activation after the sum, He et al. 2015), "pre" (norm and activation before
            each convolution, He et al. 2016) or "none" ("post" with nothing after the sum).
        skip: "identity", or "none" for the plain control with the same branches.
        branch_scale: "rezero" (a scalar from 0, Bachlechner 2020), "skipinit" (a scalar from
            1/sqrt(blocks), De & Smith 2020), "layerscale" (a number per channel, Touvron 2021).
        init: "he" (He et al. 2015b), "zero_last" (the branch starts at 0, Goyal 2017), "fixup"
            (Zhang 2019: no norm, scalar biases and scales).
        shortcut: where shapes differ: "projection" (1x1), "pad" (subsample, append zero channels:
            He's option A, no parameters), "average" (mean pool, then 1x1: ResNet-D) or "none" (the
            branch alone, BC-ResNet); "always" projects on every block (He's option C).
        shortcut_activation: an activation after the projection (TC-ResNet).
        norm: "batch", "group" (Wu & He 2018), "layer" (over channels), "weight" (Salimans 2016) or
            "none".
        norm_after_activation: a layer is a convolution, its activation, then its norm (ECAPA-TDNN,
            Desplanques et al. 2020). With order="pre" the norm stands before each convolution and
            the activation after it (Tang & Lin 2018); no norm opens the first block, which reads
            what the stem has left, normalised or not.
        norm_affine: whether a norm has learnt weights and biases.
        norm_eps: added to a variance before its root.
        norm_groups: groups of a group norm; None gives as many as leave 8 channels or more in each,
            at most 32. Over a position or two, the variance of few numbers is mostly rounding: with
            fewer than 8 per group, what padding may change grows accordingly.
        weight_standardized: every convolution's weight has mean 0 and variance 1 per output channel
            (Qiao et al. 2019), which goes well with a group norm (BiT, Kolesnikov et al. 2020).
        attention: "se" (Hu 2018) or "eca" (Wang 2020) at the end of each branch.
        attention_reduction: channels over squeezed channels in "se".
        attention_bias: whether the maps of "se" have biases.
        attention_everywhere: attention in the layers of stem and tail too, between norm and
            activation (Citrinet, Majumdar et al. 2021).
        dropout: after the activations inside a branch.
        drop_path: stochastic depth at the last block, rising from 0 (Huang 2016).
        causal: position t of the last axis sees only positions <= t.
        downsample: a stage's stride is taken by its first convolution ("stride"), by a blur after
            that one and its norm and activation, as is the stem's pooling's ("blur", Zhang 2019),
            by a 3-wide max pooling before its first block ("max"), there too by keeping of a
            sequence the largest numbers of each channel in their order ("k_max", Kalchbrenner
            2014), or by a norm and a convolution of patches side by side there, which also takes a
            change of width ("patch", ConvNeXt).
        tail_reads: the feature of the "last" stage, or those of "all" stages side by side, which
            then have one resolution (ECAPA-TDNN).

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
    branch: Branch = Basic()  # noqa: RUF009 (frozen)
    order: str = "post"
    skip: str = "identity"
    branch_scale: str = "none"
    init: str = "he"
    shortcut: str = "projection"
    shortcut_activation: bool = False
    norm: str = "batch"
    norm_after_activation: bool = False
    norm_affine: bool = True
    norm_eps: float = 1e-5
    norm_groups: int | None = None
    weight_standardized: bool = False
    activation: str = "relu"
    attention: str = "none"
    attention_reduction: int = 16
    attention_bias: bool = True
    attention_everywhere: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    causal: bool = False
    downsample: str = "stride"
    tail_reads: str = "last"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                given = getattr(self, name)
                raise InputError(f"{name}={given!r} is not known; {nearest(given, allowed)}")
        self._check_kinds()
        if self.dims not in (1, 2):
            raise InputError(f"dims={self.dims} is not known; use 1 for sequences or 2 for images")
        # Checked before they are put together, so that a sentence names what was written.
        written: list[Part | Stage] = [*self.stages, *self.tail]
        for piece in [*written, self.stem] if self.stem else written:
            self._check_axes(piece)
        for why, refused in REFUSALS.items():
            if refused(self):
                raise InputError(why)
        for part in self.plan.parts():
            for each in (part, *part.inside()):
                self._check_axes(each)
        self._check_unread()
        self._check_causal()

    def _check_kinds(self) -> None:
        check_sequence(self, "stages", Stage)
        check_sequence(self, "tail", Layer)
        if not self.stages:
            raise InputError("stages is empty; a backbone needs at least one Stage")
        if self.stem is not None and not isinstance(self.stem, Stem):
            raise InputError(f"stem={self.stem!r} is no Stem; give a Stem, or None for no stem")
        if not isinstance(self.branch, Branch):
            raise InputError(
                f"branch={self.branch!r} is no branch; give one with its fields, as branch="
                "Bottleneck(groups=32)"
            )

    def _check_axes(self, part: Part | Stage) -> None:
        owner = type(part).__name__
        for field in ("kernel", "stride", "dilation", "first_dilation", "pool"):
            value = getattr(part, field, 1)
            if isinstance(value, tuple) and len(value) != self.dims:
                raise InputError(
                    f"{owner} has {field}={value}, but dims={self.dims} needs one number or "
                    f"{self.dims}"
                )
        if isinstance(part, Stage) and part.first_dilation is not None:
            whole, first = (per_axis(v, self.dims) for v in (part.dilation, part.first_dilation))
            if any(w % f for w, f in zip(whole, first, strict=True)):
                raise InputError(
                    f"Stage has first_dilation={part.first_dilation}, which does not divide its "
                    f"dilation={part.dilation}: the stride that became a dilation is their quotient"
                )
        if not isinstance(part, Layer) or isinstance(part, Patch):
            return
        kernel, stride, dilation = (
            per_axis(value, self.dims) for value in (part.kernel, part.stride, part.dilation)
        )
        for axis, size in enumerate(kernel):
            # The causal axis is padded on one side only, so its kernel needs no centre.
            free = size % 2 == 1 or (self.causal and axis == self.dims - 1)
            if not free and (size != stride[axis] or dilation[axis] != 1):
                raise InputError(
                    f"{owner} has an even kernel {part.kernel}, which has no centre; use an odd "
                    "one, or one as wide as its stride (even ones of any stride exist for the last "
                    "axis of causal nets)"
                )

    def _check_unread(self) -> None:
        for field, reader, read in (
            ("attention_reduction", "attention='se'", self.attention == "se"),
            ("attention_bias", "attention='se'", self.attention == "se"),
            ("attention_everywhere", "attention='se'", self.attention != "none"),
            ("norm_groups", "norm='group'", self.norm == "group"),
            ("norm_after_activation", "norm='batch'", normalises(self)),
            ("norm_affine", "norm='batch'", normalises(self)),
            ("tail_reads", "a tail", bool(self.tail)),
        ):
            default = next(f.default for f in dataclasses.fields(self) if f.name == field)
            if getattr(self, field) != default and not read:
                raise InputError(
                    f"{field}={getattr(self, field)} has no effect without {reader}; leave it out "
                    f"or set {reader}"
                )

    def _check_causal(self) -> None:
        if not self.causal:
            return
        for part in self.plan.parts():
            ahead = self.reach(part)[1]
            if ahead:
                what = self._named(part)
                many = "all later positions" if ahead == math.inf else f"{ahead} later position(s)"
                raise InputError(
                    f"causal=True with {what} looks ahead: it reads {many}; choose another, or "
                    "causal=False"
                )

    def _named(self, part: Part) -> str:
        """A part that reads far, by the field that asks for it."""
        if self.norm == "group" and part.norm:
            return "norm='group'"
        average = self.shortcut == "average"
        return {
            Attention: f"attention={self.attention!r}",
            MaxPool: "max pooling",
            AveragePool: f"shortcut={self.shortcut!r}" if average else "a mean over cells",
            Blur: f"downsample={self.downsample!r}",
            KMaxPool: f"downsample={self.downsample!r}",
        }.get(type(part), type(part).__name__)

    @cached_property
    def plan(self) -> Plan:
        """The parts the net consists of.

        Raises:
            InputError: a branch that does not end in its stage's channels.
        """
        width = self.in_channels
        stem: tuple[Part, ...] = ()
        if self.stem is not None:
            width = self.stem.channels
            size = per_axis(self.stem.pool, self.dims)
            pool = self._max_pool(width, size, size, 1, self.stem.zero_padded)
            if self.stem.averaged:
                pool = (AveragePool(width, size, size),)
            stem = (*self._attended(self.stem.layers()), *pool)
        stages: list[tuple[tuple[Part, ...], tuple[Block, ...]]] = []
        for stage in self.stages:
            down: tuple[Part, ...] = ()
            size, apart = stage.window(self.dims)
            if self.downsample == "max":
                down = self._max_pool(width, size, stage.stride, apart)
            elif self.downsample == "k_max" and max(size) > 1:
                down = (KMaxPool(width, stage.stride),)
            elif self.downsample == "patch" and (max(size) > 1 or width != stage.channels):
                down = (
                    NormActivation(width, activation=False),
                    Patch(
                        stage.channels,
                        size,
                        stage.stride,
                        apart,
                        norm=self.norm == "weight",
                        activation=False,
                        bias=True,
                    ),
                )
                width = stage.channels
            rest = replace(stage, stride=1, first_dilation=None)
            first = stage if self.downsample in ("stride", "blur") else rest
            blocks = [self._block(first, width, opens=not stages)]
            width = stage.channels
            if stage.blocks > 1:
                blocks += [self._block(rest, width)] * (stage.blocks - 1)
            stages.append((down, tuple(blocks)))
        if self.tail_reads == "all":
            width = sum(stage.channels for stage in self.stages)
        # A pre-activated block leaves a raw sum, so the net ends in a norm and an activation.
        final = (self._before(width),) if self.order == "pre" else ()
        return Plan(stem, tuple(stages), (*final, *self._attended(self.tail)))

    def _attended(self, layers: tuple[Layer, ...]) -> tuple[Part, ...]:
        """The layers of stem or tail, with attention in each where it is everywhere."""
        if not self.attention_everywhere:
            return layers
        parts: list[Part] = []
        for layer in layers:
            parts.append(replace(layer, activation=False))
            parts.append(self._attention(layer.channels))
            if layer.activation:
                parts.append(NormActivation(layer.channels, norm=False))
        return tuple(parts)

    def _attention(self, width: int) -> Attention:
        return Attention(width, self.attention, self.attention_reduction, self.attention_bias)

    def _before(self, width: int, norm: bool = True) -> NormActivation:
        """What stands before a convolution in pre-activated blocks."""
        return NormActivation(width, norm, activation=not self.norm_after_activation)

    def _block(self, stage: Stage, in_channels: int, opens: bool = False) -> Block:
        """A block; the one that `opens` the net reads what the stem has seen to."""
        size, apart = stage.window(self.dims)
        blurs = self.downsample == "blur" and max(size) > 1
        asked = replace(stage, stride=size) if blurs else stage  # as before it became a dilation
        written = tuple(self.branch.parts(asked, in_channels))
        if not written or written[-1].channels != stage.channels:
            ends = f"ends in {written[-1].channels} channels" if written else "is empty"
            raise InputError(
                f"the {type(self.branch).__name__} branch {ends}, but its stage has "
                f"{stage.channels}; its last part must leave as many"
            )
        # The first norm and activation, which a projection shares.
        bare = self.order != "pre" or (self.norm_after_activation and opens)
        pre = () if bare else (self._before(in_channels),)
        branch: list[Part] = []
        width = in_channels
        for index, part in enumerate(written):
            if self.order == "pre" and isinstance(part, Layer):
                before = self._before(width, part.norm)
                part = replace(
                    part,
                    norm=part.norm and self.norm == "weight",
                    activation=part.activation and self.norm_after_activation,
                )
                if index:
                    self._append(branch, before)
            carries = blurs and max(per_axis(part.stride, self.dims)) > 1
            if carries:
                if not isinstance(part, Layer):
                    raise InputError(
                        "downsample='blur' blurs after the Layer that takes the stride, but in "
                        f"{self.branch} a {type(part).__name__} does; use downsample='stride'"
                    )
                part = replace(part, stride=1)
            self._append(branch, part)
            width = part.channels
            if carries:
                branch.append(Blur(width, _three(size), stage.stride, apart))
        if self.attention != "none":
            branch.append(self._attention(width))
        return Block(pre, tuple(branch), self._shortcut(stage, in_channels))

    def _append(self, branch: list[Part], part: Part) -> None:
        branch.append(part)
        if self.dropout and part.activation:
            branch.append(Dropout(part.channels, self.dropout))

    def _shortcut(self, stage: Stage, in_channels: int) -> tuple[Part, ...] | None:
        channels, stride = stage.channels, stage.stride
        size, apart = stage.window(self.dims)
        same = in_channels == channels and max(size) == 1
        if self.skip == "none" or (self.shortcut == "none" and not same):
            return None
        if same and self.shortcut != "always":
            return ()
        if self.shortcut == "pad":
            return (Subsample(channels, stride),)
        average = self.shortcut == "average" and max(size) > 1
        layer = Layer(
            channels,
            1,
            1 if average else stride,
            # Weight norm belongs to the branch; the published nets project with a plain 1x1, and a
            # pre-activated block projects what is normalised already.
            norm=self.order != "pre" and self.norm != "weight",
            activation=self.shortcut_activation,
        )
        pool = AveragePool(in_channels, size, stride, apart)
        return (pool, layer) if average else (layer,)

    def _max_pool(
        self,
        channels: int,
        size: tuple[int, ...],
        stride: Axes,
        apart: Axes,
        zero_padded: bool = False,
    ) -> tuple[Part, ...]:
        if max(size) == 1:
            return ()
        kernel = _three(size)
        if self.downsample == "blur":
            dense = MaxPool(channels, kernel, 1, zero_padded=zero_padded)
            return dense, Blur(channels, kernel, stride, apart)
        return (MaxPool(channels, kernel, stride, apart, zero_padded),)

    def reach(self, part: Part) -> tuple[float, float]:
        """Positions before and after its own that a part reads on the last axis in this net; a
        group norm's statistics run over all of them."""
        if part.norm and self.norm == "group":
            return math.inf, math.inf
        return part.reach(self.causal)

    @property
    def receptive_field(self) -> float:
        """Positions of the last axis that one position of the last feature depends on; infinite
        where something averages over the whole axis (attention, group norm)."""
        before, after = self.reaches[-1]
        return before + after + 1

    @property
    def reaches(self) -> tuple[tuple[float, float], ...]:
        """Input positions before and after its own (its index times its stride) that a position of
        each feature depends on, on the last axis."""
        return self.plan.reaches(self.reach)

    @property
    def unbounded(self) -> tuple[str, ...]:
        """What looks at the whole last axis, by the fields that ask for it.

        >>> BackboneSpec((Stage(8, 1),), norm="group", attention="eca").unbounded
        ("norm='group'", "attention='eca'")
        """
        far = (part for part in self.plan.parts() if math.inf in self.reach(part))
        return tuple(dict.fromkeys(map(self._named, far)))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts: ready for JSON.

        Raises:
            InputError: its branch is not in `BRANCHES`, so that nobody could read it back.
        """
        values = dataclasses.asdict(self)
        values["branch"] = branch_to_dict(self.branch)
        return _plain(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BackboneSpec":
        """The inverse of `to_dict`. A branch by its name alone has its fields beside it.

        Raises:
            InputError: a field no spec has (the nearest is named), one missing, or a value that
                does not exist.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{values!r} is no spec; give a dict of a BackboneSpec's fields")
        return from_fields(cls, branch_from_dict(values))


def _three(size: tuple[int, ...]) -> tuple[int, ...]:
    """A kernel 3 wide on the axes that have a stride."""
    return tuple(3 if each > 1 else 1 for each in size)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
