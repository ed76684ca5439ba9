"""What a run is: what must be equal for another to be its continuation."""

import dataclasses
import hashlib
import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from resbackbones.core.backbone import count_parameters
from resbackbones.data.batches import Batches
from resbackbones.errors import InputError
from resbackbones.train import feed
from resbackbones.train.distributed import World
from resbackbones.train.options import FREE, Options
from resbackbones.train.preparation import seed_all

# Of a configuration: what transformers writes there about files, and saving sets.
NOTES = {"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"}


def identity(
    model: nn.Module,
    train: Any,
    evaluation: Any,
    options: Options,
    world: World,
    batches: Batches | None,
) -> dict[str, Any]:
    """What a run is, in plain values. The first that differs is told, so what says most comes
    first."""
    given: dict[str, Any] = {
        "model class": type(model).__name__,
        "parameters": count_parameters(model),
        "training items": feed.count(train, "train on"),
    }
    for entry in dataclasses.fields(Options):
        if entry.name not in FREE:
            given[entry.name] = getattr(options, entry.name)
    given["optimizer"] = str(options.optimizer)
    given["optimizer_arguments"] = dict(options.optimizer_arguments)
    given["device"] = world.device.type
    config = getattr(model, "config", None)
    if config is not None:
        for name, value in sorted(config.to_dict().items()):
            if name not in NOTES:
                given[f"the model's {name}"] = value
    given["the model's modules"] = _digest(repr(model))
    weights = getattr(model, "class_weights", None)
    given["class_weights"] = None if weights is None else torch.as_tensor(weights).tolist()
    given["training data"] = fingerprint(train)
    given["evaluation data"] = None if evaluation is None else fingerprint(evaluation)
    given["batches"] = None if batches is None else _digest(repr(batches(options.seed, 0)))
    given["processes"] = world.size
    return json.loads(json.dumps(given, default=str))  # as a checkpoint will say it


def compare(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with another run. The number of processes may differ.

    Raises:
        InputError: the first thing that differs.
    """
    for name in [*now, *(before.keys() - now.keys())]:
        if before.get(name) != now.get(name) and name != "processes":
            where, was, given = _difference(name, before.get(name), now.get(name))
            raise InputError(
                f"the run in {folder} has {where}={reprlib.repr(was)}, not {reprlib.repr(given)}; "
                "resume it with what it began with, or name another output folder"
            )


def _difference(name: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    """The first thing that differs inside two values of this name: its own name, and both."""
    if isinstance(was, dict) and isinstance(now, dict):
        parts = [(f"{name}.{key}", was.get(key), now.get(key)) for key in {**now, **was}]
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        parts = [
            (f"{name}[{index}]", *pair) for index, pair in enumerate(zip(was, now, strict=True))
        ]
    else:
        return name, was, now
    return next(_difference(*part) for part in parts if part[1] != part[2])


def fingerprint(dataset: Any) -> str:
    """What tells this data from other data of as many items: what the data set says itself, else
    what it is made of, and the content of up to 128 of its items.

    Items are fetched twice, from the same seeds: what differs nonetheless is left out.
    """
    if hasattr(dataset, "fingerprint"):
        return _digest(dataset.fingerprint())
    digest = hashlib.sha256(f"{type(dataset).__name__} {len(dataset)}".encode())
    indices = getattr(dataset, "indices", None)
    if indices is not None:
        digest.update(str([int(index) for index in indices]).encode())
    parts = feed.parts(dataset)
    for part in parts:
        digest.update(fingerprint(part).encode())
    if not parts or (indices is None and len(parts) == 1):  # something around another may change it
        for one, other in zip(_contents(dataset), _contents(dataset), strict=True):
            if one == other:
                digest.update(one)
    return digest.hexdigest()[:16]


def _contents(dataset: Any) -> list[bytes]:
    """Every value of the sampled items, in the first epoch."""
    rows = range(0, len(dataset), max(1, len(dataset) // 64))
    feed.set_epoch(dataset, 0)
    seed_all(0)
    return [part for batch in feed.load(Subset(dataset, rows), 0) for part in _values(batch)]


def _values(value: Any) -> Iterator[bytes]:
    """What a batch holds, in an order of its own."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous()
        yield f"{content.dtype} {tuple(content.shape)}".encode()
        yield content.flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield str(name).encode()
            yield from _values(value[name])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _values(each)
    else:
        yield repr(value).encode()


def _digest(text: str) -> str:
    """The address of an object in its `repr` says nothing of it."""
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", text).encode()).hexdigest()[:16]
