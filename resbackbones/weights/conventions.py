"""What differs between nets whose tensors are alike: strides, activations, the order of channels,
and how many of them come in."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from resbackbones.core.backbone import NORMS, Backbone
from resbackbones.core.blocks import ACTIVATIONS
from resbackbones.weights.layouts import Layout, Slot, differences

# Fields of a spec that leave no trace in a state dict.
UNSEEN = ("activation", "norm_eps", "shortcut_activation", "downsample")


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
    orders = [
        torch.arange(spec.stem.channels)
    ]  # of the channels that flow into each stage, and out
    for stage in spec.stages:
        before = orders[-1]
        extra = stage.channels - len(before)
        left = extra // 2
        outside = torch.arange(stage.channels)
        added = torch.cat([outside[:left], outside[left + len(before) :]])
        orders.append(torch.cat([before + left, added]))
    slots = list(slots)
    last = {(s.stage, s.block, s.role): s.index for s in slots}
    found: dict[str, tuple[tuple[int, Tensor], ...]] = {}
    for slot in slots:
        into = orders[slot.stage + (slot.block > 0)]
        out = orders[slot.stage + 1]
        ends = slot.index == last[slot.stage, slot.block, slot.role]
        axes = []
        if slot.role == "conv" and slot.index == 0:
            axes.append((1, into))
        if slot.role == "conv" and ends:
            axes.append((0, out))
        if slot.role == "norm" and spec.order == "pre" and slot.index == 0:
            axes.append((0, into))
        if slot.role == "norm" and spec.order != "pre" and ends:
            axes.append((0, out))
        if slot.role == "tail.norm":
            axes.append((0, orders[-1]))
        if slot.role == "head.linear" and slot.leaf == "weight":
            axes.append((1, orders[-1]))
        if axes and slot.leaf != "num_batches_tracked":
            found[slot.key] = tuple(axes)
    return found


def unlike_modules(
    backbone: Backbone, theirs: nn.Module, owners: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Compare two nets module by module.

    Args:
        backbone: ours.
        theirs: the other one.
        owners: names of our modules, and of theirs that take their place.

    Returns:
        Clauses about what makes them other nets (strides, dilations, activations), and sentences
        about what makes them slightly different ones (what is added to a variance).
    """
    dilated = any(stage.dilation != 1 for stage in backbone.spec.stages)
    other, eps = [], []
    for name, their_name in owners.items():
        our, their = backbone.get_submodule(name), theirs.get_submodule(their_name)
        if isinstance(our, nn.Conv2d):
            for field in ("stride", "dilation"):
                ours, given = getattr(our, field), getattr(their, field, None)
                # With an output stride of its own, a net has dilations for strides.
                meant = dilated and given is not None and (ours < given or field == "dilation")
                if given is not None and ours != given and not meant:
                    other.append(f"{their_name} has {field} {given[-1]} where this model has "
                                 f"{ours[-1]}")  # fmt: skip
        elif isinstance(our, NORMS) and getattr(their, "eps", our.eps) != our.eps:
            eps.append(f"{their_name} adds {their.eps:g} to a variance, this model {our.eps:g}")
    used = {type(module).__name__.lower().removesuffix("activation") for module in theirs.modules()}
    used &= set(ACTIVATIONS)
    if used and backbone.spec.activation not in used:
        other.append(f"its activation is {' and '.join(sorted(used))} where this model has "
                     f"{backbone.spec.activation}")  # fmt: skip
    more = f" (and {len(eps) - 1} more norms)" if len(eps) > 1 else ""
    return other, [eps[0] + more] if eps else []


def unlike_specs(backbone: Backbone, layout: Layout, spec: Mapping[str, Any] | None) -> list[str]:
    """Sentences about what two specs compute differently with the same tensors.

    Args:
        backbone: ours.
        layout: theirs.
        spec: theirs, where it is one of ours.
    """
    ours = backbone.spec.to_dict()
    if spec is not None:
        found = differences(ours, spec)
    elif layout.like:
        nearest = next(iter(layout.like.values())).to_dict()
        found = differences({k: ours[k] for k in UNSEEN}, {k: nearest[k] for k in UNSEEN})
    else:
        found = []
    if not found:
        return []
    return [f"the tensors fit, but this model computes something else: {', '.join(found)}"]
