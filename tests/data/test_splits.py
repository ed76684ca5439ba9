"""What is held out, and that the splits fit together."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from resbackbones.data import (
    Classes,
    NoTarget,
    Splits,
    Target,
    Transcripts,
    open_splits,
    speaker_leak,
)
from resbackbones.data.splits import HELD_OUT
from tests.data.helpers import image, refused, texts, write


def check_partition(splits: Splits, count: int) -> None:
    """Train and validation are all the rows, each once, and `held_out` says which."""
    numbers = [source.numbers for source in (splits.train, splits.validation)]
    assert numbers[0] is not None and numbers[1] is not None
    assert torch.cat([numbers[0], numbers[1]]).sort()[0].tolist() == list(range(count))
    assert splits.held_out == tuple(numbers[1].tolist()) == tuple(sorted(splits.held_out))
    assert splits.validation.dataset["text"][:] == [f"item {row}" for row in splits.held_out]
    every = range(len(splits.train.target.names))
    for source in (splits.train, splits.validation):
        assert set(source.targets().tolist()) == set(every)


class_sizes = st.lists(st.integers(2, 60), min_size=2, max_size=6)


@settings(max_examples=40, deadline=None)
@given(class_sizes, st.randoms(use_true_random=False))
def test_validation_keeps_the_shares_of_classes(sizes: list[int], random: Any) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(labels)
    splits = open_splits(texts(labels))
    check_partition(splits, len(labels))
    held = Counter(splits.validation.targets().tolist())
    for label, size in enumerate(sizes):
        assert 1 <= held[label] <= max(1, HELD_OUT * size + 1)
    assert len(splits.held_out) == max(len(sizes), round(HELD_OUT * len(labels)))


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 40), st.integers(2, 5), st.integers(0, 40), st.integers(0, 2**31))
def test_validation_keeps_groups_together(groups: int, classes: int, alone: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    size = groups * classes * 2
    # Every class in every group, then at random, then rows that name none.
    labels = np.concatenate(
        [np.tile(np.arange(classes), groups * 2), random.integers(classes, size=size + alone)]
    )
    speaker = np.concatenate([np.arange(size) // (2 * classes), random.integers(groups, size=size)])
    names = [f"s{i}" for i in speaker] + [None] * alone
    rows = texts(labels.tolist(), speaker=names)
    splits = open_splits(rows)
    check_partition(splits, len(rows))
    assert speaker_leak(splits.train, splits.validation) == 0.0
    assert 0.04 < len(splits.held_out) / len(rows) < 0.25
    ungrouped = open_splits(rows, {"group": ""})
    assert "group" not in ungrouped.train.columns
    check_partition(ungrouped, len(rows))


def test_rows_without_a_group_are_shared_out() -> None:
    labels = ["word"] * 200 + ["noise"] * 100
    rows = texts(labels, speaker=[f"s{i % 20}" for i in range(200)] + [None] * 100)
    held = Counter(open_splits(rows).validation.dataset["label"][:])
    assert 5 <= held["noise"] <= 15 and 10 <= held["word"] <= 30


def test_few_groups_are_not_kept_together() -> None:
    rows = texts([0, 1] * 45, speaker=[f"s{i % 9}" for i in range(90)])
    splits = open_splits(rows)
    assert len(splits.held_out) == 9
    assert speaker_leak(splits.train, splits.validation) == 1.0


def test_a_class_of_one_group_cannot_be_held_out() -> None:
    rows = texts([0] * 20 + [1] * 2, speaker=[f"s{i}" for i in range(20)] + ["s0", "s0"])
    sentence = refused(lambda: open_splits(rows))
    assert sentence.startswith("the class '1' of the given data set [train] cannot be both in")
    assert len(open_splits(rows, {"group": ""}).held_out) == 2


def test_a_class_of_one_item_cannot_be_held_out() -> None:
    rows = texts(["a"] * 9 + ["b"])
    assert refused(lambda: open_splits(rows)).startswith(
        "row 10 of the given data set [train] is the only one of the class 'b', and the given data "
        "set [train] has no validation split, so one is needed on either side;"
    )
    assert len(open_splits(DatasetDict(train=rows, dev=rows)).train) == 10


def test_the_held_out_rows_are_the_same_everywhere() -> None:
    assert open_splits(texts([0, 1] * 30)).held_out == (5, 8, 11, 16, 38, 57)


def test_train_limit() -> None:
    rows = texts([0] * 300 + [1] * 100 + [2] * 4)
    whole = open_splits(rows)
    for limit in (3, 10, 100, 10_000):
        splits = open_splits(rows, train_limit=limit)
        assert splits.held_out == whole.held_out
        assert splits.train.numbers is not None and whole.train.numbers is not None
        assert set(splits.train.numbers.tolist()) <= set(whole.train.numbers.tolist())
        counts = torch.bincount(splits.train.targets()).tolist()
        assert sum(counts) == min(limit, len(whole.train)) and min(counts) >= 1
    assert torch.bincount(open_splits(rows, train_limit=100).train.targets())[1] == 25
    assert "use 3 or more" in refused(lambda: open_splits(rows, train_limit=2))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_empty_splits(split: str) -> None:
    rows = {name: texts(["a", "b"]) for name in ("train", "validation", "test")}
    rows[split] = rows[split].select([])
    assert f"[{split}] is empty" in refused(lambda: open_splits(DatasetDict(rows)))


def test_a_test_split_need_not_name_groups() -> None:
    train = texts([0, 1] * 5, speaker=["a"] * 10)
    splits = open_splits(DatasetDict(train=train, test=texts([0, 1])))
    assert splits.test is not None and speaker_leak(splits.train, splits.test) is None
    splits = open_splits(DatasetDict(train=train, test=texts([0, 1], speaker=["a", None])))
    assert splits.test is not None and speaker_leak(splits.train, splits.test) == 0.5


def test_rows_that_cannot_be_used_are_skipped_and_named() -> None:
    labels = ["a", "b"] * 10
    rows = DatasetDict(
        train=texts([*labels, None, " ", "c"]), test=texts(["a", None, "b", "d", "c"])
    )
    assert "row 21 of the given data set [train] has no label" in refused(lambda: open_splits(rows))
    splits = open_splits(rows, on_bad="skip")
    assert splits.test is not None
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [18, 2, 2]
    assert splits.train.target.names == ("a", "b")
    unknown = "has the label '{}' in column 'label', none of 'a', 'b'"
    assert splits.skipped == (
        "row 21 of the given data set [train]: it has no label in column 'label'",
        "row 22 of the given data set [train]: it has no label in column 'label'",
        "row 23 of the given data set [train]: it is the only one of the class 'c'",
        "row 2 of the given data set [test]: it has no label in column 'label'",
        f"row 4 of the given data set [test]: it {unknown.format('d')}",
        f"row 5 of the given data set [test]: it {unknown.format('c')}",
    )
    assert "6 rows left out: row 21 of" in splits.found()
    assert splits.test.row_name(1) == "row 3 of the given data set [test]"
    assert "did you mean 'skip'" in refused(lambda: open_splits(rows, on_bad="skp"))


def test_held_out_rows_are_counted_as_opened() -> None:
    rows = texts([None, *[0, 1] * 30])
    splits = open_splits(rows, on_bad="skip")
    assert splits.held_out == tuple(row + 1 for row in open_splits(texts([0, 1] * 30)).held_out)
    assert splits.validation.dataset["text"][:] == [f"item {row}" for row in splits.held_out]


def test_a_class_that_train_lacks_is_skipped() -> None:
    names = ClassLabel(names=["a", "b", "c"])
    typed = DatasetDict(train=texts([0, 1] * 5), test=texts([0, 2])).cast_column("label", names)
    splits = open_splits(typed, on_bad="skip")
    assert splits.test is not None and len(splits.test) == 1
    assert splits.skipped == (
        "row 2 of the given data set [test]: it is of the class 'c', of which the given data set "
        "[train] has no item",
    )


def unlabelled(count: int, **columns: list[Any]) -> Dataset:
    return Dataset.from_dict({"text": [f"item {i}" for i in range(count)], **columns})


@pytest.mark.parametrize("target", [NoTarget(), Transcripts()])
def test_without_classes_a_hash_decides(target: Target) -> None:
    columns = {"text": [f"item {i}" for i in range(60)]}
    columns["transcript"] = [f"said {i}" for i in range(60)]
    rows = Dataset.from_dict(columns)
    told = {"input": "text"}
    splits = open_splits(rows, told, target)
    assert splits.held_out == (5, 8, 11, 16, 38, 57)
    assert len(splits.train) == 54 and splits.how == (
        "10.0 % of train, by a hash of the row's number"
    )
    limited = open_splits(rows, told, target, train_limit=7)
    assert limited.held_out == splits.held_out and len(limited.train) == 7


def test_without_classes_groups_stay_together() -> None:
    speakers = [f"s{i % 12}" for i in range(120)]
    splits = open_splits(unlabelled(120, speaker=speakers), target=NoTarget())
    assert speaker_leak(splits.train, splits.validation) == 0.0
    assert 6 <= len(splits.held_out) <= 20
    assert "; 11 groups (column 'speaker')." in splits.found()
    assert splits.how == "8.3 % of train, by speaker"


def test_one_row_cannot_be_split() -> None:
    assert "has one row only" in refused(lambda: open_splits(unlabelled(1), target=NoTarget()))


def test_the_share_held_out_is_the_true_one() -> None:
    splits = open_splits(texts(["a", "b", "a", "b", "a"]))
    assert splits.how == "40.0 % of train, stratified by label"
    assert "3 items to train on, 2 for validation (held out: 40.0 % of train" in splits.found()
    both = open_splits(DatasetDict(train=texts([0, 1]), dev=texts([1])))
    assert both.how == "" and "2 items to train on, 1 for validation, none to test" in both.found()


def test_what_was_found() -> None:
    rows = texts([0, 1] * 50, speaker=[f"s{i % 4}" for i in range(100)])
    assert open_splits(DatasetDict(train=rows, test=unlabelled(2, label=[0, 1]))).found() == (
        "90 items to train on, 10 for validation (held out: 10.0 % of train, stratified by label), "
        "2 to test on; 2 classes of 45 items each; 4 groups (column 'speaker'), too few to hold "
        "any out. 2 items of test, case and blanks aside, stand in train too (the first: row 1 of "
        "the given data set [test])."
    )


def test_repeated_texts_are_counted_whatever_their_case_and_blanks() -> None:
    train = ["A film", " a  FILM\n", "a film", "one", "one ", "two", "", ""]
    rows = Dataset.from_dict({"text": train, "label": [0, 1] * 4})
    other = Dataset.from_dict({"text": ["Two", "three", "a\tfilm", ""], "label": [0, 1] * 2})
    found = open_splits(DatasetDict(train=rows, validation=other, test=other.select([1]))).found()
    named = "row 1 of the given data set"
    assert (
        "3 items of train repeat others of it, case and blanks aside (the most frequent " in found
    )
    assert f"stands there 3 times: {named} [train]). 2 items of validation, case and" in found
    assert f"aside, stand in train too (the first: {named} [validation])" in found
    assert "1 item of test, case and blanks aside, stands in validation too" in found
    assert "of validation repeat" not in found and "in train too (the first: row 2" not in found
    told = {"input": "text", "pair": "pair"}
    twos = rows.add_column("pair", [*"xxyabcde"])
    pairs = open_splits(DatasetDict(train=twos, validation=twos.select([2, 3])), columns=told)
    assert "1 item of train repeats another of it, case" in pairs.found()


def test_repeated_items_are_counted(tmp_path: Path) -> None:
    """Also where files have the same size, and differ only where a glance does not look."""
    long = bytearray(20_000)
    files = {f"train/{label}/{i}.png": image(10 * i) for label in "ab" for i in range(2)}
    files |= {f"dev/{label}/0.png": image(77) + label.encode() for label in "ab"}
    files |= {"test/a/copy.png": image(10), "test/a/new.png": image(99), "test/b/0.png": image(98)}
    for place, name in ((5, "train/a/long.png"), (6, "train/b/long.png"), (5, "test/b/long.png")):
        files[name] = bytes([*long[:place], 1, *long[place + 1 :]])
    write({tmp_path / name: content for name, content in files.items()})
    found = open_splits(tmp_path).found()
    assert "2 items of train repeat others of it" in found
    assert (
        f"2 items of test stand in train too (the first: {tmp_path / 'test/a/copy.png'})" in found
    )
    assert "of validation" not in found


def test_a_test_split_without_a_label_column_is_left_out() -> None:
    rows = DatasetDict(train=texts([0, 1] * 5), test=unlabelled(3))
    with pytest.warns(UserWarning, match=r"\[test\] has no labels: it is left out"):
        assert open_splits(rows).test is None


def test_a_cross_validation_holds_each_row_out_once() -> None:
    labels = ["a"] * 21 + ["b"] * 9
    rows = Dataset.from_dict({"text": [str(i) for i in range(30)], "label": labels})
    splits = open_splits(rows)
    parts = [splits.fold(number, 5) for number in range(5)]
    held = [part.validation.numbers.tolist() for part in parts]
    assert sorted(number for rows in held for number in rows) == list(range(30))
    for part, rows in zip(parts, held, strict=True):
        assert sorted([*part.train.numbers.tolist(), *rows]) == list(range(30))
        assert part.test is None and part.train.target == splits.train.target
        counts = torch.bincount(part.validation.targets())
        assert counts[0] in (4, 5) and counts[1] in (1, 2)  # in proportion


def test_a_cross_validation_keeps_groups_whole() -> None:
    speakers = [f"s{i % 7}" for i in range(28)]
    rows = Dataset.from_dict(
        {"text": [str(i) for i in range(28)], "label": [0, 1] * 14, "speaker": speakers}
    )
    for number in range(3):
        part = open_splits(rows).fold(number, 3)
        inside, outside = (
            set(source.dataset["speaker"]) for source in (part.validation, part.train)
        )
        assert inside and not inside & outside


def test_a_cross_validation_may_take_the_test_split_in() -> None:
    """As many parts as speakers: each part is what one of them said, in whatever split."""
    rows = [
        {"text": f"{split} {i}", "label": i % 2, "speaker": f"s{i % 4}"}
        for split, count in (("train", 32), ("test", 8))
        for i in range(count)
    ]
    tables = {
        split: [r for r in rows if r["text"].startswith(split)] for split in ("train", "test")
    }
    splits = open_splits(DatasetDict({n: Dataset.from_list(r) for n, r in tables.items()}))
    whole = splits.together()
    assert whole.test is None and whole.folded_by(4) == "speaker" and whole.folded_by(5) == ""
    found = []
    for number in range(4):
        part = whole.fold(number, 4)
        (speaker,) = set(part.validation.dataset["speaker"])
        assert speaker not in part.train.dataset["speaker"]
        found += part.validation.dataset["text"]
        assert len(part.validation) == 10 and len(part.train) == 30
    assert sorted(found) == sorted(row["text"] for row in rows)
    assert whole.together() is whole


@dataclass(frozen=True)
class Spread(Classes):
    """Classes that are spread as well as may be, and no more."""

    kinds_required: ClassVar[bool] = False


def test_kinds_that_are_not_required() -> None:
    """A class of one item, of one item in all, or of another split, refuses nothing."""
    lonely = DatasetDict(train=texts([*"ab" * 10, "c"]))
    splits = open_splits(lonely, target=Spread())
    assert len(splits.train) + len(splits.validation) == 21 and not splits.skipped
    assert "is the only one of the class 'c'" in refused(lambda: open_splits(lonely))
    other = DatasetDict(train=texts([*"ab"]), validation=texts([*"aa"]), test=texts([*"bb"]))
    assert len(open_splits(other, target=Spread(), train_limit=1).train) == 1
