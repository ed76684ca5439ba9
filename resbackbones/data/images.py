"""Images in folders, and what other files say of them: rows, sizes and splits.

The ground of boxes in annotation files and of masks beside images.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import torch

from resbackbones.data.columns import MEDIA, viewed_size
from resbackbones.data.instances import counts_of
from resbackbones.data.paths import SPLITS, one_sentence, split_of, told

if TYPE_CHECKING:
    from datasets import Dataset

NO_BOX = (math.nan,) * 4  # of an object whose box cannot be read: it is told with the bad ones


@dataclass
class Row:
    """An image and its objects; `size`: as it is viewed; `told`: as its annotation says;
    `segmentations`: of all of them as COCO has them, or none where no masks are wanted; `fault`:
    why that cannot be used."""

    image: Path
    size: tuple[int | None, int | None] = (None, None)
    told: tuple[int | None, int | None] = (None, None)
    boxes: list[Sequence[float]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    segmentations: list[Any] = field(default_factory=list)
    fault: str | None = None


class Images:
    """The images below a folder, by their paths in it and by their names."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.paths = [file for file in files if file.suffix.lower() in MEDIA["image"]]
        self.by_path = {str(path): path for path in self.paths}
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        self.by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self.by_name[path.name].append(path)
            self.by_stem[path.stem].append(path)

    def named(self, name: str, folders: Iterable[str]) -> Path | None:
        """The image of this path in one of these folders, else the only one of this name."""
        name = name.replace("\\", "/")
        for folder in folders:
            if path := self.by_path.get(os.path.normpath(os.path.join(folder, name))):
                return path
        return only(self.by_name.get(name.rpartition("/")[2], []))


def as_dataset(root: Path, rows: Sequence[Row], label_type: str = "string") -> "Dataset":
    """Rows of images, their sizes and their objects, as `Boxes` reads them."""
    import datasets

    unsized = [row for row in rows if None in row.size]
    for row, size in zip(unsized, header_sizes(root, [row.image for row in unsized]), strict=True):
        row.size = size
    for row in rows:  # boxes of an image that lies on its side, or was resized since
        if row.fault is None and None not in row.told + row.size and row.told != row.size:
            width, height = row.size
            row.fault = (
                "has an annotation of {}x{} pixels".format(*row.told)
                + f", but the image, as it is viewed, is {width}x{height}"
            )
    side = datasets.Value("int64")
    objects = {
        "xyxy": datasets.List(datasets.List(datasets.Value("float64"))),
        "category": datasets.List(datasets.Value(label_type)),
        "run_lengths": datasets.List(datasets.Value("string")),
        "fault": datasets.Value("string"),
    }
    features = datasets.Features(
        image=datasets.Value("string"), width=side, height=side, objects=objects
    )
    columns = {
        "image": [str(row.image) for row in rows],
        "width": [row.size[0] for row in rows],
        "height": [row.size[1] for row in rows],
        "objects": [
            {
                "xyxy": row.boxes,
                "category": row.labels,
                "run_lengths": [counts_of(each, row.size) for each in row.segmentations],
                "fault": row.fault,
            }
            for row in rows
        ],
    }
    # By Arrow itself, which is ten times as fast as by `from_dict`.
    return datasets.Dataset(pyarrow.table(columns, schema=features.arrow_schema))


def header_sizes(root: Path, images: Sequence[Path]) -> list[tuple[int | None, int | None]]:
    """Width and height of each image, from its header."""
    files = ({"bytes": None, "path": str(root / image)} for image in images)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(viewed_size, files))


def only(paths: Sequence[Path]) -> Path | None:
    return paths[0] if len(paths) == 1 else None


def image_sets(root: Path, files: Iterable[Path], task: str) -> dict[str, list[str]]:
    """Split -> the stems of its images, as Pascal VOC lists them: `ImageSets/<task>/train.txt`,
    val.txt, test.txt; trainval.txt where there is no train.txt."""
    found = {}
    lists = {file.stem: file for file in files if file.parts[-3:-1] == ("ImageSets", task)}
    for split, names in SPLITS.items():
        usual = [*names, "trainval"] if split == "train" else names
        file = next((lists[name] for name in usual if name in lists), None)
        if file is not None and file.suffix == ".txt":
            with one_sentence(root / file, [root / file]):
                lines = (root / file).read_text(encoding="utf-8").splitlines()
            found[split] = [line.split()[0] for line in lines if line.strip()]
    return found


def by_split(
    images: Sequence[Path],
    listed: Mapping[str, Sequence[str]],
    split_of: Callable[[Path], str | None] = split_of,
) -> tuple[dict[str, list[Path]], list[str]]:
    """Split -> its images, by these lists of stems, else by their folders; without either all are
    train. And sentences on what is in none."""
    if not listed:
        parts: dict[str, list[Path]] = defaultdict(list)
        for image in images:
            parts[split_of(image) or ""].append(image)
        if len(parts) == 1 and "" in parts:
            return {"train": parts[""]}, []
        left = parts.pop("", [])
        return dict(parts), [*told(left, "image is in no split", "images are in no split")]
    by_stem = {image.stem: image for image in images}
    found = {
        split: [by_stem[stem] for stem in stems if stem in by_stem]
        for split, stems in listed.items()
    }
    missing = [stem for stems in listed.values() for stem in stems if stem not in by_stem]
    used = {image for part in found.values() for image in part}
    left = [image for image in images if image not in used]
    return {split: part for split, part in found.items() if part}, [
        *told(missing, "listed image is not there", "listed images are not there"),
        *told(left, "image is in no split", "images are in no split"),
    ]
