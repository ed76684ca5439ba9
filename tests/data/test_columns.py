"""Which column is what: found by type or usual name, or told."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Audio, Dataset, Image

from resbackbones.data import NoTarget, Source, open_dataset, read
from tests.data.helpers import CLASS, image, pixels, refused, texts, write

ENCODED = [{"bytes": b"x", "path": None}] * 2
# Two rows of a column, and its type where the rows do not tell.
COLUMNS: dict[str, tuple[list[Any], Any]] = {
    "image": (ENCODED, Image()),
    "audio": (ENCODED, Audio()),
    "encoded": (ENCODED, None),
    "class": ([0, 1], CLASS),
    "words": (["a", "b"], None),
}


def columns_of(given: Mapping[str, str | list[Any]], told: Any, kind: str | None) -> dict[str, str]:
    """The roles found in a table of these columns: name -> key of `COLUMNS`, or values."""
    both = {n: COLUMNS[key] if isinstance(key, str) else (key, None) for n, key in given.items()}
    rows = Dataset.from_dict({name: values for name, (values, _) in both.items()})
    for name, (_, feature) in both.items():
        rows = rows if feature is None else rows.cast_column(name, feature)
    return dict(open_dataset(rows, columns=told, kind=kind).columns)


@pytest.mark.parametrize(
    ("given", "told", "kind", "found"),
    [
        # by type, whatever the names
        ({"x": "image", "y": "class"}, {}, None, {"input": "x", "label": "y"}),
        ({"file": "words", "x": "audio", "y": "class"}, {}, None, {"input": "x", "label": "y"}),
        ({"x": "words", "y": "class"}, {}, None, {"input": "x", "label": "y"}),
        ({"x": "encoded", "y": "class"}, {}, "image", {"input": "x", "label": "y"}),
        ({"clip": ["a.wav", "b.mp3"], "y": "class"}, {}, None, {"input": "clip", "label": "y"}),
        # by usual name, where the type leaves it open
        ({"audio": "encoded", "label": [3, 4]}, {}, None, {"input": "audio", "label": "label"}),
        (
            {"label": "class", "is_unknown": "class", "Text": "words", "note": "words"},
            {},
            None,
            {"input": "Text", "label": "label"},
        ),
        (
            {"audio": "encoded", "text": "words", "class": [0, 1], "speaker_id": ["a", "b"]},
            {},
            None,
            {"input": "audio", "label": "class", "group": "speaker_id"},
        ),
        # told
        (
            {"text": "words", "note": "words", "label": "class", "topic": [1, 2], "group": [1, 1]},
            {"input": "note", "label": "topic", "group": ""},
            None,
            {"input": "note", "label": "topic"},
        ),
        (
            {"text": "words", "label": "class", "voice": [1, 1]},
            {"input": None, "group": "voice"},
            None,
            {"input": "text", "label": "label", "group": "voice"},
        ),
        ({"x": ["a.png", "b.png"], "y": "class"}, {}, "text", {"input": "x", "label": "y"}),
        (
            {"question": "words", "answer": "words", "label": "class"},
            {"pair": "Answer"},
            None,
            {"input": "question", "label": "label", "pair": "answer"},
        ),
        (
            {"audio": "encoded", "text": "words", "y": "class"},
            {},
            "text",
            {"input": "text", "label": "y"},
        ),
    ],
)
def test_columns_are_found_or_told(given: Any, told: Any, kind: Any, found: Any) -> None:
    assert columns_of(given, told, kind) == found


@pytest.mark.parametrize(
    ("given", "told", "kind", "why"),
    [
        ({"text": "words", "score": [1, 2]}, {}, None, "has no label column"),
        (
            {"text": "words", "a": "class", "b": "class"},
            {},
            None,
            "several label columns ('a', 'b')",
        ),
        ({"text": "words", "label": [1, 2], "b": "class"}, {}, None, "several label columns"),
        (
            {"a": "words", "b": "words", "label": "class"},
            {},
            None,
            "several input columns ('a', 'b')",
        ),
        ({"label": "class", "number": [1, 2]}, {}, None, "has no input column"),
        ({"x": "encoded", "label": "class"}, {}, None, "has no input column"),
        ({"text": "words", "label": "class"}, {}, "image", "has no image column"),
        (
            {"text": "words", "label": "class", "speaker": [1, 2], "group": [1, 2]},
            {},
            None,
            "several group columns ('speaker', 'group')",
        ),
        (
            {"text": "words", "label": "class"},
            {"label": "lable"},
            None,
            "no column 'lable' to use as",
        ),
        ({"text": "words", "label": "class"}, {"input": "label"}, None, "has no label column"),
        (
            {"x": "image", "label": "class"},
            {"input": "x"},
            "audio",
            "column 'x' of the given data set [train] cannot be read as audio",
        ),
        (
            {"Text": [1, 2], "label": "class"},
            {},
            None,
            "column 'Text' of the given data set [train] holds numbers, and cannot be read as an",
        ),
        (
            {"note": [1.0, 2.5], "text": "words", "label": "class"},
            {"input": "note"},
            "text",
            "column 'note' of the given data set [train] holds numbers, and cannot be read as text",
        ),
        (
            {"a": "words", "b": "words", "label": "class"},
            {"input": "a", "pair": "a"},
            None,
            "column 'a' of the given data set [train] is named as both texts of a pair",
        ),
        (
            {"a": "words", "b": [1, 2], "label": "class"},
            {"input": "a", "pair": "b"},
            None,
            "column 'b' of the given data set [train] holds numbers, and cannot be read as text",
        ),
    ],
)
def test_columns_that_do_not_fit(given: Any, told: Any, kind: Any, why: str) -> None:
    sentence = refused(lambda: columns_of(given, told, kind))
    assert why in sentence
    assert "its columns are" in sentence
    assert all(repr(name) in sentence for name in given)


def test_an_unknown_role() -> None:
    sentence = refused(lambda: open_dataset(texts(["a", "b"]), columns={"lable": "label"}))
    assert sentence == "'lable' is no role of a column; did you mean 'label'?"


def test_paths_in_a_table_start_at_its_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.png"
    write({tmp_path / "data" / "images" / "0.png": image(10), elsewhere: image(20)})
    write({tmp_path / "data" / "all.csv": f"path,label\nimages/0.png,a\n{elsewhere},b\n"})
    source = open_dataset(tmp_path / "data" / "all.csv")
    assert source.dataset.features["path"] == Image(decode=False)
    assert [item[0] for item in read(source, pixels).items] == [10, 20]
    assert source.row_name(0) == str(tmp_path / "data" / "images" / "0.png")


@pytest.mark.parametrize(
    ("text", "label"),
    [("Text", "Sentiment"), (" text ", " label"), ("REVIEW", "polarity"), ("message", "Topic ")],
)
def test_usual_names_in_any_spelling(text: str, label: str) -> None:
    found = columns_of({text: "words", label: ["a", "b"], "id": [1, 2]}, {}, None)
    assert found == {"input": text, "label": label}


def test_told_names_in_any_spelling() -> None:
    given = {"Text": "words", " Mood": ["a", "b"], "note": "words", "NOTE": "words"}
    told = {"input": "text", "label": "mood"}
    assert columns_of(given, told, None) == {"input": "Text", "label": " Mood"}
    assert columns_of(given, {**told, "input": "NOTE"}, None)["input"] == "NOTE"
    assert "no column 'Note'" in refused(lambda: columns_of(given, {**told, "input": "Note"}, None))


def test_a_table_without_names(tmp_path: Path) -> None:
    write({tmp_path / "x.csv": "a fine film,good\na dull one,bad\nnot bad,good\n"})
    sentence = refused(lambda: open_dataset(tmp_path / "x.csv"))
    assert "its columns are 'a fine film' (string), 'good' (string)" in sentence
    assert "their names are the first line of the file: put such a line there" in sentence
    assert "--label-column" in sentence


def test_a_fingerprint_tells_sources_apart(tmp_path: Path) -> None:
    def folder(name: str, colour: int = 1, label: str = "b") -> Source:
        files = {f"a/{i}.png": image(i) for i in range(3)} | {f"{label}/0.png": image(colour)}
        write({tmp_path / name / path: content for path, content in files.items()})
        return open_dataset(tmp_path / name)

    one = folder("one")
    assert one.fingerprint() == folder("two").fingerprint()  # wherever it lies
    ungrouped = replace(one, columns={**one.columns, "group": "label"})
    others = [folder("three", 2), folder("four", 1, "c"), one.select([0, 1, 3]), ungrouped]
    others += [one.select([1, 0, 2, 3]), one.select([0, 1, 2, 2])]
    assert len({one.fingerprint(), *(other.fingerprint() for other in others)}) == 7
    told = texts(["a", "b", None], speaker=["x", "y", "z"])
    silent = open_dataset(told, target=NoTarget())
    assert silent.fingerprint() == silent.fingerprint() != silent.select([0, 1]).fingerprint()


def test_a_fingerprint_is_the_same_on_every_machine() -> None:
    assert open_dataset(texts([0, 1] * 700)).fingerprint()[:16] == "843f1d3c8d12ed81"


def test_sizes_and_contents(tmp_path: Path) -> None:
    write({tmp_path / "0.png": b"0123456789"})
    encoded = [
        {"bytes": None, "path": str(tmp_path / "0.png")},
        {"bytes": b"abc", "path": "x.png"},
        {"bytes": None, "path": str(tmp_path / "gone.png")},
        {"bytes": None, "path": None},
    ]
    rows = Dataset.from_dict({"image": encoded, "label": [*"abab"]}).cast_column("image", Image())
    source = open_dataset(rows)
    assert source.sizes().tolist() == [10, 3, -1, -1]
    assert list(source.contents([0, 1, 2, 3])) == [b"0123456789", b"abc", b"", b""]
    assert list(source.contents([1, 0], most=2)) == [b"ab", b"45"]
    words = open_dataset(Dataset.from_dict({"text": ["ä", None, "xyz"], "label": [*"aba"]}))
    assert words.select([2, 0, 1]).sizes().tolist() == [3, 2, -1]
    assert list(words.contents([0, 1])) == ["ä".encode(), b""]
