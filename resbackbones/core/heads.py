"""The head every classifier ends in: pool a feature over space, then one linear map."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resbackbones.core.layers import check_fields, from_fields
from resbackbones.core.ops import masked_max, masked_mean
from resbackbones.errors import InputError, nearest

CHOICES = {"pooling": ("mean", "max", "mean_max"), "norm": ("none", "layer")}


@dataclass(frozen=True)
class Head:
    """How features become classes.

    Attributes:
        pooling: over all of space, real positions only: "mean", "max", or "mean_max" (both, side by
            side, twice the width).
        dropout: on the pooled feature.
        bias: of the linear map.
        norm: of the pooled feature: "none", or "layer" (ConvNeXt, Liu et al. 2022).

    >>> Head.of({"pooling": "max"})
    Head(pooling='max', dropout=0.0, bias=True, norm='none')

    Raises:
        InputError: an unknown pooling, norm or field, or a value of the wrong kind.
    """

    pooling: str = "mean"
    dropout: float = 0.0
    bias: bool = True
    norm: str = "none"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, allowed in CHOICES.items():
            given = getattr(self, name)
            if given not in allowed:
                raise InputError(f"{name}={given!r} is not known; {nearest(given, allowed)}")

    @classmethod
    def of(cls, options: "Head | Mapping[str, Any] | None") -> "Head":
        """A head from its fields; None gives the defaults."""
        if isinstance(options, Head):
            return options
        if not isinstance(options, Mapping | None):
            raise InputError(
                f"{options!r} is no head; give its fields, as head={{'pooling': 'max'}}"
            )
        return from_fields(cls, options or {})

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON; `Head.of` reads them back."""
        return dataclasses.asdict(self)


class Classifier(nn.Module):
    """Logits `(B, num_labels)` in float32 of a feature `(B, channels, *space)`."""

    def __init__(self, channels: int, num_labels: int, head: Head) -> None:
        super().__init__()
        self.pooling = head.pooling
        width = 2 * channels if head.pooling == "mean_max" else channels
        self.norm = nn.LayerNorm(width, eps=1e-6) if head.norm == "layer" else None
        self.dropout = nn.Dropout(head.dropout)
        self.linear = nn.Linear(width, num_labels, bias=head.bias)

    def forward(self, feature: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Classify a batch; `lengths` `(B,)` are the feature's real positions on the last axis."""
        pooled = []
        if self.pooling != "max":
            pooled.append(masked_mean(feature, lengths))
        if self.pooling != "mean":
            pooled.append(masked_max(feature, lengths))
        x = torch.cat(pooled, 1)
        x = x if self.norm is None else self.norm(x)
        return self.linear(self.dropout(x)).float()

    def reset_parameters(self) -> None:
        """Draw the linear map anew, and restart the norm."""
        self.linear.reset_parameters()
        if self.norm is not None:
            self.norm.reset_parameters()
