"""Trials: pairs of recordings of which it is asked whether the same person speaks."""

import gzip
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resbackbones.data import draws
from resbackbones.errors import InputError

PER_SPEAKER = 20
DIFFERENT = 20_000
AT_ONCE = 4096  # pairs drawn together


@dataclass(frozen=True, eq=False)
class Trials:
    """Pairs of rows of a data set.

    Attributes:
        left, right: int64 `(M,)`, rows from 0.
        same: bool `(M,)`, whether one person speaks in both.
        alone: speakers that stand in no pair of the same, having one recording only.

    >>> trials = make_trials(["ann", "ann", "bob", None], different=9)
    >>> trials.left.tolist(), trials.right.tolist(), trials.same.tolist(), trials.alone
    ([0, 0, 1], [1, 2, 2], [True, False, False], 1)
    >>> print(trials)
    1 pair of the same speaker and 2 of different ones (1 speaker has one recording, so no pair)
    """

    left: Tensor
    right: Tensor
    same: Tensor
    alone: int = 0

    def __len__(self) -> int:
        return len(self.same)

    def __str__(self) -> str:
        same = int(self.same.sum())
        pairs = "pair" if same == 1 else "pairs"
        said = f"{same:,} {pairs} of the same speaker and {len(self) - same:,} of different ones"
        if self.alone:
            speakers = "speaker has" if self.alone == 1 else "speakers have"
            said += f" ({self.alone:,} {speakers} one recording, so no pair)"
        return said

    def fingerprint(self) -> str:
        """sha256, in hexadecimal, of the text that `write` writes."""
        return hashlib.sha256(self._content()).hexdigest()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a line per pair, "1 12 40" where rows 12 and 40 are of the same speaker, else with
        0 in front; compressed where the name ends in .gz.

        Raises:
            InputError: the file cannot be written.
        """
        content = self._content()
        if str(path).endswith(".gz"):
            content = gzip.compress(content, mtime=0)  # the same bytes at any time
        try:
            Path(path).write_bytes(content)
        except OSError as error:
            raise InputError(
                f"cannot write the trials to {path} ({error.strerror}); name a file that can be "
                "written"
            ) from error

    def _content(self) -> bytes:
        rows = zip(self.same.tolist(), self.left.tolist(), self.right.tolist(), strict=True)
        return "".join(f"{int(same)} {left} {right}\n" for same, left, right in rows).encode()


def make_trials(
    speakers: Sequence[Any],
    per_speaker: int = PER_SPEAKER,
    different: int = DIFFERENT,
    seed: int = 0,
) -> Trials:
    """Up to `per_speaker` pairs of each speaker's rows and up to `different` pairs of rows of
    different speakers, drawn at random, none twice; the same on every machine.

    Args:
        speakers: of each row; a row without one (None) stands in no pair.

    Raises:
        InputError: no two rows of one speaker, or no two speakers.
    """
    rows: dict[Any, list[int]] = {}
    for row, speaker in enumerate(speakers):
        if speaker is not None:
            rows.setdefault(speaker, []).append(row)
    alone = sum(len(own) == 1 for own in rows.values())
    if len(rows) < 2 or alone == len(rows):
        raise InputError(
            f"{len(rows)} speakers, {alone} of them with one recording, make no pairs of the same "
            "and of different ones; give two speakers or more, one of them with two recordings"
        )
    same = []
    for number, own in enumerate(rows.values()):
        pairs = len(own) * (len(own) - 1) // 2
        if pairs <= per_speaker:
            same += list(combinations(own, 2))
        else:
            same += _drawn(own, per_speaker, (seed, 1 + number), lambda left, right: True)
    everyone = sorted(row for own in rows.values() for row in own)
    of = {row: speaker for speaker, own in rows.items() for row in own}
    pairs = (len(everyone) ** 2 - sum(len(own) ** 2 for own in rows.values())) // 2
    if pairs <= 2 * different:  # to draw nearly all of them at random would take long
        all_pairs = [(a, b) for a, b in combinations(everyone, 2) if of[a] != of[b]]
        order = draws(seed, 0, range(len(all_pairs)), 1)[:, 0].argsort(stable=True)
        others = [all_pairs[place] for place in order[:different].tolist()]
    else:
        others = _drawn(everyone, different, (seed, 0), lambda a, b: of[a] != of[b])
    left, right = torch.tensor([*sorted(same), *sorted(others)]).T
    return Trials(left, right, torch.arange(len(left)) < len(same), alone)


def _drawn(rows: list[int], count: int, place: tuple[int, int], fits: Any) -> list[tuple[int, int]]:
    """`count` different pairs of these rows, of which there must be clearly more."""
    found: dict[tuple[int, int], None] = {}
    start = 0
    while len(found) < count:
        drawn = draws(*place, range(start, start + AT_ONCE), 2).double() * len(rows)
        for one, other in drawn.long().tolist():
            pair = rows[min(one, other)], rows[max(one, other)]
            if one != other and len(found) < count and fits(*pair):
                found[pair] = None
        start += AT_ONCE
    return list(found)


def read_trials(path: str | os.PathLike[str], rows: Mapping[str, int] | None = None) -> Trials:
    """Read pairs in VoxCeleb's format: a line each, "1 left right" where the same person speaks in
    both recordings, else with 0 in front.

    Args:
        path: of the list; compressed where it ends in .gz.
        rows: from what the list calls a recording to its row; by default it calls them by their
            rows, from 0.

    Raises:
        InputError: no such file, a line of another form, a recording that nobody knows, or a list
            without pairs of both kinds; the line is named.
    """
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if str(path).endswith(".gz") else content).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read trials from {path} ({reason}); give a text with a line per pair, as "
            "'1 left right'"
        ) from error
    found: list[tuple[int, int, int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 3 or cells[0] not in ("0", "1"):
            raise InputError(
                f"line {number} of {path} is {line[:60]!r}; expected 1 or 0, for the same speaker "
                "or not, and two recordings, as '1 left right'"
            )
        places = [_row(cell, rows) for cell in cells[1:]]
        if None in places:
            what = cells[1 + places.index(None)]
            known = (
                "is no row, counted from 0"
                if rows is None
                else "is no recording of the data, or several"
            )
            raise InputError(f"line {number} of {path} names {what!r}, which {known}; correct it")
        found.append((int(cells[0]), *places))  # type: ignore[arg-type]
    if len({same for same, *_ in found}) < 2:
        raise InputError(
            f"{path} has {len(found)} pairs, but none of the same speaker or none of different "
            "ones; give a list with both"
        )
    same, left, right = torch.tensor(found).T
    return Trials(left, right, same.bool())


def _row(name: str, rows: Mapping[str, int] | None) -> int | None:
    if rows is not None:
        return rows.get(name)
    return int(name) if name.isdecimal() else None
