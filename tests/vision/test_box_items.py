"""Images with boxes as batches: whole, varied by their own draws, a size chosen for them."""

import itertools
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import resbackbones as rb
from resbackbones.data import Boxes, Source, open_dataset
from resbackbones.vision import (
    BoxAugment,
    BoxItems,
    ResidualDetectionProcessor,
    choose_resolution,
    draw_boxes,
)
from resbackbones.vision.box_items import varied

KINDS = ("red", "green", "blue")


def scene(number: int, width: int, height: int) -> tuple[PIL.Image.Image, dict[str, Any]]:
    """A grey image with a rectangle of each of a few colours, none over another."""
    random = np.random.default_rng(number)
    pixels = np.full((height, width, 3), 128, np.uint8)
    boxes, kinds = [], []
    for place in range(1 + number % 3):
        left = place * width // 3 + int(random.integers(0, width // 12))
        top = int(random.integers(0, height // 3))
        box = [left, top, left + width // 5, top + height // 2]
        kind = int(random.integers(3))
        pixels[box[1] : box[3], box[0] : box[2]] = 0
        pixels[box[1] : box[3], box[0] : box[2], kind] = 255
        boxes.append(box)
        kinds.append(kind)
    return PIL.Image.fromarray(pixels), {"bbox": boxes, "category": kinds}


def source(sizes: list[tuple[int, int]]) -> Source:
    images, objects = zip(*[scene(n, *size) for n, size in enumerate(sizes)], strict=True)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                "category": datasets.List(datasets.ClassLabel(names=list(KINDS))),
            },
        }
    )
    rows = {"image": list(images), "objects": list(objects)}
    made = datasets.Dataset.from_dict(rows, features=features)
    return open_dataset(made, target=Boxes(box_format="xyxy"))


SAME = [(60, 48)] * 6
MIXED = [(60, 48), (48, 60), (90, 30), (33, 47)]
FIXED = {"height": 24, "width": 30}
SHAPED = {"shortest_edge": 40, "longest_edge": 40}


def check(pixels: torch.Tensor, label: dict[str, torch.Tensor], rim: float = 1.5) -> None:
    """Every box holds its colour and, `rim` pixels further, nothing of it."""
    x = pixels * 0.5 + 0.5
    for (x1, y1, x2, y2), kind in zip(
        label["boxes"].tolist(), label["class_labels"].tolist(), strict=True
    ):
        others = x[[n for n in range(3) if n != kind]].amax(0)
        own = (x[kind] - others) > 0.5
        inside = own[round(y1 + rim) : round(y2 - rim), round(x1 + rim) : round(x2 - rim)]
        assert inside.all()
        low, left = max(0, round(y1 - rim)), max(0, round(x1 - rim))
        around = own[low : round(y2 + rim) + 1, left : round(x2 + rim) + 1].clone()
        around[
            max(0, round(y1)) - low : round(y2) - low, max(0, round(x1)) - left : round(x2) - left
        ] = False
        assert around.float().mean() < 0.2


@pytest.mark.parametrize(
    ("sizes", "size"), [(SAME, FIXED), (MIXED, FIXED), (MIXED, SHAPED), (MIXED, None)]
)
def test_boxes_follow_their_images(sizes: list, size: Any) -> None:
    items = BoxItems(source(sizes), ResidualDetectionProcessor(size=size))
    batch = items.__getitems__(range(len(items)))
    assert ("pixel_mask" in batch) == (size != FIXED)
    for number, (x, label) in enumerate(zip(batch["pixel_values"], batch["labels"], strict=True)):
        check(x, label)
        if size is None:
            width, height = sizes[number]
            assert batch["pixel_mask"][number].sum() == width * height


@pytest.mark.parametrize(("sizes", "size"), [(SAME, FIXED), (MIXED, SHAPED)])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_boxes_follow_their_varied_images(sizes: list, size: Any, mosaic: float) -> None:
    augment = BoxAugment(upside_down=True, zoom=(0.6, 2.0), mosaic=mosaic, jitter=0.0)
    items = BoxItems(source(sizes), ResidualDetectionProcessor(size=size), augment)
    seen = 0
    for epoch in range(5):
        items.set_epoch(epoch)
        batch = items.__getitems__(range(len(items)))
        height, width = items.canvas
        assert set(batch) == {"pixel_values", "labels"}  # all of one size: no mask
        assert batch["pixel_values"].shape[2:] == (height, width)
        for x, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            boxes = label["boxes"]
            assert (boxes[:, 2:] - boxes[:, :2] >= 2).all() and (boxes >= 0).all()
            assert (boxes <= torch.tensor([width, height, width, height])).all()
            check(x, label, rim=2.5)
            seen += len(boxes)
    assert seen > 20


def test_an_item_is_the_same_in_any_batch() -> None:
    items = BoxItems(
        source(SAME), ResidualDetectionProcessor(size=FIXED), BoxAugment(mosaic=0.5), seed=3
    )
    whole = items.__getitems__([4, 1, 2])
    alone = [items[row] for row in (4, 1, 2)]
    for number, item in enumerate(alone):
        torch.testing.assert_close(item["pixel_values"], whole["pixel_values"][number])
        for name, value in item["labels"].items():
            assert torch.equal(value, whole["labels"][number][name])
    items.set_epoch(1)
    assert not torch.equal(items.__getitems__([4, 1, 2])["pixel_values"], whole["pixel_values"])


def test_large_sets_are_decoded_again() -> None:
    processor = ResidualDetectionProcessor(size=SHAPED)
    kept = BoxItems(source(MIXED), processor, BoxAugment(mosaic=0.5))
    again = BoxItems(source(MIXED), processor, BoxAugment(mosaic=0.5), memory=1000)
    assert kept._pixels and not again._pixels
    rows = [3, 0, 2]
    assert torch.equal(
        kept.__getitems__(rows)["pixel_values"], again.__getitems__(rows)["pixel_values"]
    )
    assert kept.fingerprint() == again.fingerprint()


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(0, 0.99), min_size=7, max_size=7),
    st.floats(0.3, 3.0),
    st.booleans(),
    st.booleans(),
)
def test_a_box_that_is_left_stays_in_proportion(
    draws: list[float], zoom: float, flip: bool, upside_down: bool
) -> None:
    options = BoxAugment(flip=flip, upside_down=upside_down, zoom=(zoom, zoom), visible=1.0)
    label = {"boxes": torch.tensor([[10.0, 8, 20, 24]]), "class_labels": torch.tensor([1])}
    x = torch.zeros(1, 1, 32, 40)
    _, (found,) = varied(
        x, torch.tensor([[32.0, 40.0]]), [label], options, torch.tensor([draws]), (32, 40)
    )
    for x1, y1, x2, y2 in found["boxes"].tolist():  # nothing of it is cut off, so its size is known
        assert x2 - x1 == pytest.approx(10 * zoom, rel=1e-2, abs=1e-2)
        assert y2 - y1 == pytest.approx(16 * zoom, rel=1e-2, abs=1e-2)


def test_a_box_of_which_little_is_left_is_dropped() -> None:
    options = BoxAugment(flip=False, zoom=(2.0, 2.0), visible=0.3)
    label = {
        "boxes": torch.tensor([[0.0, 0, 20, 16], [15, 0, 25, 16], [18, 0, 40, 32]]),
        "class_labels": torch.tensor([0, 1, 2]),
    }
    draws = torch.zeros(1, 7)  # the upper left quarter
    _, (found,) = varied(
        torch.zeros(1, 1, 32, 40), torch.tensor([[32.0, 40]]), [label], options, draws, (32, 40)
    )
    assert found["class_labels"].tolist() == [0, 1]
    assert found["boxes"].tolist() == [[0, 0, 40, 32], [30, 0, 40, 32]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"zoom": (2.0, 1.0)}, "give the smaller factor"),
        ({"zoom": (0.0, 1.0)}, "above 0"),
        ({"mosaic": 1.5}, "mosaic=1.5; use a number from 0 to 1"),
        ({"jitter": 1}, "jitter=1; use a number from 0 to 0.99"),
    ],
)
def test_wrong_augmentations_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        BoxAugment(**arguments)


def test_other_targets_are_refused() -> None:
    classes = datasets.Dataset.from_dict({"image": [scene(0, 30, 20)[0]] * 2, "label": [0, 1]})
    with pytest.raises(rb.InputError, match=r"no boxes, .* target=Boxes\(\)"):
        BoxItems(open_dataset(classes), ResidualDetectionProcessor())


def test_a_resolution_is_chosen_by_the_boxes() -> None:
    large = source([(1200, 900)] * 3)  # boxes of 240x450
    size, levels, said = choose_resolution(large)
    assert size == {"height": 240, "width": 320} and levels == (8, 16)
    assert "1200x900" in said and "320x240" in said and "8, 16" in said
    size, levels, _ = choose_resolution(large, 640, (8, 16, 32))
    assert size == {"height": 480, "width": 640} and levels == (8, 16, 32)
    size, _, said = choose_resolution(source(MIXED))
    assert size == {"shortest_edge": 96, "longest_edge": 96}  # no more than the images have
    assert "the longer side of each" in said
    with pytest.raises(rb.InputError, match="give 32 or more"):
        choose_resolution(large, 16)


def test_small_boxes_ask_for_large_images() -> None:
    image = PIL.Image.new("RGB", (1000, 500))
    spots = {"bbox": [[x, 5, x + 20, 25] for x in range(0, 900, 90)], "category": ["spot"] * 10}
    rows = datasets.Dataset.from_dict({"image": [image], "objects": [spots]})
    size, levels, _ = choose_resolution(open_dataset(rows, target=Boxes(box_format="xyxy")))
    assert size == {"height": 304, "width": 608}  # of which they have 12
    assert levels == (8, 16)


def test_boxes_are_drawn() -> None:
    image = PIL.Image.new("RGB", (60, 40), "white")
    label = {"boxes": torch.tensor([[5.0, 5, 30, 30]]), "class_labels": torch.tensor([1])}
    drawn = np.asarray(draw_boxes(image, label, KINDS, width=1))
    assert drawn.shape == (40, 60, 3)
    assert drawn[30, 10].tolist() == [0x56, 0xB4, 0xE9]  # the colour of the second class
    assert (drawn[35:, 40:] == 255).all() and (np.asarray(image) == 255).all()
    found = {"boxes": label["boxes"], "scores": torch.tensor([0.5]), "labels": ["green"]}
    assert (np.asarray(draw_boxes(image, found, KINDS, width=1))[30, 10] == drawn[30, 10]).all()
    empty = {"boxes": torch.zeros(0, 4), "labels": []}
    assert (np.asarray(draw_boxes(image, empty)) == 255).all()


def test_batches_are_made_by_workers_too() -> None:
    items = BoxItems(source(SAME), ResidualDetectionProcessor(size=FIXED), BoxAugment())
    loader = torch.utils.data.DataLoader(items, batch_size=4, collate_fn=dict)
    assert [len(batch["labels"]) for batch in itertools.islice(loader, 2)] == [4, 2]
