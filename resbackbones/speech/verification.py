"""How well a verifier tells speakers apart: error rates of its scores, and what normalises them."""

import math
import os
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from resbackbones.errors import InputError
from resbackbones.speech.trials import Trials

PRIORS = (0.01, 0.05)  # of a trial being of the same speaker, that detection costs are told for
COHORT = 300
TICKS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def error_rates(scores: Any, same: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Every way to cut scores in two, from accepting all trials to accepting none.

    Args:
        scores: `(M,)`, higher where the same person is likelier to speak.
        same: bool `(M,)`.

    Returns:
        Thresholds, rising, float64 `(P,)`: a trial is accepted whose score is no lower, and each
        but the ends lies midway between two scores; the share of trials of the same speaker that
        are refused (misses), and of the others that are accepted (false alarms), `(P,)` each.

    Raises:
        InputError: scores that are no finite numbers or not one per trial; no trial of one kind.
    """
    scores = torch.as_tensor(scores, dtype=torch.float64, device="cpu").detach().flatten()
    same = torch.as_tensor(same, device="cpu").flatten().bool()
    if len(scores) != len(same) or not scores.isfinite().all():
        raise InputError(
            f"{len(scores)} scores do not tell {len(same)} trials apart; give one finite number "
            "per trial"
        )
    if bool(same.all()) or not same.any():
        raise InputError(
            f"{len(same)} trials, {int(same.sum())} of them of the same speaker, tell no error "
            "rate; give trials of both kinds"
        )
    steps = scores.unique()  # rising
    misses = torch.searchsorted(scores[same].sort().values, steps)
    refused = torch.searchsorted(scores[~same].sort().values, steps)
    targets, others = int(same.sum()), int((~same).sum())
    misses = torch.cat([misses, torch.tensor([targets])]).double() / targets
    false_alarms = 1 - torch.cat([refused, torch.tensor([others])]).double() / others
    ends = steps[:1], steps[-1:].nextafter(torch.tensor(math.inf, dtype=torch.float64))
    thresholds = torch.cat([ends[0], steps[:-1].lerp(steps[1:], 0.5), ends[1]])
    return thresholds, misses, false_alarms


def equal_error_rate(scores: Any, same: Any) -> tuple[float, float]:
    """The rate at which there are as many misses as false alarms, and the threshold nearest to it;
    between two thresholds the rates are taken for lines.

    >>> equal_error_rate([0.1, 0.4, 0.6, 0.9], [False, True, False, True])
    (0.5, 0.5)

    Raises:
        InputError: as `error_rates`.
    """
    thresholds, misses, false_alarms = error_rates(scores, same)
    after = int((misses >= false_alarms).nonzero()[0])
    before = after - 1  # there is one: where all are accepted nothing is missed
    gap = float(false_alarms[before] - misses[before])
    place = gap / (gap + float(misses[after] - false_alarms[after]))
    rate = torch.lerp(misses[before], misses[after], place)
    return float(rate), float(thresholds[after if place >= 0.5 else before])


def min_detection_cost(scores: Any, same: Any, prior: float = 0.01) -> tuple[float, float]:
    """The least cost of errors over all thresholds (NIST's minDCF, both errors costing 1), as a
    share of that of the better of accepting all and accepting none; and its threshold.

    Args:
        prior: how likely a trial is of the same speaker, above 0 and below 1.

    >>> min_detection_cost([0.1, 0.4, 0.6, 0.9], [False, True, False, True], 0.5)
    (0.5, 0.75)

    Raises:
        InputError: as `error_rates`, or no such prior.
    """
    if not 0 < prior < 1:
        raise InputError(f"prior={prior!r} is out of range; give a number above 0 and below 1")
    thresholds, misses, false_alarms = error_rates(scores, same)
    costs = prior * misses + (1 - prior) * false_alarms
    # Of equal ones the last: it is where most is asked of a score.
    best = len(costs) - 1 - int(costs.flip(0).argmin())
    return float(costs[best]) / min(prior, 1 - prior), float(thresholds[best])


def adaptive_norm(embeddings: Tensor, trials: Trials, cohort: Tensor, top: int = COHORT) -> Tensor:
    """Scores `(M,)` of trials after adaptive symmetric normalisation (Matejka et al. 2017,
    "Analysis of score normalization in multilingual speaker recognition", section 2.3): a cosine,
    less the mean and divided by the deviation of those that each of the two recordings has with the
    `top` speakers of a cohort it is most like; the mean of both.

    Args:
        embeddings: `(N, D)`, one per row that the trials name, of any length.
        cohort: `(C, D)`, one per speaker of the training, as the mean of their embeddings.
        top: as many as there are, where there are fewer.

    Raises:
        InputError: a cohort of fewer than two.
    """
    if len(cohort) < 2 or top < 2:
        raise InputError(
            f"a cohort of {min(len(cohort), top)} tells no deviation; give two speakers or more"
        )
    units = functional.normalize(embeddings.double(), dim=-1)
    others = functional.normalize(cohort.double(), dim=-1).to(units.device)
    nearest = (units @ others.T).topk(min(top, len(others)), dim=1).values
    mean, deviation = nearest.mean(1), nearest.std(1, correction=0).clamp(min=1e-12)
    scores = _cosines(units, trials)
    sides = ((scores - mean[side]) / deviation[side] for side in (trials.left, trials.right))
    return sum(sides, torch.zeros_like(scores)) / 2


def _cosines(units: Tensor, trials: Trials) -> Tensor:
    return (units[trials.left] * units[trials.right]).sum(-1)


class Verification:
    """Which of a data set's trials are told right, by the cosines of embeddings.

    `compute()` gives, as shares of one, the equal error rate `eer`, and the least detection costs
    `min_dcf_0.01` and `min_dcf_0.05`; not a number while trials of one kind are missing. A batch
    has `rows`, int64 `(B,)`, the row of each item. An embedding per row is kept, so that whatever
    process saw a row, the figures are the same.

    Args:
        trials: pairs of rows. One that was not seen, as a damaged recording, leaves its trials out.
        cohort: of `adaptive_norm`, `(C, D)`; the equal error rate after it is then `eer_as_norm`.

    >>> from types import SimpleNamespace
    >>> trials = Trials(*torch.tensor([[0, 0], [1, 2], [1, 0]]))
    >>> metric = Verification(trials)
    >>> output = SimpleNamespace(embeddings=torch.tensor([[1.0, 0], [1, 0.1], [0, 1]]))
    >>> metric.update(output, {"rows": torch.arange(3)})
    >>> metric.compute()
    {'eer': 0.0, 'min_dcf_0.01': 0.0, 'min_dcf_0.05': 0.0}
    """

    def __init__(self, trials: Trials, cohort: Tensor | None = None) -> None:
        self.trials, self.cohort = trials, cohort
        self.rows: list[Tensor] = []
        self.embeddings: list[Tensor] = []

    def update(self, output: Any, batch: Mapping[str, Any]) -> None:
        """Keep a batch's `output.embeddings` `(B, D)`, where they lie."""
        self.rows.append(batch["rows"].detach())
        self.embeddings.append(output.embeddings.detach().float())

    def merge(self, other: Self) -> None:
        self.rows += other.rows
        self.embeddings += other.embeddings

    def __getstate__(self) -> dict[str, Any]:
        held = {"rows": self.rows, "embeddings": self.embeddings}
        return {**self.__dict__, **{n: [value.cpu() for value in v] for n, v in held.items()}}

    def scores(self) -> tuple[Tensor, Tensor]:
        """Cosines, float64 `(M,)`, and whether they are of the same speaker, of the trials of which
        both rows were seen."""
        trials, embeddings = self.found()
        return _cosines(functional.normalize(embeddings.double(), dim=-1), trials), trials.same

    def found(self) -> tuple[Trials, Tensor]:
        """The trials of which both rows were seen, and embeddings float32 `(N, D)` of the rows that
        they name, 0 where one was not seen."""
        trials = self.trials
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *(each.cpu() for each in self.rows)])
        size = 1 + max(int(each.max()) for each in (rows, trials.left, trials.right) if len(each))
        seen = torch.zeros(size, dtype=torch.bool)
        seen[rows] = True
        there = seen[trials.left] & seen[trials.right]
        width = self.embeddings[0].shape[1] if self.embeddings else 0
        held = torch.zeros(size, width)
        if self.embeddings:
            held[rows] = torch.cat([each.cpu() for each in self.embeddings])
        return Trials(trials.left[there], trials.right[there], trials.same[there]), held

    @property
    def left_out(self) -> int:
        """Trials of which a row was not seen."""
        return len(self.trials) - len(self.found()[0])

    def compute(self) -> dict[str, float]:
        scores, same = self.scores()
        names = ["eer", *(f"min_dcf_{prior}" for prior in PRIORS)]
        names += [] if self.cohort is None else ["eer_as_norm"]
        if not same.any() or bool(same.all()) or not scores.isfinite().all():
            return dict.fromkeys(names, math.nan)
        found = [equal_error_rate(scores, same)[0]]
        found += [min_detection_cost(scores, same, prior)[0] for prior in PRIORS]
        if self.cohort is not None:
            trials, embeddings = self.found()
            found.append(equal_error_rate(adaptive_norm(embeddings, trials, self.cohort), same)[0])
        return dict(zip(names, found, strict=True))


def draw_det(
    path: str | os.PathLike[str], curves: Mapping[str, tuple[Any, Any]], title: str = ""
) -> None:
    """Draw misses over false alarms at every threshold, on axes on which errors of normally
    distributed scores lie on a line (Martin et al. 1997, "The DET curve").

    Args:
        path: of the picture, .png or .svg.
        curves: name -> scores and whether they are of the same speaker, `(M,)` each.

    Raises:
        InputError: as `error_rates`.
    """
    from matplotlib.figure import Figure

    def probit(share: Tensor) -> Tensor:
        return torch.special.ndtri(share.clamp(min=TICKS[0] / 2, max=1 - TICKS[0] / 2))

    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, (scores, same) in curves.items():
        _, misses, false_alarms = error_rates(scores, same)
        rate, _ = equal_error_rate(scores, same)
        # Past the first and the last error there is nothing to see.
        seen = (misses > 0) & (false_alarms > 0)
        told = f"{name}: EER {100 * rate:.1f} %"
        (line,) = axes.plot(probit(false_alarms[seen]), probit(misses[seen]), label=told)
        middle = probit(torch.tensor(rate, dtype=torch.float64))
        axes.plot(middle, middle, "o", color=line.get_color(), markersize=5)
    places = probit(torch.tensor(TICKS, dtype=torch.float64))
    labels = [f"{100 * tick:g}" for tick in TICKS]
    ends = float(places[0]), float(places[-1])
    axes.plot(ends, ends, color="#9ca3af", linewidth=0.8, linestyle=":")
    axes.set(xlabel="false alarms (%)", ylabel="misses (%)", title=title, xlim=ends, ylim=ends)
    axes.set_xticks(places, labels)
    axes.set_yticks(places, labels)
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
