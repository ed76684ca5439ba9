"""A class for every pixel: what the numbers in a mask mean."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image

from resbackbones.data import IGNORED, Column, Masks, open_dataset, open_mask, open_splits
from tests.data.helpers import image, refused

CAMVID = Path("../shared/data/camvid_jpeg")


def encoded(pixels: Any, mode: str | None = None, form: str = "png") -> dict[str, Any]:
    file = io.BytesIO()
    picture = pixels
    if not isinstance(pixels, PIL.Image.Image):
        array = np.array(pixels)
        picture = PIL.Image.fromarray(array.astype(np.uint8) if array.dtype == int else array)
    (picture if mode is None else picture.convert(mode)).save(file, form)
    return {"bytes": file.getvalue(), "path": None}


def column(*masks: Any, **more: Any) -> Column:
    return Column("mask", [encoded(mask) for mask in masks], "roads", "row {}".format, **more)


@pytest.mark.skipif(not CAMVID.exists(), reason="the street scenes are not here")
def test_street_scenes() -> None:
    splits = open_splits(CAMVID, kind="image", target=Masks(ignore=11))
    assert splits.test is not None
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [367, 101, 233]
    assert splits.train.columns == {"input": "image", "mask": "mask"}
    target = splits.train.target
    assert isinstance(target, Masks) and target.names == tuple(map(str, range(11)))
    value = splits.train.targets()[0]
    raw, classes = open_mask(value), target.decode(value)
    assert classes.shape == (360, 480) and classes.dtype == np.uint8
    assert (classes[raw == 11] == IGNORED).all() and (raw == 11).any()
    assert (classes[raw < 11] == raw[raw < 11]).all()
    assert "11 classes of pixels ('0', '1', '2', '3', …), 11 is no class" in splits.found()
    assert len(open_dataset(CAMVID, "test", target=Masks()).target.names) == 12


def test_numbers_in_files() -> None:
    palette = PIL.Image.fromarray(np.array([[0, 2], [1, 2]], np.uint8), "L").convert("P")
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0] + [0] * 759)
    shuffled = PIL.Image.frombytes("P", (2, 2), bytes([0, 2, 1, 2]))
    shuffled.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    assert open_mask(encoded(shuffled)).tolist() == [[0, 2], [1, 2]]
    assert open_mask(encoded([[0, 7]])).dtype == np.uint8
    assert open_mask(encoded(np.array([[True, False]]))).tolist() == [[1, 0]]
    deep = open_mask(encoded(np.array([[0, 300]], np.uint16)))
    assert deep.tolist() == [[0, 300]] and deep.dtype == np.int64
    for mode in ("RGB", "RGBA", "LA"):
        assert open_mask(encoded([[3, 4]], mode)).tolist() == [[3, 4]]
    with pytest.raises(ValueError, match="mode RGB with colours or a class per channel"):
        open_mask(encoded(np.eye(3, dtype=np.uint8)[None] * 255))
    with pytest.raises(ValueError, match="JPEG, which blurs the numbers"):
        open_mask(encoded([[0, 1]], form="jpeg"))
    with pytest.raises(ValueError, match="no whole ones"):
        open_mask(encoded(np.array([[0.5]], np.float32), form="tiff"))


@pytest.mark.parametrize(
    ("target", "listed", "mask", "names", "classes", "ignore"),
    [
        (Masks(), None, [0, 1, 2], ("0", "1", "2"), [0, 1, 2], None),
        (Masks(), None, [1, 3, 2], ("1", "2", "3"), [0, 2, 1], None),
        (Masks(), None, [0, 255], ("background", "foreground"), [0, 1], None),
        (Masks(), None, [0, 5, 255], ("0", "5"), [0, 1, 255], 255),
        (Masks(ignore=11), None, [0, 1, 11], ("0", "1"), [0, 1, 255], 11),
        (Masks(ignore=0), None, [0, 1, 2], ("1", "2"), [255, 0, 1], 0),
        (Masks(("a", "b", "c")), None, [0, 2, 0], ("a", "b", "c"), [0, 2, 0], None),
        (Masks(("a", "b", "c")), None, [0, 128, 255], ("a", "b", "c"), [0, 1, 2], None),
        (Masks(("a", "b", "c")), None, [0, 2, 255], ("a", "b", "c"), [0, 2, 255], 255),
        (Masks(("a", "b", "c")), None, [0, 255, 0], ("a", "b", "c"), [0, 255, 0], 255),
        (Masks(("a", "b")), None, [0, 255, 0], ("a", "b"), [0, 1, 0], None),
        (Masks(("a", "b"), ignore=0), None, [0, 1, 2], ("a", "b"), [255, 0, 1], 0),
        (Masks(("a", "b", "c")), None, [1, 3, 2], ("a", "b", "c"), [0, 2, 1], None),
        (Masks(("a", "b")), None, [0, 1, 255], ("a", "b"), [0, 1, 255], 255),
        (Masks(), ("a", "b", "void"), [0, 1, 2], ("a", "b", "void"), [0, 1, 2], None),
        (Masks(ignore=2), ("a", "b", "void"), [0, 1, 2], ("a", "b"), [0, 1, 255], 2),
        (Masks(ignore=0), ("void", "a", "b"), [0, 1, 2], ("a", "b"), [255, 0, 1], 0),
        (Masks(ignore=1), ("a", "void", "b"), [0, 1, 2], ("a", "b"), [0, 255, 1], 1),
    ],
)
def test_numbers_of_classes(
    target: Masks, listed: Any, mask: list[int], names: Any, classes: list[int], ignore: Any
) -> None:
    rows = column([mask], listed=listed)
    learned = target.learn(rows)
    assert (learned.names, learned.ignore) == (names, ignore)
    assert learned.decode(rows.cells[0]).tolist() == [classes]


def test_numbers_that_are_none_of_a_class() -> None:
    assert refused(lambda: Masks(("a", "b")).learn(column([[0, 1, 7]]))) == (
        "the masks of roads hold the numbers 0, 1, 7, but 2 classes are named, of the numbers 0, "
        "1; name a class for 7 too, or say that it is none with ignore=7 (--ignore)"
    )
    learned = Masks().learn(column([[0, 1]]))
    with pytest.raises(ValueError, match="its mask has the number 7, none of 0, 1 of the classes"):
        learned.decode(encoded([[0, 7]]))
    assert "have 1 classes (3)" in refused(lambda: Masks().learn(column([[3, 3]])))
    with pytest.raises(ValueError, match="know no column yet"):
        Masks().decode(encoded([[0, 7]]))


def test_masks_that_cannot_be_read() -> None:
    broken = Column("mask", [{"bytes": b"?", "path": None}], "roads", "row {}".format)
    assert "not one of 1 masks of roads can be read (row 0: cannot identify" in refused(
        lambda: Masks().learn(broken)
    )
    images = [{"bytes": image(), "path": None}] * 3
    masks = [encoded([[0, 1]]), None, encoded([[1, 0]])]
    features = Features(image=Image(), mask=Image())
    rows = Dataset.from_dict({"image": images, "mask": masks}, features=features)
    sentence = refused(lambda: open_dataset(rows, target=Masks()))
    assert "row 2 of the given data set [train] has no mask in column 'mask'" in sentence
    splits = open_splits(rows, target=Masks(), on_bad="skip")
    assert len(splits.train) == len(splits.validation) == 1 and len(splits.skipped) == 1
    assert splits.how.endswith("by a hash of the row's number")


def test_fingerprints_see_the_masks_and_not_their_place() -> None:
    features = Features(image=Image(), mask=Image())

    def fingerprint(path: str, mask: list[list[int]]) -> str:
        files = [{**encoded(mask), "path": path}] * 2
        images = [{"bytes": image(), "path": None}] * 2
        rows = Dataset.from_dict({"image": images, "mask": files}, features=features)
        return open_dataset(rows, target=Masks()).fingerprint()

    first = fingerprint("here", [[0, 1], [0, 1]])
    assert fingerprint("there", [[0, 1], [0, 1]]) == first
    assert fingerprint("here", [[0, 1], [1, 0]]) != first
