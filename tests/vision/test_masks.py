"""Items of images and masks: what a batch holds, how both vary together, what is named."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import resbackbones as rb
from resbackbones.classifier import class_weights
from resbackbones.data import Classes, Masks, Source, open_dataset, open_splits
from resbackbones.vision import (
    MaskAugment,
    MaskItems,
    ResidualForSemanticSegmentation,
    ResidualImageProcessor,
    UNet,
    draw_masks,
)
from resbackbones.vision.masks import colour, pixel_counts

CAMVID = Path("../shared/data/camvid_jpeg")
KEEP = ResidualImageProcessor()


def encoded(pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def scene(seed: int, height: int = 24, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """An image whose colour is 60 times the class of each pixel; blocks of 4 x 4; 9 is no class."""
    drawn = np.random.default_rng(seed).choice([0, 1, 2, 9], (height // 4, width // 4))
    mask = np.kron(drawn, np.ones((4, 4), int))
    return np.stack([60 * np.where(mask == 9, 3, mask)] * 3, -1), mask


def table(scenes: list[tuple[np.ndarray, np.ndarray]]) -> datasets.Dataset:
    columns = {
        "image": [encoded(image) for image, _ in scenes],
        "mask": [encoded(mask) for _, mask in scenes],
    }
    kind = datasets.Image(decode=False)
    return datasets.Dataset.from_dict(columns, datasets.Features(image=kind, mask=kind))


def rows(scenes: list[tuple[np.ndarray, np.ndarray]]) -> Source:
    return open_dataset(table(scenes), target=Masks(("a", "b", "c"), ignore=9))


SOURCE = rows([scene(number) for number in range(6)])


def test_a_batch_without_augmentation() -> None:
    size = {"height": 12, "width": 16}
    items = MaskItems(SOURCE, ResidualImageProcessor(size=size))
    batch = items.__getitems__([4, 0])
    image, mask = scene(4)
    assert batch["pixel_values"].shape == (2, 3, 12, 16)
    expected = items.processor(PIL.Image.fromarray(image.astype(np.uint8)), return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"][:1], expected.pixel_values)
    assert batch["labels"].dtype == torch.int64  # at the mask's own size
    assert (batch["labels"][0].numpy() == np.where(mask == 9, 255, mask)).all()
    assert len(items) == 6 and items.rows == [*range(6)] and not items.skipped


def test_what_is_not_kept_is_decoded_again() -> None:
    kept, not_kept = MaskItems(SOURCE, KEEP), MaskItems(SOURCE, KEEP, memory=10_000)
    assert not not_kept._pixels
    for name, value in kept.__getitems__([5, 2]).items():
        assert torch.equal(value, not_kept.__getitems__([5, 2])[name])
    assert torch.equal(pixel_counts(kept), pixel_counts(not_kept))


def test_a_mask_that_goes_away_is_named(tmp_path: Path) -> None:
    image, mask = scene(0)
    for number in range(2):
        PIL.Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{number}.png")
        PIL.Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f"mask{number}.png")
    columns = {
        "image": [{"bytes": None, "path": str(tmp_path / f"{n}.png")} for n in range(2)],
        "mask": [{"bytes": None, "path": str(tmp_path / f"mask{n}.png")} for n in range(2)],
    }
    kind = datasets.Image(decode=False)
    given = datasets.Dataset.from_dict(columns, datasets.Features(image=kind, mask=kind))
    source = open_dataset(given, target=Masks(("a", "b", "c"), ignore=9))
    items = MaskItems(source, KEEP, memory=0)
    (tmp_path / "mask1.png").unlink()
    items.__getitems__([0])
    with pytest.raises(rb.InputError, match=r"1\.png could be read before, but cannot be read now"):
        items.__getitems__([1])


@settings(max_examples=20)
@given(
    height=st.integers(5, 40),
    width=st.integers(5, 40),
    zoom=st.tuples(st.floats(0.5, 1), st.floats(1, 2)),
    epoch=st.integers(0, 9),
)
def test_image_and_mask_vary_together(
    height: int, width: int, zoom: tuple[float, float], epoch: int
) -> None:
    items = MaskItems(SOURCE, KEEP, MaskAugment((height, width), zoom, jitter=0))
    items.set_epoch(epoch)
    batch = items.__getitems__([0, 1, 2])
    assert batch["pixel_values"].shape == (3, 3, height, width)
    assert batch["labels"].shape == (3, height, width)
    # Where all of a pixel's neighbours are of its class, so is its colour.
    labels = batch["labels"].float().unsqueeze(1)
    pool = torch.nn.functional.max_pool2d
    inside = (pool(labels, 5, 1) == -pool(-labels, 5, 1)) & (labels[..., 2:-2, 2:-2] != 255)
    found = (batch["pixel_values"][:, :1] + 1) * 127.5 / 60
    wrong = (found - labels)[..., 2:-2, 2:-2][inside].abs() > 1e-3
    assert not wrong.any()


def test_nothing_varied_is_the_image_itself() -> None:
    items = MaskItems(SOURCE, KEEP)
    plain = items.__getitems__([0, 3])
    items.augment = MaskAugment((24, 32), (1, 1), flip=False, jitter=0)
    varied = items.__getitems__([0, 3])
    torch.testing.assert_close(varied["pixel_values"], plain["pixel_values"], atol=1e-5, rtol=0)
    assert torch.equal(varied["labels"], plain["labels"])
    items.augment = MaskAugment((24, 32), (1, 1), jitter=0)
    flips = items.__getitems__([*range(6)])["labels"], items.augment
    own = MaskItems(SOURCE, KEEP).__getitems__([*range(6)])["labels"]
    same = [torch.equal(a, b) for a, b in zip(flips[0], own, strict=True)]
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(flips[0], own, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True)) and 0 < sum(same) < 6


def test_beyond_the_rim_there_is_no_class() -> None:
    items = MaskItems(SOURCE, KEEP, MaskAugment((48, 64), (1, 1), jitter=0))
    real = MaskItems(SOURCE, KEEP).__getitems__([1])["labels"]
    expected = torch.bincount(real.flatten(), minlength=256)
    for epoch in range(30):  # a larger crop holds the whole image, wherever
        items.set_epoch(epoch)
        batch = items.__getitems__([1])
        counts = torch.bincount(batch["labels"].flatten(), minlength=256)
        assert torch.equal(counts[:255], expected[:255])
        assert (batch["pixel_values"] == 0).all(1).sum() > 0.7 * 24 * 32 * 3


def test_an_item_looks_the_same_in_any_batch() -> None:
    items = MaskItems(SOURCE, KEEP, MaskAugment((16, 16)), seed=3)
    together, alone = items.__getitems__([4, 2, 0]), items.__getitems__([2])
    for name, value in together.items():
        torch.testing.assert_close(value[1], alone[name][0], atol=1e-6, rtol=0)
    items.set_epoch(1)
    assert not torch.equal(items.__getitems__([2])["pixel_values"], alone["pixel_values"])


def test_jitter_changes_colours_alone() -> None:
    plain = MaskItems(SOURCE, KEEP, MaskAugment((24, 32), (1, 1), jitter=0)).__getitems__([0, 1])
    varied = MaskItems(SOURCE, KEEP, MaskAugment((24, 32), (1, 1), jitter=0.4)).__getitems__([0, 1])
    assert torch.equal(plain["labels"], varied["labels"])
    assert not torch.allclose(plain["pixel_values"], varied["pixel_values"], atol=0.05)
    assert varied["pixel_values"].min() >= -1 and varied["pixel_values"].max() <= 1


def test_images_of_several_sizes() -> None:
    source = rows([scene(0), scene(1, 40, 20), scene(2)])
    items = MaskItems(source, KEEP)
    with pytest.raises(rb.InputError, match="of 2 sizes cannot be one batch; take them one by one"):
        items.__getitems__([0, 1])
    assert items.__getitems__([1])["labels"].shape == (1, 40, 20)
    items.augment = MaskAugment((16, 16))
    together = items.__getitems__([0, 1, 2])
    assert together["pixel_values"].shape == (3, 3, 16, 16)
    torch.testing.assert_close(
        together["pixel_values"][1:2], items.__getitems__([1])["pixel_values"]
    )


def test_damaged_items_are_named_or_left_out() -> None:
    scenes = [scene(number) for number in range(4)]
    scenes[1] = scenes[1][0], scenes[1][1][:-4]
    source = rows(scenes)
    with pytest.raises(rb.InputError, match=r"row 2 .*it is 32x24 pixels .* its mask is 32x20"):
        MaskItems(source, KEEP)
    scenes[1] = scene(1)[0], np.full((24, 32), 7)
    with pytest.raises(rb.InputError, match=r"row 2 .* has the number 7"):
        MaskItems(_unlearned(scenes), KEEP)
    items = MaskItems(_unlearned(scenes), KEEP, on_bad="skip")
    assert items.rows == [0, 2, 3] and len(items.skipped) == 1 and "row 2" in items.skipped[0]
    assert (items[1]["labels"] == MaskItems(SOURCE, KEEP)[2]["labels"]).all()


def _unlearned(scenes: list[tuple[np.ndarray, np.ndarray]]) -> Source:
    """A source whose target learned from other masks."""
    return replace(SOURCE, dataset=table(scenes))


def test_classes_are_no_masks() -> None:
    columns = {"image": [encoded(scene(0)[0])] * 4, "label": [0, 1, 0, 1]}
    source = open_dataset(
        datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False)),
        target=Classes(),
    )
    with pytest.raises(rb.InputError, match="open it with target=Masks"):
        MaskItems(source, KEEP)


@pytest.mark.parametrize(
    "options",
    [{"crop": (0, 4)}, {"crop": (4,)}, {"zoom": (2, 1)}, {"zoom": (0, 1)}, {"jitter": 1}],
)
def test_augmentations_that_do_not_exist(options: dict[str, Any]) -> None:
    with pytest.raises(rb.InputError):
        MaskAugment(**{"crop": (4, 4)} | options)


def test_the_fingerprint_tells_masks_and_pixels() -> None:
    first = MaskItems(SOURCE, KEEP).fingerprint()
    assert first == MaskItems(SOURCE, KEEP).fingerprint()
    other = rows([*[scene(number) for number in range(5)], (scene(5)[0], scene(6)[1])])
    assert MaskItems(other, KEEP).fingerprint() != first
    size = ResidualImageProcessor(size={"height": 12, "width": 16})
    assert MaskItems(SOURCE, size).fingerprint() != first
    assert MaskItems(SOURCE, KEEP, MaskAugment((4, 4))).fingerprint() != first


def test_pixels_of_classes_are_counted() -> None:
    mask = torch.cat([item["labels"].flatten() for item in MaskItems(SOURCE, KEEP)])
    assert torch.equal(pixel_counts(MaskItems(SOURCE, KEEP)), torch.bincount(mask[mask < 255]))


def test_drawn_masks() -> None:
    image = np.full((4, 100, 3), 100, np.uint8)
    classes = torch.zeros(4, 100).long()
    classes[:, 50:] = 2
    classes[0] = 255
    drawn = np.asarray(draw_masks(PIL.Image.fromarray(image), classes, alpha=0.5))
    assert (drawn[0] == 100).all()
    for place, number in ((0, 0), (99, 2)):
        assert drawn[2, place] == pytest.approx((np.array(colour(number)) + 100) / 2, abs=0.51)
    named = draw_masks(PIL.Image.fromarray(image), classes, ["ground", "b", "a long name of a sky"])
    assert named.width == 100 and named.height > 30  # two lines of names
    assert len({colour(number) for number in range(64)}) == 64
    with pytest.raises(rb.InputError, match=r"have shape \(4, 99\), but the image is 100x4"):
        draw_masks(PIL.Image.fromarray(image), classes[:, 1:])


def test_a_model_learns_them() -> None:
    torch.manual_seed(0)
    items = MaskItems(SOURCE, KEEP, MaskAugment((24, 24), (0.75, 1.5), jitter=0.05))
    spec = rb.BackboneSpec((rb.Stage(8, 1), rb.Stage(16, 1, 2)), stem=rb.Stem(8))
    model = ResidualForSemanticSegmentation.build(
        spec, labels=SOURCE.target.names, decoder=UNet(8, 16), processor=KEEP
    )
    model.class_weights = class_weights(pixel_counts(items), 0.5)
    options = rb.train.Options(
        epochs=20, batch_size=3, learning_rate=1e-2, least_updates=1, metric="mean_iou",
        progress=False, precision="float32",
    )  # fmt: skip
    result = rb.train.fit(model, items, MaskItems(SOURCE, KEEP), options)
    assert result.metrics["mean_iou"] > 0.85
    (found,) = model.predict(PIL.Image.fromarray(scene(2)[0].astype(np.uint8)))
    assert ((found.numpy() == scene(2)[1]) | (scene(2)[1] == 9)).mean() > 0.85


@pytest.mark.skipif(not CAMVID.exists(), reason="the street scenes are not here")
def test_street_scenes() -> None:
    source = open_splits(CAMVID, kind="image", target=Masks(ignore=11)).validation
    items = MaskItems(
        source.select([0, 1]), ResidualImageProcessor(size={"shortest_edge": 90}),
    )  # fmt: skip
    batch = items.__getitems__([0, 1])
    assert batch["pixel_values"].shape == (2, 3, 90, 120)
    assert batch["labels"].shape == (2, 360, 480)
    assert batch["labels"][batch["labels"] != 255].max() == 10
