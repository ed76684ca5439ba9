"""The head every classifier ends in: pool a feature over space, then compare it with each class."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from resbackbones.core.layers import check_fields, from_fields
from resbackbones.core.ops import masked_max, masked_mean
from resbackbones.errors import InputError, nearest

CHOICES = {
    "pooling": ("mean", "max", "mean_max"),
    "norm": ("none", "layer"),
    "kind": ("linear", "cosine"),
}
SCALE = 10.0  # that cosines start with


@dataclass(frozen=True)
class Head:
    """How features become classes.

    Attributes:
        pooling: over all of space, real positions only: "mean", "max", or "mean_max" (both, side by
            side, twice the width).
        dropout: on the pooled feature.
        bias: of a linear map; a cosine has none.
        norm: of the pooled feature: "none", or "layer" (ConvNeXt, Liu et al. 2022).
        kind: what makes logits of it: "linear", or "cosine" (`Cosine`), where only directions
            count, as suits few examples per class.

    >>> Head.of({"pooling": "max"})
    Head(pooling='max', dropout=0.0, bias=True, norm='none', kind='linear')

    Raises:
        InputError: an unknown pooling, norm, kind or field, or a value of the wrong type.
    """

    pooling: str = "mean"
    dropout: float = 0.0
    bias: bool = True
    norm: str = "none"
    kind: str = "linear"

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


class Cosine(nn.Module):
    """Logits `(B, num_labels)` of features `(B, channels)`: the cosine of each with every class's
    weight, times a learnt scale that starts at 10 (Gidaris & Komodakis 2018, "Dynamic few-shot
    visual learning without forgetting", cosine-similarity based recognition model)."""

    def __init__(self, channels: int, num_labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_labels, channels))
        self.scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        directions = functional.normalize(x, dim=-1), functional.normalize(self.weight, dim=-1)
        return self.scale * functional.linear(*directions)

    def reset_parameters(self) -> None:
        """Draw directions evenly over the sphere."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        nn.init.constant_(self.scale, SCALE)


class Classifier(nn.Module):
    """Logits `(B, num_labels)` in float32 of a feature `(B, channels, *space)`.

    Attributes:
        width: of the pooled feature, D.
        linear: from that to logits.
    """

    def __init__(self, channels: int, num_labels: int, head: Head) -> None:
        super().__init__()
        self.pooling = head.pooling
        self.width = 2 * channels if head.pooling == "mean_max" else channels
        self.norm = nn.LayerNorm(self.width, eps=1e-6) if head.norm == "layer" else None
        self.dropout = nn.Dropout(head.dropout)
        self.linear: nn.Linear | Cosine
        if head.kind == "cosine":
            self.linear = Cosine(self.width, num_labels)
        else:
            self.linear = nn.Linear(self.width, num_labels, bias=head.bias)

    def forward(self, feature: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Classify a batch; `lengths` `(B,)` are the feature's real positions on the last axis."""
        return self.logits(self.pool(feature, lengths))

    def pool(self, feature: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The pooled feature `(B, D)`, normalised where the head does so."""
        pooled = []
        if self.pooling != "max":
            pooled.append(masked_mean(feature, lengths))
        if self.pooling != "mean":
            pooled.append(masked_max(feature, lengths))
        x = torch.cat(pooled, 1)
        return x if self.norm is None else self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits of pooled features `(B, D)`."""
        return self.linear(self.dropout(x)).float()

    def reset_parameters(self) -> None:
        """Draw what makes the logits anew, and restart the norm."""
        self.linear.reset_parameters()
        if self.norm is not None:
            self.norm.reset_parameters()
