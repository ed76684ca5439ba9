"""What lies at a path: tables, class folders, `metadata.csv` beside media, plain texts.

Nothing is decoded here, and no image or recording is read.
"""

import codecs
import contextlib
import csv
import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resbackbones.data.columns import MEDIA, as_media, has_media, plain_values
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
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
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
        separator, encoding: of CSV and text files; None to find it, None for UTF-8.
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
        listed: the names in `labels.json`.
        notes: sentences on what was ignored or detected.
        hint: what else to say where a column is not found.
        in_files: whether each text is the content of the file in the column "file".
    """

    name: str
    splits: "dict[str, Dataset]"
    folder: Path = Path()
    listed: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    hint: str = ""
    in_files: bool = False

    def find(self, split: str) -> str | None:
        """What this data set calls a split."""
        also = next((names for names in SPLITS.values() if split in names), ())
        return next((name for name in (split, *also) if name in self.splits), None)


def open_path(path: Path, asked: Asked) -> Opened:
    """A file, or a folder in any of the layouts of `open_dataset`.

    Raises:
        InputError: nothing that can be opened.
    """
    if path.is_file():
        is_text = path.name.lower().endswith(TEXT)
        return (_open_texts if is_text else _open_tables)(path, {"train": [path]}, asked)
    with one_sentence(path):
        metadata, (tables, unnamed) = _metadata_files(path), _data_files(path)
        folders = asked.kind != "text" and asked.role == "label" and _has_class_folders(path, asked)
    if metadata and (opened := _open_metadata(path, metadata, asked)) is not None:
        return opened
    # A list of class names, or notes on the files, may lie beside class folders.
    names_only = all(".json" in file.suffixes for files in tables.values() for file in files)
    if tables and not (folders and names_only):
        opened = _open_tables(path, tables, asked)
        if not folders or any(has_media(rows) for rows in opened.splits.values()):
            ignored = (f"{file.name} is ignored (no split in its name)" for file in unnamed)
            return replace(opened, notes=(*opened.notes, *ignored))
    return _open_folders(path, asked)


# Tables


def _ending(path: Path) -> str:
    """What a file's name says of its format; "" where that is none of ours."""
    name = path.name.lower()
    return next((ending for ending in sorted(FORMATS, key=len)[::-1] if name.endswith(ending)), "")


def _split_folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and _split_in(p.name))


def _data_files(root: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Split -> tables in a folder, in its `data` and in folders called like a split; and the tables
    left over because others name their split."""
    inner = [*_split_folders(root), *(p for p in [root / "data"] if p.is_dir())]
    files = sorted(
        file
        for folder in (root, *inner)
        for file in folder.iterdir()
        if _ending(file) and file.is_file() and file.name != "labels.json" and file.name[0] != "."
    )
    splits: dict[str, list[Path]] = {}
    unnamed = []
    for file in files:
        names = (file.name, file.parent.name if file.parent in inner else "")
        if split := _split_in(names[0]) or _split_in(names[1]):
            splits.setdefault(split, []).append(file)
        else:
            unnamed.append(file)
    if not splits:
        return ({"train": files} if files else {}), []
    return splits, unnamed


def _split_in(name: str) -> str | None:
    """The split that a file's or folder's name speaks of.

    >>> _split_in("my_dev-set"), _split_in("latest")
    ('validation', None)
    """
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, names in SPLITS.items() if words & set(names)), None)


def _open_tables(where: Path, files: Mapping[str, list[Path]], asked: Asked) -> Opened:
    import datasets

    splits: dict[str, Dataset] = {}
    notes: dict[str, None] = {}
    for split, paths in files.items():
        ending = _ending(paths[0])
        if not ending or any(_ending(path) != ending for path in paths):
            raise InputError(
                f"{where} is not one set of {TABLES} files (it has "
                f"{', '.join(path.name for path in paths[:4])}); give one file, or a folder of one "
                "format"
            )
        options: dict[str, Any] = {"data_files": [str(path) for path in paths]}
        if FORMATS[ending] != "parquet" and asked.encoding is not None:
            options["encoding"] = asked.encoding
        if FORMATS[ending] == "csv":
            # Only an empty cell is a missing one: "NA" and "null" are words.
            options |= {"keep_default_na": False, "na_values": [""]}
            usual = "\t" if ending.startswith(".tsv") else ","
            with one_sentence(where):
                options["sep"] = asked.separator or _separator(paths[0], usual, asked.encoding)
            if asked.separator is None and options["sep"] != usual:
                said = f"The columns are separated by {SEPARATORS[options['sep']]}"
                notes[f"{said} ({options['sep']!r}, as detected)"] = None
        with one_sentence(where, paths if asked.encoding is None else ()):
            splits[split] = datasets.load_dataset(FORMATS[ending], split="train", **options)
            if FORMATS[ending] == "json":  # whose reader takes any bytes for text
                splits[split].data.validate(full=True)
    folder = where if where.is_dir() else where.parent
    hint = ""
    if any(FORMATS[_ending(path)] == "csv" for paths in files.values() for path in paths):
        hint = (
            " (their names are the first line of the file: put such a line there, like "
            "text,label, if it starts with a row)"
        )
    return Opened(str(where), splits, folder, _labels_file(folder), tuple(notes), hint)


def _separator(path: Path, usual: str, encoding: str | None) -> str:
    """What stands between the columns: what cuts each of the first lines into the same number of
    cells, two or more; the usual where that is so, or where nothing is."""
    with _binary(path) as file:
        head = file.read(1 << 16)
    whole = len(head) < 1 << 16
    text = codecs.getincrementaldecoder(encoding or "utf-8-sig")("replace").decode(head, whole)
    lines = text.splitlines()[: None if whole else -1]
    cells = {}
    for separator in (usual, *SEPARATORS):
        rows = [row for row in islice(csv.reader(lines, delimiter=separator), 20) if row]
        cells[separator] = len(rows[0]) if len({len(row) for row in rows}) == 1 else 1
    if cells[usual] > 1:
        return usual
    best = max(cells, key=lambda separator: cells[separator])
    return best if cells[best] > 1 else usual


def _binary(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")


def _labels_file(folder: Path) -> tuple[str, ...] | None:
    path = folder / "labels.json"
    if not path.exists():
        return None
    with one_sentence(path):
        names = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(names, list) or len({str(name) for name in names}) < len(names):
            raise ValueError('expected a list of different names, like ["no", "yes"]')
    return tuple(map(str, names))


# Media beside a table of them


def _metadata_files(root: Path) -> list[Path]:
    """Each `metadata.csv` (or .jsonl, .parquet, …): of the splits' folders, else of the root."""
    for folders in (_split_folders(root), [root]):
        found = [
            file
            for folder in folders
            for file in sorted(folder.iterdir())
            if _ending(file) and file.name.lower() == f"metadata{_ending(file)}"
        ]
        if found:
            return found
    return []


def _open_metadata(root: Path, files: list[Path], asked: Asked) -> Opened | None:
    """The Hub's layout: `file_name` says where the row's file lies, from the table's folder on.
    None where there is no such column: then these are tables like others."""
    import datasets

    parts: dict[str, list[Dataset]] = {}
    notes: dict[str, None] = {}
    used = {root / "labels.json", *files}
    for path in files:
        opened = _open_tables(path, {"train": [path]}, asked)
        rows = opened.splits["train"]
        notes |= dict.fromkeys(opened.notes)
        if "file_name" not in rows.column_names:
            return None
        names = plain_values(rows, "file_name")
        media = _media_of(map(str, names))
        if len(media) != 1 or asked.kind not in (None, *media):
            raise InputError(
                f"column 'file_name' of {path} names {' and '.join(media) or 'no image or audio'} "
                f"files ({names[0]!r} in row 1); expected {asked.kind or 'image or audio'} files "
                f"({', '.join(sum(MEDIA.values(), ()))})"
            )
        rows = as_media(rows, "file_name", media[0], path.parent)
        used |= {Path(os.path.normpath(path.parent / name)) for name in names if name}
        # One table may speak of all splits, whose files lie in folders called like them.
        tops = [_split_in(Path(name).parts[0]) if name else None for name in names]
        if path.parent != root or None in tops:
            split = None if path.parent == root else _split_in(path.parent.name)
            parts.setdefault(split or "train", []).append(rows)
            continue
        for split in SPLITS:
            if split in tops:
                chosen = [row for row, top in enumerate(tops) if top == split]
                parts.setdefault(split, []).append(rows.select(chosen))
    with one_sentence(root):
        splits = {split: datasets.concatenate_datasets(each) for split, each in parts.items()}
    unused = [file for file in _walk(root) if Path(os.path.normpath(root / file)) not in used]
    notes |= dict.fromkeys(_ignored(unused))
    return Opened(str(root), splits, root, _labels_file(root), tuple(notes))


def _media_of(names: Iterable[str]) -> list[str]:
    """The media that the endings of file names speak of."""
    endings = {os.path.splitext(name)[1].lower() for name in names}
    return [medium for medium, known in MEDIA.items() if endings & set(known)]


# Folders


def _walk(root: Path) -> list[Path]:
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


def _media_files(files: Iterable[Path], asked: Asked) -> dict[str, list[Path]]:
    """Medium -> its files; texts where there are no images and no audio."""
    found: dict[str, list[Path]] = {}
    for file in files:
        for medium in _media_of([file.name]):
            if asked.kind in (None, medium):
                found.setdefault(medium, []).append(file)
    texts = [file for file in files if file.name.lower().endswith(TEXT)]
    return found or ({"text": texts} if texts and asked.kind in (None, "text") else {})


def _has_class_folders(root: Path, asked: Asked) -> bool:
    """Whether images or audio lie in two or more folders, and none outside."""
    found = _media_files(_walk(root), asked)
    media = [file for medium in found if medium in MEDIA for file in found[medium]]
    tops = {file.parts[0] for file in media if len(file.parts) > 1}
    depth = 2 if tops and all(_is_split(top) for top in tops) else 1
    labels = {file.parts[depth - 1] for file in media if len(file.parts) > depth}
    return len(labels) > 1 and all(len(file.parts) > depth for file in media)


def _is_split(name: str) -> bool:
    return any(name in names for names in SPLITS.values())


def _open_folders(root: Path, asked: Asked) -> Opened:
    """The label is the folder right below the root, or right below a split's folder. (The builder
    of `datasets` wants torchcodec for audio, so the files are listed here.)"""
    import datasets

    with one_sentence(root):
        files = _walk(root)
    found = _media_files(files, asked)
    used = {file for each in found.values() for file in each}
    rest = [file for file in files if file not in used and file.name != "labels.json"]
    notes = tuple(_ignored(rest))
    if len(found) != 1:
        what = "both images and audio" if found else f"no {asked.kind or 'data'} files"
        endings = ", ".join(sum(MEDIA.values(), ()))
        raise InputError(
            f"{root} holds {what}{f' ({notes[0]})' if notes else ''}; expected one folder per "
            f"class of either images or audio ({endings}) or texts (.txt), or {TABLES} files"
        )
    ((medium, media),) = found.items()
    if medium == "text" and not asked.role:
        parts: dict[str, list[Path]] = {}
        for file in media:
            split = _split_in(file.name) or _split_in(file.parts[0]) or "train"
            parts.setdefault(split, []).append(root / file)
        return replace(_open_texts(root, parts, asked), notes=notes)
    tops = {file.parts[0] for file in media if len(file.parts) > 1}
    called = {top for top in tops if _is_split(top)}
    if len(called) > 1 and tops != called:  # a single "train" may be a class beside "car"
        raise InputError(
            f"{root} has the class folder {min(tops - called)!r} beside the splits "
            f"{', '.join(sorted(called))}; keep splits or classes there, not both"
        )
    rows: dict[str, dict[str, list[str]]] = {}
    for file in media:
        above = file.parts[: 1 if called == tops and called else 0]
        inside = file.parts[len(above) :]
        if asked.role == "label" and len(inside) < 2:
            raise InputError(
                f"{root / file} is in no class folder; put every file into a folder named after "
                "its class"
            )
        part = rows.setdefault("".join(above) or "train", {})
        if medium == "text":
            with one_sentence(root / file, [root / file] if asked.encoding is None else ()):
                text = (root / file).read_text(encoding=asked.encoding or "utf-8")
            part.setdefault("text", []).append(text)
            part.setdefault("file", []).append(str(root / file))
        else:
            part.setdefault(medium, []).append(str(file))
        if asked.role == "label":
            part.setdefault("label", []).append(inside[0])
    if asked.role == "label" and len(tops) == 1:
        _refuse_one_level_down(root, media)
    tables = {split: datasets.Dataset.from_dict(columns) for split, columns in rows.items()}
    listed, in_files = _labels_file(root), medium == "text"
    return Opened(str(root), tables, root, listed, notes, in_files=in_files)


def _refuse_one_level_down(root: Path, media: list[Path]) -> None:
    (top,) = {file.parts[0] for file in media}
    inner = sorted({file.parts[1] for file in media if len(file.parts) > 2})
    if not _is_split(top) and len(inner) > 1 and all(len(file.parts) > 2 for file in media):
        raise InputError(
            f"{root} has one class folder only ({top!r}); the classes seem to be one level down "
            f"({', '.join(map(repr, inner[:4]))}{', …' * (len(inner) > 4)}), so give {root / top}"
        )


def _open_texts(where: Path, files: Mapping[str, list[Path]], asked: Asked) -> Opened:
    """Plain texts, one row per line."""
    import datasets

    splits = {}
    for split, paths in files.items():
        names = [str(path) for path in paths]
        with one_sentence(where, paths if asked.encoding is None else ()):
            splits[split] = datasets.load_dataset(
                "text", split="train", data_files=names, encoding=asked.encoding or "utf-8"
            )
    return Opened(str(where), splits, where, hint=" (a plain text is one row per line)")


def _ignored(files: Iterable[Path]) -> Iterator[str]:
    """Files that are not read, counted by kind."""
    counts = Counter(file.suffix.lower() for file in files)
    for ending, count in sorted(counts.items()):
        what = f"{count:,} {ending or 'nameless'} file{'s are' if count > 1 else ' is'} ignored"
        convert = CONVERT.get(ending)
        yield f"{what} (convert to {convert} to use them)" if convert else what


# Errors


@contextlib.contextmanager
def one_sentence(where: Path, utf8: Iterable[Path] = ()) -> Iterator[None]:
    """Say in one sentence what could not be opened, without the log lines of `datasets`; of files
    that should be UTF-8, whether they are."""
    import datasets

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of pandas, pyarrow or the file system
        for path in utf8:
            if (line := _first_not_utf8(path)) is not None:
                raise InputError(
                    f"line {line} of {path} is not UTF-8; say what it is with encoding "
                    "(--encoding latin-1, --encoding utf-16), or save the file as UTF-8"
                ) from error
        why = reason(error.__cause__ or error)
        raise InputError(f"{where} cannot be opened ({why}); repair or replace it") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _first_not_utf8(path: Path) -> int | None:
    if not _ending(path).startswith((".csv", ".tsv", ".json")) and not path.name.endswith(TEXT):
        return None
    with _binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return None


def reason(error: BaseException) -> str:
    """The first line of what an exception says, to stand in brackets."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
