"""What a run of `tasks.benchmark` leaves on the disk: `records.jsonl`, and what its arms share."""

import json
import os
from pathlib import Path
from typing import Any

from resbackbones.errors import InputError
from tasks._benchmark.arms import Job, Settings, fault


class Store:
    """The records of a run, whole and each arm once; `said` tells what a resumed run found."""

    def __init__(self, folder: Path, settings: Settings, *, resume: bool) -> None:
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
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)

    def _go_on(self, configuration: Path, now: dict[str, Any]) -> None:
        folder = configuration.parent
        if not configuration.is_file() or not self.path.is_file():
            raise InputError(f"{folder} holds no run to go on with; leave --resume out")
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
                    f"{folder} was run with {name} = {known}, not {given}; give the same settings "
                    "to --resume, or another --output to start anew"
                )
        now["data"] = data | now["data"]
        _write(configuration, json.dumps(now, indent=2) + "\n")
        self._read()

    def _read(self) -> None:
        """Keep the whole lines. Damaged ones (a power cut leaves half of one) are set aside, so
        that their arms run again; an arm that stands there twice counts once."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        kept, aside, seen = [], [], set()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            record, why = _parsed(line)
            if record is None:
                aside.append(line)
                self.said.append(
                    f"line {number} of {self.path} {why}; set aside in damaged.jsonl, its arm runs "
                    "again"
                )
            elif (job := Job.of(record)) in seen:
                self.said.append(f"line {number} of {self.path} repeats {job}; counted once")
            else:
                seen.add(job)
                kept.append(line)
                self.records.append(record)
        if aside:
            with (self.path.parent / "damaged.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in aside)
        _write(self.path, "".join(line + "\n" for line in kept))
        if kept:
            self.said.append(
                f"{len(kept)} arms are recorded in {self.path.parent}; going on with the rest"
            )


def _parsed(line: str) -> tuple[dict[str, Any] | None, str]:
    """A record, or None and what is wrong with its line."""
    try:
        record = json.loads(line)
    except ValueError:
        return None, "is not valid JSON"
    why = fault(record)
    return (None, why) if why else (record, "")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
