"""Specs of finer features: strides turned into dilations."""

import itertools
import operator
from dataclasses import replace

from resbackbones.core.layers import Axes, Stage, last, per_axis
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError


def with_output_stride(spec: BackboneSpec, stride: int) -> BackboneSpec:
    """The same net with features no coarser than `stride`: strides beyond it become dilations (Yu &
    Koltun 2016; Chen et al. 2017, section 3.1), of convolutions, poolings, means, blurs and patches
    alike. Its weights fit; each of its outputs at a position the strided net has is that net's
    output there, unless something looks at all positions (attention, group norm).

    >>> from resbackbones.core.zoo import SPECS
    >>> [(s.stride, s.dilation) for s in with_output_stride(SPECS["resnet50"], 16).stages]
    [(1, 1), (2, 1), (2, 1), (1, 2)]

    Raises:
        InputError: a stride the net does not pass through, or a stride taken by something other
            than a convolution where a dilation of that one's own cannot be told from the stride's,
            or by k-max pooling, which has no dilation.
    """
    reached = [1] * spec.dims
    for part in spec.plan.stem:
        reached = [r * s for r, s in zip(reached, per_axis(part.stride, spec.dims), strict=True)]
    steps = [reached[-1], *(last(stage.stride) for stage in spec.stages)]
    dilated = [1] * spec.dims  # what the strides taken out so far multiply a dilation by
    stages = []
    for stage in spec.stages:
        before = list(dilated)
        strides = list(per_axis(stage.stride, spec.dims))
        for axis, taken in enumerate(strides):
            if reached[axis] * taken <= stride:
                reached[axis] *= taken
            else:
                dilated[axis] *= taken
                strides[axis] = 1
        if max(dilated) > 1:
            _check_dilatable(spec, stage, max(strides) > 1)
            first, dilation = (
                _scaled(stage.entry_dilation, before),
                _scaled(stage.dilation, dilated),
            )
            stage = replace(
                stage,
                stride=_simple(strides),
                dilation=dilation,
                first_dilation=None if first == dilation else first,
            )
        stages.append(stage)
    if any(r != stride for r in reached):
        raise InputError(
            f"the net does not pass through stride {stride}, but through "
            f"{', '.join(map(str, itertools.accumulate(steps, operator.mul)))}"
        )
    tail = tuple(replace(layer, dilation=_scaled(layer.dilation, dilated)) for layer in spec.tail)
    return replace(spec, stages=tuple(stages), tail=tail)


def _check_dilatable(spec: BackboneSpec, stage: Stage, strided: bool) -> None:
    """Refuse what `Stage.window` would not see: a window of a stage with a dilation of its own, or
    with a stride that stays behind one that was taken out."""
    taker = {"max": "a max pooling", "patch": "patches", "blur": "a blur"}.get(spec.downsample)
    if taker is None and spec.shortcut == "average" and spec.skip == "identity":
        taker = "the mean of its shortcut"
    own = set(per_axis(stage.dilation, spec.dims)) != {1} and stage.first_dilation is None
    if taker and max(stage.window(spec.dims)[0]) > 1 and (own or strided):
        raise InputError(
            f"the stride of {stage} is taken by {taker}, and beside it stands a dilation or a "
            "stride that stays; use downsample='stride' and another shortcut than 'average'"
        )


def _scaled(dilation: Axes, factors: list[int]) -> Axes:
    each = per_axis(dilation, len(factors))
    return _simple([d * f for d, f in zip(each, factors, strict=True)])


def _simple(values: list[int]) -> Axes:
    return values[0] if len(set(values)) == 1 else tuple(values)
