"""Where weights come from: a module, a state dict, a file, or a folder written by transformers.

A file is read as safetensors or with `weights_only=True`: what could run code is refused.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from resbackbones.core.backbone import Backbone
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError

# Under which checkpoints keep their state dict, in the order they are looked for.
NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")


@dataclass(frozen=True)
class Source:
    """Weights, and what is known of the net they are of.

    Attributes:
        title: what to call it in a sentence.
        tensors: by their names there.
        module: the net itself, maybe on the meta device; None where there are only tensors.
        spec: its spec as a dict, where it is one of ours.
    """

    title: str
    tensors: dict[str, Tensor]
    module: nn.Module | None = None
    spec: Mapping[str, Any] | None = None


def read(source: object) -> Source:
    """Read weights from wherever they are.

    Args:
        source: a module, a state dict, or the path of a file or folder.

    Raises:
        InputError: it is none of these, is not there, is damaged, or holds other than tensors.
    """
    if isinstance(source, nn.Module):
        backbone = getattr(source, "backbone", source)
        spec = backbone.spec.to_dict() if isinstance(backbone, Backbone) else None
        title = f"the given {type(source).__name__}"
        return Source(title, _tensors(source.state_dict(), title), source, spec)
    if isinstance(source, Mapping):
        return Source("the given state dict", _tensors(source, "the given state dict"))
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"a {type(source).__name__} holds no weights; give a state dict, a module, or the path "
            "of a file or folder"
        )
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError(
            f"there is no file or folder {path}; nothing is downloaded, so give the path of "
            "weights on this machine"
        )
    return Source(str(path), _tensors(_file(path), str(path)))


def _file(path: Path) -> Any:
    safe = path.suffix == ".safetensors"
    try:
        if safe:
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        expected = "it is no whole safetensors file" if safe else (
            "it is damaged, or holds more than tensors, which could run code"
        )  # fmt: skip
        raise InputError(
            f"cannot read weights from {path} ({reason}): {expected}; save the model's "
            "state_dict() in it"
        ) from error


def _folder(path: Path) -> Source:
    weights, config = path / "model.safetensors", path / "config.json"
    if not weights.is_file():
        raise InputError(
            f"the folder {path} holds no model.safetensors; give one written by save_pretrained, "
            "or the path of a file"
        )
    tensors = _tensors(_file(weights), str(path))
    try:
        fields = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        skeleton = _skeleton(path, fields.get("model_type"), tensors)
    except Exception as error:  # transformers finds a damaged configuration in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot read {config} ({reason}); save the model anew, or give the path of "
            f"{weights.name} alone"
        ) from error
    spec = BackboneSpec.from_dict(fields["spec"]).to_dict() if "spec" in fields else None
    return Source(str(path), tensors, skeleton, spec)


def _skeleton(path: Path, kind: object, tensors: Mapping[str, Tensor]) -> Any:
    """The net of a configuration of transformers without its numbers: it tells of strides."""
    if kind not in ("resnet", "convnext", "bit"):
        return None
    classes = any(name.startswith(f"{kind}.") for name in tensors)
    maker = AutoModelForImageClassification if classes else AutoModel
    with torch.device("meta"):
        return maker.from_config(AutoConfig.from_pretrained(path))


def _tensors(values: Any, title: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint, which may hold one beside other things."""
    if not isinstance(values, Mapping):
        raise InputError(f"{title} holds a {type(values).__name__}; give a state dict in it")
    if not any(isinstance(value, Tensor) for value in values.values()):
        for key in NESTED:
            if isinstance(values.get(key), Mapping):
                return _tensors(values[key], f"{title}, under {key!r}")
    for name, value in values.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise InputError(
                f"{title} holds {name!r}, a {type(value).__name__}, among its tensors; give a "
                "state dict, alone or as one of " + ", ".join(map(repr, NESTED))
            )
        if value.is_meta:
            raise InputError(
                f"{title} is on the meta device, so {name} holds no numbers; give it with weights"
            )
    if not values:
        raise InputError(f"{title} is empty; give the weights of a net")
    return dict(values)
