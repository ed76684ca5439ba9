"""What is to be predicted: how a column becomes checked values, and what a split must hold of it.

A target is a frozen dataclass. One of another package subclasses `Target` and gives `role` and
`values`; the rest has defaults that suit whatever is no class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from resbackbones.errors import InputError


@dataclass(frozen=True)
class Column:
    """The cells of one split that a target reads.

    Attributes:
        name: the column's.
        cells: one plain value per row; None is a missing one.
        split: what the split is called in messages.
        row_name: from a row's position to what it is called in messages.
        class_names: the names that the column's type gives its numbers, where it does.
        listed: the names that a file beside the data lists, such as `labels.json`.
        sizes: (width, height) of each row's image, None where it is unknown, if the target is
            `sized`.
    """

    name: str
    cells: Sequence[Any]
    split: str
    row_name: Callable[[int], str]
    class_names: tuple[str, ...] | None = None
    listed: tuple[str, ...] | None = None
    sizes: Sequence[tuple[int, int] | None] | None = None


class Target(Protocol):
    """What is to be predicted, and its checks.

    Attributes:
        role: what its column is called in `columns`; "" for none.
        usual: what that column is usually called, in lower case.
        sized: whether its checks need the sizes of the images.
        encoded: whether its cells are image files, which stay encoded as the inputs do.
        kinds_required: whether every kind of `strata` must have rows in train and in what is held
            out of it, and there must be two; else they are spread as well as may be.
    """

    role: ClassVar[str]
    usual: ClassVar[tuple[str, ...]] = ()
    sized: ClassVar[bool] = False
    encoded: ClassVar[bool] = False
    kinds_required: ClassVar[bool] = True

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, in order; () where there are none."""
        return ()

    def typed(self, feature: Any) -> bool:
        """Whether a column's type (of `datasets`) alone says that it is this target's."""
        return False

    def class_names(self, feature: Any) -> tuple[str, ...] | None:
        """The names that a column's type gives its numbers, where it does."""
        names = getattr(feature, "names", None)
        return None if names is None else tuple(names)

    def learn(self, train: Column) -> "Target":
        """This target with what the train split's column tells, such as the names of classes.

        Raises:
            InputError: nothing can be learned from this column.
        """
        return self

    def faults(self, column: Column) -> dict[int, str]:
        """Rows that cannot be used -> why, to be read after the row's name: "has no label"."""
        missing = f"has no {self.role} in column {column.name!r}"
        return {row: missing for row, cell in enumerate(column.cells) if cell is None}

    def values(self, column: Column) -> Any:
        """The column as what a model is trained on, one value per row.

        Raises:
            InputError: a row that cannot be used, named.
        """
        ...

    def remarks(self, column: Column) -> tuple[str, ...]:
        """Sentences on what `values` leaves out or changes of this column, for the notes."""
        return ()

    def strata(self, values: Any) -> Tensor | None:
        """The kind of each row, int64 `(N,)`, where kinds are to be told apart: then each has rows
        in train and in what is held out of it, in proportion. None where there are no kinds."""
        return None

    def stratum(self, number: int) -> str:
        """What a kind of `strata` is called in messages."""
        return f"kind {number}"

    def describe(self, values: Any) -> str:
        """A few words on the values of the train split; "" where there is nothing to say."""
        return ""


def refusal(
    faults: Mapping[int, str], row_name: Callable[[int], str], more: str = ""
) -> InputError:
    """Of the first of these rows (row -> why); `more` goes on about it."""
    row = min(faults)
    others = f" (and {len(faults) - 1:,} more)" if len(faults) > 1 else ""
    return InputError(
        f"{row_name(row)} {faults[row]}{others}{more}; repair or remove it, or leave such rows out "
        "(--on-bad skip)"
    )


def refuse_faults(target: Target, column: Column) -> None:
    """Refuse a column with a row that cannot be used.

    Raises:
        InputError: the first such row, named.
    """
    if faults := target.faults(column):
        raise refusal(faults, column.row_name)


@dataclass(frozen=True)
class Classes(Target):
    """One of several classes.

    Attributes:
        names: of the classes; a class's number is its position. () for those of the column: of its
            type, else of `labels.json`, else its values in sorted order.
        numbered: whether a number in the column is a position in `names`, rather than a name; None
            as long as no column was learned from.

    >>> pets = Column("label", ["dog", "cat", "cat"], "pets", "row {}".format)
    >>> target = Classes().learn(pets)
    >>> target.names, target.values(pets)
    (('cat', 'dog'), tensor([1, 0, 0]))
    """

    names: tuple[str, ...] = ()
    numbered: bool | None = None

    role: ClassVar[str] = "label"
    usual: ClassVar[tuple[str, ...]] = (
        *("label", "labels", "class", "category", "intent", "emotion", "target", "sentiment"),
        *("polarity", "topic", "genre", "species", "keyword", "label_id", "class_id", "class_name"),
    )

    def typed(self, feature: Any) -> bool:
        return getattr(feature, "names", None) is not None

    def learn(self, train: Column) -> "Classes":
        names, numbered = learn_names(self.names, train)
        if len(names) < 2:
            only = f"one class only ({names[0]!r}, " if names else "no class ("
            raise InputError(
                f"{train.split} has {only}in column {train.name!r}); expected two or more to tell "
                "apart"
            )
        return replace(self, names=names, numbered=numbered)

    def faults(self, column: Column) -> dict[int, str]:
        """Before anything is learned, rows without a name or a whole number."""
        if self.numbered is None:
            fits = [_is_label(_whole(cell)) for cell in column.cells]
        else:
            fits = [number >= 0 for number in self.numbers(column)]
        return {
            row: self._fault(cell, column)
            for row, (cell, fit) in enumerate(zip(column.cells, fits, strict=True))
            if not fit
        }

    def values(self, column: Column) -> Tensor:
        """Each row's class as its position in `names`, int64 `(N,)`."""
        refuse_faults(self, column)
        ids = self.numbers(column)
        if min(ids, default=0) < 0:
            raise ValueError("these classes know no column yet: use what `learn` gives")
        return torch.tensor(ids, dtype=torch.int64)

    def strata(self, values: Tensor) -> Tensor:
        return values

    def stratum(self, number: int) -> str:
        return f"class {self.names[number]!r}"

    def describe(self, values: Tensor) -> str:
        """
        >>> Classes(("a", "b", "c")).describe(torch.tensor([0, 1, 1]))
        '3 classes of 0 to 2 items'
        """
        counts = torch.bincount(values, minlength=len(self.names))
        low, high = int(counts.min()), int(counts.max())
        sizes = (
            f"{low:,} to {high:,} items" if low < high else f"{low:,} item{'s' * (low > 1)} each"
        )
        return f"{len(self.names):,} classes of {sizes}"

    def numbers(self, column: Column) -> list[int]:
        """Each cell's class as its position in `names`, -1 for one that cannot be used."""
        if self.numbered is not None and column.class_names not in (None, self.names):
            raise _other_names(column, self.names)
        cells = [_whole(cell) for cell in column.cells]
        usable = [_is_label(cell) for cell in cells]
        position: dict[Any, int] = {name: number for number, name in enumerate(self.names)}
        if self.numbered or column.class_names is not None:
            position |= {number: number for number in range(len(self.names))}
        else:
            cells = [str(cell) for cell in cells]
        return [position.get(c, -1) if fits else -1 for c, fits in zip(cells, usable, strict=True)]

    def _fault(self, cell: Any, column: Column) -> str:
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            return f"has no label in column {column.name!r}"
        cell = _whole(cell)
        given = f"has the label {cell!r} in column {column.name!r}"
        if isinstance(cell, list):
            more = "where items have any number of classes give `Labels()` (--multi-label)"
            return f"{given}, a list; {more}"
        if not isinstance(cell, int | str):
            return f"{given}, neither a name nor a whole number"
        known = ", ".join(map(repr, self.names[:12])) + ", …" * (len(self.names) > 12)
        if (self.numbered or column.class_names is not None) and isinstance(cell, int):
            return f"{given}, none of 0 to {len(self.names) - 1} ({known})"
        return f"{given}, none of {known}"


def learn_names(told: tuple[str, ...], train: Column) -> tuple[tuple[str, ...], bool]:
    """The names of the classes of a column of labels: those of its type, else those told or listed,
    else its values in sorted order; and whether a number there is a position in them.

    Raises:
        InputError: its type names others than those told.
    """
    if train.class_names is not None:
        if told and told != train.class_names:
            raise _other_names(train, told)
        return train.class_names, True
    cells = [whole for cell in train.cells if _is_label(whole := _whole(cell))]
    if names := told or train.listed:
        return names, bool(cells) and isinstance(cells[0], int)
    return tuple(str(cell) for cell in sorted(set(cells))), False


def rarest_class(rows: Tensor, labels: Tensor, count: int, classes: int) -> Tensor:
    """The kind of each of `count` rows that have any number of classes, int64 `(count,)`: its class
    that the fewest rows have, as far as two rows or more are of that kind; else `classes`. So each
    class that can be is likely on both sides of a split.

    Args:
        rows, labels: each label's row and class, int64 `(M,)`.

    >>> rows, labels = torch.tensor([0, 0, 1, 1, 2, 3]), torch.tensor([0, 1, 0, 1, 0, 0])
    >>> rarest_class(rows, labels, 6, 2)
    tensor([1, 1, 0, 0, 2, 2])
    """
    pairs = torch.unique(rows * classes + labels)  # every class of a row once
    rows, labels = pairs // classes, pairs % classes
    having = torch.bincount(labels, minlength=classes)  # rows
    nothing = torch.iinfo(torch.int64).max
    shared = torch.ones(classes, dtype=torch.bool)
    while True:
        use = shared[labels]
        key = having[labels] * classes + labels
        rank = torch.full((count,), nothing).scatter_reduce(0, rows[use], key[use], "amin")
        kinds = torch.where(rank == nothing, classes, rank % classes)
        alone = torch.bincount(kinds, minlength=classes + 1)[:classes] == 1
        if not alone.any():
            break
        shared &= ~alone
    counts = torch.bincount(kinds)
    if len(counts) > classes and counts[classes] == 1:  # joins the most common
        kinds[kinds == classes] = counts.argmax()
    return kinds


@dataclass(frozen=True)
class Transcripts(Target):
    """What was said, word by word; an empty text says that nothing was.

    >>> said = Column("text", ["a cat", "a dog"], "pets", "row {}".format)
    >>> Transcripts().describe(Transcripts().values(said))
    'texts of 5 characters each, 7 different ones'
    """

    role: ClassVar[str] = "text"
    usual: ClassVar[tuple[str, ...]] = (
        *("text", "transcript", "transcription", "transcripts", "sentence", "normalized_text"),
        *("utterance", "raw_text"),
    )

    def faults(self, column: Column) -> dict[int, str]:
        found = {}
        for row, cell in enumerate(column.cells):
            if cell is None:
                found[row] = f"has no text in column {column.name!r}"
            elif not isinstance(cell, str):
                found[row] = f"has {cell!r} in column {column.name!r}, which is no text"
        return found

    def values(self, column: Column) -> list[str]:
        """Each row's text as it stands, `(N,)`."""
        refuse_faults(self, column)
        return list(column.cells)

    def describe(self, values: list[str]) -> str:
        """
        >>> Transcripts().describe(["a cat", "", "yes"])
        'texts of 0 to 5 characters (1 empty), 7 different ones'
        """
        lengths = [len(text) for text in values]
        low, high = min(lengths), max(lengths)
        sizes = f"{low:,} characters each" if low == high else f"{low:,} to {high:,} characters"
        empty = sum(not text.strip() for text in values)
        sizes += f" ({empty:,} empty)" if empty else ""
        return f"texts of {sizes}, {len(set().union(*values)):,} different ones"


@dataclass(frozen=True)
class NoTarget(Target):
    """Nothing beside the input: raw text to continue, items to predict on."""

    role: ClassVar[str] = ""

    def faults(self, column: Column) -> dict[int, str]:
        return {}

    def values(self, column: Column) -> None:
        """None."""


def _whole(cell: Any) -> Any:
    """A whole number that a table keeps as a decimal, as a whole number.

    >>> _whole(1.0), _whole(0.5), _whole("1.0")
    (1, 0.5, '1.0')
    """
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell


def _is_label(cell: Any) -> bool:
    return isinstance(cell, int) or (isinstance(cell, str) and bool(cell.strip()))


def _other_names(column: Column, names: tuple[str, ...]) -> InputError:
    return InputError(
        f"{column.split} names its labels {column.class_names}, but expected are {names}; write "
        "both with the same names in the same order"
    )
