"""What does a skip connection do for a vision net, a speech net and a text net, on this machine?

    python -m tasks.benchmark                     # 3 seeds, depths 8 and 56: minutes on 2 cores
    python -m tasks.benchmark --quick             # 2 seeds, less data: under a minute
    python -m tasks.benchmark --vision ../shared/data/cifar10_jpeg --train-limit 10000

Trains plain and residual nets of exactly the same parameters beside a scikit-learn baseline, one
process a core, and ends with a table and one sentence a domain, decided by this rule:

{rule}

Without --vision, --speech or --text the data need no network: scikit-learn digits, synthesised
speech and the docstrings of installed libraries.
"""

import dataclasses
import json
import os
import signal
import statistics
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resbackbones import report
from resbackbones.errors import InputError
from tasks import _benchmark_arms as arms
from tasks import _benchmark_data as data
from tasks import _benchmark_report as told
from tasks._benchmark_pool import Failure, spread
from tasks._run import Device, resolve_device, run, run_folder

__doc__ = __doc__.format(rule=textwrap.fill(told.RULE, 98))  # one wording, here and in the report

Domain = Literal["vision", "speech", "text"]


@dataclass(frozen=True)
class Config:
    domains: tuple[Domain, ...] = ("vision", "speech", "text")
    """Which of the three to run."""
    depths: tuple[int, ...] = (8, 56)
    """Weighted layers of the nets: 6 n + 2, as 8, 14, 20, 26, 32, 44, 56."""
    seeds: int | None = None
    """How many seeds of each arm (3; with --quick 2)."""
    quick: bool = False
    """Under a minute: fewer seeds and less data. Good for a look, not for a claim."""
    vision: str | None = None
    """Your images: a hub id, a folder of class folders, a Parquet file or folder."""
    speech: str | None = None
    """Your recordings, likewise."""
    text: str | None = None
    """Your texts, likewise (or CSV, JSONL)."""
    epochs: int | None = None
    """Passes over the training rows (6; text 4)."""
    train_limit: int | None = None
    """Train on at most this many rows a domain, chosen at random (all; with --quick fewer)."""
    on_bad: Literal["error", "skip"] = "error"
    """A damaged item stops the run, or is left out and counted."""
    device: Device = "auto"
    """Where items are kept and augmented and the nets train; auto is the GPU, if there."""
    workers: int | None = None
    """Processes (one a core, at most 8: each takes about a gigabyte)."""
    output: Path | None = None
    """Folder for records.jsonl, report.md, report.html and accuracy.png (runs/benchmark/<time>)."""
    resume: bool = False
    """Go on with --output, or with the newest run: finished arms are not trained again."""
    record: bool = False
    """Also write a result record for each arm to results/benchmark/."""
    cache: Path = Path("runs/cache")
    """Where the default data are kept once they are made."""


def main(config: Config) -> None:
    """Run every arm that is not recorded yet, then say what the figures say."""
    check(config)
    device = resolve_device(config.device)
    # The workers' bars would run through the table.
    os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    settings = arms.Settings(
        data={domain: getattr(config, domain) for domain in config.domains},
        cache=config.cache,
        quick=config.quick,
        epochs=config.epochs,
        train_limit=config.train_limit,
        on_bad=config.on_bad,
        device=device,
    )
    seeds = config.seeds or (2 if config.quick else 3)
    jobs = plan(config.domains, config.depths, seeds)
    output = run_folder("benchmark", config.output, config.resume)
    store = Store(output, settings, resume=config.resume)
    if store.records:
        print(f"{len(store.records)} arms are recorded in {output}; going on with the rest")
    queue = Queue([job for job in jobs if job not in store.done], store.done)
    interrupted = False
    display = Display(jobs, store.records)
    began = time.monotonic()
    try:
        with display, _terminate_like_interrupt():
            size = config.workers or min(report.available_cores(), 8)
            for job, result in spread(
                arms.run,
                settings,
                queue.take,
                size,
                InputError,
                lambda: display.show(queue.running),
            ):
                for failed, why in queue.ended(job, result):
                    display.failed(failed, why)
                if not isinstance(result, Failure):
                    store.add(result)
                    display.finished(result)
    except KeyboardInterrupt:
        interrupted = True
    finish(config, device, store, jobs, queue.failures, interrupted, time.monotonic() - began)


def check(config: Config) -> None:
    """Everything that can be refused before any work starts."""
    for name in ("domains", "depths"):
        if not getattr(config, name):
            raise InputError(f"--{name} is empty; name at least one")
    for depth in config.depths:
        if depth < 8 or depth % 6 != 2:
            near = max(8, 6 * round((depth - 2) / 6) + 2)
            raise InputError(
                f"--depths has {depth}; these nets have 6 n + 2 layers: use {near}, say"
            )
    for name in ("seeds", "epochs", "train_limit", "workers"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; use 1 or more")
    for domain in ("vision", "speech", "text"):
        if getattr(config, domain) is not None and domain not in config.domains:
            raise InputError(f"--{domain} names data, but --domains leaves {domain} out; add it")


def plan(domains: tuple[Domain, ...], depths: tuple[int, ...], seeds: int) -> list[arms.Job]:
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


class Store:
    """`records.jsonl` and the configuration its arms share."""

    def __init__(self, folder: Path, settings: arms.Settings, *, resume: bool) -> None:
        self.path = folder / "records.jsonl"
        self.records: list[dict[str, Any]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if resume:
                self._go_on(folder / "configuration.json", settings)
            else:
                self.path.touch(exist_ok=False)
            self._configuration(folder / "configuration.json", settings)
        except FileExistsError as error:
            raise InputError(
                f"{folder} already holds a run or is no folder; add --resume to go on with a run, "
                "or give another --output"
            ) from error
        except OSError as error:
            raise InputError(
                f"cannot write to {folder} ({error.strerror}); give another folder with --output"
            ) from error

    def _go_on(self, configuration: Path, settings: arms.Settings) -> None:
        if not configuration.is_file() or not self.path.is_file():
            raise InputError(
                f"{configuration.parent} holds no run to go on with; leave --resume out"
            )
        before = json.loads(configuration.read_text(encoding="utf-8"))
        now = settings.identity()
        for name in now:
            given, known = now[name], before.get(name)
            if name == "data":  # domains may be added
                given = {domain: given[domain] for domain in given if domain in known}
                known = {domain: known[domain] for domain in given}
            if given != known:
                raise InputError(
                    f"{configuration.parent} was run with {name} = {known}, not {given}; give the "
                    "same settings to --resume, or another --output to start anew"
                )
        lines = self.path.read_text(encoding="utf-8").split("\n")
        # What follows the last line end was cut off while being written; that arm runs again.
        self.records = [json.loads(line) for line in lines[:-1]]
        whole = "".join(line + "\n" for line in lines[:-1])
        self.path.write_text(whole, encoding="utf-8")

    def _configuration(self, path: Path, settings: arms.Settings) -> None:
        now = settings.identity()
        if path.is_file():
            now["data"] = json.loads(path.read_text(encoding="utf-8"))["data"] | now["data"]
        path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")

    @property
    def done(self) -> set[arms.Job]:
        return {arms.Job(r["domain"], r["arm"], r["depth"], r["seed"]) for r in self.records}

    def add(self, record: dict[str, Any]) -> None:
        """Append one line and see it on the disk before anything else happens."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)


class Display:
    """A table that is redrawn in a terminal; one line an arm that ends anywhere else."""

    def __init__(self, jobs: list[arms.Job], records: list[dict[str, Any]]) -> None:
        from rich.console import Console
        from rich.live import Live

        self.jobs, self.records, self.failures = jobs, list(records), 0
        self.began = time.monotonic()
        self.running: dict[arms.Job, float] = {}
        self.console = Console(highlight=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def show(self, running: dict[arms.Job, float]) -> None:
        self.running = dict(running)
        if self.console.is_terminal:
            self.live.update(self._table(), refresh=True)

    def finished(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if not self.console.is_terminal:
            job = arms.Job(record["domain"], record["arm"], record["depth"], record["seed"])
            value = report.format_metric(record["metric"], record["value"])
            loss = "" if record["train_loss"] is None else f"loss {record['train_loss']:.3f}, "
            count = f"[{len(self.records)}/{len(self.jobs)}]"
            print(f"{count} {job}: {value}, {loss}{record['seconds']:.1f} s", flush=True)

    def failed(self, job: arms.Job, why: str) -> None:
        self.failures += 1
        self.live.stop()  # a message must not be drawn over
        print(f"failed: {job}: {why}", file=sys.stderr, flush=True)
        if self.console.is_terminal:
            self.live.start()

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(title=self._progress(), title_justify="left", box=None, padding=(0, 2))
        for name in ("domain", "arm", "depth", "seeds", "accuracy", "train loss", "now"):
            table.add_column(name, justify="left" if name in ("domain", "arm", "now") else "right")
        groups: dict[tuple[str, str, int | None], list[arms.Job]] = {}
        for job in self.jobs:
            groups.setdefault((job.domain, job.arm, job.depth), []).append(job)
        for (domain, arm, depth), jobs in sorted(
            groups.items(), key=lambda item: (item[0][0], item[0][2] or 0, item[0][1])
        ):
            done = [
                r
                for r in self.records
                if (r["domain"], r["arm"], r["depth"]) == (domain, arm, depth)
            ]
            accuracy = loss = ""
            if done:
                mean_sd = report.mean_sd([r["value"] for r in done])
                accuracy = report.format_metric(done[0]["metric"], *mean_sd)
                if arm != "baseline":
                    loss = f"{statistics.fmean(r['train_loss'] for r in done):.3f}"
            now = [
                f"seed {job.seed}, {time.monotonic() - since:.0f} s"
                if job.arm != "baseline"
                else f"data and baseline, {time.monotonic() - since:.0f} s"
                for job, since in self.running.items()
                if job in jobs
            ]
            colour = {"plain": "dark_orange3", "residual": "blue"}.get(arm, "bright_black")
            table.add_row(
                domain,
                f"[{colour}]{arm}[/]",
                str(depth or ""),
                f"{len(done)}/{len(jobs)}",
                accuracy,
                loss,
                " · ".join(now),
            )
        return table

    def _progress(self) -> str:
        spent = time.monotonic() - self.began
        text = f"{len(self.records)} of {len(self.jobs)} arms, {spent:.0f} s"
        return text + (f", {left}" if (left := self._left()) else "")

    def _left(self) -> str:
        """Time left, once every kind of arm that is left has been seen once."""
        seen: dict[tuple[str, int | None], list[float]] = {}
        for record in self.records:
            seen.setdefault((record["domain"], record["depth"]), []).append(record["seconds"])
        done = {(r["domain"], r["arm"], r["depth"], r["seed"]) for r in self.records}
        left = [job for job in self.jobs if dataclasses.astuple(job) not in done]
        if any((job.domain, job.depth) not in seen for job in left):
            return ""
        work = sum(statistics.fmean(seen[job.domain, job.depth]) for job in left)
        return f"about {work / max(len(self.running), 1):.0f} s left"


def finish(
    config: Config,
    device: Literal["cpu", "cuda"],
    store: Store,
    jobs: list[arms.Job],
    failures: dict[arms.Job, str],
    interrupted: bool,
    seconds: float,
) -> None:
    """Write the reports, print the table and the sentences, and say how it ended."""
    folder = store.path.parent
    missing = [job for job in jobs if job not in store.done]
    names = ", ".join(str(job) for job in missing[:3]) + (", …" if len(missing) > 3 else "")
    text = f"{len(missing)} of {len(jobs)} arms are missing ({names})" if missing else ""
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
            "device": device,
            "missing": text,
        }
        (folder / "report.md").write_text(told.markdown(records, about), encoding="utf-8")
        (folder / "report.html").write_text(told.page(records, about), encoding="utf-8")
        for _, _, figure in told.figures(records)[:1]:
            report.save_figure(figure, folder / "accuracy.png")
        print("\n" + report.markdown_table(told.HEADER, told.table_rows(records), left=2) + "\n")
        for domain in dict.fromkeys(record["domain"] for record in records):
            print(textwrap.fill(told.judge(records, domain).sentence, 100) + "\n")
    if config.record and not missing:
        for path in save_records(records):
            print(f"recorded {path}")
    print(f"{seconds:.0f} s; {folder / 'report.html'}, report.md and records.jsonl beside it")
    go_on = f"python -m tasks.benchmark --resume --output {folder} (and the same options)"
    if interrupted:
        print(f"interrupted: {text}; go on with {go_on}", file=sys.stderr)
        raise SystemExit(130)
    if failures:
        print(f"error: {text}; try them again with {go_on}", file=sys.stderr)
        raise SystemExit(1)


def save_records(records: list[dict[str, Any]]) -> list[Path]:
    """A result record for every net, under results/benchmark."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for record in records:
        if record["arm"] != "baseline":
            groups.setdefault((record["domain"], record["arm"], record["depth"]), []).append(record)
    paths = []
    for (domain, arm, depth), group in groups.items():
        first = group[0]
        simple = next(r for r in records if (r["domain"], r["arm"]) == (domain, "baseline"))
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


class _terminate_like_interrupt:
    """Inside, being told to end (SIGTERM) keeps what is done, as Ctrl-C does."""

    def __enter__(self) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        self.before = signal.signal(signal.SIGTERM, interrupt)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self.before)


if __name__ == "__main__":
    run(main, Config)
