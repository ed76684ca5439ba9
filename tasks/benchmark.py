"""What does a skip connection do for a vision net, a speech net and a text net, on this machine?

    python -m tasks.benchmark                     # 3 seeds, depths 8 and 56: three minutes
    python -m tasks.benchmark --quick             # 2 seeds, depths 8 and 32, less data: one minute
    python -m tasks.benchmark --vision ../shared/data/cifar10_jpeg --train-limit 10000

Trains plain and residual nets of exactly the same parameters beside a scikit-learn baseline, one
process per core, and ends with a table and one sentence per domain, decided by this rule:

{rule}

Without --vision, --speech or --text the data need no network: scikit-learn digits, synthesised
speech and the docstrings of installed libraries.
"""

import os
import shlex
import statistics
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resbackbones import report
from resbackbones.errors import InputError
from resbackbones.train.checkpoint import locked
from resbackbones.train.distributed import World
from tasks._benchmark import arms, data, told
from tasks._benchmark.pool import Failure, spread
from tasks._benchmark.store import Store
from tasks._running import Stopped, run, run_folder

__doc__ = __doc__.format(rule=textwrap.fill(told.RULE, 98))  # one wording, here and in the report

DEEPEST = 1202  # of He et al.'s three-stage nets, the deepest anybody trained


@dataclass(frozen=True)
class Config(arms.Settings):
    depths: tuple[int, ...] | None = None
    """Weighted layers of the nets, 6 n + 2: 8, 14, 20, 26, 32, … (8 56; with --quick 8 32)."""
    seeds: int | None = None
    """How many seeds of each arm (3; with --quick 2)."""
    workers: int | None = None
    """Processes (one per core, at most 8: each takes about a gigabyte)."""
    output: Path | None = None
    """Folder for records.jsonl, report.md, report.html and accuracy.png (runs/benchmark/<time>)."""
    resume: bool = False
    """Go on with --output, or with the newest run: finished arms are not trained again."""
    record: bool = False
    """Also write a result record for each arm to results/benchmark/."""


def main(config: Config) -> None:
    """Run every arm that is not recorded yet, then say what the figures say."""
    check(config)
    cuda = World.join(config.device).device.type == "cuda"
    config = replace(config, device="cuda" if cuda else "cpu")
    # The workers' bars would run through the table.
    os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    depths = config.depths or (8, 32 if config.quick else 56)
    jobs = plan(config.domains, depths, config.seeds or (2 if config.quick else 3))
    output = run_folder("benchmark", config.output, config.resume)
    further = ["--output", str(output), "--resume"]
    with locked(output):
        store = Store(output, config, resume=config.resume)
        for line in store.said:
            print(line)
        queue = Queue([job for job in jobs if job not in store.done], store.done)
        began, stopped = time.monotonic(), None
        try:
            train(config, queue, Display(jobs, store.records), store)
        except Stopped as signal:  # what is done is kept, and told
            stopped, stopped.folder, stopped.further = signal, output, further
        finish(config, store, jobs)
    print(f"{time.monotonic() - began:.0f} s; {output}/report.html, report.md, records.jsonl")
    if stopped is not None:
        raise stopped
    if queue.failures:
        again = f"python -m tasks.benchmark {shlex.join(further)} (and the same options)"
        print(f"error: {unfinished(store, jobs)}; try them again with {again}", file=sys.stderr)
        raise SystemExit(1)


def check(config: Config) -> None:
    """Everything that can be refused before any work starts."""
    for name in ("domains", "depths"):
        if getattr(config, name) == ():
            raise InputError(f"--{name} is empty; name at least one")
    for depth in config.depths or ():
        if depth < 8 or depth % 6 != 2 or depth > DEEPEST:
            near = min(max(8, 6 * round((depth - 2) / 6) + 2), DEEPEST)
            raise InputError(
                f"--depths has {depth}; these nets have 6 n + 2 layers, from 8 to {DEEPEST}: "
                f"use {near}, say"
            )
    for name in ("seeds", "epochs", "train_limit", "workers"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; use 1 or more")
    for domain in ("vision", "speech", "text"):
        if getattr(config, domain) is not None and domain not in config.domains:
            raise InputError(f"--{domain} names data, but --domains leaves {domain} out; add it")
    if config.quick and config.record:
        raise InputError("--record is for claims, and --quick for a look; leave one of them out")


def train(config: Config, queue: "Queue", display: "Display", store: Store) -> None:
    """Run the jobs that are left; each is in the store as soon as it ends."""
    size = config.workers or min(report.available_cores(), 8)
    imports = [module for module, _ in arms.RECIPES.values()]
    tick = lambda: display.show(queue.running)  # noqa: E731
    with display:
        for job, result in spread(arms.run, config, queue.take, size, InputError, imports, tick):
            for failed, why in queue.ended(job, result):
                display.failed(failed, why)
            if not isinstance(result, Failure):
                store.add(result)
                display.finished(result)


def plan(domains: tuple[arms.Domain, ...], depths: tuple[int, ...], seeds: int) -> list[arms.Job]:
    """Baselines first (they prove that the data can be read), then seed by seed, longest first:
    an early end has whole seeds, and a late one few idle cores."""
    domains = tuple(d for d in ("text", "speech", "vision") if d in domains)
    return [arms.Job(domain, "baseline") for domain in domains] + [
        arms.Job(domain, arm, depth, seed)
        for seed in range(seeds)
        for depth in sorted(set(depths), reverse=True)
        for domain in domains
        for arm in ("plain", "residual")
    ]


class Queue:
    """Jobs in order; a domain's nets wait until its baseline has opened the data."""

    def __init__(self, jobs: list[arms.Job], done: set[arms.Job]) -> None:
        self.waiting = list(jobs)
        self.open = {job.domain for job in done if job.arm == "baseline"}
        self.running: dict[arms.Job, float] = {}
        self.failures: dict[arms.Job, str] = {}

    def take(self) -> arms.Job | None:
        for job in self.waiting:
            if job.arm == "baseline" or job.domain in self.open:
                self.waiting.remove(job)
                self.running[job] = time.monotonic()
                return job
        return None

    def ended(self, job: arms.Job, result: Any) -> list[tuple[arms.Job, str]]:
        """Book a job; what failed by it, with the reason."""
        del self.running[job]
        if not isinstance(result, Failure):
            if job.arm == "baseline":
                self.open.add(job.domain)
            return []
        failed = {job: result.why + ("\n" + result.traceback if result.traceback else "")}
        if job.arm == "baseline":  # its data cannot be trusted to open for the nets either
            rest = [other for other in self.waiting if other.domain == job.domain]
            self.waiting = [other for other in self.waiting if other.domain != job.domain]
            failed |= dict.fromkeys(rest, f"left out, because {job} failed")
        self.failures |= failed
        return list(failed.items())


class Display:
    """The table of the report, redrawn as it grows in a terminal; elsewhere a line per arm."""

    def __init__(self, jobs: list[arms.Job], records: list[dict[str, Any]]) -> None:
        from rich.console import Console
        from rich.live import Live

        self.jobs, self.records = jobs, list(records)
        self.began = time.monotonic()
        console = Console(highlight=False)
        self.drawn = console.is_terminal
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Display":
        if self.drawn:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def show(self, running: dict[arms.Job, float]) -> None:
        from rich.table import Table

        if not self.drawn:
            return
        now = time.monotonic()
        title = f"{len(self.records)} of {len(self.jobs)} arms, {now - self.began:.0f} s"
        table = Table(title=title + self._left(len(running)), title_justify="left", box=None)
        for index, name in enumerate(told.HEADER):
            table.add_column(name, justify="left" if index < 2 else "right")
        for row in told.table_rows(self.records):
            table.add_row(*row)
        for job, since in running.items():
            table.add_row(f"now: {job}, {now - since:.0f} s", style="bright_black")
        self.live.update(table, refresh=True)

    def finished(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if not self.drawn:
            value = report.format_metric(record["metric"], record["value"])
            loss = "" if record["train_loss"] is None else f"loss {record['train_loss']:.3f}, "
            count = f"[{len(self.records)}/{len(self.jobs)}]"
            print(
                f"{count} {arms.Job.of(record)}: {value}, {loss}{record['seconds']:.1f} s",
                flush=True,
            )

    def failed(self, job: arms.Job, why: str) -> None:
        self.live.stop()  # a message must not be drawn over
        print(f"failed: {job}: {why}", file=sys.stderr, flush=True)
        if self.drawn:
            self.live.start()

    def _left(self, running: int) -> str:
        """Time left, once every kind of arm that is left has been seen once."""
        seen: dict[tuple[str, int | None], list[float]] = {}
        for record in self.records:
            seen.setdefault((record["domain"], record["depth"]), []).append(record["seconds"])
        done = set(map(arms.Job.of, self.records))
        left = [job for job in self.jobs if job not in done]
        if any((job.domain, job.depth) not in seen for job in left):
            return ""
        work = sum(statistics.fmean(seen[job.domain, job.depth]) for job in left)
        return f", about {work / max(running, 1):.0f} s left"


def unfinished(store: Store, jobs: list[arms.Job]) -> str:
    """What is still to be done, in words; "" where nothing is."""
    missing = [job for job in jobs if job not in store.done]
    names = ", ".join(str(job) for job in missing[:3]) + (", …" if len(missing) > 3 else "")
    return f"{len(missing)} of {len(jobs)} arms are missing ({names})" if missing else ""


def finish(config: Config, store: Store, jobs: list[arms.Job]) -> None:
    """Write the reports, print the table and the sentences."""
    folder = store.path.parent
    chosen = [record for record in store.records if record["domain"] in config.domains]
    records = sorted(chosen, key=lambda record: config.domains.index(record["domain"]))
    if records:
        defaults = [d for d in config.domains if getattr(config, d) is None]
        packages = dict.fromkeys(
            [*report.PACKAGES, *(name for domain in defaults for name in data.PACKAGES[domain])]
        )
        about = {
            "hardware": report.hardware(),
            "versions": report.versions(packages),
            "commit": report.commit(),
            "command": report.command(),
            "device": config.device,
            "quick": config.quick,
            "missing": unfinished(store, jobs),
        }
        page = told.page(records, about)
        (folder / "report.md").write_text(page.markdown(), encoding="utf-8")
        (folder / "report.html").write_text(page.html(), encoding="utf-8")
        for plot in page.plots[:1]:
            report.save_figure(report.draw(plot.panels), folder / "accuracy.png")
        print(f"\n{page.text()}\n")
    if config.record and not unfinished(store, jobs):
        for path in save_records(records):
            print(f"recorded {path}")


def save_records(records: list[dict[str, Any]]) -> list[Path]:
    """A result record for every net, under results/benchmark."""
    paths = []
    for (_, arm, depth), group in told.groups(records).items():
        first = group[0]
        if arm == "baseline":  # stands before its nets
            simple = first
            continue
        made = report.result_record(
            task="benchmark",
            dataset=first["dataset"],
            protocol=first["about_data"],
            split=first["split"],
            arm=f"{arm}-{depth}",
            metric=first["metric"],
            seeds=[record["seed"] for record in group],
            values=[record["value"] for record in group],
            seconds=[record["seconds"] for record in group],
            parameters=first["parameters"],
            macs=first["macs"],
            baseline=(simple["name"], simple["value"]),
            held_out=simple["held_out"],
        )
        paths.append(report.save_record(made))
    return paths


if __name__ == "__main__":
    run(main, Config)
