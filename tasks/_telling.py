"""What a recipe says at its end: the table, what it means, each class in results.json."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resbackbones import report
from resbackbones.metrics import Confusion
from resbackbones.train import Result

SCORES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Run:
    """One seed: what its model takes for what on the test split, and its training."""

    seed: int
    confusion: Confusion
    result: Result

    @property
    def metrics(self) -> dict[str, float]:
        return self.confusion.compute()


def table(arm: str, runs: Sequence[Run], baseline: tuple[str, Confusion]) -> str:
    """Each seed, their mean, and the baseline."""
    names = [n for n in ("accuracy", "macro_f1", "calibration_error") if n in runs[0].metrics]
    rows = [[f"{arm}, seed {run.seed}", *cells(names, run.metrics)] for run in runs]
    if len(runs) > 1:
        spread = {n: report.mean_sd([run.metrics[n] for run in runs]) for n in names}
        mean = [report.format_metric(n, *spread[n]) for n in names]
        rows.append([f"{arm}, mean ± sd", *mean])
    rows.append([baseline[0], *cells(names, baseline[1].compute())])
    return report.markdown_table(["", *header(names)], rows)


def class_table(confusion: Confusion) -> str:
    """Each class's scores."""
    rows = [
        [name, *(f"{100 * score[key]:.1f} %" for key in SCORES), f"{score['support']:,}"]
        for name, score in confusion.per_class().items()
    ]
    return report.markdown_table(["class", *header(SCORES), "items"], rows)


def header(names: Iterable[str]) -> list[str]:
    """
    >>> header(["macro_f1", "f1"])
    ['macro F1', 'F1']
    """
    return [name.replace("_", " ").replace("f1", "F1") for name in names]


def cells(names: Sequence[str], metrics: Mapping[str, float]) -> list[str]:
    return [report.format_metric(n, metrics[n]) if n in metrics else "-" for n in names]


def remarks(
    runs: Sequence[Run], baseline: tuple[str, Confusion], skipped: Sequence[str]
) -> Iterator[str]:
    """What the figures mean, where a reader may miss it."""
    ours = sum(run.metrics["accuracy"] for run in runs) / len(runs)
    theirs = baseline[1].compute()["accuracy"]
    counts = runs[0].confusion.counts
    yield from how_well_known(*(run.confusion for run in runs))
    if ours * counts.sum() <= counts.sum(1).max():
        yield (
            "the net is no better than always naming the most frequent class; try another "
            "--learning-rate, more --least-steps, or see whether labels fit their inputs"
        )
    elif ours < theirs:
        yield (
            f"{baseline[0]} is better here than the net: use it, or give the net more data or "
            "more --epochs"
        )
    yield from left_out(skipped)


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


def write_results(path: Path, runs: Sequence[Run], baseline: tuple[str, Confusion]) -> None:
    """Metrics, scores of each class and confusions of every seed and of the baseline, as JSON."""

    def told(confusion: Confusion) -> dict[str, Any]:
        return {
            "metrics": confusion.compute(),
            "per_class": confusion.per_class(),
            "confusion": confusion.counts.tolist(),
        }

    content = {f"seed {run.seed}": told(run.confusion) for run in runs}
    content[baseline[0]] = told(baseline[1])
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
