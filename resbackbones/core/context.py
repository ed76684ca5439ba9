"""`Context`: what a forward pass knows beside its tensor.

Everything inside a net is `(B, C, H, W)`; the last axis is the one that may be padded, or arrive in
pieces. Every operator maps a length L there to ceil(L / stride), so one context follows from
another by the stride between them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from resbackbones.errors import InputError


class Context:
    """Which positions of the last axis are real, at one resolution, and in a stream what each
    module has seen before. Where every position is real and nothing is remembered it does nothing.

    Args:
        lengths: real positions of each item, int64 `(B,)`; None means all.
        memory: what modules remember from one piece of a stream to the next; None means that the
            input is whole.
        leading: positions of padding before each item, int64 `(B,)`, which its lengths include;
            None means none. It is for nets without strides.
    """

    def __init__(
        self,
        lengths: Tensor | None = None,
        memory: "dict[nn.Module, tuple[Tensor, int]] | None" = None,
        leading: Tensor | None = None,
    ) -> None:
        self.lengths = lengths
        self.memory = memory
        self.leading = leading
        # Each is worked out once per resolution.
        self._strided: dict[int, Context] = {}
        self._valid: Tensor | None = None
        self._masks: dict[torch.dtype, Tensor] = {}
        self._rows: dict[int, Tensor] = {}

    @classmethod
    def of(cls, x: Tensor, lengths: Tensor | Sequence[int] | None) -> "Context":
        """Check `lengths` against a batch `(B, C, *space)` and make its context.

        Raises:
            InputError: not one whole number per item, or (where it costs no synchronisation) one
                outside 0 to the size of the last axis.
        """
        if lengths is None:
            return WHOLE
        if not isinstance(lengths, Tensor):
            try:
                lengths = torch.as_tensor(lengths)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"lengths={lengths!r:.60} are no numbers; give one whole number per item, "
                    f"shape ({x.shape[0]},)"
                ) from error
        whole = not lengths.is_floating_point() and lengths.dtype != torch.bool
        if lengths.shape != x.shape[:1] or not whole:
            raise InputError(
                f"lengths has shape {tuple(lengths.shape)} and {lengths.dtype}, but a batch of "
                f"{x.shape[0]} needs one whole number per item, shape ({x.shape[0]},)"
            )
        size = x.shape[-1]
        # A graph that is being captured cannot look at values.
        seen = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
        if seen and lengths.numel() and not 0 <= lengths.min() <= lengths.max() <= size:
            raise InputError(
                f"lengths run from {int(lengths.min())} to {int(lengths.max())}, but the last axis "
                f"has {size} positions; give each item's own length before padding"
            )
        return cls(lengths.to(x.device, torch.int64))

    def strided(self, stride: int) -> "Context":
        """The context after an operator of this stride on the last axis."""
        if stride == 1 or self.lengths is None:
            return self
        if stride not in self._strided:
            self._strided[stride] = Context(strided_lengths(self.lengths, stride), self.memory)
        return self._strided[stride]

    def valid(self, x: Tensor) -> Tensor:
        """Mark the real positions of x, bool `(B, 1, 1, W)`; only where there are lengths."""
        assert self.lengths is not None
        if self._valid is None:
            valid = valid_mask(self.lengths, x.shape[-1])
            if self.leading is not None:
                valid &= ~valid_mask(self.leading, x.shape[-1])
            self._valid = valid[:, None, None]
        return self._valid

    def mask(self, x: Tensor) -> Tensor:
        """Zero past the end of each item of x, which is finite."""
        if self.lengths is None:
            return x
        if x.dtype not in self._masks:
            self._masks[x.dtype] = self.valid(x).to(x.dtype)
        mask = self._masks[x.dtype]
        # In place where no gradient needs the old values: nobody reads what stands past the end.
        return x * mask if torch.is_grad_enabled() else x.mul_(mask)

    def lowest(self, x: Tensor) -> Tensor:
        """The lowest finite number past the end of each item: no maximum takes it, and unlike
        -inf it can be masked away again."""
        if self.lengths is None:
            return x
        lowest = torch.finfo(x.dtype).min
        return self.mask(x) + (1 - self._masks[x.dtype]) * lowest

    def clear(self, x: Tensor) -> Tensor:
        """Zero past the end of each item, even where NaN stood. Slower than `mask`: it is for the
        caller's tensor, once."""
        return x if self.lengths is None else torch.where(self.valid(x), x, 0.0)

    def rows(self, x: Tensor) -> Tensor:
        """Flat indices into `(B, H, W)` of the real positions of x; only where there are
        lengths."""
        height = x.shape[2]
        if height not in self._rows:
            valid = self.valid(x).expand(-1, -1, height, -1)
            self._rows[height] = valid.flatten().nonzero().squeeze(1)
        return self._rows[height]

    def recall(self, module: nn.Module, x: Tensor, reach: int, stride: int) -> Tensor:
        """What a causal module reads: x behind the `reach` positions before it.

        A whole input has zeros before it. In a stream, what comes back begins where this module's
        next window does, and what windows to come will read is remembered; while there is too
        little for one window, it is no wider than `reach`.
        """
        if self.memory is None:
            return functional.pad(x, (reach, 0)) if reach else x
        kept, skip = self.memory.get(module) or (x.new_zeros(*x.shape[:-1], reach), 0)
        arrived = x.shape[-1]
        x = torch.cat([kept, x[..., min(skip, arrived) :]], -1)
        skip -= min(skip, arrived)  # positions still to come before the next window begins
        # x begins where the next window does; windows are `reach + 1` wide, `stride` apart.
        begins = stride * max(0, -(-(x.shape[-1] - reach) // stride))
        self.memory[module] = x[..., begins:].clone(), skip + max(0, begins - x.shape[-1])
        return x


def strided_lengths(lengths: Tensor, stride: int) -> Tensor:
    """What an operator of this stride makes of lengths.

    >>> strided_lengths(torch.tensor([0, 4, 5]), 2)
    tensor([0, 2, 3])
    """
    return torch.div(lengths + stride - 1, stride, rounding_mode="floor")


def lengths_of(mask: Tensor | None) -> Tensor | None:
    """Real positions of each item by its mask `(B, W)`, 1 where one is real, as int64 `(B,)`; None
    where nothing is padding, as far as looking costs no synchronisation: a net is faster without
    masks, most of all in training.

    >>> lengths_of(torch.tensor([[1, 1], [1, 0]])), lengths_of(torch.ones(2, 2))
    (tensor([2, 1]), None)
    """
    if mask is None:
        return None
    seen = mask.device.type == "cpu" and not torch.compiler.is_compiling()
    return None if seen and bool(mask.all()) else mask.sum(-1)


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """Mark the real positions: bool `(B, size)`, True before each item's length.

    >>> valid_mask(torch.tensor([1, 3]), 3).tolist()
    [[True, False, False], [True, True, True]]
    """
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


WHOLE = Context()  # every position is real, and nothing is remembered
