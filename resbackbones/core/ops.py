"""What a net computes beside convolutions, under a `Context`: norms, pooling and means.

Padded positions enter none of it. Tensors are `(B, C, H, W)`, the last axis the one that may be
padded; means over all of space take any rank.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from resbackbones.core.context import Context, valid_mask
from resbackbones.errors import InputError

Plane = tuple[int, int]  # one number per axis of (H, W)


def make_norm(
    kind: str, channels: int, eps: float, groups: int | None, affine: bool = True
) -> nn.Module | None:
    """A stock torch norm over `channels`, or None for the kinds that add no module.

    Raises:
        InputError: `groups` that do not divide the channels.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=eps, affine=affine)
    if kind == "group":
        if groups is None:
            groups = math.gcd(32, channels // 8 or 1, channels)
        if channels % groups:
            raise InputError(
                f"norm_groups={groups} does not divide {channels} channels; choose groups that "
                "divide every width, or None"
            )
        return nn.GroupNorm(groups, channels, eps=eps, affine=affine)
    return nn.LayerNorm(channels, eps, elementwise_affine=affine) if kind == "layer" else None


def normalise(norm: nn.Module, x: Tensor, context: Context) -> Tensor:
    """Call `norm` on `(B, C, H, W)` so that padded positions enter no mean and no variance."""
    if isinstance(norm, nn.LayerNorm):  # over channels at each position: padding cannot leak in
        return norm(x.movedim(1, -1)).movedim(-1, 1)
    if context.lengths is None:
        return norm(x)
    if isinstance(norm, nn.GroupNorm):
        return _masked_group_norm(norm, x, context)
    if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training:
        # The module sees the real positions only, as one long row, so any batch norm (stock,
        # synchronised) keeps its own statistics and running averages.
        rows = context.rows(x)
        return _Scatter.apply(norm(_Gather.apply(x, rows)), rows, x.shape)
    return norm(x)


class _Gather(torch.autograd.Function):
    """The given rows of `(B * H * W, C)` as `(1, C, 1, rows)`, channels last, for which torch has a
    fast norm (for rows as a batch it has not). Each row is taken once, so the gradient is put back
    without a sum, which plain indexing would need."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = x.shape
        flat = x.movedim(1, -1).reshape(-1, x.shape[1])
        return flat.index_select(0, rows)[None, None].movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(grad, *ctx.saved_tensors, ctx.shape), None


class _Scatter(torch.autograd.Function):
    """The inverse of `_Gather`: zero where no row goes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(rows)
        # No view may leave this function: an activation will work in place on it.
        y = torch.empty(
            shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        ).zero_()
        y.movedim(1, -1).view(-1, shape[1]).index_copy_(0, rows, x.movedim(1, -1)[0, 0])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(grad, *ctx.saved_tensors), None, None


def _masked_group_norm(norm: nn.GroupNorm, x: Tensor, context: Context) -> Tensor:
    lengths = context.lengths
    assert lengths is not None
    batch, channels, height, _ = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    grouped = context.mask(x.to(wide)).reshape(batch, norm.num_groups, -1)
    count = (lengths * (channels // norm.num_groups * height)).clamp(min=1).view(batch, 1)
    mean = grouped.sum(-1) / count
    offset = (grouped - mean.unsqueeze(-1)).reshape(x.shape)
    offset = context.mask(offset).reshape(grouped.shape)
    variance = offset.square().sum(-1) / count
    y = (offset * torch.rsqrt(variance + norm.eps).unsqueeze(-1)).reshape(x.shape).to(x.dtype)
    if not norm.affine:
        return y
    shape = (1, channels, 1, 1)
    return y * norm.weight.view(shape) + norm.bias.view(shape)


def beyond(size: int, stride: int, reach: int) -> int:
    """Positions past an axis' end that its last window reads, where one begins at every
    `stride`-th position and reads `reach` more.

    >>> beyond(5, 2, 1), beyond(6, 2, 1)
    (1, 0)
    """
    return stride * ((size - 1) // stride) + reach + 1 - size


def max_pool(
    x: Tensor,
    kernel: Plane,
    strides: Plane,
    dilation: Plane,
    context: Context,
    zero_padded: bool = False,
) -> Tensor:
    """Max over `kernel` positions (3, or 1) around every `stride`-th one, `dilation` apart; past
    the ends stands what no maximum takes or, if `zero_padded`, zeros."""
    reach = _reach(kernel, dilation)
    margin = reach[0] // 2, reach[1] // 2
    x = context.mask(x) if zero_padded else context.lowest(x)
    if zero_padded or max(reach) > 2 or torch.compiler.is_compiling():
        # By hand, as torch pads half a kernel at most, however dilated, and a captured graph is to
        # serve every size. Elsewhere the copy would cost more than the pooling.
        x = _whole(x, strides, reach, margin, 0.0 if zero_padded else torch.finfo(x.dtype).min)
        margin = (0, 0)
    y = functional.max_pool2d(x, kernel, strides, margin, dilation)
    return context.strided(strides[-1]).mask(y)


def k_max_pool(x: Tensor, stride: int, context: Context) -> Tensor:
    """Of each channel the ceil(L / stride) largest numbers along the last axis, L an item's own
    length there, in the order they stand in; of equal ones the first. Numbers that only rounding
    tells apart are as good as equal, and yet which is the first may then depend on the batch.

    >>> k_max_pool(torch.tensor([[[[1.0, 5.0, 0.0, 4.0, 0.0]]]]), 2, Context())
    tensor([[[[1., 5., 4.]]]])
    """
    inside, kept = context.strided(stride), -(-x.shape[-1] // stride)
    # Channels last in memory, as sequences are laid out. Only a stable sort knows the first of
    # equal numbers: after a ReLU many are 0.
    places = context.lowest(x).movedim(1, -1).sort(dim=2, descending=True, stable=True).indices
    places = places[:, :, :kept]
    if inside.lengths is not None:  # a shorter item keeps fewer: the rest goes to the end
        real = inside.valid(places.movedim(-1, 1)).movedim(1, -1)
        places = places.masked_fill(~real, x.shape[-1] - 1)
    y = x.movedim(1, -1).gather(2, places.sort(2).values)
    return inside.mask(y.movedim(-1, 1))


def average_pool(
    x: Tensor, kernel: Plane, strides: Plane, dilation: Plane, context: Context
) -> Tensor:
    """Mean over `kernel` positions from every `stride`-th one on, `dilation` apart; a cell cut
    short by the end counts what it has."""
    if kernel == strides and context.lengths is None and not torch.compiler.is_compiling():
        return functional.avg_pool2d(x, kernel, strides, ceil_mode=True, count_include_pad=False)

    def cells(value: Tensor) -> Tensor:
        value = _whole(context.mask(value), strides, _reach(kernel, dilation))
        return _means(value, kernel, strides, dilation)

    share = cells(torch.ones_like(x[:, :1]))
    return cells(x) / share.masked_fill(share == 0, 1)


def blur(x: Tensor, kernel: Plane, strides: Plane, dilation: Plane, context: Context) -> Tensor:
    """The weights 1/4, 1/2, 1/4 (where `kernel` is 3) around every `stride`-th position, `dilation`
    apart, zeros around the input: twice the mean of two neighbours."""
    reach = _reach(kernel, dilation)
    x = _whole(context.mask(x), strides, reach, (reach[0] // 2, reach[1] // 2))
    two = min(kernel[0], 2), min(kernel[1], 2)
    return _means(_means(x, two, (1, 1), dilation), two, strides, dilation)


def _reach(kernel: Plane, dilation: Plane) -> Plane:
    """Positions that a window reads beside its first."""
    return dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)


def _whole(
    x: Tensor, strides: Plane, reach: Plane, margin: Plane = (0, 0), value: float = 0.0
) -> Tensor:
    """x from `margin` positions before it to the end of the last window, no further: torch's
    poolings then make no assumption on sizes that a captured graph would keep."""
    down, right = map(beyond, x.shape[2:], strides, reach)
    sides = (margin[1], right - margin[1], margin[0], down - margin[0])
    return functional.pad(x, sides, value=value)


def _means(x: Tensor, kernel: Plane, strides: Plane, dilation: Plane) -> Tensor:
    """Means over whole cells, for which torch has a pooling where nothing lies between."""
    if dilation == (1, 1):
        return functional.avg_pool2d(x, kernel, strides)
    weight = x.new_full((x.shape[1], 1, *kernel), 1 / math.prod(kernel))
    return functional.conv2d(x, weight, None, strides, 0, dilation, x.shape[1])


def masked_mean(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean over all of space, `(B, C, *space)` to `(B, C)`, only real positions counted; summed in
    float32, as a long sum has no place in float16.

    >>> masked_mean(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([2]))
    tensor([[2.]])
    """
    axes = tuple(range(2, x.ndim))
    if lengths is None:
        return x.mean(axes)
    wide = torch.promote_types(x.dtype, torch.float32)
    count = lengths.to(x.device).clamp(min=1).unsqueeze(1) * math.prod(x.shape[2:-1])
    return (filled(x, lengths, 0.0).sum(axes, dtype=wide) / count).to(x.dtype)


def masked_max(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Maximum over all of space, `(B, C, *space)` to `(B, C)`, only real positions counted.

    >>> masked_max(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([2]))
    tensor([[3.]])
    """
    axes = tuple(range(2, x.ndim))
    if lengths is None:
        return x.amax(axes)
    empty = lengths.to(x.device).unsqueeze(1) == 0
    return filled(x, lengths, -math.inf).amax(axes).masked_fill(empty, 0.0)


def masked_k_max(x: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    """The k largest values of each channel in the order of their places, `(B, C, *space)` to
    `(B, k C)`, only real positions counted; 0 for each that there is no position for
    (Kalchbrenner et al. 2014, section 3.2). Of equal values the first ones count.

    >>> masked_k_max(torch.tensor([[[1.0, 3.0, 2.0, 9.0]]]), 2, torch.tensor([3]))
    tensor([[3., 2.]])
    """
    if lengths is not None:
        x = filled(x, lengths, -math.inf)
    x = functional.pad(x.flatten(2), (0, k), value=-math.inf)
    # `topk` takes any of several equal values, as the many zeros behind a ReLU are.
    least = x.topk(k).values[..., -1:]
    above, equal = ~(x <= least), x == least
    chosen = above | (equal & (equal.long().cumsum(-1) <= k - above.long().sum(-1, keepdim=True)))
    place = torch.arange(x.shape[-1], device=x.device)
    places = place.where(chosen, x.shape[-1] - 1).topk(k, largest=False, sorted=True).values
    found = x.gather(-1, places)
    return found.masked_fill(found == -math.inf, 0.0).flatten(1)


def masked_attention(x: Tensor, scores: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean over all of space, each position weighed by the softmax of its score, `(B, C, *space)`
    and `(B, 1, *space)` to `(B, C)`, only real positions counted; in float32 as `masked_mean`.

    >>> x = torch.tensor([[[1.0, 3.0, 9.0]]])
    >>> masked_attention(x, torch.zeros(1, 1, 3), torch.tensor([2]))
    tensor([[2.]])
    """
    share = softmax_shares(scores.to(torch.promote_types(x.dtype, torch.float32)), lengths)
    if lengths is not None:
        x = filled(x, lengths, 0.0)
    return (x.flatten(2).to(share.dtype) * share.flatten(2)).sum(-1).to(x.dtype)


def masked_statistics(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean and deviation of each channel over all of space, side by side, `(B, C, *space)` to
    `(B, 2 C)`, only real positions counted; in float32 as `masked_mean`. The deviation is the root
    of the unbiased variance, of one position 0, plus 1e-7 (Wang et al. 2021, "Revisiting the
    statistics pooling layer in deep speaker embedding learning", and WeSpeaker's models).

    >>> masked_statistics(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([2]))
    tensor([[2.0000, 1.4142]])
    """
    real = real_positions(x, lengths)
    mean, variance = weighed_statistics(
        x if lengths is None else filled(x, lengths, 0.0), even_shares(real)
    )
    return torch.cat([mean, deviation(variance, real.flatten(1).sum(1))], 1).to(x.dtype)


def deviation(variance: Tensor, count: Tensor) -> Tensor:
    """What `masked_statistics` makes of a mean square offset `(B, C)` over `count` `(B,)`
    positions."""
    count = count.unsqueeze(1)
    return (variance * (count / (count - 1).clamp(min=1)) + 1e-7).sqrt()


def real_positions(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """1 where a position of x `(B, C, *space)` is real, 0 past an item's end, `(B, 1, *space)`, in
    float32 or wider."""
    ones = torch.ones_like(x[:, :1], dtype=torch.promote_types(x.dtype, torch.float32))
    return ones if lengths is None else filled(ones, lengths, 0.0)


def even_shares(real: Tensor) -> Tensor:
    """What each of the real positions `(B, 1, *space)` is of a mean over them."""
    return real / real.flatten(1).sum(1).clamp(min=1).view(-1, *(1,) * (real.ndim - 1))


def softmax_shares(scores: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The softmax of scores `(B, C, *space)` over all real positions of each channel, in float32 or
    wider; 0 past an item's end, unless it has no position at all."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if lengths is not None:  # the lowest number, not infinity: an item may have no position at all
        scores = filled(scores, lengths, torch.finfo(scores.dtype).min)
    return scores.flatten(2).softmax(-1).view(scores.shape)


def weighed_statistics(x: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square offset from it of each channel, `(B, C)` each, of x `(B, C, *space)`
    whose positions count by their share, `(B, C or 1, *space)`; in the share's type. x is finite
    everywhere."""
    wide, share = x.flatten(2).to(share.dtype), share.flatten(2)
    mean = (wide * share).sum(-1)
    return mean, ((wide - mean.unsqueeze(-1)).square() * share).sum(-1)


def filled(x: Tensor, lengths: Tensor, value: float) -> Tensor:
    """x `(B, C, *space)` with a value in place of what stands past each item's end."""
    valid = valid_mask(lengths.to(x.device), x.shape[-1])
    return x.masked_fill(~valid.view(x.shape[0], *(1,) * (x.ndim - 2), -1), value)
