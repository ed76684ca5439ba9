"""What a run of `tasks.benchmark` leaves on the disk: `records.jsonl`, and what its arms share."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

from resbackbones.errors import InputError
from tasks._benchmark.arms import Job, Settings


class Store:
    """The records of a run, whole and each arm once; `said` tells what a resumed run found."""

    def __init__(self, folder: Path, settings: Settings, *, resume: bool) -> None:
        self.folder = folder
        self.path = folder / "records.jsonl"
        self.records: list[dict[str, Any]] = []
        self.said: list[str] = []
        configuration = folder / "configuration.json"
        try:
            if resume:
                self._go_on(configuration, settings.identity())
            else:
                self.path.touch(exist_ok=False)
                _write(configuration, json.dumps(settings.identity(), indent=2) + "\n")
        except FileExistsError as error:
            raise InputError(
                f"{folder} already holds a run; add --resume to go on with it, or give another "
                "--output"
            ) from error
        except OSError as error:
            raise InputError(
                f"cannot write to {folder} ({error.strerror}); give another folder with --output"
            ) from error

    @property
    def done(self) -> set[Job]:
        return set(map(Job.of, self.records))

    def add(self, record: dict[str, Any]) -> None:
        """Append one line and see it on the disk before anything else happens."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)

    def _go_on(self, configuration: Path, now: dict[str, Any]) -> None:
        if not configuration.is_file() or not self.path.is_file():
            raise InputError(f"{self.folder} holds no run to go on with; leave --resume out")
        try:
            before = json.loads(configuration.read_text(encoding="utf-8"))
            data = dict(before["data"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{configuration} is damaged, so what its records rest on is not known; start anew "
                "with another --output"
            ) from error
        for name, given in now.items():
            known = before.get(name)
            if name == "data":  # domains may be added
                given = {domain: given[domain] for domain in given if domain in data}
                known = {domain: data[domain] for domain in given}
            if given != known:
                raise InputError(
                    f"{self.folder} was run with {name} = {known}, not {given}; give the same "
                    "settings to --resume, or another --output to start anew"
                )
        now["data"] = data | now["data"]
        _write(configuration, json.dumps(now, indent=2) + "\n")
        self._read()

    def _read(self) -> None:
        """Keep what is whole. A damaged line (a power cut leaves half of one) is set aside, so that
        its arm runs again; an arm that stands there twice counts once."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines, 1):
            record = _whole(line)
            if record is not None and Job.of(record) not in self.done:
                self.records.append(record)
            elif record is None and line.strip():
                with (self.folder / "damaged.jsonl").open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
                self.said.append(
                    f"line {number} of {self.path} is damaged; it is set aside in damaged.jsonl, "
                    "and its arm runs again"
                )
        _write(self.path, "".join(map(_line, self.records)))
        if self.records:
            count = len(self.records)
            self.said.append(f"{count} arms are recorded in {self.folder}; going on with the rest")


def _line(record: dict[str, Any]) -> str:
    """A record as one line of JSON, with a checksum of the rest as its last entry."""
    return json.dumps(record | {"crc32": _checksum(record)}, allow_nan=False) + "\n"


def _whole(line: str) -> dict[str, Any] | None:
    """The record in a line whose checksum holds."""
    try:
        record = json.loads(line)
        return record if record.pop("crc32") == _checksum(record) else None
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


def _checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record).encode())


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
