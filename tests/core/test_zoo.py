"""Every named spec has exactly the trainable parameters, and the ImageNet nets the MACs, of the
published net; logits equal torchvision's to the last bit."""

import dataclasses
import itertools

import pytest
import torch
import torchvision
import transformers
from torch import nn

import resbackbones as rb
from resbackbones.core.backbone import NORMS
from resbackbones.core.blocks import Convolution
from resbackbones.core.layers import Layer, MaxPool, NormActivation
from resbackbones.core.ops import masked_mean
from resbackbones.core.zoo import FOREIGN
from resbackbones.vision import ResidualForImageClassification

# Channels in and out, kernel (Dauphin et al. 2017, table 1).
GCNN14 = (
    [(850, 850, 6)] * 3
    + [(850, 850, 1)]
    + [(850, 850, 5)] * 4
    + [(850, 850, 1)]
    + [(850, 850, 4)] * 3
    + [(850, 1024, 4), (1024, 2048, 4)]
)


def preact_bottlenecks(depth: int) -> int:
    """He et al. 2016: 3 x (depth - 2) / 9 blocks of 1x1, 3x3, 1x1, each with a norm before it; the
    first of each width projects. 10.2 million at depth 1001, norms left out."""
    total, width = 3 * 16 * 9, 16
    for outer in (64, 128, 256):
        inner = outer // 4
        for _ in range((depth - 2) // 9):
            total += width * inner + 9 * inner * inner + inner * outer
            total += 2 * (width + 2 * inner) + (width * outer if width != outer else 0)
            width = outer
    return total + 2 * width + 10 * (width + 1)


def vdcnn(blocks: tuple[int, ...], skip: str) -> int:
    """Conneau et al. 2017, table 2: one convolution over 16 numbers per character (whose embedding
    of 69 is not the backbone's), then blocks of two, each with a norm behind; with shortcuts, a
    1x1 convolution and its norm where the channels double."""
    total, width = 3 * 16 * 64 + 64, 64
    for channels, times in zip((64, 128, 256, 512), blocks, strict=True):
        projection = width * channels + 2 * channels if width != channels else 0
        total += projection if skip == "identity" else 0
        for _ in range(times):
            total += 3 * width * channels + 3 * channels * channels + 2 * 2 * channels
            width = channels
    return total


# Attentive statistics of 1536 channels under a context of 3 x 1536, with a norm (SpeechBrain's),
# a norm of the means and deviations, and an embedding of 192.
ECAPA_HEAD = (4608 * 128 + 128 + 2 * 128) + (128 * 1536 + 1536) + 2 * 3072 + (3072 * 192 + 192)
# Batch norms of a CIFAR net of depth 110: a stem's, and two per block.
NORMS_110 = 2 * (16 + 36 * (16 + 32 + 64))
# Norms of a pre-activated ResNet-50: two of the inner width and one of what comes in, per block,
# and the last; and its convolutions' outputs, of the stem and the projections too.
WIDTHS = [(64, 256, 3), (256, 512, 4), (512, 1024, 6), (1024, 2048, 3)]
NORMS_V2 = 2 * (2048 + sum(i + (n - 1) * o + n * o // 2 for i, o, n in WIDTHS))
OUTPUTS_V2 = 64 + sum(n * o * 3 // 2 + o for _, o, n in WIDTHS)


def tc_stages(blocks: int, *widths: int) -> int:
    """Convolutions of 9 frames, a projection per stage, and the norms behind all of them."""
    return sum(
        9 * (i * o + (2 * blocks - 1) * o * o) + i * o + (2 * blocks + 1) * 2 * o
        for i, o in itertools.pairwise(widths)
    )


# name: (classes of a linear head, or 0; whether it has a bias; trainable parameters)
COUNTS = {
    "resnet18": (1000, True, 11_689_512),
    "resnet34": (1000, True, 21_797_672),
    "resnet50": (1000, True, 25_557_032),
    "resnet101": (1000, True, 44_549_160),
    "resnet152": (1000, True, 60_192_808),
    "resnet18d": (1000, True, 11_708_744),
    "resnet34d": (1000, True, 21_816_904),
    "resnet50d": (1000, True, 25_576_264),
    "resnet101d": (1000, True, 44_568_392),
    "resnet152d": (1000, True, 60_212_040),
    "resnext50_32x4d": (1000, True, 25_028_904),
    "resnext101_32x8d": (1000, True, 88_791_336),
    "wide_resnet50_2": (1000, True, 68_883_240),
    "wide_resnet101_2": (1000, True, 126_886_696),
    "resnetv2_50": (1000, True, 25_549_352),
    "resnetv2_50x1_bit": (1000, True, 25_549_352),
    "resnetblur50": (1000, True, 25_557_032),
    # No norms, a bias per convolution and a scalar per block (De & Smith 2020).
    "skipinit_resnet50": (1000, True, 25_549_352 - NORMS_V2 + OUTPUTS_V2 + 16),
    "seresnet50": (1000, True, 28_088_024),
    "ecaresnet50d": (1000, True, 25_576_350),
    "ecaresnet50t": (1000, True, 25_573_814),
    "ecaresnet101d": (1000, True, 44_568_563),
    # Published with a layer norm of 768 channels before the classifier, which is the head's.
    "convnext_tiny": (1000, True, 28_589_128 - 2 * 768),
    "resnet20": (10, True, 269_722),
    "resnet32": (10, True, 464_154),
    "resnet44": (10, True, 658_586),
    "resnet56": (10, True, 853_018),
    "resnet110": (10, True, 1_727_962),
    "resnet1202": (10, True, 19_421_274),
    "wrn_10_4": (10, True, 1_198_810),
    "wrn_28_10": (10, True, 36_479_194),
    "wrn_40_4": (10, True, 8_949_210),
    "resnet14_small": (10, True, 2_777_674),
    "resnet16_fine": (10, True, 2_779_050),
    "resnet18_small": (10, True, 11_173_962),
    "preact_resnet110": (10, True, 1_727_962),
    "preact_resnet164": (10, True, preact_bottlenecks(164)),
    "preact_resnet1001": (10, True, preact_bottlenecks(1001)),
    # Four scalar biases and one scale per block, and two around the stem (Zhang et al. 2019).
    "fixup_resnet110": (10, True, 1_727_962 - NORMS_110 + 54 * 5 + 2),
    "rezero_resnet110": (10, True, 1_727_962 + 54),
    "stochastic_depth_resnet110": (10, True, 1_727_962),
    "quartznet5x5": (29, True, 6_713_181),
    "quartznet10x5": (29, True, 12_818_781),
    "quartznet15x5": (29, True, 18_924_381),
    "citrinet256": (257, True, 9_767_441),
    "citrinet384": (257, True, 20_980_241),
    "citrinet512": (257, True, 36_502_033),
    "citrinet1024": (257, True, 142_331_537),
    # A convolution of 11 frames, sixteen of 7, the projection of the first block, and their norms.
    "mel_resnet_ctc18": (0, False, 11 * 80 * 256 + (16 * 7 + 1) * 256 * 256 + 18 * 2 * 256),
    "matchboxnet_3x1": (30, True, 77_214),
    "matchboxnet_3x2": (30, True, 92_766),
    "matchboxnet_6x2": (30, True, 138_846),
    "tc_resnet8": (12, False, 65_168),
    "tc_resnet14": (12, False, 135_856),
    "tc_resnet8_1_5": (12, False, 144_264),
    "tc_resnet14_1_5": (12, False, 303_000),
    # A convolution of 3 frames with its norm, then stages of 9.
    "tc_resnet8_2": (0, False, 3 * 40 * 32 + tc_stages(1, 32, 48, 64, 96) + 2 * 32),
    "mel_resnet14": (12, True, 701_952 + 12 * 129),
    "mel_resnet14_wide": (12, True, 1_576_700 + 12 * 193),
    "bc_resnet1": (12, True, 9_232),
    "bc_resnet1_5": (12, True, 17_154),
    "bc_resnet2": (12, True, 27_284),
    "bc_resnet3": (12, True, 54_168),
    "bc_resnet6": (12, True, 187_812),
    "bc_resnet8": (12, True, 321_068),
    "res8": (12, True, 110_307),
    "res8_narrow": (12, True, 19_905),
    "res15": (12, True, 237_882),
    "res15_narrow": (12, True, 42_648),
    # Means and deviations over time of 256 channels at 10 frequencies, and an embedding of 256.
    "resnet34_tstp": (0, False, 6_634_336 - (2 * 2560 * 256 + 256)),
    "ecapa512": (0, False, 6_194_048 - ECAPA_HEAD),
    "ecapa1024": (0, False, 14_660_416 - ECAPA_HEAD),
    # A raw convolution of 3 words, four of the blocks, and the norm of what each of these sees and
    # of the end.
    "word_resnet6": (0, False, 3 * 128 * 192 + 4 * 3 * 192 * 192 + 5 * 2 * 192),
    # The same, then six convolutions to twice their channels with norms.
    "word_gcnn8": (0, False, 3 * 128 * 192 + 6 * (3 * 192 * 384 + 2 * 384)),
    # The same, then per block a depthwise convolution, a norm, a map to four times the channels and
    # back, all with biases.
    "word_convnext14": (
        0,
        False,
        3 * 128 * 192 + 4 * (8 * 192 + 2 * 192 + 2 * 4 * 192 * 192 + 4 * 192 + 192),
    ),
    # Twelve convolutions with a bias and a length per channel, and a projection of the words.
    "word_tcn13": (
        0,
        False,
        3 * 128 * 192 + 11 * 3 * 192 * 192 + 12 * 2 * 192 + (128 * 192 + 192),
    ),
    "vdcnn9": (0, False, 1_753_664),
    "vdcnn17": (0, False, 3_846_464),
    "vdcnn29": (0, False, 4_217_408),
    "vdcnn49": (0, False, 7_345_984),
    # 14 convolutions of 250 x 250 x 3 in the blocks, one in the region embedding, all with biases.
    "dpcnn": (0, False, 15 * (250 * 250 * 3 + 250)),
    # 8 convolutions with one length a channel for weight norm; as wide as its input.
    "tcn": (0, False, 8 * (600 * 600 * 3 + 600 + 600)),
    "tcn_char": (0, False, 100 * 450 * 3 + 5 * 450 * 450 * 3 + 6 * 900 + 100 * 450 + 450),
    # One convolution to twice its channels per layer, with biases and a length per channel for
    # weight norm; the stem widens 280 to 850, and two layers widen with a 1x1 around them.
    "gcnn14": (
        0,
        False,
        (280 * 850 + 2 * 850)
        + sum(2 * a * b * k + 4 * b for a, b, k in GCNN14)
        + (850 * 1024 + 1024)
        + (1024 * 2048 + 2048),
    ),
    # Thirty times three convolutions, each behind a norm, and a norm at the end.
    "bytenet": (
        0,
        False,
        30 * (2 * 1024 * 512 + 3 * 512 * 512 + 2 * (1024 + 512 + 512)) + 2 * 1024,
    ),
    # Twelve and eight convolutions to twice their channels, each behind a norm, and a last norm.
    "char_gcnn12": (0, False, 12 * (3 * 192 * 384 + 2 * 192) + 2 * 192),
    "bpe_gcnn8": (0, False, 8 * (3 * 256 * 512 + 2 * 256) + 2 * 256),
}
# Blocks of 64, 128, 256 and 512 channels; parameters without shortcuts.
VDCNN = {
    "vdcnn9": ((1, 1, 1, 1), 1_579_840),
    "vdcnn17": ((2, 2, 2, 2), 3_672_640),
    "vdcnn29": ((5, 5, 2, 2), 4_043_584),
    "vdcnn49": ((8, 8, 5, 3), 7_172_160),
}
MACS = {
    "resnet18": 1_814_073_344,
    "resnet34": 3_663_761_408,
    "resnet50": 4_089_184_256,
    "resnet101": 7_801_405_440,
    "resnet152": 11_513_626_624,
}


class Classifier(nn.Module):
    def __init__(self, spec: str | rb.BackboneSpec, classes: int, bias: bool = True) -> None:
        super().__init__()
        self.backbone = rb.backbone(spec)
        self.head = nn.Linear(self.backbone.channels[-1], classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(masked_mean(self.backbone(x)[-1]))


def test_every_spec_has_a_count() -> None:
    assert set(COUNTS) == set(rb.SPECS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(name: str) -> None:
    classes, bias, expected = COUNTS[name]
    with torch.device("meta"):
        net = Classifier(name, classes, bias) if classes else rb.backbone(name)
    assert rb.count_parameters(net) == expected


@pytest.mark.parametrize("downsample", ["stride", "max", "k_max"])
@pytest.mark.parametrize("skip", ["identity", "none"])
@pytest.mark.parametrize("name", VDCNN)
def test_vdcnn_is_the_published_one_however_it_halves(
    name: str, skip: str, downsample: str
) -> None:
    blocks, plain = VDCNN[name]
    with torch.device("meta"):
        net = rb.backbone(name, skip=skip, downsample=downsample)
    residual = COUNTS[name][2]
    expected = plain if skip == "none" else residual
    assert rb.count_parameters(net) == vdcnn(blocks, skip) == expected
    assert expected + net.parameter_difference == residual
    # Depth counts the convolutions, the first one and two per block, not those of shortcuts.
    branches = sum(2 for _ in net.blocks)
    assert name == f"vdcnn{1 + branches}"
    assert net.channels == (64, 128, 256, 512) and net.strides == ((1,), (2,), (4,), (8,))
    shortcuts = [len(block.shortcut) for _, block in net.blocks]
    firsts = [sum(blocks[:index]) for index in (1, 2, 3)] if skip == "identity" else []
    assert [index for index, parts in enumerate(shortcuts) if parts] == firsts
    strided = [m.conv for m in net.modules() if isinstance(m, Convolution) and m.stride[1] == 2]
    takers = 2 if skip == "identity" else 1  # the first convolution, and the shortcut's
    assert len(strided) == (3 * takers if downsample == "stride" else 0)


def test_dpcnn_is_the_published_one() -> None:
    """Johnson & Zhang 2017, figure 1a: 15 weight layers, each but the first behind its activation;
    a max over 3 by 2 before each block but the first; bare shortcuts."""
    plan = rb.SPECS["dpcnn"].plan
    (region,) = plan.stem
    assert isinstance(region, Layer) and region.kernel == 3 and not region.activation
    downs, blocks = zip(*plan.stages, strict=True)
    assert downs == ((), *((MaxPool(250, (3,), 2),),) * 6)
    for (block,) in blocks:
        kinds = [type(part) for part in (*block.pre, *block.branch)]
        assert kinds == [NormActivation, Layer] * 2 and block.shortcut == ()
    net = rb.backbone("dpcnn")
    assert sum(isinstance(m, Convolution) for m in net.modules()) == 15
    assert not any(isinstance(m, NORMS) for m in net.modules())


@pytest.mark.parametrize("name", ["word_resnet6", "word_gcnn8", "word_tcn13", "word_convnext14"])
def test_nets_of_words_are_as_deep_as_their_names_say(name: str) -> None:
    """A linear head after them counted. Each sees as far ahead as back, and has a plain twin."""
    net = rb.backbone(name)
    inside = [m for m in net.modules() if isinstance(m, Convolution)]
    shortcuts = [m for _, b in net.blocks for m in b.shortcut.modules()]
    depth = 1 + sum(module not in shortcuts for module in inside)
    assert name.endswith(f"{depth}") and not name[: -len(str(depth))][-1].isdigit()
    before, after = net.spec.reaches[-1]
    assert before == after == {6: 5, 8: 7, 13: 126, 14: 13}[depth]
    assert net.parameter_difference == 0
    assert rb.backbone(name, skip="none").spec.skip == "none"


@pytest.mark.parametrize("name", MACS)
def test_macs(name: str) -> None:
    with torch.device("meta"):
        net, image = Classifier(name, 1000), torch.empty(1, 3, 224, 224)
    assert rb.count_macs(net, image) == MACS[name]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext101_32x8d"])
def test_logits_equal_torchvision(name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)().eval()
    for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    ours = Classifier(name, 1000).eval()
    # Both list weights in the order they run, the shortcut after the branch.
    ours.load_state_dict(
        dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)), strict=True
    )
    image = torch.randn(2, 3, 97, 65)
    with torch.no_grad():
        assert (ours(image) - theirs(image)).abs().max() == 0.0


def test_convnext_equals_torchvision() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.convnext_tiny().eval()
    ours = ResidualForImageClassification.build(
        "convnext_tiny", num_labels=1000, head={"norm": "layer"}
    ).eval()
    assert rb.count_parameters(ours) == 28_589_128
    for name, parameter in theirs.named_parameters():
        if "layer_scale" in name:  # 1e-6 as drawn: the branches would not be seen
            nn.init.uniform_(parameter, 0.5, 1)
    state = theirs.state_dict()
    # Both list weights in the order they run, a block's scale before them.
    pairs = zip(ours.state_dict().items(), state.values(), strict=True)
    ours.load_state_dict({name: theirs.reshape(ours.shape) for (name, ours), theirs in pairs})
    image = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image).logits, theirs(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "dilated"), [(16, [False, False, True]), (8, [False, True, True])]
)
def test_dilated_net_equals_torchvision(stride: int, dilated: list[bool]) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=dilated).eval()
    spec = rb.with_output_stride(rb.SPECS["resnet50"], stride)
    ours = Classifier(spec, 1000).eval()
    assert ours.backbone.strides[-1] == (stride, stride)
    ours.load_state_dict(
        dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)), strict=True
    )
    image = torch.randn(2, 3, 97, 65)
    with torch.no_grad():
        assert (ours(image) - theirs(image)).abs().max() == 0.0


# timm's parts of a block in the order ours run: a projection after the branch.
ORDER = "norm1 conv1 bn1 norm2 conv2 bn2 norm3 conv3 bn3 se downsample".split()


def in_our_order(name: str) -> tuple[int, ...]:
    parts = name.split(".")
    if parts[0].startswith("layer"):
        return 1, int(parts[0][5:]), int(parts[1]), ORDER.index(parts[2])
    if parts[0] == "stages":
        return 1, int(parts[1]), int(parts[3]), ORDER.index(parts[4])
    return (0 if parts[0] in ("stem", "conv1", "bn1") else 2,)


def randomise(net: nn.Module) -> None:
    """What a trained net has: no norm or running statistic at its start."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)


@pytest.mark.parametrize(
    # Beside the largest logit: 0.0 where the very same operations run, else what rounding of fifty
    # layers in another order comes to, whatever the processor.
    ("name", "bound"),
    [
        ("resnet18d", 0.0),
        ("resnet50d", 0.0),
        ("seresnet50", 1e-5),
        ("ecaresnet50t", 0.0),
        ("resnetblur50", 1e-5),
        ("resnetv2_50", 1e-5),
        ("resnetv2_50x1_bit", 1e-5),
    ],
)
def test_logits_equal_timm(name: str, bound: float) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10).eval()
    randomise(theirs)
    for module in theirs.modules():
        if hasattr(module, "pad_mode"):
            module.pad_mode = "constant"  # timm blurs past the edges what it mirrors there
    ours = Classifier(name, 10).eval()
    state = theirs.state_dict()
    pairs = zip(ours.state_dict().items(), sorted(state, key=in_our_order), strict=True)
    ours.load_state_dict({name: state[t].reshape(tensor.shape) for (name, tensor), t in pairs})
    for size in ((97, 65), (64, 96)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = theirs(image)
            assert (ours(image) - expected).abs().max() <= bound * max(1.0, expected.abs().max())


def test_bit_equals_transformers() -> None:
    torch.manual_seed(0)
    theirs = transformers.BitModel(transformers.BitConfig()).eval()
    randomise(theirs)
    ours = rb.backbone("resnetv2_50x1_bit").eval()
    state = {
        name.replace("encoder.", "").replace("layers.", "blocks."): tensor
        for name, tensor in theirs.state_dict().items()
    }
    names = sorted(state, key=lambda name: in_our_order(name.replace("embedder", "stem")))
    pairs = zip(ours.state_dict().items(), names, strict=True)
    ours.load_state_dict({name: state[t].reshape(tensor.shape) for (name, tensor), t in pairs})
    image = torch.randn(2, 3, 97, 65)
    with torch.no_grad():
        feature, expected = ours(image)[-1], theirs(image).last_hidden_state
    torch.testing.assert_close(feature, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fixup_resnet110", "rezero_resnet110", "skipinit_resnet50"])
def test_nets_that_start_in_their_own_way_learn(name: str) -> None:
    torch.manual_seed(0)
    model = Classifier(name, 2)
    nn.init.zeros_(model.head.weight)  # as Fixup has it
    nn.init.zeros_(model.head.bias)
    labels = torch.arange(16) % 2
    images = 0.5 * torch.randn(16, 3, 8, 8) + labels[:, None, None, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)
    assert losses[-1] < 0.8 * losses[0] and losses == sorted(losses, reverse=True)


def test_stochastic_depth_rises_to_a_half() -> None:
    with torch.device("meta"):
        blocks = [block for _, block in rb.backbone("stochastic_depth_resnet110").blocks]
    assert len(blocks) == 54 and blocks[0].drop_path is None
    assert [block.drop_path.probability for block in blocks[1:]] == pytest.approx(
        [0.5 * index / 53 for index in range(1, 54)]
    )


def test_features_of_the_zoo_are_the_declared_ones() -> None:
    for name, spec in rb.SPECS.items():
        if sum(stage.blocks for stage in spec.stages) > 60:
            continue
        with torch.device("meta"):
            net = rb.backbone(name).eval()
            size = (40, 56)[2 - spec.dims :]
            features = net(torch.empty(2, spec.in_channels, *size))
        for feature, channels, strides in zip(features, net.channels, net.strides, strict=True):
            assert feature.shape[1] == channels
            expected = [-(-length // stride) for length, stride in zip(size, strides, strict=True)]
            assert list(feature.shape[2:]) == expected


def test_convnets_of_the_zoo_work_in_the_other_rank() -> None:
    sequence = rb.backbone("resnet18", dims=1, in_channels=40)
    assert sequence(torch.zeros(1, 40, 33))[-1].shape == (1, 512, 2)
    image = rb.backbone("tcn_char", dims=2, in_channels=3)
    assert image(torch.zeros(1, 3, 8, 9))[-1].shape == (1, 450, 8, 9)


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("num_classes", "num_labels="),
        ("in_chans", "in_channels="),
        ("pretrained", "rb.weights.load_weights"),
        ("out_indices", r"net\(x, stages="),
        ("drop_path_rate", "drop_path="),
    ],
)
def test_words_of_other_libraries_are_translated(word: str, ours: str) -> None:
    for make in (rb.backbone, ResidualForImageClassification.build):
        with pytest.raises(
            rb.InputError, match=f"{word}= is a word of timm or torchvision; .*{ours}"
        ):
            make("resnet18", **{word: 1})


def test_no_word_of_other_libraries_is_a_field() -> None:
    assert not set(FOREIGN) & {field.name for field in dataclasses.fields(rb.BackboneSpec)}


def test_receptive_fields_of_published_nets() -> None:
    assert rb.backbone("tcn").receptive_field == 61
    assert rb.backbone("tcn_char").receptive_field == 29
    assert rb.SPECS["gcnn14"].receptive_field == 47
    assert rb.SPECS["char_gcnn12"].receptive_field == 2 * 2 * (1 + 2 + 4 + 8 + 16 + 32) + 1
    assert rb.SPECS["bpe_gcnn8"].receptive_field == 2 * 2 * (1 + 2 + 4 + 8) + 1
    assert rb.SPECS["bytenet"].receptive_field == 6 * 2 * (1 + 2 + 4 + 8 + 16) + 1
    with torch.device("meta"):
        # Frames of 10 ms: 29, 55 and 81 seconds.
        fields = [rb.backbone(f"quartznet{n}x5").receptive_field for n in (5, 10, 15)]
    assert [round(field / 100) for field in fields] == [29, 55, 81]
    assert rb.backbone("seresnet50").receptive_field == float("inf")
    assert rb.SPECS["citrinet256"].receptive_field == float("inf")
    # The stem's 11 frames, seven at a stride of 2, fifteen times seven at one of 4.
    assert rb.SPECS["mel_resnet_ctc18"].receptive_field == 1 + 10 + 6 * 2 + 15 * 6 * 4
