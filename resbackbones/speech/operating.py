"""What a detector costs: words that it misses against false alarms per hour, at each threshold."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resbackbones.errors import InputError

MOST_THRESHOLDS = 1000  # of a curve


def pause(refractory: float, hop: float) -> int:
    """Hops from one detection to the first that may follow it."""
    return max(1, math.ceil(refractory / hop - 1e-9))


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold gave.

    Attributes:
        threshold: a word is detected from this score on.
        misses, clips: of so many clips with a keyword, those whose score stayed below it.
        false_alarms, hours: detections in so many hours without a keyword.
    """

    threshold: float
    misses: int
    clips: int
    false_alarms: int
    hours: float

    @property
    def miss_rate(self) -> float:
        return self.misses / self.clips

    @property
    def per_hour(self) -> float:
        return self.false_alarms / self.hours

    def __str__(self) -> str:
        """
        >>> print(OperatingPoint(0.9, 3, 100, 1, 2.0))
        3.0 % of 100 keywords missed, 0.50 false alarms per hour (1 in 2 hours)
        >>> print(OperatingPoint(0.9, 3, 100, 0, 0.5))
        3.0 % of 100 keywords missed, 0 false alarms in 0.5 hours
        """
        alarms = f"0 false alarms in {self.hours:.3g} hours"
        if self.false_alarms:
            counted = f"{self.false_alarms} in {self.hours:.3g} hours"
            alarms = f"{self.per_hour:.2f} false alarms per hour ({counted})"
        return f"{100 * self.miss_rate:.1f} % of {self.clips:,} keywords missed, {alarms}"


@dataclass(frozen=True)
class OperatingCurve:
    """Points from the lowest threshold to the highest."""

    points: tuple[OperatingPoint, ...]

    @property
    def hours(self) -> float:
        return self.points[0].hours

    def at(self, per_hour: float = 0.5) -> OperatingPoint:
        """The lowest threshold with no more false alarms than that, there and above.

        Warns:
            UserWarning: fewer hours than one false alarm takes at this rate; the point then has
                none, and what it says is "0 in so many hours", not a rate.
        """
        if not per_hour >= 0:
            raise InputError(f"per_hour={per_hour!r} is no rate; give false alarms per hour")
        if per_hour * self.hours < 1:
            warnings.warn(
                f"{self.hours:.2g} hours without a keyword cannot tell {per_hour:g} false alarms "
                f"per hour from none, as one would be {1 / self.hours:.2g}; the threshold is the "
                "lowest without any",
                stacklevel=2,
            )
        chosen = self.points[-1]
        for point in reversed(self.points):
            if point.false_alarms > per_hour * self.hours:
                break
            chosen = point
        return chosen

    def draw(self, chosen: OperatingPoint | None = None) -> Any:
        """A figure of matplotlib, misses over false alarms per hour: `.savefig("curve.png")`."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2, 3.8), layout="constrained")
        axes = figure.subplots()
        most = max(10.0, 4 / self.hours)
        shown = [point for point in self.points if point.per_hour <= most]
        axes.step(
            [point.per_hour for point in shown],
            [100 * point.miss_rate for point in shown],
            where="post",
            color="#1d5fbf",
            linewidth=1.8,
        )
        if chosen is not None:
            axes.plot(chosen.per_hour, 100 * chosen.miss_rate, "o", color="#d9622b")
            axes.annotate(
                f"threshold {chosen.threshold:.4g}",
                (chosen.per_hour, 100 * chosen.miss_rate),
                xytext=(8, 8),
                textcoords="offset points",
                fontsize=9,
                color="#d9622b",
            )
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.margins(0.05)
        hours, clips = f"{self.hours:.3g}", self.points[0].clips
        axes.set_xlabel(f"false alarms per hour ({hours} hours without a keyword)", fontsize=9)
        axes.set_ylabel(f"keywords missed, % (of {clips:,})", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        return figure


def operating_curve(
    keywords: Tensor,
    negatives: Sequence[Tensor],
    hop: float,
    refractory: float,
    hours: float | None = None,
) -> OperatingCurve:
    """What every threshold costs: words missed, and words heard where there were none.

    Args:
        keywords: the highest smoothed score of its word in each clip of a keyword, `(N,)`.
        negatives: smoothed scores `(hops,)` of signals without a keyword, of several words the
            highest.
        hop, refractory: in seconds, as of the detector.
        hours: of the negatives; None means as many as their hops last.

    Raises:
        InputError: no keywords, or no negatives.
    """
    if not len(keywords) or not sum(map(len, negatives)):
        raise InputError(
            f"there are {len(keywords)} clips of keywords and {sum(map(len, negatives))} hops "
            "without; an operating curve needs both"
        )
    if hours is None:
        hours = sum(map(len, negatives)) * hop / 3600
    own = keywords.double().sort().values
    tracks = [track.double().numpy() for track in negatives]
    counts = [
        (threshold, sum(len(events(track, threshold, pause(refractory, hop))) for track in tracks))
        for threshold in _thresholds(torch.cat([*negatives]).double(), own)
    ]
    points = [
        OperatingPoint(t, int((own < t).sum()), len(own), alarms, hours) for t, alarms in counts
    ]
    return OperatingCurve(tuple(points))


def _thresholds(scores: Tensor, keywords: Tensor) -> list[float]:
    """Where counts change, from low to high: all of them near the top, ever fewer below, and one
    just above the highest score without a keyword."""
    falling = scores.unique().flip(0)
    ranks = torch.arange(MOST_THRESHOLDS // 2)
    rest = torch.logspace(0, math.log10(max(1, len(falling))), MOST_THRESHOLDS // 2).long() - 1
    chosen = torch.cat([ranks[ranks < len(falling)], rest]).unique()
    above = torch.nextafter(falling[:1], torch.tensor([math.inf]).double())
    low = keywords[:: max(1, len(keywords) // 100)]
    return torch.cat([falling[chosen], above, low]).unique().tolist()


def events(scores: Any, threshold: float, pause: int) -> list[int]:
    """The hops `(hops,)` at which a score that is the threshold or more is a detection: the first
    one, and then each first one that is `pause` hops or more behind the last detection.

    >>> import numpy as np
    >>> events(np.array([0.1, 0.9, 0.9, 0.8, 0.2, 0.9]), 0.8, 2)
    [1, 3, 5]
    """
    found: list[int] = []
    for hop in (scores >= threshold).nonzero()[0].tolist():
        if not found or hop >= found[-1] + pause:
            found.append(hop)
    return found


__all__: Sequence[str] = (
    "OperatingCurve",
    "OperatingPoint",
    "events",
    "operating_curve",
    "pause",
)
