"""Where data come from: anything is opened by one call, and checked before work starts.

Images and audio stay encoded, `{"bytes", "path"}`, until `read` hands them to a decoder: no
torchcodec, no FFmpeg.
"""

import codecs
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from resbackbones.data.annotations import open_annotations
from resbackbones.data.columns import (
    MEDIA,
    SIDES,
    SPAN,
    Cells,
    Source,
    as_media,
    find_columns,
    plain_values,
    with_sides,
)
from resbackbones.data.files import open_path
from resbackbones.data.pairs import open_pairs
from resbackbones.data.paths import FORMATS, SPLITS, Asked, Opened, one_sentence, reason
from resbackbones.data.reading import check_on_bad
from resbackbones.data.splits import Splits, alone, hold_out, kinds, requires_kinds, stratified
from resbackbones.data.targets import Classes, NoTarget, Target, refusal, refuse_faults
from resbackbones.errors import InputError, nearest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    Where: TypeAlias = str | os.PathLike[str] | Dataset | DatasetDict


# What other files beside the images may say of a target, by its role; and what to expect there.
LAYOUTS: dict[str, Callable[[Path, Any], Opened | None]] = {
    "objects": lambda path, target: open_annotations(path, getattr(target, "masks", False)),
    "mask": lambda path, _: open_pairs(path),
}
HINTS = {
    "objects": " (beside images in files, boxes stand in COCO's JSON, Pascal VOC's XML, YOLO's "
    "texts or a metadata.jsonl)",
    "mask": " (beside images in files, masks stand in a folder such as 'masks', under the same "
    "names, or in a metadata.jsonl)",
}


def open_dataset(
    where: "Where",
    split: str | Sequence[str] | None = None,
    columns: Mapping[str, str | None] | None = None,
    target: Target | None = None,
    *,
    kind: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    group_pattern: str | None = None,
    on_bad: str = "error",
) -> Source:
    """Open one split of images, audio or text, and check its columns and what is to be predicted.

    Args:
        where: one of
            - a folder of class folders of images, of audio or of texts (.txt), or of `train`,
              `validation`, `test` folders of them; where classes lie deeper, the notes say so; a
              text such as `testing_list.txt` may name the files of a split, as in Speech Commands;
            - with `Boxes()`, images with COCO's JSON, Pascal VOC's XML (whose pixels count from 1)
              or YOLO's texts and `data.yaml`; or such a JSON or YAML file; an annotation of another
              size than its image has, as it is viewed, is a row that cannot be used;
            - with `Masks()`, images with masks of the same names (`cat.jpg`, `cat.png` or
              `cat_mask.png`), in folders such as `images` and `masks` or in one;
            - a folder, or such folders, of images or audio with a `metadata.csv` (.jsonl,
              .parquet) whose column `file_name` starts at its own folder, as on the Hub;
            - a Parquet, CSV, TSV or JSON Lines file (the last three also as .gz), or a folder of
              them with the split in their names (without one, all are train); paths inside start
              at the file's folder, and beside paths of recordings columns "start" and "end" name
              the part of each that is meant, in seconds;
            - a plain text (.txt), one row per line, or a folder of them, with `NoTarget()`;
            - a folder written by `save_to_disk`, a `Dataset`, a `DatasetDict`; recordings there may
              be `{"array", "sampling_rate"}`, or lists beside a column "sampling_rate";
            - an id on the Hugging Face Hub, `id:configuration` where there are several.
        split: its name; or several, of which the first that is there is opened, or the only split
            there is; by default that, or "train".
        columns: role ("input", "group", "start", "end" and the target's: "label", "text",
            "objects", "mask") -> column, for what type and usual names do not tell (None: find
            it). `{"group": ""}` says that the items come in no groups; `{"pair": …}` that they are
            pairs of texts, whose second ones stand there. Case and surrounding blanks do not
            matter.
        target: what is to be predicted; by default `Classes()`, whose names are those of the
            column's type, else of a list in `labels.json` beside the files, else the labels of the
            train split in sorted order. `Boxes` and `Masks` leave out or change what their
            `remarks` say, with a warning.
        kind: "image", "audio" or "text", where the data leave it open.
        separator: of a CSV file's columns; by default a comma (a tab in .tsv), or what of
            `, ; tab |` the first lines are cut by.
        encoding: of CSV, JSON and text files, such as "latin-1"; by default UTF-8, or UTF-16 where
            the first bytes of the file say so.
        group_pattern: a regular expression that finds an item's group in the path of its file, from
            the data set's folder on: what its first group matches (speaker_1.wav: `([^/_]+)_`).
        on_bad: "error" stops at the first row without a label or with one that cannot be; "skip"
            leaves such rows out, with a warning.

    Raises:
        InputError: nothing to open there; a missing, wrong or ambiguous column; a row that is no
            such target; fewer than two classes.
    """
    check_on_bad(on_bad)
    target = Classes() if target is None else target
    opened = _open(where, target, kind, separator, encoding)
    if not isinstance(split, str):
        wanted = ["train"] if split is None else split
        there = [name for name in wanted if opened.find(name)]
        split = next(iter(opened.splits if len(opened.splits) == 1 else [*there, *wanted]))
    source = reference = _source(opened, split, columns, kind, target, group_pattern)
    train = opened.find("train")  # every split numbers the classes as train does
    if train is not None and train != opened.find(split):
        other = opened.splits[train]
        if {source.columns[role] for role in ("input", target.role) if role} <= {*other.features}:
            reference = replace(source, dataset=other, name=f"{opened.name} [{train}]")
            if target.sized or target.encoded:
                told = {role: source.columns[role] for role in ("input", target.role)}
                reference = _source(opened, "train", {**told, "group": ""}, kind, target, None)
    if on_bad == "error":
        refuse_faults(target, reference.column())
    source = replace(source, target=target.learn(reference.column(opened.listed)))
    if on_bad == "error":
        refuse_faults(source.target, source.column())
    elif faults := source.target.faults(source.column()):
        first = min(faults)
        rest = [row for row in range(len(source)) if row not in faults]
        found = f"{len(faults):,} of the {len(source):,} rows of {source.name} cannot be used"
        found += f" ({source.row_name(first)} {faults[first]})"
        if not rest:
            raise InputError(f"{found}; give a split with others")
        warnings.warn(f"{found}; they are left out", UserWarning, stacklevel=2)
        source = source.select(rest)
    for remark in source.remarks():
        warnings.warn(remark, UserWarning, stacklevel=2)
    return source


def open_splits(
    where: "Where",
    columns: Mapping[str, str | None] | None = None,
    target: Target | None = None,
    *,
    kind: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    group_pattern: str | None = None,
    train_limit: int | None = None,
    on_bad: str = "error",
) -> Splits:
    """Open train, validation and test, and check that they fit together.

    Without a validation split, about 10 % of train become one, the same rows on every machine.
    Where the rows name ten or more groups (speakers), no group stands on both sides; a row that
    names none is a group of its own. Classes keep their shares, and each has at least one item on
    either side; without classes a hash of the row's number decides. Where an item has several
    classes (`Labels`, `Boxes`) its rarest one counts. A test split without a single label (hidden
    ones are -1 on the Hub) is left out, with a warning.

    Args:
        where, columns, target, kind, separator, encoding, group_pattern: as for `open_dataset`; the
            columns of train hold for every split.
        train_limit: train on a random part of this many rows, the classes' shares kept. Validation
            is held out before, so it is the same for every limit.
        on_bad: "error" stops at the first row without a label or with one that cannot be, and at
            the only row of a class where one is needed on both sides; "skip" leaves such rows out
            and lists them in `Splits.skipped`.

    Raises:
        InputError: what `open_dataset` raises; an empty split; a class of one item where one is
            needed on both sides; a label that train lacks.
    """
    check_on_bad(on_bad)
    target = Classes() if target is None else target
    opened = _open(where, target, kind, separator, encoding)
    skipped: list[str] = []

    def usable(source: Source, faults: Mapping[int, str], more: str = "") -> Source:
        """The rows without a fault; the others are refused or listed."""
        if not faults:
            return source
        if on_bad == "error":
            raise refusal(faults, source.row_name, more)
        skipped.extend(f"{source.row_name(row)}: it {faults[row]}" for row in sorted(faults))
        rest = [row for row in range(len(source)) if row not in faults]
        if not rest:
            raise InputError(f"not one row of {source.name} can be used ({skipped[-1]})")
        return source.select(rest)

    def learned(train: Source) -> Source:
        return replace(train, target=target.learn(train.column(opened.listed)))

    train = _source(opened, "train", columns, kind, target, group_pattern)
    train = learned(usable(train, target.faults(train.column())))
    train = usable(train, train.target.faults(train.column()))
    has_validation = opened.find("validation") is not None
    if not has_validation:
        why = f", and {train.name} has no validation split, so one is needed on either side"
        if lonely := alone(train):
            train = learned(usable(replace(train, target=target), lonely, why))
    counts = torch.bincount(kinds(train))
    required = requires_kinds(train)
    present = int((counts > 0).sum()) if required else 1
    if required and present < 2:
        raise InputError(
            f"every item of {train.name} is of the {train.target.stratum(len(counts) - 1)}; "
            "expected two or more kinds to tell apart"
        )
    if train_limit is not None and train_limit < present:
        raise InputError(
            f"a limit of {train_limit} training rows leaves some of the {present} classes of "
            f"{train.name} without an item; use {present} or more"
        )

    def other(split: str) -> Source:
        told: dict[str, str | None] = dict(train.columns)
        for role in ("file", *SIDES):
            told.pop(role, None)
        for role in SPAN:  # another split may hold whole recordings
            if told.get(role) not in opened.splits[split].column_names:
                told[role] = ""
        if told.get("group") not in opened.splits[split].column_names:
            told["group"] = ""  # only what is held out of train needs it
        source = _source(opened, split, told, kind, train.target, group_pattern)
        source = usable(source, source.target.faults(source.column()))
        unknown = {}
        for row, number in enumerate(kinds(source).tolist() if required else ()):
            if number >= len(counts) or not counts[number]:
                name = source.target.stratum(number)
                unknown[row] = f"is of the {name}, of which {train.name} has no item"
        return usable(source, unknown)

    test = None
    if (name := opened.find("test")) is not None:
        if _is_unlabelled(opened.splits[name], train):
            message = (
                f"{opened.name} [{name}] has no {target.role.removesuffix('s')}s: it is left out"
            )
            warnings.warn(message, UserWarning, stacklevel=2)
        else:
            test = other(name)
    held_out: tuple[int, ...] = ()
    how = ""
    whole = train
    if (name := opened.find("validation")) is not None:
        validation = other(name)
    else:
        rows, how = hold_out(train)
        rest = torch.ones(len(train), dtype=torch.bool)
        rest[rows] = False
        validation, train = train.select(rows), train.select(rest.nonzero().squeeze(1))
        assert validation.numbers is not None
        held_out = tuple(validation.numbers.tolist())
    if train_limit is not None:
        rows = stratified(kinds(train), train_limit)
        if len(rows) > train_limit and not required:  # more kinds than rows
            rows = stratified(torch.zeros(len(train), dtype=torch.int64), train_limit)
        train = train.select(rows)
    opened_sources = [whole, test] if held_out else [whole, validation, test]
    remarks = [r for source in opened_sources if source for r in source.remarks()]
    notes = (*opened.notes, *remarks)
    return Splits(train, validation, test, held_out, notes, tuple(skipped), how)


def open_unlabelled(
    where: "Where",
    column: str | None = None,
    *,
    kind: str,
    separator: str | None = None,
    encoding: str | None = None,
) -> dict[str, Source]:
    """Open inputs alone, as raw text: those of "train", "validation" and "test" that are there, or
    as "train" the only split there is. Nothing is held out.

    Args:
        where, separator, encoding: as for `open_dataset`; in a folder of texts each line is a row.
        column: of the inputs, where type and usual names do not tell.
        kind: "image", "audio" or "text".

    Raises:
        InputError: nothing to open there, no split to train on, an empty one, or a column that is
            missing, wrong or ambiguous.

    Warns:
        UserWarning: what was ignored, or found out, of the files.
    """
    target = NoTarget()
    opened = _open(where, target, kind, separator, encoding)
    for note in opened.notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    if len(opened.splits) == 1:
        opened = replace(opened, splits={"train": next(iter(opened.splits.values()))})
    told = {"input": column, "group": ""}
    train = _source(opened, "train", told, kind, target, None)
    others = [split for split in SPLITS if split != "train" and opened.find(split)]
    told["input"] = train.columns["input"]
    return {"train": train} | {s: _source(opened, s, told, kind, target, None) for s in others}


def _open(
    where: Any, target: Target, kind: str | None, separator: str | None, encoding: str | None
) -> Opened:
    import datasets

    if kind is not None and kind not in ("text", *MEDIA):
        raise InputError(f"kind={kind!r} is not known; {nearest(kind, ('text', *MEDIA))}")
    separator = {"\\t": "\t", "tab": "\t"}.get(separator or "", separator)
    if separator is not None and len(separator) != 1:
        raise InputError(
            f"separator={separator!r} is not one character; expected what stands between the "
            "columns, such as ';' or 'tab' (--separator)"
        )
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except LookupError as error:
            raise InputError(
                f"encoding={encoding!r} is not known; expected one such as 'latin-1', 'cp1252' or "
                "'utf-16' (--encoding)"
            ) from error
    if isinstance(where, datasets.Dataset):
        return Opened("the given data set", {"train": where})
    if isinstance(where, datasets.DatasetDict):
        return Opened("the given data set", {str(split): part for split, part in where.items()})
    if not isinstance(where, str | os.PathLike):
        raise InputError(
            f"a {type(where).__name__} is no source of data; give a path, the id of a set on the "
            "Hub, or a datasets.Dataset"
        )
    path = Path(where).expanduser()
    if not path.exists():
        return _open_hub(str(where))
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        with one_sentence(path):
            saved = datasets.load_from_disk(path)
        parts = {"train": saved} if isinstance(saved, datasets.Dataset) else saved
        return Opened(str(path), {str(split): part for split, part in parts.items()}, path)
    if kind in (None, "image") and (find := LAYOUTS.get(target.role)):
        if (opened := find(path, target)) is not None:
            return opened
    opened = open_path(path, Asked(kind, target.role, separator, encoding))
    return replace(opened, hint=opened.hint + HINTS.get(target.role, ""))


def _open_hub(where: str) -> Opened:
    import datasets
    import huggingface_hub as hub

    missing = f"there is no file or folder {where!r}"
    name, _, configuration = where.partition(":")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or name.endswith((*FORMATS, ".txt")):
        raise InputError(f"{missing}; give one that exists, or the id of a set on the Hub")
    try:
        if not hub.constants.HF_HUB_OFFLINE:
            # One question first: without a network the Hub's client tries for half a minute.
            hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=10)
        parts = datasets.load_dataset(name, configuration or None)
    except MemoryError:
        raise
    except Exception as error:  # of the network, the Hub, or any builder
        raise InputError(
            f"{missing}, and the Hugging Face Hub gives no set of that name ({reason(error)}); "
            "give a path that exists, or the id of a set (HF_HUB_OFFLINE=1 opens one that was "
            "downloaded before)"
        ) from error
    return Opened(where, {str(split): part for split, part in parts.items()})


def _source(
    opened: Opened,
    split: str,
    told: Mapping[str, str | None] | None,
    kind: str | None,
    target: Target,
    group_pattern: str | None,
) -> Source:
    """One split with its columns found; what is to be predicted is not checked yet."""
    if (found := opened.find(split)) is None:
        known = ", ".join(map(repr, opened.splits))
        raise InputError(f"{opened.name} has no {split!r} split; name one of {known}")
    name, dataset = f"{opened.name} [{found}]", opened.splits[found]
    if not len(dataset):
        raise InputError(f"{name} is empty; give it at least one row per class")
    told = dict(told or {})
    if group_pattern is not None:
        told["group"] = ""
    columns, kind = find_columns(dataset, told, kind, target, name, opened.hint)
    if kind in MEDIA:
        dataset = as_media(dataset, columns["input"], kind, opened.folder)
    if target.encoded:
        dataset = as_media(dataset, columns[target.role], "image", opened.folder)
    if target.sized:
        if kind != "image":
            raise InputError(
                f"column {columns['input']!r} of {name} holds {kind}, but {target.role} are for "
                "images; name a column of images (--input-column)"
            )
        dataset, columns = with_sides(dataset, columns)
    if opened.in_files:
        columns["file"] = "file"
    if group_pattern is not None and kind not in MEDIA and not opened.in_files:
        raise InputError(
            f"group_pattern={group_pattern!r} is for items in files, but the texts of {name} stand "
            "in a table; name a column of groups there (--group-column)"
        )
    place = opened.lines.get(found)
    source = Source(dataset, columns, target, name, place=place, in_lines=opened.in_lines)
    return source if group_pattern is None else _grouped_by_name(source, opened, group_pattern)


def _grouped_by_name(source: Source, opened: Opened, pattern: str) -> Source:
    """With a column of groups, found in the paths of the files."""
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise InputError(
            f"group_pattern={pattern!r} is no regular expression ({error}); expected one such as "
            "'([^/_]+)_' (--group-pattern)"
        ) from error
    column = source.columns.get("file", source.columns["input"])
    values = plain_values(source.dataset, column)
    paths = [value["path"] if isinstance(value, dict) else value for value in values]
    groups: list[str | None] = []
    for path in paths:
        inside = Path(path) if path else Path()
        if inside.is_relative_to(opened.folder):
            inside = inside.relative_to(opened.folder)
        match = search(inside.as_posix()) if path else None
        groups.append(match and match.group(1 if match.re.groups else 0))
    if not any(groups):
        raise InputError(
            f"group_pattern={pattern!r} is found in no path of {source.name} (the first: "
            f"{paths[0]!r}); expected one that finds the group in the name of a file "
            "(--group-pattern)"
        )
    name = "group" if "group" not in source.dataset.column_names else "group of the file"
    dataset = source.dataset.add_column(name, groups)
    return replace(source, dataset=dataset, columns={**source.columns, "group": name})


def _is_unlabelled(dataset: "Dataset", train: Source) -> bool:
    """Whether nothing is told of what is to be predicted: no such column, or every cell missing,
    empty or -1, as the Hub hides the labels of a test split."""
    if not train.target.role or not len(dataset):
        return False
    column = train.columns[train.target.role]
    if column not in dataset.column_names:
        return True
    if train.target.encoded:
        return all(cell is None for cell in Cells(dataset, column))
    return all(cell in (None, -1, [], [-1]) for cell in plain_values(dataset, column))
