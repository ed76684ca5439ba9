"""Boxes in files beside the images: each format gives the same boxes, and says what is wrong."""

import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resbackbones.data import Boxes, Splits, joined, open_dataset, open_splits, read
from tests.data.helpers import pixels, refused, write

WIDTH, HEIGHT = 40, 20


def picture(colour: int = 0, rotated: bool = False) -> bytes:
    file = io.BytesIO()
    drawn = PIL.Image.new("RGB", (WIDTH, HEIGHT), (colour, 0, 0))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6 if rotated else 1
    drawn.save(file, "jpeg", exif=exif)
    return file.getvalue()


def coco(path: Path, names: list[str], **changes: Any) -> dict[str, Any]:
    """Two boxes in each even image, none in odd ones."""
    content: dict[str, Any] = {
        "images": [
            {"id": 10 + i, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {"id": 2 * i + j, "image_id": 10 + i, "category_id": c, "bbox": box, "iscrowd": 0}
            for i in range(0, len(names), 2)
            for j, (c, box) in enumerate([(7, [1, 2, 10, 5]), (3, [20, 0, 20, 20])])
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "zebra"}],
        **changes,
    }
    write({path: json.dumps(content)})
    return content


FIRST = [[1, 2, 11, 7], [20, 0, 40, 20]]


def boxes(splits: Splits, split: str = "train") -> list[list[list[float]]]:
    return [value["boxes"].tolist() for value in getattr(splits, split).targets()]


def opened(where: Path, **options: Any) -> Splits:
    return open_splits(where, target=Boxes(), kind="image", **options)


@pytest.mark.parametrize("layout", ["coco", "roboflow", "flat"])
def test_coco(tmp_path: Path, layout: str) -> None:
    names = [f"{i}.jpg" for i in range(4)]
    for split, folder in (("train", "train2017"), ("val", "val2017"), ("test", "test2017")):
        at = {
            "coco": (folder, f"annotations/instances_{folder}.json"),
            "roboflow": (split, f"{split}/_annotations.coco.json"),
            "flat": ("images", f"{split}.json"),
        }[layout]
        own = [f"{split}{name}" for name in names]
        write({tmp_path / at[0] / name: picture(i) for i, name in enumerate(own)})
        coco(tmp_path / at[1], own)
    if layout == "coco":
        write({tmp_path / "annotations" / "captions_train2017.json": '{"images": [}'})
    splits = opened(tmp_path)
    assert splits.test is not None and splits.train.target.names == ("zebra", "cat")
    assert boxes(splits) == boxes(splits, "test") == [FIRST, [], FIRST, []]
    assert [v["class_labels"].tolist() for v in splits.train.targets()][:2] == [[1, 0], []]
    assert splits.notes[0].startswith("Read as COCO, from ") and len(splits.notes) == 1
    assert splits.validation.row_name(1).endswith("val1.jpg")
    assert len(read(splits.test, pixels).items) == 4
    assert "0 to 2 boxes per image (2 without)" in splits.found()
    if layout == "coco":
        alone = open_dataset(tmp_path / "annotations/instances_val2017.json", target=Boxes())
        assert len(alone) == 4 and alone.row_name(0) == str(tmp_path / "val2017" / "val0.jpg")


def test_coco_with_faults(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(12)]
    write({tmp_path / "images" / name: picture() for name in [*names[:-1], "extra.jpg"]})
    path = tmp_path / "annotations.json"
    content = coco(path, names)
    box = {"image_id": 11, "category_id": 7, "bbox": [0, 0, 4, 4]}
    content["annotations"] += [
        {**box, "iscrowd": 1},
        {**box, "image_id": 99},
        {**box, "category_id": 5},
        {**box, "bbox": [5, 5, -3, 4]},
        {**box, "bbox": []},
        {**box, "bbox": [38, 0, 9, 9]},
        {**box, "image_id": 21},
    ]
    write({path: json.dumps(content)})
    splits = opened(tmp_path)
    assert len(splits.train) + len(splits.validation) == 11
    assert splits.notes == (
        "Read as COCO, from annotations.json",
        "annotations.json: 1 image is not there, left out (11.jpg)",
        "annotations.json: 1 annotation is of no image (number 14: image_id 99)",
        "annotations.json: 1 annotation of a crowd is left out (number 13)",
        "1 image is in no annotation file (images/extra.jpg)",
        f"3 of 16 boxes of {tmp_path} [train] are dropped (1 without four finite numbers, 1 ending "
        f"before its start, 1 of an unknown label; the first: {tmp_path}/images/1.jpg, 0 0 4 4 "
        "labelled 'category_id 5')",
        f"1 box reaches outside the images of {tmp_path} [train]: clipped",
    )
    strict = Boxes(on_bad_box="error")
    with pytest.raises(ValueError, match="jpg has a box of an unknown label"):
        open_splits(tmp_path, target=strict)
    skipping = open_splits(tmp_path, target=strict, on_bad="skip")
    assert len(skipping.train) + len(skipping.validation) == 10


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"images": []}, "none of the 0 images of"),
        ({"images": [{"id": 1, "file_name": "no.jpg"}]}, "none of the 1 images of"),
        ({"images": [{"id": 1}]}, "number 1 of the images of"),
        ({"images": [{"id": 1, "file_name": "0.jpg"}] * 2}, "gives two images the id 1"),
        ({"categories": [{"id": 1}]}, "number 1 of the categories of"),
        ({"categories": [{"id": i, "name": "a"} for i in (1, 2)]}, "two classes the name 'a'"),
        ({"annotations": [3]}, "number 1 of the annotations of"),
        ({"categories": None}, "has no list of categories"),
        ({"annotations": []}, "has no box in column 'objects'"),
    ],
)
def test_coco_that_cannot_be(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    write({tmp_path / "0.jpg": picture()})
    content = coco(tmp_path / "a.json", ["0.jpg"])
    write({tmp_path / "a.json": json.dumps({**content, **changes})})
    assert why in refused(lambda: opened(tmp_path))


def test_broken_files(tmp_path: Path) -> None:
    write({tmp_path / "a" / "0.jpg": picture(), tmp_path / "a" / "_annotations.coco.json": ""})
    assert "_annotations.coco.json cannot be opened (Expecting value" in refused(
        lambda: opened(tmp_path / "a")
    )
    write({tmp_path / "b" / "0.jpg": picture(), tmp_path / "b" / "data.yaml": "names: [a\n"})
    assert "data.yaml cannot be opened (while parsing" in refused(lambda: opened(tmp_path / "b"))
    write({tmp_path / "c" / "0.jpg": picture()})
    assert "boxes stand in COCO's JSON, Pascal VOC's XML" in refused(lambda: opened(tmp_path / "c"))


def test_the_category_above_all_others_is_no_class(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 3, "name": "zebra", "supercategory": "animals"},
        {"id": 7, "name": "cat", "supercategory": "animals"},
    ]
    write({tmp_path / f"{i}.jpg": picture() for i in range(4)})
    coco(tmp_path / "a.json", [f"{i}.jpg" for i in range(4)], categories=categories)
    splits = opened(tmp_path)
    assert splits.train.target.names == ("zebra", "cat")
    assert "Category 'animals' is no class: all others belong to it" in splits.notes


def test_images_listed_twice_are_joined(tmp_path: Path) -> None:
    names = ["0.jpg", "1.jpg", "0.jpg", "2.jpg"]
    write({tmp_path / name: picture() for name in names})
    coco(tmp_path / "a.json", names)
    source = open_dataset(tmp_path, target=Boxes())
    assert [len(value["boxes"]) for value in source.targets()] == [4, 0, 0]


def voc(*found: tuple[str, list[Any]], size: bool = True, name: str = "x.jpg") -> str:
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}"
        f"</xmax><ymax>{b[3]}</ymax></bndbox></object>"
        for label, b in found
    )
    sides = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>" * size
    return f"<annotation><filename>{name}</filename>{sides}{objects}</annotation>"


TWO = [("cat", [2, 3, 11, 7]), ("zebra", [21, 1, 40, 20])]


def test_pascal_voc(tmp_path: Path) -> None:
    """A box of all pixels is 1 1 W H in the file, and 0 0 W H here."""
    for stem in "abcdef":
        write({tmp_path / "VOC2007" / "JPEGImages" / f"{stem}.jpg": picture(ord(stem))})
        document = voc(*TWO if stem in "ace" else [], size=stem != "a")
        write({tmp_path / "VOC2007" / "Annotations" / f"{stem}.xml": document})
    write({tmp_path / "VOC2007" / "Annotations" / "gone.xml": voc(*TWO, name="gone.jpg")})
    write({tmp_path / "VOC2007" / "JPEGImages" / "bare.jpg": picture()})
    main = tmp_path / "VOC2007" / "ImageSets" / "Main"
    write({main / "train.txt": "a\nb\nc\nz\n", main / "val.txt": "d\n", main / "test.txt": "e\n"})
    write({main / "trainval.txt": "a\nb\nc\nd\n", main / "cat_train.txt": "a 1\nb -1\n"})
    splits = opened(tmp_path)
    assert boxes(splits) == [FIRST, [], FIRST] and boxes(splits, "test") == [FIRST]
    assert boxes(splits, "validation") == [[]] and splits.train.target.names == ("cat", "zebra")
    assert splits.notes == (
        "Read as Pascal VOC, whose pixels count from 1: one is taken off left and top",
        "1 annotation is of no image (VOC2007/Annotations/gone.xml)",
        "1 image without annotation is left out (VOC2007/JPEGImages/bare.jpg)",
        "1 listed image is not there (z)",
        "1 image is in no split (VOC2007/JPEGImages/f.jpg)",
    )


def test_pascal_voc_beside_the_images(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for i in range(4):
            write({tmp_path / split / f"{i}.jpg": picture(i)})
            write({tmp_path / split / f"{i}.xml": voc(*TWO)})
    write({tmp_path / "train" / "0.xml": voc(("cat", [1, "x", 2, 2]), ("cat", [1, 1, 40, 20]))})
    splits = opened(tmp_path)
    assert boxes(splits)[0] == [[0, 0, 40, 20]] and len(splits.validation) == 4
    assert "1 of 8 boxes" in splits.notes[1]
    write({tmp_path / "train" / "1.xml": "<annotation><object></annotation>"})
    sentence = refused(lambda: opened(tmp_path))
    assert f"{tmp_path / 'train/1.jpg'} has an annotation that is broken (train/1.xml" in sentence
    assert len(opened(tmp_path, on_bad="skip").train) == 3
    write({tmp_path / "gone" / "0.xml": voc(*TWO)})
    assert "none of the images of the 1 annotations in" in refused(
        lambda: opened(tmp_path / "gone")
    )


def ends(limit: int) -> st.SearchStrategy[tuple[int, int]]:
    """Where something begins and ends, within a limit."""
    return st.integers(0, limit - 1).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(start + 1, limit))
    )


CORNERS = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), ends(WIDTH), ends(HEIGHT))


@settings(max_examples=4)
@given(st.lists(CORNERS, min_size=4, max_size=9))
def test_every_format_gives_the_same_boxes(found: list[tuple[int, int, int, int]]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("coco", "voc", "yolo"):
            write({root / name / f"{i}.jpg": picture() for i in range(2)})
        sides = [[x, y, right - x, bottom - y] for x, y, right, bottom in found]
        objects = [{"image_id": 10, "category_id": 3, "bbox": box} for box in sides]
        coco(root / "coco" / "a.json", ["0.jpg", "1.jpg"], annotations=objects)
        counted = [("zebra", [x + 1, y + 1, right, bottom]) for x, y, right, bottom in found]
        write({root / "voc" / "0.xml": voc(*counted), root / "voc" / "1.xml": voc()})
        lines = [
            f"0 {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}"
            for x, y, w, h in sides
        ]
        write({root / "yolo" / "0.txt": "\n".join(lines), root / "yolo" / "classes.txt": "zebra"})
        for name in ("coco", "voc", "yolo"):
            value, empty = open_dataset(root / name, target=Boxes()).targets()
            expected = torch.tensor(found, dtype=torch.float32)
            torch.testing.assert_close(value["boxes"], expected, atol=1e-4, rtol=0)
            assert not len(empty["boxes"])


LINES = "1 0.15 0.225 0.25 0.25\n0 0.75 0.5 0.5 1\n"


@pytest.mark.parametrize("layout", ["split first", "split last", "beside"])
def test_yolo(tmp_path: Path, layout: str) -> None:
    places = {
        "split first": ("{}/images", "{}/labels"),
        "split last": ("images/{}", "labels/{}"),
        "beside": ("{}", "{}"),
    }
    at, labels = places[layout]
    for split in ("train", "val", "test"):
        for i in range(4):
            write({tmp_path / at.format(split) / f"{i}.jpg": picture(i)})
            if i % 2 == 0:
                write({tmp_path / labels.format(split) / f"{i}.txt": LINES})
    write({tmp_path / labels.format("train") / "gone.txt": LINES})
    if layout == "split first":
        said = {"names": ["zebra", "cat"], "train": "../train/images", "val": "../val/images"}
        write({tmp_path / "data.yaml": json.dumps({**said, "test": "../test/images", "nc": 2})})
    elif layout == "split last":
        said = {"names": {4: "cat", 1: "cow", 0: "zebra"}, "train": "images/train"}
        lines = {tmp_path / "labels" / "train" / "0.txt": LINES.replace("1 ", "4 ", 1)}
        write({tmp_path / "data.yaml": json.dumps({**said, "val": ["images/val"]}), **lines})
    else:
        write({tmp_path / "classes.txt": "zebra\ncat\n"})
    splits = opened(tmp_path)
    assert boxes(splits, "validation") == [FIRST, [], FIRST, []]
    assert boxes(splits)[0] == FIRST
    names = ("zebra", "cow", "cat") if layout == "split last" else ("zebra", "cat")
    assert splits.train.target.names == names
    numbers = splits.train.targets()[0]["class_labels"].tolist()
    assert [names[number] for number in numbers] == ["cat", "zebra"]
    assert "1 label file is of no image" in splits.notes[1]
    assert splits.notes[2].split(" (")[0].endswith("images have no label file, so no objects")
    assert (splits.test is None) == (layout == "split last")


def test_yolo_lines(tmp_path: Path) -> None:
    lines = [
        "0 0.5 0.5 1 1",
        "0 0.1 0.1 0.4 0.1 0.4 0.6",
        "0 0.5 0.5",
        "a b c d e",
        "0 0.5 0.5 0 0",
    ]
    lines += [
        "0 nan 0.5 1 1",
        "9 0.5 0.5 1 1",
        "",
        "0 2.5 0.5 1 1",
        "0.5 0.5 0.5 1 1",
        "0 1 1 1 1 1",
    ]
    write({tmp_path / f"{i}.jpg": picture(i, rotated=i == 1) for i in range(3)})
    write({tmp_path / "0.txt": "\n".join(lines), tmp_path / "1.txt": "0 0.5 0.5 1 1"})
    write({tmp_path / "data.yaml": "names: [cat, dog]"})
    with pytest.warns(UserWarning, match="8 of 11 boxes of .* are dropped"):
        source = open_dataset(tmp_path, target=Boxes())
    first, turned, none = source.targets()
    assert first["boxes"].tolist() == [[0, 0, 40, 20], [4, 2, 16, 12]]
    # An image that is turned as it is viewed has its boxes in that view.
    assert turned["boxes"].tolist() == [[0, 0, HEIGHT, WIDTH]] and not len(none["boxes"])
    write({tmp_path / "0.txt": b"\xff\xfe0"})
    sentence = refused(lambda: open_dataset(tmp_path, target=Boxes()))
    assert f"{tmp_path / '0.jpg'} has labels that cannot be read (0.txt: 'utf-8'" in sentence


def test_yolo_names(tmp_path: Path) -> None:
    write({tmp_path / f"{i}.jpg": picture(i) for i in range(3)})
    write({tmp_path / f"{i}.txt": f"{5 + i} 0.5 0.5 1 1\n" for i in range(3)})
    assert open_dataset(tmp_path, target=Boxes()).target.names == ("5", "6", "7")
    write({tmp_path / "data.yaml": "names: [cat, dog]"})
    assert "not one of 3 boxes of" in refused(lambda: open_dataset(tmp_path, target=Boxes()))
    write({tmp_path / "data.yaml": "names: {a: cat}"})
    assert "expected a list of names, or names by numbers" in refused(lambda: opened(tmp_path))
    write({tmp_path / "data.yaml": "names: [cat, cat]"})
    assert "gives two classes the name 'cat'" in refused(lambda: opened(tmp_path))


def test_texts_that_are_no_objects(tmp_path: Path) -> None:
    write({tmp_path / "0.jpg": picture(), tmp_path / "0.txt": "a photo of a cat\n"})
    assert "no objects column" in refused(lambda: opened(tmp_path))


def test_an_image_that_cannot_be_read_is_named_when_it_is(tmp_path: Path) -> None:
    write({tmp_path / f"{i}.jpg": picture(i) for i in range(3)})
    write({tmp_path / f"{i}.txt": "0 0.5 0.5 1 1\n" for i in range(3)})
    write({tmp_path / "1.jpg": b"?"})
    source = open_dataset(tmp_path, target=Boxes())
    assert [len(value["boxes"]) for value in source.targets()] == [1, 0, 1]
    (skipped,) = read(source, pixels, "skip").skipped
    assert skipped.startswith(str(tmp_path / "1.jpg"))


def test_metadata_beside_images(tmp_path: Path) -> None:
    objects = {"bbox": [[1, 2, 10, 5], [20, 0, 20, 20]], "categories": [7, 3]}
    lines = [{"file_name": f"{i}.jpg", "objects": objects} for i in range(20)]
    lines[3]["objects"] = {"bbox": [], "categories": []}
    write({tmp_path / f"{i}.jpg": picture(i) for i in range(20)})
    write({tmp_path / "metadata.jsonl": "\n".join(map(json.dumps, lines))})
    source = open_dataset(tmp_path, target=Boxes(box_format="xywh"))
    assert source.targets()[0]["boxes"].tolist() == FIRST and source.target.names == ("3", "7")
    assert len(source.targets()[3]["boxes"]) == 0
    assert open_dataset(tmp_path, target=Boxes()).target.box_format == "xywh"  # type: ignore[attr-defined]


def test_a_split_alone_numbers_classes_as_train_does(tmp_path: Path) -> None:
    for split, name in (("train", "cat"), ("test", "zebra")):
        objects = {"bbox": [[0, 0, 9, 9]] * 2, "category": ["zebra", name]}
        lines = [{"file_name": f"{i}.jpg", "objects": objects} for i in range(2)]
        write({tmp_path / split / f"{i}.jpg": picture(i) for i in range(2)})
        write({tmp_path / split / "metadata.jsonl": "\n".join(map(json.dumps, lines))})
    source = open_dataset(tmp_path, "test", target=Boxes(box_format="xyxy"))
    assert source.target.names == ("cat", "zebra") and len(source) == 2
    assert source.targets()[0]["class_labels"].tolist() == [1, 1]


def test_an_image_of_another_split_is_not_taken(tmp_path: Path) -> None:
    for split in ("train", "val"):
        names = [f"{i}.jpg" for i in range(3)]
        write(
            {tmp_path / split / name: picture() for name in names[: 3 if split == "train" else 2]}
        )
        coco(tmp_path / f"{split}.json", names)
    splits = opened(tmp_path)
    assert (len(splits.train), len(splits.validation)) == (3, 2)
    assert "val.json: 1 image is not there, left out (2.jpg)" in splits.notes
    for split in ("train", "val"):
        write({tmp_path / f"{split}.json": "{}"})
        write({tmp_path / split / f"{i}.xml": voc(*TWO) for i in range(3)})
    splits = opened(tmp_path)
    assert (len(splits.train), len(splits.validation)) == (3, 2)
    assert "1 annotation is of no image (val/2.xml)" in splits.notes


def test_splits_without_objects_can_be_joined(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write({tmp_path / split / f"{i}.jpg": picture(i) for i in range(2)})
    write({tmp_path / "train" / "0.txt": "3 0.5 0.5 1 1"})
    splits = opened(tmp_path)
    both = joined(splits.train, splits.validation)
    assert [len(value["boxes"]) for value in both.targets()] == [1, 0, 0, 0]


def test_hidden_objects(tmp_path: Path) -> None:
    for split in ("train", "test"):
        objects = {"bbox": [[0, 0, 9, 9]], "category": ["cat"]} if split == "train" else None
        lines = [{"file_name": f"{i}.jpg", "objects": objects} for i in range(2)]
        write({tmp_path / split / f"{i}.jpg": picture(i) for i in range(2)})
        write({tmp_path / split / "metadata.jsonl": "\n".join(map(json.dumps, lines))})
    with pytest.warns(UserWarning, match=r"\[test\] has no objects: it is left out"):
        splits = open_splits(tmp_path, target=Boxes(box_format="xyxy"))
    assert splits.test is None


def test_fingerprints_do_not_depend_on_the_place(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write({tmp_path / place / f"{i}.jpg": picture(i) for i in range(3)})
        write({tmp_path / place / f"{i}.txt": "0 0.5 0.5 1 1\n" for i in range(3)})
    prints = {open_dataset(tmp_path / place, target=Boxes()).fingerprint() for place in "ab"}
    assert len(prints) == 1
    write({tmp_path / "b" / "0.txt": "0 0.5 0.5 1 0.5\n"})
    assert open_dataset(tmp_path / "b", target=Boxes()).fingerprint() not in prints
