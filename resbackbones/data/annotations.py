"""Boxes in files beside the images: COCO JSON, Pascal VOC XML, YOLO texts.

All become the same rows: the image's path, its size, and its objects as xyxy in pixels.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from resbackbones.data.images import (
    NO_BOX,
    Images,
    Row,
    as_dataset,
    by_split,
    image_sets,
    only,
)
from resbackbones.data.paths import (
    Opened,
    different,
    listed_names,
    one_sentence,
    split_in,
    split_of,
    told,
    walk,
)
from resbackbones.data.yolo import open_yolo
from resbackbones.errors import InputError


def open_annotations(path: Path, masks: bool = False) -> Opened | None:
    """Images with boxes in annotation files: in a folder, or in one that was given, JSON or YAML.
    None where there are none.

    Args:
        masks: read the objects' masks, too, which COCO's files have.

    Raises:
        InputError: files that cannot be read, or that contradict themselves or the images.
    """
    root = path if path.is_dir() else path.parent
    if root != path and root.name == "annotations":
        root = root.parent
    with one_sentence(root):
        files = walk(root)
    images = Images(files)
    chosen = None if path.is_dir() else path.relative_to(root)
    if annotated := _coco_files(root, files if chosen is None else [chosen]):
        return _open_coco(root, annotated, images, masks)
    documents = [file for file in files if file.suffix.lower() == ".xml"]
    if chosen is None and documents and (opened := _open_voc(root, documents, files, images)):
        return opened
    if chosen is None or chosen.suffix.lower() in (".yaml", ".yml"):
        return open_yolo(root, files, chosen)
    return None


# COCO (Lin et al. 2014): one JSON for the images, the objects and the classes of a split


def _coco_files(root: Path, files: Iterable[Path]) -> dict[Path, Any]:
    """The contents of the JSON files that list images and objects."""
    places = [file for file in files if file.suffix.lower() == ".json" and len(file.parts) < 4]
    if instances := [file for file in places if file.name.startswith("instances_")]:
        places = instances  # beside them COCO has captions, key points and more
    found = {}
    for file in places:
        with one_sentence(root / file):
            content = json.loads((root / file).read_text(encoding="utf-8-sig"))
        if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
            found[file] = content
    return found


def _open_coco(root: Path, contents: Mapping[Path, Any], images: Images, masks: bool) -> Opened:
    rows: dict[str, list[Row]] = {}
    notes = [f"Read as COCO, from {', '.join(map(str, contents))}"]
    named = {file: split_in(file.stem) or split_in(file.parent.name) for file in contents}
    for file, content in contents.items():
        _check_coco(root / file, content)
        folders = _image_folders(file, named[file], images.paths)
        find = partial(_image_of_split, images, folders, named[file])
        own, said = _coco_rows(root / file, content, find, masks)
        rows.setdefault(named[file] or "train", []).extend(own)
        notes += said
    first = min(contents, key=lambda file: named[file] not in (None, "train"))
    names, said = _coco_names(root / first, contents[first], contents.values())
    used = {row.image for part in rows.values() for row in part}
    around = {image.parent for image in used}
    unused = [image for image in images.paths if image not in used and image.parent in around]
    ignored = ("image is in no annotation file", "images are in no annotation file")
    notes += [*said, *told(unused, *ignored)]
    splits = {split: as_dataset(root, part) for split, part in rows.items()}
    return Opened(str(root), splits, root, names, tuple(notes))


def _check_coco(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse what lacks lists, or ids and names in them."""
    needed = {"images": ("id", "file_name"), "categories": ("id", "name"), "annotations": ()}
    for key, fields in needed.items():
        entries = content.get(key)
        if not isinstance(entries, list):
            raise InputError(
                f"{path} has no list of {key}; expected images, annotations and categories, as "
                "COCO has them"
            )
        for number, entry in enumerate(entries, 1):
            if not isinstance(entry, dict) or not entry.keys() >= set(fields):
                what = " and ".join(map(repr, fields)) or "fields"
                raise InputError(
                    f"number {number} of the {key} of {path} needs {what}; add what is missing"
                )


def _image_of_split(
    images: Images, folders: Iterable[str], split: str | None, name: str
) -> Path | None:
    """The image of this name, unless it is in the folder of another split."""
    image = images.named(name, folders)
    elsewhere = image is not None and split is not None and split_of(image) not in (None, split)
    return None if elsewhere else image


def _image_folders(file: Path, split: str | None, images: Iterable[Path]) -> list[str]:
    """Where the images of an annotation file may be, the likeliest first."""
    inner = {image.parent for image in images}
    folders = sorted(inner.union(*(folder.parents for folder in inner)))
    same = [str(folder) for folder in folders if split and split_in(folder.name) == split]
    return [str(file.parent), *same, "images", ""]


def _coco_rows(
    path: Path, content: Mapping[str, Any], find: Callable[[str], Path | None], masks: bool
) -> tuple[list[Row], list[str]]:
    """A row per image that is there, and sentences on what is left out."""
    rows: dict[Path, Row] = {}
    by_id: dict[str, Row | None] = {}
    missing, again = [], []
    for entry in content["images"]:
        name, key = str(entry["file_name"]), str(entry["id"])
        if key in by_id:
            raise InputError(
                f"{path} gives two images the id {entry['id']!r} (the second: {name}); give every "
                "image an id of its own"
            )
        image = find(name)
        if image is None:
            missing.append(name)
        elif image in rows:
            again.append(name)
        else:
            told_size = (entry.get("width") or None, entry.get("height") or None)
            rows[image] = Row(image, told=told_size)
        by_id[key] = None if image is None else rows[image]
    if not rows:
        first = f" (the first: {missing[0]})" if missing else ""
        raise InputError(
            f"none of the {len(by_id)} images of {path}{first} is there; put them beside the file, "
            "or into a folder called like the split or 'images'"
        )
    names = {str(entry["id"]): str(entry["name"]) for entry in content["categories"]}
    lost, crowds = [], []
    for number, entry in enumerate(content["annotations"], 1):
        key, said = str(entry.get("image_id")), f"number {number}"
        if key not in by_id:
            lost.append(f"{said}: image_id {entry.get('image_id')!r}")
        elif (row := by_id[key]) is None:
            continue
        elif entry.get("iscrowd"):
            crowds.append(said)
        else:
            category = entry.get("category_id")
            row.boxes.append(_corners(entry.get("bbox")))
            row.labels.append(names.get(str(category), f"category_id {category}"))
            if masks:
                row.segmentations.append(entry.get("segmentation"))
    notes = [
        *told(missing, "image is not there, left out", "images are not there, left out"),
        *told(again, "image is listed twice, joined", "images are listed twice, joined"),
        *told(lost, "annotation is of no image", "annotations are of no image"),
        *told(crowds, "annotation of a crowd is left out", "annotations of crowds are left out"),
    ]
    return list(rows.values()), [f"{path.name}: {note}" for note in notes]


def _corners(box: Any) -> Sequence[float]:
    """Left, top, right and bottom of left, top, width and height."""
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError):
        return NO_BOX
    return x, y, x + width, y + height


def _coco_names(
    path: Path, content: Mapping[str, Any], contents: Iterable[Mapping[str, Any]]
) -> tuple[tuple[str, ...], list[str]]:
    """The classes in the order of their ids, which need not follow on one another; and what is to
    be said of them."""
    categories = content["categories"]
    categories = sorted(
        categories, key=lambda entry: (not isinstance(entry["id"], int), entry["id"])
    )
    names = different((str(entry["name"]) for entry in categories), path)
    used = {str(one.get("category_id")) for each in contents for one in each["annotations"]}
    first, *others = categories or [{}]
    above = {entry.get("supercategory") for entry in others} == {first.get("name")}
    if above and str(first["id"]) not in used:  # as Roboflow writes them
        return names[1:], [f"Category {names[0]!r} is no class: all others belong to it"]
    return names, []


# Pascal VOC (Everingham et al. 2010): one XML per image


def _open_voc(
    root: Path, documents: Iterable[Path], files: Iterable[Path], images: Images
) -> Opened | None:
    """None where no document annotates an image."""
    rows: dict[Path, Row] = {}
    lost, again = [], []
    is_voc = False
    for file in documents:
        try:
            tree = ElementTree.parse(root / file).getroot()
        except (ElementTree.ParseError, OSError, ValueError) as error:
            image = only(_beside(file, images.by_stem[file.stem]))
            if image is not None:
                rows[image] = Row(
                    image, fault=f"has an annotation that is broken ({file}: {error})"
                )
            continue
        if tree.tag != "annotation":
            continue
        is_voc = True
        image = only(_beside(file, images.by_stem[file.stem]))
        if image is None and (name := tree.findtext("filename")):
            image = images.named(
                name.strip(), [str(file.parent), str(file.parent.parent / "JPEGImages")]
            )
        if image is None:
            lost.append(file)
        elif image in rows:
            again.append(file)
        else:
            rows[image] = _voc_row(image, tree)
    if not is_voc and not rows:
        return None
    if not rows:
        raise InputError(
            f"none of the images of the {len(lost)} annotations in {root} is there (the first: "
            f"{lost[0]}); put them beside the annotations or into JPEGImages"
        )
    folders = {image.parent for image in rows}
    bare = [image for image in images.paths if image not in rows and image.parent in folders]
    notes = [
        "Read as Pascal VOC, whose pixels count from 1: one is taken off left and top",
        *told(lost, "annotation is of no image", "annotations are of no image"),
        *told(again, "second annotation of an image", "annotations of an image that has one"),
        *told(bare, "image without annotation is left out", "images without annotation left out"),
    ]
    listed = image_sets(root, files, "Main")
    parts, said = by_split(list(rows), listed)
    splits = {split: as_dataset(root, [rows[image] for image in parts[split]]) for split in parts}
    return Opened(str(root), splits, root, listed_names(root), (*notes, *said))


def _beside(file: Path, images: Sequence[Path]) -> Sequence[Path]:
    """Of images of one name, those in the file's folder, else in a folder beside it, else
    in its split."""
    for folder in (file.parent, file.parent.parent):
        if near := [image for image in images if image.parent in (folder, folder / "JPEGImages")]:
            return near
    return [image for image in images if split_of(image) == split_of(file)]


def _voc_row(image: Path, tree: ElementTree.Element) -> Row:
    row = Row(image)
    size = [tree.findtext(f"size/{side}", "") for side in ("width", "height")]
    if all(side.strip().isdigit() and int(side) for side in size):
        row.told = (int(size[0]), int(size[1]))
    for entry in tree.iter("object"):
        sides = [entry.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            left, top, right, bottom = map(float, sides)
            row.boxes.append((left - 1, top - 1, right, bottom))
        except ValueError:
            row.boxes.append(NO_BOX)
        row.labels.append((entry.findtext("name") or "").strip())
    return row
