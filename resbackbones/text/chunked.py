"""Sums over more rows than should be held at once, and their gradients."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def chunked_sum(
    summed: Callable[..., Tensor],
    rows: int,
    others: Sequence[Tensor],
    x: Tensor,
    parameters: Iterable[Tensor],
) -> Tensor:
    """The sum of what a function makes of so many rows of x at a time. The gradient of its first
    number is made along with it: what it holds of some rows is gone before the next, and nothing is
    computed again.

    Args:
        summed: makes numbers `(K,)` of rows of x and of others.
        rows: how many at once.
        others: what has as many rows as x.
        x: `(N, *)`.
        parameters: what else the function reads and may learn.
    """
    learned = [each for each in parameters if each.requires_grad]
    return _ChunkedSum.apply(summed, rows, others, torch.is_grad_enabled(), x, *learned)


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        summed: Callable[..., Tensor],
        rows: int,
        others: Sequence[Tensor],
        learns: bool,
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        totals = []
        gradients = [torch.zeros_like(each) for each in (x, *parameters) if learns]
        slots = gradients[0].split(rows) if learns else ()
        parts = zip(*(each.split(rows) for each in (x, *others)), strict=True)
        for number, (part, *rest) in enumerate(parts):
            with torch.set_grad_enabled(learns):
                part = part.detach().requires_grad_(learns)
                first, *more = summed(part, *rest)
            if learns:
                slope, *slopes = torch.autograd.grad(first, (part, *parameters))
                slots[number].copy_(slope)
                for gradient, each in zip(gradients[1:], slopes, strict=True):
                    gradient += each
            totals.append(torch.stack([first, *more]).detach())
        ctx.save_for_backward(*gradients)
        return torch.stack(totals).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *(gradient[0] * each for each in ctx.saved_tensors)
