"""What the tests of speech models share: clips of noise, and models that look trained."""

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def noise(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    """A clip of each length."""
    generator = torch.Generator().manual_seed(seed)
    return [0.3 * torch.randn(length, generator=generator) for length in lengths]


def as_if_trained(model: M) -> M:
    """A model, in evaluation mode, with running statistics such as those of one that has been
    trained."""
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()
