"""One arm against another, seed by seed: the rule by which a difference counts."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from resbackbones.report.records import mean_sd

MARGIN = 0.01
RULE = (
    "Two arms are compared seed by seed. A difference counts when the 95 % interval of its mean "
    "over the seeds (Student's t, clipped to what two accuracies can differ by) excludes zero and "
    "the mean is at least the margin: one percentage point, or two standard errors of an accuracy "
    "measured on this many test rows, whichever is larger. Otherwise it is nothing measurable; "
    "with one seed nothing is claimed."
)


@dataclass(frozen=True)
class Comparison:
    """One side against another, seed by seed. Accuracies are shares of one.

    Attributes:
        ours, theirs: means over the shared seeds.
        low, high: 95 % interval of the mean difference, or None with one seed.
        margin: the smallest difference that counts.
        seeds: how many seeds the two share.
    """

    ours: float
    theirs: float
    low: float | None
    high: float | None
    margin: float
    seeds: int

    @property
    def difference(self) -> float:
        return self.ours - self.theirs

    @property
    def verdict(self) -> Literal["better", "worse", "nothing", "unknown"]:
        """Whether ours is better or worse than theirs; "unknown" with one seed."""
        if self.low is None or self.high is None:
            return "unknown"
        if abs(self.difference) < self.margin or self.low <= 0 <= self.high:
            return "nothing"
        return "better" if self.difference > 0 else "worse"

    @property
    def points(self) -> str:
        """The difference in percentage points, its interval where there is one, and the seeds."""
        text = f"{100 * self.difference:+.1f} points"
        if self.low is None or self.high is None:
            return f"{text}, 1 seed"
        low, high = 100 * self.low, 100 * self.high
        return f"{text}, 95 % interval {low:+.1f} to {high:+.1f}, {self.seeds} seeds"


def compare(
    ours: Mapping[int, float], theirs: Mapping[int, float] | float, rows: int
) -> Comparison | None:
    """Compare two arms (seed -> accuracy on `rows` rows, a share of one), or an arm with a figure.

    None when the two share no seed.

    >>> compare({0: 0.90, 1: 0.92}, {0: 0.80, 1: 0.83}, rows=10_000).points
    '+9.5 points, 95 % interval +3.1 to +15.9, 2 seeds'
    """
    if isinstance(theirs, float | int):
        theirs = dict.fromkeys(ours, float(theirs))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    a, b = ([side[seed] for seed in seeds] for side in (ours, theirs))
    share = statistics.fmean(a + b)
    margin = max(MARGIN, 2 * math.sqrt(max(share * (1 - share), 0.0) / rows))
    mean_a, mean_b = statistics.fmean(a), statistics.fmean(b)
    low, high = _interval([x - y for x, y in zip(a, b, strict=True)])
    if low is not None and high is not None:
        # Beside the other's mean, neither side can leave 0 to 1.
        low = max(low, -mean_b, mean_a - 1)
        high = min(high, 1 - mean_b, mean_a)
    return Comparison(mean_a, mean_b, low, high, margin, len(seeds))


def surely_positive(differences: Sequence[float]) -> bool:
    """Whether the 95 % interval of the mean (Student's t) lies above zero; no with one value."""
    low, _ = _interval(differences)
    return low is not None and low > 0


def _interval(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % interval of a mean (Student's t); None for a single value."""
    if len(differences) < 2:
        return None, None
    from scipy.stats import t

    mean, sd = mean_sd(differences)
    half = float(t.ppf(0.975, len(differences) - 1)) * (sd or 0.0) / math.sqrt(len(differences))
    return mean - half, mean + half
