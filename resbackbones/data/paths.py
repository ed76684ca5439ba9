"""What everything that opens paths shares: names of splits and files, and how a refusal reads.

Nothing is opened here but lists of names.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resbackbones.data.columns import MEDIA
from resbackbones.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
FORMATS = {
    **{".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"},
    **{".csv.gz": "csv", ".tsv.gz": "csv", ".jsonl.gz": "json", ".json.gz": "json"},
}
TABLES = ".parquet, .csv, .tsv, .jsonl, .json (all but the first also .gz)"
TEXT = (".txt", ".txt.gz")
NAMES_FILES = ("classes.txt", "codes.txt", "class_names.txt", "obj.names", "labels.txt")
# What a file begins with that says its encoding; the longer first, which begins with a shorter.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
# What cameras, telephones and offices write and nothing here reads, and what to convert it to.
CONVERT = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), ".csv"),
    **dict.fromkeys((".heic", ".heif"), ".jpg"),
    **dict.fromkeys((".m4a", ".aac", ".wma", ".amr", ".mp4", ".webm", ".3gp"), ".wav"),
}


@dataclass(frozen=True)
class Asked:
    """How a path is to be opened.

    Attributes:
        kind: "image", "audio" or "text"; None for what is found.
        role: of the target: "label" for class folders, "" for nothing but inputs.
        separator, encoding: of CSV and text files; None to find it, None for UTF-8 or what a file's
            first bytes say.
    """

    kind: str | None
    role: str
    separator: str | None = None
    encoding: str | None = None


@dataclass(frozen=True)
class Opened:
    """Every split of a data set, before anything is known of the columns.

    Attributes:
        folder: where the relative paths in a column start.
        listed: the names of classes that a file lists, such as `labels.json`.
        notes: sentences on what was ignored or detected.
        hint: what else to say where a column is not found.
        in_files: whether each text is the content of the file in the column "file".
        in_lines: whether each text is a line of a file, without its end.
        lines: of splits that are CSV files, where their rows are.
    """

    name: str
    splits: "dict[str, Dataset]"
    folder: Path = Path()
    listed: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    hint: str = ""
    in_files: bool = False
    in_lines: bool = False
    lines: "Mapping[str, Lines]" = field(default_factory=dict)

    def find(self, split: str) -> str | None:
        """What this data set calls a split."""
        also = next((names for names in SPLITS.values() if split in names), ())
        return next((name for name in (split, *also) if name in self.splits), None)


def file_ending(path: Path) -> str:
    """What a file's name says of its format; "" where that is none of ours."""
    name = path.name.lower()
    return next((ending for ending in sorted(FORMATS, key=len)[::-1] if name.endswith(ending)), "")


def split_in(name: str) -> str | None:
    """The split that a file's or folder's name speaks of.

    >>> split_in("my_dev-set"), split_in("latest")
    ('validation', None)
    """
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, names in SPLITS.items() if words & set(names)), None)


def is_split(name: str) -> bool:
    return any(name in names for names in SPLITS.values())


def split_of(path: Path) -> str | None:
    """The split whose folder a file lies in.

    >>> split_of(Path("images/val/0.jpg")), split_of(Path("images/0.jpg"))
    ('validation', None)
    """
    folders = [part.lower().rstrip("0123456789") for part in path.parts[:-1]]  # train2017
    return next((split_in(folder) for folder in folders if is_split(folder)), None)


def walk(root: Path) -> list[Path]:
    """Every file that is not hidden, relative to the root, in order. A link to a folder that it
    stands in is not followed."""
    found: list[Path] = []

    def visit(folder: Path, above: tuple[str, ...]) -> None:
        above = (*above, os.path.realpath(root / folder))
        entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        inner = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                inner.append(entry)
            elif entry.is_file():
                found.append(folder / entry.name)
        for entry in inner:
            real = os.path.realpath(entry.path)
            if not any(Path(each).is_relative_to(real) for each in above):
                visit(folder / entry.name, above)

    visit(Path(), ())
    return found


def media_of(names: Iterable[str]) -> list[str]:
    """The media that the endings of file names speak of."""
    endings = {os.path.splitext(name)[1].lower() for name in names}
    return [medium for medium, known in MEDIA.items() if endings & set(known)]


def ignored(files: Iterable[Path]) -> Iterator[str]:
    """Files that are not read, counted by kind."""
    counts = Counter(file.suffix.lower() for file in files)
    for ending, count in sorted(counts.items()):
        what = f"{count:,} {ending or 'nameless'} file{'s are' if count > 1 else ' is'} ignored"
        convert = CONVERT.get(ending)
        yield f"{what} (convert to {convert} to use them)" if convert else what


def labels_file(folder: Path) -> tuple[str, ...] | None:
    path = folder / "labels.json"
    if not path.exists():
        return None
    with one_sentence(path):
        names = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(names, list) or len({str(name) for name in names}) < len(names):
            raise ValueError('expected a list of different names, like ["no", "yes"]')
    return tuple(map(str, names))


def listed_names(folder: Path) -> tuple[str, ...] | None:
    """The names of classes that a file beside the data lists: `labels.json`, else a text, one name
    per line."""
    for name in NAMES_FILES:
        if (path := folder / name).is_file():
            with one_sentence(path, [path]):
                names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
                return different([name for name in names if name], path)
    return labels_file(folder)


def different(names: Iterable[str], where: Path) -> tuple[str, ...]:
    """The names of classes, no two alike.

    Raises:
        InputError: two alike.
    """
    counts = Counter(names)
    if again := [name for name, count in counts.items() if count > 1]:
        raise InputError(
            f"{where} gives two classes the name {again[0]!r}; give every class a name of its own"
        )
    return tuple(counts)


def told(found: Sequence[Any], one: str, several: str) -> Iterator[str]:
    """A sentence on things that were found, the first named; none where there are none.

    >>> [*told(["a.jpg", "b.jpg"], "image is not there", "images are not there")]
    ['2 images are not there (the first: a.jpg)']
    """
    if len(found) > 1:
        yield f"{len(found):,} {several} (the first: {found[0]})"
    elif found:
        yield f"1 {one} ({found[0]})"


@dataclass(frozen=True)
class Lines:
    """Which line of which CSV file a row is on, as an editor counts them.

    Attributes:
        files: of one split, in the order of its rows.
        rows: how many there are.
        separator, encoding: of the files; None for UTF-8.
    """

    files: tuple[Path, ...]
    rows: int
    separator: str
    encoding: str | None

    def __call__(self, row: int) -> str | None:
        """Of a row from 0, "line 3 of reviews.csv"; None where lines are no rows as the table's
        reader counts them."""
        if len(self._places) != self.rows:
            return None
        file, line = self._places[row]
        return f"line {line} of {self.files[file]}"

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        """Of each row, its file and the line from 1 on which it begins."""
        most, found = csv.field_size_limit(2**31 - 1), []  # a cell may hold a book
        try:
            for number, path in enumerate(self.files):
                with io.TextIOWrapper(
                    binary(path), encoding=self.encoding or "utf-8-sig", newline=""
                ) as file:
                    reader, begins, names = csv.reader(file, delimiter=self.separator), 1, True
                    for cells in reader:
                        if not is_blank(cells):
                            found += [] if names else [(number, begins)]
                            names = False
                        begins = reader.line_num + 1
        finally:
            csv.field_size_limit(most)
        return found


def is_blank(cells: Sequence[str]) -> bool:
    """Whether a line of a CSV file is an empty one, and so no row."""
    return len(cells) < 2 and not "".join(cells).strip()


def binary(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")


def marked(paths: Sequence[Path]) -> str | None:
    """The encoding that the first bytes of all these files say they are in."""
    said = set()
    for path in paths:
        with binary(path) as file:
            head = file.read(4)
        said.add(next((name for mark, name in MARKS.items() if head.startswith(mark)), None))
    return said.pop() if len(said) == 1 else None


def read_text(path: Path, encoding: str | None) -> str:
    """The whole of a text file."""
    with io.TextIOWrapper(binary(path), encoding=encoding or "utf-8") as file:
        return file.read()


@contextlib.contextmanager
def one_sentence(
    where: Path, texts: Iterable[Path] = (), encoding: str | None = None
) -> Iterator[None]:
    """Say in one sentence what could not be opened, without the log lines of `datasets`; of texts,
    which line is not in the encoding (None: UTF-8), or is no JSON."""
    import datasets

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of pandas, pyarrow or the file system
        for path in texts:
            if sentence := _fault(path, encoding):
                raise InputError(sentence) from error
        why = reason(error.__cause__ or error)
        raise InputError(f"{where} cannot be opened ({why}); repair or replace it") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _fault(path: Path, encoding: str | None) -> str | None:
    """What is wrong with a text file, its first such line named."""
    ending = file_ending(path)
    if not ending.startswith((".csv", ".tsv", ".json")) and not path.name.endswith(TEXT):
        return None
    with binary(path) as file:
        content = file.read()
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding or "utf-8")
        others = "another with encoding (--encoding utf-8, --encoding cp1252)"
        if encoding is None:
            others = "what it is with encoding (--encoding latin-1, --encoding utf-16)"
        return (
            f"line {before.count(chr(10)) + 1} of {path} is not {encoding or 'UTF-8'}; say "
            f"{others}, or save the file as UTF-8"
        )
    for number, line in enumerate(text.split("\n") if ending.startswith(".jsonl") else (), 1):
        try:
            if line.strip():
                json.loads(line)
        except json.JSONDecodeError as error:
            return (
                f"{path} cannot be opened (line {number} is no JSON: {error.msg}); repair or "
                "remove the line"
            )
    return None


def reason(error: BaseException) -> str:
    """The first line of what an exception says, to stand in brackets."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
