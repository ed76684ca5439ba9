"""`Source`: rows with their roles; the columns of a table, found or told."""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pyarrow.compute
import torch
from torch import Tensor

from resbackbones.data.items import fingerprint
from resbackbones.data.targets import Column, Target
from resbackbones.data.waves import encode_waves, holds_waves
from resbackbones.errors import InputError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

# What columns are usually called, in lower case. Where two fit, the user decides.
USUAL = {
    "image": ("image", "img", "picture", "photo"),
    "audio": ("audio", "speech", "sound", "wav"),
    "text": (
        *("text", "sentence", "question", "content", "review", "utterance", "query", "tweet"),
        *("document", "message", "phrase", "headline"),
    ),
    "group": ("speaker", "speaker_id", "client_id", "group", "group_id"),
    "start": ("start", "start_time"),
    "end": ("end", "end_time"),
}
MEDIA = {
    "image": (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    "audio": (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aif", ".aiff"),
}
ORIENTATION = 0x0112  # of EXIF
SPAN = ("start", "end")  # of what is wanted of a recording, in seconds
SIDES = ("width", "height")  # of an image; also what their columns are called
ROWS_READ = 1000  # whose content enters a fingerprint


@dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
        dataset: the rows. An image or audio column holds `{"bytes", "path"}`, not decoded.
        columns: role -> column: "input", the target's role and, where items come in groups,
            "group"; "pair" of the second texts where an item is two; "width" and "height" for a
            target that needs the images' sizes; "start" and "end", in seconds, where an item is a
            part of a recording; "file" where a text is the content of a file.
        target: what is to be predicted.
        name: where it comes from and which split it is, for messages.
        numbers: `(N,)` each row's number in the split as it was opened, from 0; None while all are
            there.
        place: from such a number to where a person finds the row, "line 3 of reviews.csv"; it may
            not know. None where there is no such place.
        in_lines: whether the rows are the lines of a text, without their ends.

    >>> from datasets import Dataset
    >>> from resbackbones.data import open_dataset
    >>> pets = Dataset.from_dict({"text": ["woof", "purr", "meow"], "label": ["dog", "cat", "cat"]})
    >>> source = open_dataset(pets)
    >>> source.target.names, source.targets()
    (('cat', 'dog'), tensor([1, 0, 0]))
    >>> source.select([2]).row_name(0)
    'row 3 of the given data set [train]'
    """

    dataset: "Dataset"
    columns: Mapping[str, str]
    target: Target
    name: str
    numbers: Tensor | None = field(default=None, compare=False, repr=False)
    place: Callable[[int], str | None] | None = field(default=None, compare=False, repr=False)
    in_lines: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The roles of what an item is told by: "input" and, where it is two texts, "pair"."""
        return ("input", "pair") if "pair" in self.columns else ("input",)

    @property
    def span(self) -> tuple[str, ...]:
        """The roles that say which part of a recording is wanted: of "start" and "end"."""
        return tuple(role for role in SPAN if role in self.columns)

    def __len__(self) -> int:
        return len(self.dataset)

    def targets(self) -> Any:
        """What is to be predicted for each row, as `target.values` gives it: int64 `(N,)` of
        `Classes`, float32 `(N, K)` of `Labels`, N strings of `Transcripts`, N dicts of `Boxes` and
        `Masks`, None of `NoTarget`.

        Raises:
            InputError: a row whose cell is no such target.
        """
        return self.target.values(self.column())

    def column(self, listed: tuple[str, ...] | None = None) -> Column:
        """The target's column; `listed`: the names in `labels.json`."""
        if not self.target.role:
            return Column("", (), self.name, self.row_name)
        name = self.columns[self.target.role]
        cells: Sequence[Any]
        if self.target.encoded or self.target.sized:
            cells = Cells(self.dataset, name)
        else:
            cells = [None if cell != cell else cell for cell in plain_values(self.dataset, name)]
        names = self.target.class_names(self.dataset.features[name])
        sizes = None
        if self.target.sized:
            sides = (plain_values(self.dataset, self.columns[side]) for side in SIDES)
            sizes = [(w, h) if w and h else None for w, h in zip(*sides, strict=True)]
        return Column(name, cells, self.name, self.row_name, names, listed, sizes)

    def remarks(self) -> tuple[str, ...]:
        """Sentences on what the target leaves out or changes of its column."""
        return self.target.remarks(self.column())

    def select(self, rows: Sequence[int] | Tensor) -> "Source":
        """The rows at these positions, in this order; `row_name` still names them as opened."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        numbers = rows if self.numbers is None else self.numbers[rows]
        return replace(self, dataset=self.dataset.select(rows.tolist()), numbers=numbers)

    def row_name(self, row: int) -> str:
        """What a person would look for: the file, the line in the table, or the row's number, from
        1, in the split as opened."""
        column = self.columns.get("file", self.columns["input"])
        (value,) = plain_values(self.dataset, column, slice(row, row + 1))
        if "file" in self.columns:
            return value
        if isinstance(value, dict) and value["bytes"] is None and value["path"]:
            return value["path"] + self._span(row)
        number = row if self.numbers is None else int(self.numbers[row])
        return (self.place and self.place(number)) or f"row {number + 1} of {self.name}"

    def _span(self, row: int) -> str:
        """ " from 1.5 to 3 s" where an item is a part of a recording."""
        here = slice(row, row + 1)
        said = {role: plain_values(self.dataset, self.columns[role], here)[0] for role in self.span}
        said = {role: cell for role, cell in said.items() if cell is not None and cell == cell}
        words = {"start": "from", "end": "to"}
        return "".join(f" {words[role]} {cell}" for role, cell in said.items()) + " s" * bool(said)

    def sizes(self, role: str = "input") -> np.ndarray:
        """Bytes of each row's input, or encoded target, int64 `(N,)`; of none that is missing, -1.
        Nothing but the sizes is read."""
        sizes = []
        for cells in _chunks(self.dataset, self.columns[role]):
            if not pyarrow.types.is_struct(cells.type):
                part = pyarrow.compute.binary_length(cells).to_pylist()
            else:
                held = pyarrow.compute.struct_field(cells, "bytes")
                part = pyarrow.compute.binary_length(held).to_pylist()
                paths = pyarrow.compute.struct_field(cells, "path").to_pylist()
                part = [
                    os.path.getsize(path)
                    if size is None and path and os.path.isfile(path)
                    else size
                    for size, path in zip(part, paths, strict=True)
                ]
            sizes += [-1 if size is None else size for size in part]
        return np.array(sizes, dtype=np.int64)

    def contents(
        self, rows: Sequence[int], most: int | None = None, role: str = "input"
    ) -> Iterator[bytes]:
        """These rows' inputs, or encoded targets, as they are kept, one after the other: the bytes
        of a file or of a text; b"" where it is missing. `most`: no more than so many bytes, from
        the middle."""
        for cells in _chunks(self.dataset.select(rows), self.columns[role]):
            for cell in cells:
                in_file = pyarrow.types.is_struct(cell.type) and cell.is_valid
                held = cell["bytes"] if in_file else cell
                if held.is_valid:
                    buffer = memoryview(held.as_buffer())
                    start = 0 if most is None else max(0, (len(buffer) - most) // 2)
                    yield bytes(buffer[start : None if most is None else start + most])
                elif in_file and (path := cell["path"].as_py()) and os.path.isfile(path):
                    with open(path, "rb") as file:
                        if most is not None:
                            file.seek(max(0, (os.path.getsize(path) - most) // 2))
                        yield file.read(most)
                else:
                    yield b""

    def fingerprint(self) -> str:
        """sha256, in hexadecimal, over the columns, the targets, the rows' numbers and sizes, and
        the content of up to 1,000 rows evenly spread. The same wherever the files lie."""
        numbers = torch.arange(len(self)) if self.numbers is None else self.numbers
        is_encoded = self.target.encoded  # then a target is told as an input is
        targets = None if is_encoded else self.targets()
        told = [sorted(self.columns.items()), repr(self.target), targets, numbers, self.sizes()]
        told += [plain_values(self.dataset, self.columns[role]) for role in self.span]
        read = min(ROWS_READ, len(self))
        rows = [number * len(self) // read for number in range(read)]
        parts: list[Iterator[bytes | str]] = [_flat(told), self.contents(rows)]
        for role in [self.target.role] * is_encoded + ["pair"] * ("pair" in self.columns):
            parts += [_flat(self.sizes(role)), self.contents(rows, role=role)]
        return fingerprint(chain(*parts))


class Cells(Sequence[Any]):
    """The plain values of a column that is large or nested, read when they are asked for."""

    def __init__(self, dataset: "Dataset", column: str) -> None:
        self._table = dataset.select_columns([column]).with_format("arrow")

    def __len__(self) -> int:
        return len(self._table)

    def arrow(self) -> Any:
        """All of them as one Arrow array."""
        return self._table[:].column(0).combine_chunks()

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self._table[row].column(0).to_pylist()
        (value,) = self._table[[row]].column(0).to_pylist()
        return value

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), 64):
            yield from self[start : start + 64]


def plain_values(dataset: "Dataset", column: str, rows: slice = slice(None)) -> list[Any]:
    """Part of a column as plain values, nothing decoded."""
    return dataset.select_columns([column]).with_format("arrow")[rows].column(0).to_pylist()


def _chunks(dataset: "Dataset", column: str, size: int = 1024) -> Iterator[Any]:
    """A column as Arrow arrays of up to `size` cells; none is copied."""
    table = dataset.select_columns([column]).with_format("arrow")
    for start in range(0, len(dataset), size):
        yield table[start : start + size].column(0)


def _flat(value: Any) -> Iterator[bytes | str]:
    """A value as parts for a fingerprint, no two different ones alike."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        yield f"{value.dtype.str} {value.shape}"
        yield value.tobytes()
    elif isinstance(value, Mapping):
        yield from _flat(sorted(value.items()))
    elif isinstance(value, list | tuple):
        yield f"{len(value)} of"
        for each in value:
            yield from _flat(each)
    else:
        yield repr(value)


# Which column is what


def find_columns(
    dataset: "Dataset",
    told: Mapping[str, str | None],
    kind: str | None,
    target: Target,
    name: str,
    hint: str = "",
) -> tuple[dict[str, str], str]:
    """Role -> column, and the kind of the input.

    Args:
        told: role -> column, None to find it, "" for none; names are matched as `_match` does.
        kind: "image", "audio" or "text", None to find it.
        name, hint: the split's name, and what else to say where a column is not found.

    Raises:
        InputError: a missing, wrong or ambiguous column.
    """
    types = {column: type(feature).__name__ for column, feature in dataset.features.items()}
    for column in types:
        if types[column] == "Value":
            types[column] = dataset.features[column].dtype.removeprefix("large_")
    listed = "its columns are " + ", ".join(f"{column!r} ({types[column]})" for column in types)
    listed += hint
    roles = ("input", "pair", *filter(None, [target.role]), "group", *SPAN)
    roles += SIDES if target.sized else ()
    columns: dict[str, str] = {}
    for role, column in told.items():
        if role not in roles and (column or role != "label"):
            raise InputError(f"{role!r} is no role of a column; {nearest(role, roles)}")
        if column:
            if (match := _match(column, types)) is None:
                raise InputError(f"{name} has no column {column!r} to use as {role}; {listed}")
            columns[role] = match

    def free() -> list[str]:
        return [column for column in types if column not in columns.values()]

    def usual(names: Sequence[str]) -> list[str]:
        return [column for column in free() if column.strip().lower() in names]

    def choose(role: str, fitting: list[str], preferred: list[str]) -> str:
        if len(fitting) > 1:
            fitting = [column for column in fitting if column in preferred] or fitting
        if len(fitting) == 1:
            return fitting[0]
        several = f"several {role} columns ({', '.join(map(repr, fitting))})"
        found = several if fitting else f"no {role} column"
        role = role if role in roles else "input"
        flag = "label" if role == target.role else role
        raise InputError(
            f"{name} has {found} to find by type or usual name; {listed}, so say which to use "
            f"(columns={{{role!r}: …}}, or --{flag}-column)"
        )

    def unreadable(role: str) -> InputError:
        column = columns[role]
        holds = "numbers, and " if _is_number(dataset.features[column]) else ""
        holds = "values of several types, and " if types[column] == "Json" else holds
        return InputError(
            f"column {column!r} of {name} {'holds ' * bool(holds)}{holds}cannot be read as "
            f"{'text' if role == 'pair' else kind or 'an input'}; {listed}, so name another column "
            f"(--{role}-column) or kind"
        )

    def with_span(columns: dict[str, str], kind: str) -> dict[str, str]:
        """A table of paths may say which parts of the recordings it means; one that holds them
        holds those parts."""
        for role in SPAN:
            if kind != "audio" and role in columns:
                raise InputError(
                    f"column {columns[role]!r} of {name} is named as the {role} of a recording, "
                    f"but column {columns['input']!r} holds {kind}; leave it out"
                )
            paths = kind == "audio" and _is_string(dataset.features[columns["input"]])
            if paths and told.get(role) is None and (found := usual(USUAL[role])):
                columns[role] = choose(role, found, [])
        return columns

    if target.role and target.role not in columns:
        typed = [column for column in free() if target.typed(dataset.features[column])]
        known = usual(target.usual)
        fitting = [column for column in free() if column in typed or column in known]
        both = [column for column in typed if column in known]
        columns[target.role] = choose(target.role, fitting, both)
    if told.get("group") is None and (groups := usual(USUAL["group"])):
        columns["group"] = choose("group", groups, [])
    if "pair" in columns:
        if columns["pair"] == columns.get("input"):
            raise InputError(
                f"column {columns['pair']!r} of {name} is named as both texts of a pair; {listed}, "
                "so name two (--input-column, --pair-column)"
            )
        kind = "text"
        if _kind(dataset, columns["pair"], kind) is None:
            raise unreadable("pair")
    kinds = {c: found for c in free() if (found := _kind(dataset, c, kind)) is not None}
    if not kinds and (odd := usual(USUAL[kind or "text"])):  # such as a "text" of numbers
        columns.setdefault("input", odd[0])
    if "input" in columns:
        if (found := _kind(dataset, columns["input"], kind)) is None:
            raise unreadable("input")
        return with_span(columns, found), found
    media = [column for column in kinds if kinds[column] in MEDIA]
    preferred = [column for column in kinds if column.strip().lower() in USUAL[kinds[column]]]
    columns["input"] = choose(kind or "input", media or list(kinds), preferred)
    return with_span(columns, kinds[columns["input"]]), kinds[columns["input"]]


def _match(column: str, known: Sequence[str] | Mapping[str, Any]) -> str | None:
    """The column of this name, else the only one that differs in case or surrounding blanks alone.

    >>> _match("label", ["text", " Label"]), _match("label", ["Label", "LABEL"])
    (' Label', None)
    """
    if column in known:
        return column
    alike = [each for each in known if each.strip().lower() == column.strip().lower()]
    return alike[0] if len(alike) == 1 else None


def _kind(dataset: "Dataset", column: str, wanted: str | None) -> str | None:
    """What a column can be read as; None when that is nothing, or not what is wanted."""
    feature = dataset.features[column]
    kind: str | None = type(feature).__name__.lower()
    if _is_string(feature):
        paths = [] if wanted == "text" else plain_values(dataset, column, slice(8))
        kind = _medium(paths) or "text"
    elif isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
        paths = [value["path"] for value in plain_values(dataset, column, slice(8)) if value]
        by_name = next((m for m in MEDIA if column.strip().lower() in USUAL[m]), None)
        kind = _medium(paths) or by_name or wanted
    elif holds_waves(feature):
        called_so = column.strip().lower() in (*USUAL["audio"], "array")
        kind = "audio" if isinstance(feature, dict) or called_so or wanted == "audio" else None
    elif kind not in MEDIA:
        kind = None
    return kind if wanted in (None, kind) else None


def _medium(paths: list[str | None]) -> str | None:
    """What the endings of all these file names speak of."""
    named = [path.lower() for path in paths if path]
    for medium, endings in MEDIA.items():
        if named and all(path.endswith(endings) for path in named):
            return medium
    return None


def media_columns(dataset: "Dataset") -> dict[str, str]:
    """The columns that hold images or audio, or paths of them -> which."""
    kinds = {column: _kind(dataset, column, None) for column in dataset.column_names}
    return {column: kind for column, kind in kinds.items() if kind in MEDIA}


def _is_number(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float"))


def _is_string(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def with_sides(dataset: "Dataset", columns: dict[str, str]) -> tuple["Dataset", dict[str, str]]:
    """With a column each of the images' widths and heights in pixels: those that are there, else
    what the headers of the files say."""
    numeric = [c for c, f in dataset.features.items() if "int" in str(getattr(f, "dtype", ""))]
    found = {side: columns.get(side) or _match(side, numeric) for side in SIDES}
    if all(found.values()):
        return dataset, columns | {side: column for side, column in found.items() if column}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        sizes = list(pool.map(viewed_size, Cells(dataset, columns["input"])))
    for side, values in zip(SIDES, zip(*sizes, strict=True), strict=True):
        name = side if side not in dataset.column_names else f"{side} of the image"
        dataset = dataset.add_column(name, list(values))
        columns = {**columns, side: name}
    return dataset, columns


def image_header(value: Any) -> PIL.Image.Image:
    """An image in a data set, `{"bytes", "path"}`, with its header read alone."""
    file = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
    try:
        return PIL.Image.open(file)
    except PIL.UnidentifiedImageError as error:  # PIL's sentence has the address of the bytes
        raise PIL.UnidentifiedImageError("no image, or of a kind that PIL does not know") from error


def header_size(value: Any) -> tuple[int, int]:
    """Width and height of an image in a data set, turned upright."""
    with image_header(value) as image:
        # Where a PNG has no orientation, asking for it would decode the pixels.
        on_its_side = "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5
        return (image.height, image.width) if on_its_side else image.size


def viewed_size(value: Any) -> tuple[int, int] | tuple[None, None]:
    """The same, but None of an image that is missing or cannot be read: it is named when it is
    decoded.

    >>> viewed_size(None), viewed_size({"bytes": b"no image", "path": None})
    ((None, None), (None, None))
    """
    if value is None:
        return None, None
    try:
        return header_size(value)
    except (OSError, TypeError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return None, None


def as_media(dataset: "Dataset", column: str, kind: str, folder: Path) -> "Dataset":
    """The column as `{"bytes", "path"}`, not decoded; the paths of a string column start at
    `folder`, numbers become a WAV file each."""
    import datasets

    feature = {"image": datasets.Image, "audio": datasets.Audio}[kind](decode=False)
    if _is_string(dataset.features[column]):
        paths = [path and os.path.join(folder, path) for path in plain_values(dataset, column)]
        # Added before the other goes: a table without columns has no rows.
        dataset = dataset.rename_column(column, f"{column} as text").add_column(column, paths)
        dataset = dataset.remove_columns(f"{column} as text")
    elif kind == "audio" and holds_waves(dataset.features[column]):
        encoded = encode_waves(dataset, column)
        dataset = dataset.rename_column(column, f"{column} as numbers").add_column(column, encoded)
        dataset = dataset.remove_columns(f"{column} as numbers")
    return dataset.cast_column(column, feature)
