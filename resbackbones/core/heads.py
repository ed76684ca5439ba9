"""The head every classifier ends in: pool a feature over space, then one linear map."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resbackbones.core.ops import masked_max, masked_mean
from resbackbones.errors import InputError, nearest

POOLINGS = ("mean", "max", "mean_max")


@dataclass(frozen=True)
class Head:
    """How features become classes.

    Attributes:
        pooling: over all of space, real positions only: "mean", "max", or "mean_max" (both, side by
            side, twice the width).
        dropout: on the pooled feature.
        bias: of the linear map.

    >>> Head.of({"pooling": "max"})
    Head(pooling='max', dropout=0.0, bias=True)

    Raises:
        InputError: an unknown pooling or field, or a dropout outside 0 to 1.
    """

    pooling: str = "mean"
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise InputError(
                f"pooling={self.pooling!r} is not known; {nearest(self.pooling, POOLINGS)}"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"Head has dropout={self.dropout!r}; use a share from 0 to below 1")

    @classmethod
    def of(cls, options: "Head | Mapping[str, Any] | None") -> "Head":
        """A head from its fields; None gives the defaults."""
        if isinstance(options, Head):
            return options
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options or {}:
            if name not in known:
                raise InputError(f"Head has no field {name!r}; {nearest(name, known)}")
        return cls(**(options or {}))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON; `Head.of` reads them back."""
        return dataclasses.asdict(self)


class Classifier(nn.Module):
    """Logits `(B, num_labels)` in float32 of a feature `(B, channels, *space)`."""

    def __init__(self, channels: int, num_labels: int, head: Head) -> None:
        super().__init__()
        self.pooling = head.pooling
        width = 2 * channels if head.pooling == "mean_max" else channels
        self.dropout = nn.Dropout(head.dropout)
        self.linear = nn.Linear(width, num_labels, bias=head.bias)

    def forward(self, feature: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Classify a batch; `lengths` `(B,)` are the feature's real positions on the last axis."""
        pooled = []
        if self.pooling != "max":
            pooled.append(masked_mean(feature, lengths))
        if self.pooling != "mean":
            pooled.append(masked_max(feature, lengths))
        return self.linear(self.dropout(torch.cat(pooled, 1))).float()

    def reset_parameters(self) -> None:
        """Draw the linear map anew."""
        self.linear.reset_parameters()
