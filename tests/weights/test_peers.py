"""The same logits in both directions for nets of torchvision, timm and transformers, and the same
names and shapes for the published ones."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

import resbackbones as rb
from resbackbones.vision import ResidualForImageClassification
from resbackbones.weights.layouts import KNOWN
from tests.weights.helpers import NORM, PEERS, assert_close, empty, image, logits, perturbed


@pytest.mark.parametrize("name", PEERS)
def test_logits_both_ways(name: str) -> None:
    peer = PEERS[name]
    theirs, ours = perturbed(empty(peer.make)), empty(peer.ours)
    expected = logits(theirs, image())
    assert len(expected.unique()) == expected.numel()
    said = rb.weights.load_weights(ours, theirs)
    assert len(said) == 1 and "read in the layout of" in said[0]
    assert_close(logits(ours, image()), expected)

    drawn = perturbed(ours, seed=2)
    written = rb.weights.export_weights(drawn, peer.library)
    theirs.load_state_dict(written, strict=True)
    assert_close(logits(theirs, image()), logits(drawn, image()))

    again = empty(peer.ours)
    said = rb.weights.load_weights(again, written)
    assert len(said) == 1 + ("blurred" in name)  # of whose edges tensors tell nothing
    for key, value in drawn.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def _resnet(*blocks: int) -> rb.BackboneSpec:
    spec = rb.SPECS["resnet50"]
    stages = zip(spec.stages, blocks, strict=True)
    return replace(spec, stages=tuple(replace(stage, blocks=b) for stage, b in stages))


def _transformers(name: str, **options: Any) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(num_labels=1000, **options)
    return getattr(transformers, f"{name}ForImageClassification")(config)


BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
PUBLISHED = {
    ("transformers", "resnet18"): lambda: _transformers("ResNet", depths=[2, 2, 2, 2], **BASIC),
    ("transformers", "resnet50"): lambda: _transformers("ResNet"),
    ("transformers", "resnet152"): lambda: _transformers("ResNet", depths=[3, 8, 36, 3]),
    ("transformers", "convnext_tiny"): lambda: _transformers("ConvNext"),
    ("transformers", "resnetv2_50x1_bit"): lambda: _transformers("Bit"),
    ("timm", "resnet26"): lambda: timm.create_model("resnet26"),
}
for name in (
    "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d wide_resnet50_2 convnext_tiny"
).split():
    PUBLISHED["torchvision", name] = getattr(torchvision.models, name)
for name in (
    "resnet18 resnet50 resnext50_32x4d wide_resnet50_2 convnext_tiny seresnet50 resnetv2_18 "
    "resnetv2_50 resnetv2_50x1_bit resnet18d resnet50d resnetblur18 resnetblur50 ecaresnet50d "
    "ecaresnet50t"
).split():
    PUBLISHED["timm", name] = partial(timm.create_model, name)
UNLISTED = {"resnet26": _resnet(2, 2, 2, 2)}


@pytest.mark.parametrize(("library", "name"), PUBLISHED)
def test_published_nets_have_these_names_and_shapes(library: str, name: str) -> None:
    head = NORM if name.startswith("convnext") else {}
    with torch.device("meta"):
        theirs = PUBLISHED[library, name]().state_dict()
        ours = ResidualForImageClassification.build(
            UNLISTED.get(name) or KNOWN[name], num_labels=1000, head=head
        )
        written = rb.weights.export_weights(ours, library)
    assert {key: value.shape for key, value in written.items()} == {
        key: value.shape for key, value in theirs.items()
    }
