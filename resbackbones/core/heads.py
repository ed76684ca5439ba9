"""The heads that models end in: pool a feature over space, then compare it with each class, or make
a vector of it that is compared with other items'."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from resbackbones.core.context import valid_mask
from resbackbones.core.layers import check_fields, from_fields
from resbackbones.core.ops import (
    deviation,
    even_shares,
    filled,
    masked_attention,
    masked_k_max,
    masked_max,
    masked_mean,
    masked_statistics,
    real_positions,
    softmax_shares,
    weighed_statistics,
)
from resbackbones.errors import InputError, nearest

CHOICES = {
    "pooling": (
        *("mean", "max", "mean_max", "k_max", "attentive", "statistics", "attentive_statistics"),
    ),
    "norm": ("none", "layer", "batch"),
    "kind": ("linear", "cosine"),
}
SCALE = 10.0  # that cosines start with
HIDDEN = 128  # channels that attentive statistics are told by
POOLINGS = {"mean": masked_mean, "max": masked_max, "statistics": masked_statistics}


@dataclass(frozen=True)
class Head:
    """How features become classes.

    Attributes:
        pooling: over all of space, real positions only: "mean", "max", "mean_max" (both, side by
            side, twice the width), "k_max" (each channel's `k` largest values in the order of their
            places, `k` times the width; Kalchbrenner et al. 2014, section 3.2), "attentive" (a
            mean weighed by the softmax of a learnt linear map of each position's channels, as Yang
            et al. 2016, section 2.2, without a hidden layer; it starts as "mean"), "statistics"
            (mean and deviation side by side, twice the width; `ops.masked_statistics`) or
            "attentive_statistics" (the same, weighed; `AttentiveStatistics`).
        rows: of the feature's height that are pooled each by itself, over the last axis alone: as
            many times the width. 1 pools over all of space. A spectrogram's frequencies are such
            rows (WeSpeaker's temporal statistics pooling).
        k: values that "k_max" keeps of a channel; 8 is VDCNN's (Conneau et al. 2017).
        dropout: on the pooled feature.
        bias: of a linear map; a cosine has none.
        norm: of the pooled feature: "none", "layer" (ConvNeXt, Liu et al. 2022) or "batch" (ECAPA,
            Desplanques et al. 2020), which cannot be trained on batches of one item.
        kind: what makes logits of it: "linear", or "cosine" (`Cosine`), where only directions
            count, as suits few examples per class.

    >>> Head.of({"pooling": "max"})
    Head(pooling='max', rows=1, k=8, dropout=0.0, bias=True, norm='none', kind='linear')

    Raises:
        InputError: an unknown pooling, norm, kind or field, or a value of the wrong type.
    """

    pooling: str = "mean"
    rows: int = 1
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


class AttentiveStatistics(nn.Module):
    """Scores of each position and channel, `(B, C, N)`, for a mean and a deviation weighed by their
    softmax (Okabe et al. 2018; Desplanques et al. 2020, section 3.1).

    They are told by a position's channels beside their mean and deviation over all positions: a
    linear map to 128 channels, ReLU, batch norm, tanh, and a linear map. Weighed variances are
    biased, and 1e-12 at least.

    Attributes:
        hidden, norm, scores: these parts; the weight of `hidden` `(128, 3 C)` reads the position,
            the means and the deviations, in this order.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * channels, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.scores = nn.Linear(HIDDEN, channels)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Weighed means and deviations `(B, 2 C)` of x `(B, C, N)`."""
        if lengths is not None:
            x = filled(x, lengths, 0.0)
        shares = even_shares(real_positions(x, lengths))
        whole = _deviating(*weighed_statistics(x, shares)).to(x.dtype)
        # What is alike for all positions is mapped once.
        own, of_all = self.hidden.weight.split([x.shape[1], whole.shape[1]], 1)
        hidden = functional.linear(x.movedim(1, -1), own)
        hidden = hidden + functional.linear(whole, of_all, self.hidden.bias).unsqueeze(1)
        hidden = self._normalised(hidden.relu(), lengths).tanh()
        shares = softmax_shares(self.scores(hidden).movedim(-1, 1), lengths)
        return _deviating(*weighed_statistics(x, shares)).to(x.dtype)

    def _normalised(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x `(B, N, 128)` normalised; in training only real positions are looked at."""
        if lengths is None or not self.norm.training:
            return self.norm(x.flatten(0, 1)).view(x.shape)
        real = valid_mask(lengths.to(x.device), x.shape[1])
        return torch.zeros_like(x).masked_scatter(real.unsqueeze(-1), self.norm(x[real]))

    def reset_parameters(self) -> None:
        """Draw everything anew."""
        for module in (self.hidden, self.norm, self.scores):
            module.reset_parameters()


def _deviating(mean: Tensor, variance: Tensor) -> Tensor:
    return torch.cat([mean, variance.clamp(min=1e-12).sqrt()], 1)


class Pooling(nn.Module):
    """A feature `(B, channels, *space)` pooled and normalised as a head says.

    Attributes:
        width: of the pooled feature, D.
        attention: what weighs positions; None with a pooling that does not.
    """

    def __init__(self, channels: int, head: Head) -> None:
        super().__init__()
        self.pooling, self.rows, self.k = head.pooling, head.rows, head.k
        channels = head.rows * channels
        twice = ("mean_max", "statistics", "attentive_statistics")
        times = head.k if head.pooling == "k_max" else 1 + (head.pooling in twice)
        self.width = times * channels
        self.attention: nn.Linear | AttentiveStatistics | None = None
        if head.pooling == "attentive":
            self.attention = nn.Linear(channels, 1, bias=False)  # a bias would change no softmax
            nn.init.zeros_(self.attention.weight)
        elif head.pooling == "attentive_statistics":
            self.attention = AttentiveStatistics(channels)
        self.norm: nn.LayerNorm | nn.BatchNorm1d | None = None
        if head.norm == "layer":
            self.norm = nn.LayerNorm(self.width, eps=1e-6)
        elif head.norm == "batch":
            self.norm = nn.BatchNorm1d(self.width)

    def pool(self, feature: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The pooled feature `(B, D)`, normalised where the head does so; `lengths` `(B,)` are the
        feature's real positions on the last axis."""
        feature = self._by_row(feature)
        if isinstance(self.attention, AttentiveStatistics):
            if lengths is not None and feature.ndim > 3:  # over all of space: columns of it
                lengths = lengths * math.prod(feature.shape[2:-1])
            x = self.attention(feature.movedim(-1, 2).flatten(2), lengths)
        elif self.attention is not None:
            x = masked_attention(feature, self._scores(feature), lengths)
        elif self.pooling == "k_max":
            x = masked_k_max(feature, self.k, lengths)
        else:
            x = torch.cat([POOLINGS[name](feature, lengths) for name in self.pooling.split("_")], 1)
        return x if self.norm is None else self.norm(x)

    def pool_pieces(self, pieces: Iterable[Tensor]) -> Tensor:
        """As `pool`, of a feature whose last axis comes in pieces `(B, channels, T_i)`, one or more
        and none of them empty. Of those that are done, what pooling needs to go on is kept.

        Raises:
            InputError: attentive statistics, which need the whole before they weigh a part.
        """
        if self.pooling == "attentive_statistics":
            raise InputError(
                "attentive statistics look at the whole input before they weigh a part of it; read "
                "it whole, or build with another pooling"
            )
        pieces = map(self._by_row, pieces)

        def largest(kept: Tensor, piece: Tensor) -> Tensor:
            both = torch.cat([kept, piece], -1)
            if both.shape[-1] <= self.k:
                return both
            return masked_k_max(both, self.k).unflatten(1, (-1, self.k))

        if self.pooling == "k_max":
            x = masked_k_max(reduce(largest, pieces), self.k)
        else:
            x = self._pooled_by_parts(pieces)
        return x if self.norm is None else self.norm(x)

    def _pooled_by_parts(self, pieces: Iterable[Tensor]) -> Tensor:
        """What is told by means, variances and maxima of parts."""
        means, variances, weights, tops = [], [], [], []
        for piece in pieces:
            scores = self._scores(piece)
            mean, variance = weighed_statistics(piece, softmax_shares(scores))
            means.append(mean)
            variances.append(variance)
            weights.append(scores.flatten(1).logsumexp(1, keepdim=True))  # the log of its positions
            if "max" in self.pooling:
                tops.append(masked_max(piece))
            dtype = piece.dtype
        weight = torch.stack(weights, -1)
        share = weight.softmax(-1)
        mean, between = weighed_statistics(torch.stack(means, -1), share)
        within = (torch.stack(variances, -1) * share).sum(-1)
        count = weight.exp().sum((1, 2))
        found = {"mean": mean, "attentive": mean}
        found["statistics"] = torch.cat([mean, deviation(within + between, count)], 1)
        if tops:
            found["max"] = masked_max(torch.stack(tops, -1))
        return torch.cat([found[name] for name in self.pooling.split("_")], 1).to(dtype)

    def _by_row(self, feature: Tensor) -> Tensor:
        """The feature with its rows as channels, where they are told apart."""
        if self.rows == 1:
            return feature
        if math.prod(feature.shape[2:-1]) != self.rows:
            raise InputError(
                f"the head pools {self.rows} rows, but a feature {tuple(feature.shape[1:])} has "
                f"{math.prod(feature.shape[2:-1])}; give inputs of the height it was built for, or "
                "build with rows=1"
            )
        return feature.flatten(1, -2)

    def _scores(self, feature: Tensor) -> Tensor:
        """What the softmax of attention is over, `(B, 1, *space)`, in float32 or wider; 0 without
        attention, which makes it a mean."""
        wide = torch.promote_types(feature.dtype, torch.float32)
        if not isinstance(self.attention, nn.Linear):
            return torch.zeros_like(feature[:, :1], dtype=wide)
        return self.attention(feature.movedim(1, -1)).movedim(-1, 1).to(wide)

    def reset_pooling(self) -> None:
        """Restart attention and norm."""
        if isinstance(self.attention, nn.Linear):
            nn.init.zeros_(self.attention.weight)
        elif self.attention is not None:
            self.attention.reset_parameters()
        if self.norm is not None:
            self.norm.reset_parameters()


class Classifier(Pooling):
    """Logits `(B, num_labels)` in float32 of a feature `(B, channels, *space)`.

    Attributes:
        linear: from the pooled feature to logits.
    """

    def __init__(self, channels: int, num_labels: int, head: Head) -> None:
        super().__init__(channels, head)
        self.dropout = nn.Dropout(head.dropout)
        self.linear: nn.Linear | Cosine
        if head.kind == "cosine":
            self.linear = Cosine(self.width, num_labels)
        else:
            self.linear = nn.Linear(self.width, num_labels, bias=head.bias)

    def forward(self, feature: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Classify a batch; `lengths` `(B,)` are the feature's real positions on the last axis."""
        return self.logits(self.pool(feature, lengths))

    def logits(self, x: Tensor) -> Tensor:
        """Logits of pooled features `(B, D)`."""
        return self.linear(self.dropout(x)).float()

    def reset_parameters(self) -> None:
        """Draw what makes the logits anew, and restart attention and norm."""
        self.linear.reset_parameters()
        self.reset_pooling()


class Embedder(Pooling):
    """A vector `(B, size)` in float32 of a feature `(B, channels, *space)`, and what it is trained
    by: its cosine with a direction per class.

    The vector is a linear map of the pooled feature, without a further layer.

    Attributes:
        embedding: that map.
        directions: one per class, `(num_labels, size)`, of any length.

    Raises:
        InputError: a head of another kind than "linear".
    """

    def __init__(self, channels: int, size: int, num_labels: int, head: Head) -> None:
        super().__init__(channels, head)
        if head.kind != "linear":
            raise InputError(
                f"kind={head.kind!r} is of classifiers, while vectors are always compared by their "
                "cosine; leave it out"
            )
        self.dropout = nn.Dropout(head.dropout)
        self.embedding = nn.Linear(self.width, size, bias=head.bias)
        self.directions = nn.Parameter(torch.empty(num_labels, size))
        self.reset_parameters()

    def forward(self, feature: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed a batch; `lengths` `(B,)` are the feature's real positions on the last axis."""
        return self.embedding(self.dropout(self.pool(feature, lengths))).float()

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Of embeddings `(B, size)` with each class's direction, `(B, num_labels)`, computed in
        float32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            directions = functional.normalize(self.directions.float(), dim=-1)
            return functional.linear(functional.normalize(embeddings.float(), dim=-1), directions)

    def reset_parameters(self) -> None:
        """Draw anew what tells classes apart: directions evenly over the sphere. The embedding
        stays, which is not of these classes alone."""
        nn.init.normal_(self.directions, std=self.directions.shape[1] ** -0.5)


def margin_loss(cosines: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
    """Mean cross-entropy of scaled cosines after the angle to the own class was widened by a
    margin (additive angular margin, Deng et al. 2019, "ArcFace", section 3.1).

    Beyond the angle pi - margin, where the cosine of the wider angle would rise again, it falls on
    as the cosine itself does, `sin(margin) * margin` lower.

    Args:
        cosines: float32 `(B, K)`.
        labels: int64 `(B,)`; -100 is left out of the mean.
        margin: in radians.

    >>> cosines = torch.tensor([[0.5, -0.5]])
    >>> margin_loss(cosines, torch.tensor([0]), 0.0, 2.0)  # log(1 + exp(-2))
    tensor(0.1269)
    """
    if margin:
        real = labels >= 0
        place = labels.where(real, 0).unsqueeze(1)
        own = cosines.gather(1, place)
        # A root has no slope at 0: there the sine is held, 0.0003 from it.
        sine = ((1 - own) * (1 + own)).clamp(min=1e-7).sqrt()
        wider = own * math.cos(margin) - sine * math.sin(margin)
        wider = torch.where(own > -math.cos(margin), wider, own - math.sin(margin) * margin)
        cosines = cosines.scatter(1, place, wider.where(real.unsqueeze(1), own))
    return functional.cross_entropy(scale * cosines, labels)
