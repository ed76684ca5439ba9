"""A folded model answers as the model does, with fewer operations."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import resbackbones as rb
from resbackbones.speech import ResidualForAudioClassification
from resbackbones.speech.detection import Listener
from tests.speech.helpers import as_if_trained, noise


def batch_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet20", 0),
        ("resnet14_small", 0),
        ("preact_resnet110", 109),  # one stands right behind a convolution: the stem's
        ("tc_resnet8", 0),
        ("mel_resnet14", 0),
        ("quartznet5x5", 0),
        ("bc_resnet1", 12),  # those of parts of the frequency axis
        ("ecapa512", 29),  # they stand behind activations
        ("tcn_char", 0),  # weight norm
        ("word_gcnn8", 0),  # layer norm
        ("resnetv2_50x1_bit", 0),  # standardised weights
    ],
)
def test_answers_as_before_with_fewer_norms(name: str, left: int) -> None:
    net = as_if_trained(rb.backbone(name))
    spec = net.spec
    space = (40, 33) if spec.dims == 2 else (33,)
    x = torch.randn(2, spec.in_channels, *space, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    folded = rb.deploy.fold(net)
    with torch.no_grad():
        for lengths in (None, torch.tensor([33, 20])):
            (expected,), (given,) = net(x, lengths, stages=(-1,)), folded(x, lengths, stages=(-1,))
            torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())
    assert batch_norms(folded) == left
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_batch_is_still_what_its_items_are_alone() -> None:
    model = rb.deploy.fold(
        as_if_trained(ResidualForAudioClassification.build("mel_resnet14", num_labels=3))
    )
    clips = noise(16000, 9000)
    with torch.no_grad():
        together = model(**model.processor(clips, return_tensors="pt")).logits
        for clip, row in zip(clips, together, strict=True):
            alone = model(**model.processor([clip], return_tensors="pt")).logits[0]
            torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)


def test_a_listener_hears_the_same() -> None:
    spec = replace(rb.SPECS["tc_resnet8"], causal=True)
    model = as_if_trained(ResidualForAudioClassification.build(spec, num_labels=3))
    (signal,) = noise(24000)
    scores = []
    for each in (model, rb.deploy.fold(model)):
        listener = Listener(each)
        scores.append(torch.cat([listener.push(signal), listener.finish()]))
    assert listener.reading == "stream"
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-3, atol=1e-4)


def test_a_model_in_training_is_refused() -> None:
    with pytest.raises(rb.InputError, match="training mode cannot be folded"):
        rb.deploy.fold(rb.backbone("resnet20"))


def test_a_folded_model_that_was_saved_is_not_taken_for_the_model(tmp_path: object) -> None:
    model = as_if_trained(ResidualForAudioClassification.build("tc_resnet8", num_labels=3))
    rb.deploy.fold(model).save_pretrained(tmp_path)
    with pytest.raises((rb.InputError, RuntimeError)):
        ResidualForAudioClassification.from_pretrained(tmp_path)
