"""Published backbones, and a few of our own, as specs. Names are torchvision's or timm's where one
exists; parameter counts are held exactly by the tests."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from resbackbones.core.backbone import Backbone
from resbackbones.core.branches import (
    Bottleneck,
    Broadcast,
    Gated,
    Inverted,
    Res2,
    Separable,
    Temporal,
)
from resbackbones.core.layers import Layer, Stage, Stem, check_names
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError, nearest


def _stages(
    widths: Sequence[int], blocks: Sequence[int], first_stride: int = 1
) -> tuple[Stage, ...]:
    strides = [first_stride] + [2] * (len(widths) - 1)
    return tuple(Stage(w, b, s) for w, b, s in zip(widths, blocks, strides, strict=True))


# Vision. ImageNet nets (He et al. 2015, table 1; ResNeXt: Xie et al. 2017; wide: Zagoruyko 2016).
_STEM = Stem(64, 7, 2, pool=2)


def _basic(*blocks: int) -> BackboneSpec:
    return BackboneSpec(_stages((64, 128, 256, 512), blocks), stem=_STEM)


def _bottleneck(*blocks: int) -> BackboneSpec:
    stages = _stages((256, 512, 1024, 2048), blocks)
    return BackboneSpec(stages, stem=_STEM, branch=Bottleneck())


_R50 = _bottleneck(3, 4, 6, 3)
_R101 = _bottleneck(3, 4, 23, 3)
_V2 = replace(_R50, order="pre", stem=replace(_STEM, norm=False, activation=False))


# ResNet-D (He et al. 2019, section 4): three convolutions for the stem's one, and a mean before a
# shortcut's projection; its tiered stem ("t") is timm's.
def _deep(spec: BackboneSpec, *widths: int, **changes: Any) -> BackboneSpec:
    first, second = widths or (32, 32)
    stem = Stem(64, pool=2, before=(Layer(first, stride=2), Layer(second)))
    return replace(spec, stem=stem, shortcut="average", **changes)


# BiT (Kolesnikov et al. 2020, section 3.2). Its stem's pooling sees zeros around its input.
_BIT = replace(
    _V2, norm="group", norm_groups=32, weight_standardized=True,
    stem=replace(_STEM, norm=False, activation=False, zero_padded=True),
)  # fmt: skip


# ConvNeXt (Liu et al. 2022, section 2): a patch of 4 x 4 pixels at first, of 2 x 2 between stages.
def _convnext(widths: Sequence[int], blocks: Sequence[int]) -> BackboneSpec:
    stages = (replace(stage, kernel=7) for stage in _stages(widths, blocks))
    return BackboneSpec(
        tuple(stages), branch=Inverted(), order="none", branch_scale="layerscale", norm="layer",
        norm_eps=1e-6, activation="gelu", downsample="patch",
        stem=Stem(widths[0], 4, 4, activation=False, bias=True),
    )  # fmt: skip


# CIFAR nets (He et al. 2015, section 4.2: option A; Zagoruyko & Komodakis 2016: wide).
_SMALL_STEM = Stem(16)
_RAW_STEM = Stem(16, norm=False, activation=False)


def _cifar(depth: int) -> BackboneSpec:
    blocks = [(depth - 2) // 6] * 3
    return BackboneSpec(_stages((16, 32, 64), blocks), stem=_SMALL_STEM, shortcut="pad")


def _preact_bottleneck(depth: int) -> BackboneSpec:
    blocks = [(depth - 2) // 9] * 3
    stages = _stages((64, 128, 256), blocks)
    return BackboneSpec(stages, stem=_RAW_STEM, branch=Bottleneck(), order="pre")


def _wide(depth: int, width: int) -> BackboneSpec:
    widths, blocks = [16 * width, 32 * width, 64 * width], [(depth - 4) // 6] * 3
    return BackboneSpec(_stages(widths, blocks), stem=_RAW_STEM, order="pre")


# Speech, 1-D: features are channels. QuartzNet (Kriman et al. 2020), MatchboxNet (Majumdar 2020),
# TC-ResNet (Choi et al. 2019). The first two always project their shortcut.
def _quartznet(times: int) -> BackboneSpec:
    groups = (256, 33), (256, 39), (512, 51), (512, 63), (512, 75)
    return BackboneSpec(
        tuple(Stage(channels, times, kernel=kernel) for channels, kernel in groups),
        dims=1, in_channels=64, branch=Separable(5), shortcut="always", norm_eps=1e-3,
        stem=Stem(256, 33, 2, separable=True),
        tail=(Layer(512, 87, dilation=2, separable=True), Layer(1024, 1)),
    )  # fmt: skip


# Citrinet (Majumdar et al. 2021, section 3): QuartzNet with squeeze and excitation everywhere and
# three strides of 2, each in the last convolution of the block that opens a group.
def _citrinet(channels: int, last: int = 640) -> BackboneSpec:
    groups = range(11, 22, 2), range(13, 26, 2), range(25, 40, 2)
    stages = (
        Stage(channels, 1, 2 if kernel == group[0] else 1, kernel=kernel)
        for group in groups
        for kernel in group
    )
    return BackboneSpec(
        tuple(stages), dims=1, in_channels=80, branch=Separable(5), shortcut="always",
        norm_eps=1e-3, attention="se", attention_reduction=8, attention_bias=False,
        attention_everywhere=True, stem=Stem(channels, 5, separable=True),
        tail=(Layer(last, 41, separable=True),),
    )  # fmt: skip


def _matchboxnet(blocks: int, repeats: int) -> BackboneSpec:
    return BackboneSpec(
        tuple(Stage(64, 1, kernel=13 + 2 * index) for index in range(blocks)),
        dims=1, in_channels=64, branch=Separable(repeats), shortcut="always",
        norm_eps=1e-3, stem=Stem(128, 11, separable=True),
        tail=(Layer(128, 29, dilation=2, separable=True), Layer(128, 1)),
    )  # fmt: skip


# Ours: a spectrogram, 40 mel bands by 101 frames a second, seen as a picture of one channel.
def _mel_resnet(*widths: int) -> BackboneSpec:
    return BackboneSpec(
        _stages(widths, (2, 2, 2), first_stride=2), in_channels=1, stem=Stem(widths[0], 3, 2),
        attention="se",
    )  # fmt: skip


# Ours, to write down speech on a CPU: dense convolutions, which processors are fastest at, at a
# stride of 4 that leaves room for characters; it reaches 4 seconds, so long recordings can be cut.
_MEL_RESNET_CTC = BackboneSpec(
    (Stage(256, 8, 2, kernel=7),), dims=1, in_channels=80, stem=Stem(256, 11, 2),
)  # fmt: skip


def _tc_resnet(blocks: int, times: float = 1) -> BackboneSpec:
    stem, *widths = (int(times * channels) for channels in (16, 24, 32, 48))
    return BackboneSpec(
        tuple(Stage(channels, blocks, 2, kernel=9) for channels in widths),
        dims=1, in_channels=40, stem=Stem(stem), shortcut_activation=True,
    )  # fmt: skip


# BC-ResNet (Kim et al. 2021, table 1), on 40 mel bands. Five rows are left of them, which the tail
# reads as a patch five rows high: without padding, as published. A head of means ends it.
def _bc_resnet(times: float) -> BackboneSpec:
    stem, *widths, last = (int(times * channels) for channels in (16, 8, 12, 16, 20, 32))
    stages = (
        Stage(channels, blocks, (stride, 1), dilation=(1, dilation))
        for channels, blocks, stride, dilation in zip(
            widths, (2, 2, 4, 4), (1, 2, 2, 1), (1, 2, 4, 8), strict=True
        )
    )
    collapse = Layer(
        widths[-1], 5, (5, 1), groups=widths[-1], norm=False, activation=False, centred=False
    )
    return BackboneSpec(
        tuple(stages), in_channels=1, branch=Broadcast(), shortcut="none",
        stem=Stem(stem, 5, (2, 1)), tail=(collapse, Layer(last, 1)),
    )  # fmt: skip


# res8 and res15 (Tang & Lin 2018, section 3.1), on frequency by time: every sum is carried as it
# is, and what goes into the next convolution is normalised, without weights. Two blocks of res15
# have convolutions of two dilations, as where a stride became one.
def _res(stages: Sequence[Stage], stem: Stem, tail: Sequence[Layer] = ()) -> BackboneSpec:
    return BackboneSpec(
        tuple(stages), in_channels=1, branch=Temporal(), order="pre", norm_after_activation=True,
        norm_affine=False, shortcut="pad", tail=tuple(tail),
        stem=replace(stem, norm=False),
    )  # fmt: skip


def _res8(maps: int) -> BackboneSpec:
    # A mean over 3 bands by 4 frames; the last ones count, though they fill no whole cell.
    return _res([Stage(maps, 3)], Stem(maps, pool=(3, 4), averaged=True))


def _res15(maps: int) -> BackboneSpec:
    dilations = (1, 1), (1, 2), (2, 2), (4, 4), (4, 8), (8, 8)
    stages = [
        Stage(maps, 1, dilation=second, first_dilation=None if first == second else first)
        for first, second in dilations
    ]
    return _res(stages, Stem(maps), [Layer(maps, dilation=16, bias=False)])


# ECAPA-TDNN (Desplanques et al. 2020, figure 2), without its pooling and embedding; each block
# reads the one before it, as in SpeechBrain.
def _ecapa(channels: int) -> BackboneSpec:
    return BackboneSpec(
        tuple(Stage(channels, 1, dilation=dilation) for dilation in (2, 3, 4)),
        dims=1, in_channels=80, stem=Stem(channels, 5), tail=(Layer(1536, 1),), tail_reads="all",
        branch=Res2(8, activation=True), order="none", norm_after_activation=True,
        attention="se", attention_reduction=channels // 128,
    )  # fmt: skip


# ResNet34 of WeSpeaker (Wang et al. 2023, section 3.2): half the width, and no pooling.
_TSTP = BackboneSpec(_stages((32, 64, 128, 256), (3, 4, 6, 3)), in_channels=1, stem=Stem(32))


# Text, 1-D: embeddings are channels. VDCNN (Conneau et al. 2017, sections 3.1 and 4.3): of the ways
# it halves a text the best, max pooling; the others are downsample="stride" and "k_max".
def _vdcnn(*blocks: int) -> BackboneSpec:
    stem = Stem(64, norm=False, activation=False, bias=True)
    stages = _stages((64, 128, 256, 512), blocks)
    return BackboneSpec(stages, dims=1, in_channels=16, stem=stem, downsample="max")


# DPCNN (Johnson & Zhang 2017, section 2): what embeds regions of 3 words stays without an
# activation, no shortcut has a weight, and nothing is normalised.
_DPCNN = BackboneSpec(
    (Stage(250, 1), *(Stage(250, 1, 2),) * 6), dims=1, in_channels=250, norm="none", order="pre",
    stem=Stem(250, activation=False), downsample="max",
)  # fmt: skip


# Ours: two pre-activated blocks on word vectors, 11 words wide.
_WORD_RESNET = BackboneSpec(
    (Stage(192, 2),), dims=1, in_channels=128, order="pre", stem=replace(_RAW_STEM, channels=192),
)  # fmt: skip


# TCN (Bai et al. 2018, section 5): weight norm, dilations 1, 2, 4, ... and as wide as its input.
def _tcn(levels: int, channels: int, in_channels: int, dropout: float) -> BackboneSpec:
    return BackboneSpec(
        tuple(Stage(channels, 1, dilation=2**level) for level in range(levels)),
        dims=1, in_channels=in_channels, branch=Temporal(), norm="weight", causal=True,
        dropout=dropout,
    )  # fmt: skip


# Gated convolutions (Dauphin et al. 2017, table 1, GCNN-14): words before, one per layer, gate it.
_GCNN14 = BackboneSpec(
    tuple(
        Stage(channels, layers, kernel=kernel)
        for channels, layers, kernel in (
            (850, 3, 6), (850, 1, 1), (850, 4, 5), (850, 1, 1), (850, 3, 4), (1024, 1, 4),
            (2048, 1, 4),
        )
    ),
    dims=1, in_channels=280, branch=Gated(), order="none", norm="weight", causal=True,
    stem=Stem(850, 1, activation=False),
)  # fmt: skip


# Ours, of gated layers: every sum is as the layer left it, 15 words wide.
_WORD_GCNN = replace(_WORD_RESNET, stages=(Stage(192, 6),), branch=Gated(), order="none")

# Ours, of ConvNeXt's blocks without their scales, 27 words wide.
_WORD_CONVNEXT = replace(
    _convnext((192,), (4,)), dims=1, in_channels=128, branch_scale="none",
    stem=replace(_RAW_STEM, channels=192),
)  # fmt: skip


# ByteNet's decoder for characters (Kalchbrenner et al. 2016, figure 3 left): six times five blocks
# at dilations 1 to 16, d = 512 channels inside and 2 d outside.
_BYTENET = BackboneSpec(
    tuple(Stage(1024, 1, dilation=2 ** (block % 5)) for block in range(30)),
    dims=1, in_channels=1024, branch=Bottleneck(0.5), order="pre", norm="layer", causal=True,
)  # fmt: skip


def _causal_gcnn(depth: int, dilations: int, channels: int) -> BackboneSpec:
    """Ours, to tell the next token: gated layers at dilations 1, 2, 4, …, and again."""
    return BackboneSpec(
        tuple(Stage(channels, 1, dilation=2 ** (layer % dilations)) for layer in range(depth)),
        dims=1, in_channels=channels, branch=Gated(), order="pre", norm="layer",
        activation="silu", causal=True,
    )  # fmt: skip


SPECS: dict[str, BackboneSpec] = {
    "resnet18": _basic(2, 2, 2, 2),
    "resnet34": _basic(3, 4, 6, 3),
    "resnet50": _R50,
    "resnet101": _R101,
    "resnet152": _bottleneck(3, 8, 36, 3),
    "resnet18d": _deep(_basic(2, 2, 2, 2)),
    "resnet34d": _deep(_basic(3, 4, 6, 3)),
    "resnet50d": _deep(_R50),
    "resnet101d": _deep(_R101),
    "resnet152d": _deep(_bottleneck(3, 8, 36, 3)),
    "resnext50_32x4d": replace(_R50, branch=Bottleneck(0.5, groups=32)),
    "resnext101_32x8d": replace(_R101, branch=Bottleneck(1.0, groups=32)),
    "wide_resnet50_2": replace(_R50, branch=Bottleneck(0.5)),
    "wide_resnet101_2": replace(_R101, branch=Bottleneck(0.5)),
    "resnetv2_50": _V2,
    "resnetv2_50x1_bit": _BIT,
    "resnetblur50": replace(_R50, downsample="blur"),
    "skipinit_resnet50": replace(_V2, norm="none", branch_scale="skipinit"),
    "convnext_tiny": _convnext((96, 192, 384, 768), (3, 3, 9, 3)),
    "seresnet50": replace(_R50, attention="se"),
    "ecaresnet50d": _deep(_R50, attention="eca"),
    "ecaresnet50t": _deep(_R50, 24, 32, attention="eca"),
    "ecaresnet101d": _deep(_R101, attention="eca"),
    "resnet20": _cifar(20),
    "resnet32": _cifar(32),
    "resnet44": _cifar(44),
    "resnet56": _cifar(56),
    "resnet110": _cifar(110),
    "resnet1202": _cifar(1202),
    "wrn_10_4": _wide(10, 4),
    "wrn_28_10": _wide(28, 10),
    "wrn_40_4": _wide(40, 4),
    # Ours, for small images in little time: 16 x 16 positions from the first block on.
    "resnet14_small": BackboneSpec(_stages((64, 128, 256), (2, 2, 2)), stem=Stem(64, 3, 2)),
    # Ours, for a class of every pixel in little time: a first stage of few channels at stride 2.
    "resnet16_fine": BackboneSpec(_stages((32, 64, 128, 256), (1, 2, 2, 2)), stem=Stem(32, 3, 2)),
    "resnet18_small": replace(_basic(2, 2, 2, 2), stem=Stem(64)),
    "preact_resnet110": replace(_cifar(110), order="pre", stem=_RAW_STEM),
    "preact_resnet164": _preact_bottleneck(164),
    "preact_resnet1001": _preact_bottleneck(1001),
    "fixup_resnet110": replace(_cifar(110), norm="none", init="fixup"),
    "rezero_resnet110": replace(_cifar(110), branch_scale="rezero"),
    "stochastic_depth_resnet110": replace(_cifar(110), drop_path=0.5),
    "quartznet5x5": _quartznet(1),
    "quartznet10x5": _quartznet(2),
    "quartznet15x5": _quartznet(3),
    "citrinet256": _citrinet(256),
    "citrinet384": _citrinet(384),
    "citrinet512": _citrinet(512),
    "citrinet1024": _citrinet(1024, 1024),
    "mel_resnet_ctc18": _MEL_RESNET_CTC,
    "matchboxnet_3x1": _matchboxnet(3, 1),
    "matchboxnet_3x2": _matchboxnet(3, 2),
    "matchboxnet_6x2": _matchboxnet(6, 2),
    "tc_resnet8": _tc_resnet(1),
    "tc_resnet14": _tc_resnet(2),
    "tc_resnet8_1_5": _tc_resnet(1, 1.5),
    "tc_resnet14_1_5": _tc_resnet(2, 1.5),
    # Ours: twice as wide, which answers a second of sound in about a millisecond on one core.
    "tc_resnet8_2": _tc_resnet(1, 2),
    "mel_resnet14": _mel_resnet(32, 64, 128),
    "mel_resnet14_wide": _mel_resnet(48, 96, 192),
    "bc_resnet1": _bc_resnet(1),
    "bc_resnet1_5": _bc_resnet(1.5),
    "bc_resnet2": _bc_resnet(2),
    "bc_resnet3": _bc_resnet(3),
    "bc_resnet6": _bc_resnet(6),
    "bc_resnet8": _bc_resnet(8),
    "res8": _res8(45),
    "res8_narrow": _res8(19),
    "res15": _res15(45),
    "res15_narrow": _res15(19),
    "resnet34_tstp": _TSTP,
    "ecapa512": _ecapa(512),
    "ecapa1024": _ecapa(1024),
    "vdcnn9": _vdcnn(1, 1, 1, 1),
    "vdcnn17": _vdcnn(2, 2, 2, 2),
    "vdcnn29": _vdcnn(5, 5, 2, 2),
    "vdcnn49": _vdcnn(8, 8, 5, 3),
    "dpcnn": _DPCNN,
    "word_resnet6": _WORD_RESNET,
    "word_gcnn8": _WORD_GCNN,
    "word_convnext14": _WORD_CONVNEXT,
    # Ours: the TCN's blocks to both sides, 253 words wide.
    "word_tcn13": replace(_tcn(6, 192, 128, 0.1), causal=False),
    "tcn": _tcn(4, 600, 600, 0.45),
    "tcn_char": _tcn(3, 450, 100, 0.1),
    "gcnn14": _GCNN14,
    "bytenet": _BYTENET,
    "char_gcnn12": _causal_gcnn(12, 6, 192),  # reaches 253 characters
    "bpe_gcnn8": _causal_gcnn(8, 4, 256),  # reaches 61 byte pairs, and is quick to tune to a task
}


# Words of timm and torchvision, and what to say here instead.
FOREIGN = {
    "num_classes": "say num_labels= to a model's build; a backbone has no classes",
    "in_chans": "say in_channels=",
    "pretrained": "leave it out, and give what is made to rb.weights.load_weights with a file",
    "weights": "leave it out, and give what is made to rb.weights.load_weights with a file",
    "features_only": "leave it out: a backbone always gives one feature per stage",
    "out_indices": "ask for features when you call the net: net(x, stages=(1, -1)), all by default",
    "output_stride": "make the spec with rb.with_output_stride(spec, 16)",
    "drop_path_rate": "say drop_path=",
    "drop_rate": "say dropout= in the branches, or head={'dropout': …} before the classes",
    "norm_layer": "say norm=, as norm='group'",
    "act_layer": "say activation=, as activation='gelu'",
    "global_pool": "say head={'pooling': …}",
}


def resolve(name_or_spec: str | BackboneSpec, **changes: Any) -> BackboneSpec:
    """Look a spec up by name and replace fields in it.

    >>> resolve("resnet18", dims=1, in_channels=40).in_channels
    40

    Raises:
        InputError: no such name or field (the nearest is named), or a refused combination.
    """
    if isinstance(name_or_spec, BackboneSpec):
        spec = name_or_spec
    elif not isinstance(name_or_spec, str):
        raise InputError(
            f"a {type(name_or_spec).__name__} is no spec; give one name in SPECS, or one "
            "BackboneSpec (BackboneSpec.from_dict makes it of a dict)"
        )
    elif name_or_spec in SPECS:
        spec = SPECS[name_or_spec]
    else:
        raise InputError(f"no spec is called {name_or_spec!r}; {nearest(name_or_spec, SPECS)}")
    for name in changes:
        if name in FOREIGN:
            raise InputError(f"{name}= is a word of timm or torchvision; {FOREIGN[name]}")
    check_names(BackboneSpec, changes)
    return replace(spec, **changes)


def backbone(name_or_spec: str | BackboneSpec, **changes: Any) -> Backbone:
    """Make a backbone from a name in `SPECS` or a spec, with fields of the spec replaced.

    >>> backbone("resnet18", in_channels=1, skip="none").parameter_difference
    173824

    Raises:
        InputError: no such name or field (the nearest is named), or a refused combination.
    """
    return Backbone(resolve(name_or_spec, **changes))
