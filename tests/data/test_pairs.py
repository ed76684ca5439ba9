"""Masks beside images: which belong together, and what is left over."""

import json
from pathlib import Path

import numpy as np
import pytest

from resbackbones.data import IGNORED, Masks, Splits, open_dataset, open_splits
from tests.data.helpers import image, refused, write
from tests.data.test_masks import encoded

MASK = encoded([[0, 1, 2, 0]] * 3)["bytes"]


def opened(where: Path, target: Masks | None = None) -> Splits:
    return open_splits(where, kind="image", target=target or Masks())


def pairs(splits: Splits, split: str = "train") -> list[tuple[str, str]]:
    source = getattr(splits, split)
    images = [Path(source.row_name(row)).name for row in range(len(source))]
    masks = [Path(value["path"]).name for value in source.targets()]
    return list(zip(images, masks, strict=True))


LAYOUTS = {
    "images and masks": ("images/{}/{}.jpg", "masks/{}/{}.png"),
    "splits first": ("{}/images/{}.png", "{}/masks/{}.bmp"),
    "labels": ("{}/image/{}.jpg", "{}/label/{}_L.png"),
    "camvid": ("{}/{}.png", "{}annot/{}.png"),
    "underscores": ("{}/{}.png", "{}_labels/{}_P.png"),
    "both named": ("{}_images/{}.jpg", "{}_masks/{}_mask.png"),
    "one folder": ("{}/{}.jpg", "{}/{}_mask.png"),
    "deeper": ("set/images/{}/x/{}.jpg", "set/annotations/{}/x/{}.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    at, mask_at = LAYOUTS[layout]
    for split in ("train", "val", "test"):
        for i in range(3):
            write({tmp_path / at.format(split, f"{split}.{i}"): image(i)})
            write({tmp_path / mask_at.format(split, f"{split}.{i}"): MASK})
    write({tmp_path / "classes.txt": "road\ntree\n\ncar\n"})
    splits = opened(tmp_path)
    assert splits.test is not None and splits.notes == (
        "Read as images with a mask each, matched by name",
    )
    assert splits.train.target.names == ("road", "tree", "car")
    parts = {"train": "train", "validation": "val", "test": "test"}
    for split, named in parts.items():
        own = pairs(splits, split)
        assert len(own) == 3
        for i, (picture, mask) in enumerate(own):
            assert Path(picture).stem == f"{named}.{i}" and mask.startswith(f"{named}.{i}")
    target = splits.train.target
    assert isinstance(target, Masks)
    assert target.decode(splits.test.targets()[0], (4, 3)).tolist() == [[0, 1, 2, 0]] * 3


def test_the_same_names_in_every_split(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test")):
        for i in range(4):
            write({tmp_path / f"{split}_images" / f"{i}.jpg": image()})
            mask = encoded(np.full((3, 4), number))["bytes"] if i else MASK
            write({tmp_path / f"{split}_masks" / f"{i}.png": mask})
    splits = opened(tmp_path)
    assert splits.test is not None and len(splits.train) + len(splits.validation) == 4
    assert all("test_masks" in value["path"] for value in splits.test.targets())


def test_pascal_voc(tmp_path: Path) -> None:
    for stem in "abcde":
        write({tmp_path / "JPEGImages" / f"{stem}.jpg": image()})
    for stem in "abcd":
        mask = encoded([[0, 15, 255, 0]] * 3)["bytes"]
        write({tmp_path / "SegmentationClass" / f"{stem}.png": mask})
        write({tmp_path / "SegmentationObject" / f"{stem}.png": mask})
    sets = tmp_path / "ImageSets" / "Segmentation"
    write({sets / "train.txt": "a\nb\n", sets / "val.txt": "c\nd\n", sets / "trainval.txt": "a\n"})
    splits = opened(tmp_path)
    assert pairs(splits) == [("a.jpg", "a.png"), ("b.jpg", "b.png")]
    assert pairs(splits, "validation") == [("c.jpg", "c.png"), ("d.jpg", "d.png")]
    assert splits.notes[1] == "1 image has no mask, left out (JPEGImages/e.jpg)"
    target = splits.train.target
    assert isinstance(target, Masks) and target.names == ("0", "15")
    assert target.decode(splits.train.targets()[0])[0].tolist() == [0, 1, IGNORED, 0]
    assert "2 classes of pixels ('0', '15'; 0, 15 in the masks), 255 is no class" in splits.found()


def test_what_is_left_over_is_told(tmp_path: Path) -> None:
    write({tmp_path / "images" / f"{i}.jpg": image() for i in range(6)})
    write({tmp_path / "masks" / f"{i}.png": MASK for i in range(2, 9)})
    splits = opened(tmp_path)
    assert len(splits.train) + len(splits.validation) == 4
    assert splits.notes[1:] == (
        "2 images have no mask, left out (the first: images/0.jpg)",
        "3 masks are of no image (the first: masks/6.png)",
    )


def test_masks_that_belong_to_none(tmp_path: Path) -> None:
    write({tmp_path / "a" / "images" / "0.jpg": image(), tmp_path / "a" / "masks" / "m.png": MASK})
    assert "none is called like one of 1 images (the first: images/0.jpg and masks/m.png)" in (
        refused(lambda: opened(tmp_path / "a"))
    )
    write({tmp_path / "b" / "images" / "0.jpg": image()})
    assert "no mask column" in (sentence := refused(lambda: opened(tmp_path / "b")))
    assert "masks stand in a folder such as 'masks'" in sentence
    write({tmp_path / "c" / "images" / "0.jpg": image()})
    write({tmp_path / "c" / "masks" / f"0.{ending}": MASK for ending in ("png", "bmp")})
    assert "has two masks (masks/0.bmp and masks/0.png)" in refused(lambda: opened(tmp_path / "c"))
    write({tmp_path / "d" / "images" / "0.jpg": image(), tmp_path / "d" / "masks" / "0.png": b"?"})
    assert "not one of 1 masks of" in refused(lambda: opened(tmp_path / "d"))


@pytest.mark.parametrize("column", ["mask", "mask_file_name"])
def test_metadata_beside_images(tmp_path: Path, column: str) -> None:
    """Paths in a table start at its own folder."""
    for split in ("train", "validation"):
        folder = tmp_path / split
        write({folder / f"{i}.jpg": image(i) for i in range(2)})
        write({folder / "m" / f"{i}.png": MASK for i in range(2)})
        lines = [{"file_name": f"{i}.jpg", column: f"m/{i}.png"} for i in range(2)]
        write({folder / "metadata.jsonl": "\n".join(map(json.dumps, lines))})
    splits = opened(tmp_path)
    assert pairs(splits) == [("0.jpg", "0.png"), ("1.jpg", "1.png")] and splits.notes == ()
    assert splits.validation.targets()[1]["path"] == str(tmp_path / "validation" / "m" / "1.png")


def test_places_decide_before_splits(tmp_path: Path) -> None:
    """A mask of another camera is no mask, though its name is the same; but folders may differ
    throughout."""
    for place in ("a", "b", "c"):
        write({tmp_path / "one" / "images" / place / "0.jpg": image()})
        write({tmp_path / "one" / "masks" / (place if place != "c" else "d") / "0.png": MASK})
    splits = opened(tmp_path / "one")
    assert len(splits.train) + len(splits.validation) == 2
    assert splits.notes[1:] == (
        "1 image has no mask, left out (images/c/0.jpg)",
        "1 mask is of no image (masks/d/0.png)",
    )
    write({tmp_path / "two" / "images" / f"{i}.jpg": image() for i in range(2)})
    write({tmp_path / "two" / "annotations" / "trimaps" / f"{i}.png": MASK for i in range(2)})
    assert len(opened(tmp_path / "two").notes) == 1


def test_a_split_alone_numbers_classes_as_train_does(tmp_path: Path) -> None:
    for split, numbers in (("train", [0, 3, 5, 5]), ("test", [5, 5, 5, 5])):
        for i in range(2):
            write({tmp_path / split / "images" / f"{i}.jpg": image()})
            write({tmp_path / split / "masks" / f"{i}.png": encoded([numbers] * 3)["bytes"]})
    source = open_dataset(tmp_path, "test", target=Masks())
    assert isinstance(source.target, Masks) and source.target.names == ("0", "3", "5")
    assert source.target.decode(source.targets()[0])[0].tolist() == [2, 2, 2, 2]


def test_another_size_than_the_image(tmp_path: Path) -> None:
    write({tmp_path / "images" / f"{i}.jpg": image() for i in range(2)})
    write({tmp_path / "masks" / f"{i}.png": MASK for i in range(2)})
    source = open_dataset(tmp_path, target=Masks())
    assert isinstance(source.target, Masks)
    with pytest.raises(ValueError, match="its mask is 4x3 pixels, but the image is 3x4"):
        source.target.decode(source.targets()[0], (3, 4))


def test_fingerprints_do_not_depend_on_the_place(tmp_path: Path) -> None:
    for place in "ab":
        write({tmp_path / place / "images" / f"{i}.jpg": image() for i in range(2)})
        write({tmp_path / place / "masks" / f"{i}.png": MASK for i in range(2)})
    prints = {open_dataset(tmp_path / place, target=Masks()).fingerprint() for place in "ab"}
    assert len(prints) == 1
