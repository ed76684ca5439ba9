"""`read`: every item of a source decoded in threads, the bad ones named."""

import math
import os
import sys
import time
from collections.abc import Callable
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
    decode: Callable[[Any], Any],
    on_bad: str = "error",
    workers: int | None = None,
) -> Read:
    """Decode every row's input, in threads; what takes a while is told: on a terminal by a bar,
    elsewhere in a line, and by the first process of several alone.

    Args:
        decode: from `{"bytes", "path"}` (bytes None: they are in the file) or a string to an item.
            What it raises makes the item a bad one, unless it is a MemoryError.
        on_bad: "error" stops at the first bad item, "skip" lists it and goes on.
        workers: threads; by default as many as torch uses.

    Raises:
        InputError: a bad item, its file or row named; or nothing but bad items.
    """
    check_on_bad(on_bad)
    table = source.dataset.select_columns([source.columns["input"]]).with_format("arrow")
    step = 32  # rows a task: enough to make its cost vanish, few enough to show progress

    def work(start: int) -> list[tuple[Any, Exception | None]]:
        done: list[tuple[Any, Exception | None]] = []
        for value in table[start : start + step].column(0).to_pylist():
            try:
                if value is None or value == {"bytes": None, "path": None}:
                    raise ValueError("it is empty")
                done.append((decode(value), None))
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


def check_on_bad(on_bad: str) -> None:
    """Refuse what is neither "error" nor "skip"."""
    if on_bad not in ("error", "skip"):
        raise InputError(f"on_bad={on_bad!r} is not known; {nearest(on_bad, ('error', 'skip'))}")
