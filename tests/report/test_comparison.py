"""The rule by which one arm beats another."""

import random

import pytest

from resbackbones.report import Comparison, compare, surely_positive
from resbackbones.report.comparison import MARGIN


def found(
    ours: dict[int, float], theirs: dict[int, float] | float, rows: int = 10_000
) -> Comparison:
    answer = compare(ours, theirs, rows)
    assert answer is not None
    return answer


def bounds(comparison: Comparison) -> tuple[float, float]:
    assert comparison.low is not None and comparison.high is not None
    return comparison.low, comparison.high


def test_two_seeds_are_held_to_a_wider_interval_than_three() -> None:
    two = found({0: 0.60, 1: 0.66}, {0: 0.50, 1: 0.53})
    three = found({0: 0.60, 1: 0.66, 2: 0.63}, {0: 0.50, 1: 0.53, 2: 0.515})
    assert two.difference == pytest.approx(three.difference)
    assert two.verdict == "nothing" and three.verdict == "better"
    assert (two.seeds, three.seeds) == (2, 3) and three.points.endswith(", 3 seeds")
    # Student's t with two degrees of freedom: 4.303 standard errors to each side.
    assert bounds(three)[1] - three.difference == pytest.approx(4.3027 * 0.015 / 3**0.5, rel=1e-3)


def test_an_interval_stays_within_what_can_be() -> None:
    # Two seeds, 70 points apart give or take 5: Student's t alone says +6.5 to +133.5.
    wide = found({0: 0.90, 1: 0.84}, {0: 0.15, 1: 0.19})
    assert bounds(wide) == pytest.approx((0.70 - 12.706 * 0.05, 1 - 0.17), rel=1e-3)
    assert wide.points == "+70.0 points, 95 % interval +6.5 to +83.0, 2 seeds"
    # Beside a baseline of 96.8 % a net can be no more than 3.2 points better.
    beside = found({0: 0.95, 1: 0.93}, 0.968)
    assert bounds(beside)[1] == pytest.approx(1 - 0.968)
    assert bounds(found({0: 0.2, 1: 0.1}, {0: 0.9, 1: 0.98}))[0] == pytest.approx(0.15 - 1)


def test_clipping_changes_no_verdict_and_mirrors() -> None:
    draw = random.Random(0)
    for _ in range(200):
        ours, theirs = ({seed: draw.random() for seed in range(2)} for _ in range(2))
        here, there = found(ours, theirs), found(theirs, ours)
        low, high = bounds(here)
        assert -1 <= low <= here.difference <= high <= 1
        assert bounds(there) == pytest.approx((-high, -low))
        opposite = {"better": "worse", "worse": "better", "nothing": "nothing"}
        assert there.verdict == opposite[here.verdict]


def test_seeds_are_paired() -> None:
    # Seeds differ by far more than the arms do; only pairing shows that one is always ahead.
    ours, theirs = {0: 0.52, 1: 0.72, 2: 0.93}, {0: 0.49, 1: 0.69, 2: 0.90}
    assert found(ours, theirs).verdict == "better"
    assert found(ours, {2: 0.49, 0: 0.69, 1: 0.90}).verdict == "nothing"
    assert found({0: 0.5, 5: 0.9}, {0: 0.4, 7: 0.1}, 100).ours == 0.5  # shared seeds only
    assert compare({0: 0.5}, {1: 0.5}, 100) is None


def test_one_seed_claims_nothing() -> None:
    one = found({0: 0.9}, 0.2)
    assert one.verdict == "unknown" and one.points == "+70.0 points, 1 seed"
    assert not surely_positive([0.7]) and surely_positive([0.7, 0.71])


def test_a_small_test_split_cannot_carry_a_small_difference() -> None:
    ours, theirs = dict.fromkeys(range(3), 0.92), dict.fromkeys(range(3), 0.88)
    assert found(ours, theirs).verdict == "better"
    few = found(ours, theirs, 50)
    assert few.verdict == "nothing" and few.margin == pytest.approx(2 * (0.9 * 0.1 / 50) ** 0.5)
    assert found(ours, theirs).margin == MARGIN
