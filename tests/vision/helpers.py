"""What the tests of images share: sources of images made here."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageDraw

from resbackbones.data import Source, open_dataset


def encoded(image: PIL.Image.Image, kind: str = "png", **options: Any) -> dict[str, Any]:
    """An image as a data set holds a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def png(pixels: np.ndarray) -> dict[str, Any]:
    return encoded(PIL.Image.fromarray(pixels))


def images(count: int = 12, size: tuple[int, ...] = (10, 14, 3), damage: tuple = ()) -> Source:
    random = np.random.default_rng(0)
    cells = [png(random.integers(0, 256, size, dtype=np.uint8)) for _ in range(count)]
    for row in damage:
        cells[row]["bytes"] = cells[row]["bytes"][:60]
    return open_dataset(
        datasets.Dataset.from_dict(
            {"image": cells, "label": [i % 3 for i in range(count)]},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
            ),
        )
    )


def source_of(cells: list) -> Source:
    """A source of these images, of two classes in turn."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": cells, "label": [row % 2 for row in range(len(cells))]}
    return open_dataset(datasets.Dataset.from_dict(rows, features=features))


def pil(source: Source, row: int) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(source.dataset[row]["image"]["bytes"]))


def pictures(*sizes: tuple[int, int]) -> Source:
    """Images of these widths and heights."""
    return source_of([png(np.zeros((height, width), np.uint8)) for width, height in sizes])


def instances(
    folder: Path, sizes: Sequence[tuple[int, int]], ids: tuple[int, int] = (3, 7)
) -> Path:
    """COCO's files of grey images of these widths and heights, each with a red rectangle and
    a blue one below it, a corner of each cut off, as polygons."""
    images, annotations = [], []
    for number, (width, height) in enumerate(sizes):
        random = np.random.default_rng(number)
        picture = PIL.Image.new("RGB", (width, height), (128, 128, 128))
        draw = PIL.ImageDraw.Draw(picture)
        for place, (identity, colour) in enumerate(zip(ids, ("red", "blue"), strict=True)):
            left, top = int(random.integers(width // 3)), place * height // 2
            right, bottom = left + width // 2, top + height // 2 - 2
            middle = (left + right) // 2, (top + bottom) // 2
            corners = [left, top, right, top, right, middle[1], middle[0], bottom, left, bottom]
            draw.polygon(corners, fill=colour)
            box = [left, top, right - left, bottom - top]
            annotations.append(
                {
                    "image_id": number,
                    "category_id": identity,
                    "bbox": box,
                    "segmentation": [corners],
                }
            )
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number}.png")
        sides = {"width": width, "height": height}
        images.append({"id": number, "file_name": f"{number}.png", **sides})
    categories = [
        {"id": each, "name": name} for each, name in zip(ids, ("red", "blue"), strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
