"""`REFUSALS`, the one table of combinations of a spec's fields that do not exist.

It is read by `BackboneSpec`, which rests on this file; hence a spec is of `Any` kind here.
"""

from collections.abc import Callable
from typing import Any

from resbackbones.core.branches import Broadcast, Res2
from resbackbones.core.layers import Gate, Part, per_axis

# The compatibility table: why a combination does not exist, and how to recognise it.
REFUSALS: dict[str, Callable[[Any], bool]] = {
    "a broadcast branch takes a mean over frequency, and dims=1 has no such axis; use dims=2": (
        lambda s: s.dims == 1 and _broadcasts(s)
    ),
    "a broadcast branch normalises its bands apart by norm='batch' alone; use that, or "
    "branch=Broadcast(bands=1)": lambda s: (
        _broadcasts(s) and s.branch.bands > 1 and s.norm != "batch"
    ),
    "a broadcast branch cannot start at 0 (init='zero_last' or 'fixup'): what is not broadcast "
    "goes around its last convolution; use init='he'": lambda s: _broadcasts(s) and s.init != "he",
    "norm='layer' after the activation of a Res2 branch divides by the deviation of the few "
    "channels of a group, which ReLU often leaves all at 0: gradients explode; use another norm": (
        lambda s: s.norm == "layer" and s.norm_after_activation and isinstance(s.branch, Res2)
    ),
    "shortcut='none' leaves blocks with nothing around their branch, which is dead where branches "
    "start at 0 or small, or are dropped; use init='he', branch_scale='none' and drop_path=0, or "
    "another shortcut": (
        lambda s: (
            s.shortcut == "none"
            and bool(_starts_near_zero(s) or s.drop_path or s.branch_scale != "none")
        )
    ),
    "skip='none' with init='zero_last' is a dead net: every branch starts at 0 and nothing goes "
    "around it; use init='he'": lambda s: s.skip == "none" and s.init == "zero_last",
    "skip='none' with init='fixup' is a dead net: every branch ends in a zero convolution and "
    "nothing goes around it; use init='he'": lambda s: s.skip == "none" and s.init == "fixup",
    "skip='none' with branch_scale='rezero' is a dead net: every branch is multiplied by 0 and "
    "nothing goes around it; use branch_scale='none'": (
        lambda s: s.skip == "none" and s.branch_scale == "rezero"
    ),
    "skip='none' with branch_scale='layerscale' is a dead net: every branch is multiplied by "
    "nearly 0 and nothing goes around it; use branch_scale='none'": (
        lambda s: s.skip == "none" and s.branch_scale == "layerscale"
    ),
    "skip='none' with branch_scale='skipinit' is a dead net where no norm undoes the scale: "
    "signals shrink by 1/sqrt(blocks) per block; use branch_scale='none' or another norm": (
        lambda s: s.skip == "none" and s.branch_scale == "skipinit" and not normalises(s)
    ),
    "skip='none' with activation='gelu' or 'silu' and without a norm of activations is a dead "
    "net: signals shrink with every layer; use 'relu' or 'tanh', or another norm": (
        lambda s: s.skip == "none" and s.activation in ("gelu", "silu") and not normalises(s)
    ),
    "skip='none' with a gated branch and without a norm of activations is a dead net: every gate "
    "halves the signal; use another norm": (
        lambda s: s.skip == "none" and not normalises(s) and _gates(s)
    ),
    "activation='gelu' or 'silu' after the sum is a dead net without a norm of activations, and "
    "where branches start near 0 (init='zero_last', branch_scale='rezero' or 'layerscale'): it "
    "shrinks a small signal block by block; use order='pre' or another activation": (
        lambda s: (
            s.activation in ("gelu", "silu")
            and s.order == "post"
            and (not normalises(s) or _starts_near_zero(s))
        )
    ),
    "skip='none' with drop_path is a dead net whenever a branch is dropped: nothing goes around "
    "it; use drop_path=0": lambda s: s.skip == "none" and s.drop_path > 0,
    "init='zero_last' with branch_scale='rezero' never learns: both factors of the branch start "
    "at 0, so neither has a gradient; use one of the two": (
        lambda s: s.init == "zero_last" and s.branch_scale == "rezero"
    ),
    "init='zero_last' with norm='weight' divides by the norm of a zero weight; use init='he' or "
    "another norm": lambda s: s.init == "zero_last" and s.norm == "weight",
    "weight_standardized=True needs a norm of activations, as norm='group': a weight of variance 1 "
    "makes a signal grow by the root of how many numbers it sums": (
        lambda s: s.weight_standardized and not normalises(s)
    ),
    "init='zero_last' with weight_standardized=True divides by the deviation of a zero weight "
    "where a branch ends in a convolution; use init='he'": (
        lambda s: (
            s.init == "zero_last"
            and s.weight_standardized
            and (s.order == "pre" or not _convolutions(s)[-1].norm)
        )
    ),
    "weight_standardized=True with norm_after_activation=True and activation='tanh' saturates: a "
    "sum of weights of variance 1 is large, and no norm stands between; use activation='relu'": (
        lambda s: s.weight_standardized and s.norm_after_activation and s.activation == "tanh"
    ),
    "init='zero_last' with norm_affine=False has nothing that could start at 0 where a branch ends "
    "in a norm; use init='he', or norm_affine=True": (
        lambda s: (
            s.init == "zero_last"
            and not s.norm_affine
            and s.order != "pre"
            and _convolutions(s)[-1].norm
        )
    ),
    "tail_reads='all' puts the features of all stages side by side, which takes one resolution; "
    "give no stage but the first a stride": (
        lambda s: (
            s.tail_reads == "all"
            and any(set(per_axis(stage.stride, s.dims)) != {1} for stage in s.stages[1:])
        )
    ),
    "downsample='k_max' keeps the largest numbers along one axis, and dims=2 has two; use "
    "downsample='max', or dims=1": lambda s: s.downsample == "k_max" and s.dims == 2,
    "downsample='k_max' takes a stride by keeping the largest numbers, which has no dilation; use "
    "downsample='stride' or 'max' where a stride became a dilation": (
        lambda s: s.downsample == "k_max" and any(stage.first_dilation for stage in s.stages)
    ),
    "init='fixup' replaces the norm and needs norm='none' (weight norm would divide by the norm of "
    "a zero weight)": lambda s: s.init == "fixup" and s.norm != "none",
    "init='fixup' brings its own branch scale; use branch_scale='none'": (
        lambda s: s.init == "fixup" and s.branch_scale != "none"
    ),
    "init='fixup' is undefined for a branch of one convolution (its exponent is -1/(2m - 2)); use "
    "a branch of two or more": lambda s: s.init == "fixup" and len(_convolutions(s)) < 2,
    "a branch that ends in ReLU never learns when it starts at 0 (init='zero_last' or 'fixup'): "
    "ReLU has no slope there; use init='he', order='pre' or another activation": (
        lambda s: (
            s.init != "he"
            and s.activation == "relu"
            and _convolutions(s)[-1].activation
            and not (s.norm_after_activation and s.order != "pre")
        )
    ),
}


def normalises(spec: Any) -> bool:
    return spec.norm in ("batch", "group", "layer")


def _broadcasts(spec: Any) -> bool:
    return isinstance(spec.branch, Broadcast)


def _gates(spec: Any) -> bool:
    return any(isinstance(part, Gate) for part in spec.plan.stages[0][1][0].branch)


def _starts_near_zero(spec: Any) -> bool:
    return spec.init != "he" or spec.branch_scale in ("rezero", "layerscale")


def _convolutions(spec: Any) -> list[Part]:
    """One entry per convolution of the first block's branch: the part it stands in."""
    _, blocks = spec.plan.stages[0]
    return [part for part in blocks[0].branch for _ in range(part.convolutions)]
