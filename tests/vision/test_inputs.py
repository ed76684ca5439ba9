"""Images as people have them, for classes, boxes and masks alike: read by one rule, or named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import resbackbones as rb
from resbackbones.data import Boxes, Source, open_dataset, open_splits
from resbackbones.vision import (
    BoxItems,
    ImageItems,
    MaskItems,
    ResidualDetectionProcessor,
    ResidualForImageClassification,
    ResidualImageProcessor,
    open_image,
)
from tests.vision.helpers import (
    TINY,
    detector,
    encoded,
    png,
    segmenter,
    source_of,
    with_boxes,
    with_masks,
)
from tests.vision.test_images import BROKEN, FILES, RGB

SIZE = {"height": 12, "width": 16}
PLAIN = ResidualImageProcessor(size=SIZE)
PROCESSOR = {ImageItems: PLAIN, BoxItems: ResidualDetectionProcessor(size=SIZE), MaskItems: PLAIN}


def labelled(cells: list) -> Source:
    return source_of(cells)


def boxed(cells: list) -> Source:
    return with_boxes(cells, [[[0, 0, 1, 1]]] * len(cells))


def masked(cells: list) -> Source:
    """The left half of each image, as it is viewed, is of class 0, the right half of class 1."""
    masks = []
    for cell in cells:
        try:
            size = open_image(cell).size
        except Exception:  # a broken one
            size = (16, 12)
        x = np.arange(size[0]) >= size[0] / 2
        masks.append(png(np.broadcast_to(x, size[::-1]).astype(np.uint8)))
    masks[-1] = png(np.arange(12 * 16, dtype=np.uint8).reshape(12, 16) % 2)  # both classes
    return with_masks(cells, masks)


def classifier(processor: Any) -> Any:
    return ResidualForImageClassification.build(TINY, labels=["a", "b"], processor=processor)


TASKS: dict[str, tuple[Callable[..., Source], Any, Callable[..., Any]]] = {
    "classes": (labelled, ImageItems, classifier),
    "boxes": (boxed, BoxItems, detector),
    "masks": (masked, MaskItems, segmenter),
}
EACH = pytest.mark.parametrize(("source", "kind", "build"), TASKS.values(), ids=TASKS)


@EACH
def test_every_kind_of_file_is_the_same_for_every_task(
    source: Any, kind: Any, build: Any, tmp_path: Path
) -> None:
    """The classes' own pixels are compared with PIL's and transformers' in `test_images`."""
    model = build(processor=PROCESSOR[kind])
    cells = [*(cell for cell, _ in FILES.values()), png(RGB)]
    items = kind(source(cells), model.processor)
    expected = ImageItems(labelled(cells), PLAIN)
    rows = range(len(cells))
    if kind is MaskItems:  # whose masks are of several sizes
        found = torch.cat([items.__getitems__([row])["pixel_values"] for row in rows])
    else:
        found = items.__getitems__(rows)["pixel_values"]
    assert torch.equal(found, expected.__getitems__(rows)["pixel_values"])
    paths = [tmp_path / str(row) for row in rows]
    for path, cell in zip(paths, cells, strict=True):
        path.write_bytes(cell["bytes"])
    answers = model.predict(paths)
    assert len(answers) == len(cells)
    if kind is MaskItems:  # of the image's own size, down to one pixel
        shapes = [open_image(cell).size[::-1] for cell in cells]
        assert [tuple(answer.shape) for answer in answers] == shapes


@EACH
def test_every_kind_of_damage_is_named_and_nothing_else_lost(
    source: Any, kind: Any, build: Any, tmp_path: Path
) -> None:
    model = build(processor=PROCESSOR[kind])
    good = png(RGB)
    cells = [good, *(cell for cell, _ in BROKEN.values()), good, good]
    items = kind(source(cells), model.processor, on_bad="skip")
    assert items.rows == [0, len(cells) - 2, len(cells) - 1] and len(items) == 3
    for number, ((cell, sentence), said) in enumerate(
        zip(BROKEN.values(), items.skipped, strict=True), 2
    ):
        assert said.startswith(f"row {number} of ") and sentence in said
        with pytest.raises(rb.InputError, match=f"row 2 .* cannot be read .*{sentence}"):
            kind(source([good, cell, good]), model.processor)
        (tmp_path / "broken").write_bytes(cell["bytes"])
        with pytest.raises(rb.InputError, match=sentence):
            model.predict([tmp_path / "broken"])


# Turned images: boxes and masks lie over the image as it is viewed

TURNS = {  # orientation -> what was done to the picture as it was saved
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_90,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_270,
}
BOX = [4, 12, 14, 27]  # lower than the picture is high where it lies on its side


def scene() -> PIL.Image.Image:
    """Black, 20 wide and 30 high, with a white box."""
    pixels = np.zeros((30, 20), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return PIL.Image.fromarray(pixels)


def turned(image: PIL.Image.Image, orientation: int) -> dict[str, Any]:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(TURNS[orientation]) if orientation in TURNS else image
    return encoded(stored, exif=exif)


@pytest.mark.parametrize("orientation", [1, *TURNS])
def test_boxes_and_masks_lie_over_images_as_they_are_viewed(orientation: int) -> None:
    cell, mask = turned(scene(), orientation), (np.array(scene()) > 0).astype(np.uint8)
    items = BoxItems(with_boxes([cell], [[BOX]]), ResidualDetectionProcessor())
    assert items[0]["labels"]["boxes"].tolist() == [BOX]
    assert torch.equal(items[0]["pixel_values"][0] > 0, torch.tensor(mask) == 1)
    for own in (png(mask), turned(PIL.Image.fromarray(mask), orientation)):
        item = MaskItems(with_masks([cell], [own]), ResidualImageProcessor())[0]
        assert torch.equal(item["pixel_values"][0] > 0, item["labels"] == 1)


def test_masks_of_another_size_are_named_and_nothing_else_lost() -> None:
    mask = (np.array(scene()) > 0).astype(np.uint8)
    cell = turned(scene(), 6)
    source = with_masks([cell] * 4, [png(mask), png(np.rot90(mask)), png(mask[:-1]), png(mask)])
    sentence = "it is 20x30 pixels as it is viewed, but its mask is 30x20"
    with pytest.raises(rb.InputError, match=f"row 2 .*{sentence}.*--on-bad skip"):
        MaskItems(source, ResidualImageProcessor())
    items = MaskItems(source, ResidualImageProcessor(), on_bad="skip")
    assert items.rows == [0, 3]
    assert sentence in items.skipped[0] and "mask is 20x29" in items.skipped[1]


def test_a_table_that_tells_other_sizes_than_its_images_have_is_told() -> None:
    boxes = [[[1, 2, 9, 8]]] * 2
    table = with_boxes([turned(scene(), 6), png(np.array(scene()))], boxes).dataset
    table = table.remove_columns(["width", "height"])
    table = table.add_column("width", [30, 20]).add_column("height", [20, 30])
    source = open_dataset(table, target=Boxes())
    sentence = "it is 20x30 pixels as it is viewed, but its boxes are told to be of 30x20"
    with pytest.raises(rb.InputError, match=f"row 1 .*{sentence}"):
        BoxItems(source, ResidualDetectionProcessor())
    items = BoxItems(source, ResidualDetectionProcessor(), on_bad="skip")
    assert items.rows == [1] and sentence in items.skipped[0]


def coco(folder: Path, sizes: list[tuple[int, int]]) -> None:
    """Turned images, annotated as of these widths and heights."""
    folder.mkdir()
    for number in range(len(sizes)):
        (folder / f"{number}.png").write_bytes(turned(scene(), 6)["bytes"])
    x, y, right, bottom = BOX
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": size[0], "height": size[1]}
            for n, size in enumerate(sizes)
        ],
        "annotations": [
            {"image_id": n, "category_id": 1, "bbox": [x, y, right - x, bottom - y]}
            for n in range(len(sizes))
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    (folder / "coco.json").write_text(json.dumps(content))


def voc(folder: Path, sizes: list[tuple[int, int]]) -> None:
    folder.mkdir()
    left, top, right, bottom = BOX
    for number, (width, height) in enumerate(sizes):
        (folder / f"{number}.png").write_bytes(turned(scene(), 6)["bytes"])
        (folder / f"{number}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size>"
            f"<object><name>a</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object></annotation>"
        )


@pytest.mark.parametrize("write", [coco, voc])
def test_annotations_of_an_image_of_another_size_are_named(write: Any, tmp_path: Path) -> None:
    """As of images that lie on their side where the program for annotating did not turn them."""
    write(tmp_path / "data", [(20, 30)] * 3 + [(30, 20)])
    sentence = r"3\.png has an annotation of 30x20 pixels, but the image, as it is viewed, is 20x30"
    with pytest.raises(rb.InputError, match=sentence):
        open_dataset(tmp_path / "data", target=Boxes())
    splits = open_splits(tmp_path / "data", kind="image", target=Boxes(), on_bad="skip")
    left = len(splits.train) + len(splits.validation)
    assert left == 3 and len(splits.skipped) == 1 and "30x20" in splits.skipped[0]
    assert splits.train.targets()[0]["boxes"].tolist() == [BOX]
