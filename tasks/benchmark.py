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
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from resbackbones import report
from resbackbones.errors import InputError
from resbackbones.train.checkpoint import locked
from resbackbones.train.distributed import World
from tasks._benchmark import arms, told
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
    # The workers' bars would run through the lines told here.
    os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    depths = config.depths or (8, 32 if config.quick else 56)
    jobs = plan(config.domains, depths, config.seeds or (2 if config.quick else 3))
    output = run_folder("benchmark", config.output, config.resume)
    further = ["--output", str(output), "--resume"]
    with locked(output):
        store = Store(output, config, resume=config.resume)
        for line in store.said:
            print(line)
        try:
            train(config, jobs, store)
        except Stopped as signal:
            signal.folder, signal.further = output, further
            raise
        finally:  # what is done is kept, and told
            missing = unfinished(store, jobs)
            finish(config, store, missing)
    if missing:
        again = f"python -m tasks.benchmark {shlex.join(further)} (and the same options)"
        print(f"error: {missing}; try them again with {again}", file=sys.stderr)
        raise SystemExit(1)


def check(config: Config) -> None:
    """Everything that can be refused before any work starts."""
    for name in ("domains", "depths"):
        if getattr(config, name) == ():
            raise InputError(f"--{name} is empty; name at least one")
    for depth in config.depths or ():
        if depth < 8 or depth % 6 != 2 or depth > DEEPEST:
            raise InputError(
                f"--depths has {depth}; these nets have 6 n + 2 layers: 8, 14, 20, … {DEEPEST}"
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


def train(config: Config, jobs: list[arms.Job], store: Store) -> None:
    """Run the jobs that are left, with a line for each; what has a result is in the store at once.
    A domain's nets wait for its baseline: it shows that the data open."""
    done = store.done & set(jobs)
    waiting = [job for job in jobs if job not in done]

    def take() -> arms.Job | None:
        opened = {job.domain for job in done if job.arm == "baseline"}
        ready = (job for job in waiting if job.arm == "baseline" or job.domain in opened)
        job = next(ready, None)
        if job is not None:
            waiting.remove(job)
        return job

    def work(some: Iterable[arms.Job]) -> int:  # layers, so that the time left is honest
        return sum(job.depth or 8 for job in some)

    size = config.workers or min(report.available_cores(), 8)
    imports = [module for module, _ in arms.RECIPES.values()]
    form = "{percentage:3.0f} %|{bar}| {elapsed}, {remaining} left"
    with tqdm(total=work(jobs), bar_format=form, leave=False, disable=None) as bar:
        bar.initial = bar.n = work(done)
        for job, result in spread(arms.run, config, take, size, InputError, imports):
            bar.update(work([job]))
            if isinstance(result, Failure):
                left_out = "; its nets are left out" if job.arm == "baseline" else ""
                bar.write(f"failed: {job}: {result}{left_out}", file=sys.stderr)
                continue
            store.add(result)
            done.add(job)
            value = report.format_metric(result["metric"], result["value"])
            loss = "" if result["train_loss"] is None else f"loss {result['train_loss']:.3f}, "
            count = f"[{len(done)}/{len(jobs)}]"
            bar.write(f"{count} {job}: {value}, {loss}{result['seconds']:.1f} s")


def unfinished(store: Store, jobs: list[arms.Job]) -> str:
    """What is still to be done, in words; "" where nothing is."""
    missing = [job for job in jobs if job not in store.done]
    names = ", ".join(str(job) for job in missing[:3]) + (", …" if len(missing) > 3 else "")
    return f"{len(missing)} of {len(jobs)} arms are missing ({names})" if missing else ""


def finish(config: Config, store: Store, missing: str) -> None:
    """Write the reports, print the table and the sentences."""
    records = [r for domain in config.domains for r in store.records if r["domain"] == domain]
    if records:
        page = told.page(records, config, missing)
        store.folder.joinpath("report.md").write_text(page.markdown(), encoding="utf-8")
        store.folder.joinpath("report.html").write_text(page.html(), encoding="utf-8")
        for plot in page.plots[:1]:
            report.save_figure(report.draw(plot.panels), store.folder / "accuracy.png")
        print(f"\n{page.text()}\n\n{store.folder}/report.html, report.md, records.jsonl")
    if config.record and not missing:
        for path in map(report.save_record, told.result_records(records)):
            print(f"recorded {path}")


if __name__ == "__main__":
    run(main, Config)
