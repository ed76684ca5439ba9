"""Anything opens by one call; what is wrong with it is said in one sentence."""

import gzip
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Audio, Dataset, DatasetDict, Image

from resbackbones.data import (
    NoTarget,
    Source,
    open_dataset,
    open_splits,
    read,
    speaker_leak,
)
from tests.data.helpers import image, pixels, refused, samples, texts, tone, write

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_image_folders(tmp_path: Path) -> None:
    write({tmp_path / label / f"{i}.PNG": image(i) for label in ("dog", "cat") for i in range(3)})
    write({tmp_path / "cat" / "deep" / "9.png": image(9), tmp_path / "cat" / "notes.txt": "no"})
    write({tmp_path / ".hidden" / "x.png": image(), tmp_path / "dog" / ".x.png": image()})
    source = open_dataset(tmp_path)
    assert source.target.names == ("cat", "dog")
    assert source.targets().tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert source.columns == {"input": "image", "label": "label"}
    assert source.dataset.features["image"] == Image(decode=False)
    assert [red for red, _, _ in read(source, pixels).items] == [0, 1, 2, 9, 0, 1, 2]
    assert source.row_name(3) == str(tmp_path / "cat" / "deep" / "9.png")


@pytest.mark.parametrize("file_format", ["WAV", "FLAC", "OGG", "MP3"])
def test_audio_folders_with_splits(tmp_path: Path, file_format: str) -> None:
    for split, count in (("train", 4), ("dev", 2), ("test", 1)):
        for label in ("yes", "no"):
            for i in range(count):
                path = tmp_path / split / label / f"{i}.{file_format.lower()}"
                write({path: tone(300 + i, file_format)})
    splits = open_splits(str(tmp_path))
    assert splits.test is not None and splits.held_out == ()
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [8, 4, 2]
    assert {s.target.names for s in (splits.train, splits.validation, splits.test)} == {
        ("no", "yes")
    }
    assert splits.train.dataset.features["audio"] == Audio(decode=False)
    assert all(len(item) >= 1600 for item in read(splits.train, samples).items)
    assert splits.validation.name == f"{tmp_path} [dev]"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write({tmp_path / label / f"{i}.png": image() for label in ("train", "car") for i in range(2)})
    assert open_dataset(tmp_path).target.names == ("car", "train")


def test_lists_of_files_say_their_split(tmp_path: Path) -> None:
    """As Speech Commands is published: words in folders, two lists, noise beside them."""
    names = [f"{word}/{speaker}_nohash_0.wav" for word in ("no", "yes") for speaker in "abc"]
    write({tmp_path / name: tone() for name in [*names, "_background_noise_/rain.wav"]})
    lists = {"validation_list.txt": names[1::3], "testing_list.txt": names[2::3]}
    write({tmp_path / name: "\n".join(lines) + "\n" for name, lines in lists.items()})
    splits = open_splits(tmp_path)
    assert splits.test is not None and splits.train.target.names == ("no", "yes")
    for source, speaker in ((splits.train, "a"), (splits.validation, "b"), (splits.test, "c")):
        found = [str(cell["path"]) for cell in source.dataset["audio"]]
        assert [Path(path).name for path in found] == [f"{speaker}_nohash_0.wav"] * 2
    assert "1 recording in _background_noise_ is of no class" in splits.found()
    # A list of what is not there is no list.
    write({tmp_path / "testing_list.txt": "no/zoe_nohash_0.wav"})
    splits = open_splits(tmp_path)
    assert splits.test is None and "1 .txt file is ignored" in splits.found()


def test_labels_json_names_class_folders(tmp_path: Path) -> None:
    """Their order is that of the list; and a stray list of names is no table."""
    write({tmp_path / label / f"{i}.png": image(i) for label in ("dog", "cat") for i in range(2)})
    write({tmp_path / "labels.json": '["dog", "cat"]', tmp_path / "classes.json": '["x", "y"]'})
    splits = open_splits(tmp_path)
    assert splits.train.target.names == ("dog", "cat")
    assert splits.notes == ("1 .json file is ignored",)
    write({tmp_path / "labels.json": '["dog", "cow"]'})
    assert "cat/0.png has the label 'cat' in column 'label', none of 'dog', 'cow'" in refused(
        lambda: open_dataset(tmp_path)
    )


def test_tables_beside_class_folders(tmp_path: Path) -> None:
    """A table is the data only if it speaks of media."""
    write({tmp_path / label / f"{i}.png": image(i) for label in ("dog", "cat") for i in range(2)})
    write({tmp_path / "notes.csv": "who,when\nme,1\n"})
    assert open_dataset(tmp_path).target.names == ("cat", "dog")
    write({tmp_path / "notes.csv": "path,label\ndog/0.png,x\ncat/1.png,y\n"})
    assert open_dataset(tmp_path).target.names == ("x", "y")


def test_what_is_ignored_is_named(tmp_path: Path) -> None:
    names = ("a/0.wav", "a/1.wav", "b/0.wav", "b/1.wav", "a/2.m4a", "b/2.M4A", "README.md", "x")
    write({tmp_path / name: tone() for name in names})
    splits = open_splits(tmp_path)
    assert len(splits.train) + len(splits.validation) == 4
    assert splits.notes == (
        "1 nameless file is ignored",
        "2 .m4a files are ignored (convert to .wav to use them)",
        "1 .md file is ignored",
    )
    assert all(note in splits.found() for note in splits.notes)
    write({tmp_path / "photos" / "a" / "0.heic": b"", tmp_path / "photos" / "b" / "0.heic": b""})
    assert "2 .heic files are ignored (convert to .jpg to use them)" in refused(
        lambda: open_dataset(tmp_path / "photos")
    )
    write({tmp_path / "csv" / "train.csv": "text,label\nx,a\ny,b\nz,a\nu,b\n"})
    write({tmp_path / "csv" / "extra.csv": "text,label\nx,a\n"})
    assert open_splits(tmp_path / "csv").notes == ("extra.csv is ignored (no split in its name)",)


def test_links_to_a_folder_above_are_not_followed(tmp_path: Path) -> None:
    write({tmp_path / "set" / label / "0.png": image() for label in ("a", "b")})
    write({tmp_path / "elsewhere" / "1.png": image()})
    (tmp_path / "set" / "a" / "root").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "a" / "above").symlink_to(tmp_path)
    (tmp_path / "set" / "b" / "c").symlink_to(tmp_path / "set" / "a")
    (tmp_path / "set" / "a" / "b").symlink_to(tmp_path / "set" / "b")
    (tmp_path / "set" / "b" / "more").symlink_to(tmp_path / "elsewhere")
    found = open_dataset(tmp_path / "set").dataset["image"][:]
    inside = [os.path.relpath(value["path"], tmp_path / "set") for value in found]
    # A link to a folder beside is followed, once; back and forth between two it is not.
    more = ["a/b/0.png", "a/b/more/1.png", "b/c/0.png", "b/more/1.png"]
    assert sorted(inside) == sorted(["a/0.png", "b/0.png", *more])


def test_class_folders_at_any_depth(tmp_path: Path) -> None:
    def names_and_notes(where: str, *folders: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        for folder in folders:
            write({tmp_path / where / folder / f"{i}.png": image(i) for i in range(2)})
        splits = open_splits(tmp_path / where)
        return splits.train.target.names, splits.notes

    assert names_and_notes("a", "pics/red", "pics/blue") == (
        ("blue", "red"),
        ("The folders of classes are in pics",),
    )
    deep = [f"{s}/{name}" for s in ("train", "val") for name in ("animals/cats", "plants/ivy")]
    said = "The classes are the folders 2 levels down, such as animals/cats"
    assert names_and_notes("b", *deep) == (("cats", "ivy"), (said,))
    assert open_dataset(tmp_path / "b", "val").targets().tolist() == [0, 0, 1, 1]
    below = "Folders below the first divide a class (cats/monday is of 'cats')"
    for where, folders in (
        ("c", ("cats/monday", "dogs/monday")),
        ("d", ("cats/monday", "dogs")),
    ):
        assert names_and_notes(where, *folders) == (("cats", "dogs"), (below,))
    assert names_and_notes("e", "cats", "dogs", "dogs/more/x") == (("cats", "dogs"), ())
    inside = ("The folders of classes are in set",)
    assert names_and_notes("f", *(f"set/{s}/{n}" for s in ("train", "val") for n in "ab")) == (
        ("a", "b"),
        inside,
    )
    assert len(open_splits(tmp_path / "f").validation) == 4


def test_text_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("pos", "neg"):
            files = {tmp_path / split / label / f"{i}.txt": f"{label} {i}\nä\n" for i in range(3)}
            write(files)
    splits = open_splits(tmp_path)
    assert splits.test is not None and splits.test.columns["input"] == "text"
    assert splits.test.dataset["text"][:2] == ["neg 0\nä\n", "neg 1\nä\n"]
    assert splits.test.target.names == ("neg", "pos")
    assert splits.test.row_name(1) == str(tmp_path / "test" / "neg" / "1.txt")
    write({tmp_path / "train" / "neg" / "1.txt": "a\nü".encode("latin-1")})
    assert f"line 2 of {tmp_path / 'train/neg/1.txt'} is not UTF-8; say what it is" in refused(
        lambda: open_splits(tmp_path)
    )
    assert open_dataset(tmp_path, encoding="latin-1").dataset["text"][1] == "a\nü"


def test_plain_texts(tmp_path: Path) -> None:
    write({tmp_path / "train.txt": "one\n\ntwo\n", tmp_path / "validation.txt": "three\n"})
    splits = open_splits(tmp_path, target=NoTarget())
    assert splits.train.dataset["text"][:] == ["one", "", "two"]
    assert splits.train.targets() is None and len(splits.validation) == 1
    alone = open_dataset(tmp_path / "train.txt", target=NoTarget())
    assert len(alone) == 3 and alone.columns == {"input": "text"}
    sentence = refused(lambda: open_dataset(tmp_path / "train.txt"))
    assert "has no label column" in sentence and "one row per line" in sentence


def test_media_without_classes(tmp_path: Path) -> None:
    write({tmp_path / "a" / "0.png": image(5), tmp_path / "1.png": image(6)})
    source = open_dataset(tmp_path, target=NoTarget())
    assert source.columns == {"input": "image"}
    assert [red for red, _, _ in read(source, pixels).items] == [6, 5]
    assert source.row_name(0) == str(tmp_path / "1.png")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("place", ["in each split", "in the root", "without splits"])
def test_metadata_beside_media(tmp_path: Path, ending: str, place: str) -> None:
    """As on the Hub: `file_name` starts at the table's own folder."""
    every: dict[str, list[str]] = {"file_name": [], "label": []}
    for split in ("train", "test"):
        names = [f"clips/{split}{i}.wav" for i in range(4)]
        write({tmp_path / split / name: tone(300 + i) for i, name in enumerate(names)})
        rows = {"file_name": names, "label": [*"abab"], "take": [*"wxyz"]}
        if place != "in the root":
            WRITERS[ending](Dataset.from_dict(rows), tmp_path / split / f"metadata.{ending}")
        every["file_name"] += [f"{split}/{name}" for name in names]
        every["label"] += rows["label"]
    if place == "in the root":
        WRITERS[ending](Dataset.from_dict(every), tmp_path / f"metadata.{ending}")
    where = tmp_path / "train" if place == "without splits" else tmp_path
    write({where / "left.wav": tone()})
    splits = open_splits(where)
    assert splits.train.columns["input"] == "file_name"
    assert len(read(splits.train, samples).items) == 2 and len(splits.held_out) == 2
    assert (splits.test is None) == (place == "without splits")
    if splits.test is not None:
        assert splits.test.row_name(3) == str(tmp_path / "test" / "clips" / "test3.wav")
    assert splits.notes == ("1 .wav file is ignored",)


def test_metadata_of_other_files(tmp_path: Path) -> None:
    write({tmp_path / "metadata.csv": "file_name,label\n0.m4a,a\n1.m4a,b\n"})
    assert "names no image or audio files ('0.m4a' in row 1); expected image or audio" in refused(
        lambda: open_dataset(tmp_path)
    )
    write({tmp_path / "metadata.csv": "text,label\nx,a\ny,b\n"})  # a table like others
    assert open_dataset(tmp_path).columns == {"input": "text", "label": "label"}


@pytest.mark.parametrize("ending", ["csv.gz", "tsv.gz", "jsonl.gz"])
def test_compressed_files(tmp_path: Path, ending: str) -> None:
    rows = {"csv.gz": "text,label\nä,a\ny,b\n", "tsv.gz": "text\tlabel\nä\ta\ny\tb\n"}
    lines = '{"text": "ä", "label": "a"}\n{"text": "y", "label": "b"}\n'
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(gzip.compress(rows.get(ending, lines).encode()))
    for where in (path, tmp_path):
        assert open_dataset(where).dataset["text"][:] == ["ä", "y"]
    path.write_bytes(gzip.compress(rows.get(ending, lines).encode("latin-1")))
    assert f"of {path} is not UTF-8" in refused(lambda: open_dataset(path))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_separators_are_detected_and_said(tmp_path: Path, separator: str, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    table = [["text", "label"], ['"a, b; c\nd"', "x"], ["e | f, g", "y"], ["h", "x"], ["i", "y"]]
    if separator in ",|":
        table[2][0] = f'"{table[2][0]}"'
    write({path: "".join(separator.join(row) + "\n" for row in table)})
    splits = open_splits(path)
    assert open_dataset(path).dataset["text"][:2] == ["a, b; c\nd", "e | f, g"]
    usual = {"csv": ",", "tsv": "\t"}[ending]
    assert len(splits.notes) == (separator != usual)
    assert separator == usual or f"({separator!r}, as detected)" in splits.found()


def test_separators_are_told(tmp_path: Path) -> None:
    write({tmp_path / "x.csv": "text;more,label\na;b,x\nc;d,y\n"})
    columns = {"input": "text;more"}
    assert open_dataset(tmp_path, columns=columns).dataset["text;more"][:] == ["a;b", "c;d"]
    told = {"input": "text", "label": "more,label"}
    assert open_dataset(tmp_path, columns=told, separator=";").dataset["text"][:] == ["a", "c"]
    write({tmp_path / "x.csv": "text\tlabel\na\tx\nc\ty\n"})
    for tab in ("tab", "\\t", "\t"):
        assert open_dataset(tmp_path, separator=tab).target.names == ("x", "y")
    assert "is not one character" in refused(lambda: open_dataset(tmp_path, separator=";;"))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_encodings_are_told(tmp_path: Path, encoding: str, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    rows = {
        "csv": "text;label\nx,a;a\nünfug;b\n",
        "jsonl": '{"text": "x,a", "label": "a"}\n{"text": "ünfug", "label": "b"}\n',
    }
    path.write_bytes(rows[ending].encode(encoding))
    source = open_dataset(path, encoding=encoding)
    assert source.dataset["text"][:] == ["x,a", "ünfug"]
    if encoding == "latin-1":
        assert refused(lambda: open_dataset(path)) == (
            f"line {dict(csv=3, jsonl=2)[ending]} of {path} is not UTF-8; say what it is with "
            "encoding (--encoding latin-1, --encoding utf-16), or save the file as UTF-8"
        )
    assert "'latin-1', 'cp1252' or" in refused(lambda: open_dataset(path, encoding="latin-17"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.txt", "a/x.txt", "x.csv.gz"])
def test_what_a_file_says_of_its_encoding_is_heard(
    tmp_path: Path, name: str, encoding: str
) -> None:
    contents = {
        "x.csv": "text;label\nä,1;a\nx;b\ny;a\nz;b\n",
        "x.jsonl": ('{"text": "ä,1", "label": "a"}\n' + '{"text": "x", "label": "b"}\n') * 2,
        "x.txt": "ä,1\nx\n",
        "a/x.txt": "ä,1",
    }
    data = contents[name.removesuffix(".gz")].encode(encoding)
    write({tmp_path / name: gzip.compress(data) if name.endswith(".gz") else data})
    write({tmp_path / f"b/{i}.txt": "x" for i in range(3)} if "/" in name else {})
    target = NoTarget() if name == "x.txt" else None
    where = tmp_path if "/" in name else tmp_path / name
    assert open_dataset(where, target=target).dataset["text"][0] == "ä,1"
    if target is None and "/" not in name:
        note = "The text is utf-16, as its first bytes say"
        assert (note in open_splits(where).notes) == (encoding == "utf-16")


def test_a_line_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    lines = ['text,label\n"ä\nb",x\nc,y\n'.encode(), "dü,y\n".encode("latin-1"), b"e,x\n"]
    path.write_bytes(b"".join(lines))
    assert f"line 5 of {path} is not UTF-8; say what" in refused(lambda: open_dataset(path))
    path.write_bytes("text,label\nä,x\n".encode("cp1252") + b"b\x81,y\n")
    assert refused(lambda: open_dataset(path, encoding="cp1252")) == (
        f"line 3 of {path} is not cp1252; say another with encoding (--encoding utf-8, --encoding "
        "cp1252), or save the file as UTF-8"
    )
    path.write_bytes("text,label\nä,x\n".encode("utf-16") + b"\x00\xd8b\n")
    assert f"line 3 of {path} is not utf-16" in refused(lambda: open_dataset(path))


def test_a_row_is_on_the_line_where_an_editor_shows_it(tmp_path: Path) -> None:
    long = "word " * 200_000  # a megabyte
    write({tmp_path / "train_a.csv": f'text;label\n"a\n\nb";x\n  \n\nc;y\n"{long}";x\nd;\n'})
    write({tmp_path / "train_b.csv": "text;label\r\ne;y\r\n;x\r\n"})
    with pytest.warns(UserWarning, match=f"line 9 of {tmp_path / 'train_a.csv'} has no label"):
        source = open_dataset(tmp_path, on_bad="skip")
    assert source.dataset["text"][2] == long
    lines = [("a", 2), ("a", 7), ("a", 8), ("b", 2), ("b", 3)]
    expected = [f"line {line} of {tmp_path / f'train_{file}.csv'}" for file, line in lines]
    assert [source.row_name(row) for row in range(len(source))] == expected
    assert source.select([4, 1]).row_name(1) == expected[1]
    told = refused(lambda: open_dataset(tmp_path))
    assert told.startswith(f"line 9 of {tmp_path / 'train_a.csv'} has no label in column 'label'")


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write({path: '{"text": "a", "label": 1}\n\n{"text": "b"\n'})
    assert f"{path} cannot be opened (line 3 is no JSON: Expecting" in refused(
        lambda: open_dataset(path)
    )
    write({path: '{"text": "a", "label": 1}\n{"text": "b", "label": null}\n'})
    told = refused(lambda: open_dataset(path))
    assert told.startswith(f"row 2 of {path} [train] has no label in column 'label'")


def test_texts_in_compressed_files(tmp_path: Path) -> None:
    for label in "ab":
        write({tmp_path / label / "0.txt.gz": gzip.compress(f"ä {label}\r\n".encode())})
    assert open_dataset(tmp_path).dataset["text"][:] == ["ä a\n", "ä b\n"]


def test_groups_in_file_names(tmp_path: Path) -> None:
    names = [f"{word}/s{i}_{word}.wav" for word in ("yes", "no") for i in range(12)]
    write({tmp_path / name: tone() for name in [*names, "no/silence.wav"]})
    splits = open_splits(tmp_path, group_pattern=r"([^/_]+)_")
    assert speaker_leak(splits.train, splits.validation) == 0.0
    groups = splits.train.dataset["group"][:] + splits.validation.dataset["group"][:]
    assert Counter(groups) == {**{f"s{i}": 2 for i in range(12)}, None: 1}
    assert "groups (column 'group')" in splits.found()
    assert "no speakers are named" in open_splits(tmp_path).found()
    folders = open_dataset(tmp_path, group_pattern="yes|no")
    assert set(folders.dataset["group"]) == {"yes", "no"}
    for pattern, why in (("(", "is no regular expression"), ("_x_", "is found in no path of")):
        assert why in refused(lambda p=pattern: open_splits(tmp_path, group_pattern=p))
    assert "stand in a table; name a column of groups there" in refused(
        lambda: open_splits(texts([0, 1]), group_pattern=".")
    )


WRITERS: dict[str, Callable[[Dataset, Path], Any]] = {
    "parquet": lambda rows, path: rows.to_parquet(path),
    "csv": lambda rows, path: rows.to_csv(path),
    "tsv": lambda rows, path: rows.to_csv(path, sep="\t"),
    "jsonl": lambda rows, path: rows.to_json(path),
    "json": lambda rows, path: rows.to_json(path),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_files(tmp_path: Path, suffix: str) -> None:
    # A tab or comma inside, and words that CSV readers like to take for missing.
    rows = Dataset.from_dict({"sentence": ["a,\tb", "NA", "null"], "intent": ["on", "off", "NA"]})
    path = tmp_path / f"some_test.{suffix}"
    WRITERS[suffix](rows, path)
    source = open_dataset(path)
    assert source.dataset["sentence"][:] == ["a,\tb", "NA", "null"]
    assert source.target.names == ("NA", "off", "on")
    assert source.columns == {"input": "sentence", "label": "intent"}
    named = f"line 3 of {path}" if suffix in ("csv", "tsv") else f"row 2 of {path} [train]"
    assert source.row_name(1) == named


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.csv", "b.csv"], {"train": 4}),
        (["train.csv", "my-dev.csv", "test_2.csv"], {"train": 2, "validation": 2, "test": 2}),
        (["train-00000-of-00002.csv", "train-00001-of-00002.csv"], {"train": 4}),
        (["data/train-0.csv", "data/valid-0.csv"], {"train": 2, "validation": 2}),
        (["training/0.csv", "training/1.csv", "testing/0.csv"], {"train": 4, "test": 2}),
        (["train.csv", "extra.csv"], {"train": 2}),
    ],
)
def test_folders_of_files(tmp_path: Path, names: list[str], found: dict[str, int]) -> None:
    for name in names:
        write({tmp_path / name: "text,label\nx,a\ny,b\n"})
    write({tmp_path / "README.md": "text"})
    assert len(open_dataset(tmp_path)) == found["train"]
    for split in ("validation", "test"):
        if split in found:
            assert len(open_dataset(tmp_path, split)) == found[split]
        else:
            sentence = refused(partial(open_dataset, tmp_path, split))
            assert f"has no '{split}' split; name one of 't" in sentence


def test_saved_and_given_data(tmp_path: Path) -> None:
    rows = texts(["b", "a", "b", "a"])
    rows.save_to_disk(tmp_path / "one")
    both = DatasetDict({"train": rows, "valid": rows.select([2, 1])})
    both.save_to_disk(tmp_path / "two")
    for where in (rows, tmp_path / "one"):
        assert open_dataset(where).targets().tolist() == [1, 0, 1, 0]
    for where in (both, tmp_path / "two"):
        assert open_dataset(where, "dev").targets().tolist() == [1, 0]
        assert open_splits(where).test is None


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, configuration: str | None) -> DatasetDict:
        asked.append((name, configuration))
        return DatasetDict({"train": texts(["a", "b"]), "test": texts(["b"])})

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert open_dataset("owner/name:small", "test").target.names == ("a", "b")
    assert open_dataset("name").name == "name [train]"
    assert asked == [("owner/name", "small"), ("name", None)]


@pytest.mark.parametrize("offline", [True, False])
def test_no_hub_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], offline: bool
) -> None:
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    begin = time.monotonic()
    sentence = refused(lambda: open_dataset("mnist"))
    assert time.monotonic() - begin < 10
    assert sentence.startswith("there is no file or folder 'mnist', and the Hugging Face Hub")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("where", ["/no/such/place", "./trec", "../a/b", "train.csv", "a/b/c"])
def test_a_missing_path(where: str) -> None:
    assert refused(lambda: open_dataset(where)).startswith(f"there is no file or folder '{where}'")


def test_what_cannot_be_opened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = {"x.parquet": "no", "x.csv": "", "y.csv": "a,b\n1,2\n1,2,3\n", "x.jsonl": "{oops\n"}
    write({tmp_path / name: content for name, content in broken.items()})
    for name in broken:
        sentence = refused(partial(open_dataset, tmp_path / name))
        assert sentence.startswith(f"{tmp_path / name} cannot be opened (")
    assert capfd.readouterr().err == ""  # no log lines of the readers
    assert "is not one set of" in refused(lambda: open_dataset(tmp_path))  # mixed formats
    assert "is not one set of" in refused(lambda: open_dataset(Path(__file__)))
    assert "a list is no source" in refused(partial(open_dataset, [1]))
    assert "did you mean 'image'" in refused(lambda: open_dataset(tmp_path, kind="imag"))


def test_folders_without_classes(tmp_path: Path) -> None:
    assert "holds no data files; expected" in refused(lambda: open_dataset(tmp_path))
    write({tmp_path / "loose.png": image(), tmp_path / "a" / "0.png": image()})
    assert f"{tmp_path / 'loose.png'} is in no class folder" in refused(
        lambda: open_dataset(tmp_path)
    )
    (tmp_path / "loose.png").unlink()
    assert "has one class only ('a'" in refused(lambda: open_dataset(tmp_path))
    assert "holds no audio files" in refused(lambda: open_dataset(tmp_path, kind="audio"))
    write({tmp_path / "b" / "0.wav": tone()})
    assert "both images and audio" in refused(lambda: open_dataset(tmp_path))
    write({tmp_path / name / "c" / "0.png": image() for name in ("train", "test")})
    assert "class folder 'a' beside the splits test, train" in refused(
        lambda: open_dataset(tmp_path, kind="image")
    )


def test_importing_sources_is_light() -> None:
    code = "import sys, resbackbones.data; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "torch" in loaded and not {"datasets", "pandas"} & set(loaded)


@pytest.mark.parametrize(
    ("name", "columns", "sizes", "labels"),
    [
        ("trec", {"input": "text", "label": "label"}, (4907, 545, 500), 6),
        (
            "speech_commands_speaker_split",
            {"input": "audio", "label": "label", "group": "speaker"},
            (3362, 294, 1234),
            12,
        ),
        ("cifar10_jpeg", {"input": "image", "label": "label"}, (45000, 5000, 10000), 10),
    ],
)
def test_real_data(name: str, columns: Any, sizes: tuple[int, ...], labels: int) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {SHARED / name}")
    splits = open_splits(SHARED / name)
    parts: list[Source] = [splits.train, splits.validation]
    assert splits.test is not None
    parts.append(splits.test)
    assert tuple(map(len, parts)) == sizes
    assert all(part.columns == columns and len(part.target.names) == labels for part in parts)
    if "group" in columns:
        assert (
            splits.train.target.names[:2] == ("yes", "no")
            and splits.train.target.names[-1] == "_unknown_"
        )
        assert speaker_leak(splits.train, splits.test) == 0.0
    if columns["input"] != "text":
        decode = pixels if columns["input"] == "image" else samples
        assert len(read(splits.train.select([0, 7]), decode).items) == 2


def test_one_split_for_measuring(tmp_path: Path) -> None:
    """The first of these names that is there, numbered as train is; bad rows are left out if so
    told."""
    rows = DatasetDict(train=texts(["b", None, "a", "c"]), valid=texts(["c", None, "x"]))
    assert "row 2 of the given data set [train] has no label" in refused(
        lambda: open_dataset(rows, ["test", "validation"])
    )
    with pytest.warns(UserWarning, match=r"2 of the 3 rows of .*\[valid\] cannot be used \(row 2"):
        source = open_dataset(rows, ["test", "validation"], on_bad="skip")
    assert source.target.names == ("a", "b", "c") and source.targets().tolist() == [2]
    assert "has no 'test' split" in refused(lambda: open_dataset(rows, ["test"], on_bad="skip"))
