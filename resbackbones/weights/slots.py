"""Where in the net every tensor of a model of ours stands."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from resbackbones.core.backbone import NORMS, Backbone
from resbackbones.core.blocks import ConvLayer, Residual
from resbackbones.errors import InputError


@dataclass(frozen=True)
class Slot:
    """One tensor and its place in the net.

    Attributes:
        key: its name in our state dict, without "backbone." in front.
        role: what it belongs to, as "stem.conv", "norm" (of a branch) or "shortcut.conv".
        leaf: its name there, as "weight"; empty for a branch's scale.
        stage, block: counted from 0.
        index: among the modules of its role in that block.
        place: of its block among all, from 1; 0 in the stem, and beyond the last one a number for
            each layer of the tail.
    """

    key: str
    role: str
    leaf: str
    stage: int = 0
    block: int = 0
    index: int = 0
    place: int = 0

    @property
    def owner(self) -> str:
        """The name of its module; what a weight is standardised by is no module of its own."""
        return _plain(self.key).rpartition(".")[0]

    @property
    def in_head(self) -> bool:
        """Whether it belongs to the head, not to the backbone."""
        return self.role.partition(".")[0] == "head"

    @property
    def reads_input(self) -> bool:
        """Whether it is what the net's input meets first."""
        return self.role == "stem.conv" and self.index == 0 and self.leaf == "weight"


def parts(model: nn.Module) -> tuple[Backbone, nn.Module | None]:
    """A model's backbone and head; a bare backbone has no head.

    Raises:
        InputError: it is no model of ours.
    """
    if isinstance(model, Backbone):
        return model, None
    backbone, head = getattr(model, "backbone", None), getattr(model, "head", None)
    if isinstance(backbone, Backbone) and isinstance(head, nn.Module):
        return backbone, head
    raise InputError(
        f"a {type(model).__name__} is no model of resbackbones; give one made by build or "
        "from_pretrained, or a Backbone"
    )


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's own tensors under the keys of its slots."""
    backbone, head = parts(model)
    inside = {} if head is None else head.state_dict()
    return backbone.state_dict() | {f"head.{key}": value for key, value in inside.items()}


def slots(model: nn.Module) -> list[Slot]:
    """Every tensor of a model's state dict with its place, in the order of the state dict."""
    backbone, _ = parts(model)
    counted: Counter[tuple[str, int, int]] = Counter()
    places: dict[str, tuple[str, int, int, int]] = {}
    numbers = _numbers(backbone)
    found = []
    for key in tensors(model):
        owner, _, leaf = _plain(key).rpartition(".")
        path = owner.split(".")
        if path[0] == "head":
            found.append(Slot(key, owner, leaf))
            continue
        module = backbone.get_submodule(owner)
        if owner not in places:
            prefix, stage, block = _place(path)
            place = prefix + _kind(module, owner), stage, block
            places[owner] = *place, counted[place]
            counted[place] += 1
        role, stage, block, index = places[owner]
        if isinstance(module, Residual):  # the scale, which has no module of its own
            leaf = ""
        number = next((n for prefix, n in numbers.items() if f"{owner}.".startswith(prefix)), 0)
        found.append(Slot(key, role, leaf, stage, block, index, number))
    return found


def _numbers(backbone: Backbone) -> dict[str, int]:
    """What the names of blocks and of the tail's modules begin with, and their places."""
    numbers = {f"{name}.": place for place, (name, _) in enumerate(backbone.blocks, 1)}
    place = len(numbers)
    for index, module in enumerate(backbone.tail):
        place += isinstance(module, ConvLayer)  # attention goes with the layer before it
        numbers[f"tail.{index}."] = place
    return numbers


def _plain(key: str) -> str:
    standardised = ".parametrizations.weight.original"
    return key.removesuffix(standardised) + ".weight" if key.endswith(standardised) else key


def owner(model: nn.Module, slot: Slot) -> nn.Module:
    """The module that a slot's tensor belongs to."""
    backbone, head = parts(model)
    if head is None or not slot.in_head:
        return backbone.get_submodule(slot.owner)
    return head.get_submodule(slot.owner.partition(".")[2])


def _place(path: list[str]) -> tuple[str, int, int]:
    match path:
        case ["stages", stage, "blocks", block, "shortcut", *_]:
            return "shortcut.", int(stage), int(block)
        case ["stages", stage, "blocks", block, *_]:  # what stands before the branch counts with it
            return "", int(stage), int(block)
        case ["stages", stage, "down", *_]:
            return "down.", int(stage), 0
    return f"{path[0]}.", 0, 0  # stem, tail


def _kind(module: nn.Module, owner: str) -> str:
    for kind, types in _KINDS.items():
        if isinstance(module, types):
            return kind
    return owner.rpartition(".")[2]


_KINDS: dict[str, Any] = {"norm": NORMS, "conv": nn.Conv2d, "eca": nn.Conv1d, "scale": Residual}
