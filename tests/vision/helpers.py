"""What the tests of images share: sources of images made here."""

import io
from typing import Any

import datasets
import numpy as np
import PIL.Image

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
