"""Records: one JSON object a published number rests on, one file per arm.

A record lies in `results/<task>/<dataset>-<arm>.json` and finds out by itself what it can:
hardware, versions, commit, command.
"""

import dataclasses
import hashlib
import importlib.metadata
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resbackbones.errors import InputError

PACKAGES = (
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "datasets",
    "scikit-learn",
    "numpy",
)


@dataclass(frozen=True)
class Record:
    """One arm of one experiment: what was measured, on what, how often and by which command.

    Attributes:
        values, seconds: `values[i]` and `seconds[i]` (training time) belong to `seeds[i]`.
        sd: with ddof 1; None for a single seed.
        baseline: `{"name", "value"}` on the same split, or None.
        held_out: the rows of the train split that served as the validation split, where the data
            came with none, as `rows_digest` has them; else None.
        skipped: how many damaged items were left out.
        published: the best published figure, `{"name", "value", "source"}`; with "on" where it was
            measured on something else than this very split, which "on" names. None: not looked up.
        sample: what the first seed's model wrote, where it writes.
        figures: what else was measured, by name, a value per seed.
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
    held_out: dict[str, Any] | None = None
    skipped: int = 0
    published: dict[str, Any] | None = None
    sample: str = ""
    figures: dict[str, list[float]] | None = None


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
    held_out: Sequence[int] | Mapping[str, Any] | None = None,
    skipped: int = 0,
    published: Mapping[str, Any] | None = None,
    sample: str = "",
    figures: Mapping[str, Sequence[float]] | None = None,
) -> Record:
    """Fill in what a record can find out by itself: mean, sd, hardware, versions, commit, command.

    `baseline` is a name and a value, `held_out` row numbers or their digest.

    Raises:
        ValueError: seeds, values and seconds do not match, or a value is not finite: such a number
            must not be published.
    """
    if not len(seeds) == len(values) == len(seconds) or not values:
        raise ValueError(
            f"a record needs one value and one time per seed; got {len(seeds)} seeds, "
            f"{len(values)} values and {len(seconds)} times"
        )
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{metric} must be finite to be recorded; got {numbers}")
    if baseline is not None and not isinstance(baseline, Mapping):
        baseline = {"name": baseline[0], "value": float(baseline[1])}
    if held_out is not None and not isinstance(held_out, Mapping):
        held_out = rows_digest(held_out)
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
        held_out=None if held_out is None else dict(held_out),
        skipped=skipped,
        published=None if published is None else dict(published),
        sample=sample,
        figures=None if figures is None else {name: [*each] for name, each in figures.items()},
    )


def rows_digest(rows: Iterable[int]) -> dict[str, Any] | None:
    """Which rows, short: how many, and the first 16 hex digits of the sha256 of their numbers in
    ascending order, joined by commas. None where there are none.

    >>> rows_digest([11, 5])
    {'rows': 2, 'sha256': 'f035e48558c5787a'}
    """
    numbers = sorted(map(int, rows))
    if not numbers:
        return None
    text = ",".join(map(str, numbers))
    return {"rows": len(numbers), "sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}


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
    """Write a record where the README's tables look: `folder/<task>/<dataset>-<arm>.json`.

    What others published on the data is no finding of a run: a record that says nothing of it keeps
    what the record in its place said.
    """
    name = f"{_file_name(record.dataset)}-{_file_name(record.arm)}.json"
    path = Path(folder) / _file_name(record.task) / name
    if record.published is None and path.is_file():
        record = dataclasses.replace(record, published=load_record(path).published)
    return write_record(record, path)


def load_record(path: str | Path) -> Record:
    """One record; fields that came later than it take their defaults.

    Raises:
        InputError: the file is no record; what is missing or unknown is named.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is not valid JSON ({error}); remove it or write it anew"
        ) from error
    fields = dataclasses.fields(Record)
    given = set(content) if isinstance(content, dict) else set()
    odd = sorted(given - {entry.name for entry in fields}) + [
        entry.name
        for entry in fields
        if entry.default is dataclasses.MISSING and entry.name not in given
    ]
    if odd:
        raise InputError(
            f"{path} is not a result record: {', '.join(odd)} missing or unknown; "
            "remove it or write it anew"
        )
    return Record(**content)


def load_records(folder: str | Path = "results") -> list[Record]:
    """Every record under a folder, in the order of their paths."""
    return [load_record(path) for path in sorted(Path(folder).glob("*/*.json"))]


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
    """The commit this package runs from, with "-dirty" after local changes of anything but records;
    None outside git."""
    here = Path(__file__).resolve()
    # Tracked here? A package installed inside some other checkout must not name *its* commit.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    name = _git(here.parent, "rev-parse", "--short=12", "HEAD")
    changes = ["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)results"]
    return f"{name}-dirty" if name and _git(here.parent, *changes) else name


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
