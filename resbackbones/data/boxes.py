"""`Boxes`: rectangles around objects, checked one by one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow.compute
import torch
from torch import Tensor

from resbackbones.data.columns import Cells
from resbackbones.data.paths import reason
from resbackbones.data.targets import (
    Classes,
    Column,
    Target,
    learn_names,
    rarest_class,
    refuse_faults,
)
from resbackbones.errors import InputError, nearest

FORMATS = ("xyxy", "xywh")
# What the two fields of an object are usually called. A field called like a format says it.
BOX_FIELDS = (*FORMATS, "bbox", "bboxes", "box", "boxes", "bounding_box")
LABEL_FIELDS = (
    *("category", "categories", "label", "labels", "class", "classes", "class_labels"),
    *("category_id", "class_id", "label_id", "category_name", "class_name", "name"),
)
CLIPPED = 0.5  # pixels outside the image from which a clipped box counts: less is rounding
ODD = 0.05  # the share of boxes up to which those that do not fit a format are bad ones


@dataclass(frozen=True, eq=False)
class _Objects:
    """The objects of all rows, one after the other.

    Attributes:
        rows: each one's row, int64 `(M,)`, ascending.
        boxes: as they stand, float64 `(M, 4)`; what is no four numbers is NaN.
        kinds: the different labels, as they stand.
        labels: each one's position in `kinds`, int64 `(M,)`.
        masks: each one's run lengths, `(M,)`, None where it has none usable or none are wanted.
        faults: rows whose objects cannot be read at all -> why.
        told: the format that the field's name says, if it does.
    """

    rows: np.ndarray
    boxes: np.ndarray
    kinds: list[Any]
    labels: np.ndarray
    masks: np.ndarray
    faults: dict[int, str]
    told: Literal["xyxy", "xywh"] | None

    def label(self, index: int) -> Any:
        return self.kinds[self.labels[index]]


@dataclass(frozen=True, eq=False)
class _Checked:
    """Objects as xyxy within their images, which of them were clipped, and what is wrong: a key of
    `WRONG`, 0 where nothing is."""

    boxes: np.ndarray
    numbers: np.ndarray
    clipped: np.ndarray
    wrong: np.ndarray


WRONG = {
    1: "without four finite numbers",
    2: "ending before its start",
    3: "of zero size",
    4: "outside the image",
    5: "of an unknown label",
    6: "without a usable segmentation",
}


@dataclass(frozen=True)
class Boxes(Target):
    """Any number of objects per image: a rectangle and a class each.

    A cell holds the objects' boxes and labels, `{"bbox": [[…]], "category": […]}` or a list of
    `{"bbox": […], "category": …}`, under any usual names; a missing cell is an image without
    objects. Boxes are in pixels of the image as it is viewed, from its upper left corner on. What
    reaches outside is clipped. A box cannot be used if it is not finite, ends before its start, has
    zero size, lies outside the image, has a label that is none of the classes or, where masks are
    wanted, lacks one.

    Attributes:
        names: of the classes; a class's number is its position. () for those of the column: of its
            type, of the annotations, else of `labels.json`, else the labels in sorted order.
        numbered: whether a number in the column is a position in `names`, rather than a name; None
            as long as no column was learned from.
        box_format: "xyxy" (left, top, right, bottom), "xywh" (left, top, width, height); None to
            find it where only one of them fits the images.
        on_bad_box: "drop" leaves out boxes that cannot be used, counted in the notes; "error" makes
            an image with one a row that cannot be used.
        masks: whether each object has a mask, too, from the segmentations in COCO's JSON: polygons
            or run lengths, of the image's size and with a pixel at least.

    Raises:
        InputError: an unknown `box_format` or `on_bad_box`.

    >>> objects = {"bbox": [[1, 2, 30, 20], [8, 8, 8, 9]], "category": ["cat", "dog"]}
    >>> pets = Column("objects", [objects, None], "pets", "row {}".format, sizes=[(32, 24)] * 2)
    >>> target = Boxes(box_format="xyxy").learn(pets)
    >>> target.names, target.values(pets)[0]
    (('cat', 'dog'), {'boxes': tensor([[ 1.,  2., 30., 20.]]), 'class_labels': tensor([0])})
    >>> target.remarks(pets)
    ('1 of 2 boxes of pets is dropped (1 of zero size; the first: row 0, 8 8 8 9)',)
    """

    names: tuple[str, ...] = ()
    numbered: bool | None = None
    box_format: Literal["xyxy", "xywh"] | None = None
    on_bad_box: Literal["drop", "error"] = "drop"
    masks: bool = False

    role: ClassVar[str] = "objects"
    usual: ClassVar[tuple[str, ...]] = ("objects", "annotations", "boxes", "bboxes", "labels")
    sized: ClassVar[bool] = True
    kinds_required: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.box_format not in (None, *FORMATS):
            raise InputError(
                f"box_format={self.box_format!r} is not known; {nearest(self.box_format, FORMATS)}"
            )
        if self.on_bad_box not in ("drop", "error"):
            raise InputError(
                f"on_bad_box={self.on_bad_box!r} is not known; "
                f"{nearest(self.on_bad_box, ('drop', 'error'))}"
            )

    def typed(self, feature: Any) -> bool:
        return any(field in _fields(feature) for field in BOX_FIELDS)

    def class_names(self, feature: Any) -> tuple[str, ...] | None:
        fields = _fields(feature)
        names = [
            getattr(getattr(fields[field], "feature", fields[field]), "names", None)
            for field in LABEL_FIELDS
            if field in fields
        ]
        return tuple(names[0]) if names and names[0] is not None else None

    def learn(self, train: Column) -> "Boxes":
        objects = _objects(train, self.masks)
        if not len(objects.rows):
            raise InputError(
                f"{train.split} has no box in column {train.name!r}; expected objects to learn from"
            )
        finite = np.isfinite(objects.boxes).all(1)
        kinds = [objects.kinds[kind] for kind in np.unique(objects.labels[finite])]
        names, numbered = learn_names(self.names, replace(train, cells=kinds))
        box_format = objects.told or self.box_format or _format(objects, train)
        learned = replace(self, names=names, numbered=numbered, box_format=box_format)
        if (wrong := learned._checked(objects, train).wrong).all():
            raise InputError(
                f"not one of {len(wrong):,} boxes of {train.split} can be used (the first is "
                f"{WRONG[int(wrong[0])]}: {_said(objects, 0)}, labelled {objects.label(0)!r}); "
                f"check the boxes, their format{', their masks (of COCO)' * self.masks} and the "
                "names of the classes"
            )
        return learned

    def faults(self, column: Column) -> dict[int, str]:
        """Rows whose objects cannot be read; with `on_bad_box="error"` those, too, with a box that
        cannot be used, once this was learned."""
        objects = _objects(column, self.masks)
        found = dict(objects.faults)
        if self.on_bad_box == "error" and self.numbered is not None:
            checked = self._checked(objects, column)
            for index in np.flatnonzero(checked.wrong)[::-1].tolist():
                box = _said(objects, index)
                why = WRONG[int(checked.wrong[index])]
                found[int(objects.rows[index])] = f"has a box {why} ({box})"
        return found

    def values(self, column: Column) -> list[dict[str, Any]]:
        """Each row's objects: `boxes`, float32 `(N, 4)`, xyxy in pixels; `class_labels`, int64
        `(N,)`; and where they are wanted `masks`, N of `{"size": [H, W], "counts": bytes}`, the run
        lengths of COCO. N may be 0."""
        refuse_faults(self, column)
        objects = _objects(column, self.masks)
        checked = self._checked(objects, column)
        fine = checked.wrong == 0
        counts = np.bincount(objects.rows[fine], minlength=len(column.cells)).tolist()
        boxes = torch.from_numpy(checked.boxes[fine].astype(np.float32)).split(counts)
        numbers = torch.from_numpy(checked.numbers[fine]).split(counts)
        found: list[dict[str, Any]] = [
            {"boxes": own, "class_labels": labels}
            for own, labels in zip(boxes, numbers, strict=True)
        ]
        if self.masks:
            for value in found:
                value["masks"] = []
            sizes = column.sizes or ()
            for row, counts in zip(objects.rows[fine], objects.masks[fine], strict=True):
                width, height = sizes[row]
                found[row]["masks"].append({"size": [height, width], "counts": counts.encode()})
        return found

    def remarks(self, column: Column) -> tuple[str, ...]:
        objects = _objects(column, self.masks)
        checked = self._checked(objects, column)
        sentences = []
        dropped = np.flatnonzero(checked.wrong)
        if len(dropped) and self.on_bad_box == "drop":
            kinds = ", ".join(
                f"{count:,} {WRONG[kind]}"
                for kind in WRONG
                if (count := int((checked.wrong == kind).sum()))
            )
            index = int(dropped[0])
            unknown = f" labelled {objects.label(index)!r}" if checked.wrong[index] == 5 else ""
            row = column.row_name(int(objects.rows[index]))
            sentences.append(
                f"{len(dropped):,} of {len(objects.rows):,} boxes of {column.split} "
                f"{'are' if len(dropped) > 1 else 'is'} dropped ({kinds}; the first: {row}, "
                f"{_said(objects, index)}{unknown})"
            )
        if count := int((checked.clipped & (checked.wrong == 0)).sum()):
            what = f"{count:,} boxes reach" if count > 1 else "1 box reaches"
            sentences.append(f"{what} outside the images of {column.split}: clipped")
        return tuple(sentences)

    def strata(self, values: list[dict[str, Any]]) -> Tensor:
        """The `rarest_class` of each image."""
        counts = torch.tensor([len(value["class_labels"]) for value in values])
        rows = torch.arange(len(values)).repeat_interleave(counts)
        labels = torch.cat([value["class_labels"] for value in values])
        return rarest_class(rows, labels, len(values), len(self.names))

    def stratum(self, number: int) -> str:
        return f"class {self.names[number]!r}" if number < len(self.names) else "other images"

    def describe(self, values: list[dict[str, Any]]) -> str:
        """
        >>> square = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "class_labels": torch.tensor([0])}
        >>> empty = {"boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0, dtype=torch.int64)}
        >>> Boxes(("cat",)).describe([square, square, empty])
        "1 class ('cat') of 2 boxes; 0 to 1 boxes per image (1 without), 9 to 9 pixels a side"
        """
        labels = torch.cat([value["class_labels"] for value in values])
        boxes = torch.cat([value["boxes"] for value in values])
        counts = torch.bincount(labels, minlength=len(self.names))
        low, high = int(counts.min()), int(counts.max())
        known = ", ".join(map(repr, self.names[:4])) + ", …" * (len(self.names) > 4)
        sizes = f"{low:,} to {high:,} boxes" if low < high else f"{low:,} boxes"
        each = [len(value["boxes"]) for value in values]
        without = f" ({each.count(0):,} without)" if 0 in each else ""
        said = (
            f"{len(self.names):,} class{'es' * (len(self.names) > 1)} ({known}) of {sizes}; "
            f"{min(each):,} to {max(each):,} boxes per image{without}"
        )
        if not len(boxes):
            return said
        sides = boxes[:, 2:] - boxes[:, :2]
        return f"{said}, {float(sides.min()):.4g} to {float(sides.max()):.4g} pixels a side"

    def _checked(self, objects: _Objects, column: Column) -> _Checked:
        if self.numbered is None:
            raise ValueError("these boxes know no column yet: use what `learn` gives")
        boxes = objects.boxes.copy()
        if (objects.told or self.box_format) == "xywh":
            boxes[:, 2:] += boxes[:, :2]
        finite = np.isfinite(boxes).all(1)
        backwards = (boxes[:, 2:] < boxes[:, :2]).any(1)
        empty = (boxes[:, 2:] == boxes[:, :2]).any(1)
        limits = _limits(objects, column)
        inside = np.clip(boxes, 0, np.concatenate([limits, limits], 1))
        outside = (inside[:, 2:] <= inside[:, :2]).any(1)
        clipped = (np.abs(inside - boxes) > CLIPPED).any(1)
        kinds = replace(column, cells=objects.kinds)
        known = Classes(self.names, self.numbered).numbers(kinds)
        numbers = np.array(known, dtype=np.int64)[objects.labels]
        bare = np.array([self.masks and counts is None for counts in objects.masks], dtype=bool)
        wrong = np.select(
            [~finite, backwards, empty, outside, numbers < 0, bare], [1, 2, 3, 4, 5, 6], 0
        )
        return _Checked(inside, numbers, clipped, wrong)


def _fields(feature: Any) -> Mapping[str, Any]:
    """The fields of an object, from the type of a column of objects; none where it is no such."""
    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, Mapping) else {}


def _objects(column: Column, masks: bool) -> _Objects:
    """Every object of a column, with its mask or without.

    Raises:
        InputError: cells that hold no boxes and labels.
    """
    cells = column.cells.arrow() if isinstance(column.cells, Cells) else column.cells
    if not isinstance(cells, pyarrow.Array):
        try:
            cells = pyarrow.array(cells, from_pandas=False)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise InputError(
                f"column {column.name!r} of {column.split} holds objects of several kinds "
                f"({reason(error)}); write all alike"
            ) from error
    count = len(cells)
    is_list = _is_list(cells.type)
    entries = cells.flatten() if is_list else cells
    none = np.zeros(0, np.int64)
    if cells.null_count == count or pyarrow.types.is_null(entries.type):
        return _Objects(none, np.zeros((0, 4)), [], none, none.astype(object), {}, None)
    box, label = _known_fields(entries, column)
    boxes, labels = (pyarrow.compute.struct_field(entries, name) for name in (box, label))
    sizes = labels_of = _lengths(cells if is_list else boxes)
    faults: dict[int, str] = {}
    if not is_list:
        labels_of = _lengths(labels)
        if "fault" in (field.name for field in entries.type):  # of a file that cannot be read
            said = pyarrow.compute.struct_field(entries, "fault").to_pylist()
            faults = {row: why for row, why in enumerate(said) if why}
        for row in np.flatnonzero(sizes != labels_of).tolist():
            faults[row] = f"has {sizes[row]} times a box, but {labels_of[row]} times a label"
        boxes, labels = (
            each.flatten() if _is_list(each.type) else each for each in (boxes, labels)
        )
    if not _is_list(boxes.type) and len(boxes) > boxes.null_count:
        raise _no_objects(column, cells)
    counts = np.full(len(boxes), None, dtype=object)
    if masks:
        counts = _counts(entries, sizes)
    coded = labels.dictionary_encode("encode")
    codes = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    rows, flat = np.repeat(np.arange(count), sizes), _numbers(boxes)
    if faults:
        readable = ~np.isin(np.arange(count), list(faults))
        flat, codes = flat[readable[rows]], codes[readable[np.repeat(np.arange(count), labels_of)]]
        counts = counts[readable[rows]]
        rows = rows[readable[rows]]
    told: Any = box if box in FORMATS else None
    return _Objects(rows, flat, coded.dictionary.to_pylist(), codes, counts, faults, told)


def _known_fields(entries: Any, column: Column) -> tuple[str, str]:
    """The fields of boxes and of labels."""
    if not pyarrow.types.is_struct(entries.type):
        raise _no_objects(column, entries)
    fields = [field.name for field in entries.type]
    found = []
    for known, what in ((BOX_FIELDS, "boxes"), (LABEL_FIELDS, "labels")):
        name = next((name for name in known if name in fields), None)
        if name is None:
            raise InputError(
                f"the objects in column {column.name!r} of {column.split} have no field of {what} "
                f"(they have {', '.join(map(repr, fields))}); call it {known[2]!r}"
            )
        found.append(name)
    return found[0], found[1]


def _counts(entries: Any, sizes: np.ndarray) -> np.ndarray:
    """The run lengths of each object's mask, `(M,)`, None where there is none; `sizes`: objects of
    each row. Only what was read of COCO's files has any."""
    counts = np.full(int(sizes.sum()), None, dtype=object)
    if "run_lengths" in (field.name for field in entries.type):
        lists = pyarrow.compute.struct_field(entries, "run_lengths")
        if _is_list(lists.type):
            has = np.repeat(_lengths(lists) == sizes, sizes)
            counts[has] = lists.flatten().to_pylist()
    return counts


def _no_objects(column: Column, cells: Any) -> InputError:
    first = next(cell for cell in cells.to_pylist() if cell is not None)
    return InputError(
        f"column {column.name!r} of {column.split} holds no objects (the first is "
        f"{str(first)[:60]}); expected boxes and labels, such as "
        '{"bbox": [[x, y, w, h]], "category": ["cat"]}'
    )


def _is_list(type_: Any) -> bool:
    types = pyarrow.types
    return types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_)


def _lengths(lists: Any) -> np.ndarray:
    """How many entries each list has; a missing one none."""
    if not _is_list(lists.type):
        return np.zeros(len(lists), np.int64)
    lengths = pyarrow.compute.list_value_length(lists).fill_null(0)
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64)


def _numbers(boxes: Any) -> np.ndarray:
    """Boxes as float64 `(M, 4)`, those without four numbers NaN."""
    flat = np.full((len(boxes), 4), np.nan)
    whole = _lengths(boxes) == 4
    if whole.any():
        chosen = boxes.filter(pyarrow.array(whole)).flatten()
        if not pyarrow.types.is_string(chosen.type):
            numbers = chosen.cast("float64").to_numpy(zero_copy_only=False)
            flat[whole] = numbers.reshape(-1, 4)
    return flat


def _limits(objects: _Objects, column: Column) -> np.ndarray:
    """Width and height of each object's image, `(M, 2)`; infinity where they are unknown."""
    if column.sizes is None:
        return np.full((len(objects.rows), 2), np.inf)
    known = ((np.inf, np.inf) if size is None else size for size in column.sizes)
    sizes = np.fromiter(chain.from_iterable(known), np.float64).reshape(-1, 2)
    return sizes[objects.rows]


def _format(objects: _Objects, column: Column) -> Literal["xyxy", "xywh"]:
    """The only format in which (almost) all boxes have a size and lie within their images.

    Raises:
        InputError: both are such, or none is.
    """
    boxes = objects.boxes[np.isfinite(objects.boxes).all(1)]
    limits = _limits(objects, column)[np.isfinite(objects.boxes).all(1)] + 1
    first, second = boxes[:, :2], boxes[:, 2:]
    odd = {
        "xyxy": ((second <= first) | (second > limits)).any(1),
        "xywh": ((second <= 0) | (first + second > limits)).any(1),
    }
    fitting = [name for name in FORMATS if odd[name].mean() <= ODD]
    if len(boxes) and boxes.max() <= 1 and (limits > 3).all():
        why, do = "seem to be shares of the images' sizes", "give them in pixels"
    elif len(fitting) == 1:
        return "xyxy" if fitting == ["xyxy"] else "xywh"
    else:
        why = "may be xyxy or xywh" if fitting else "fit their images neither as xyxy nor as xywh"
        do = "say which with box_format (--box-format)"
    raise InputError(
        f"the boxes in column {column.name!r} of {column.split} {why} (the first: "
        f"{_said(objects, 0)}); {do}"
    )


def _said(objects: _Objects, index: int) -> str:
    """A box as it stands, for a person."""
    return " ".join(f"{number:g}" for number in objects.boxes[index])
