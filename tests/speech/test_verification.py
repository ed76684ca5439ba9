"""Error rates by hand, by scikit-learn and by their properties; normalised scores; the picture."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from resbackbones.errors import InputError
from resbackbones.speech import (
    Trials,
    Verification,
    adaptive_norm,
    draw_det,
    equal_error_rate,
    make_trials,
    min_detection_cost,
)
from resbackbones.speech.verification import error_rates

SCORED = st.lists(st.tuples(st.integers(-8, 8), st.booleans()), min_size=2, max_size=40).filter(
    lambda trials: len({same for _, same in trials}) == 2
)


@settings(deadline=None)
@given(SCORED)
def test_rates_are_those_of_scikit_learn_and_of_counting(trials: list[tuple[int, bool]]) -> None:
    scores, same = (np.array(column) for column in zip(*trials, strict=True))
    thresholds, misses, false_alarms = error_rates(scores, same)
    for threshold, miss, alarm in zip(thresholds, misses, false_alarms, strict=True):
        accepted = scores >= float(threshold)
        assert float(miss) == pytest.approx((~accepted[same]).mean())
        assert float(alarm) == pytest.approx(accepted[~same].mean())
    fpr, tpr, _ = roc_curve(same, scores, drop_intermediate=False)
    theirs = {(round(f, 9), round(1 - t, 9)) for f, t in zip(fpr, tpr, strict=True)}
    ours = zip(false_alarms.tolist(), misses.tolist(), strict=True)
    assert {(round(f, 9), round(m, 9)) for f, m in ours} == theirs
    # Where the line between two operating points crosses the diagonal.
    grid = np.linspace(0, 1, 20001)
    crossing = grid[np.argmin(np.abs(1 - np.interp(grid, fpr, tpr) - grid))]
    rate, _ = equal_error_rate(scores, same)
    if len(set(fpr)) == len(fpr):  # else `interp` jumps
        assert rate == pytest.approx(crossing, abs=1e-3)


@settings(deadline=None)
@given(SCORED)
def test_rates_do_not_change_with_the_scale_of_scores(trials: list[tuple[int, bool]]) -> None:
    scores, same = (torch.tensor(column) for column in zip(*trials, strict=True))
    scores = scores.double()
    for scaled in (3 * scores - 7, scores**3, scores.exp(), torch.atan(scores)):
        assert equal_error_rate(scaled, same)[0] == equal_error_rate(scores, same)[0]
        for prior in (0.01, 0.5):
            cost = min_detection_cost(scores, same, prior)[0]
            assert min_detection_cost(scaled, same, prior)[0] == cost
    assert 0 <= equal_error_rate(scores, same)[0] <= 1
    mirrored = equal_error_rate(-scores, ~same)[0]
    assert mirrored == pytest.approx(equal_error_rate(scores, same)[0])


@settings(deadline=None)
@given(SCORED, st.floats(0.01, 0.99))
def test_the_least_cost_is_the_least(trials: list[tuple[int, bool]], prior: float) -> None:
    scores, same = (np.array(column) for column in zip(*trials, strict=True))
    cost, threshold = min_detection_cost(scores, same, prior)

    def at(value: float) -> float:
        accepted = scores >= value
        errors = prior * (~accepted[same]).mean() + (1 - prior) * accepted[~same].mean()
        return errors / min(prior, 1 - prior)

    assert at(threshold) == pytest.approx(cost)
    assert cost == pytest.approx(min(at(value) for value in np.arange(-8.5, 9.5)))
    assert cost <= 1 + 1e-12


def test_known_rates() -> None:
    same = torch.tensor([True] * 4 + [False] * 4)
    apart = torch.tensor([5.0, 6, 7, 8, 1, 2, 3, 4])
    assert equal_error_rate(apart, same) == (0.0, 4.5)
    assert min_detection_cost(apart, same) == (0.0, 4.5)
    assert equal_error_rate(-apart, same)[0] == 1.0
    assert equal_error_rate(torch.zeros(8), same)[0] == 0.5
    one_each = torch.tensor([5.0, 6, 7, 3.5, 1, 2, 3, 5.5])
    assert equal_error_rate(one_each, same)[0] == 0.25
    random = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    assert equal_error_rate(random, torch.arange(20_000) % 2 == 0)[0] == pytest.approx(
        0.5, abs=0.01
    )
    # Of normal scores one deviation apart from their middle, N(-1).
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    same = torch.arange(200_000) % 2 == 0
    assert equal_error_rate(normal + 2 * same, same)[0] == pytest.approx(0.15866, abs=0.003)


def test_what_tells_no_rate_is_refused() -> None:
    with pytest.raises(InputError, match="2 trials, 2 of them of the same speaker"):
        equal_error_rate([0.1, 0.2], [True, True])
    with pytest.raises(InputError, match="3 scores do not tell 2 trials apart"):
        equal_error_rate([0.1, 0.2, 0.3], [True, False])
    with pytest.raises(InputError, match="one finite number per trial"):
        equal_error_rate([0.1, float("nan")], [True, False])
    with pytest.raises(InputError, match="prior=1 is out of range"):
        min_detection_cost([0.1, 0.2], [True, False], 1)


def test_adaptive_norm_by_hand() -> None:
    torch.manual_seed(0)
    embeddings, cohort = torch.randn(6, 5).double(), torch.randn(9, 5).double()
    trials = make_trials(["a", "a", "b", "b", "c", "c"])
    found = adaptive_norm(3 * embeddings, trials, cohort, top=4)

    def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(one @ other / one.norm() / other.norm())

    for place in range(len(trials)):
        one, other = embeddings[trials.left[place]], embeddings[trials.right[place]]
        score, parts = cosine(one, other), []
        for side in (one, other):
            top = sorted((cosine(side, each) for each in cohort), reverse=True)[:4]
            parts.append((score - np.mean(top)) / np.std(top))
        assert float(found[place]) == pytest.approx(np.mean(parts))
    # As many as there are.
    whole = adaptive_norm(embeddings, trials, cohort, top=300)
    torch.testing.assert_close(whole, adaptive_norm(embeddings, trials, cohort, top=9))
    # A metric that knows the cohort tells what is left of the errors.
    metric = Verification(trials, cohort)
    metric.update(SimpleNamespace(embeddings=embeddings.float()), {"rows": torch.arange(6)})
    rate, _ = equal_error_rate(whole, trials.same)
    assert metric.compute()["eer_as_norm"] == pytest.approx(rate)
    assert "eer_as_norm" not in Verification(trials).compute()
    with pytest.raises(InputError, match="a cohort of 1 tells no deviation"):
        adaptive_norm(embeddings, trials, cohort[:1])


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)), st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_whoever_sees_a_row_the_figures_are_the_same(order: list[int], ranks: list[int]) -> None:
    embeddings = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    trials = make_trials([*"aaabbbcccddd"])

    def seen(rows: list[int], size: int) -> Verification:
        metric = Verification(trials)
        for start in range(0, len(rows), size):
            part = torch.tensor(rows[start : start + size])
            metric.update(SimpleNamespace(embeddings=embeddings[part]), {"rows": part})
        return metric

    whole = seen(list(range(12)), 12)
    parts = [seen([row for row in order if ranks[row] == rank], 2) for rank in range(3)]
    first, *others = (pickle.loads(pickle.dumps(part)) for part in parts)
    for other in others:
        first.merge(other)
    assert first.compute() == whole.compute()
    assert set(whole.compute()) == {"eer", "min_dcf_0.01", "min_dcf_0.05"}
    units = torch.nn.functional.normalize(embeddings.double(), dim=1)
    scores = (units[trials.left] * units[trials.right]).sum(1)
    assert whole.compute()["eer"] == equal_error_rate(scores, trials.same)[0]
    assert whole.left_out == 0


def test_trials_of_rows_that_nobody_saw_are_left_out() -> None:
    trials = Trials(*torch.tensor([[0, 0, 2], [1, 2, 9], [1, 0, 1]]))
    metric = Verification(trials)
    assert np.isnan(metric.compute()["eer"])
    output = SimpleNamespace(embeddings=torch.tensor([[1.0, 0], [1, 0.1], [0, 1]]))
    metric.update(output, {"rows": torch.arange(3)})
    assert metric.left_out == 1 and metric.compute()["eer"] == 0


def test_a_det_is_drawn(tmp_path: Path) -> None:
    same = torch.arange(400) % 4 == 0
    scores = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 2 * same
    draw_det(tmp_path / "det.png", {"net": (scores, same), "guess": (scores * 0, same)}, "voices")
    assert (tmp_path / "det.png").stat().st_size > 10_000
    separable = torch.tensor([1.0, 2]), torch.tensor([False, True])
    draw_det(tmp_path / "det.svg", {"perfect": separable})
    assert (tmp_path / "det.svg").is_file()
