"""What `tasks.speed` measures ours beside: sequence nets as they are usually written, by
`nn.Conv1d`, `nn.BatchNorm1d` and no masks; torchvision's nets; images made ready one by one.

Each net lists its modules in the order in which ours lists them, so that `copy_weights` needs no
names.
"""

import io
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import PIL.Image
import torch
import torchvision
from datasets import ClassLabel, Dataset, Features, Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torchvision import transforms
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7


class _SqueezeExcitation(nn.Module):
    """Channels scaled by a gate of their means over time (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(functional.relu(self.squeeze(x.mean(2)))).sigmoid()
        return x * gate.unsqueeze(2)


class _ConvNorm(nn.Sequential):
    """Convolution (or a depthwise and a pointwise one), batch norm, and squeeze and excitation and
    ReLU if asked for."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        separable: bool = False,
        relu: bool = True,
        eps: float = 1e-5,
        reduction: int = 0,
    ) -> None:
        margin = dilation * (kernel - 1) // 2
        convolutions = [nn.Conv1d(inputs, outputs, kernel, stride, margin, dilation, bias=False)]
        if separable:
            convolutions = [
                nn.Conv1d(
                    inputs, inputs, kernel, stride, margin, dilation, groups=inputs, bias=False
                ),
                nn.Conv1d(inputs, outputs, 1, bias=False),
            ]
        after: list[nn.Module] = [_SqueezeExcitation(outputs, reduction)] if reduction else []
        after += [nn.ReLU(inplace=True)] if relu else []
        super().__init__(*convolutions, nn.BatchNorm1d(outputs, eps=eps), *after)


class _Block(nn.Module):
    """A branch plus its shortcut, then ReLU."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.branch(x) + self.shortcut(x), inplace=True)


def _separable_block(
    inputs: int, outputs: int, kernel: int, repeats: int, stride: int = 1, reduction: int = 0
) -> _Block:
    """Separable convolutions with the norm of NeMo, whose eps is not torch's; the last one has the
    stride, and squeeze and excitation."""
    widths, last = [inputs] + [outputs] * repeats, repeats - 1
    branch = [
        _ConvNorm(
            *(a, b, kernel, stride if index == last else 1),
            separable=True,
            relu=index < last,
            eps=1e-3,
            reduction=reduction if index == last else 0,
        )
        for index, (a, b) in enumerate(pairwise(widths))
    ]
    shortcut = _ConvNorm(inputs, outputs, 1, stride, relu=False, eps=1e-3)
    return _Block(nn.Sequential(*branch), shortcut)


def quartznet(times: int) -> nn.Module:
    """QuartzNet (Kriman et al. 2020), the encoder, with so many blocks per group."""
    groups = (256, 33), (256, 39), (512, 51), (512, 63), (512, 75)
    blocks, width = [], 256
    for channels, kernel in groups:
        for _ in range(times):
            blocks.append(_separable_block(width, channels, kernel, 5))
            width = channels
    return nn.Sequential(
        _ConvNorm(64, 256, 33, 2, separable=True, eps=1e-3),
        *blocks,
        _ConvNorm(512, 512, 87, dilation=2, separable=True, eps=1e-3),
        _ConvNorm(512, 1024, 1, eps=1e-3),
    )


def citrinet(channels: int) -> nn.Module:
    """Citrinet (Majumdar et al. 2021), the encoder."""
    options: dict[str, Any] = {"separable": True, "eps": 1e-3, "reduction": 8}
    groups = range(11, 22, 2), range(13, 26, 2), range(25, 40, 2)
    blocks = [
        _separable_block(channels, channels, kernel, 5, 2 if kernel == group[0] else 1, 8)
        for group in groups
        for kernel in group
    ]
    stem = _ConvNorm(80, channels, 5, **options)
    return nn.Sequential(stem, *blocks, _ConvNorm(channels, 640, 41, **options))


def mel_resnet_ctc18() -> nn.Module:
    """Our own recogniser on mel bands, the encoder."""
    blocks = [_basic_block(256, 256, 7, 1 if index else 2, relu=False) for index in range(8)]
    return nn.Sequential(_ConvNorm(80, 256, 11, 2), *blocks)


def matchboxnet_3x2() -> nn.Module:
    """MatchboxNet-3x2x64 (Majumdar & Ginsburg 2020), the encoder."""
    blocks = [
        _separable_block(128 if index == 0 else 64, 64, 13 + 2 * index, 2) for index in range(3)
    ]
    return nn.Sequential(
        _ConvNorm(64, 128, 11, separable=True, eps=1e-3),
        *blocks,
        _ConvNorm(64, 128, 29, dilation=2, separable=True, eps=1e-3),
        _ConvNorm(128, 128, 1, eps=1e-3),
    )


def _basic_block(inputs: int, outputs: int, kernel: int, stride: int, relu: bool) -> _Block:
    """Two convolutions; `relu` says whether a projection shortcut has one too."""
    shortcut = None
    if stride > 1 or inputs != outputs:
        shortcut = _ConvNorm(inputs, outputs, 1, stride, relu=relu)
    return _Block(
        nn.Sequential(
            _ConvNorm(inputs, outputs, kernel, stride),
            _ConvNorm(outputs, outputs, kernel, relu=False),
        ),
        shortcut,
    )


def tc_resnet14() -> nn.Module:
    """TC-ResNet-14 (Choi et al. 2019), the features."""
    layers: list[nn.Module] = [_ConvNorm(40, 16, 3)]
    width = 16
    for channels in (24, 32, 48):
        layers += [
            _basic_block(width, channels, 9, 2, relu=True),
            _basic_block(channels, channels, 9, 1, relu=True),
        ]
        width = channels
    return nn.Sequential(*layers)


def vdcnn9() -> nn.Module:
    """VDCNN-9 with shortcuts (Conneau et al. 2017), without embedding and classifier."""
    layers: list[nn.Module] = [nn.Conv1d(16, 64, 3, padding=1)]
    width = 64
    for channels in (64, 128, 256, 512):
        if channels > 64:
            layers.append(nn.MaxPool1d(3, 2, 1))
        layers.append(_basic_block(width, channels, 3, 1, relu=False))
        width = channels
    return nn.Sequential(*layers)


class _PreActivated(nn.Module):
    """x plus two convolutions, each behind a ReLU (Johnson & Zhang 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, channels, 3, padding=1)
        self.second = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(functional.relu(x)), inplace=True))


def dpcnn() -> nn.Module:
    """DPCNN (Johnson & Zhang 2017), without embedding and classifier."""
    layers: list[nn.Module] = [nn.Conv1d(250, 250, 3, padding=1), _PreActivated(250)]
    for _ in range(6):
        layers += [nn.MaxPool1d(3, 2, 1), _PreActivated(250)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


class _Temporal(nn.Module):
    """Two causal, dilated convolutions with weight norm (Bai et al. 2018, figure 1b)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.history = 2 * dilation
        self.first, self.second = (
            parametrizations.weight_norm(nn.Conv1d(channels, channels, 3, dilation=dilation))
            for _ in range(2)
        )
        self.dropout = nn.Dropout(0.45)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for convolution in (self.first, self.second):
            y = functional.relu(convolution(functional.pad(y, (self.history, 0))), inplace=True)
            y = self.dropout(y)
        return functional.relu(x + y, inplace=True)


def tcn() -> nn.Module:
    """TCN for words (Bai et al. 2018, section 5)."""
    return nn.Sequential(*(_Temporal(600, 2**level) for level in range(4)))


def resnet50() -> nn.Module:
    """torchvision's ResNet-50 without pooling and classifier."""
    return nn.Sequential(*list(torchvision.models.resnet50().children())[:-2])


PEERS: dict[str, Callable[[], nn.Module]] = {
    "quartznet5x5": partial(quartznet, 1),
    "tc_resnet14": tc_resnet14,
    "matchboxnet_3x2": matchboxnet_3x2,
    "dpcnn": dpcnn,
    "vdcnn9": vdcnn9,
    "tcn": tcn,
    "resnet50": resnet50,
}
RECOGNISERS: dict[str, Callable[[], nn.Module]] = {
    **{f"quartznet{5 * times}x5": partial(quartznet, times) for times in (1, 2, 3)},
    **{f"citrinet{channels}": partial(citrinet, channels) for channels in (256, 384, 512)},
    "mel_resnet_ctc18": mel_resnet_ctc18,
}
TOLERANCE = 1e-4  # of the largest output


def fcos(classes: int, side: int) -> nn.Module:
    """torchvision's FCOS (Tian et al. 2019) on its pyramid of its ResNet-18, every layer of which
    is trained and has batch norms, for square images that are normalised already."""
    body = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    still = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return FCOS(body, classes, min_size=side, max_size=side, **still)


def noise(count: int, side: int) -> Dataset:
    """So many square PNGs, of 10 classes."""

    def png() -> dict[str, Any]:
        file = io.BytesIO()
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(file, "png")
        return {"bytes": file.getvalue(), "path": None}

    random = np.random.default_rng(0)
    kinds = Features({"image": Image(), "label": ClassLabel(10)})
    content = {"image": [png() for _ in range(count)], "label": [n % 10 for n in range(count)]}
    return Dataset.from_dict(content, features=kinds)


def image_by_image(rows: Dataset, shift: int) -> Dataset:
    """Rows of "image" and "label" as transformers' examples make them ready: each image decoded and
    transformed by itself whenever it is asked for."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(rows[0]["image"].size, shift),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    def ready(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = [transform(image.convert("RGB")) for image in batch["image"]]
        return {"pixel_values": pixels, "labels": batch["label"]}

    return rows.with_transform(ready)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give one module the weights and running statistics of another that lists the same numbers in
    the same order (a kernel of 1-D may be one of 2-D and one row)."""
    pairs = zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    for given, wanted in pairs:
        wanted.copy_(given.reshape(wanted.shape))


def check_alike(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Refuse to time what does not compute the same.

    Raises:
        RuntimeError: say by how much they differ.
    """
    error = (ours - theirs).abs().max() / theirs.abs().max()
    if not error <= TOLERANCE:
        raise RuntimeError(
            f"the outputs of {name} and of its peer differ by {error:.1e} of the largest, more "
            f"than {TOLERANCE:.0e}; make tasks/_speed_peers.py compute what our net does"
        )
