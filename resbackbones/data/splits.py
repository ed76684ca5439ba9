"""Train, validation and test: what is held out where there is no validation split, what was found.

Which rows are held out depends on their number, kind and group alone: the same on every machine.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resbackbones.data.columns import Source, plain_values
from resbackbones.data.items import draws
from resbackbones.errors import InputError

HELD_OUT = 0.1  # the share of train that becomes validation where there is none
MIN_GROUPS = 10  # with fewer, one group is too large a share to hold out
GLANCE = 4096  # bytes that tell most files of one size apart


@dataclass(frozen=True)
class Splits:
    """Train, validation and test of one data set, with the same target.

    Attributes:
        test: None where there is none.
        held_out: the rows, from 0, of the train split as opened that became the validation split,
            ascending; empty where the data came with one.
        notes: sentences on what was ignored, detected or left out.
        skipped: the rows left out with `on_bad="skip"`, "name: why".
        how: the share of train that was held out, and by what; "" where none was.

    >>> from datasets import Dataset
    >>> from resbackbones.data import open_splits
    >>> rows = Dataset.from_dict({"text": [*"abcde"], "label": [0, 1, 0, 1, 0]})
    >>> splits = open_splits(rows)
    >>> splits.how, splits.held_out
    ('40.0 % of train, stratified by label', (0, 3))
    """

    train: Source
    validation: Source
    test: Source | None
    held_out: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    how: str = ""

    def fold(self, number: int, of: int) -> "Splits":
        """Part `number` (from 0) of a cross-validation in `of` parts: it is the validation split,
        and the rest of train and validation the train split. There is no test split.

        >>> from datasets import Dataset
        >>> from resbackbones.data import open_splits
        >>> rows = Dataset.from_dict({"text": [*"abcdef"], "label": [0, 1] * 3})
        >>> [open_splits(rows).fold(number, 3).validation.numbers.tolist() for number in range(3)]
        [[4, 5], [1, 2], [3, 0]]
        """
        whole = joined(self.train, self.validation)
        inside = _parts(whole, of) == number
        train, validation = (whole.select(part.nonzero()[:, 0]) for part in (~inside, inside))
        how = f"part {number + 1} of {of}"
        return replace(self, train=train, validation=validation, test=None, held_out=(), how=how)

    def folded_by(self, of: int) -> str:
        """The column of groups of which each is whole in one part of a cross-validation in `of`
        parts; "" where rows are parted one by one."""
        groups = _groups(joined(self.train, self.validation))
        return str(self.train.columns["group"]) if len(set(groups) - {None}) >= of else ""

    def together(self) -> "Splits":
        """The same without a test split: its rows are at the end of the train split, for a
        cross-validation on all there are.

        >>> from datasets import Dataset, DatasetDict
        >>> from resbackbones.data import open_splits
        >>> rows = Dataset.from_dict({"text": [*"abcdef"], "label": [0, 1] * 3})
        >>> splits = open_splits(DatasetDict(train=rows, test=rows.select([0, 1]))).together()
        >>> len(splits.train), len(splits.validation), splits.test
        (6, 2, None)
        """
        if self.test is None:
            return self
        return replace(self, train=joined(self.train, self.test), test=None)

    def found(self) -> str:
        """What was found, in sentences for people: items, classes, groups, what was ignored or left
        out, and which items stand there more than once.

        Every input's size is looked up, and the inputs of one size are read; of texts, all, and
        two that differ in case and blanks alone are the same.
        """
        rows = f"{len(self.train):,} items to train on, {len(self.validation):,} for validation"
        rows += f" (held out: {self.how})" if self.how else ""
        rows += f", {len(self.test):,} to test on" if self.test else ", none to test on"
        said = [rows]
        if words := self.train.target.describe(self.train.targets()):
            said.append(words)
        if (column := self.train.columns.get("group")) is not None:
            groups = set(plain_values(self.train.dataset, column)) - {None}
            few = bool(self.how) and not self.how.endswith(f", by {column}")
            said.append(
                f"{len(groups):,} groups (column {column!r})" + few * ", too few to hold any out"
            )
        elif type(self.train.dataset.features[self.train.columns["input"]]).__name__ == "Audio":
            said.append("no speakers are named, so the same ones may stand in several splits")
        sentences = ["; ".join(said), *self.notes]
        if self.skipped:
            some = "; ".join(self.skipped[:3]) + "; …" * (len(self.skipped) > 3)
            sentences.append(f"{_count(len(self.skipped), 'row')} left out: {some}")
        return ". ".join([*sentences, *self._repeated()]) + "."

    def _repeated(self) -> Iterator[str]:
        """Sentences on inputs that stand in the data more than once."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        sources = {split: source for split, source in parts.items() if source is not None}
        ends = np.cumsum([len(source) for source in sources.values()])
        contents = _contents(list(sources.values()))
        spelling = ", case and blanks aside," if _is_text(self.train) else ""
        first_in: dict[str, dict[Any, int]] = {}
        for split, end in zip(sources, ends, strict=True):
            rows = range(end - len(sources[split]), end)
            own: dict[Any, int] = {}
            for row in rows:
                if contents[row] is not None:
                    own.setdefault(contents[row], row)
            again = sum(contents[row] is not None for row in rows) - len(own)
            if again:
                verb = "repeats another" if again == 1 else "repeat others"
                ((often, most),) = Counter(
                    contents[row] for row in rows if contents[row] is not None
                ).most_common(1)
                name = sources[split].row_name(own[often] - rows.start)
                yield f"{_count(again, 'item')} of {split} {verb} of it{spelling.rstrip(',')}" + (
                    f" (the most frequent stands there {most:,} times: {name})" if most > 2 else ""
                )
            for before, known in first_in.items():
                shared = [row for row in rows if contents[row] in known]
                if shared:
                    name = sources[split].row_name(shared[0] - rows.start)
                    items = f"{_count(len(shared), 'item')} of {split}{spelling}"
                    verb = "stands" if len(shared) == 1 else "stand"
                    yield f"{items} {verb} in {before} too (the first: {name})"
            first_in[split] = own


def _contents(sources: list[Source]) -> list[Any]:
    """For each row of all these, something that equals another's only where the inputs do; None
    where no other row's input is of this size, or where it is missing or empty."""
    if all(map(_is_text, sources)):
        return [key for source in sources for key in _spelled(source)]
    sizes = np.concatenate([source.sizes() for source in sources])
    starts = np.cumsum([0, *map(len, sources)])
    keys: list[Any] = [int(size) if size > 0 else None for size in sizes]
    for most in (GLANCE, None):
        counts = Counter(keys)
        for source, start in zip(sources, starts[:-1].tolist(), strict=True):
            rows = [
                row
                for row in range(len(source))
                if keys[start + row] is not None
                and counts[keys[start + row]] > 1
                # What a glance saw whole is not looked at again.
                and (most or sizes[start + row] > GLANCE)
            ]
            for row, content in zip(rows, source.contents(rows, most), strict=True):
                digest = hashlib.blake2b(content, digest_size=16).digest()
                keys[start + row] = (int(sizes[start + row]), digest)
    counts = Counter(keys)
    return [key if counts[key] > 1 else None for key in keys]


def _is_text(source: Source) -> bool:
    feature = source.dataset.features[source.columns["input"]]
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _spelled(source: Source) -> Iterator[bytes | None]:
    """For each row, what its text, or both of its texts, have in common with those that differ in
    case and blanks alone; None where it is empty."""
    columns = [source.columns[role] for role in source.inputs]
    for start in range(0, len(source), 1024):
        part = slice(start, start + 1024)
        for texts in zip(*(plain_values(source.dataset, c, part) for c in columns), strict=True):
            words = ["" if text is None else " ".join(text.casefold().split()) for text in texts]
            content = "\0".join(words).encode("utf-8", "surrogatepass")
            yield hashlib.blake2b(content, digest_size=16).digest() if any(words) else None


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def joined(first: Source, second: Source) -> Source:
    """The rows of two splits of one data set, for a last training when nothing is left to choose.

    >>> from datasets import Dataset
    >>> from resbackbones.data import open_dataset
    >>> rows = Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]})
    >>> source = open_dataset(rows)
    >>> both = joined(source.select([3, 2]), source.select([0]))
    >>> both.targets(), both.row_name(0)
    (tensor([1, 0, 0]), 'row 4 of the given data set [train]')
    """
    from datasets import concatenate_datasets

    dataset = concatenate_datasets([first.dataset, second.dataset])
    if first.name == second.name and first.numbers is not None and second.numbers is not None:
        return replace(first, dataset=dataset, numbers=torch.cat([first.numbers, second.numbers]))
    name = f"{first.name} + {second.name}"
    return replace(first, dataset=dataset, name=name, numbers=None, place=None)


def speaker_leak(train: Source, other: Source) -> float | None:
    """The share of `other`'s rows whose group (speaker) stands in `train` too: at 0, a result on
    `other` is one on people never heard. None where either names no groups."""
    if "group" not in train.columns or "group" not in other.columns:
        return None
    known = set(plain_values(train.dataset, train.columns["group"])) - {None}
    groups = plain_values(other.dataset, other.columns["group"])
    return sum(group in known for group in groups) / len(groups)


def kinds(source: Source) -> Tensor:
    """The kind of each row where kinds are to be told apart, else 0, int64 `(N,)`."""
    strata = source.target.strata(source.targets())
    return torch.zeros(len(source), dtype=torch.int64) if strata is None else strata


def requires_kinds(source: Source) -> bool:
    """Whether there must be two kinds of rows, each in every split that is learned or chosen by."""
    return source.target.kinds_required and source.target.strata(source.targets()) is not None


def alone(train: Source) -> dict[int, str]:
    """Rows that are the only one of their kind, and so cannot be both trained on and held out ->
    why."""
    strata = train.target.strata(train.targets())
    if strata is None or not train.target.kinds_required:
        return {}
    single = (torch.bincount(strata, minlength=1)[strata] == 1).nonzero()[:, 0].tolist()
    return {
        row: f"is the only one of the {train.target.stratum(int(strata[row]))}" for row in single
    }


def hold_out(train: Source) -> tuple[Tensor, str]:
    """The rows that become the validation split, ascending; how many of how many, and by what.

    By group (speaker) where ten or more are named; else in proportion to the kinds of the target;
    else by a hash of the row's number.

    Raises:
        InputError: a kind that cannot be on both sides; a single row.
    """
    if len(train) < 2:
        raise InputError(f"{train.name} has one row only; give more, or a validation split")
    strata = kinds(train)
    has_kinds = train.target.strata(train.targets()) is not None
    by = f"stratified by {train.target.role}" if has_kinds else "by a hash of the row's number"
    rows = None
    if "group" in train.columns:
        groups = plain_values(train.dataset, train.columns["group"])
        if len(set(groups) - {None}) >= MIN_GROUPS:
            rows = _grouped(train, strata.numpy(), groups)
            by = f"by {train.columns['group']}"
    if rows is None:
        rows = stratified(strata, round(HELD_OUT * len(strata)))
    return rows, f"{100 * len(rows) / len(strata):.1f} % of train, {by}"


def _groups(source: Source) -> list[Any]:
    """The group of each row; none where groups are not told."""
    if "group" not in source.columns:
        return []
    return plain_values(source.dataset, source.columns["group"])


def _parts(source: Source, of: int) -> Tensor:
    """The part of a cross-validation that each row is in, int64 `(N,)`: at random, whole groups
    (speakers) where there are as many as parts, else in proportion to the kinds of the target."""
    order = draws(0, 0, torch.arange(len(source)), 1)[:, 0].argsort(stable=True)
    parts = torch.empty(len(source), dtype=torch.int64)
    groups = _groups(source)
    if len(set(groups) - {None}) >= of:
        keys = [
            ("", row) if group is None else (str(group), -1) for row, group in enumerate(groups)
        ]
        met = {key: place % of for place, key in enumerate(dict.fromkeys(keys[i] for i in order))}
        return torch.tensor([met[key] for key in keys])
    order = order[kinds(source)[order].argsort(stable=True)]
    parts[order] = torch.arange(len(source)) % of
    return parts


def stratified(strata: Tensor, count: int) -> Tensor:
    """`count` random rows, or one per kind where that is more, the kinds' shares kept."""
    order = draws(0, 0, torch.arange(len(strata)), 1)[:, 0].argsort(stable=True)
    order = order[strata[order].argsort(stable=True)]  # by kind, at random inside
    sizes = torch.bincount(strata)
    rank = torch.arange(len(strata)) - (sizes.cumsum(0) - sizes)[strata[order]]
    place = (rank + 0.5).double() / sizes[strata[order]]  # the lowest n: the same share of each
    place[rank == 0] = 0
    count = max(count, int((sizes > 0).sum()))
    return order[place.argsort(stable=True)[:count]].sort().values


def _grouped(train: Source, strata: np.ndarray, groups: list[Any]) -> Tensor:
    """Whole groups, taken at random while they bring the held-out count of every kind closer to
    its share, and then for any kind that is still missing."""
    keys = [("", row) if group is None else (str(group), -1) for row, group in enumerate(groups)]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    group_of = np.array([numbers[key] for key in keys])
    names, kind_of = np.unique(strata, return_inverse=True)
    members = np.zeros((len(numbers), len(names)))
    np.add.at(members, (group_of, kind_of), 1)
    total = members.sum(0)
    goal = np.maximum(1, HELD_OUT * total)
    held = np.zeros(len(names))
    taken: list[int] = []

    def distance(counts: np.ndarray) -> float:
        return float((((counts - goal) / goal) ** 2).sum())

    def leaves_some(group: int) -> bool:
        return bool((held + members[group] < total).all())

    for group in draws(0, 0, torch.arange(len(numbers)), 1)[:, 0].argsort(stable=True).tolist():
        if leaves_some(group) and distance(held + members[group]) < distance(held):
            held = held + members[group]
            taken.append(group)
    while not held.all():
        missing = int(held.argmin())
        fitting = [g for g in range(len(numbers)) if members[g, missing] and leaves_some(g)]
        if not fitting and not train.target.kinds_required:
            # Nothing but the groups themselves can be on both sides.
            return _grouped(train, np.zeros_like(strata), groups)
        if not fitting:
            raise InputError(
                f"the {train.target.stratum(int(names[missing]))} of {train.name} cannot be both "
                f"in train and in validation with no group (column {train.columns['group']!r}) in "
                'both; give a validation split, or ignore the groups with columns={"group": ""} '
                '(--group-column "")'
            )
        group = min(fitting, key=lambda g: distance(held + members[g]))
        held = held + members[group]
        taken.append(group)
    return torch.from_numpy(np.flatnonzero(np.isin(group_of, taken)))
