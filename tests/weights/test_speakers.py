"""Nets of speakers under the names of SpeechBrain and WeSpeaker, against the papers' equations."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import resbackbones as rb
from tests.weights.helpers import assert_close, perturbed


class Wrapped(nn.Module):
    """A module under one more name, as SpeechBrain has its convolutions and norms."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.add_module(name, module)
        self.inside = name

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.inside)(x)


def conv(into: int, out: int, kernel: int = 1, dilation: int = 1) -> Wrapped:
    margin = dilation * (kernel - 1) // 2
    return Wrapped("conv", nn.Conv1d(into, out, kernel, dilation=dilation, padding=margin))


class Tdnn(nn.Module):
    """A layer of ECAPA-TDNN: convolution, ReLU, norm."""

    def __init__(self, into: int, out: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = conv(into, out, kernel, dilation)
        self.activation = nn.ReLU()
        self.norm = Wrapped("norm", nn.BatchNorm1d(out))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.conv(x)))


class Hierarchy(nn.Module):
    """Gao et al. 2019, equation 1, of eight groups."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        width = channels // 8
        self.blocks = nn.ModuleList(Tdnn(width, width, 3, dilation) for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        groups = list(x.chunk(8, 1))
        for index, block in enumerate(self.blocks, 1):
            groups[index] = block(groups[index] + (groups[index - 1] if index > 1 else 0))
        return torch.cat(groups, 1)


class Squeeze(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(channels, squeezed), conv(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(self.conv1(x.mean(2, keepdim=True)).relu()).sigmoid()


class SERes2Block(nn.Module):
    """Desplanques et al. 2020, figure 1."""

    def __init__(self, channels: int, squeezed: int, dilation: int) -> None:
        super().__init__()
        self.tdnn1, self.tdnn2 = Tdnn(channels, channels), Tdnn(channels, channels)
        self.res2net_block = Hierarchy(channels, dilation)
        self.se_block = Squeeze(channels, squeezed)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))


class Pool(nn.Module):
    """The parameters of an attentive pooling; what is compared here ends before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tdnn, self.tanh = Tdnn(3 * channels, 128), nn.Tanh()
        self.conv = conv(128, channels)


class Ecapa(nn.Module):
    """ECAPA-TDNN (Desplanques et al. 2020, figure 2) up to its pooling, from the paper."""

    def __init__(self, channels: int, squeezed: int, out: int, size: int = 192) -> None:
        super().__init__()
        blocks = (SERes2Block(channels, squeezed, dilation) for dilation in (2, 3, 4))
        self.blocks = nn.ModuleList([Tdnn(80, channels, 5), *blocks])
        self.mfa = Tdnn(3 * channels, out)
        self.asp = Pool(out)
        self.asp_bn = Wrapped("norm", nn.BatchNorm1d(2 * out))
        self.fc = conv(2 * out, size)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.blocks[0](x)
        found = []
        for block in list(self.blocks)[1:]:
            x = block(x)
            found.append(x)
        return *found[:2], self.mfa(torch.cat(found, 1))


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden, self.norm = nn.Linear(3 * channels, 128), nn.BatchNorm1d(128)
        self.scores = nn.Linear(128, channels)


class Embedder(nn.Module):
    """A head's tensors and what it says of itself."""

    def __init__(self, channels: int, size: int, pooling: str, classes: int = 5) -> None:
        super().__init__()
        self.pooling = pooling
        attentive = pooling == "attentive_statistics"
        self.attention = Attention(channels) if attentive else None
        self.norm = nn.BatchNorm1d(2 * channels) if attentive else None
        self.embedding = nn.Linear(2 * channels, size)
        self.directions = nn.Parameter(torch.randn(classes, size))


class Model(nn.Module):
    def __init__(self, spec: rb.BackboneSpec, rows: int, size: int, pooling: str) -> None:
        super().__init__()
        self.backbone = rb.Backbone(spec)
        self.head = Embedder(rows * self.backbone.channels[-1], size, pooling)


SMALL = replace(
    rb.SPECS["ecapa512"],
    stages=tuple(replace(stage, channels=64) for stage in rb.SPECS["ecapa512"].stages),
    stem=rb.Stem(64, 5),
    tail=(rb.Layer(96, 1),),
)


def ecapa() -> Model:
    return Model(SMALL, 1, 192, "attentive_statistics").eval()


@pytest.mark.parametrize("name", ["ecapa512", "ecapa1024"])
def test_published_ecapas_have_these_names_and_shapes(name: str) -> None:
    channels = int(name[5:])
    with torch.device("meta"):
        theirs = Ecapa(channels, 128, 1536)
        ours = Model(rb.SPECS[name], 1, 192, "attentive_statistics")
        written = rb.weights.export_weights(ours, "speechbrain")
    expected = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in written.items()} == expected
    assert rb.count_parameters(theirs) == {512: 6_194_048, 1024: 14_660_416}[channels]


def test_ecapa_equals_the_paper() -> None:
    theirs, net = perturbed(Ecapa(64, 16, 96)), rb.Backbone(SMALL).eval()
    said = rb.weights.load_weights(net, theirs)
    assert said[0] == "read in the layout of ECAPA-TDNNs of SpeechBrain"
    assert len(said) == 2 and "is left out: a bare backbone has none" in said[1]
    x = torch.randn(2, 80, 51, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for ours, expected in zip(net(x), theirs(x), strict=True):
            assert_close(ours, expected)


def test_ecapa_there_and_back_with_its_head() -> None:
    theirs, ours = perturbed(Ecapa(64, 16, 96)), ecapa()
    directions = ours.head.directions.clone()
    said = rb.weights.load_weights(ours, theirs.state_dict())
    assert any("those of SpeechBrain a mirror image" in sentence for sentence in said)
    assert said[-1] == "head.directions is left as drawn: these weights have no classes"
    assert torch.equal(ours.head.directions, directions)
    written = rb.weights.export_weights(ours, "speechbrain")
    assert written.keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(written[name], value), name


def test_another_dilation_or_activation_is_told() -> None:
    class Other(Ecapa):
        def __init__(self) -> None:
            super().__init__(64, 16, 96)
            self.blocks[1].res2net_block = Hierarchy(64, 5)

    net = rb.Backbone(SMALL)
    with pytest.raises(rb.weights.WeightsMismatch, match=r"has dilation \(5,\), not \(2,\)"):
        rb.weights.load_weights(net, Other())
    theirs = Ecapa(64, 16, 96)
    for module in theirs.modules():
        if isinstance(module, Tdnn):
            module.activation = nn.GELU()
    with pytest.raises(rb.weights.WeightsMismatch, match="activates by gelu"):
        rb.weights.load_weights(net, theirs)


@pytest.mark.parametrize(
    ("make", "library", "what"),
    [
        (lambda: rb.Backbone(SMALL), "speechbrain", "a pooling and an embedding follow"),
        (
            lambda: Model(
                replace(SMALL, norm_after_activation=False), 1, 9, "attentive_statistics"
            ),
            "speechbrain",
            "norm_after_activation is False, not True",
        ),
        (
            lambda: Model(SMALL, 1, 9, "statistics"),
            "speechbrain",
            "head.norm is 'none', not 'batch', head.pooling is 'statistics', not 'attentive_st",
        ),
        (lambda: ecapa(), "wespeaker", "its resnet34_tstp, differs: "),
    ],
)
def test_what_has_no_like_is_refused(make: Any, library: str, what: str) -> None:
    with pytest.raises(rb.InputError, match=f"{library} has no model of this spec; .*{what}"):
        rb.weights.export_weights(make(), library)


def test_another_pooling_keeps_its_head() -> None:
    ours = Model(SMALL, 1, 192, "statistics")
    said = rb.weights.load_weights(ours, perturbed(Ecapa(64, 16, 96)))
    assert said[-1].startswith("the head is left as drawn: it is no linear map of attentive stat")


def test_resnets_of_wespeaker_there_and_back() -> None:
    """The names of their checkpoints: the classes they were trained by are beside the net."""
    spec = rb.SPECS["resnet34_tstp"]
    spec = replace(spec, stages=tuple(replace(stage, blocks=2) for stage in spec.stages))
    ours = perturbed(Model(spec, 10, 256, "statistics"))
    written = rb.weights.export_weights(ours, "wespeaker")
    for name in ("conv1.weight", "layer2.0.shortcut.1.bias", "layer4.1.bn2.running_var"):
        assert name in written
    assert written["seg_1.weight"].shape == (256, 2 * 2560)
    again = Model(spec, 10, 256, "statistics")
    theirs = {**written, "projection.weight": torch.randn(9, 256)}
    said = rb.weights.load_weights(again, theirs)
    assert said[0] == "read in the layout of ResNets of WeSpeaker" and len(said) == 2
    for name, value in ours.state_dict().items():
        if name != "head.directions":
            assert torch.equal(again.state_dict()[name], value), name
    bare = rb.Backbone(spec)
    assert rb.weights.load_weights(bare, theirs)[0] == said[0]


def test_ecapa_equals_speechbrain() -> None:
    """Its own code, with zeros beyond the ends: it mirrors them unless told otherwise."""
    pytest.importorskip("speechbrain")
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    torch.manual_seed(0)
    theirs = perturbed(ECAPA_TDNN(80, lin_neurons=192, channels=[512] * 4 + [1536]))
    net = rb.backbone("ecapa512").eval()
    assert any("a mirror image" in s for s in rb.weights.load_weights(net, theirs))
    for module in theirs.modules():
        if hasattr(module, "padding_mode"):
            module.padding_mode = "constant"
    assert not any("a mirror image" in s for s in rb.weights.load_weights(net, theirs))
    found: list[Tensor] = []
    for module in (theirs.blocks[1], theirs.blocks[2], theirs.mfa):
        module.register_forward_hook(lambda _, given, y: found.append(y))
    x = torch.randn(2, 80, 101)
    with torch.no_grad():
        theirs(x.transpose(1, 2))
        for ours, expected in zip(net(x), found, strict=True):
            assert (ours - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max())
