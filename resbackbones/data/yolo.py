"""YOLO's files, as of Darknet: a text per image, a line per object, a YAML that names the classes.

A line is the class's number, then the centre, width and height of the box as shares of the image's.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resbackbones.data.images import NO_BOX, Images, Row, as_dataset, by_split, header_sizes
from resbackbones.data.paths import (
    NAMES_FILES,
    Opened,
    different,
    listed_names,
    one_sentence,
    reason,
    told,
)
from resbackbones.errors import InputError

IMAGE_FOLDERS = ("images", "JPEGImages")  # beside which `labels` lies
KEYS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class _Config:
    """What a YAML says: the file, and its content."""

    file: Path
    content: Mapping[str, Any]


def open_yolo(root: Path, files: Sequence[Path], chosen: Path | None) -> Opened | None:
    """None where nothing says that these are YOLO's files.

    Args:
        files: below the root, relative to it.
        chosen: the YAML, where it was given itself.
    """
    config = _config(root, [chosen] if chosen else files)
    images = Images(files)
    texts = {file for file in files if file.suffix.lower() == ".txt"}
    labels = {image: label for image in images.paths if (label := _label_file(image, texts))}
    if config is None and not any(_is_yolo(root / label) for label in labels.values()):
        return None
    if not images.paths:
        raise InputError(f"{root} has no images; put them into folders called 'images'")
    names = _names(root, config)
    rows: dict[Path, Row] = {}
    polygons: list[Path] = []
    for image, size in zip(images.paths, header_sizes(root, images.paths), strict=True):
        row = rows[image] = Row(image, size)
        if image not in labels or None in size:  # an image that cannot be read is named later
            continue
        try:
            lines = (root / labels[image]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            row.fault = f"has labels that cannot be read ({labels[image]}: {reason(error)})"
            continue
        for line in filter(str.strip, lines):
            number, box, is_polygon = _object(line, *size)
            row.boxes.append(box)
            row.labels.append(number if names is None else names.get(number, str(number)))
            if is_polygon:
                polygons.append(image)
    parts, said = _splits(root, config, images)
    used = {image for part in parts.values() for image in part}
    folders = {labels[image].parent for image in used if image in labels}
    taken = {*labels.values(), *(file for file in texts if file.name in NAMES_FILES)}
    lost = [file for file in sorted(texts - taken) if file.parent in folders]
    bare = [image for image in images.paths if image in used and image not in labels]
    outlines = [image for image in polygons if image in used]
    notes = [
        f"Read as YOLO's{f', from {config.file}' if config else ''}",
        *told(lost, "label file is of no image", "label files are of no image"),
        *told(
            bare,
            "image has no label file, so no objects",
            "images have no label file, so no objects",
        ),
        *told(outlines, "polygon becomes its bounding box", "polygons become their bounding boxes"),
    ]
    label_type = "int64" if names is None else "string"
    splits = {
        split: as_dataset(root, [rows[image] for image in part], label_type)
        for split, part in parts.items()
    }
    listed = None if names is None else tuple(names.values())
    return Opened(str(root), splits, root, listed, (*notes, *said))


def _config(root: Path, files: Sequence[Path]) -> _Config | None:
    """The YAML in the root that names classes, `data.yaml` before others."""
    import yaml

    found = [
        file for file in files if file.suffix.lower() in (".yaml", ".yml") and len(file.parts) == 1
    ]
    for file in sorted(found, key=lambda file: (file.stem != "data", file)):
        with one_sentence(root / file):
            content = yaml.safe_load((root / file).read_text(encoding="utf-8"))
        if isinstance(content, dict) and "names" in content:
            return _Config(file, content)
    return None


def _names(root: Path, config: _Config | None) -> dict[int, str] | None:
    """A class's number -> its name, in the order of the numbers; None where nothing names them."""
    if config is None:
        listed = listed_names(root) or listed_names(root / "labels")
        return None if listed is None else dict(enumerate(listed))
    names = config.content["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(str(key).isdigit() for key in names):
        raise InputError(
            f"names in {root / config.file} are {str(names)[:60]}; expected a list of names, or "
            "names by numbers, such as {0: cat, 1: dog}"
        )
    by_number = {
        int(key): str(name) for key, name in sorted(names.items(), key=lambda i: int(i[0]))
    }
    different(by_number.values(), root / config.file)
    return by_number


def _label_file(image: Path, texts: set[Path]) -> Path | None:
    """The text of an image: in `labels` where the image is in `images`, else beside it."""
    parts = list(image.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] in IMAGE_FOLDERS:
            swapped = Path(*parts[:place], "labels", *parts[place + 1 :])
            if swapped in texts:
                return swapped
    beside = image.with_suffix(".txt")
    return beside if beside in texts else None


def _is_yolo(file: Path) -> bool:
    """Whether the first line of a text is an object's."""
    with open(file, encoding="utf-8", errors="replace") as text:
        line = text.readline()
    return bool(line.strip()) and _object(line, 1, 1)[1] is not NO_BOX


def _object(line: str, width: Any, height: Any) -> tuple[int, Sequence[float], bool]:
    """The class's number; the box as xyxy in pixels; whether it surrounds a polygon.

    >>> _object("3 0.5 0.5 0.2 0.4", 100, 50)
    (3, (40.0, 15.0, 60.0, 35.0), False)
    >>> _object("3 0.1 0.2 0.4 0.2 0.4 0.6", 100, 50)
    (3, (10.0, 10.0, 40.0, 30.0), True)
    """
    first, *rest = line.split()
    try:
        label, numbers = float(first), [float(each) for each in rest]
    except ValueError:
        return -1, NO_BOX, False
    number = int(label) if label.is_integer() else -1
    if len(numbers) == 4:
        x, y, w, h = numbers
        sides = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    elif len(numbers) >= 6 and len(numbers) % 2 == 0 and all(map(math.isfinite, numbers)):
        across, down = numbers[::2], numbers[1::2]
        sides = (min(across), min(down), max(across), max(down))
    else:
        return number, NO_BOX, False
    if number < 0:
        return number, NO_BOX, False
    box = (sides[0] * width, sides[1] * height, sides[2] * width, sides[3] * height)
    return number, box, len(numbers) > 4


def _splits(
    root: Path, config: _Config | None, images: Images
) -> tuple[dict[str, list[Path]], list[str]]:
    """Split -> its images: as the YAML says where its paths are there, else by their folders."""
    found: dict[str, list[Path]] = {}
    for split, keys in KEYS.items():
        content = {} if config is None else config.content
        entries: Any = next((content[key] for key in keys if content.get(key)), [])
        for entry in [entries] if isinstance(entries, str) else entries:
            found.setdefault(split, []).extend(_images_at(root, str(entry), content, images))
    if not found.get("train"):
        return by_split(images.paths, {})
    used = {image for part in found.values() for image in part}
    left = [image for image in images.paths if image not in used]
    said = [*told(left, "image is in no split", "images are in no split")]
    return {split: part for split, part in found.items() if part}, said


def _images_at(root: Path, entry: str, config: Mapping[str, Any], images: Images) -> list[Path]:
    """The images in a folder, or in a text that lists them, as a YAML names it."""
    inside = Path(entry.replace("\\", "/"))
    while inside.parts[:1] in ((".",), ("..",)):  # Roboflow's start one folder too high
        inside = Path(*inside.parts[1:])
    for start in (Path(str(config.get("path") or "")).name, ""):
        place = Path(os.path.normpath(Path(start) / inside))
        if (root / place).is_dir():
            return [image for image in images.paths if image.is_relative_to(place)]
        if place.suffix == ".txt" and (root / place).is_file():
            with one_sentence(root / place, [root / place]):
                lines = (root / place).read_text(encoding="utf-8").splitlines()
            named = [images.named(line.strip(), [str(place.parent), ""]) for line in lines if line]
            return [image for image in named if image is not None]
    return []
