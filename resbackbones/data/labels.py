"""`Labels`: any number of classes per item."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from resbackbones.data.targets import (
    Classes,
    Column,
    Target,
    learn_names,
    rarest_class,
    refuse_faults,
)
from resbackbones.errors import InputError

SEPARATORS = ("|", ";", ",")  # the first that is found: what stands seldom in a name comes first


@dataclass(frozen=True)
class Labels(Target):
    """Any number of several classes, none too.

    A cell is a list of names or numbers; a string of them, cut at a separator; or such a list as
    JSON, `["cat", "dog"]`. An empty list, in a table of texts `[]`, is an item of no class; an
    empty cell is a missing one.

    Attributes:
        names: of the classes; a class's number is its position. () for those of the column: of its
            type, else of `labels.json`, else its values in sorted order.
        separator: what stands between the names in a string; None for the first of `| ; ,` that
            stands in the column, "" for a single name as it is.
        numbered: whether a number in the column is a position in `names`, rather than a name; None
            as long as no column was learned from.

    >>> pets = Column("tags", ["cat|dog", "cat", "[]"], "pets", "row {}".format)
    >>> target = Labels().learn(pets)
    >>> target.names, target.separator, target.values(pets).tolist()
    (('cat', 'dog'), '|', [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    """

    names: tuple[str, ...] = ()
    separator: str | None = None
    numbered: bool | None = None

    role: ClassVar[str] = "label"
    usual: ClassVar[tuple[str, ...]] = (*Classes.usual, "tags", "classes", "categories", "genres")
    kinds_required: ClassVar[bool] = False

    def typed(self, feature: Any) -> bool:
        inner = _inner(feature)
        whole = str(getattr(inner, "dtype", "")).removeprefix("u").startswith("int")
        return whole or getattr(inner, "dtype", None) in ("string", "large_string")

    def class_names(self, feature: Any) -> tuple[str, ...] | None:
        inner = _inner(feature)
        return super().class_names(feature if inner is None else inner)

    def learn(self, train: Column) -> "Labels":
        learned = replace(self, separator=self.separator_of(train))
        _, labels = learned._flat(train)
        told = self.names or train.listed or ()
        # Numbers that are names, or stand among names, are no positions.
        if not all(isinstance(x, int | float) and str(x) not in told for x in labels):
            labels = [str(label) if isinstance(label, int) else label for label in labels]
        names, numbered = learn_names(self.names, replace(train, cells=labels))
        if not names:
            raise InputError(
                f"{train.split} has no class in column {train.name!r}; expected items with one or "
                "more"
            )
        return replace(learned, names=names, numbered=numbered)

    def separator_of(self, train: Column) -> str:
        """What the column's strings are cut at, "" for nothing.

        Raises:
            InputError: lists that seem to tell yes or no of each class.
        """
        lists = [cell for cell in train.cells if isinstance(cell, list)]
        if _are_answers(lists):
            raise InputError(
                f"the lists in column {train.name!r} of {train.split} seem to be 0 or 1 for each "
                f"of {len(lists[0])} classes; write the classes that an item has, such as "
                '[0, 2] or ["cat", "dog"]'
            )
        if self.separator is not None:
            return self.separator
        texts = [cell for cell in train.cells if isinstance(cell, str) and not _is_json(cell)]
        found = (mark for mark in SEPARATORS if any(mark in text for text in texts))
        return next(found, "")

    def faults(self, column: Column) -> dict[int, str]:
        """Rows without a list, even an empty one, and those with a label that is no class."""
        rows, labels = self._flat(column)
        alone = self._one().faults(replace(column, cells=labels))
        found = {rows[index]: why for index, why in reversed(alone.items())}
        for row, cell in enumerate(column.cells):
            if why := self._fault(cell):
                found[row] = f"has {why.format(column=f'column {column.name!r}')}"
        return dict(sorted(found.items()))

    def _fault(self, cell: Any) -> str | None:
        """What is wrong with a cell whatever the classes are, with a place for the column."""
        parsed = _parsed(cell)
        if isinstance(parsed, str) and _is_json(parsed):
            return f'{_quoted(parsed)} in {{column}}, which is no list in JSON, such as ["cat"]'
        if parsed is None or (isinstance(parsed, str) and not self._labels(parsed)):
            return "no label in {column}; an item of no class has an empty list, []"
        for label in parsed if isinstance(parsed, list) else []:
            if _is_blank(label):
                return "a label without a name in {column}"
            if not isinstance(label, int | float | str):
                return (
                    f"the label {_quoted(label)} in {{column}}, neither a name nor a whole number"
                )
        return None

    def values(self, column: Column) -> Tensor:
        """1 for each class that a row has and 0 for the others, float32 `(N, K)`."""
        refuse_faults(self, column)
        if self.separator is None:
            raise ValueError("these labels know no column yet: use what `learn` gives")
        rows, labels = self._flat(column)
        numbers = self._one().numbers(replace(column, cells=labels))
        values = torch.zeros(len(column.cells), len(self.names))
        values[torch.tensor(rows, dtype=torch.int64), torch.tensor(numbers, dtype=torch.int64)] = 1
        return values

    def strata(self, values: Tensor) -> Tensor:
        """The `rarest_class` of each item."""
        rows, labels = values.nonzero(as_tuple=True)
        return rarest_class(rows, labels, len(values), len(self.names))

    def stratum(self, number: int) -> str:
        return f"class {self.names[number]!r}" if number < len(self.names) else "other items"

    def describe(self, values: Tensor) -> str:
        """
        >>> Labels(("a", "b"), "|").describe(torch.tensor([[1, 1], [1, 0], [0, 0]]))
        "2 classes of 1 to 2 items; 0 to 2 classes per item (1 without), cut at '|'"
        """
        counts, each = values.sum(0).long(), values.sum(1).long()
        low, high = int(counts.min()), int(counts.max())
        sizes = f"{low:,} to {high:,} items" if low < high else f"{low:,} item{'s' * (low != 1)}"
        none = int((each == 0).sum())
        return (
            f"{len(self.names):,} class{'es' * (len(self.names) > 1)} of {sizes}; "
            f"{int(each.min()):,} to {int(each.max()):,} classes per item"
            + f" ({none:,} without)" * (none > 0)
            + f", cut at {self.separator!r}" * bool(self.separator)
        )

    def _one(self) -> Classes:
        """What knows each label by itself."""
        return Classes(self.names, self.numbered)

    def _flat(self, column: Column) -> tuple[list[int], list[Any]]:
        """Every label's row, and every label, one after the other."""
        rows: list[int] = []
        labels: list[Any] = []
        for row, cell in enumerate(column.cells):
            own = self._labels(cell)
            rows += [row] * len(own)
            labels += own
        return rows, labels

    def _labels(self, cell: Any) -> Sequence[Any]:
        """Those of one cell."""
        cell = _parsed(cell)
        if isinstance(cell, list):
            return [label for label in cell if isinstance(label, int | float) or _is_name(label)]
        if isinstance(cell, str):
            if _is_json(cell):
                return []
            parts = cell.split(self.separator) if self.separator else [cell]
            return [_whole(part.strip()) for part in parts if part.strip()]
        return [] if cell is None else [cell]


def _inner(feature: Any) -> Any:
    """The type of a list's entries, from that of a column; None where it holds no lists."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def _is_json(text: str) -> bool:
    return text.lstrip().startswith("[") and text.rstrip().endswith("]")


def _parsed(cell: Any) -> Any:
    """A cell, or the list that it is as JSON."""
    if isinstance(cell, str) and _is_json(cell):
        with contextlib.suppress(json.JSONDecodeError):  # `faults` tells of those
            return json.loads(cell)
    return cell


def _quoted(value: Any) -> str:
    """A value as it stands, up to 60 characters, for a template."""
    return f"{value!r:.60}".replace("{", "{{").replace("}", "}}")


def _is_blank(label: Any) -> bool:
    return label is None or (isinstance(label, str) and not label.strip())


def _is_name(label: Any) -> bool:
    return isinstance(label, str) and bool(label.strip())


def _whole(text: str) -> Any:
    """A whole number that stands in a text, where nothing of the text is lost.

    >>> _whole("10"), _whole("007"), _whole("cat")
    (10, '007', 'cat')
    """
    return int(text) if text.isdecimal() and str(int(text)) == text else text


def _are_answers(lists: Sequence[list[Any]]) -> bool:
    """Whether lists are 0 or 1 for each class, rather than the numbers of classes: all as long, and
    one of them says a number twice."""
    return (
        len({len(own) for own in lists}) == 1
        and all(label in (0, 1) for own in lists for label in own)
        and any(len(set(own)) < len(own) for own in lists)
    )
