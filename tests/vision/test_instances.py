"""Masks of objects as batches and figures: they follow their images and boxes, and are measured."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

import resbackbones as rb
from resbackbones.data import Boxes, open_dataset
from resbackbones.vision import (
    AveragePrecision,
    BoxAugment,
    BoxItems,
    ResidualDetectionProcessor,
    draw_boxes,
)
from resbackbones.vision.box_items import varied
from tests.vision.helpers import instances

SAME, MIXED = [(60, 48)] * 6, [(60, 48), (48, 60), (90, 40), (44, 47)]
FIXED, SHAPED = {"height": 36, "width": 44}, {"shortest_edge": 40, "longest_edge": 40}


def items(folder: Path, sizes: list, size: Any, augment: BoxAugment | None = None) -> BoxItems:
    source = open_dataset(instances(folder, sizes), target=Boxes(masks=True))
    return BoxItems(source, ResidualDetectionProcessor(size=size), augment)


def check(pixels: Tensor, label: dict[str, Tensor]) -> None:
    """A mask is the pixels of its colour, give or take three on its rim, and a box is around it."""
    x = pixels * 0.5 + 0.5
    assert label["masks"].dtype == torch.uint8
    assert label["masks"].shape == (len(label["boxes"]), *pixels.shape[1:])
    kinds = (0, 2)
    together = {kind: torch.zeros(pixels.shape[1:], dtype=torch.bool) for kind in kinds}
    for mask, box, number in zip(
        label["masks"].bool(), label["boxes"], label["class_labels"], strict=True
    ):
        together[kinds[int(number)]] |= mask
        rows, columns = mask.nonzero().unbind(1)
        around = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (around - box).abs().max() <= 2
    for kind in kinds:
        shown, mask = (x[kind] - x[2 - kind]) > 0.5, together[kind].float()[None]
        inner, outer = -max_pool2d(-mask, 7, 1, 3)[0] > 0, max_pool2d(mask, 7, 1, 3)[0] > 0
        assert shown[inner].all()
        # An object of which less than two pixels are left at the rim is dropped.
        assert not (shown & ~outer)[3:-3, 3:-3].any()


@pytest.mark.parametrize(("sizes", "size"), [(SAME, FIXED), (MIXED, SHAPED), (MIXED, None)])
def test_masks_follow_their_images(sizes: list, size: Any, tmp_path: Path) -> None:
    made = items(tmp_path, sizes, size)
    batch = made.__getitems__([2, 0, 3])
    for x, label in zip(batch["pixel_values"], batch["labels"], strict=True):
        assert len(label["boxes"]) == 2
        check(x, label)
    assert isinstance(made.labels[0]["masks"][0]["counts"], bytes)  # encoded until a batch


@pytest.mark.parametrize(("sizes", "size"), [(SAME, FIXED), (MIXED, SHAPED)])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_masks_follow_their_varied_images(
    sizes: list, size: Any, mosaic: float, tmp_path: Path
) -> None:
    augment = BoxAugment(upside_down=True, zoom=(0.6, 2.0), mosaic=mosaic, jitter=0.0, visible=0.0)
    made = items(tmp_path, sizes, size, augment)
    seen = 0
    for epoch in range(5):
        made.set_epoch(epoch)
        batch = made.__getitems__(range(len(made)))
        for x, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            check(x, label)
            seen += len(label["boxes"])
    assert seen > 30


def test_the_box_of_what_is_cut_is_around_what_is_left() -> None:
    options = BoxAugment(flip=False, zoom=(2.0, 2.0), visible=0.0)
    masks = torch.zeros(3, 32, 40, dtype=torch.uint8)
    masks[0, 4:8, 4:30] = 1  # the upper part of its box
    masks[1, 0:4, 2:6] = 1  # not cut: its box is as it was given
    masks[2, 20:30, 10:30] = 1  # of which nothing is seen, though of its box a part
    label = {
        "boxes": torch.tensor([[4.0, 4, 30, 30], [1, 0, 7, 5], [10, 10, 30, 30]]),
        "class_labels": torch.tensor([0, 1, 2]),
        "masks": masks,
    }
    draws = torch.zeros(1, 7)  # the upper left quarter
    _, (found,) = varied(
        torch.zeros(1, 1, 32, 40), torch.tensor([[32.0, 40]]), [label], options, draws, (32, 40)
    )
    assert found["class_labels"].tolist() == [0, 1]
    assert found["boxes"].tolist() == [[8, 8, 40, 16], [2, 0, 14, 10]]
    assert torch.equal(found["masks"][1].nonzero().amin(0), torch.tensor([0, 4]))


def test_an_item_with_masks_is_the_same_in_any_batch(tmp_path: Path) -> None:
    made = items(tmp_path, SAME, FIXED, BoxAugment(mosaic=0.5))
    whole = made.__getitems__([4, 1, 2])["labels"]
    for row, label in zip((4, 1, 2), whole, strict=True):
        assert torch.equal(made[row]["labels"]["masks"], label["masks"])
    plain = BoxItems(open_dataset(tmp_path, target=Boxes()), made.processor, BoxAugment(mosaic=0.5))
    assert plain.fingerprint() != made.fingerprint() and "masks" not in plain[0]["labels"]


def test_masks_of_another_size_than_the_image_are_refused(tmp_path: Path) -> None:
    instances(tmp_path, SAME)
    PIL.Image.new("RGB", (30, 24)).save(tmp_path / "1.png")
    told = r"1\.png has an annotation of 60x48 pixels, but the image, as it is viewed, is 30x24"
    with pytest.raises(rb.InputError, match=told):
        open_dataset(tmp_path, target=Boxes(masks=True))


# Figures


BOXES = torch.tensor([[3.0, 2, 13, 10], [3, 12, 13, 18]])
MASKS = torch.zeros(2, 20, 30)
MASKS[0, 2:10, 3:13] = MASKS[1, 12:18, 3:13] = 1


def seen(masks: Tensor, labels: list[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    scores, classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    return (
        {"boxes": BOXES, "scores": scores, "labels": torch.tensor(labels), "masks": masks},
        {"boxes": BOXES, "class_labels": classes, "masks": MASKS},
    )


def test_average_precision_of_masks_by_hand() -> None:
    metric, half = AveragePrecision(["a", "b"], masks=True), MASKS.clone()
    half[0, 6:10] = 0  # one half of it
    metric.add(*seen(half, [0, 1]))
    empty = {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 9, 9)}
    metric.add(
        {**empty, "scores": torch.zeros(0), "labels": torch.zeros(0)},
        {**empty, "class_labels": torch.zeros(0)},
    )
    figures, scores = metric.compute(), metric.per_class()
    assert [figures[name] for name in ("map", "ap50", "ap75")] == [1, 1, 1]
    assert figures["mask_ap50"] == 1 and figures["mask_ap75"] == 0.5
    assert figures["mask_map"] == pytest.approx((0.1 + 1) / 2)
    assert scores["a"]["mask_ap"] == pytest.approx(0.1) and scores["b"]["mask_ap"] == 1
    assert scores["a"]["ap"] == 1 and scores["a"]["support"] == 1
    nothing = AveragePrecision(["a"], masks=True).compute()
    assert set(nothing) == set(figures) and all(np.isnan(value) for value in nothing.values())


def test_average_precision_of_masks_is_exact_under_any_split() -> None:
    half = MASKS.clone()
    half[:, :, 8:] = 0
    images = [seen(MASKS, [0, 1]), seen(half, [0, 1]), seen(half, [1, 0])]

    def counted(*numbers: int) -> AveragePrecision:
        metric = AveragePrecision(["a", "b"], masks=True)
        for number in numbers:
            metric.add(*images[number])
        return pickle.loads(pickle.dumps(metric))

    whole = counted(0, 1, 2)
    for first, second in (((2,), (1, 0)), ((1, 2), (0,)), ((), (2, 0, 1))):
        metric = counted(*first)
        metric.merge(counted(*second))
        assert metric.compute() == whole.compute()


def test_masks_are_drawn() -> None:
    image = PIL.Image.new("RGB", (30, 20), "white")
    found = {"boxes": BOXES, "labels": ["a", "b"], "masks": MASKS.bool()}
    drawn = np.asarray(draw_boxes(image, found, width=1)).astype(int)
    plain = draw_boxes(image, {"boxes": BOXES, "labels": ["a", "b"]}, width=1)
    orange, blue = np.array([0xE6, 0x9F, 0x00]), np.array([0x56, 0xB4, 0xE9])
    assert np.abs(drawn[8, 11] - (255 + orange) / 2).max() <= 1
    assert np.abs(drawn[16, 11] - (255 + blue) / 2).max() <= 1
    bare = ~MASKS.any(0).numpy()
    assert (drawn[bare] == np.asarray(plain)[bare]).all()
