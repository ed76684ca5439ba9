"""What is to be predicted: names and numbers of classes, and what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Value

from resbackbones.data import Classes, Column, NoTarget, Transcripts, open_dataset, open_splits
from tests.data.helpers import CLASS, refused, texts, write


def test_label_names(tmp_path: Path) -> None:
    assert open_dataset(texts(["b", "a", "c"])).target.names == ("a", "b", "c")
    numbers = open_dataset(texts([10, 9, 10]))
    assert (numbers.target.names, numbers.targets().tolist()) == (("9", "10"), [1, 0, 1])
    flags = open_dataset(texts([True, False]))
    assert (flags.target.names, flags.targets().tolist()) == (("False", "True"), [1, 0])
    named = texts([1, 0, 1]).cast_column("label", ClassLabel(names=["z", "a"]))
    assert open_dataset(named).target.names == ("z", "a")
    assert open_dataset(named).targets().tolist() == [1, 0, 1]

    write({tmp_path / "labels.json": json.dumps(["z", "a", "m"])})
    texts([2, 0, 2]).to_parquet(tmp_path / "numbers.parquet")
    texts(["m", "z"]).to_parquet(tmp_path / "strings.parquet")
    for name, ids in (("numbers", [2, 0, 2]), ("strings", [2, 0])):
        source = open_dataset(tmp_path / f"{name}.parquet")
        assert source.target.names == ("z", "a", "m")
        assert source.targets().tolist() == ids
        assert source.select([1]).targets().tolist() == ids[1:2]


def test_every_split_numbers_labels_as_train_does() -> None:
    both = DatasetDict({"train": texts(["a", "b", "c"]), "test": texts(["c", "b"])})
    rows = DatasetDict({**both, "dev": both["test"]})
    for source in (open_dataset(both, "test"), open_splits(rows).test):
        assert source is not None and source.target.names == ("a", "b", "c")
        assert source.targets().tolist() == [2, 1]
    turned = [texts([0, 1]).cast_column("label", ClassLabel(names=names)) for names in ("ab", "ba")]
    sentence = refused(lambda: open_splits(DatasetDict(train=turned[0], dev=turned[1])))
    assert "[dev] names its labels ('b', 'a'), but expected are ('a', 'b')" in sentence


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (["a", None, "b"], "row 2 of the given data set [train] has no label in column 'label'"),
        ([0.5, 1.0], "row 1 of the given data set [train] has the label 0.5 in column 'label'"),
        ([[1], [0, 1]], "row 1 of the given data set [train] has the label [1] in column 'label'"),
        (["a", "a"], "the given data set [train] has one class only ('a', in column 'label')"),
        ([], "the given data set [train] is empty"),
    ],
)
def test_labels_that_cannot_be(labels: list[Any], why: str) -> None:
    rows = texts(labels) if labels else texts(["a"]).select([])
    assert refused(lambda: open_dataset(rows)).startswith(why)


def test_labels_outside_the_range(tmp_path: Path) -> None:
    write({tmp_path / "labels.json": '["no", "yes"]'})
    texts([0, 1, 1, 2]).to_parquet(tmp_path / "x.parquet")
    assert refused(lambda: open_dataset(tmp_path)) == (
        f"row 4 of {tmp_path} [train] has the label 2 in column 'label', none of 0 to 1 "
        "('no', 'yes'); repair or remove it, or leave such rows out (--on-bad skip)"
    )
    typed = texts([1, -1, 0]).cast_column("label", CLASS)
    assert "row 2 of the given data set [train] has the label -1" in refused(
        lambda: open_dataset(typed)
    )
    for content in ('["no", "no"]', '{"no": 0}', "[oops"):
        write({tmp_path / "labels.json": content})
        assert "labels.json cannot be opened" in refused(lambda: open_dataset(tmp_path))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_labels_that_train_lacks(split: str) -> None:
    rows = DatasetDict({"train": texts(["a", "b"] * 5), split: texts(["a", "c"])})
    assert refused(lambda: open_splits(rows)) == (
        f"row 2 of the given data set [{split}] has the label 'c' in column 'label', none of "
        "'a', 'b'; repair or remove it, or leave such rows out (--on-bad skip)"
    )
    names = ClassLabel(names=["a", "b", "c"])
    typed = rows.class_encode_column("label").cast_column("label", Value("int64"))
    typed = DatasetDict({"train": typed["train"], split: texts([0, 2])}).cast_column("label", names)
    assert "is of the class 'c', of which the given data set [train] has no item" in refused(
        lambda: open_splits(typed)
    )


def test_a_train_split_of_one_class() -> None:
    rows = texts([1, 1]).cast_column("label", CLASS)
    assert open_dataset(rows).target.names == ("no", "yes")
    assert "[train] is of the class 'yes'; expected two" in refused(lambda: open_splits(rows))


def test_a_test_split_without_labels_is_left_out() -> None:
    rows = DatasetDict({"train": texts([0, 1] * 5), "test": texts([-1, -1])})
    with pytest.warns(UserWarning, match=r"\[test\] has no labels: it is left out"):
        assert open_splits(rows.cast_column("label", CLASS)).test is None


def test_whole_numbers_kept_as_decimals(tmp_path: Path) -> None:
    write({tmp_path / "x.csv": "text,label\na,1.0\nb,0.0\nc,1\n"})
    source = open_dataset(tmp_path / "x.csv")
    assert source.target.names == ("0", "1") and source.targets().tolist() == [1, 0, 1]
    write({tmp_path / "labels.json": '["bad", "good"]'})
    source = open_dataset(tmp_path / "x.csv")
    assert source.target.names == ("bad", "good") and source.targets().tolist() == [1, 0, 1]


def test_told_names() -> None:
    names = ("good", "bad")
    assert open_dataset(texts([0, 1]), target=Classes(names)).targets().tolist() == [0, 1]
    assert open_dataset(texts(["bad", "good"]), target=Classes(names)).targets().tolist() == [1, 0]
    typed = texts([0, 1]).cast_column("label", CLASS)
    assert "names its labels ('no', 'yes'), but expected are ('good', 'bad')" in refused(
        lambda: open_dataset(typed, target=Classes(names))
    )


def test_classes_that_learned_nothing() -> None:
    column = Column("label", ["a", "b"], "here", "row {}".format)
    with pytest.raises(ValueError, match="use what `learn` gives"):
        Classes().values(column)
    assert Classes().learn(column).values(column).tolist() == [0, 1]


def test_a_blank_label_is_a_missing_one() -> None:
    sentence = refused(lambda: open_dataset(texts(["a", "b", " ", ""])))
    assert sentence.startswith(
        "row 3 of the given data set [train] has no label in column 'label' (and 1 more); repair"
    )
    assert "row 1 of the given" in refused(lambda: open_dataset(texts([float("nan"), 1.0, 2.0])))


def test_no_label_at_all() -> None:
    rows = texts([None, None])
    sentence = refused(lambda: open_splits(rows, on_bad="skip"))
    assert sentence.startswith("not one row of the given data set [train] can be used (row 2 of")


def test_transcripts() -> None:
    rows = Dataset.from_dict(
        {"audio": [{"bytes": b"x", "path": None}] * 3, "Text": ["ab", "b c", "d"]}
    )
    splits = open_splits(DatasetDict(train=rows, dev=rows), target=Transcripts(), kind="audio")
    assert splits.train.columns == {"input": "audio", "text": "Text"}
    assert splits.train.targets() == ["ab", "b c", "d"]
    assert splits.train.select([2, 0]).targets() == ["d", "ab"]
    assert "; texts of 1 to 3 characters, 5 different ones; no speakers" in splits.found()
    for bad, why in ((None, "has no text"), (3, "which is no text")):
        column = Column("text", ["a", bad], "here", "row {}".format)
        assert why in Transcripts().faults(column)[1]
    assert not Transcripts().faults(Column("text", ["a", ""], "here", "row {}".format))
    broken = rows.remove_columns("Text").add_column("text", ["a", None, "b"])
    assert refused(lambda: open_dataset(broken, target=Transcripts(), kind="audio")).startswith(
        "row 2 of the given data set [train] has no text in column 'text'; repair or remove it"
    )


def test_nothing_to_predict() -> None:
    source = open_dataset(texts([None, "b"]), target=NoTarget())
    assert source.targets() is None and source.columns == {"input": "text"}
    assert source.target.names == ()
    assert open_dataset(texts([1]), columns={"label": None}, target=NoTarget()).targets() is None
    sentence = refused(
        lambda: open_dataset(texts([1]), columns={"label": "label"}, target=NoTarget())
    )
    assert sentence.startswith("'label' is no role of a column")
