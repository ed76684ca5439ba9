"""Recognisers under the names of NeMo, against a net of the same modules in plain torch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import resbackbones as rb
from tests.weights.helpers import assert_close, perturbed

QUARTZNET, CITRINET = "quartznet5x5", "citrinet256"


class Masked(nn.Module):
    """A convolution under one more name, "same"."""

    def __init__(self, into: int, out: int, kernel: int = 1, stride: int = 1, **options: Any):
        super().__init__()
        margin = options.get("dilation", 1) * (kernel - 1) // 2
        self.conv = nn.Conv1d(into, out, kernel, stride, margin, bias=False, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = nn.Linear(channels, channels // 8, bias=False)
        excited = nn.Linear(channels // 8, channels, bias=False)
        self.fc = nn.Sequential(squeezed, nn.ReLU(), excited)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(2)).sigmoid().unsqueeze(2)


class Block(nn.Module):
    """Sub-blocks of (separable) convolution, norm, ReLU and dropout, the last one without these
    two; attention; a projected shortcut; ReLU and dropout."""

    def __init__(
        self, into: int, out: int, kernel: int, stride: int = 1, repeat: int = 1, se: bool = False,
        residual: bool = False, separable: bool = True, dilation: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        parts: list[nn.Module] = []
        for index in range(repeat):
            width = out if index else into
            step = stride if index == repeat - 1 else 1
            if separable:
                depthwise = {"groups": width, "dilation": dilation}
                parts += [Masked(width, width, kernel, step, **depthwise), Masked(width, out)]
            else:
                parts.append(Masked(width, out, kernel, step, dilation=dilation))
            parts.append(nn.BatchNorm1d(out, eps=1e-3))
            if index < repeat - 1:
                parts += [nn.ReLU(), nn.Dropout(0.0)]
        self.mconv = nn.ModuleList([*parts, *([Squeeze(out)] if se else [])])
        shortcut = [Masked(into, out, 1, stride), nn.BatchNorm1d(out, eps=1e-3)]
        self.res = nn.ModuleList([nn.ModuleList(shortcut)]) if residual else None
        self.mout = nn.Sequential(nn.ReLU(), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for part in self.mconv:
            y = part(y)
        if self.res is not None:
            projection, norm = self.res[0]
            y = y + norm(projection(x))
        return self.mout(y)


class Encoder(nn.Module):
    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class Decoder(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.decoder_layers = nn.Sequential(nn.Conv1d(channels, classes, 1))


class Recogniser(nn.Module):
    """Kriman et al. 2020, figure 1, and Majumdar et al. 2021, figure 1."""

    def __init__(self, spec: rb.BackboneSpec, classes: int) -> None:
        super().__init__()
        se, stem = spec.attention == "se", spec.stem
        assert stem is not None
        blocks = [Block(spec.in_channels, stem.channels, stem.kernel, stem.stride, se=se)]
        width = stem.channels
        for stage in spec.stages:
            for index in range(stage.blocks):
                stride = 1 if index else stage.stride
                blocks.append(
                    Block(width, stage.channels, stage.kernel, stride, 5, se, residual=True)
                )
                width = stage.channels
        for layer in spec.tail:
            options = {"separable": layer.separable, "dilation": layer.dilation}
            blocks.append(Block(width, layer.channels, layer.kernel, se=se, **options))
            width = layer.channels
        self.encoder, self.decoder = Encoder(*blocks), Decoder(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder.decoder_layers(self.encoder(x))


class Head(nn.Module):
    """A head's tensors and what it says of itself."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.pooling, self.linear = "none", nn.Linear(channels, classes)


class Model(nn.Module):
    def __init__(self, spec: rb.BackboneSpec, classes: int) -> None:
        super().__init__()
        self.backbone = rb.Backbone(spec)
        self.head = Head(self.backbone.channels[-1], classes)


def small(name: str) -> rb.BackboneSpec:
    """Narrow, with a stage of two blocks."""
    spec = rb.SPECS[name]
    stages = [replace(stage, channels=32, kernel=5) for stage in spec.stages]
    stages = [replace(stages[0], blocks=2), *stages[1:]]
    assert spec.stem is not None
    tail = tuple(replace(layer, channels=40) for layer in spec.tail)
    return replace(
        spec, stages=tuple(stages), stem=replace(spec.stem, channels=32), tail=tail, in_channels=16
    )


@pytest.mark.parametrize("name", ["quartznet5x5", "quartznet15x5", "citrinet256", "citrinet1024"])
def test_published_nets_have_these_names_and_shapes(name: str) -> None:
    classes = 29 if "quartz" in name else 257
    with torch.device("meta"):
        theirs, ours = Recogniser(rb.SPECS[name], classes), Model(rb.SPECS[name], classes)
        written = rb.weights.export_weights(ours, "nemo")
    expected = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in written.items()} == expected
    known = {"encoder.encoder.0.mconv.0.conv.weight", "encoder.encoder.1.res.0.0.conv.weight"}
    known |= {"encoder.encoder.5.mconv.22.running_mean", "decoder.decoder_layers.0.bias"}
    assert known <= set(written)
    if name.startswith("citrinet"):
        assert "encoder.encoder.22.mconv.3.fc.2.weight" in written


@pytest.mark.parametrize("name", [QUARTZNET, CITRINET])
def test_they_compute_the_same_there_and_back(name: str) -> None:
    spec = small(name)
    theirs, ours = perturbed(Recogniser(spec, 7)), Model(spec, 7).eval()
    said = rb.weights.load_weights(ours, theirs)
    assert said == ["read in the layout of QuartzNets and Citrinets of NeMo"]
    x = torch.randn(2, 16, 53, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(x)
        feature = ours.backbone(x)[-1]
        logits = ours.head.linear(feature.transpose(1, 2)).transpose(1, 2)
    assert_close(logits, expected.roll(1, 1))  # the blank comes first
    state = theirs.state_dict()
    beside = {"preprocessor.featurizer.window": torch.ones(4)}
    again = Model(spec, 7)
    told = rb.weights.load_weights(again, {**state, **beside})
    assert told[0] == said[0] and len(told) == 1
    written = rb.weights.export_weights(again, "nemo")
    assert written.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(written[key], value), key


def test_a_bare_encoder_and_other_symbols() -> None:
    spec = small(CITRINET)
    theirs, net = perturbed(Recogniser(spec, 7)), rb.Backbone(spec).eval()
    rb.weights.load_weights(net, theirs.encoder.state_dict())
    x = torch.randn(1, 16, 30)
    with torch.no_grad():
        assert_close(net(x)[-1], theirs.encoder(x))
    written = rb.weights.export_weights(net, "nemo")
    assert written.keys() == theirs.encoder.encoder.state_dict().keys()
    other = Model(spec, 9)
    drawn = other.head.linear.weight.clone()
    said = rb.weights.load_weights(other, theirs)
    assert said[-1] == "the classes are left as drawn: theirs are 7, here 9"
    assert torch.equal(other.head.linear.weight, drawn)


def test_another_net_is_refused() -> None:
    with pytest.raises(rb.weights.WeightsMismatch, match="is of another net"):
        rb.weights.load_weights(rb.Backbone(small(QUARTZNET)), Recogniser(small(CITRINET), 7))
    with pytest.raises(rb.InputError, match="nemo has no model of this spec"):
        rb.weights.export_weights(Model(rb.SPECS["tc_resnet8"], 5), "nemo")
