"""`read`: every item of a source decoded in threads, the bad ones named."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from resbackbones.data.opening import Source
from resbackbones.errors import InputError, nearest


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
    """Decode every row's input, in threads; a progress bar shows when that takes a while.

    Args:
        decode: from `{"bytes", "path"}` (bytes None: they are in the file) or a string to an item.
            Whatever it raises makes the item a bad one.
        on_bad: "error" stops at the first bad item, "skip" lists it and goes on.
        workers: threads; by default as many as torch uses.

    Raises:
        InputError: a bad item, its file or row named; or nothing but bad items.
    """
    if on_bad not in ("error", "skip"):
        raise InputError(f"on_bad={on_bad!r} is not known; {nearest(on_bad, ('error', 'skip'))}")
    table = source.dataset.select_columns([source.columns["input"]]).with_format("arrow")
    step = 32  # rows a task: enough to make its cost vanish, few enough to show progress

    def work(start: int) -> list[tuple[Any, Exception | None]]:
        done: list[tuple[Any, Exception | None]] = []
        for value in table[start : start + step].column(0).to_pylist():
            try:
                if value is None or value == {"bytes": None, "path": None}:
                    raise ValueError("it is empty")
                done.append((decode(value), None))
            except Exception as error:  # whatever a decoder makes of a broken file
                done.append((None, error))
        return done

    found = Read([], [], [])
    starts = range(0, len(source), step)
    pool = ThreadPoolExecutor(workers or torch.get_num_threads())
    try:
        with tqdm(total=len(source), desc=f"reading {source.name}", unit="item", delay=2) as bar:
            for start, done in zip(starts, pool.map(work, starts), strict=True):
                for row, (item, error) in enumerate(done, start):
                    if error is None:
                        found.items.append(item)
                        found.rows.append(row)
                    elif on_bad == "skip":
                        found.skipped.append(f"{source.row_name(row)}: {_reason(error)}")
                    else:
                        raise InputError(
                            f"{source.row_name(row)} cannot be read ({_reason(error)}); repair or "
                            "remove it, or skip bad items"
                        ) from error
                bar.update(len(done))
    finally:
        pool.shutdown(cancel_futures=True)
    if not found.items:
        raise InputError(
            f"not one of the {len(source)} items of {source.name} can be read "
            f"({found.skipped[0]}); check the input column and the files"
        )
    return found


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
