"""Masks of objects: polygons and run lengths become the same pixels, and what is none is told."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resbackbones.data import Boxes, open_dataset, open_splits
from resbackbones.data.instances import counts_of, decode, encode
from tests.data.helpers import refused, write
from tests.data.test_annotations import HEIGHT, WIDTH, coco, picture, voc

SIZE = (WIDTH, HEIGHT)


def rectangle(left: int, top: int, right: int, bottom: int) -> torch.Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def uncompressed(mask: torch.Tensor) -> dict[str, Any]:
    """Run lengths column by column, the first of pixels that are not in the object."""
    values = [0, *mask.T.flatten().tolist()]
    starts = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    ends = [1, *starts, len(values)]
    counts = [end - start for start, end in itertools.pairwise(ends)]
    return {"size": [HEIGHT, WIDTH], "counts": counts}


MASK = rectangle(2, 3, 12, 8)
POLYGON = [2, 3, 12, 3, 12, 8, 2, 8]
(COMPRESSED,) = encode(MASK[None])
WAYS = {
    "polygon": [POLYGON],
    "polygons": [[2, 3, 7, 3, 7, 8, 2, 8], [7, 3, 12, 3, 12, 8, 7, 8]],
    "run lengths": uncompressed(MASK),
    "compressed": COMPRESSED | {"counts": COMPRESSED["counts"].decode()},
}
NONE = {
    "missing": None,
    "empty": [],
    "a box": [2, 3, 12, 8],
    "two corners": [[2, 3, 12, 8]],
    "an odd number": [[*POLYGON, 4]],
    "no numbers": [["a"] * 6],
    "not finite": [[float("nan")] * 6],
    "far away": [[1e9, 0, 0, 1e9, 3, 3]],
    "outside": [[-9, -9, -5, -9, -5, -5]],
    "another size": {"size": [WIDTH, HEIGHT], "counts": [0, WIDTH * HEIGHT]},
    "too few pixels": {"size": [HEIGHT, WIDTH], "counts": [5, 5]},
    "too many pixels": {"size": [HEIGHT, WIDTH], "counts": [5, WIDTH * HEIGHT]},
    "negative": {"size": [HEIGHT, WIDTH], "counts": [-1, WIDTH * HEIGHT + 1]},
    "no pixel": {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]},
    "no counts": {"size": [HEIGHT, WIDTH]},
    "garbage": {"size": [HEIGHT, WIDTH], "counts": "garbage €"},
    "a number": 7,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_mask_gives_its_pixels(way: str) -> None:
    counts = counts_of(WAYS[way], SIZE)
    assert counts is not None
    found = decode([{"size": [HEIGHT, WIDTH], "counts": counts.encode()}], (HEIGHT, WIDTH))
    assert torch.equal(found[0], MASK)


@pytest.mark.parametrize("what", NONE)
def test_what_is_no_mask(what: str) -> None:
    assert counts_of(NONE[what], SIZE) is None
    assert counts_of(WAYS["polygon"], (None, None)) is None


@given(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32))
def test_run_lengths_lose_nothing(count: int, height: int, width: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    masks = torch.randint(2, (count, height, width), generator=random, dtype=torch.uint8)
    assert torch.equal(decode(encode(masks), (height, width)), masks)


def annotated(folder: Path, segmentations: list[Any]) -> None:
    """Two images, the second without objects; an object per segmentation in the first."""
    write({folder / f"{i}.jpg": picture(i) for i in range(2)})
    box = {"image_id": 10, "category_id": 7, "bbox": [2, 3, 10, 5]}
    objects = [{**box, "segmentation": each} for each in segmentations]
    coco(folder / "a.json", ["0.jpg", "1.jpg"], annotations=objects)


def test_masks_of_coco(tmp_path: Path) -> None:
    annotated(tmp_path, [*WAYS.values()])
    source = open_dataset(tmp_path, target=Boxes(masks=True))
    first, second = source.targets()
    assert len(first["boxes"]) == len(WAYS) and second["masks"] == []
    assert torch.equal(decode(first["masks"], (HEIGHT, WIDTH)), MASK.expand(len(WAYS), -1, -1))
    assert source.target.names == ("zebra", "cat") and first["class_labels"].tolist() == [1] * 4
    plain = open_dataset(tmp_path, target=Boxes())
    assert "masks" not in plain.targets()[0] and plain.fingerprint() != source.fingerprint()


def test_an_object_without_a_mask_is_dropped_and_told(tmp_path: Path) -> None:
    usable = [[2, 3, 12, 3, 12, 8]]
    given = [*NONE.values(), usable]
    annotated(tmp_path, given)
    with pytest.warns(
        UserWarning, match=f"{len(NONE)} of {len(given)} boxes .* are dropped"
    ) as told:
        source = open_dataset(tmp_path, target=Boxes(masks=True))
    assert f"({len(NONE)} without a usable segmentation; the first: " in str(told[0].message)
    assert [len(value["boxes"]) for value in source.targets()] == [1, 0]
    assert len(source.targets()[0]["masks"]) == 1
    assert len(open_dataset(tmp_path, target=Boxes()).targets()[0]["boxes"]) == len(given)
    strict = Boxes(masks=True, on_bad_box="error")
    assert "0.jpg has a box without a usable segmentation (2 3 12 8)" in refused(
        lambda: open_dataset(tmp_path, target=strict)
    )


def test_files_without_masks_are_refused(tmp_path: Path) -> None:
    for i in range(4):
        document = voc(("cat", [2, 3, 11, 7]))
        write({tmp_path / f"{i}.jpg": picture(i), tmp_path / f"{i}.xml": document})
    sentence = refused(lambda: open_splits(tmp_path, target=Boxes(masks=True)))
    assert "not one of 4 boxes" in sentence and "without a usable segmentation" in sentence
    assert "their masks (of COCO)" in sentence


def test_sizes_that_the_file_lacks_are_those_of_the_images(tmp_path: Path) -> None:
    annotated(tmp_path, [WAYS["polygon"]])
    content = json.loads((tmp_path / "a.json").read_text())
    for image in content["images"]:
        del image["width"], image["height"]
    write({tmp_path / "a.json": json.dumps(content)})
    (mask,) = open_dataset(tmp_path, target=Boxes(masks=True)).targets()[0]["masks"]
    assert torch.equal(decode([mask], (HEIGHT, WIDTH))[0], MASK)
