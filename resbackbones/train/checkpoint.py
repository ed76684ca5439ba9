"""Checkpoints that are whole or absent, and known to be what was written.

    folder/checkpoint-40/state.pt         the tensors, and how far the run has come
    folder/checkpoint-40/manifest.json    what the run is; the SHA-256 of the state and its own

Both are written aside, reach the disk, and get their name together. The newest two are kept: one
that was damaged later is told from a good one, named, and the one before it taken.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import torch

from resbackbones.errors import InputError

KEPT = 2
STATE, MANIFEST = "state.pt", "manifest.json"
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class DamagedCheckpoint(UserWarning):
    """A checkpoint is not what was written."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder, and keep every other process from running in it meanwhile. A lock ends with
    the process that holds it, however that ends.

    Raises:
        InputError: another process runs there, or the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"another process is running in {folder}; wait for its end, or name another "
                "output folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one sentence that a folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({reason(error)}); name an output folder that can be "
            "written, on a disk with room"
        ) from error


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Have signals that end a program wait for the end of the block: `torch.save` calls Python back
    for each piece it writes, and an exception raised by a handler there aborts the process."""
    if threading.current_thread() is not threading.main_thread():  # which alone runs handlers
        yield
        return
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in handlers.items() if handler is not None}
    for number in before:  # those that Python set
        signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in waiting:
            signal.raise_signal(number)


def checkpoints(folder: Path) -> list[Path]:
    """A folder's checkpoints, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"\d+", path.name[11:])]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name[11:])


def _remove(path: Path) -> None:
    """Whatever lies there, if anything does."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save(
    folder: Path,
    step: int,
    identity: Mapping[str, Any],
    state: Mapping[str, Any],
    kept: int = KEPT,
) -> None:
    """Write the checkpoint of a step, then remove older ones.

    Args:
        identity: what the run is, in plain values.
        state: tensors, numbers, strings, and lists and dictionaries of them.
        kept: how many stay, this one included.

    Raises:
        InputError: it cannot be written; those before it stay.
    """
    scratch, place = folder / ".part", folder / f"checkpoint-{step}"
    older = [path for path in checkpoints(folder) if _step(path) < step]
    # Of a run that went back behind them: they must not pass for the newest.
    later = [path for path in checkpoints(folder) if _step(path) > step]
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        with (scratch / STATE).open("wb") as file, unbroken():
            torch.save(dict(state), file)
        manifest = {"step": step, "identity": dict(identity), STATE: _digest(scratch / STATE)}
        manifest["manifest"] = _own_digest(manifest)
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in (scratch / STATE, scratch / MANIFEST, scratch):
            _sync(path)
        _remove(place)
        os.replace(scratch, place)
        _sync(folder)
    except (OSError, RuntimeError) as error:
        # torch says in words of its own what went wrong with its file; all else is another matter.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        before = f"{older[-1].name} is kept" if older else "there is none before it"
        raise InputError(
            f"cannot write the checkpoint of step {step} to {folder} ({reason(cause)}); make room "
            f"there, then resume the run ({before})"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    with writing(folder):
        for path in [*later, *older[: len(older) + 1 - kept]]:
            _remove(path)


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The newest good checkpoint's identity and state; None where there is none at all.

    Raises:
        InputError: there are some, and all are damaged.

    Warns:
        DamagedCheckpoint: a newer one is damaged; it is set aside, not removed.
    """
    damaged = []
    for path in reversed(checkpoints(folder)):
        try:
            manifest = _manifest(path)
            state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # whatever a reader makes of other bytes than were written
            damaged.append((path, reason(error)))
            continue
        for bad, why in damaged:
            aside = bad.with_name(f"damaged-{bad.name}")
            with writing(folder):
                _remove(aside)
                os.replace(bad, aside)
            warnings.warn(
                f"{bad} is damaged ({why}): going on from {path.name}, the one before it",
                DamagedCheckpoint,
                stacklevel=2,
            )
        return manifest["identity"], state
    if damaged:
        path, why = damaged[0]
        raise InputError(
            f"{path} is damaged ({why}), and no checkpoint before it is good; begin anew in "
            "another output folder"
        )
    return None


def _manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest, after all of it was found to be as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        own = manifest.pop("manifest")
        if own != _own_digest(manifest) or manifest["step"] != _step(path):
            raise ValueError
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"its {MANIFEST} is not what was written") from None
    if not (path / STATE).is_file():
        raise ValueError(f"it has no {STATE}")
    if _digest(path / STATE) != manifest[STATE]:
        raise ValueError(f"its {STATE} is not what was written")
    return manifest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: BaseException) -> str:
    """What an error says, in a part of a sentence."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return text.splitlines()[0].replace(". ", ": ").rstrip(".")
