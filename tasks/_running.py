"""How any program here ends, and where it puts what it makes."""

import contextlib
import ctypes
import datetime
import os
import shlex
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import datasets
from transformers.utils import logging

from resbackbones import report
from resbackbones.errors import InputError
from resbackbones.train import Diverged
from resbackbones.train.checkpoint import SIGNALS
from tasks import _arguments

RUNS = Path("runs")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


if sys.platform != "win32":
    import resource

C = TypeVar("C")


class Stopped(KeyboardInterrupt):
    """A signal asked for the end.

    Attributes:
        number: of the signal.
        folder: where there is something to go on with.
        further: the arguments that the command needs to do so, beside those it had.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.folder: Path | None = None
        self.further: list[str] = []


def run(
    main: Callable[[C], None],
    config: type[C],
    arguments: Sequence[str] | None = None,
    groups: Mapping[type, str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Read the command line into `config` and call `main`. Bad input is one line on standard error
    and exit code 2, a failure one and 1, a signal one and 128 more than its number: no
    traceback."""
    with ended_in_one_sentence():
        given = _arguments.parse(config, arguments, groups, settings)
        quieten()
        keep_freed_memory()
        main(given)


@contextlib.contextmanager
def ended_in_one_sentence() -> Iterator[None]:
    """Whatever ends the work inside is told in one sentence, by the first process."""

    def say(text: str) -> None:
        if is_first():
            print(text, file=sys.stderr, flush=True)

    try:
        with stoppable():
            yield
    except InputError as error:
        say(f"error: {error}")
        raise SystemExit(2) from None
    except Diverged as error:
        say(f"failed: {error}")
        raise SystemExit(1) from None
    except Stopped as stopped:
        if stopped.folder is None:
            say(f"stopped by {stopped}: there is nothing yet to go on with")
        else:
            alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
            again = f"\n{report.command()} " if alone else "the same command and "
            say(
                f"stopped by {stopped}: checkpoints and finished seeds are kept in "
                f"{stopped.folder}; go on with {again}{shlex.join(stopped.further)}"
            )
        raise SystemExit(128 + stopped.number) from None


def is_first() -> bool:
    """Whether this is the process that speaks, of those of `torchrun`."""
    return int(os.environ.get("RANK", 0)) == 0


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the signals that end a process raise `Stopped`."""
    own = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a process that fetches batches: the first one does the telling
            os._exit(128 + number)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quieten() -> None:
    """No bars of libraries over a small file; warnings as sentences, without library code, of the
    first process alone."""
    logging.disable_progress_bar()
    if not (sys.stderr.isatty() and is_first()):
        datasets.disable_progress_bars()
    if not is_first():
        warnings.simplefilter("ignore")
    warnings.formatwarning = lambda message, *_: f"warning: {wrapped(str(message))}\n"


def keep_freed_memory() -> None:
    """Have glibc keep the memory of tensors that are gone for those of the next update, which are
    of the same sizes, instead of giving it back and asking for it anew, which takes a share of
    the time of trainings on processors."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for name in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(name, 2**31 - 1)


def peak_memory() -> float | None:
    """The most memory that this process has held so far, in MB; None where nobody counts it."""
    if sys.platform == "win32":
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def wrapped(text: str) -> str:
    """Lines of up to 100 characters; no path or word is cut.

    >>> wrapped("one " * 24 + "runs/a-long-name.png").splitlines()[1]
    'runs/a-long-name.png'
    """
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


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
    try:
        if output is None:
            output = _new_folder(RUNS / name)
        output.mkdir(parents=True, exist_ok=True)
        with (output / ".writable").open("w"):
            pass
        (output / ".writable").unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to {output} ({error.strerror}); give another folder with --output"
        ) from error
    return output


def _new_folder(place: Path) -> Path:
    """A folder there of this time, also of several programs started in the same second."""
    started = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    folder, number = place / started, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = place / f"{started}-{number}"
