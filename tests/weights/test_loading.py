"""Loading adapts channels and classes and says so; what does not fit changes no bit."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models._manipulate import adapt_input_conv
from torch import nn

import resbackbones as rb
from resbackbones.speech import ResidualForAudioClassification
from resbackbones.vision import ResidualForImageClassification
from resbackbones.weights.conventions import adapt_channels
from tests.weights.helpers import (
    PEERS,
    WIDTHS,
    assert_close,
    empty,
    image,
    logits,
    perturbed,
    shallow,
    timm_resnet,
    torchvision_resnet,
    transformers_convnext,
    transformers_resnet,
)

SPEC = shallow("resnet18", WIDTHS)


def small(classes: int = 7, **changes: Any) -> ResidualForImageClassification:
    return ResidualForImageClassification.build(SPEC, num_labels=classes, **changes).eval()


def weights() -> dict[str, torch.Tensor]:
    return perturbed(transformers_resnet("basic")).state_dict()


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def refused(model: nn.Module, source: object, match: str) -> rb.weights.WeightsMismatch:
    """The refusal, after a look at every bit of the model."""
    before = bits(model)
    with pytest.raises(rb.weights.WeightsMismatch, match=match) as caught:
        rb.weights.load_weights(model, source)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return caught.value


def test_other_classes_are_left_as_drawn() -> None:
    theirs, ours = perturbed(transformers_resnet("basic")), perturbed(small(3), seed=5)
    head = bits(ours.head)
    said = rb.weights.load_weights(ours, theirs)
    assert said[1:] == ["the classes are left as drawn: theirs are 7, here 3"]
    assert all(torch.equal(v, head[name]) for name, v in ours.head.state_dict().items())
    with torch.no_grad():
        pooled = theirs.resnet(image()).pooler_output.flatten(1)
        assert_close(ours.backbone(image())[-1].mean((2, 3)), pooled)


def test_the_norm_before_other_classes_is_loaded() -> None:
    peer = PEERS["timm convnext"]
    theirs, ours = perturbed(peer.make()), peer.ours(classes=3)
    said = rb.weights.load_weights(ours, theirs)
    assert said[1:] == ["the classes are left as drawn: theirs are 7, here 3"]
    assert torch.equal(ours.head.norm.weight, theirs.head.norm.weight)


def test_a_norm_that_is_not_there_is_named() -> None:
    peer = PEERS["timm convnext"]
    ours = ResidualForImageClassification.build(peer.spec, num_labels=7)
    before = bits(ours.head)
    said = rb.weights.load_weights(ours, perturbed(peer.make()))
    assert "head.norm.bias" in said[1] and "head={'norm': 'layer'}" in said[1]
    assert all(torch.equal(v, before[name]) for name, v in ours.head.state_dict().items())


def test_a_head_that_pools_otherwise_is_left_as_drawn() -> None:
    said = rb.weights.load_weights(small(head={"pooling": "max"}), weights())
    assert said[1:] == ["the head is left as drawn: it is no linear map of means, as theirs is"]


def test_weights_without_classes() -> None:
    body = {k: v for k, v in weights().items() if not k.startswith("classifier")}
    bare = {k.removeprefix("resnet."): v for k, v in body.items()}
    for given_weights in (body, bare):
        said = rb.weights.load_weights(small(), given_weights)
        assert said[1:] == ["the head is left as drawn: these weights have none"]


def test_a_bare_backbone_leaves_the_classes_out() -> None:
    ours = rb.backbone(SPEC).eval()
    theirs = perturbed(transformers_resnet("basic"))
    said = rb.weights.load_weights(ours, theirs)
    assert said[1:] == ["the classifier (classifier.1) is left out: a bare backbone has none"]
    with torch.no_grad():
        assert_close(ours(image())[-1], theirs.resnet(image()).last_hidden_state)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_channels_are_adapted_as_timm_does(channels: int) -> None:
    ours = small(in_channels=channels)
    given_weights = weights()
    said = rb.weights.load_weights(ours, given_weights)
    assert said[1].startswith(f"the stem takes {channels} input channel(s), not 3: its weights are")
    stem = given_weights["resnet.embedder.embedder.convolution.weight"]
    written = ours.backbone.stem[0].convolutions[0].conv.weight
    assert torch.equal(written, adapt_input_conv(channels, stem))


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 3), st.integers(0, 2**31))
def test_a_picture_alike_in_all_channels_is_seen_alike(read: int, times: int, seed: int) -> None:
    stem = torch.randn(4, read, 3, 3, generator=torch.Generator().manual_seed(seed))
    wanted = read * times or 1
    adapted = adapt_channels(stem, wanted)
    assert adapted.shape == (4, wanted, 3, 3)
    torch.testing.assert_close(adapted.sum(1), stem.sum(1), rtol=1e-5, atol=1e-5)


def test_channels_of_sequences_are_never_adapted() -> None:
    narrow = rb.backbone("tc_resnet8", in_channels=40)
    wide = rb.backbone("tc_resnet8", in_channels=64)
    refused(narrow, wide, "stem.0.convolutions.0.conv.weight has shape")


def test_half_precision_and_integers() -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in weights().items()}
    ours = small()
    rb.weights.load_weights(ours, halves)
    assert {v.dtype for v in ours.state_dict().values()} == {torch.float32, torch.int64}
    name = "resnet.embedder.embedder.convolution.weight"
    error = refused(ours, halves | {name: halves[name].int()}, f"{name} holds torch.int32")
    assert len(error.differences) == 1


def test_counters_that_old_checkpoints_lack() -> None:
    ours = small()
    theirs = {k: v for k, v in weights().items() if not k.endswith("num_batches_tracked")}
    assert len(rb.weights.load_weights(ours, theirs)) == 1
    assert ours.backbone.stem[0].after.norm.num_batches_tracked == 0
    rb.weights.load_weights(ours, weights())
    assert ours.backbone.stem[0].after.norm.num_batches_tracked == 7


STEM = "resnet.embedder.embedder.convolution.weight"
LAST = "resnet.encoder.stages.3.layers.0.layer.1.convolution.weight"
Weights = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (lambda w: {STEM: torch.zeros(16, 3, 3, 3)}, r"\(16, 3, 3, 3\) where .* \(16, 3, 7, 7\)"),
        (lambda w: {STEM: w[STEM].flatten()}, "has shape"),
        (lambda w: {"resnet.more": torch.zeros(1)}, "it has resnet.more, which this model has not"),
        (lambda w: {LAST: w[LAST].index_fill(0, torch.tensor(1), torch.nan)}, f"infinity: {LAST}"),
        (lambda w: {"classifier.1.bias": torch.full((7,), torch.inf)}, "infinity: classifier.1"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    change: Callable[[Weights], Weights], clause: str
) -> None:
    theirs = weights()
    assert len(refused(small(), theirs | change(theirs), clause).differences) == 1


def test_what_is_lacking_is_named_as_the_layout_does() -> None:
    theirs = {key: value for key, value in weights().items() if key != LAST}
    refused(small(), theirs, f"it lacks {LAST.removeprefix('resnet.')}")


def test_the_first_of_many_differences_are_shown() -> None:
    with torch.device("meta"):
        deep = torchvision.models.resnet34()
    error = refused(small(), deep.to_empty(device="cpu").state_dict(), r"\(and \d+ more\)")
    assert str(error).count("has shape") == 3
    assert len(error.differences) > 100


def test_another_family_is_refused() -> None:
    theirs = {key: torch.zeros(1) for key in ("blocks.0.attn.qkv.weight", "cls_token")}
    with pytest.raises(rb.InputError, match=r"no layout .* begins with blocks.0.attn.qkv.weight"):
        rb.weights.load_weights(small(), theirs)
    refused(small(), perturbed(transformers_convnext()), "is of another net")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model."])
def test_what_stands_before_all_names_is_taken_off(prefix: str) -> None:
    ours, theirs = small(), weights()
    rb.weights.load_weights(ours, {prefix + name: value for name, value in theirs.items()})
    assert torch.equal(ours.backbone.stem[0].convolutions[0].conv.weight, theirs[STEM])


def test_a_wrapped_module_is_read() -> None:
    ours, theirs = small(), perturbed(transformers_resnet("basic"))
    rb.weights.load_weights(ours, nn.DataParallel(theirs))
    assert_close(logits(ours, image()), logits(theirs, image()))


# What tensors do not show.


def test_the_stride_of_v1_is_refused_in_a_module() -> None:
    spec = shallow("resnet50", tuple(4 * width for width in WIDTHS))
    theirs = perturbed(transformers_resnet("bottleneck", downsample_in_bottleneck=True))
    ours = ResidualForImageClassification.build(spec, num_labels=7).eval()
    clause = r"layers.0.layer.0.convolution has stride \(2, 2\), not \(1, 1\)"
    refused(ours, theirs, clause)
    rb.weights.load_weights(ours, theirs.state_dict())  # nobody can tell
    assert not torch.allclose(logits(ours, image()), logits(theirs, image()), rtol=1e-3)


def test_blur_pooling_is_refused_in_a_module() -> None:
    theirs = timm_resnet("BasicBlock", aa_layer=timm.layers.BlurPool2d)
    ours = ResidualForImageClassification.build(shallow("resnet18"), num_labels=7)
    refused(ours, theirs, r"layer2.0.conv1 has stride \(1, 1\), not \(2, 2\)")


def test_a_mirror_image_beyond_the_edges_is_said() -> None:
    peer = PEERS["timm blurred basic"]
    theirs = timm_resnet("BasicBlock", aa_layer=timm.layers.BlurPool2d)
    for source in (theirs, theirs.state_dict()):
        said = rb.weights.load_weights(peer.ours(), source)
        assert len(said) == 2 and "see zeros beyond the edges" in said[1]


def test_dilation_is_refused_in_a_module_and_free_in_ours() -> None:
    dilated = {"replace_stride_with_dilation": [False, False, True]}
    with torch.device("meta"):
        nets = torchvision_resnet("Bottleneck"), torchvision_resnet("Bottleneck", **dilated)
    plain, theirs = (perturbed(net.to_empty(device="cpu")) for net in nets)
    spec = shallow("resnet50")
    refused(rb.backbone(spec), theirs, r"layer4.0.conv2 has stride \(1, 1\), not \(2, 2\)")
    ours = rb.backbone(rb.with_output_stride(spec, 16)).eval()
    for each in (plain, theirs):
        assert len(rb.weights.load_weights(ours, each)) == 2
    with torch.no_grad():
        pooled = torch.nn.functional.linear(
            ours(image())[-1].mean((2, 3)), theirs.fc.weight, theirs.fc.bias
        )
    assert_close(pooled, logits(theirs, image()))


def test_another_activation_is_refused_in_a_module_and_said_of_tensors() -> None:
    theirs = transformers_resnet("basic", hidden_act="gelu")
    refused(small(), theirs, "it activates by gelu and relu, not by relu alone")
    odd = small(activation="tanh")
    said = rb.weights.load_weights(odd, weights())
    assert "computes something else: activation is 'tanh', not 'relu'" in said[1]


def test_a_mean_in_the_shortcut_is_said() -> None:
    said = rb.weights.load_weights(small(shortcut="average"), weights())
    assert "computes something else: shortcut is 'average', not 'projection'" in said[1]


def test_what_is_added_to_variances_is_said() -> None:
    peer = PEERS["transformers convnext"]
    theirs = perturbed(transformers_convnext(layer_norm_eps=1e-12))
    said = rb.weights.load_weights(peer.ours(), theirs)
    assert said[1:] == [
        "convnext.layernorm adds 1e-12 to a variance, not 1e-06 as this model: the difference is "
        "small"
    ]


# Our own models.


def test_our_own_models_load() -> None:
    theirs, ours = perturbed(small(), seed=3), empty(small)
    for source in (theirs, theirs.state_dict()):
        said = rb.weights.load_weights(ours, source)
        assert said == ["read in the layout of models of resbackbones"]
        assert all(torch.equal(v, ours.state_dict()[k]) for k, v in theirs.state_dict().items())
    bare = rb.backbone(SPEC)
    rb.weights.load_weights(bare, theirs)
    assert all(
        torch.equal(v, bare.state_dict()[k]) for k, v in theirs.backbone.state_dict().items()
    )
    said = rb.weights.load_weights(ours, perturbed(bare, seed=4))
    assert said[1:] == ["the head is left as drawn: these weights have none"]
    assert all(torch.equal(v, ours.backbone.state_dict()[k]) for k, v in bare.state_dict().items())


@pytest.mark.parametrize("name", ["tcn_char", "matchboxnet_3x1", "dpcnn", "mel_resnet14"])
def test_every_net_of_ours_loads_its_own(name: str) -> None:
    theirs, ours = rb.backbone(name), rb.backbone(name)
    rb.weights.load_weights(ours, theirs.state_dict())
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in theirs.state_dict().items())


def test_models_of_other_wings_load_their_own() -> None:
    theirs, ours = (
        ResidualForAudioClassification.build("tc_resnet8", num_labels=classes) for classes in (4, 5)
    )
    said = rb.weights.load_weights(ours, theirs)
    assert said[1:] == ["the classes are left as drawn: theirs are 4, here 5"]


def test_another_spec_of_the_same_tensors_is_said() -> None:
    said = rb.weights.load_weights(small(), small(activation="tanh"))
    assert said[1] == (
        "the tensors fit, but this model computes something else: activation is 'relu', not 'tanh'"
    )


def test_only_models_of_ours_are_filled() -> None:
    with pytest.raises(rb.InputError, match="a Linear is no model of resbackbones"):
        rb.weights.load_weights(nn.Linear(1, 1), {})
    with torch.device("meta"):
        ours = small()
    with pytest.raises(rb.InputError, match="the model is on the meta device"):
        rb.weights.load_weights(ours, weights())
