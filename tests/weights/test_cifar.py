"""Weights of the CIFAR repositories, whose nets are written here again with their names."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import resbackbones as rb
from resbackbones.vision import ResidualForImageClassification
from tests.weights.helpers import assert_close, logits, perturbed


def conv(given: int, channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(given, channels, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """conv1, bn1, conv2, bn2, and a shortcut: padded on both sides, or projected."""

    def __init__(self, given: int, channels: int, stride: int, padded: bool) -> None:
        super().__init__()
        self.conv1 = conv(given, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if not padded and (stride > 1 or given != channels):
            self.shortcut = nn.Sequential(
                conv(given, channels, 1, stride), nn.BatchNorm2d(channels)
            )
        self.extra = (channels - given) // 2 if padded else 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.extra:
            return (
                y + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
            ).relu()
        return (y + self.shortcut(x)).relu()


class PreactivatedBlock(nn.Module):
    """bn1, conv1, bn2, conv2, and a shortcut padded on both sides."""

    def __init__(self, given: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(given)
        self.conv1 = conv(given, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels)
        self.extra = (channels - given) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        if self.extra:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return y + x


class Net(nn.Module):
    """conv1, bn1, layer1 … layerN, linear."""

    def __init__(self, widths: tuple[int, ...], blocks: int, order: str, padded: bool) -> None:
        super().__init__()
        self.conv1 = conv(3, widths[0])
        self.preactivated = order == "pre"
        self.bn1 = nn.BatchNorm2d(widths[-1] if self.preactivated else widths[0])
        given = widths[0]
        for number, channels in enumerate(widths, 1):
            made: list[nn.Module] = []
            for index in range(blocks):
                stride = 2 if number > 1 and index == 0 else 1
                if self.preactivated:
                    made.append(PreactivatedBlock(given, channels, stride))
                else:
                    made.append(Block(given, channels, stride, padded))
                given = channels
            self.add_module(f"layer{number}", nn.Sequential(*made))
        self.depth = len(widths)
        self.linear = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if not self.preactivated:
            x = self.bn1(x).relu()
        for number in range(1, self.depth + 1):
            x = getattr(self, f"layer{number}")(x)
        if self.preactivated:
            x = self.bn1(x).relu()
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, given: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(given)
        self.conv1 = conv(given, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels)
        self.convShortcut = conv(given, channels, 1, stride) if given != channels else None

    def forward(self, x: Tensor) -> Tensor:
        inside = self.bn1(x).relu()
        y = self.conv2(self.bn2(self.conv1(inside)).relu())
        return y + (x if self.convShortcut is None else self.convShortcut(inside))


class WideStage(nn.Module):
    def __init__(self, given: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(
                WideBlock(channels if index else given, channels, 1 if index else stride)
                for index in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideNet(nn.Module):
    """conv1, block1 … block3, bn1, fc."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 16)
        self.block1 = WideStage(16, 16 * width, blocks, 1)
        self.block2 = WideStage(16 * width, 32 * width, blocks, 2)
        self.block3 = WideStage(32 * width, 64 * width, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.bn1(x).relu().mean((2, 3)))


STAGES = rb.SPECS["resnet20"].stages


def image() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("theirs", "ours", "changes", "reordered"),
    [
        (Net((16, 32, 64), 3, "post", True), "resnet20", {}, True),
        (Net((16, 32, 64), 3, "post", False), "resnet20", {"shortcut": "projection"}, False),
        (Net((64, 128, 256, 512), 2, "post", False), "resnet18_small", {}, False),
        (Net((16, 32, 64), 3, "pre", True), "preact_resnet110", {"stages": STAGES}, True),
        (WideNet(4, 1), "wrn_10_4", {}, False),
    ],
    ids=["option A", "option B", "of ImageNet", "pre-activated", "wide"],
)
def test_logits(theirs: nn.Module, ours: str, changes: dict, reordered: bool) -> None:
    perturbed(theirs)
    model = ResidualForImageClassification.build(ours, num_labels=10, **changes).eval()
    for source in (theirs, theirs.state_dict()):
        said = rb.weights.load_weights(model, source)
        assert len(said) == 1 + reordered
        assert ("channels are reordered" in said[-1]) == reordered
        expected = logits(theirs, image())
        assert len(expected.unique()) == expected.numel()
        assert_close(logits(model, image()), expected)


def test_a_checkpoint_as_repositories_save_it(tmp_path: Path) -> None:
    theirs = perturbed(Net((16, 32, 64), 3, "post", True))
    saved = {"module." + name: value for name, value in theirs.state_dict().items()}
    torch.save({"state_dict": saved, "best_prec1": 91.7}, tmp_path / "resnet20.th")
    torch.save({"net": saved, "acc": 91.7, "epoch": 3}, tmp_path / "ckpt.pth")
    for path in tmp_path.iterdir():
        model = ResidualForImageClassification.build("resnet20", num_labels=10).eval()
        rb.weights.load_weights(model, path)
        assert_close(logits(model, image()), logits(theirs, image()))


def test_other_classes_on_reordered_channels() -> None:
    theirs = perturbed(Net((16, 32, 64), 3, "post", True))
    model = ResidualForImageClassification.build("resnet20", num_labels=3).eval()
    said = rb.weights.load_weights(model, theirs)
    assert said[1] == "the classes are left as drawn: theirs are 10, here 3"
