"""`read`: every item of a source decoded in threads, the bad ones named; `Rereader`: some again."""

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from resbackbones.data.columns import Source
from resbackbones.data.paths import reason
from resbackbones.errors import InputError, nearest

A_WHILE = 2.0  # seconds


@dataclass(frozen=True)
class Read:
    """What `read` decoded: `items[i]` is row `rows[i]`; the rest is `skipped`, "name: reason"."""

    items: list[Any]
    rows: list[int]
    skipped: list[str]


def read(
    source: Source,
    decode: Callable[..., Any],
    on_bad: str = "error",
    workers: int | None = None,
    roles: Sequence[str] = ("input",),
    check: Callable[[int, Any], None] | None = None,
    optional: Sequence[str] = (),
) -> Read:
    """Decode every row's input, in threads; what takes a while is told: on a terminal by a bar,
    elsewhere in a line, and by the first process of several alone.

    Args:
        decode: from `{"bytes", "path"}` (bytes None: they are in the file) or a string to an item;
            takes a row's cells of the `roles`, one argument each. What it raises makes the item a
            bad one, unless it is a MemoryError.
        on_bad: "error" stops at the first bad item, "skip" lists it and goes on.
        workers: threads; by default as many as torch uses.
        roles: of the columns to decode.
        check: of a row and its item; a ValueError of it makes the item a bad one, too.
        optional: more roles, whose cells follow and may be missing.

    Raises:
        InputError: a bad item, its file or row named; or nothing but bad items.
    """
    check_on_bad(on_bad)
    columns = [source.columns[role] for role in (*roles, *optional)]
    table = source.dataset.select_columns([*dict.fromkeys(columns)]).with_format("arrow")
    step = 32  # rows a task: enough to make its cost vanish, few enough to show progress

    def work(start: int) -> list[tuple[Any, Exception | None]]:
        done: list[tuple[Any, Exception | None]] = []
        part = table[start : start + step]
        for cells in zip(*(part.column(name).to_pylist() for name in columns), strict=True):
            try:
                needed = cells[: len(roles)]
                if any(cell in (None, {"bytes": None, "path": None}) for cell in needed):
                    raise ValueError("it is empty")
                done.append((decode(*cells), None))
            except MemoryError:  # says something of the machine, not of the item
                raise
            except Exception as error:  # whatever a decoder makes of a broken file
                done.append((None, error))
        return done

    found = Read([], [], [])
    starts = range(0, len(source), step)
    title, first = f"reading {source.name}", os.environ.get("RANK", "0") == "0"
    due = time.monotonic() + A_WHILE if first and not sys.stderr.isatty() else math.inf
    pool = ThreadPoolExecutor(workers or torch.get_num_threads())
    try:
        with tqdm(
            total=len(source),
            desc=title,
            unit="item",
            delay=A_WHILE,
            disable=None if first else True,
        ) as bar:
            for start, done in zip(starts, pool.map(work, starts), strict=True):
                if time.monotonic() > due:
                    print(f"{title}: {len(source):,} items", file=sys.stderr, flush=True)
                    due = math.inf
                for row, (item, error) in enumerate(done, start):
                    if error is None and check is not None:
                        try:
                            check(row, item)
                        except ValueError as fault:
                            error = fault
                    if error is None:
                        found.items.append(item)
                        found.rows.append(row)
                    elif on_bad == "skip":
                        found.skipped.append(f"{source.row_name(row)}: {reason(error)}")
                    else:
                        raise InputError(
                            f"{source.row_name(row)} cannot be read ({reason(error)}); repair or "
                            "remove it, or leave bad items out (--on-bad skip)"
                        ) from error
                bar.update(len(done))
    finally:
        pool.shutdown(cancel_futures=True)
    if not found.items:
        raise InputError(
            f"not one of the {len(source)} items of {source.name} can be read "
            f"({found.skipped[0]}); check the files and the input column (--input-column)"
        )
    return found


class Rereader:
    """Rows of a source decoded anew, batch by batch, where memory does not hold what `read` gave.

    Args:
        source: the rows, all of which `read` could decode.
        decode: from the cells of a row's columns, one argument each, to an item.
        roles: of these columns.

    >>> from datasets import Dataset
    >>> from resbackbones.data import open_dataset
    >>> source = open_dataset(Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}))
    >>> Rereader(source, str.upper)([1, 0])
    ['B', 'A']
    """

    def __init__(
        self, source: Source, decode: Callable[..., Any], roles: Sequence[str] = ("input",)
    ) -> None:
        self.source, self.decode = source, decode
        self._columns = [source.columns[role] for role in roles]
        self._encoded = source.dataset.select_columns(self._columns).with_format("arrow")
        self._pool: tuple[int, ThreadPoolExecutor | None] = (0, None)

    def __call__(self, rows: Sequence[int]) -> list[Any]:
        """The items of some rows, in this order.

        Raises:
            InputError: a file that is not there any more, or is damaged by now.
        """
        table = self._encoded[list(rows)]
        cells = zip(*(table[name].to_pylist() for name in self._columns), strict=True)
        done = [self.threads().submit(self.decode, *values) for values in cells]
        for row, one in zip(rows, done, strict=True):
            if isinstance(error := one.exception(), OSError):
                raise InputError(
                    f"{self.source.row_name(row)} could be read before, but cannot be read now "
                    f"({error}); leave the files as they are during a run"
                ) from error
        return [one.result() for one in done]

    def threads(self) -> ThreadPoolExecutor:
        """Threads that decode, kept from batch to batch; a forked process begins its own."""
        process, pool = self._pool
        if pool is None or process != os.getpid():
            pool = ThreadPoolExecutor(torch.get_num_threads())
            self._pool = os.getpid(), pool
        return pool

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": (0, None)}


def check_on_bad(on_bad: str) -> None:
    """Refuse what is neither "error" nor "skip"."""
    if on_bad not in ("error", "skip"):
        raise InputError(f"on_bad={on_bad!r} is not known; {nearest(on_bad, ('error', 'skip'))}")
