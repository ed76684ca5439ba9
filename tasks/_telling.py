"""What a recipe says at its end: the table, what it means, each class in results.json."""

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from resbackbones import report
from resbackbones.metrics import Confusion, Metric, MultiLabel
from resbackbones.train import Result

SHOWN = {"map": "mAP", "ap": "AP", "ap50": "AP50", "ap75": "AP75"}
SHOWN |= {f"mask_{name}": f"mask {shown}" for name, shown in SHOWN.items()}
SHOWN |= {"cer": "CER", "wer": "WER", "eer": "EER", "eer_as_norm": "EER, AS-norm"}
SEARCHES = {"greedy": "greedy", "beam": "beam", "beam_lm": "beam + n-grams"}
SHOWN |= {
    f"{rate}_{name}": f"{rate.upper()}, {search}"
    for name, search in SEARCHES.items()
    for rate in ("cer", "wer")
}
SHOWN |= {"min_dcf_0.01": "minDCF 0.01", "min_dcf_0.05": "minDCF 0.05"}


@dataclass(frozen=True)
class Run:
    """One seed: what its model made of the test split, and its training."""

    seed: int
    metric: Metric
    result: Result
    sample: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        return self.metric.compute()


def table(
    figures: Sequence[str], arm: str, runs: Sequence[Run], baseline: tuple[str, Metric]
) -> str:
    """Each seed, their mean, and the baseline."""
    names = [name for name in figures if name in runs[0].metrics]
    rows = [[f"{arm}, seed {run.seed}", *cells(names, run.metrics)] for run in runs]
    if len(runs) > 1:
        spread = {n: report.mean_sd([run.metrics[n] for run in runs]) for n in names}
        mean = [report.format_metric(n, *spread[n]) for n in names]
        rows.append([f"{arm}, mean ± sd", *mean])
    rows.append([baseline[0], *cells(names, baseline[1].compute())])
    return report.markdown_table(["", *header(names)], rows)


def class_table(metric: Any) -> str:
    """Each class's scores, shares of one, and how many there are of it."""
    scores = metric.per_class()
    names = [n for n in next(iter(scores.values())) if n not in ("support", "predicted")]
    rows = [[name, *cells(names, score), f"{score['support']:,}"] for name, score in scores.items()]
    return report.markdown_table(["class", *header(names), "items"], rows)


def header(names: Iterable[str]) -> list[str]:
    """
    >>> header(["macro_f1", "f1", "ap50"])
    ['macro F1', 'F1', 'AP50']
    """
    return [SHOWN.get(name, name.replace("_", " ").replace("f1", "F1")) for name in names]


def cells(names: Sequence[str], metrics: Mapping[str, float]) -> list[str]:
    return [report.format_metric(n, metrics[n]) if n in metrics else "-" for n in names]


def remarks(
    figure: str,
    runs: Sequence[Run],
    baseline: tuple[str, Metric],
    skipped: Sequence[str],
    advice: str,
    higher_is_better: bool = True,
) -> Iterator[str]:
    """What the net takes for what, and what the figures mean, where a reader may miss it; with
    advice on what to try where the baseline is better."""
    ours = sum(run.metrics[figure] for run in runs) / len(runs)
    theirs = baseline[1].compute()[figure]
    confusions = [
        run.metric for run in runs if isinstance(run.metric, Confusion) and figure == "accuracy"
    ]
    if confusions:
        yield from mistakes(*confusions)
        yield from how_well_known(*confusions)
    if any(_guesses(ours, confusion.counts) for confusion in confusions[:1]):
        yield (
            "the net is no better than always naming the most frequent class; try another "
            "--learning-rate, more --least-steps, or see whether labels fit their inputs"
        )
    elif (ours < theirs) if higher_is_better else (ours > theirs):
        yield f"{baseline[0]} is better here than the net: use it, or {advice}"
    yield from left_out(skipped)


def _guesses(accuracy: float, counts: Tensor) -> bool:
    """Whether an accuracy is no more than always naming the most frequent class would have."""
    return accuracy * int(counts.sum()) <= int(counts.sum(1).max())


def how_well_known(*confusions: Confusion) -> Iterator[str]:
    """What so few rows can tell of an accuracy, where that is not much."""
    rows = int(confusions[0].counts.sum())
    hits = sum(int(confusion.counts.diagonal().sum()) for confusion in confusions)
    low, high = wilson(hits / len(confusions), rows)
    if high - low > 0.04:
        yield (
            f"{rows:,} rows tell an accuracy only so well: the 95 % interval is {100 * low:.0f} to "
            f"{100 * high:.0f} %"
        )


def mistakes(*confusions: Confusion) -> Iterator[str]:
    """Which classes were most taken for which others, over all seeds."""
    whole = copy.deepcopy(confusions[0])
    for other in confusions[1:]:
        whole.merge(other)
    pairs = [
        f"{expected} taken for {other}: {many:,} of {there:,}"
        for expected, other, many, there in whole.most_confused()
    ]
    if pairs:
        seeds = f" (all {len(confusions)} seeds)" if len(confusions) > 1 else ""
        yield f"most confused{seeds}: {'; '.join(pairs)}"


def left_out(skipped: Sequence[str]) -> Iterator[str]:
    if skipped:
        items = "item" if len(skipped) == 1 else "items"
        yield f"left out {len(skipped):,} bad {items}, the first: {skipped[0]}"


def wilson(hits: float, rows: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927).

    >>> [round(end, 2) for end in wilson(1, 2)]
    [0.09, 0.91]
    """
    z, share = 1.96, hits / rows
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2)) / (1 + z**2 / rows)
    return middle - half, middle + half


def write_results(path: Path, runs: Sequence[Run], baseline: tuple[str, Metric]) -> None:
    """Metrics, scores of each class and confusions, as far as the metric has them, of every seed
    and of the baseline, as JSON."""

    def told(metric: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"metrics": metric.compute()}
        if hasattr(metric, "per_class"):
            found["per_class"] = metric.per_class()
        if hasattr(metric, "counts") and not isinstance(metric, MultiLabel):
            found["confusion"] = metric.counts.tolist()
        return found

    content = {f"seed {run.seed}": told(run.metric) for run in runs}
    content[baseline[0]] = told(baseline[1])
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
