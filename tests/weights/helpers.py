"""Peers: nets of other libraries, randomly drawn, and the same net of ours."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import timm
import torch
import torchvision
import transformers
from timm.models._manipulate import reinit_non_persistent_buffers
from timm.models.convnext import ConvNeXt
from timm.models.resnetv2 import ResNetV2
from torch import nn

import resbackbones as rb
from resbackbones.vision import ResidualForImageClassification

BLOCKS = (1, 2, 1, 1)
WIDTHS = (16, 32, 64, 128)
NORM = {"norm": "layer"}


@dataclass(frozen=True)
class Peer:
    """A net of another library (of 7 classes), and the spec and head that make it here."""

    library: str
    make: Callable[..., nn.Module]
    spec: rb.BackboneSpec
    head: dict[str, Any] = field(default_factory=dict)

    def ours(self, classes: int = 7, **changes: Any) -> ResidualForImageClassification:
        return ResidualForImageClassification.build(
            self.spec, num_labels=classes, head=self.head, **changes
        ).eval()


def shallow(name: str, widths: tuple[int, ...] | None = None, **changes: Any) -> rb.BackboneSpec:
    """A spec of the zoo with fewer blocks, and narrower ones where widths are given."""
    spec = rb.SPECS[name]
    stages = zip(spec.stages, BLOCKS, widths or [s.channels for s in spec.stages], strict=True)
    if widths and spec.stem:
        channels = widths[0] // 4 if isinstance(spec.branch, rb.Bottleneck) else widths[0]
        changes["stem"] = replace(spec.stem, channels=channels)
    return replace(
        spec, stages=tuple(replace(s, blocks=b, channels=w) for s, b, w in stages), **changes
    )


def torchvision_resnet(block: str, **options: Any) -> nn.Module:
    net = torchvision.models.resnet
    return net.ResNet(getattr(net, block), list(BLOCKS), num_classes=7, **options)


def timm_resnet(block: str, **options: Any) -> nn.Module:
    net = timm.models.resnet
    return net.ResNet(getattr(net, block), BLOCKS, num_classes=7, **options)


def edged(net: nn.Module) -> nn.Module:
    """The net with zeros beyond the edges that its blurs see."""
    for module in net.modules():
        if isinstance(module, timm.layers.BlurPool2d):
            module.pad_mode = "constant"
    return net


def torchvision_convnext() -> nn.Module:
    settings = [
        torchvision.models.convnext.CNBlockConfig(width, after, blocks)
        for width, after, blocks in zip(WIDTHS, (*WIDTHS[1:], None), BLOCKS, strict=True)
    ]
    return torchvision.models.ConvNeXt(settings, num_classes=7)


def transformers_resnet(kind: str, **options: Any) -> nn.Module:
    widths = [4 * width for width in WIDTHS] if kind == "bottleneck" else WIDTHS
    config = transformers.ResNetConfig(
        layer_type=kind, embedding_size=16, hidden_sizes=widths, depths=BLOCKS, num_labels=7,
        **options,
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config)


def transformers_convnext(**options: Any) -> nn.Module:
    config = transformers.ConvNextConfig(
        hidden_sizes=WIDTHS, depths=BLOCKS, num_labels=7, **{"layer_norm_eps": 1e-6} | options
    )
    return transformers.ConvNextForImageClassification(config)


BIT = (128, 256, 512, 1024)  # groups of 32 divide all of them
WIDE = tuple(4 * width for width in WIDTHS)
PEERS = {
    "torchvision basic": Peer(
        "torchvision", lambda: torchvision_resnet("BasicBlock"), shallow("resnet18")
    ),
    "torchvision bottleneck": Peer(
        "torchvision", lambda: torchvision_resnet("Bottleneck"), shallow("resnet50")
    ),
    "torchvision resnext": Peer(
        "torchvision",
        lambda: torchvision_resnet("Bottleneck", groups=32, width_per_group=4),
        shallow("resnext50_32x4d"),
    ),
    "torchvision wide": Peer(
        "torchvision",
        lambda: torchvision_resnet("Bottleneck", width_per_group=128),
        shallow("wide_resnet50_2"),
    ),
    "torchvision convnext": Peer(
        "torchvision", torchvision_convnext, shallow("convnext_tiny", WIDTHS), NORM
    ),
    "timm basic": Peer("timm", lambda: timm_resnet("BasicBlock"), shallow("resnet18")),
    "timm se": Peer(
        "timm",
        lambda: timm_resnet("Bottleneck", block_args={"attn_layer": "se"}),
        shallow("seresnet50"),
    ),
    "timm eca": Peer(
        "timm",
        lambda: timm_resnet("Bottleneck", block_args={"attn_layer": "eca"}),
        shallow("resnet50", attention="eca"),
    ),
    "timm deep": Peer(
        "timm",
        lambda: timm_resnet("BasicBlock", stem_width=32, stem_type="deep", avg_down=True),
        shallow("resnet18d"),
    ),
    "timm tiered eca": Peer(
        "timm",
        lambda: timm_resnet(
            "Bottleneck", stem_width=32, stem_type="deep_tiered", avg_down=True,
            block_args={"attn_layer": "eca"},
        ),
        shallow("ecaresnet50t"),
    ),
    "timm blurred": Peer(
        "timm",
        lambda: edged(timm_resnet("Bottleneck", aa_layer=timm.layers.BlurPool2d)),
        shallow("resnetblur50"),
    ),
    "timm blurred basic": Peer(
        "timm",
        lambda: edged(timm_resnet("BasicBlock", aa_layer=timm.layers.BlurPool2d)),
        shallow("resnet18", downsample="blur"),
    ),
    "timm bit": Peer(
        "timm",
        lambda: ResNetV2(
            BLOCKS, BIT, num_classes=7, stem_chs=32, stem_type="fixed",
            conv_layer=partial(timm.layers.StdConv2d, eps=1e-8),
        ),
        shallow("resnetv2_50x1_bit", BIT),
    ),
    "timm pre-activated": Peer(
        "timm",
        lambda: ResNetV2(
            BLOCKS, WIDE, num_classes=7, stem_chs=16, act_layer=nn.ReLU,
            conv_layer=timm.layers.create_conv2d, norm_layer=timm.layers.BatchNormAct2d,
        ),
        shallow("resnetv2_50", WIDE),
    ),
    "timm pre-activated basic": Peer(
        "timm",
        lambda: ResNetV2(
            BLOCKS, WIDTHS, num_classes=7, stem_chs=16, act_layer=nn.ReLU, basic=True,
            bottle_ratio=1.0, conv_layer=timm.layers.create_conv2d,
            norm_layer=timm.layers.BatchNormAct2d,
        ),
        replace(shallow("resnet18", WIDTHS), order="pre",
                stem=replace(rb.SPECS["resnetv2_50"].stem, channels=16)),
    ),
    "timm convnext": Peer(
        "timm",
        lambda: ConvNeXt(depths=BLOCKS, dims=WIDTHS, num_classes=7),
        shallow("convnext_tiny", WIDTHS),
        NORM,
    ),
    "transformers basic": Peer(
        "transformers", lambda: transformers_resnet("basic"), shallow("resnet18", WIDTHS)
    ),
    "transformers bottleneck": Peer(
        "transformers", lambda: transformers_resnet("bottleneck"), shallow("resnet50", WIDE)
    ),
    "transformers bit": Peer(
        "transformers",
        lambda: transformers.BitForImageClassification(
            transformers.BitConfig(
                embedding_size=32, hidden_sizes=BIT, depths=BLOCKS, num_labels=7
            )
        ),
        shallow("resnetv2_50x1_bit", BIT),
    ),
    "transformers convnext": Peer(
        "transformers", transformers_convnext, shallow("convnext_tiny", WIDTHS), NORM
    ),
}  # fmt: skip


def empty(make: Callable[[], Any]) -> Any:
    """A net in evaluation whose numbers are whatever memory held: all of them have to be set."""
    with torch.device("meta"):
        net = make()
    net = net.to_empty(device="cpu").eval()
    reinit_non_persistent_buffers(net)  # such as the weights of a blur
    return net


def perturbed(net: Any, seed: int = 0) -> Any:
    """The net in evaluation, nothing in it at its start any more: running statistics, scales,
    counters and all."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for name, parameter in net.named_parameters():
        if parameter.ndim == 1 or "scale" in name:
            draw(parameter, 0.5, 1.0)
        else:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(drawn / parameter[0].numel() ** 0.5)
    for name, buffer in net.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(7)
        elif name.endswith("running_mean"):
            draw(buffer, -1, 1)
        elif name.endswith("running_var"):
            draw(buffer, 0.5, 2)
    return net.eval()


def logits(net: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = net(image)
    return getattr(output, "logits", output)


def image(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(1))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal but for the order in which numbers of about 1 are added up."""
    assert 0.1 < theirs.abs().max() < 20
    assert (ours - theirs).abs().max() <= 1e-5
