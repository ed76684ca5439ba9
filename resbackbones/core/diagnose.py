"""Is the claim true on *this* net? Gradient measurements that leave the net as they found it."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from resbackbones.core.backbone import modes_kept
from resbackbones.core.blocks import Residual
from resbackbones.core.ops import masked_mean
from resbackbones.errors import InputError


@dataclass(frozen=True)
class BlockGradient:
    """L2 norm of the loss's gradient with respect to one block's parameters."""

    name: str
    norm: float


def gradient_profile(
    net: nn.Module,
    x: Tensor | Mapping[str, Any],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> list[BlockGradient]:
    """The size of the gradient that reaches each residual block, shallow to deep.

    Args:
        net: a backbone, or any model holding one.
        x: input `(B, C, *space)`, or a mapping of keyword inputs. Runs in training mode, with the
            batch's own statistics, as a first training step would.
        loss: from the net's output to a scalar. By default the output's own `.loss` when it has
            one, else the cross-entropy of random labels under a random linear readout (10 classes)
            of the last feature's mean.
        seed: of the readout and of whatever the net itself draws (dropout).

    Raises:
        InputError: the net has no residual block.
    """
    blocks = _blocks(net)
    with _as_found(net, seed):
        net.train()
        net.zero_grad(set_to_none=True)
        output = net(**x) if isinstance(x, Mapping) else net(x)
        (loss or _default_loss)(output).backward()
        return [BlockGradient(name, _gradient_norm(block)) for name, block in blocks]


def gradient_ratio(profile: Sequence[BlockGradient]) -> float:
    """First over last block's gradient: far above 1 explodes on the way down, far below 1
    vanishes. Nothing over nothing counts as vanished (0.0), and so does nothing over something.

    >>> gradient_ratio([BlockGradient("a", 2.0), BlockGradient("b", 4.0)])
    0.5
    """
    first, last = profile[0].norm, profile[-1].norm
    if first == 0:
        return 0.0
    return math.inf if last == 0 else first / last


def gradient_correlation(net: nn.Module, x: Tensor, *, step: float = 0.05, seed: int = 0) -> float:
    """Mean cosine between the input gradients at `x` and at a neighbour: near 1 smooth, near 0
    "shattered" into white noise (Balduzzi et al. 2017).

    Args:
        net: a backbone or model on tensors, in training mode with the batch's own statistics.
        x: input `(B, C, *space)`.
        step: distance to the neighbour, as a share of `x`'s norm, in a random direction.
        seed: of the direction and the readout.
    """
    _blocks(net)
    with _as_found(net, seed):
        net.train()
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(x.shape, generator=generator).to(x)
        neighbour = x + step * direction * (x.norm() / direction.norm())
        here, there = _input_gradient(net, x, seed), _input_gradient(net, neighbour, seed)
        return functional.cosine_similarity(here.flatten(1), there.flatten(1)).mean().item()


def lesion(model: nn.Module, evaluate: Callable[[nn.Module], float]) -> list[tuple[str, float]]:
    """What a model loses with each of its blocks: the branch is cut off and the shortcut left, one
    block at a time (Veit et al. 2016, section 4.1). A block without a skip passes its input on; one
    that changes the shape cannot, and is left out.

    Args:
        model: a backbone, or any model holding one.
        evaluate: a metric of the model, as accuracy on a validation split.

    Returns:
        The name of each block with the metric without it, shallow to deep; before them "" with the
        metric of the undamaged model.

    Raises:
        InputError: the model has no residual block.
    """
    results = [("", evaluate(model))]
    for name, block in _blocks(model):
        if block.skip:
            hook = block.branch.register_forward_hook(lambda _, given, y: torch.zeros_like(y))
        elif block.keeps_shape:
            hook = block.register_forward_hook(lambda _, given, y: given[0])
        else:
            continue
        try:
            results.append((name, evaluate(model)))
        finally:
            hook.remove()
    return results


def _input_gradient(net: nn.Module, x: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)  # the same dropout on both sides
    x = x.detach().clone().requires_grad_()
    feature = _last_feature(net(x))
    readout = torch.randn(feature.shape[1], generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad((feature @ readout.to(feature)).sum(), x)[0]


def _default_loss(output: Any) -> Tensor:
    if getattr(output, "loss", None) is not None:
        return output.loss
    feature = _last_feature(output)
    readout = torch.randn(feature.shape[1], 10).to(feature) / math.sqrt(feature.shape[1])
    labels = torch.randint(10, (len(feature),)).to(feature.device)
    return functional.cross_entropy(feature @ readout, labels)


def _last_feature(output: Any) -> Tensor:
    """The deepest feature, averaged over space: `(B, C)`."""
    if hasattr(output, "logits"):
        output = output.logits
    if isinstance(output, tuple | list):
        output = output[-1]
    return masked_mean(output) if output.ndim > 2 else output


def _gradient_norm(block: nn.Module) -> float:
    gradients = [p.grad.norm() for p in block.parameters() if p.grad is not None]
    return torch.stack(gradients).norm().item() if gradients else 0.0


def _blocks(net: nn.Module) -> list[tuple[str, Residual]]:
    blocks = [(n, m) for n, m in net.named_modules() if isinstance(m, Residual)]
    if not blocks:
        raise InputError(f"{type(net).__name__} has no residual block to look at; give a backbone")
    return blocks


@contextlib.contextmanager
def _as_found(net: nn.Module, seed: int) -> Iterator[None]:
    """Draw from `seed` inside; give back buffers, gradients, modes and the random state after."""
    buffers = {name: copy.deepcopy(buffer) for name, buffer in net.named_buffers()}
    gradients = {name: p.grad for name, p in net.named_parameters()}
    try:
        with modes_kept(net), torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed)
            yield
    finally:
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(buffers[name])
        for name, parameter in net.named_parameters():
            parameter.grad = gradients[name]
