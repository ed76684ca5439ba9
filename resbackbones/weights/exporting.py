"""`export_weights`: our tensors under the names, and in the shapes, of another library."""

import torch
from torch import Tensor, nn

from resbackbones.core.backbone import Backbone
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError, nearest
from resbackbones.weights.layouts import KNOWN, LAYOUTS, Layout, differences
from resbackbones.weights.slots import parts, slots, tensors


def export_weights(model: nn.Module, library: str) -> dict[str, Tensor]:
    """A model's weights as another library's model of the same spec has them.

    Args:
        model: a classifier, or a bare backbone for the library's model without classes
            (`num_classes=0` in timm, `ResNetModel` in transformers, `encoder.encoder` in NeMo).
        library: "torchvision", "timm", "transformers", "speechbrain", "wespeaker" or "nemo".

    Returns:
        A state dict, copied, which `load_state_dict(…, strict=True)` takes. What is no tensor the
        other model has to be given: `layer_norm_eps=1e-6` in transformers' ConvNeXt, and
        `aa_layer="blurpc"` in timm's blurred ResNets.

    Raises:
        InputError: an unknown library, or a model that has no like there: with what differs.

    >>> import torchvision, resbackbones as rb
    >>> from resbackbones.vision import ResidualForImageClassification
    >>> ours = ResidualForImageClassification.build("resnet18", num_labels=10)
    >>> theirs = torchvision.models.resnet18(num_classes=10)
    >>> theirs.load_state_dict(rb.weights.export_weights(ours, "torchvision"), strict=True)
    <All keys matched successfully>
    """
    backbone, head = parts(model)
    layout = _layout(backbone, head, library)
    written = {}
    values = tensors(model)
    for slot in slots(model):
        if slot.role == "head":  # directions of classes, which are no part of the net there
            continue
        value = values[slot.key]
        if layout.blank_last and slot.in_head:
            value = value.roll(-1, 0)
        body = "" if head is None or slot.role == "head.linear" else layout.body
        shape = layout.shape(slot, tuple(value.shape))
        written[body + layout.candidates(slot)[0]] = (
            value.detach().reshape(shape).clone(memory_format=torch.contiguous_format)
        )
    return written


def _layout(backbone: Backbone, head: nn.Module | None, library: str) -> Layout:
    """The library's layout for this model.

    Raises:
        InputError: none, and what keeps the model from the nearest one.
    """
    every = [(layout, family) for layout in LAYOUTS for family in layout.families]
    families = [(layout, family) for layout, family in every if family.library == library]
    if not families:
        known = sorted({family.library for _, family in every})
        raise InputError(f"library={library!r} is not known; {nearest(library, known)}")
    spec, candidates = backbone.spec.to_dict(), []
    for layout, family in families:
        beside = _head_differences(layout, head)
        if library == "timm":
            beside += _attention_differences(backbone.spec)
        for name in family.like:
            unlike = differences(spec, KNOWN[name].to_dict(), family.free)
            candidates.append(([*unlike.values(), *beside], name, layout))
    found, name, layout = min(candidates, key=lambda candidate: len(candidate[0]))
    if not found:
        return layout
    more = f" (and {len(found) - 4} more)" if len(found) > 4 else ""
    raise InputError(
        f"{library} has no model of this spec; the nearest, its {name}, differs: "
        f"{', '.join(found[:4])}{more}; load the weights into a model of resbackbones instead"
    )


def _attention_differences(spec: BackboneSpec) -> list[str]:
    """timm squeezes to multiples of 8."""
    if spec.attention != "se":
        return []
    squeezed = {s.channels: max(4, s.channels // spec.attention_reduction) for s in spec.stages}
    return [f"attention squeezes {c} channels to {n}, no multiple of 8" for c, n in squeezed.items()
            if n % 8]  # fmt: skip


def _head_differences(layout: Layout, head: nn.Module | None) -> list[str]:
    has_norm = "head.norm" in layout.names
    if head is None:
        if layout.pooling not in ("mean", "none"):
            return ["a pooling and an embedding follow the backbone there"]
        return ["a norm follows the backbone there"] if has_norm else []
    last = "embedding" if "head.embedding" in layout.names else "linear"
    linear = getattr(head, last, None)
    if linear is None:
        what = "a classifier" if last == "linear" else "an embedding"
        return [f"the head is a {type(head).__name__}, not {what}"]
    norms = {nn.LayerNorm: "layer", nn.BatchNorm1d: "batch", type(None): "none"}
    ours = {
        "head.norm": norms.get(type(getattr(head, "norm", None))),
        "head.pooling": getattr(head, "pooling", None),
        "head.bias": linear.bias is not None,
    }
    theirs = {
        "head.norm": layout.norm if has_norm else "none",
        "head.pooling": layout.pooling,
        "head.bias": True,
    }
    return list(differences(ours, theirs).values())
