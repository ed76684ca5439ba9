"""What other libraries call the tensors of a net: one table per layout, read in both directions.

`slots` says of every tensor of ours where in the net it stands; a `Layout` says what stands there
in another library. Nothing is written per direction, or per net.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from resbackbones.core.zoo import SPECS
from resbackbones.weights.slots import Slot


@dataclass(frozen=True)
class Family:
    """Nets that a library makes.

    Attributes:
        library: as "timm".
        like: names of nets, in `KNOWN`.
        free: fields of a spec that the library can make otherwise than they have them.
    """

    library: str
    like: tuple[str, ...]
    free: frozenset[str]


@dataclass(frozen=True)
class Layout:
    """How a family of nets elsewhere names its tensors.

    Attributes:
        title: the nets, as users know them.
        block: the name of a block; names may contain it, and the numbers `s`, `b`, `i` of stage,
            block and index from 0, `s1`, `i1` from 1, `even`, `odd` (2s and 2s + 1), and `n`, the
            slot's place.
        names: per role (with its index, where the names follow no rule) the module's name. Of
            several names the first one is written, and each is read.
        body: stands before every name but the classifier's, in a model that has one.
        flat, square: roles without, and with, two trailing axes of one position where we differ.
        families: the nets with these names.
        centred: an option A shortcut there puts its zero channels on both sides.
        sequences: kernels there have one axis, and roles in `square` one trailing axis.
        mirrored: convolutions there see a mirror image beyond the ends of a sequence.
        blank_last: the blank of a recogniser is its last class there, and the first here.
        pooling, norm: of the head there, as `Head` says them; the norm where it has one.
        beside: what names begin with that are no part of the net, such as the classes it was
            trained by.
    """

    title: str
    block: str
    names: Mapping[str, str | tuple[str, ...]]
    body: str = ""
    flat: frozenset[str] = frozenset()
    square: frozenset[str] = frozenset()
    families: tuple[Family, ...] = ()
    centred: bool = False
    sequences: bool = False
    mirrored: bool = False
    blank_last: bool = False
    pooling: str = "mean"
    norm: str = "layer"
    beside: tuple[str, ...] = ()

    def candidates(self, slot: Slot) -> tuple[str, ...]:
        """Names that a slot's tensor may have; none where it has no place here."""
        found = self.names.get(f"{slot.role}{slot.index}", self.names.get(slot.role, ()))
        s, b, i = slot.stage, slot.block, slot.index
        numbers = {"s": s, "b": b, "i": i, "s1": s + 1, "i1": i + 1}
        numbers |= {"even": 2 * s, "odd": 2 * s + 1, "n": slot.place}
        block = self.block.format(**numbers)
        leaf = f".{slot.leaf}" if slot.leaf else ""
        return tuple(name.format(block=block, **numbers) + leaf for name in _each(found))

    def shape(self, slot: Slot, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape there of a tensor of this shape here."""
        role = f"{slot.role}{slot.index}"
        if self.sequences and len(ours) == 4:
            return *ours[:2], ours[3]
        if slot.leaf == "bias" or not ({role, slot.role} & (self.flat | self.square)):
            return ours
        if {role, slot.role} & self.flat:
            return ours[:-2]
        return (*ours, 1) if self.sequences else (*ours, 1, 1)

    @property
    def head(self) -> tuple[str, ...]:
        """What the names of the head's tensors begin with."""
        found = [_each(name) for role, name in self.names.items() if role.startswith("head.")]
        return tuple(f"{name}." for names in found for name in names)


class OwnLayout(Layout):
    """Our own names."""

    def candidates(self, slot: Slot) -> tuple[str, ...]:
        return (slot.key,)

    @property
    def head(self) -> tuple[str, ...]:
        return ("head.",)


def _each(name: str | tuple[str, ...]) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else name


_BLUR18 = replace(SPECS["resnet18"], downsample="blur")
_V2_18 = replace(SPECS["resnet18"], order="pre", stem=SPECS["resnetv2_50"].stem)
# Specs of published nets, by their names in the libraries.
KNOWN = SPECS | {"resnetblur18": _BLUR18, "resnetv2_18": _V2_18}

# What follows the backbone of an ECAPA-TDNN, by the roles of our modules.
_ECAPA_HEAD = {
    "head.attention.hidden": "asp.tdnn.conv.conv",
    "head.attention.norm": "asp.tdnn.norm.norm",
    "head.attention.scores": "asp.conv.conv",
    "head.norm": "asp_bn.norm",
    "head.embedding": "fc.conv",
}
_BOTTLENECK = frozenset({"branch.ratio", "branch.groups"})
_WIDTHS = frozenset({"stages.channels", "stem.channels"})
_TIERS = frozenset({"stem.before.channels"})
_ATTENTION = frozenset({"attention"})
_SPEAKER = frozenset({*_WIDTHS, "tail.channels", "attention_reduction", "stages.dilation"})

OWN = OwnLayout("models of resbackbones", "", {}, body="backbone.")

_RESNET = Layout(
    "ResNets of torchvision, timm and CIFAR repositories",
    "layer{s1}.{b}",
    {
        "stem.conv0": "conv1",
        "stem.norm0": "bn1",
        "conv": "{block}.conv{i1}",
        "norm": "{block}.bn{i1}",
        "squeeze": "{block}.se.fc1",
        "excite": "{block}.se.fc2",
        "eca": "{block}.se.conv",
        "shortcut.conv": ("{block}.downsample.0", "{block}.shortcut.0"),
        "shortcut.norm": ("{block}.downsample.1", "{block}.shortcut.1"),
        "tail.norm": ("bn1", "bn"),
        "head.linear": ("fc", "linear"),
    },
    square=frozenset({"squeeze", "excite"}),
    families=(
        Family("torchvision", ("resnet50", "resnet18"), _BOTTLENECK),
        Family(
            "timm",
            ("resnet50", "resnet18", "resnetblur50", "resnetblur18"),
            _BOTTLENECK | _ATTENTION,
        ),
    ),
    centred=True,
)

LAYOUTS = (
    OWN,
    _RESNET,
    Layout(
        "ResNet-Ds of timm",
        _RESNET.block,
        {
            **_RESNET.names,
            "stem.conv0": "conv1.0",
            "stem.norm0": "conv1.1",
            "stem.conv1": "conv1.3",
            "stem.norm1": "conv1.4",
            "stem.conv2": "conv1.6",
            "stem.norm2": "bn1",
            "shortcut.conv": "{block}.downsample.1",
            "shortcut.norm": "{block}.downsample.2",
        },
        square=_RESNET.square,
        families=(Family("timm", ("resnet50d", "resnet18d"), _BOTTLENECK | _ATTENTION | _TIERS),),
    ),
    Layout(
        "wide ResNets of CIFAR repositories",
        "block{s1}.layer.{b}",
        {
            "stem.conv0": "conv1",
            "conv": "{block}.conv{i1}",
            "norm": "{block}.bn{i1}",
            "shortcut.conv": "{block}.convShortcut",
            "tail.norm": "bn1",
            "head.linear": "fc",
        },
    ),
    Layout(
        "pre-activated ResNets of timm",
        "stages.{s}.blocks.{b}",
        {
            "stem.conv0": "stem.conv",
            "conv": "{block}.conv{i1}",
            "norm": "{block}.norm{i1}",
            "shortcut.conv": "{block}.downsample.conv",
            "tail.norm": "norm",
            "head.linear": "head.fc",
        },
        square=frozenset({"head.linear"}),
        families=(
            Family(
                "timm", ("resnetv2_50", "resnetv2_18", "resnetv2_50x1_bit"), _BOTTLENECK | _WIDTHS
            ),
        ),
    ),
    Layout(
        "ResNets of transformers",
        "encoder.stages.{s}.layers.{b}",
        {
            "stem.conv0": "embedder.embedder.convolution",
            "stem.norm0": "embedder.embedder.normalization",
            "conv": "{block}.layer.{i}.convolution",
            "norm": "{block}.layer.{i}.normalization",
            "shortcut.conv": "{block}.shortcut.convolution",
            "shortcut.norm": "{block}.shortcut.normalization",
            "head.linear": "classifier.1",
        },
        body="resnet.",
        families=(Family("transformers", ("resnet50", "resnet18"), _WIDTHS),),
    ),
    Layout(
        "BiTs of transformers",
        "encoder.stages.{s}.layers.{b}",
        {
            "stem.conv0": "embedder.convolution",
            "conv": "{block}.conv{i1}",
            "norm": "{block}.norm{i1}",
            "shortcut.conv": "{block}.downsample.conv",
            "tail.norm": "norm",
            "head.linear": "classifier.1",
        },
        body="bit.",
        families=(Family("transformers", ("resnetv2_50x1_bit",), _WIDTHS),),
    ),
    Layout(
        "ConvNeXts of torchvision",
        "features.{odd}.{b}",
        {
            "stem.conv0": "features.0.0",
            "stem.norm0": "features.0.1",
            "down.norm": "features.{even}.0",
            "down.conv": "features.{even}.1",
            "scale": "{block}.layer_scale",
            "conv0": "{block}.block.0",
            "norm": "{block}.block.2",
            "conv1": "{block}.block.3",
            "conv2": "{block}.block.5",
            "head.norm": "classifier.0",
            "head.linear": "classifier.2",
        },
        flat=frozenset({"conv1", "conv2"}),
        families=(Family("torchvision", ("convnext_tiny",), _WIDTHS),),
    ),
    Layout(
        "ConvNeXts of timm",
        "stages.{s}.blocks.{b}",
        {
            "stem.conv0": "stem.0",
            "stem.norm0": "stem.1",
            "down.norm": "stages.{s}.downsample.0",
            "down.conv": "stages.{s}.downsample.1",
            "scale": "{block}.gamma",
            "conv0": "{block}.conv_dw",
            "norm": "{block}.norm",
            "conv1": "{block}.mlp.fc1",
            "conv2": "{block}.mlp.fc2",
            "head.norm": "head.norm",
            "head.linear": "head.fc",
        },
        flat=frozenset({"conv1", "conv2", "scale"}),
        families=(Family("timm", ("convnext_tiny",), _WIDTHS),),
    ),
    Layout(
        "ConvNeXts of transformers",
        "encoder.stages.{s}.layers.{b}",
        {
            "stem.conv0": "embeddings.patch_embeddings",
            "stem.norm0": "embeddings.layernorm",
            "down.norm": "encoder.stages.{s}.downsampling_layer.0",
            "down.conv": "encoder.stages.{s}.downsampling_layer.1",
            "scale": "{block}.layer_scale_parameter",
            "conv0": "{block}.dwconv",
            "norm": "{block}.layernorm",
            "conv1": "{block}.pwconv1",
            "conv2": "{block}.pwconv2",
            "head.norm": "layernorm",
            "head.linear": "classifier",
        },
        body="convnext.",
        flat=frozenset({"conv1", "conv2", "scale"}),
        families=(Family("transformers", ("convnext_tiny",), _WIDTHS),),
    ),
    Layout(
        "ResNets of WeSpeaker",
        _RESNET.block,
        {
            **{role: name for role, name in _RESNET.names.items() if role != "head.linear"},
            "shortcut.conv": "{block}.shortcut.0",
            "shortcut.norm": "{block}.shortcut.1",
            "head.embedding": "seg_1",
        },
        families=(Family("wespeaker", ("resnet34_tstp",), _WIDTHS),),
        pooling="statistics",
        beside=("projection.",),
    ),
    Layout(
        "ECAPA-TDNNs of SpeechBrain",
        "blocks.{s1}",
        {
            "stem.conv": "blocks.0.conv.conv",
            "stem.norm": "blocks.0.norm.norm",
            "conv0": "{block}.tdnn1.conv.conv",
            "norm0": "{block}.tdnn1.norm.norm",
            # Eight groups of channels, of which the first is not convolved.
            **{
                f"{role}{i}": f"{{block}}.res2net_block.blocks.{i - 1}.{role}.{role}"
                for role in ("conv", "norm")
                for i in range(1, 8)
            },
            "conv8": "{block}.tdnn2.conv.conv",
            "norm8": "{block}.tdnn2.norm.norm",
            "squeeze": "{block}.se_block.conv1.conv",
            "excite": "{block}.se_block.conv2.conv",
            "tail.conv": "mfa.conv.conv",
            "tail.norm": "mfa.norm.norm",
            **_ECAPA_HEAD,
        },
        square=frozenset(
            {"squeeze", "excite", *(role for role in _ECAPA_HEAD if not role.endswith("norm"))}
        ),
        families=(Family("speechbrain", ("ecapa1024", "ecapa512"), _SPEAKER),),
        sequences=True,
        mirrored=True,
        pooling="attentive_statistics",
        norm="batch",
    ),
    Layout(
        "QuartzNets and Citrinets of NeMo",
        "{n}",
        {
            # Sub-blocks of a depthwise and a 1x1 convolution, a norm, ReLU and dropout.
            **{f"conv{i}": f"{{block}}.mconv.{5 * (i // 2) + i % 2}.conv" for i in range(10)},
            **{f"norm{i}": f"{{block}}.mconv.{5 * i + 2}" for i in range(5)},
            "squeeze": "{block}.mconv.23.fc.0",
            "excite": "{block}.mconv.23.fc.2",
            "shortcut.conv": "{block}.res.0.0.conv",
            "shortcut.norm": "{block}.res.0.1",
            **{
                f"{ends}.{role}": f"{{block}}.mconv.{name}"
                for ends in ("stem", "tail")
                for role, name in (
                    *(("conv0", "0.conv"), ("conv1", "1.conv"), ("norm0", "2")),
                    *(("squeeze", "3.fc.0"), ("excite", "3.fc.2")),
                )
            },
            "tail.conv2": "{block}.mconv.0.conv",  # a dense one
            "tail.norm1": "{block}.mconv.1",
            "head.linear": "decoder.decoder_layers.0",
        },
        body="encoder.encoder.",
        square=frozenset({"head.linear"}),
        families=(
            Family(
                "nemo",
                ("quartznet15x5", "citrinet256"),
                frozenset({*_WIDTHS, "tail.channels", "stages.kernel"}),
            ),
        ),
        sequences=True,
        blank_last=True,
        pooling="none",
        beside=("preprocessor.",),
    ),
)


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], free: frozenset[str] = frozenset()
) -> dict[str, str]:
    """Where two specs (as `to_dict` gives them) differ, but for `free` fields and those that only
    training reads: "norm is 'group', not 'batch'", by the field's name."""
    left, right = _flat(ours), _flat(theirs)
    return {
        name: f"{name} is {left.get(name)!r}, not {right.get(name)!r}"
        for name in dict.fromkeys([*left, *right])
        if left.get(name) != right.get(name)
        and re.sub(r"\.\d+", "", name) not in free | _ALWAYS_FREE
    }


_ALWAYS_FREE = frozenset({"stages.blocks", "in_channels", "init", "dropout", "drop_path"})


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested fields under dotted names, items counted from 1."""
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        value = {str(number): item for number, item in enumerate(value, 1)}
    if not isinstance(value, Mapping):
        return {name: value}
    below: dict[str, Any] = {}
    for key, item in value.items():
        below |= _flat(item, f"{name}.{key}" if name else key)
    return below
