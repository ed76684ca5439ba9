"""Optimizers and their parameter groups, the learning rate's schedule, the moving average."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from resbackbones.core.blocks import Residual
from resbackbones.errors import InputError
from resbackbones.train.options import Options

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    # Fused, an update goes through the parameters once, not once per operation.
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "fused": True}),
}
# Schedule -> the share of the updates its rise takes unless told otherwise.
WARMUP = {"cosine": 0.05, "one_cycle": 0.3, "linear": 0.05, "constant": 0.0}


def make_optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """The optimizer of all that is not frozen; each group's peak rate is its "initial_lr".

    Raises:
        InputError: everything is frozen, or arguments that the optimizer refuses.
    """
    groups = parameter_groups(model, options)
    if not groups:
        raise InputError(
            "every parameter of the model is frozen; set requires_grad on what is to be trained"
        )
    for name, option in (("lr", "learning_rate"), ("weight_decay", "weight_decay")):
        if name in options.optimizer_arguments:
            raise InputError(
                f"optimizer_arguments cannot hold {name}, which is set per group; use the option "
                f"{option}"
            )
    kind: Any = options.optimizer
    given: dict[str, Any] = {"lr": options.learning_rate}
    if kind in OPTIMIZERS:
        kind, usual = OPTIMIZERS[kind]
        given |= usual
    given |= options.optimizer_arguments
    try:
        return kind(groups, **given)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].replace(". ", ": ").rstrip(".")
        raise InputError(
            f"{kind.__name__} refuses its arguments {given} ({reason}); correct optimizer_arguments"
        ) from error


def parameter_groups(model: nn.Module, options: Options) -> list[dict[str, Any]]:
    """The trained parameters by weight decay, by learning rate, and by when they begin to learn:
    "opens", a share of the updates.

    Norms, biases and scales, which have at most one axis longer than 1, do not decay. For
    `layer_decay` (Clark et al. 2020, ELECTRA, section 3.1) and `unfreezing` (Howard & Ruder 2018,
    section 3.3) what stands before the first residual block counts as a layer, embeddings wherever
    they stand belong to it, and what stands behind the last block is another.

    Raises:
        InputError: `layer_decay` or `unfreezing` for a model without residual blocks.
    """
    depth, layers = 0, dict[nn.Parameter, int]()
    for module in model.modules():
        if isinstance(module, Residual):
            depth += 1
            layers |= dict.fromkeys(module.parameters(), depth)
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            layers |= dict.fromkeys(module.parameters(), 0)
    for name, unset in (("layer_decay", 1), ("unfreezing", 0)):
        if not depth and getattr(options, name) != unset:
            raise InputError(
                f"{name}={getattr(options, name)} is per residual block, and "
                f"{type(model).__name__} has none; leave {name} out"
            )
    parameters = list(model.parameters())
    inside = [layers.get(parameter, 0) > 0 for parameter in parameters]  # a block
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    latest = 0
    for index, parameter in enumerate(parameters):
        if inside[index]:
            latest = layers[parameter]
        elif not any(inside[index:]):
            latest = depth + 1
        layer = layers.get(parameter, latest)
        rate = options.learning_rate * options.layer_decay ** (depth + 1 - layer)
        if parameter.requires_grad:
            decay = options.weight_decay if parameter.squeeze().ndim > 1 else 0.0
            opens = options.unfreezing * (depth + 1 - layer) / (depth + 1)
            groups.setdefault((rate, decay, opens), []).append(parameter)
    return [
        {
            "params": group,
            "initial_lr": rate,
            "weight_decay": decay,
            "opens": opens,
        }
        for (rate, decay, opens), group in groups.items()
    ]


def schedule(step: int, steps: int, options: Options) -> float:
    """The learning rate of an update as a share of the peak, a function of the update alone.

    "one_cycle" after Smith & Topin 2018, with the shape of torch's OneCycleLR; momentum stays.

    >>> [round(schedule(step, 4, Options(schedule="linear", warmup=0)), 2) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    warmup = WARMUP[options.schedule] if options.warmup is None else options.warmup
    rise = round(warmup * steps)
    if step < rise:
        if options.schedule == "one_cycle":
            return 1 - 0.96 * (1 + math.cos(math.pi * step / rise)) / 2
        return (step + 1) / (rise + 1)
    if options.schedule == "constant":
        return 1.0
    fallen = (step - rise) / max(1, steps - rise)
    return 1 - fallen if options.schedule == "linear" else (1 + math.cos(math.pi * fallen)) / 2


class MovingAverage:
    """An average of a model's weights over its updates, running statistics included.

    The first updates count for more, as the weights move far: update t leaves at most the share
    (1 + t) / (10 + t).

    Attributes:
        weights: the average, by name.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after update number `step`, from 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        now = model.state_dict()
        real = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[n] for n in real], [now[n] for n in real], share)
        for name in now.keys() - set(real):
            self.weights[name].copy_(now[name])

    @contextlib.contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again afterwards."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)
