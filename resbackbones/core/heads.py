"""The head every classifier ends in: pool a feature over space, then compare it with each class."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from resbackbones.core.layers import check_fields, from_fields
from resbackbones.core.ops import masked_attention, masked_k_max, masked_max, masked_mean
from resbackbones.errors import InputError, nearest

CHOICES = {
    "pooling": ("mean", "max", "mean_max", "k_max", "attentive"),
    "norm": ("none", "layer"),
    "kind": ("linear", "cosine"),
}
SCALE = 10.0  # that cosines start with
POOLINGS = {"mean": masked_mean, "max": masked_max}


@dataclass(frozen=True)
class Head:
    """How features become classes.

    Attributes:
        pooling: over all of space, real positions only: "mean", "max", "mean_max" (both, side by
            side, twice the width), "k_max" (each channel's `k` largest values in the order of their
            places, `k` times the width; Kalchbrenner et al. 2014, section 3.2) or "attentive" (a
            mean weighed by the softmax of a learnt linear map of each position's channels, as Yang
            et al. 2016, section 2.2, without a hidden layer; it starts as "mean").
        k: values that "k_max" keeps of a channel; 8 is VDCNN's (Conneau et al. 2017).
        dropout: on the pooled feature.
        bias: of a linear map; a cosine has none.
        norm: of the pooled feature: "none", or "layer" (ConvNeXt, Liu et al. 2022).
        kind: what makes logits of it: "linear", or "cosine" (`Cosine`), where only directions
            count, as suits few examples per class.

    >>> Head.of({"pooling": "max"})
    Head(pooling='max', k=8, dropout=0.0, bias=True, norm='none', kind='linear')

    Raises:
        InputError: an unknown pooling, norm, kind or field, or a value of the wrong type.
    """

    pooling: str = "mean"
    k: int = 8
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
        attention: the scores of positions; None with another pooling.
        linear: from that to logits.
    """

    def __init__(self, channels: int, num_labels: int, head: Head) -> None:
        super().__init__()
        self.pooling, self.k = head.pooling, head.k
        self.width = {"mean_max": 2, "k_max": head.k}.get(head.pooling, 1) * channels
        self.attention: nn.Linear | None = None
        if head.pooling == "attentive":
            self.attention = nn.Linear(channels, 1, bias=False)  # a bias would change no softmax
            nn.init.zeros_(self.attention.weight)
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
        if self.attention is not None:
            x = masked_attention(feature, self._scores(feature), lengths)
        elif self.pooling == "k_max":
            x = masked_k_max(feature, self.k, lengths)
        else:
            x = torch.cat([POOLINGS[name](feature, lengths) for name in self.pooling.split("_")], 1)
        return x if self.norm is None else self.norm(x)

    def pool_pieces(self, pieces: Iterable[Tensor]) -> Tensor:
        """As `pool`, of a feature whose last axis comes in pieces `(B, channels, T_i)`, one or more
        and none of them empty. Of those that are done, what pooling needs to go on is kept."""

        def largest(kept: Tensor, piece: Tensor) -> Tensor:
            both = torch.cat([kept, piece], -1)
            if both.shape[-1] <= self.k:
                return both
            return masked_k_max(both, self.k).unflatten(1, (-1, self.k))

        if self.pooling == "k_max":
            x = masked_k_max(reduce(largest, pieces), self.k)
        else:
            means, weights, tops = [], [], []
            for piece in pieces:
                scores = self._scores(piece)
                means.append(masked_attention(piece, scores))
                weights.append(scores.logsumexp(-1))  # of a mean: the log of its positions
                tops.append(masked_max(piece))
            mean = masked_attention(torch.stack(means, -1), torch.stack(weights, -1))
            found = {"mean": mean, "attentive": mean, "max": masked_max(torch.stack(tops, -1))}
            x = torch.cat([found[name] for name in self.pooling.split("_")], 1)
        return x if self.norm is None else self.norm(x)

    def _scores(self, feature: Tensor) -> Tensor:
        """What the softmax of attention is over, `(B, 1, *space)`, in float32 or wider; 0 without
        attention, which makes it a mean."""
        wide = torch.promote_types(feature.dtype, torch.float32)
        if self.attention is None:
            return torch.zeros_like(feature[:, :1], dtype=wide)
        return self.attention(feature.movedim(1, -1)).movedim(-1, 1).to(wide)

    def logits(self, x: Tensor) -> Tensor:
        """Logits of pooled features `(B, D)`."""
        return self.linear(self.dropout(x)).float()

    def reset_parameters(self) -> None:
        """Draw what makes the logits anew, and restart attention and norm."""
        self.linear.reset_parameters()
        if self.attention is not None:
            nn.init.zeros_(self.attention.weight)
        if self.norm is not None:
            self.norm.reset_parameters()
