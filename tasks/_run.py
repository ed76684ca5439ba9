"""What every recipe does around its training: command line, run folder, final table, record."""

import datetime
import inspect
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import torch
import tyro

from resbackbones.errors import InputError

if TYPE_CHECKING:
    from resbackbones.data import Splits
    from resbackbones.pretrained import ResidualPreTrainedModel

C = TypeVar("C")
RUNS = Path("runs")
Device: TypeAlias = Literal["auto", "cpu", "cuda"]


def run(main: Callable[[C], None], config: type[C], arguments: Sequence[str] | None = None) -> None:
    """Read the command line into `config` and call `main`.

    Bad input is one line on standard error and exit code 2, without a traceback.
    """
    import datasets
    from transformers.utils import logging

    module = inspect.getmodule(main)
    name = module.__spec__.name if module is not None and module.__spec__ else None
    given = tyro.cli(
        config,
        prog=name and f"python -m {name}",
        description=inspect.getdoc(module) or "",
        args=arguments,
    )
    logging.disable_progress_bar()  # of saving and loading a small file
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()  # in a log they are noise
    # "category: message" says all a reader of a recipe needs, without a line of library code.
    warnings.formatwarning = lambda message, *_: f"warning: {textwrap.fill(str(message), 100)}\n"
    try:
        main(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept; add --resume to go on", file=sys.stderr)
        raise SystemExit(130) from None


def resolve_device(name: Device) -> Literal["cpu", "cuda"]:
    """The one device, "cpu" or "cuda", where a run holds its data and trains its nets; "auto" is
    the GPU if there is one.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError("--device cuda needs a GPU and there is none; use --device auto or cpu")
    return "cuda" if there and name != "cpu" else "cpu"


def run_folder(name: str, output: Path | None, resume: bool) -> Path:
    """The folder of this run: the one named, the newest (to resume) or `runs/<name>/<time>`.

    Raises:
        InputError: nothing to resume, or a folder that cannot be written.
    """
    if output is None and resume:
        runs = sorted(path for path in (RUNS / name).glob("*") if path.is_dir())
        if not runs:
            raise InputError(f"there is no run in {RUNS / name} to go on with; leave --resume out")
        output = runs[-1]
    if output is None:
        output = RUNS / name / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with (output / ".writable").open("w"):
            pass
        (output / ".writable").unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to {output} ({error.strerror}); give another folder with --output"
        ) from error
    return output


@dataclass(frozen=True)
class Run:
    """One seed: its test metrics and its training time in seconds."""

    seed: int
    metrics: dict[str, float]
    seconds: float


def conclude(
    *,
    task: str,
    dataset: str,
    splits: "Splits",
    arm: str,
    model: "ResidualPreTrainedModel",
    example: Mapping[str, torch.Tensor],
    runs: Sequence[Run],
    baseline: tuple[str, dict[str, float]],
    folder: Path,
    use: str,
    record: bool,
    all_rows: bool = False,
    skipped: Sequence[str] = (),
) -> None:
    """Print the final table with the baseline beside the net, record it, and say what comes next.

    Args:
        task, dataset, arm: where the record stands.
        splits: what the nets were trained and measured on.
        model: any of the trained ones, for its size.
        example: inputs of one item, for the multiply-adds.
        runs: one a seed.
        baseline: its name and its metrics on the same split.
        folder: where the models are.
        use: Python that loads the first model and calls it.
        record: whether to write the record into `results/`.
        all_rows: whether the nets and the baseline were trained on the validation rows too.
        skipped: the damaged items left out, "name: reason".
    """
    from resbackbones import report
    from resbackbones.core.backbone import count_macs, count_parameters

    names = [name for name in runs[0].metrics if name in baseline[1]]
    example = {name: x.to(model.device) for name, x in example.items()}
    parameters, macs = count_parameters(model), count_macs(model, example)
    rows = [
        [f"{arm}, seed {run.seed}", *(report.format_metric(n, run.metrics[n]) for n in names)]
        for run in runs
    ]
    if len(runs) > 1:
        values = {name: [run.metrics[name] for run in runs] for name in names}
        rows.append(
            [
                f"{arm}, mean ± sd",
                *(report.format_metric(n, *report.mean_sd(values[n])) for n in names),
            ]
        )
    rows.append([baseline[0], *(report.format_metric(n, baseline[1][n]) for n in names)])
    split = "validation" if splits.test is None else "test"
    protocol = f"{len(splits.train)} training and {len(splits.validation)} validation rows"
    if splits.held_out:
        protocol += ", the latter held out of train (10 %, stratified by label, seed 0)"
    if all_rows:
        protocol += "; trained on both"
    print(f"\n{dataset}, {split} split ({protocol})\n")
    print(report.markdown_table(["", *names], rows))
    size = f"{report.format_count(parameters)} parameters, {report.format_count(macs)} MACs an item"
    print(f"\n{size}; training {sum(r.seconds for r in runs) / len(runs):.0f} s a seed")
    if skipped:
        print(f"left out {len(skipped)} damaged items, the first: {skipped[0]}")
    if record:
        made = report.result_record(
            task=task,
            dataset=dataset,
            protocol=protocol,
            split=split,
            arm=arm,
            metric="accuracy",
            seeds=[run.seed for run in runs],
            values=[run.metrics["accuracy"] for run in runs],
            seconds=[run.seconds for run in runs],
            parameters=parameters,
            macs=macs,
            baseline=(baseline[0], baseline[1]["accuracy"]),
            held_out=splits.held_out,
            skipped=len(skipped),
        )
        print(f"recorded {report.save_record(made)}")
    print(f"\nThe models, their logs and curves are in {folder}. Use one:\n")
    print(textwrap.indent(use.strip(), "    "))
