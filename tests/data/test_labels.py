"""Any number of classes per item: lists, cut strings, and what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from hypothesis import given
from hypothesis import strategies as st

from resbackbones.data import Column, Labels, open_dataset, open_splits
from tests.data.helpers import refused, texts, write


def column(cells: list[Any], **more: Any) -> Column:
    return Column("label", cells, "here", "row {}".format, **more)


def learned(cells: list[Any], target: Labels | None = None, **more: Any) -> tuple[Labels, Any]:
    found = (target or Labels()).learn(column(cells, **more))
    return found, found.values(column(cells, **more)).tolist()


@pytest.mark.parametrize(
    ("cells", "separator", "names", "values"),
    [
        ([["b", "a"], [], ["a"]], "", ("a", "b"), [[1, 1], [0, 0], [1, 0]]),
        ([[10, 9], [9, 9, 9]], "", ("9", "10"), [[1, 1], [1, 0]]),
        ([[2.0], [1.0, 2.0]], "", ("1", "2"), [[0, 1], [1, 1]]),
        (["cat|dog", "dog"], "|", ("cat", "dog"), [[1, 1], [0, 1]]),
        (["cat, dog", "dog,", "[]"], ",", ("cat", "dog"), [[1, 1], [0, 1], [0, 0]]),
        (["a, b; c", "c"], ";", ("a, b", "c"), [[1, 1], [0, 1]]),
        (["10|9", "9"], "|", ("9", "10"), [[1, 1], [1, 0]]),
        (["007|7"], "|", ("007", "7"), [[1, 1]]),
        (["1|b"], "|", ("1", "b"), [[1, 1]]),
        ([3, 1], "", ("1", "3"), [[0, 1], [1, 0]]),
        (['["a, b", "c"]', '["c"]', "[ ]"], "", ("a, b", "c"), [[1, 1], [0, 1], [0, 0]]),
        (["one", "two"], "", ("one", "two"), [[1, 0], [0, 1]]),
    ],
)
def test_cells(
    cells: list[Any], separator: str, names: tuple[str, ...], values: list[list[int]]
) -> None:
    target, found = learned(cells)
    assert (target.separator, target.names, found) == (separator, names, values)
    assert target.values(column(cells)).dtype == torch.float32
    assert learned(cells, Labels(separator=separator)) == (target, values)


def test_told_names_and_separator() -> None:
    assert learned(["dog cat", "cat"], Labels(separator=" "))[1] == [[1, 1], [1, 0]]
    assert learned([["b"], ["a", "b"]], Labels(("b", "a")))[1] == [[1, 0], [1, 1]]
    assert learned([[1], [0, 1]], Labels(("b", "a")))[1] == [[0, 1], [1, 1]]
    assert learned(["1", "0|1"], Labels(("b", "a")))[1] == [[0, 1], [1, 1]]
    assert learned([[1], []], listed=("x", "y", "z"))[1] == [[0, 1, 0], [0, 0, 0]]
    assert learned(["a", "a|b"], Labels(separator=""))[0].names == ("a", "a|b")


@given(st.lists(st.sets(st.sampled_from(["a", "b c", "7", "12", "x[y"])), min_size=1))
def test_lists_json_and_strings_say_the_same(items: list[set[str]]) -> None:
    cells = [sorted(own) for own in items]
    if not any(cells):
        with pytest.raises(Exception, match="has no class in column 'label'"):
            Labels().learn(column(cells))
        return
    target, expected = learned(cells)
    assert target.names == tuple(sorted(set().union(*items)))
    for row, own in zip(expected, items, strict=True):
        assert row == [float(name in own) for name in target.names]
    told = Labels(target.names, "|")
    assert learned([json.dumps(own) for own in cells], told)[1] == expected
    assert learned(["|".join(own) or "[]" for own in cells], told)[1] == expected


def test_columns_of_every_type(tmp_path: Path) -> None:
    rows = {"text": ["x", "y", "z"], "label": [[1, 0], [1], []]}
    named = Features({"text": Value("string"), "label": List(ClassLabel(names=["no", "yes"]))})
    for features, names in ((named, ("no", "yes")), (None, ("0", "1"))):
        source = open_dataset(Dataset.from_dict(rows, features), target=Labels())
        assert source.target.names == names
        assert source.targets().tolist() == [[1, 1], [0, 1], [0, 0]]
        assert source.select([2, 1]).targets().tolist() == [[0, 0], [0, 1]]
    wrong = Labels(("yes", "no"))
    assert "names its labels ('no', 'yes')" in refused(
        lambda: open_dataset(Dataset.from_dict(rows, named), target=wrong)
    )
    flags = Dataset.from_dict({"text": ["a b"], "odd": [["p", "q"]]})  # found by its type
    assert open_dataset(flags, target=Labels()).columns["label"] == "odd"

    Dataset.from_dict(rows, named).to_parquet(tmp_path / "a" / "train.parquet")
    write(
        {
            tmp_path / "b.csv": 'text,tags\nx,"yes, no"\ny,yes\nz,[]\n',
            tmp_path / "c.jsonl": "\n".join(
                json.dumps({"text": text, "tags": tags})
                for text, tags in (("x", ["yes", "no"]), ("y", ["yes"]), ("z", []))
            ),
            tmp_path / "d" / "train.csv": "text,tags\nx,0|1\ny,1\nz,[]\n",
            tmp_path / "d" / "labels.json": '["no", "yes"]',
        }
    )
    for name in ("a", "b.csv", "c.jsonl", "d"):
        source = open_dataset(tmp_path / name, target=Labels())
        assert source.target.names == ("no", "yes"), name
        assert source.targets().tolist() == [[1, 1], [0, 1], [0, 0]], name


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([["a"], None], "row 2 of the given data set [train] has no label in column 'label'; an"),
        (["a|b", " "], "row 2 of the given data set [train] has no label in column 'label'; an"),
        ([["a"], ["b", " "]], "row 2 of the given data set [train] has a label without a name in"),
        ([["a"], [None]], "row 2 of the given data set [train] has a label without a name in"),
        ([[1.0], [0.5]], "row 2 of the given data set [train] has the label 0.5 in column"),
        ([[[1]], [[0]]], "row 1 of the given data set [train] has the label [1] in column 'label'"),
        ([[{"a": 1}]], "row 1 of the given data set [train] has the label {'a': 1} in column"),
        (
            ["['a', 'b']"],
            "row 1 of the given data set [train] has \"['a', 'b']\" in column 'label'",
        ),
        ([[], []], "the given data set [train] has no class in column 'label'"),
        ([[0, 1, 1], [1, 0, 0]], "the lists in column 'label' of the given data set [train] seem"),
        ([[True, True]], "the lists in column 'label' of the given data set [train] seem"),
    ],
)
def test_labels_that_cannot_be(labels: list[Any], why: str) -> None:
    rows = texts(labels)
    sentence = refused(lambda: open_dataset(rows, columns={"label": "label"}, target=Labels()))
    assert sentence.startswith(why)


def test_a_class_that_train_lacks_is_named_or_left_out() -> None:
    rows = DatasetDict(
        train=texts([["a"], ["b"]] * 10), test=texts([["a"], ["c"], ["b", "d"], ["b"]])
    )
    assert refused(lambda: open_splits(rows, target=Labels())) == (
        "row 2 of the given data set [test] has the label 'c' in column 'label', none of 'a', 'b' "
        "(and 1 more); repair or remove it, or leave such rows out (--on-bad skip)"
    )
    splits = open_splits(rows, target=Labels(), on_bad="skip")
    assert splits.test is not None and splits.test.targets().tolist() == [[1, 0], [0, 1]]
    assert len(splits.skipped) == 2


def test_lists_where_one_class_is_expected() -> None:
    assert (
        "a list; where items have any number of classes give `Labels()` (--multi-label)"
        in refused(lambda: open_dataset(texts([["a"], ["b", "a"]])))
    )


def test_labels_that_learned_nothing() -> None:
    with pytest.raises(ValueError, match="use what `learn` gives"):
        Labels().values(column([["a"]]))


@pytest.mark.parametrize("hidden", [[], [-1], None])
def test_a_test_split_without_labels_is_left_out(hidden: Any) -> None:
    features = Features({"text": Value("string"), "label": List(Value("int64"))})
    rows = DatasetDict(
        train=Dataset.from_dict(texts([[0], [1, 2]] * 10).to_dict(), features),
        test=Dataset.from_dict(texts([hidden] * 2).to_dict(), features),
    )
    with pytest.warns(UserWarning, match=r"\[test\] has no labels: it is left out"):
        assert open_splits(rows, target=Labels()).test is None


def test_each_class_that_can_be_is_held_out() -> None:
    cells = [["common"] + ["rare"] * (row % 20 == 0) + ["single"] * (row == 7) for row in range(60)]
    splits = open_splits(texts([*cells, [], []]), target=Labels())
    for part, rows in ((splits.train, 56), (splits.validation, 6)):
        counts = dict(zip(part.target.names, part.targets().sum(0).tolist(), strict=True))
        assert len(part) == rows and counts["rare"] >= 1 and counts["common"] >= 4
    assert "3 classes of " in splits.found() and "stratified by label" in splits.found()
    assert "classes per item" in splits.found()
    strata = splits.train.target.strata(
        torch.tensor([[1.0, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]])
    )
    assert strata.tolist() == [1, 1, 0, 0]
    assert splits.train.target.stratum(1) == "class 'rare'"
    assert splits.train.target.stratum(3) == "other items"
    again = open_splits(texts([*cells, [], []]), target=Labels())
    assert again.held_out == splits.held_out


def test_fingerprints_tell_labels_apart() -> None:
    prints = {
        open_dataset(texts(labels), target=Labels()).fingerprint()
        for labels in ([["a"], ["b"]], [["a"], ["a", "b"]], [["a", "b"], []], ["a", "b"])
    }
    same = open_dataset(texts([["a"], ["b", "a"]]), target=Labels()).fingerprint()
    assert len(prints) == 3 and same in prints  # a text of one name says what a list of it says
