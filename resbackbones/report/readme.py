"""The README's tables, made from the records.

python -m resbackbones.report README.md            # rewrite them
python -m resbackbones.report README.md --check    # exit 1 when they are stale
"""

import argparse
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resbackbones.errors import InputError
from resbackbones.report.records import Record, load_records
from resbackbones.report.tables import format_count, format_metric, markdown_table

TWIN = "-plain"  # ends the arm of a net trained without its skips
CHANGE = ", "  # stands in an arm before what was changed of the one that it begins with
BENCHMARK_ARM = re.compile(r"(plain|residual)-(\d+)")


def results_table(records: Sequence[Record]) -> str:
    """One row per task, data set and net: the net, its plain twin, the baseline, the published."""
    arms = {
        (r.task, r.dataset, r.arm): r
        for r in records
        if CHANGE not in r.arm and not BENCHMARK_ARM.fullmatch(r.arm)  # in tables of their own
    }
    rows = []
    for (task, dataset, arm), record in sorted(arms.items(), key=lambda item: _natural(item[0])):
        twin = arms.get((task, dataset, arm + TWIN))
        if arm.endswith(TWIN) and (task, dataset, arm.removesuffix(TWIN)) in arms:
            continue  # stands beside its residual twin
        metric = record.metric.replace("_", " ") + ("" if record.higher_is_better else " (lower)")
        rows.append(
            [
                task,
                f"{dataset}, {record.split}",
                arm,
                metric,
                _measured(record),
                _measured(twin) if twin else "-",
                _named(record.metric, record.baseline) if record.baseline else "none",
                _published(record),
                format_count(record.parameters),
                format_count(record.macs),
                f"{statistics.fmean(record.seconds):.0f} s",
                _machine(record),
            ]
        )
    header = ["task", "data, split", "net", "metric", "mean ± sd (seeds)", "plain twin", "baseline"]
    header += ["best published", "parameters", "MACs", "per seed", "on"]
    return _table(header, rows, left=4)


def benchmark_table(records: Sequence[Record]) -> str:
    """One row per data set and depth of the benchmark, plain and residual side by side."""
    nets: dict[tuple[str, str], dict[int, dict[str, Record]]] = {}
    for record in records:
        if match := BENCHMARK_ARM.fullmatch(record.arm):
            of_data = nets.setdefault((record.dataset, record.split), {})
            of_data.setdefault(int(match[2]), {})[match[1]] = record
    rows = []
    for (dataset, split), depths in sorted(nets.items()):
        for depth, arms in sorted(depths.items()):
            plain, residual = arms.get("plain"), arms.get("residual")
            one: Any = residual or plain
            first = depth == min(depths)
            gain = "-"
            if plain and residual:
                gain = f"{100 * (residual.mean - plain.mean):+.1f}"
            baseline = _named(one.metric, one.baseline) if one.baseline else "none"
            rows.append(
                [
                    f"{dataset}, {split}" if first else "",
                    baseline if first else "",
                    str(depth),
                    _measured(plain) if plain else "-",
                    _measured(residual) if residual else "-",
                    gain,
                    format_count(one.parameters),
                    format_count(one.macs),
                    f"{statistics.fmean(one.seconds):.0f} s",
                    _machine(one),
                ]
            )
    header = ["data, split", "baseline", "depth", "plain (seeds)", "residual (seeds)", "gain"]
    return _table([*header, "parameters", "MACs", "per seed", "on"], rows, left=2)


def ablations_table(records: Sequence[Record]) -> str:
    """One row per change of a training, below the training as it is, with its gain over that."""
    arms = {(r.task, r.dataset, *_changed(r)): r for r in records}
    compared = {key[:3] for key in arms if key[3]}
    rows = []
    for (task, dataset, arm, change), record in sorted(arms.items()):
        if (task, dataset, arm) not in compared:
            continue
        usual = arms.get((task, dataset, arm, ""))
        better = 100 if record.higher_is_better else -100
        gain = f"{better * (record.mean - usual.mean):+.1f}" if usual and change else "-"
        rows.append(
            [
                task,
                f"{dataset}, {record.split}",
                arm,
                change or "as it is",
                _measured(record),
                gain,
                f"{statistics.fmean(record.seconds):.0f} s",
                _machine(record),
            ]
        )
    header = ["task", "data, split", "net", "change", "mean ± sd (seeds)", "gain"]
    return _table([*header, "per seed", "on"], rows, left=4)


def _changed(record: Record) -> tuple[str, str]:
    """An arm, and what was changed of its training."""
    arm, _, change = record.arm.partition(CHANGE)
    return arm, change


TABLES = {  # by the name of their markers
    "results": results_table,
    "benchmark": benchmark_table,
    "ablations": ablations_table,
}


def markers(name: str) -> tuple[str, str]:
    """What stands before and after a table in a page.

    >>> markers("results")
    ('<!-- results:begin -->', '<!-- results:end -->')
    """
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def refresh(page: str | Path, records: Sequence[Record]) -> bool:
    """Rewrite the tables between the markers of a page; True when that changed it."""
    page = Path(page)
    text = page.read_text(encoding="utf-8")
    new = _with_tables(page, text, records)
    if new == text:
        return False
    page.write_text(new, encoding="utf-8")
    return True


def is_stale(page: str | Path, records: Sequence[Record]) -> bool:
    """Whether the tables of a page differ from what the records say."""
    text = Path(page).read_text(encoding="utf-8")
    return _with_tables(Path(page), text, records) != text


def _with_tables(page: Path, text: str, records: Sequence[Record]) -> str:
    for name, table in TABLES.items():
        begin, end = markers(name)
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise InputError(
                f"{page} must hold {begin} and then {end}, once each; put them where the table "
                "belongs"
            )
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table(records)}\n{end}{rest.split(end)[1]}"
    return text


def _table(header: list[str], rows: list[list[str]], left: int) -> str:
    """A table; its last column, the machine, becomes one line where it is the same in every row."""
    if not rows:
        return "No results are recorded yet."
    machines = {row[-1] for row in rows}
    if len(machines) > 1:
        return markdown_table(header, rows, left)
    table = markdown_table(header[:-1], [row[:-1] for row in rows], left)
    return f"{table}\n\nAll measured on {machines.pop()}."


def _measured(record: Record) -> str:
    return f"{format_metric(record.metric, record.mean, record.sd)} ({len(record.values)})"


def _named(metric: str, figure: Mapping[str, Any]) -> str:
    return f"{figure['name']}: {format_metric(metric, figure['value'])}"


def _published(record: Record) -> str:
    figure = record.published
    if figure is None:
        return "-"
    text = f"{_named(record.metric, figure)} ({figure['source']})"
    return f"none on this split; on {figure['on']}, {text}" if figure.get("on") else text


def _machine(record: Record) -> str:
    cores = f"{record.hardware.get('cores')} x {record.hardware.get('cpu')}"
    return record.hardware.get("gpu") or cores


def _natural(names: Sequence[str]) -> list[Any]:
    """Sort key that puts `plain-8` before `plain-56`."""
    return [
        [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
        for name in names
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m resbackbones.report README.md [--check] [--results results]`."""
    parser = argparse.ArgumentParser(
        prog="python -m resbackbones.report",
        description="Rewrite a page's results tables from the records.",
    )
    parser.add_argument("page", type=Path, help="a Markdown page with the tables' markers")
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
                    f"error: the results tables of {given.page} are stale; "
                    f"run: python -m resbackbones.report {given.page}",
                    file=sys.stderr,
                )
                return 1
            print(f"{given.page} agrees with {len(records)} records")
        else:
            done = "tables rewritten" if refresh(given.page, records) else "nothing to change"
            print(f"{given.page}: {len(records)} records, {done}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
