"""Result records, the tables made from them, and the few plots this project draws.

A record is one JSON object a published number rests on, one file per arm:
`results/<task>/<dataset>-<arm>.json`. The table of the README is generated from those files:

    python -m resbackbones.report README.md            # rewrite it
    python -m resbackbones.report README.md --check    # exit 1 when it is stale

Figures use matplotlib's object interface and the Agg and SVG writers: no window, no global state.
"""

import argparse
import dataclasses
import html
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from resbackbones.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PERCENT = ("accuracy", "macro_f1")  # shares of one, shown as percentages
PACKAGES = (
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "datasets",
    "scikit-learn",
    "numpy",
)


# Records


@dataclass(frozen=True)
class Record:
    """One arm of one experiment: what was measured, on what, how often and by which command.

    `values[i]` and `seconds[i]` (training time) belong to `seeds[i]`; `sd` has ddof 1 and is None
    for a single seed; `baseline` is `{"name", "value"}` on the same split, or None. `held_out` are
    the rows of the train split that served as the validation split, where the data came with none;
    `skipped` counts the damaged items left out.
    """

    task: str
    dataset: str
    protocol: str
    split: str
    arm: str
    metric: str
    higher_is_better: bool
    seeds: list[int]
    values: list[float]
    mean: float
    sd: float | None
    baseline: dict[str, Any] | None
    parameters: int
    macs: int
    seconds: list[float]
    hardware: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    command: str
    held_out: list[int] = field(default_factory=list)
    skipped: int = 0


def result_record(
    *,
    task: str,
    dataset: str,
    protocol: str,
    arm: str,
    metric: str,
    seeds: Sequence[int],
    values: Sequence[float],
    seconds: Sequence[float],
    parameters: int,
    macs: int,
    baseline: tuple[str, float] | Mapping[str, Any] | None = None,
    split: str = "test",
    higher_is_better: bool = True,
    held_out: Sequence[int] = (),
    skipped: int = 0,
) -> Record:
    """Fill in what a record can find out by itself: mean, sd, hardware, versions, commit, command.

    `baseline` is a name and a value. Raises ValueError when seeds, values and seconds do not match
    or a value is not finite: such a number must not be published.
    """
    if not len(seeds) == len(values) == len(seconds) or not values:
        raise ValueError(
            f"a record needs one value and one time a seed; got {len(seeds)} seeds, "
            f"{len(values)} values and {len(seconds)} times"
        )
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{metric} must be finite to be recorded; got {numbers}")
    if baseline is not None and not isinstance(baseline, Mapping):
        baseline = {"name": baseline[0], "value": float(baseline[1])}
    mean, sd = mean_sd(numbers)
    return Record(
        task=task,
        dataset=dataset,
        protocol=protocol,
        split=split,
        arm=arm,
        metric=metric,
        higher_is_better=higher_is_better,
        seeds=[int(seed) for seed in seeds],
        values=numbers,
        mean=mean,
        sd=sd,
        baseline=None if baseline is None else dict(baseline),
        parameters=int(parameters),
        macs=int(macs),
        seconds=[round(float(second), 2) for second in seconds],
        hardware=hardware(),
        versions=versions(),
        commit=commit(),
        command=command(),
        held_out=[int(row) for row in held_out],
        skipped=skipped,
    )


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (ddof 1; None for a single value).

    >>> mean_sd([1.0, 3.0])
    (2.0, 1.4142135623730951)
    >>> mean_sd([1.0])
    (1.0, None)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def write_record(record: Record, path: str | Path) -> Path:
    """Write one record as JSON, whole or not at all."""
    path = Path(path)
    text = json.dumps(dataclasses.asdict(record), indent=2, allow_nan=False) + "\n"
    # A list of numbers reads, and compares, better on one line.
    text = re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    scratch = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        raise InputError(
            f"cannot write the record {path} ({error.strerror}); name a folder that can be written"
        ) from error
    return path


def save_record(record: Record, folder: str | Path = "results") -> Path:
    """Write a record where the README's table looks: `folder/<task>/<dataset>-<arm>.json`."""
    name = f"{_file_name(record.dataset)}-{_file_name(record.arm)}.json"
    return write_record(record, Path(folder) / _file_name(record.task) / name)


def load_records(folder: str | Path = "results") -> list[Record]:
    """Every record under a folder, in the order of their paths."""
    records = []
    known = {entry.name for entry in dataclasses.fields(Record)}
    for path in sorted(Path(folder).glob("*/*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON ({error}); write it anew") from error
        if not isinstance(content, dict) or set(content) != known:
            odd = sorted(known ^ set(content if isinstance(content, dict) else ()))
            raise InputError(
                f"{path} is not a result record: {', '.join(odd)} missing or unknown; write it anew"
            )
        records.append(Record(**content))
    return records


def hardware() -> dict[str, Any]:
    """What the numbers were measured on: processor, cores this process may use, memory, GPU."""
    name = platform.processor() or platform.machine()
    memory = None
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    gpu = None
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
    return {"cpu": name, "cores": available_cores(), "memory_gib": memory, "gpu": gpu}


def available_cores() -> int:
    """The cores this process may run on, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of Python and of the named packages, without importing them."""
    import resbackbones

    found = {"python": platform.python_version(), "resbackbones": resbackbones.__version__}
    return found | {name: importlib.metadata.version(name) for name in packages}


def commit() -> str | None:
    """The commit this package runs from, with "-dirty" after local changes; None outside git."""
    here = Path(__file__).resolve()
    # Tracked here? A package installed inside some other checkout must not name *its* commit.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def command() -> str:
    """The command line of this process, as one would type it again."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text.strip()).strip("-")


# Tables


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose source reads as well as its rendering; the first `left` columns go left.

    >>> print(markdown_table(["arm", "value"], [["plain", "0.5"]]))
    | arm   | value |
    | :---- | ----: |
    | plain |   0.5 |
    """
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = [
        ":" + "-" * (width - 1) if i < left else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def format_metric(metric: str, mean: float, sd: float | None = None) -> str:
    """A mean and its spread for people.

    >>> format_metric("accuracy", 0.877, 0.0123), format_metric("loss", 1.5)
    ('87.7 ± 1.2 %', '1.500')
    """
    if metric in PERCENT:
        return f"{100 * mean:.1f}" + (f" ± {100 * sd:.1f}" if sd is not None else "") + " %"
    return f"{mean:.3f}" + (f" ± {sd:.3f}" if sd is not None else "")


def format_count(number: float) -> str:
    """Parameters and multiply-adds for people.

    >>> format_count(950), format_count(77_214), format_count(1_814_073_344)
    ('950', '77.2 k', '1.81 G')
    """
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f}"


def results_table(records: Sequence[Record]) -> str:
    """The README's table: one row a record, sorted by task, data set and arm."""
    rows = []
    for record in sorted(records, key=lambda r: (r.task, r.dataset, _natural(r.arm))):
        baseline = "none"
        if record.baseline is not None:
            value = format_metric(record.metric, record.baseline["value"])
            baseline = f"{record.baseline['name']}: {value}"
        gpu = record.hardware.get("gpu")
        machine = gpu or f"{record.hardware.get('cores')} x {record.hardware.get('cpu')}"
        metric = record.metric.replace("_", " ") + ("" if record.higher_is_better else " (lower)")
        rows.append(
            [
                record.task,
                f"{record.dataset}, {record.split}",
                record.arm,
                metric,
                f"{format_metric(record.metric, record.mean, record.sd)} ({len(record.values)})",
                baseline,
                format_count(record.parameters),
                format_count(record.macs),
                f"{statistics.fmean(record.seconds):.0f} s",
                machine,
            ]
        )
    if not rows:
        return "No results are recorded yet."
    header = ["task", "data, split", "arm", "metric", "mean ± sd (seeds)", "baseline"]
    return markdown_table([*header, "parameters", "MACs", "a seed", "on"], rows, left=4)


def _natural(text: str) -> list[Any]:
    """Sort key that puts `plain-8` before `plain-56`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def refresh(page: str | Path, records: Sequence[Record]) -> bool:
    """Rewrite the table between the two markers of a page; True when that changed it."""
    page = Path(page)
    text = page.read_text(encoding="utf-8")
    new = _with_table(page, text, results_table(records))
    if new == text:
        return False
    page.write_text(new, encoding="utf-8")
    return True


def is_stale(page: str | Path, records: Sequence[Record]) -> bool:
    """Whether the table of a page differs from what the records say."""
    text = Path(page).read_text(encoding="utf-8")
    return _with_table(Path(page), text, results_table(records)) != text


def _with_table(page: Path, text: str, table: str) -> str:
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(
            f"{page} must hold {BEGIN} and then {END}, once each; put them where the table belongs"
        )
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


# Plots

COLOURS = {"residual": "#1d5fbf", "plain": "#d9622b", "baseline": "#6b7280"}


@dataclass(frozen=True)
class Line:
    """One line of a panel: y over x, with an optional spread (drawn as error bars)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float | None] | None = None
    colour: str | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One set of axes. `across` are dashed horizontal lines, name -> value."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    across: Mapping[str, float] = field(default_factory=dict)
    log: bool = False
    x_ticks: Sequence[float] | None = None
    markers: bool = True
    y_limits: tuple[float, float] | None = None


def draw(panels: Sequence[Panel], width: float = 3.6, height: float = 2.9) -> "Figure":
    """Panels side by side (sizes in inches, a panel), under one legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * len(panels), height + 0.4), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for panel, axes in zip(panels, grid, strict=True):
        for line in panel.lines:
            style = {
                "color": line.colour or COLOURS.get(line.name),
                "linestyle": "--" if line.dashed else "-",
                "marker": "o" if panel.markers else "",
                "markersize": 4.5,
                "linewidth": 1.8,
            }
            spread = [value or 0.0 for value in line.spread or [0.0] * len(line.y)]
            if any(spread):
                if panel.log:  # a bar that reaches zero has no place on a logarithmic axis
                    below = [min(s, 0.9 * y) for s, y in zip(spread, line.y, strict=True)]
                    bars: Any = [below, spread]
                else:
                    bars = spread
                drawn: Any = axes.errorbar(line.x, line.y, yerr=bars, capsize=3, **style)
            else:
                (drawn,) = axes.plot(line.x, line.y, **style)
            handles.setdefault(line.name, drawn)
        for name, value in panel.across.items():
            drawn = axes.axhline(value, color=COLOURS["baseline"], linestyle="--", linewidth=1.2)
            handles.setdefault(name, drawn)
        axes.set_title(panel.title, fontsize=11, loc="left", fontweight="bold")
        axes.set_xlabel(panel.x_label, fontsize=9)
        axes.set_ylabel(panel.y_label, fontsize=9)
        axes.tick_params(labelsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        if panel.log:
            axes.set_yscale("log")
        if panel.y_limits is not None:
            axes.set_ylim(*panel.y_limits)
        if panel.x_ticks is not None:
            axes.set_xticks(list(panel.x_ticks))
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=len(handles),
            frameon=False,
            fontsize=9,
        )
    return figure


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Write a figure as PNG (or whatever the suffix says)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def inline_svg(figure: "Figure", description: str) -> str:
    """The figure as an `<svg>` element for an HTML page, with a text for those who cannot see it.

    Text stays text (the reader's fonts), and ids are the same in every run.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    label = html.escape(description, quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m resbackbones.report README.md [--check] [--results results]`."""
    parser = argparse.ArgumentParser(
        prog="python -m resbackbones.report",
        description="Rewrite a page's results table from the records.",
    )
    parser.add_argument("page", type=Path, help="a Markdown page with the two markers")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of records")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when stale")
    given = parser.parse_args(arguments)
    try:
        if not given.page.is_file():
            raise InputError(f"there is no page {given.page}; name a Markdown file")
        records = load_records(given.results)
        if given.check:
            if is_stale(given.page, records):
                print(
                    f"error: the results table of {given.page} is stale; "
                    f"run: python -m resbackbones.report {given.page}",
                    file=sys.stderr,
                )
                return 1
            print(f"{given.page} agrees with {len(records)} records")
        else:
            done = "table rewritten" if refresh(given.page, records) else "nothing to change"
            print(f"{given.page}: {len(records)} records, {done}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
