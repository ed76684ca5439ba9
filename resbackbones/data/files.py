"""What lies at a path: tables, class folders, `metadata.csv` beside media, plain texts.

Nothing is decoded here, and no image or recording is read.
"""

import codecs
import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resbackbones.data.columns import MEDIA, as_media, media_columns, plain_values
from resbackbones.data.paths import (
    FORMATS,
    SPLITS,
    TABLES,
    TEXT,
    Asked,
    Lines,
    Opened,
    binary,
    file_ending,
    ignored,
    is_blank,
    is_split,
    labels_file,
    marked,
    media_of,
    one_sentence,
    read_text,
    split_in,
    told,
    walk,
)
from resbackbones.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

NOISE = "_background_noise_"  # a folder of Speech Commands, of long recordings without a word
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


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
        if not folders or any(media_columns(rows) for rows in opened.splits.values()):
            ignored = (f"{file.name} is ignored (no split in its name)" for file in unnamed)
            return replace(opened, notes=(*opened.notes, *ignored))
    return _open_folders(path, asked)


# Tables


def _split_folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and split_in(p.name))


def _data_files(root: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Split -> tables in a folder, in its `data` and in folders called like a split; and the tables
    left over because others name their split."""
    inner = [*_split_folders(root), *(p for p in [root / "data"] if p.is_dir())]
    files = sorted(
        file
        for folder in (root, *inner)
        for file in folder.iterdir()
        if file_ending(file)
        and file.is_file()
        and file.name != "labels.json"
        and file.name[0] != "."
    )
    splits: dict[str, list[Path]] = {}
    unnamed = []
    for file in files:
        names = (file.name, file.parent.name if file.parent in inner else "")
        if split := split_in(names[0]) or split_in(names[1]):
            splits.setdefault(split, []).append(file)
        else:
            unnamed.append(file)
    if not splits:
        return ({"train": files} if files else {}), []
    return splits, unnamed


def _open_tables(where: Path, files: Mapping[str, list[Path]], asked: Asked) -> Opened:
    import datasets

    splits: dict[str, Dataset] = {}
    notes: dict[str, None] = {}
    lines: dict[str, Lines] = {}
    for split, paths in files.items():
        ending = file_ending(paths[0])
        if not ending or any(file_ending(path) != ending for path in paths):
            raise InputError(
                f"{where} is not one set of {TABLES} files (it has "
                f"{', '.join(path.name for path in paths[:4])}); give one file, or a folder of one "
                "format"
            )
        options: dict[str, Any] = {"data_files": [str(path) for path in paths]}
        encoding = asked.encoding
        if FORMATS[ending] != "parquet":
            encoding = _encoding(where, paths, asked, notes)
            options |= {} if encoding is None else {"encoding": encoding}
        if FORMATS[ending] == "csv":
            # Only an empty cell is a missing one: "NA" and "null" are words.
            options |= {"keep_default_na": False, "na_values": [""]}
            usual = "\t" if ending.startswith(".tsv") else ","
            with one_sentence(where):
                options["sep"] = asked.separator or _separator(paths[0], usual, encoding)
            if asked.separator is None and options["sep"] != usual:
                said = f"The columns are separated by {SEPARATORS[options['sep']]}"
                notes[f"{said} ({options['sep']!r}, as detected)"] = None
        with one_sentence(where, paths, encoding):
            splits[split] = datasets.load_dataset(FORMATS[ending], split="train", **options)
            if FORMATS[ending] == "json":  # whose reader takes any bytes for text
                splits[split].data.validate(full=True)
        if FORMATS[ending] == "csv":
            lines[split] = Lines(tuple(paths), len(splits[split]), options["sep"], encoding)
    folder = where if where.is_dir() else where.parent
    hint = ""
    if any(FORMATS[file_ending(path)] == "csv" for paths in files.values() for path in paths):
        hint = (
            " (their names are the first line of the file: put such a line there, like "
            "text,label, if it starts with a row)"
        )
    listed = labels_file(folder)
    return Opened(str(where), splits, folder, listed, tuple(notes), hint, lines=lines)


def _encoding(
    where: Path, paths: Sequence[Path], asked: Asked, notes: dict[str, None]
) -> str | None:
    """What texts are encoded in: as told, else as their first bytes say; None for plain UTF-8."""
    if asked.encoding is not None:
        return asked.encoding
    with one_sentence(where):
        found = marked(paths)
    if found not in (None, "utf-8-sig"):
        notes[f"The text is {found}, as its first bytes say"] = None
    return found


def _separator(path: Path, usual: str, encoding: str | None) -> str:
    """What stands between the columns: what cuts each of the first lines into the same number of
    cells, two or more; the usual where that is so, or where nothing is."""
    with binary(path) as file:
        head = file.read(1 << 16)
    whole = len(head) < 1 << 16
    text = codecs.getincrementaldecoder(encoding or "utf-8-sig")("replace").decode(head, whole)
    lines = text.splitlines()[: None if whole else -1]
    cells = {}
    for separator in (usual, *SEPARATORS):
        rows = islice(
            (row for row in csv.reader(lines, delimiter=separator) if not is_blank(row)), 20
        )
        counts = {len(row) for row in rows}
        cells[separator] = counts.pop() if len(counts) == 1 else 1
    if cells[usual] > 1:
        return usual
    best = max(cells, key=lambda separator: cells[separator])
    return best if cells[best] > 1 else usual


# Media beside a table of them


def _metadata_files(root: Path) -> list[Path]:
    """Each `metadata.csv` (or .jsonl, .parquet, …): of the splits' folders, else of the root."""
    for folders in (_split_folders(root), [root]):
        found = [
            file
            for folder in folders
            for file in sorted(folder.iterdir())
            if file_ending(file) and file.name.lower() == f"metadata{file_ending(file)}"
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
        media = media_of(map(str, names))
        if len(media) != 1 or asked.kind not in (None, *media):
            raise InputError(
                f"column 'file_name' of {path} names {' and '.join(media) or 'no image or audio'} "
                f"files ({names[0]!r} in row 1); expected {asked.kind or 'image or audio'} files "
                f"({', '.join(sum(MEDIA.values(), ()))})"
            )
        listed = {"file_name": media[0]}
        if asked.role == "mask":
            listed |= media_columns(rows)
        for column, medium in listed.items():
            files_of = plain_values(rows, column)
            used |= {Path(os.path.normpath(path.parent / name)) for name in files_of if name}
            rows = as_media(rows, column, medium, path.parent)
        # One table may speak of all splits, whose files lie in folders called like them.
        tops = [split_in(Path(name).parts[0]) if name else None for name in names]
        if path.parent != root or None in tops:
            split = None if path.parent == root else split_in(path.parent.name)
            parts.setdefault(split or "train", []).append(rows)
            continue
        for split in SPLITS:
            if split in tops:
                chosen = [row for row, top in enumerate(tops) if top == split]
                parts.setdefault(split, []).append(rows.select(chosen))
    with one_sentence(root):
        splits = {split: datasets.concatenate_datasets(each) for split, each in parts.items()}
    unused = [file for file in walk(root) if Path(os.path.normpath(root / file)) not in used]
    notes |= dict.fromkeys(ignored(unused))
    return Opened(str(root), splits, root, labels_file(root), tuple(notes))


# Folders


def _media_files(files: Iterable[Path], asked: Asked) -> dict[str, list[Path]]:
    """Medium -> its files; texts where there are no images and no audio."""
    found: dict[str, list[Path]] = {}
    for file in files:
        for medium in media_of([file.name]):
            if asked.kind in (None, medium):
                found.setdefault(medium, []).append(file)
    texts = [file for file in files if file.name.lower().endswith(TEXT)]
    return found or ({"text": texts} if texts and asked.kind in (None, "text") else {})


def _has_class_folders(root: Path, asked: Asked) -> bool:
    """Whether images or audio lie in two or more folders, and none outside."""
    found = _media_files(walk(root), asked)
    media = [file for medium in found if medium in MEDIA for file in found[medium]]
    tops = {file.parts[0] for file in media if len(file.parts) > 1}
    depth = 2 if tops and all(is_split(top) for top in tops) else 1
    labels = {file.parts[depth - 1] for file in media if len(file.parts) > depth}
    return len(labels) > 1 and all(len(file.parts) > depth for file in media)


def _open_folders(root: Path, asked: Asked) -> Opened:
    """The label is a folder below the root or below a split's; which one, `_class_folders` says.
    (The builder of `datasets` wants torchcodec for audio, so the files are listed here.)"""
    import datasets

    with one_sentence(root):
        files = walk(root)
    found = _media_files(files, asked)
    used = {file for each in found.values() for file in each}
    lists, of_lists = _split_lists(root, files, used)
    rest = {*files} - used - lists - {file for file in files if file.name == "labels.json"}
    notes = tuple(ignored(rest))
    if len(found) != 1:
        what = "both images and audio" if found else f"no {asked.kind or 'data'} files"
        endings = ", ".join(sum(MEDIA.values(), ()))
        raise InputError(
            f"{root} holds {what}{f' ({notes[0]})' if notes else ''}; expected one folder per "
            f"class of either images or audio ({endings}) or texts (.txt), or {TABLES} files"
        )
    ((medium, media),) = found.items()
    noise = [file for file in media if medium == "audio" and NOISE in file.parts]
    if asked.role == "label" and 0 < len(noise) < len(media):
        media = [file for file in media if NOISE not in file.parts]
        why = "of no class, and left out"
        one, several = f"recording in {NOISE} is {why}", f"recordings in {NOISE} are {why}"
        notes = (*notes, *told(noise, one, several))
    if medium == "text" and not asked.role:
        parts: dict[str, list[Path]] = {}
        for file in media:
            split = split_in(file.name) or split_in(file.parts[0]) or "train"
            parts.setdefault(split, []).append(root / file)
        opened = _open_texts(root, parts, asked)
        return replace(opened, notes=(*notes, *opened.notes))
    outer = _outer(media) if asked.role == "label" else 0
    tops = {file.parts[outer] for file in media if len(file.parts) > outer + 1}
    called = {top for top in tops if is_split(top)}
    if len(called) > 1 and tops != called:  # a single "train" may be a class beside "car"
        raise InputError(
            f"{root} has the class folder {min(tops - called)!r} beside the splits "
            f"{', '.join(sorted(called))}; keep splits or classes there, not both"
        )
    above = outer + (called == tops and bool(called))  # folders that say nothing of the class
    labels: dict[tuple[str, ...], str] = {}
    if asked.role == "label":
        if bare := next((file for file in media if len(file.parts) < above + 2), None):
            raise InputError(
                f"{root / bare} is in no class folder; put every file into a folder named after "
                "its class"
            )
        labels, said = _class_folders({file.parts[above:-1] for file in media})
        if outer:
            said = [f"The folders of classes are in {Path(*media[0].parts[:outer])}", *said]
        notes = (*notes, *said)
    rows: dict[str, dict[str, list[str]]] = {}
    said_of_texts: dict[str, None] = {}
    for file in media:
        split = "".join(file.parts[outer:above]) or of_lists.get(file, "train")
        part = rows.setdefault(split, {})
        if medium == "text":
            encoding = _encoding(root / file, [root / file], asked, said_of_texts)
            with one_sentence(root / file, [root / file], encoding):
                part.setdefault("text", []).append(read_text(root / file, encoding))
            part.setdefault("file", []).append(str(root / file))
        else:
            part.setdefault(medium, []).append(str(file))
        if asked.role == "label":
            part.setdefault("label", []).append(labels[file.parts[above:-1]])
    tables = {split: datasets.Dataset.from_dict(columns) for split, columns in rows.items()}
    listed, in_files = labels_file(root), medium == "text"
    return Opened(str(root), tables, root, listed, (*notes, *said_of_texts), in_files=in_files)


def _split_lists(
    root: Path, files: Sequence[Path], used: set[Path]
) -> tuple[set[Path], dict[Path, str]]:
    """Texts such as Speech Commands' `testing_list.txt`, a file of a split per line, and the split
    of each file that they name; a text that names anything else is none."""
    lists: set[Path] = set()
    splits: dict[Path, str] = {}
    for file in files:
        split = split_in(file.stem)
        if file in used or split is None or not file.name.lower().endswith("_list.txt"):
            continue
        with one_sentence(root / file, [root / file]):
            lines = (root / file).read_text(encoding="utf-8").splitlines()
        named = [file.parent / line.strip() for line in lines if line.strip()]
        if named and used.issuperset(named):
            lists.add(file)
            splits |= dict.fromkeys(named, split)
    return lists, splits


def _outer(files: Sequence[Path]) -> int:
    """How many folders hold nothing but one folder each, above the splits or classes.

    >>> _outer([Path("pics/red/0.png"), Path("pics/blue/0.png")]), _outer([Path("red/0.png")])
    (1, 0)
    """
    depth = 0
    while all(len(file.parts) > depth + 2 for file in files):
        (top, *others) = {file.parts[depth] for file in files}
        if others or is_split(top):
            break
        depth += 1
    return depth


def _class_folders(folders: set[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], str], list[str]]:
    """Folder of files -> its class, and what is to be said of that.

    A class's folder is the first on the way down that holds files itself. Its name is the class
    where all such folders are equally deep and no two are called alike (animals/cats, plants/ivy);
    else folders below the first divide a class (cats/monday, dogs/monday).

    >>> _class_folders({("cats",), ("cats", "more"), ("dogs",)})[0][("cats", "more")]
    'cats'
    >>> _class_folders({("animals", "cats"), ("plants", "ivy")})[0].values()
    dict_values(['cats', 'ivy'])
    """
    holder = {
        folder: next(
            folder[:depth] for depth in range(1, len(folder) + 1) if folder[:depth] in folders
        )
        for folder in sorted(folders)
    }
    holders = sorted(set(holder.values()))
    depths, names = {len(each) for each in holders}, {each[-1] for each in holders}
    if depths == {1} or len(depths) > 1 or len(names) < len(holders):
        deep = max(holders, key=len)
        said = [f"Folders below the first divide a class ({'/'.join(deep)} is of {deep[0]!r})"]
        return {folder: folder[0] for folder in holder}, said if len(deep) > 1 else []
    said = [
        f"The classes are the folders {depths.pop()} levels down, such as {'/'.join(holders[0])}"
    ]
    return {folder: each[-1] for folder, each in holder.items()}, said


def _open_texts(where: Path, files: Mapping[str, list[Path]], asked: Asked) -> Opened:
    """Plain texts, one row per line."""
    import datasets

    splits = {}
    notes: dict[str, None] = {}
    for split, paths in files.items():
        names = [str(path) for path in paths]
        encoding = _encoding(where, paths, asked, notes)
        if not any(path.stat().st_size for path in paths):
            raise InputError(f"{', '.join(names)} is empty; give a file with text")
        with one_sentence(where, paths, encoding):
            splits[split] = datasets.load_dataset(
                "text", split="train", data_files=names, encoding=encoding or "utf-8"
            )
    hint = " (a plain text is one row per line)"
    return Opened(str(where), splits, where, notes=tuple(notes), hint=hint, in_lines=True)
