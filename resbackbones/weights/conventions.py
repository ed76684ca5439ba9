"""What differs between nets whose tensors are alike: strides, activations, the order of channels,
and how many of them come in."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from resbackbones.core.backbone import NORMS, Backbone
from resbackbones.core.blocks import ACTIVATIONS
from resbackbones.weights.layouts import KNOWN, Layout, differences
from resbackbones.weights.slots import Slot

# Fields of a spec that leave no trace in a state dict.
UNSEEN = (
    "activation", "norm_eps", "norm_groups", "weight_standardized", "shortcut_activation",
    "downsample", "stem.zero_padded",
)  # fmt: skip


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A stem's weight `(O, I, h, w)` for another number of input channels: for one of them the sum
    (grey is red, green and blue alike), else repeated and rescaled, so that an input which is the
    same everywhere gives what it gave."""
    given = weight.shape[1]
    weight = weight.float()
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % given] * (given / channels)


def centred_orders(
    backbone: Backbone, slots: Iterable[Slot]
) -> dict[str, tuple[tuple[int, Tensor], ...]]:
    """How to reorder tensors of a net whose option A shortcuts put half of their zero channels
    before the others, for one that puts all of them behind.

    Returns:
        For a slot's key, axes and the channels they take, in our order; empty where the shortcuts
        are others.
    """
    spec = backbone.spec
    if spec.shortcut != "pad" or spec.skip == "none" or spec.stem is None:
        return {}
    orders = [torch.arange(spec.stem.channels)]  # as they flow into each stage, and out of the last
    for stage in spec.stages:
        passed, whole = orders[-1], torch.arange(stage.channels)
        left = (stage.channels - len(passed)) // 2
        orders.append(torch.cat([passed + left, whole[:left], whole[left + len(passed) :]]))
    slots = list(slots)
    last = {(slot.stage, slot.block, slot.role): slot.index for slot in slots}
    found = {}
    for slot in slots:
        into, out = orders[slot.stage + (slot.block > 0)], orders[slot.stage + 1]
        first = slot.index == 0
        ends = slot.index == last[slot.stage, slot.block, slot.role]
        axes: tuple[tuple[int, Tensor], ...] = ()
        match slot.role, slot.leaf:
            case _, "num_batches_tracked":
                pass
            case "conv", _:
                axes = ((1, into),) * first + ((0, out),) * ends
            case "norm", _ if spec.order == "pre":  # before the convolution
                axes = ((0, into),) * first
            case "norm", _:
                axes = ((0, out),) * ends
            case "tail.norm", _:
                axes = ((0, orders[-1]),)
            case "head.linear", "weight":
                axes = ((1, orders[-1]),)
        if axes:
            found[slot.key] = axes
    return found


def unlike_modules(
    backbone: Backbone,
    theirs: nn.Module,
    pairs: Mapping[str, nn.Module],
    head: tuple[str, ...] = (),
) -> tuple[list[str], list[str]]:
    """Compare two nets module by module.

    Args:
        backbone: ours.
        theirs: the other net.
        pairs: names of its modules, and those of ours that take their place.
        head: names of what is its head's, whose activations are its own.

    Returns:
        Clauses about what makes it another net (strides, dilations, activations), and a sentence
        about what makes it a slightly different one (what is added to a variance).
    """
    # A net with an output stride of its own has dilations where the other one has strides.
    dilated = any(stage.dilation != 1 for stage in backbone.spec.stages)
    other, added = [], []
    for name, ours in pairs.items():
        given = theirs.get_submodule(name)
        if isinstance(ours, nn.Conv2d) and isinstance(given, nn.Conv2d):
            if given.stride != ours.stride and not (dilated and given.stride > ours.stride):
                other.append(f"{name} has stride {given.stride}, not {ours.stride}")
            for field in () if dilated else ("dilation", "padding"):
                theirs_is, ours_is = getattr(given, field), getattr(ours, field)
                if theirs_is != ours_is:
                    other.append(f"{name} has {field} {theirs_is}, not {ours_is}")
        elif isinstance(ours, nn.Conv2d) and isinstance(given, nn.Conv1d):
            for field in ("stride", "dilation"):
                theirs_is, ours_is = getattr(given, field), getattr(ours, field)[1:]
                if theirs_is != ours_is:
                    other.append(f"{name} has {field} {theirs_is}, not {ours_is}")
        elif isinstance(ours, NORMS) and getattr(given, "eps", ours.eps) != ours.eps:
            added.append(f"{name} adds {given.eps} to a variance, not {ours.eps} as this model")
    activation = backbone.spec.activation
    gates = {"relu"} if backbone.spec.attention == "se" else set()
    above = {name.partition(".")[0] for name in head}
    used = {
        type(module).__name__.lower().removesuffix("activation")
        for name, module in theirs.named_modules()
        if name.partition(".")[0] not in above
    }
    used &= set(ACTIVATIONS)
    if used and not {activation} <= used <= {activation} | gates:
        other.append(f"it activates by {' and '.join(sorted(used))}, not by {activation} alone")
    more = f" (and so {len(added) - 1} more)" if len(added) > 1 else ""
    return other, [f"{added[0]}{more}: the difference is small"] if added else []


def unlike_specs(backbone: Backbone, layout: Layout, spec: Mapping[str, Any] | None) -> list[str]:
    """Sentences about what two specs compute differently with the same tensors.

    Args:
        backbone: ours.
        layout: theirs.
        spec: theirs, where it is one of ours.
    """
    ours = backbone.spec.to_dict()
    if spec is not None:
        found = list(differences(ours, spec).values())
    else:
        like = dict.fromkeys(name for family in layout.families for name in family.like)
        nets = (differences(ours, KNOWN[name].to_dict()) for name in like)
        # A mean before a projection leaves no trace either; other shortcuts have other tensors.
        fields = (*UNSEEN, "shortcut") if backbone.spec.shortcut == "average" else UNSEEN
        unseen = [[net[field] for field in fields if field in net] for net in nets]
        found = min(unseen, key=len, default=[])
    if not found:
        return []
    return [f"the tensors fit, but this model computes something else: {', '.join(found)}"]


def unlike_edges(backbone: Backbone, layout: Layout, theirs: nn.Module | None = None) -> list[str]:
    """A sentence about the ends of a sequence, where SpeechBrain's convolutions see a mirror image
    of it, unless made otherwise (None where it is not known)."""
    if not layout.mirrored:
        return []
    modes = (
        {getattr(module, "padding_mode", "") for module in theirs.modules()}
        if theirs
        else {"reflect"}
    )
    if "reflect" not in modes:
        return []
    return [
        "the convolutions of this model see zeros beyond the ends of a sequence, those of "
        "SpeechBrain a mirror image: near the ends features differ, and a little everywhere, as "
        "attention looks at all of them"
    ]


def unlike_blurs(backbone: Backbone, theirs: nn.Module | None) -> list[str]:
    """A sentence about the edges, where our blurs may not be theirs (None where it is not known).

    Ours see zeros beyond them, so that padding changes nothing; timm's see a mirror image, unless
    made with `aa_layer="blurpc"`."""
    if backbone.spec.downsample != "blur":
        return []
    if theirs is not None and not any(
        getattr(module, "pad_mode", "") == "reflect" for module in theirs.modules()
    ):
        return []
    return [
        "the blurs of this model see zeros beyond the edges of a picture, those of timm (but for "
        "aa_layer='blurpc') a mirror image: near the edges features differ"
    ]
