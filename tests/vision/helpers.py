"""What the tests of images share: sources of images made here, and small models of them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

import resbackbones as rb
from resbackbones.data import Boxes, Masks, Source, open_dataset
from resbackbones.vision import (
    BoxItems,
    MaskItems,
    ResidualForObjectDetection,
    ResidualForSemanticSegmentation,
    ResidualForTwoStageDetection,
    UNet,
)

# No norm over a batch, so that an item counts the same in any.
TINY = rb.BackboneSpec((rb.Stage(16, 1), rb.Stage(32, 1, 2)), stem=rb.Stem(16), norm="group")


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


def with_boxes(cells: list, boxes: list) -> Source:
    """A source of these images, with these boxes (xyxy) of each, all of class a."""
    objects = [{"xyxy": own, "label": [0] * len(own)} for own in boxes]
    numbers = datasets.List(datasets.Value("float32"))
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "objects": {
                "xyxy": datasets.List(numbers),
                "label": datasets.List(datasets.ClassLabel(names=["a", "b"])),
            },
        }
    )
    rows = datasets.Dataset.from_dict({"image": cells, "objects": objects}, features)
    return open_dataset(rows, target=Boxes())


def with_masks(cells: list, masks: list) -> Source:
    """A source of these images and masks, of the classes 0 and 1."""
    kind = datasets.Image(decode=False)
    columns = {"image": cells, "mask": masks}
    rows = datasets.Dataset.from_dict(columns, datasets.Features(image=kind, mask=kind))
    return open_dataset(rows, target=Masks(("a", "b")))


def photo(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def detector(kind: str = "fcos", **options: Any) -> ResidualForObjectDetection:
    torch.manual_seed(0)
    options = {"labels": ["a", "b"], "levels": (2, 4), "channels": 64} | options
    if kind == "fcos":
        options["convolutions"] = 1
    return ResidualForObjectDetection.build(TINY, detector=kind, **options)


def boxed(model: Any) -> BoxItems:
    """Images of several sizes, of one, two, three and no objects."""
    sizes = [(32, 24), (24, 32), (40, 20), (30, 30)]
    boxes = [
        [[2, 3, 20, 20]],
        [[1, 1, 12, 30], [10, 4, 20, 9]],
        [[0, 0, 9, 9], [12, 2, 39, 19], [5, 5, 30, 18]],
        [],
    ]
    cells = [png(photo(*size)) for size in sizes]
    return BoxItems(with_boxes(cells, boxes), model.processor)


def segmenter(**options: Any) -> ResidualForSemanticSegmentation:
    torch.manual_seed(0)
    return ResidualForSemanticSegmentation.build(
        TINY, decoder=UNet(4, 8), **{"labels": ["a", "b"]} | options
    )


def masked(model: Any) -> MaskItems:
    masks = [png((photo(n, 24)[:, :20, 0] > 99).astype(np.uint8)) for n in range(20, 24)]
    cells = [png(photo(n, 24)[:, :20]) for n in range(20, 24)]
    return MaskItems(with_masks(cells, masks), model.processor)


def two_stage(**options: Any) -> ResidualForTwoStageDetection:
    torch.manual_seed(0)
    return ResidualForTwoStageDetection.build(
        TINY, labels=["a", "b"], levels=(2, 4), channels=16, hidden=16, **options
    )


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
