"""Data that a program makes itself: a folder of Parquet files, there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from resbackbones.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


def made_once(
    folder: Path,
    make: Callable[[], "Iterable[tuple[str, Dataset]]"],
    *,
    place: str,
    advice: str,
) -> Path:
    """A folder with a Parquet file per split, made now if it is not there; the recipes open it as
    any others.

    Args:
        make: gives the splits, name and rows.
        place, advice: what cannot be written, and what to do then, in the refusal.

    Raises:
        InputError: the folder cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    except OSError as error:
        raise InputError(f"cannot write {place} ({error.strerror}); {advice}") from error
    try:
        for split, dataset in make():
            dataset.to_parquet(str(scratch / f"{split}.parquet"))
        if not folder.is_dir():  # else another run was faster
            os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
