"""Rank tables and padding: the only file that knows whether data is 1-D or 2-D.

Everything here works on `(B, C, *space)`; the last axis is the one that may be padded (time,
tokens, or the frames of a spectrogram). Every strided operator of this library maps a length `L` to
`ceil(L / stride)`, so lengths follow from strides alone.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from resbackbones.errors import InputError

CONV: dict[int, Callable[..., nn.Conv1d | nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
BATCH_NORM: dict[int, Callable[..., nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
MAX_POOL: dict[int, Callable[..., Tensor]] = {1: functional.max_pool1d, 2: functional.max_pool2d}
AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
}


def per_axis(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    """Spread one number over the axes; a tuple gives one number an axis.

    >>> per_axis(3, 2), per_axis((2, 1), 2)
    ((3, 3), (2, 1))
    """
    return value if isinstance(value, tuple) else (value,) * dims


class Padding:
    """Which positions of the last axis are real, at one resolution and at those below it.

    Args:
        lengths: valid positions of each item, `(B,)`.
        size: positions in the padded batch.
    """

    def __init__(self, lengths: Tensor, size: int) -> None:
        self.lengths = lengths
        self.size = size
        self.valid = valid_mask(lengths, size)
        self._strided: dict[int, Padding] = {}
        self._rows: Tensor | None = None

    def strided(self, stride: int) -> "Padding":
        """The padding after an operator of this stride; each resolution is worked out once."""
        if stride == 1:
            return self
        if stride not in self._strided:
            lengths = torch.div(self.lengths + stride - 1, stride, rounding_mode="floor")
            self._strided[stride] = Padding(lengths, -(-self.size // stride))
        return self._strided[stride]

    def rows(self) -> Tensor:
        """Flat indices into `(B * size)` of the real positions."""
        if self._rows is None:
            self._rows = self.valid.flatten().nonzero().squeeze(1)
        return self._rows


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """Mark the real positions: bool `(B, size)`, True before each item's length.

    >>> valid_mask(torch.tensor([1, 3]), 3).tolist()
    [[True, False, False], [True, True, True]]
    """
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def start_padding(x: Tensor, lengths: Tensor | Sequence[int] | None) -> Padding | None:
    """Check `lengths` against the batch `(B, C, *space)` and make its `Padding` (None stays None).

    Raises:
        InputError: not one length an item, or (where it costs no synchronisation) a length
            outside 0 to the size of the last axis.
    """
    if lengths is None:
        return None
    lengths = torch.as_tensor(lengths)
    if lengths.shape != x.shape[:1]:
        raise InputError(
            f"lengths has shape {tuple(lengths.shape)}, but a batch of {len(x)} needs one length "
            f"an item, shape ({len(x)},)"
        )
    size = x.shape[-1]
    if lengths.device.type == "cpu" and len(x) and not 0 <= lengths.min() <= lengths.max() <= size:
        raise InputError(
            f"lengths run from {int(lengths.min())} to {int(lengths.max())}, but the last axis has "
            f"{size} positions; give each item's own length before padding"
        )
    return Padding(lengths.to(x.device, torch.int64), size)


def mask(x: Tensor, padding: Padding | None, value: float = 0.0) -> Tensor:
    """Put an operator's neutral element past the end of each item: 0 before a convolution, -inf
    before max pooling. Free when there is no padding."""
    if padding is None:
        return x
    invalid = ~padding.valid.view(len(x), *(1,) * (x.ndim - 2), padding.size)
    return x.masked_fill(invalid, value)


def make_norm(kind: str, channels: int, dims: int, eps: float) -> nn.Module | None:
    """A stock torch norm over `channels`, or None for the kinds that add no module.

    Group norm takes 32 groups (Wu & He 2018), fewer where a group would hold less than 8 channels:
    over a position or two, the variance of so few numbers is mostly rounding.
    """
    if kind == "batch":
        return BATCH_NORM[dims](channels, eps=eps)
    if kind == "group":
        return nn.GroupNorm(math.gcd(32, channels // 8 or 1, channels), channels, eps=eps)
    if kind == "layer":
        return nn.LayerNorm(channels, eps=eps)
    return None


def normalise(norm: nn.Module, x: Tensor, padding: Padding | None) -> Tensor:
    """Call `norm` on `(B, C, *space)` so that padded positions enter no mean and no variance."""
    if isinstance(norm, nn.LayerNorm):  # over channels at each position: padding cannot leak in
        return norm(x.movedim(1, -1)).movedim(-1, 1)
    if padding is None:
        return norm(x)
    if isinstance(norm, nn.GroupNorm):
        return _masked_group_norm(norm, x, padding)
    if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training:
        # The module sees the real positions only, as one long batch, so any batch norm (stock,
        # synchronised) keeps its own statistics and running averages.
        by_position = x.movedim(-1, 1)
        flat = by_position.flatten(0, 1)
        real = norm(flat.index_select(0, padding.rows()).unsqueeze(-1)).squeeze(-1)
        scattered = torch.zeros_like(flat, dtype=real.dtype).index_copy(0, padding.rows(), real)
        return scattered.view(by_position.shape).movedim(1, -1)
    return norm(x)


def _masked_group_norm(norm: nn.GroupNorm, x: Tensor, padding: Padding) -> Tensor:
    batch, channels, *space = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    grouped = mask(x, padding).to(wide).reshape(batch, norm.num_groups, -1)
    each = channels // norm.num_groups * math.prod(space[:-1])
    count = (padding.lengths * each).clamp(min=1).view(batch, 1)
    mean = grouped.sum(-1) / count
    offset = grouped - mean.unsqueeze(-1)
    offset = mask(offset.reshape(x.shape), padding).reshape(grouped.shape)
    variance = offset.square().sum(-1) / count
    y = (offset * torch.rsqrt(variance + norm.eps).unsqueeze(-1)).reshape(x.shape).to(x.dtype)
    shape = (1, channels, *(1,) * len(space))
    return y * norm.weight.view(shape) + norm.bias.view(shape)


def max_pool(x: Tensor, stride: int | tuple[int, ...], padding: Padding | None) -> Tensor:
    """Max over 3 positions around every `stride`-th one; an axis of stride 1 is left alone."""
    dims = x.ndim - 2
    strides = per_axis(stride, dims)
    kernel = tuple(3 if s > 1 else 1 for s in strides)
    margin = tuple(k // 2 for k in kernel)
    y = MAX_POOL[dims](mask(x, padding, -math.inf), kernel, strides, margin)
    # -inf left standing past an item's end would turn gradients of a later scale into NaN.
    return mask(y, padding.strided(strides[-1]) if padding else None)


def average_pool(x: Tensor, stride: int | tuple[int, ...], padding: Padding | None) -> Tensor:
    """Mean over each cell of `stride` positions; a cell cut short by the end counts what it has."""
    dims = x.ndim - 2
    strides = per_axis(stride, dims)

    def pool(value: Tensor) -> Tensor:
        return AVERAGE_POOL[dims](value, strides, strides, ceil_mode=True, count_include_pad=False)

    if padding is None:
        return pool(x)
    real = padding.valid.to(x.dtype).view(len(x), *(1,) * (dims), padding.size)
    share = pool(real.expand(len(x), 1, *x.shape[2:]))
    return pool(mask(x, padding)) / share.masked_fill(share == 0, 1)


def masked_mean(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean over all of space, `(B, C, *space)` to `(B, C)`, only real positions counted.

    >>> masked_mean(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([2]))
    tensor([[2.]])
    """
    axes = tuple(range(2, x.ndim))
    if lengths is None:
        return x.mean(axes)
    padding = Padding(lengths.to(x.device), x.shape[-1])
    count = padding.lengths.clamp(min=1).unsqueeze(1) * math.prod(x.shape[2:-1])
    return mask(x, padding).sum(axes) / count


def masked_max(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Maximum over all of space, `(B, C, *space)` to `(B, C)`, only real positions counted.

    >>> masked_max(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([2]))
    tensor([[3.]])
    """
    axes = tuple(range(2, x.ndim))
    if lengths is None:
        return x.amax(axes)
    padding = Padding(lengths.to(x.device), x.shape[-1])
    y = mask(x, padding, -math.inf).amax(axes)
    return y.masked_fill(padding.lengths.unsqueeze(1) == 0, 0.0)  # an empty item has no maximum
