"""Grad-CAM finds which times and frequencies a classifier of sounds listens to."""

from pathlib import Path
from typing import Any

import pytest
import torch

import resbackbones as rb
from resbackbones.errors import InputError
from resbackbones.speech import (
    ResidualFeatureExtractor,
    ResidualForAudioClassification,
    grad_cam,
)
from resbackbones.speech.explain import picture


def listens(dims: int) -> ResidualForAudioClassification:
    """A net that only averages: one class counts sound, of a sequence its lower half."""
    channels = 40 if dims == 1 else 1
    spec = rb.BackboneSpec(
        (rb.Stage(channels, 1),), dims=dims, in_channels=channels, norm="none", stem=None
    )
    model = ResidualForAudioClassification.build(spec, labels=["loud", "quiet"]).eval()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.zero_()  # the branch says nothing: what is left is the skip
        model.head.linear.bias.zero_()
        model.head.linear.weight.zero_()
        model.head.linear.weight[0, : channels // 2 or 1] = 1
        model.head.linear.weight[1, channels // 2 :] = 1 if dims == 1 else -1
    return model


def tone(hertz: float = 440, start: float = 0.5, end: float = 0.7) -> torch.Tensor:
    time = torch.arange(16000) / 16000
    return 0.3 * torch.sin(2 * torch.pi * hertz * time) * ((time >= start) & (time < end))


def test_a_spectrogram_is_hot_where_the_sound_is() -> None:
    model = listens(2)
    heat = grad_cam(model, tone(), "loud")
    features = model.processor(tone(), return_tensors="pt")["input_features"][0]
    torch.testing.assert_close(heat, features / features.max())
    assert torch.equal(grad_cam(model, tone(), "quiet"), torch.zeros(40, 101))
    low, high = (grad_cam(model, tone(hertz), "loud").sum(1).argmax() for hertz in (440, 4000))
    centres = model.processor.front_end.centres
    assert abs(centres[low] - 440) < 60 and abs(centres[high] - 4000) < 250


def test_a_sequence_is_hot_when_the_sound_is_and_alike_over_its_bands() -> None:
    model = listens(1)
    heat = grad_cam(model, tone(200), "loud")
    assert heat.shape == (40, 101) and torch.equal(heat, heat[:1].expand(40, -1))
    assert heat[0, 50:70].min() > 0.1 and heat[0, :48].max() == 0 and heat[0, 73:].max() == 0
    assert grad_cam(model, tone(200))[0].argmax() == heat[0].argmax()  # the likeliest is "loud"


@pytest.mark.parametrize(
    ("name", "changes"), [("mel_resnet14", {"in_channels": 1}), ("tc_resnet8", {})]
)
def test_any_net_and_stage_and_the_model_stays_as_it_was(name: str, changes: Any) -> None:
    torch.manual_seed(0)
    model = ResidualForAudioClassification.build(name, labels=["a", "b"], **changes)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for stage in (0, -1):
        heat = grad_cam(model, torch.randn(9000), 1, stage=stage)
        assert heat.shape == (40, 57) and 0 <= heat.min() <= heat.max() <= 1
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dims", [1, 2])
def test_the_picture_says_when_where_and_what(dims: int, tmp_path: Path) -> None:
    figure = picture(listens(dims), tone(), "loud", title="a.wav")
    axes = figure.axes[0]
    assert axes.get_xlabel() == "seconds" and axes.get_ylabel() == "mel bands, Hz"
    assert axes.get_title(loc="left").startswith("a.wav: loud, ")
    assert axes.images[0].get_extent()[:2] == pytest.approx([-0.005, 1.005])
    assert [text.get_text() for text in axes.get_yticklabels()][-1] == "5,728"  # of 36 of 40
    figure.savefig(tmp_path / "why.png")
    assert (tmp_path / "why.png").stat().st_size > 10_000


def test_a_picture_over_kaldis_bands() -> None:
    processor = ResidualFeatureExtractor("fbank")
    model = ResidualForAudioClassification.build("tc_resnet8", num_labels=2, processor=processor)
    axes = picture(model, tone()).axes[0]
    centres = processor.front_end.centres
    assert (centres.diff() > 0).all() and 20 < centres[0] < centres[-1] < 8000
    assert axes.get_yticklabels()[0].get_text() == f"{centres[0]:,.0f}"


def test_what_cannot_be_explained() -> None:
    model = listens(2)
    for arguments, said in (
        ((tone(), "lowd"), "'loud'"),
        ((tone(), 2), "no class 2"),
        (([tone(), tone()],), "one at a time"),
    ):
        with pytest.raises(InputError, match=said):
            grad_cam(model, *arguments)
    with pytest.raises(InputError, match="no stage 1"):
        grad_cam(model, tone(), stage=1)
