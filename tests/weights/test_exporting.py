"""What has no like in another library is refused by name, with what differs."""

from dataclasses import replace

import pytest
import timm
import torch

import resbackbones as rb
from resbackbones.vision import ResidualForImageClassification
from tests.weights.helpers import PEERS, WIDTHS, empty, perturbed, shallow, transformers_resnet


def build(name: str, **changes: object) -> ResidualForImageClassification:
    with torch.device("meta"):
        return ResidualForImageClassification.build(name, num_labels=7, **changes)


@pytest.mark.parametrize(
    ("library", "model", "what"),
    [
        ("torchvision", build("resnet20"), "nearest, its resnet18, differs: stages"),
        ("torchvision", build("resnet18", norm="group"), "differs: norm is 'group', not 'batch';"),
        ("torchvision", build("resnet18", activation="gelu", skip="none"), "skip is 'none'"),
        ("torchvision", build("seresnet50"), "resnet50, differs: attention is 'se', not 'none';"),
        ("torchvision", build("resnetv2_50"), "order is 'pre', not 'post'"),
        ("torchvision", build("resnet18", head={"pooling": "max"}), "head.pooling is 'max'"),
        ("torchvision", build("resnet18", head={"bias": False}), "head.bias is False, not True;"),
        ("torchvision", build("convnext_tiny"), "head.norm is 'none', not 'layer';"),
        ("transformers", build("resnext50_32x4d"), "branch.ratio is 0.5, not 0.25, branch.groups"),
        ("timm", build("resnet18", attention="se"), "squeezes 64 channels to 4, no multiple of 8;"),
        ("timm", rb.backbone("convnext_tiny"), "a norm follows the backbone there"),
        ("timm", rb.backbone("resnet18", dims=1), "dims is 1, not 2;"),
    ],
)  # fmt: skip
def test_what_has_no_like_is_refused(library: str, model: torch.nn.Module, what: str) -> None:
    with pytest.raises(rb.InputError, match=f"{library} has no model of this spec; .*{what}"):
        rb.weights.export_weights(model, library)


def test_an_unknown_library() -> None:
    with pytest.raises(rb.InputError, match=r"library='tim' is not known; did you mean 'timm'\?"):
        rb.weights.export_weights(rb.backbone("resnet18"), "tim")


def test_training_options_make_no_other_net() -> None:
    model = build("resnet18", init="zero_last", drop_path=0.1, dropout=0.1, in_channels=1)
    written = rb.weights.export_weights(model, "torchvision")
    assert written["conv1.weight"].shape == (64, 1, 7, 7)


def test_a_bare_backbone_fits_a_net_without_classes() -> None:
    ours = perturbed(rb.backbone(shallow("resnet18", WIDTHS)))
    theirs = transformers_resnet("basic").resnet
    theirs.load_state_dict(rb.weights.export_weights(ours, "transformers"), strict=True)
    with torch.device("meta"):
        preactivated = timm.create_model("resnetv2_50", num_classes=0)
        plain = timm.create_model("resnet26", num_classes=0)
        written = rb.weights.export_weights(rb.backbone("resnetv2_50"), "timm")
    assert written.keys() == preactivated.state_dict().keys()
    spec = rb.SPECS["resnet50"]
    spec = replace(spec, stages=tuple(replace(stage, blocks=2) for stage in spec.stages))
    with torch.device("meta"):
        written = rb.weights.export_weights(rb.backbone(spec), "timm")
    assert written.keys() == plain.state_dict().keys()


def test_what_is_written_is_a_copy() -> None:
    peer = PEERS["transformers basic"]
    ours = perturbed(empty(peer.ours))
    written = rb.weights.export_weights(ours, "transformers")
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    for value in written.values():
        assert value.is_contiguous() and not value.requires_grad
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
