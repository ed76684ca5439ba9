"""Where data come from: anything labelled is opened by one call, and checked before work starts.

Images and audio stay encoded, `{"bytes", "path"}`, until `read` hands them to a decoder: no
torchcodec, no FFmpeg.
"""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from resbackbones.data.items import draws
from resbackbones.errors import InputError, nearest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    Where: TypeAlias = str | os.PathLike[str] | Dataset | DatasetDict

ROLES = ("input", "label", "group")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
# What columns are usually called. Where two fit, the user decides.
USUAL = {
    "image": ("image", "img", "picture", "photo"),
    "audio": ("audio", "speech", "sound", "wav"),
    "text": ("text", "sentence", "question", "content", "review", "utterance", "query", "tweet"),
    "label": ("label", "labels", "class", "category", "intent", "emotion", "target"),
    "group": ("speaker", "speaker_id", "client_id", "group", "group_id"),
}
FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"}
MEDIA = {
    "image": (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    "audio": (".wav", ".flac", ".ogg", ".mp3"),
}
HELD_OUT = 0.1  # the share of train that becomes validation where there is none
MIN_GROUPS = 10  # with fewer, one group is too large a share to hold out


@dataclass(frozen=True)
class Source:
    """One split of labelled data.

    Attributes:
        dataset: the rows. An image or audio column holds `{"bytes", "path"}`, not decoded.
        columns: role -> column: "input", "label" and, where items come in groups, "group".
        labels: label names; a label's number is its position.
        name: where it comes from and which split it is, for messages.
        numbers: `(N,)` each row's number in the split as it was opened; None while all are there.

    >>> from datasets import Dataset
    >>> pets = Dataset.from_dict({"text": ["woof", "purr", "meow"], "label": ["dog", "cat", "cat"]})
    >>> source = open_dataset(pets)
    >>> source.labels, source.label_ids()
    (('cat', 'dog'), tensor([1, 0, 0]))
    >>> source.select([2]).row_name(0)
    'row 2 of the given data set [train]'
    """

    dataset: "Dataset"
    columns: Mapping[str, str]
    labels: tuple[str, ...]
    name: str
    numbers: Tensor | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.dataset)

    def label_ids(self) -> Tensor:
        """Each row's label as its position in `labels`, int64 `(N,)`.

        Raises:
            InputError: a row without a label, or with one that `labels` lacks.
        """
        return _label_ids(self, _class_names(self.dataset, self.columns["label"]) is not None)

    def select(self, rows: Sequence[int] | Tensor) -> "Source":
        """The rows at these positions, in this order; `row_name` still names them as opened."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        numbers = rows if self.numbers is None else self.numbers[rows]
        return replace(self, dataset=self.dataset.select(rows.tolist()), numbers=numbers)

    def row_name(self, row: int) -> str:
        """What a person would look for: the file, or the row's number in the split as opened."""
        (value,) = _values(self.dataset, self.columns["input"], slice(row, row + 1))
        if isinstance(value, dict) and value["bytes"] is None and value["path"]:
            return value["path"]
        return f"row {row if self.numbers is None else int(self.numbers[row])} of {self.name}"


@dataclass(frozen=True)
class Splits:
    """Train, validation and test of one data set, with the same labels in the same order.

    `test` is None where there is none. `held_out` are the rows of the train split as opened that
    became the validation split, ascending; empty where the data came with one.
    """

    train: Source
    validation: Source
    test: Source | None
    held_out: tuple[int, ...] = ()


def open_dataset(
    where: "Where",
    split: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    *,
    kind: str | None = None,
) -> Source:
    """Open one split of labelled images, audio or text, and check its columns and labels.

    Args:
        where: one of
            - a folder of class folders of images or of audio, or of `train`, `validation`, `test`
              folders of them;
            - a Parquet, CSV, TSV or JSON Lines file, or a folder of them with the split in their
              names (without one, all are train); paths inside start at the file's folder;
            - a folder written by `save_to_disk`, a `Dataset`, a `DatasetDict`;
            - an id on the Hugging Face Hub, `id:configuration` where there are several.
        split: its name; by default the only split there is, or "train".
        columns: role ("input", "label", "group") -> column, for what type and usual names do not
            tell (None: find it). `{"group": ""}` says that the items come in no groups.
        kind: "image", "audio" or "text", where the data leave it open.

    Label names are those of the column's type, else of a list in `labels.json` beside the files,
    else the labels of the train split in sorted order.

    Raises:
        InputError: nothing to open there; a missing, wrong or ambiguous column; a missing, decimal
            or unknown label; fewer than two classes.
    """
    opened = _open(where, kind)
    if split is None:
        split = next(iter(opened.splits)) if len(opened.splits) == 1 else "train"
    return _source(opened, split, columns, kind)


def open_splits(
    where: "Where",
    columns: Mapping[str, str | None] | None = None,
    *,
    kind: str | None = None,
    train_limit: int | None = None,
) -> Splits:
    """Open train, validation and test, and check that they fit together.

    Without a validation split, 10 % of train become one, the same rows on every machine: at least
    one item a class, the classes' shares kept. Where the rows name ten or more groups (speakers),
    no group stands on both sides; a row that names none is a group of its own. A test split
    without a single label (hidden ones are -1 on the Hub) is left out, with a warning.

    Args:
        where, columns, kind: as for `open_dataset`; the columns of train hold for every split.
        train_limit: train on a random part of this many rows, the classes' shares kept. Validation
            is held out before, so it is the same for every limit.

    Raises:
        InputError: what `open_dataset` raises; an empty split; a class of one item where one is
            needed on both sides; a label that train lacks.
    """
    opened = _open(where, kind)
    train = _source(opened, "train", columns, kind)
    counts = torch.bincount(train.label_ids(), minlength=len(train.labels))
    if (classes := int((counts > 0).sum())) < 2:
        raise InputError(
            f"{train.name} has items of one class only ({train.labels[int(counts.argmax())]!r}); "
            "expected two or more to tell apart"
        )
    if train_limit is not None and train_limit < classes:
        raise InputError(
            f"a limit of {train_limit} training rows leaves some of the {classes} classes of "
            f"{train.name} without an item; use {classes} or more"
        )

    def other(split: str) -> Source:
        told = dict(train.columns)
        if told.get("group") not in opened.splits[split].column_names:
            told["group"] = ""  # only what is held out of train needs it
        source = _source(opened, split, told, kind)
        ids = source.label_ids()
        if (unknown := counts[ids] == 0).any():
            row = int(unknown.int().argmax())
            raise InputError(
                f"{source.row_name(row)} has the label {source.labels[ids[row]]!r}, of which "
                f"{train.name} has no item; add some there or remove it"
            )
        return source

    test = None
    if (name := opened.find("test")) is not None:
        if _is_unlabelled(opened.splits[name], train.columns["label"]):
            message = f"{opened.name} [{name}] has no labels: it is left out"
            warnings.warn(message, UserWarning, stacklevel=2)
        else:
            test = other(name)
    held_out: tuple[int, ...] = ()
    if (name := opened.find("validation")) is not None:
        validation = other(name)
    else:
        rows = _hold_out(train)
        rest = torch.ones(len(train), dtype=torch.bool)
        rest[rows] = False
        validation, train = train.select(rows), train.select(rest.nonzero().squeeze(1))
        held_out = tuple(rows.tolist())
    if train_limit is not None:
        train = train.select(_stratified(train.label_ids(), train_limit))
    return Splits(train, validation, test, held_out)


def joined(first: Source, second: Source) -> Source:
    """The rows of two splits of one data set, for a last training when nothing is left to choose.

    >>> from datasets import Dataset
    >>> rows = Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]})
    >>> source = open_dataset(rows)
    >>> both = joined(source.select([3, 2]), source.select([0]))
    >>> both.label_ids(), both.row_name(0)
    (tensor([1, 0, 0]), 'row 3 of the given data set [train]')
    """
    from datasets import concatenate_datasets

    dataset = concatenate_datasets([first.dataset, second.dataset])
    if first.name == second.name and first.numbers is not None and second.numbers is not None:
        return replace(first, dataset=dataset, numbers=torch.cat([first.numbers, second.numbers]))
    return replace(first, dataset=dataset, name=f"{first.name} + {second.name}", numbers=None)


def speaker_leak(train: Source, other: Source) -> float | None:
    """The share of `other`'s rows whose group (speaker) stands in `train` too: at 0, a result on
    `other` is one on people never heard. None where either names no groups."""
    if "group" not in train.columns or "group" not in other.columns:
        return None
    known = set(_values(train.dataset, train.columns["group"])) - {None}
    groups = _values(other.dataset, other.columns["group"])
    return sum(group in known for group in groups) / len(groups)


# Opening


@dataclass(frozen=True)
class _Opened:
    """Every split of a data set, before anything is known of the columns."""

    name: str
    splits: "dict[str, Dataset]"
    folder: Path = Path()  # where the relative paths in a column start
    labels: tuple[str, ...] | None = None  # of labels.json

    def find(self, split: str) -> str | None:
        """What this data set calls a split."""
        also = next((names for names in SPLITS.values() if split in names), ())
        return next((name for name in (split, *also) if name in self.splits), None)


def _open(where: Any, kind: str | None) -> _Opened:
    import datasets

    if kind is not None and kind not in ("text", *MEDIA):
        raise InputError(f"kind={kind!r} is not known; {nearest(kind, ('text', *MEDIA))}")
    if isinstance(where, datasets.Dataset):
        return _Opened("the given data set", {"train": where})
    if isinstance(where, datasets.DatasetDict):
        return _Opened("the given data set", {str(split): part for split, part in where.items()})
    if not isinstance(where, str | os.PathLike):
        raise InputError(
            f"a {type(where).__name__} is no source of data; give a path, the id of a set on the "
            "Hub, or a datasets.Dataset"
        )
    path = Path(where).expanduser()
    if path.is_file():
        return _open_files(path, {"train": [path]})
    if not path.is_dir():
        return _open_hub(str(where))
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        with _one_sentence(path):
            saved = datasets.load_from_disk(path)
        return replace(_open(saved, kind), name=str(path), folder=path)
    with _one_sentence(path):
        files = _data_files(path)
    return _open_files(path, files) if files else _open_folders(path, kind)


def _data_files(root: Path) -> dict[str, list[Path]]:
    """Split -> data files in a folder, in its `data` and in folders called like a split."""
    inner = [p for p in root.iterdir() if p.is_dir() and (p.name == "data" or _split_in(p.name))]
    files = sorted(
        file
        for folder in (root, *inner)
        for file in folder.iterdir()
        if file.suffix.lower() in FORMATS and file.name != "labels.json"
    )
    splits: dict[str, list[Path]] = {}
    for file in files:
        names = (file.stem, file.parent.name if file.parent in inner else "")
        if split := _split_in(names[0]) or _split_in(names[1]):
            splits.setdefault(split, []).append(file)
    return splits or ({"train": files} if files else {})


def _split_in(name: str) -> str | None:
    """The split that a file's or folder's name speaks of.

    >>> _split_in("my_dev-set"), _split_in("latest")
    ('validation', None)
    """
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, names in SPLITS.items() if words & set(names)), None)


def _open_files(where: Path, files: Mapping[str, list[Path]]) -> _Opened:
    import datasets

    splits = {}
    for split, paths in files.items():
        suffix = paths[0].suffix.lower()
        if suffix not in FORMATS or any(path.suffix.lower() != suffix for path in paths):
            raise InputError(
                f"{where} is not one set of {', '.join(FORMATS)} files (it has "
                f"{', '.join(path.name for path in paths[:4])}); give one file, or a folder of one "
                "format"
            )
        options: dict[str, Any] = {"data_files": [str(path) for path in paths]}
        if FORMATS[suffix] == "csv":
            # Only an empty cell is a missing one: "NA" and "null" are words.
            options |= {"keep_default_na": False, "na_values": [""]}
            options["sep"] = "\t" if suffix == ".tsv" else ","
        with _one_sentence(where):
            splits[split] = datasets.load_dataset(FORMATS[suffix], split="train", **options)
    folder = where if where.is_dir() else where.parent
    return _Opened(str(where), splits, folder, _labels_file(folder / "labels.json"))


def _labels_file(path: Path) -> tuple[str, ...] | None:
    if not path.exists():
        return None
    with _one_sentence(path):
        names = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(names, list) or len({str(name) for name in names}) < len(names):
            raise ValueError('expected a list of different names, like ["no", "yes"]')
    return tuple(map(str, names))


def _open_folders(root: Path, kind: str | None) -> _Opened:
    """The label is the folder right below the root, or right below a split's folder. (The builder
    of `datasets` wants torchcodec for audio, so the files are listed here.)"""
    import datasets

    found: dict[str, list[Path]] = {name: [] for name in MEDIA}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            for medium, suffixes in MEDIA.items():
                if file.suffix.lower() in suffixes and kind in (None, medium):
                    found[medium].append(file.relative_to(root))
    media = [name for name in MEDIA if found[name]]
    if len(media) != 1:
        what = "both images and audio" if media else f"no {kind or 'data'} files"
        endings = ", ".join(sum(MEDIA.values(), ()))
        raise InputError(
            f"{root} holds {what}; expected one folder a class of either images or audio "
            f"({endings}), or {', '.join(FORMATS)} files"
        )
    (medium,) = media
    tops = {file.parts[0] for file in found[medium] if len(file.parts) > 1}
    called = {top for top in tops if top in {name for names in SPLITS.values() for name in names}}
    if len(called) > 1 and tops != called:  # a single "train" may be a class beside "car"
        raise InputError(
            f"{root} has the class folder {min(tops - called)!r} beside the splits "
            f"{', '.join(sorted(called))}; keep splits or classes there, not both"
        )
    splits: dict[str, dict[str, list[str]]] = {}
    for file in found[medium]:
        *above, label = file.parts[: 2 if called == tops else 1]
        if len(file.parts) < 2 + len(above):
            raise InputError(
                f"{root / file} is in no class folder; put every file into a folder named after "
                "its class"
            )
        split = splits.setdefault("".join(above) or "train", {medium: [], "label": []})
        split[medium].append(str(file))
        split["label"].append(label)
    rows = {split: datasets.Dataset.from_dict(columns) for split, columns in splits.items()}
    return _Opened(str(root), rows, root)


def _open_hub(where: str) -> _Opened:
    import datasets
    import huggingface_hub as hub

    missing = f"there is no file or folder {where!r}"
    name, _, configuration = where.partition(":")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or name.endswith(tuple(FORMATS)):
        raise InputError(f"{missing}; give one that exists, or the id of a set on the Hub")
    try:
        if not hub.constants.HF_HUB_OFFLINE:
            # One question first: without a network the Hub's client tries for half a minute.
            hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=10)
        parts = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # of the network, the Hub, or any builder
        raise InputError(
            f"{missing}, and the Hugging Face Hub gives no set of that name ({_reason(error)}); "
            "give a path that exists, or the id of a set (HF_HUB_OFFLINE=1 opens one that was "
            "downloaded before)"
        ) from error
    return _Opened(where, {str(split): part for split, part in parts.items()})


@contextlib.contextmanager
def _one_sentence(where: Path) -> Iterator[None]:
    """Say in one sentence what could not be opened, without the log lines of `datasets`."""
    import datasets

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except Exception as error:
        reason = _reason(error.__cause__ or error)
        raise InputError(f"{where} cannot be opened ({reason}); repair or replace it") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


# Columns


def _source(
    opened: _Opened, split: str, told: Mapping[str, str | None] | None, kind: str | None
) -> Source:
    """One split with its columns found and its labels checked."""
    import datasets

    if (found := opened.find(split)) is None:
        known = ", ".join(map(repr, opened.splits))
        raise InputError(f"{opened.name} has no {split!r} split; name one of {known}")
    name, dataset = f"{opened.name} [{found}]", opened.splits[found]
    if not len(dataset):
        raise InputError(f"{name} is empty; give it at least one row a class")
    columns, kind = _find_columns(dataset, told or {}, kind, name)
    if kind in MEDIA:
        feature = {"image": datasets.Image, "audio": datasets.Audio}[kind](decode=False)
        dataset = _as_media(dataset, columns["input"], feature, opened.folder)
    source = reference = Source(dataset, columns, (), name)
    train = opened.find("train")  # every split numbers the labels as train does
    if train is not None and train != found:
        other = opened.splits[train]
        if {columns["input"], columns["label"]} <= set(other.column_names):
            reference = replace(source, dataset=other, name=f"{opened.name} [{train}]")
    labels, by_number = _label_names(reference, opened.labels)
    if len(labels) < 2:
        raise InputError(
            f"{reference.name} has one class only ({labels[0]!r}, in column {columns['label']!r}); "
            "expected two or more to tell apart"
        )
    if (own := _class_names(dataset, columns["label"])) not in (None, labels):
        raise InputError(
            f"{name} names its labels {own}, but {reference.name} names them {labels}; write both "
            "with the same names in the same order"
        )
    source = replace(source, labels=labels)
    ids = _label_ids(source, by_number)
    if by_number and own is None:
        names = datasets.ClassLabel(names=list(labels))
        dataset = dataset.remove_columns(columns["label"])
        dataset = dataset.add_column(columns["label"], ids.tolist(), feature=names)
        source = replace(source, dataset=dataset)
    return source


def _find_columns(
    dataset: "Dataset", told: Mapping[str, str | None], kind: str | None, name: str
) -> tuple[dict[str, str], str]:
    """Role -> column, and the kind of the input."""
    types = {column: type(feature).__name__ for column, feature in dataset.features.items()}
    types |= {c: dataset.features[c].dtype for c, t in types.items() if t == "Value"}
    listed = "its columns are " + ", ".join(f"{column!r} ({types[column]})" for column in types)
    for role, column in told.items():
        if role not in ROLES:
            raise InputError(f"{role!r} is no role of a column; {nearest(role, ROLES)}")
        if column and column not in types:
            raise InputError(f"{name} has no column {column!r} to use as {role}; {listed}")
    columns = {role: column for role, column in told.items() if column}

    def free() -> list[str]:
        return [column for column in types if column not in columns.values()]

    def usual(role: str) -> list[str]:
        return [column for column in free() if column.lower() in USUAL[role]]

    def choose(role: str, fitting: list[str], preferred: list[str]) -> str:
        if len(fitting) > 1:
            fitting = [column for column in fitting if column in preferred] or fitting
        if len(fitting) == 1:
            return fitting[0]
        several = f"several {role} columns ({', '.join(map(repr, fitting))})"
        raise InputError(
            f"{name} has {several if fitting else f'no {role} column'} to find by type or usual "
            f"name; {listed}, so say which to use"
        )

    if "label" not in columns:
        typed = [column for column in free() if types[column] == "ClassLabel"]
        fitting = [column for column in free() if column in typed + usual("label")]
        both = [column for column in typed if column in usual("label")]
        columns["label"] = choose("label", fitting, both)
    if not told.get("group") and told.get("group") != "" and usual("group"):
        columns["group"] = choose("group", usual("group"), [])
    if "input" in columns:
        if (found := _kind(dataset, columns["input"], kind)) is None:
            raise InputError(
                f"column {columns['input']!r} of {name} cannot be read as {kind or 'an input'}; "
                f"{listed}, so name another column or kind"
            )
        return columns, found
    kinds = {c: found for c in free() if (found := _kind(dataset, c, kind)) is not None}
    media = [column for column in kinds if kinds[column] in MEDIA]
    preferred = [column for column in kinds if column.lower() in USUAL[kinds[column]]]
    columns["input"] = choose(kind or "input", media or list(kinds), preferred)
    return columns, kinds[columns["input"]]


def _kind(dataset: "Dataset", column: str, wanted: str | None) -> str | None:
    """What a column can be read as; None when that is nothing, or not what is wanted."""
    feature = dataset.features[column]
    kind: str | None = type(feature).__name__.lower()
    if _is_string(feature):
        paths = [] if wanted == "text" else _values(dataset, column, slice(8))
        kind = _medium(paths) or "text"
    elif isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
        paths = [value["path"] for value in _values(dataset, column, slice(8)) if value]
        by_name = next((medium for medium in MEDIA if column.lower() in USUAL[medium]), None)
        kind = _medium(paths) or by_name or wanted
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


def _is_string(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _as_media(dataset: "Dataset", column: str, feature: Any, folder: Path) -> "Dataset":
    """The column as `{"bytes", "path"}`; the paths of a string column start at `folder`."""
    if _is_string(dataset.features[column]):
        paths = [path and os.path.join(folder, path) for path in _values(dataset, column)]
        dataset = dataset.remove_columns(column).add_column(column, paths)
    return dataset.cast_column(column, feature)


def _values(dataset: "Dataset", column: str, rows: slice = slice(None)) -> list[Any]:
    """Part of a column as plain values, nothing decoded."""
    return dataset.select_columns([column]).with_format("arrow")[rows].column(0).to_pylist()


# Labels


def _class_names(dataset: "Dataset", column: str) -> tuple[str, ...] | None:
    """The names a column's type holds, if it is a `ClassLabel`."""
    names = getattr(dataset.features[column], "names", None)
    return None if names is None else tuple(names)


def _label_names(train: Source, listed: tuple[str, ...] | None) -> tuple[tuple[str, ...], bool]:
    """The label names in order, and whether a number in the column is a position among them."""
    if names := _class_names(train.dataset, train.columns["label"]):
        return names, True
    values = _label_values(train)
    if listed is not None:
        return listed, isinstance(values[0], int)
    return tuple(str(value) for value in sorted(set(values))), False


def _label_values(source: Source) -> list[Any]:
    """The label column: whole numbers or strings, none missing."""
    column = source.columns["label"]
    values = _values(source.dataset, column)
    if None in values:
        raise InputError(
            f"{source.row_name(values.index(None))} has no label in column {column!r}; give it one "
            "or remove it"
        )
    if not isinstance(values[0], int | str):
        raise InputError(
            f"{source.row_name(0)} has the label {values[0]!r} in column {column!r}; expected a "
            "name or a whole number"
        )
    return values


def _label_ids(source: Source, by_number: bool) -> Tensor:
    values = _label_values(source)
    known = ", ".join(map(repr, source.labels[:12])) + ", …" * (len(source.labels) > 12)
    if by_number and isinstance(values[0], int):
        known = f"0 to {len(source.labels) - 1} ({known})"
        position: dict[Any, int] = {number: number for number in range(len(source.labels))}
    else:
        position = {name: number for number, name in enumerate(source.labels)}
        values = list(map(str, values))
    ids = [position.get(value, -1) for value in values]
    if -1 in ids:
        row = ids.index(-1)
        raise InputError(
            f"{source.row_name(row)} has the label {values[row]!r} in column "
            f"{source.columns['label']!r}; expected one of {known}"
        )
    return torch.tensor(ids)


def _is_unlabelled(dataset: "Dataset", column: str) -> bool:
    """Whether every label is missing or -1, as the Hub hides those of a test split."""
    if column not in dataset.column_names or not len(dataset):
        return False
    return set(_values(dataset, column)) <= {-1, None}


# Splits


def _hold_out(train: Source) -> Tensor:
    """The rows that become the validation split, ascending."""
    labels = train.label_ids()
    if (single := torch.bincount(labels) == 1).any():
        raise InputError(
            f"{train.name} has one item of the class {train.labels[int(single.int().argmax())]!r} "
            "and no validation split; give two or more, one to train on and one to hold out"
        )
    if "group" in train.columns:
        groups = _values(train.dataset, train.columns["group"])
        if len(set(groups) - {None}) >= MIN_GROUPS:
            return _grouped(train, labels.numpy(), groups)
    return _stratified(labels, round(HELD_OUT * len(labels)))


def _stratified(labels: Tensor, count: int) -> Tensor:
    """`count` random rows, or one a class where that is more, the classes' shares kept."""
    order = draws(0, 0, torch.arange(len(labels)), 1)[:, 0].argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # by class, at random inside
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
    place = (rank + 0.5).double() / sizes[labels[order]]  # the lowest n: the same share of each
    place[rank == 0] = 0
    count = max(count, int((sizes > 0).sum()))
    return order[place.argsort(stable=True)[:count]].sort().values


def _grouped(train: Source, labels: np.ndarray, groups: list[Any]) -> Tensor:
    """Whole groups, taken at random while they bring the held-out count of every class closer to
    its share, and then for any class that is still missing."""
    keys = [("", row) if group is None else (str(group), -1) for row, group in enumerate(groups)]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    group_of = np.array([numbers[key] for key in keys])
    names, label_of = np.unique(labels, return_inverse=True)
    members = np.zeros((len(numbers), len(names)))
    np.add.at(members, (group_of, label_of), 1)
    total = members.sum(0)
    target = np.maximum(1, HELD_OUT * total)
    held = np.zeros(len(names))
    taken: list[int] = []

    def distance(counts: np.ndarray) -> float:
        return float((((counts - target) / target) ** 2).sum())

    def leaves_some(group: int) -> bool:
        return bool((held + members[group] < total).all())

    for group in draws(0, 0, torch.arange(len(numbers)), 1)[:, 0].argsort(stable=True).tolist():
        if leaves_some(group) and distance(held + members[group]) < distance(held):
            held = held + members[group]
            taken.append(group)
    while not held.all():
        label = int(held.argmin())
        fitting = [g for g in range(len(numbers)) if members[g, label] and leaves_some(g)]
        if not fitting:
            raise InputError(
                f"the class {train.labels[names[label]]!r} of {train.name} cannot be both in train "
                f"and in validation with no group (column {train.columns['group']!r}) in both; "
                'give a validation split, or ignore the groups with columns={"group": ""}'
            )
        group = min(fitting, key=lambda g: distance(held + members[g]))
        held = held + members[group]
        taken.append(group)
    return torch.from_numpy(np.flatnonzero(np.isin(group_of, taken)))
