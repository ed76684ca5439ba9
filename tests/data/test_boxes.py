"""Rectangles around objects: what is learned of them, and what is wrong with one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from hypothesis import given
from hypothesis import strategies as st

from resbackbones.data import Boxes, Column, open_dataset, open_splits
from tests.data.helpers import image, refused

BCCD = Path("../shared/data/bccd")


def column(*rows: list[tuple[list[Any], Any]], size: Any = (100, 80), **more: Any) -> Column:
    """One cell per row, of (box, label) pairs."""
    cells = [
        {"bbox": [box for box, _ in row], "category": [name for _, name in row]} for row in rows
    ]
    return Column("objects", cells, "pets", "row {}".format, sizes=[size] * len(rows), **more)


@pytest.mark.skipif(not BCCD.exists(), reason="the blood cells are not here")
def test_blood_cells() -> None:
    """One box of train and one of validation has no size: it alone is left out, and told."""
    splits = open_splits(BCCD, kind="image", target=Boxes())
    assert splits.test is not None and splits.train.target.names == ("RBC", "WBC", "Platelets")
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [205, 87, 72]
    assert [sum(len(v["boxes"]) for v in part.targets()) for part in parts] == [2804, 1137, 945]
    told = "1 of 2,805 boxes of ../shared/data/bccd [train] is dropped (1 of zero size; the first: "
    assert splits.notes[0].startswith(told + "row 171 of") and len(splits.notes) == 2
    assert "3 classes ('RBC', 'WBC', 'Platelets') of 209 to 2,381 boxes" in splits.found()
    first = splits.train.targets()[0]
    assert first["boxes"].dtype == torch.float32 and first["class_labels"].dtype == torch.int64
    assert first["boxes"][0].tolist() == [68, 315, 286, 480]
    strict = Boxes(on_bad_box="error")
    sentence = refused(lambda: open_splits(BCCD, target=strict))
    assert "row 171 of" in sentence and "has a box of zero size (181 329 181 329)" in sentence
    assert len(open_splits(BCCD, target=strict, on_bad="skip").skipped) == 2


@pytest.mark.parametrize(
    ("box", "label", "wrong"),
    [
        ([1, 1, 1, 9], "cat", "of zero size"),
        ([9, 1, 4, 9], "cat", "ending before its start"),
        ([1, 1, float("nan"), 9], "cat", "without four finite numbers"),
        ([1, 1, None, 9], "cat", "without four finite numbers"),
        ([1, 1, float("inf"), 9], "cat", "without four finite numbers"),
        ([1, 1, 9], "cat", "without four finite numbers"),
        ([100, 1, 109, 9], "cat", "outside the image"),
        ([-9, -9, -1, -1], "cat", "outside the image"),
        ([1, 1, 9, 9], "cow", "of an unknown label"),
        ([1, 1, 9, 9], None, "of an unknown label"),
    ],
)
def test_a_box_that_cannot_be_used(box: list[Any], label: Any, wrong: str) -> None:
    fine = ([1, 2, 3, 4], "cat")
    rows = column([fine], [fine, (box, label), fine])
    target = Boxes(("dog", "cat"), box_format="xyxy").learn(column([fine]))
    assert [len(value["boxes"]) for value in target.values(rows)] == [1, 2]
    (remark,) = target.remarks(rows)
    assert remark.startswith(f"1 of 4 boxes of pets is dropped (1 {wrong}; the first: row 1, ")
    strict = Boxes(("dog", "cat"), box_format="xyxy", on_bad_box="error").learn(column([fine]))
    assert wrong in strict.faults(rows)[1] and list(strict.faults(rows)) == [1]
    assert strict.remarks(rows) == ()


def test_what_reaches_outside_is_clipped() -> None:
    rows = column(
        [([-5, 3, 120, 20], "cat"), ([0, 0, 100.4, 80], "cat"), ([90, 70, 99, 99], "cat")]
    )
    target = Boxes(box_format="xyxy").learn(rows)
    assert target.values(rows)[0]["boxes"].tolist() == [
        [0, 3, 100, 20],
        [0, 0, 100, 80],
        [90, 70, 99, 80],
    ]
    assert target.remarks(rows) == ("2 boxes reach outside the images of pets: clipped",)
    nowhere = column([([-5, 3, 120, 20], "cat")], size=None)
    assert target.values(nowhere)[0]["boxes"].tolist() == [[0, 3, 120, 20]]


def test_formats() -> None:
    corners = column([([60, 50, 99, 79], "a"), ([50, 9, 90, 70], "b")])
    sides = column([([60, 50, 39, 29], "a"), ([50, 9, 40, 61], "b")])
    found = [Boxes().learn(rows) for rows in (corners, sides)]
    assert [target.box_format for target in found] == ["xyxy", "xywh"]
    pairs = zip(found[0].values(corners), found[1].values(sides), strict=True)
    assert all(torch.equal(first["boxes"], second["boxes"]) for first, second in pairs)
    both = column([([10, 10, 20, 20], "a")])
    assert "may be xyxy or xywh (the first: 10 10 20 20); say which with box_format" in refused(
        lambda: Boxes().learn(both)
    )
    assert Boxes(box_format="xywh").learn(both).values(both)[0]["boxes"].tolist() == [
        [10, 10, 30, 30]
    ]
    shares = column([([0.1, 0.1, 0.5, 0.5], "a")])
    assert "seem to be shares of the images' sizes" in refused(lambda: Boxes().learn(shares))
    neither = column([([90, 70, 30, 20], "a")])
    assert "neither as xyxy nor as xywh" in refused(lambda: Boxes().learn(neither))
    assert "box_format='yxyx' is not known; did you mean" in refused(
        lambda: Boxes(box_format="yxyx")  # type: ignore[arg-type]
    )


def test_names() -> None:
    def names(labels: list[Any], told: tuple[str, ...] = (), **more: Any) -> tuple[str, ...]:
        rows = column([([1, 1, 9, 9], label) for label in labels], **more)
        return Boxes(told, box_format="xyxy").learn(rows).names

    assert names(["b", "a", "b"]) == ("a", "b")
    assert names([10, 9]) == ("9", "10")
    assert names([1, 0], class_names=("z", "a")) == ("z", "a")
    assert names([1, 0], listed=("z", "a", "m")) == ("z", "a", "m")
    assert names(["a"], ("c", "a")) == ("c", "a")
    assert "expected are ('a', 'z')" in refused(
        lambda: names([1, 0], ("a", "z"), class_names=("z", "a"))
    )
    assert "has no box in column 'objects'" in refused(lambda: names([]))


def test_cells_that_hold_no_objects() -> None:
    target = Boxes(box_format="xyxy").learn(column([([1, 1, 9, 9], "cat")]))

    def faults(*cells: Any) -> dict[int, str]:
        return target.faults(Column("objects", cells, "pets", "row {}".format))

    one = {"bbox": [[1, 1, 9, 9]], "category": ["cat"]}
    assert faults(one, None, {"bbox": [], "category": []}) == {}
    assert faults(one, {"bbox": [[1, 1, 9, 9]], "category": []}) == {
        1: "has 1 times a box, but 0 times a label"
    }
    assert "holds no objects (the first is cat)" in refused(lambda: faults("cat"))
    assert "have no field of boxes (they have 'category'); call it 'bbox'" in refused(
        lambda: faults({"category": ["cat"]})
    )
    assert "have no field of labels (they have 'bbox'); call it 'label'" in refused(
        lambda: faults({"bbox": [[1, 1, 9, 9]]})
    )


def test_kinds_of_cells() -> None:
    """Lists of objects, objects of lists, boxes of a fixed size, whole numbers: all alike."""
    expected = [[[1, 2, 30, 20], [8, 8, 9, 9]], [], []]
    lists = [{"bbox": [[1, 2, 30, 20], [8, 8, 9, 9]], "category": ["cat", "dog"]}, None]
    lists.append({"bbox": [], "category": []})
    objects = [
        [{"bbox": [1, 2, 30, 20], "category": "cat"}, {"bbox": [8, 8, 9, 9], "category": "dog"}],
        None,
        [],
    ]
    labels = List(Value("string"))
    fixed = {"bbox": List(List(Value("float32"), length=4)), "category": labels}
    whole = {"bbox": List(List(Value("int64"))), "category": labels}
    each = List({"bbox": List(Value("float32"), length=4), "category": Value("string")})
    names = [f"{row}.png" for row in range(3)]
    for cells, feature in ((lists, fixed), (lists, whole), (objects, each)):
        features = Features(image=Value("string"), objects=feature)
        rows = Dataset.from_dict({"image": names, "objects": cells}, features=features)
        source = open_dataset(rows, target=Boxes(box_format="xyxy"))
        assert [value["boxes"].tolist() for value in source.targets()] == expected
        assert source.target.names == ("cat", "dog") and source.columns["objects"] == "objects"
    empty = Dataset.from_dict({"image": names, "objects": [{"bbox": [], "category": []}] * 3})
    assert "has no box in column" in refused(lambda: open_dataset(empty, target=Boxes()))
    texts = [{"bbox": ["1 2 3 4"], "category": ["cat"]}] * 3
    told = Dataset.from_dict({"image": names, "objects": texts})
    assert "holds no objects (the first is {'bbox': ['1 2 3 4']" in refused(
        lambda: open_dataset(told, target=Boxes())
    )


def table(objects: list[Any], **columns: list[Any]) -> Dataset:
    category = List(ClassLabel(names=["cat", "dog"]))
    features = Features(
        image=Image(), objects={"bbox": List(List(Value("float32"))), "category": category}
    )
    rows = [{"bytes": image(row), "path": None} for row in range(len(objects))]
    made = Dataset.from_dict({"image": rows, "objects": objects}, features=features)
    for name, values in columns.items():
        made = made.add_column(name, values)
    return made


def test_sizes_are_read_from_the_images_where_no_column_tells_them() -> None:
    """An image of these is 4x3."""
    rows = table([{"bbox": [[1, 1, 9, 2]], "category": [1]}] * 2)
    target = Boxes(box_format="xyxy")
    with pytest.warns(UserWarning, match=r"2 boxes reach outside the images of .*: clipped"):
        source = open_dataset(rows, target=target)
    assert source.columns["width"] == "width" and source.dataset["height"][:] == [3, 3]
    assert source.targets()[0]["boxes"].tolist() == [[1, 1, 4, 2]]
    sized = table([{"bbox": [[1, 1, 9, 2]], "category": [1]}] * 2, width=[9, 9], height=[3, 3])
    assert open_dataset(sized, target=target).targets()[0]["boxes"].tolist() == [[1, 1, 9, 2]]


def test_each_class_is_on_both_sides() -> None:
    """40 images of the common class, 2 of them with a rare one, 1 with one that cannot be shared
    out, and 3 without objects."""
    square = [0.0, 0.0, 2.0, 2.0]
    labels: list[list[int]] = [[0, 0]] * 40 + [[]] * 3
    labels[5] = labels[17] = [0, 1]
    rows = table([{"bbox": [square] * len(own), "category": own} for own in labels])
    splits = open_splits(rows, target=Boxes(box_format="xyxy"))
    for part in (splits.train, splits.validation):
        present = {number for v in part.targets() for number in v["class_labels"].tolist()}
        assert present == {0, 1}
    assert len(splits.validation) == 4 and "stratified by objects" in splits.how
    assert splits.train.fingerprint() == splits.train.fingerprint()
    labels[17] = [0]
    rows = table([{"bbox": [square] * len(own), "category": own} for own in labels])
    alone = open_splits(rows, target=Boxes(box_format="xyxy"))
    assert len(alone.train) + len(alone.validation) == 43 and not alone.skipped
    limited = open_splits(rows, target=Boxes(box_format="xyxy"), train_limit=2)
    assert len(limited.train) == 2


@given(st.lists(st.sets(st.integers(0, 4), max_size=3), min_size=2, max_size=40))
def test_kinds_are_shared_by_two_images_or_more(present: list[set[int]]) -> None:
    """The class of a kind is in each of its images, and is none that a rarer shared one hides."""
    values = [
        {"boxes": torch.zeros(len(own), 4), "class_labels": torch.tensor([*own], dtype=torch.int64)}
        for own in present
    ]
    kinds = Boxes(tuple("abcde")).strata(values).tolist()
    assert len(kinds) == len(values)
    for kind in set(kinds):
        assert kinds.count(kind) > 1
    images = [sum(number in own for own in present) for number in range(5)]
    for kind, own in zip(kinds, present, strict=True):
        if kind in own:
            rarer = [number for number in own if images[number] < images[kind]]
            assert all(kinds.count(number) == 0 for number in rarer)
    for number in range(5):  # the rarest of all is shared out where two images have it
        others = [count for other, count in enumerate(images) if other != number and count]
        rarest = images[number] > 1 and all(images[number] < count for count in others)
        if rarest:
            assert kinds.count(number) >= images[number]


def test_groups_stay_together_though_a_class_is_in_one_alone() -> None:
    square = [0.0, 0.0, 2.0, 2.0]
    rows = table(
        [{"bbox": [square], "category": [int(row < 4)]} for row in range(40)],
        group=[f"g{row // 4}" for row in range(40)],
    )
    held = open_splits(rows, target=Boxes(box_format="xyxy")).held_out
    assert len(held) == 4 and len({row // 4 for row in held}) == 1


def test_one_class_is_enough() -> None:
    rows = table([{"bbox": [[0.0, 0.0, 2.0, 2.0]], "category": [0]}] * 10)
    splits = open_splits(rows, target=Boxes(box_format="xyxy"))
    assert len(splits.validation) == 1 and splits.train.target.names == ("cat", "dog")
