"""Published backbones, and a few of our own, as specs. Names are torchvision's or timm's where one
exists; parameter counts are held exactly by the tests."""

from collections.abc import Sequence
from dataclasses import replace

from resbackbones.core.spec import BackboneSpec, Layer, Stage, Stem


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
    return BackboneSpec(stages, stem=_STEM, branch="bottleneck")


_R50 = _bottleneck(3, 4, 6, 3)
# CIFAR nets (He et al. 2015, section 4.2: option A; Zagoruyko & Komodakis 2016: wide).
_SMALL_STEM = Stem(16)
_RAW_STEM = Stem(16, norm=False, activation=False)


def _cifar(depth: int) -> BackboneSpec:
    blocks = [(depth - 2) // 6] * 3
    return BackboneSpec(_stages((16, 32, 64), blocks), stem=_SMALL_STEM, shortcut="pad")


def _wide(depth: int, width: int) -> BackboneSpec:
    widths, blocks = [16 * width, 32 * width, 64 * width], [(depth - 4) // 6] * 3
    return BackboneSpec(_stages(widths, blocks), stem=_RAW_STEM, order="pre")


# Speech, 1-D: features are channels. QuartzNet (Kriman et al. 2020), MatchboxNet (Majumdar 2020),
# TC-ResNet (Choi et al. 2019). The first two always project their shortcut.
def _quartznet(times: int) -> BackboneSpec:
    groups = (256, 33), (256, 39), (512, 51), (512, 63), (512, 75)
    return BackboneSpec(
        tuple(Stage(channels, times, kernel=kernel) for channels, kernel in groups),
        dims=1, in_channels=64, branch="separable", repeats=5, shortcut="always", norm_eps=1e-3,
        stem=Stem(256, 33, 2, separable=True),
        tail=(Layer(512, 87, dilation=2, separable=True), Layer(1024, 1)),
    )  # fmt: skip


def _matchboxnet(blocks: int, repeats: int) -> BackboneSpec:
    return BackboneSpec(
        tuple(Stage(64, 1, kernel=13 + 2 * index) for index in range(blocks)),
        dims=1, in_channels=64, branch="separable", repeats=repeats, shortcut="always",
        norm_eps=1e-3, stem=Stem(128, 11, separable=True),
        tail=(Layer(128, 29, dilation=2, separable=True), Layer(128, 1)),
    )  # fmt: skip


# Ours: a spectrogram, 40 mel bands by 101 frames a second, seen as a picture of one channel.
_MEL_RESNET = BackboneSpec(
    _stages((32, 64, 128), (2, 2, 2), first_stride=2), in_channels=1, stem=Stem(32, 3, 2),
    attention="se",
)  # fmt: skip


def _tc_resnet(blocks: int) -> BackboneSpec:
    stages = tuple(Stage(channels, blocks, 2, kernel=9) for channels in (24, 32, 48))
    return BackboneSpec(stages, dims=1, in_channels=40, stem=Stem(16), shortcut_activation=True)


# Text, 1-D: embeddings are channels. VDCNN (Conneau et al. 2017), DPCNN (Johnson & Zhang 2017).
def _vdcnn(*blocks: int) -> BackboneSpec:
    stem = Stem(64, norm=False, activation=False, bias=True)
    stages = _stages((64, 128, 256, 512), blocks)
    return BackboneSpec(stages, dims=1, in_channels=16, stem=stem, downsample="max")


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
        dims=1, in_channels=in_channels, branch="temporal", norm="weight", causal=True,
        dropout=dropout,
    )  # fmt: skip


SPECS: dict[str, BackboneSpec] = {
    "resnet18": _basic(2, 2, 2, 2),
    "resnet34": _basic(3, 4, 6, 3),
    "resnet50": _R50,
    "resnet101": _bottleneck(3, 4, 23, 3),
    "resnet152": _bottleneck(3, 8, 36, 3),
    "resnext50_32x4d": replace(_R50, groups=32, bottleneck_ratio=0.5),
    "wide_resnet50_2": replace(_R50, bottleneck_ratio=0.5),
    "resnetv2_50": replace(_R50, order="pre", stem=replace(_STEM, norm=False, activation=False)),
    "seresnet50": replace(_R50, attention="se"),
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
    "resnet14_small": BackboneSpec(_stages((64, 128, 256), (2, 2, 2)), stem=Stem(64, pool=2)),
    "resnet18_small": replace(_basic(2, 2, 2, 2), stem=Stem(64)),
    "preact_resnet110": replace(_cifar(110), order="pre", stem=_RAW_STEM),
    "quartznet5x5": _quartznet(1),
    "quartznet10x5": _quartznet(2),
    "quartznet15x5": _quartznet(3),
    "matchboxnet_3x1": _matchboxnet(3, 1),
    "matchboxnet_3x2": _matchboxnet(3, 2),
    "matchboxnet_6x2": _matchboxnet(6, 2),
    "tc_resnet8": _tc_resnet(1),
    "tc_resnet14": _tc_resnet(2),
    "mel_resnet14": _MEL_RESNET,
    "vdcnn9": _vdcnn(1, 1, 1, 1),
    "vdcnn17": _vdcnn(2, 2, 2, 2),
    "vdcnn29": _vdcnn(5, 5, 2, 2),
    "vdcnn49": _vdcnn(8, 8, 5, 3),
    "dpcnn": _DPCNN,
    "word_resnet6": _WORD_RESNET,
    "tcn": _tcn(4, 600, 600, 0.45),
    "tcn_char": _tcn(3, 450, 100, 0.1),
}
