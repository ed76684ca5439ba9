"""Anything labelled opens by one call; what is wrong with it is said in one sentence."""

import io
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from resbackbones.data import (
    Items,
    Source,
    Splits,
    draws,
    open_dataset,
    open_splits,
    read,
    speaker_leak,
)
from resbackbones.data.items import _splitmix
from resbackbones.data.opening import HELD_OUT
from resbackbones.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data"
CLASS = ClassLabel(names=["no", "yes"])


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache, and none draws a progress bar of `datasets`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


def image(colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 3), (colour, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def tone(frequency: float = 440, file_format: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    samples = np.sin(np.arange(1600) * 2 * np.pi * frequency / 8000)
    soundfile.write(buffer, samples, 8000, format=file_format)
    return buffer.getvalue()


def write(files: Mapping[Path, bytes | str]) -> None:
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def texts(labels: list[Any], **columns: list[Any]) -> Dataset:
    return Dataset.from_dict(
        {"text": [f"item {i}" for i in range(len(labels))], "label": labels, **columns}
    )


def pixels(value: Any) -> Any:
    """The first pixel, from the bytes or the file."""
    place = io.BytesIO(value["bytes"]) if value["bytes"] else value["path"]
    return PIL.Image.open(place).convert("RGB").getpixel((0, 0))


def samples(value: Any) -> np.ndarray:
    return soundfile.read(io.BytesIO(value["bytes"]) if value["bytes"] else value["path"])[0]


def refused(call: Callable[[], Any]) -> str:
    """The one sentence that says why."""
    with pytest.raises(InputError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence and not sentence.endswith(".")
    return sentence


# Where data come from


def test_image_folders(tmp_path: Path) -> None:
    write({tmp_path / label / f"{i}.PNG": image(i) for label in ("dog", "cat") for i in range(3)})
    write({tmp_path / "cat" / "deep" / "9.png": image(9), tmp_path / "cat" / "notes.txt": "no"})
    write({tmp_path / ".hidden" / "x.png": image(), tmp_path / "dog" / ".x.png": image()})
    source = open_dataset(tmp_path)
    assert source.labels == ("cat", "dog")
    assert source.label_ids().tolist() == [0, 0, 0, 0, 1, 1, 1]
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
    assert {s.labels for s in (splits.train, splits.validation, splits.test)} == {("no", "yes")}
    assert splits.train.dataset.features["audio"] == Audio(decode=False)
    assert all(len(item) >= 1600 for item in read(splits.train, samples).items)
    assert splits.validation.name == f"{tmp_path} [dev]"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write({tmp_path / label / f"{i}.png": image() for label in ("train", "car") for i in range(2)})
    assert open_dataset(tmp_path).labels == ("car", "train")


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
    assert source.labels == ("NA", "off", "on")
    assert source.columns == {"input": "sentence", "label": "intent"}
    assert source.row_name(1) == f"row 1 of {path} [train]"


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
        assert open_dataset(where).label_ids().tolist() == [1, 0, 1, 0]
    for where in (both, tmp_path / "two"):
        assert open_dataset(where, "dev").label_ids().tolist() == [1, 0]
        assert open_splits(where).test is None


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, configuration: str | None) -> DatasetDict:
        asked.append((name, configuration))
        return DatasetDict({"train": texts(["a", "b"]), "test": texts(["b"])})

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert open_dataset("owner/name:small", "test").labels == ("a", "b")
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


# Columns


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


# Labels


def test_label_names(tmp_path: Path) -> None:
    assert open_dataset(texts(["b", "a", "c"])).labels == ("a", "b", "c")
    numbers = open_dataset(texts([10, 9, 10]))
    assert (numbers.labels, numbers.label_ids().tolist()) == (("9", "10"), [1, 0, 1])
    flags = open_dataset(texts([True, False]))
    assert (flags.labels, flags.label_ids().tolist()) == (("False", "True"), [1, 0])
    named = texts([1, 0, 1]).cast_column("label", ClassLabel(names=["z", "a"]))
    assert open_dataset(named).labels == ("z", "a")
    assert open_dataset(named).label_ids().tolist() == [1, 0, 1]

    write({tmp_path / "labels.json": json.dumps(["z", "a", "m"])})
    texts([2, 0, 2]).to_parquet(tmp_path / "numbers.parquet")
    texts(["m", "z"]).to_parquet(tmp_path / "strings.parquet")
    for name, ids in (("numbers", [2, 0, 2]), ("strings", [2, 0])):
        source = open_dataset(tmp_path / f"{name}.parquet")
        assert source.labels == ("z", "a", "m")
        assert source.label_ids().tolist() == ids
        assert source.select([1]).label_ids().tolist() == ids[1:2]


def test_every_split_numbers_labels_as_train_does() -> None:
    both = DatasetDict({"train": texts(["a", "b", "c"]), "test": texts(["c", "b"])})
    rows = DatasetDict({**both, "dev": both["test"]})
    for source in (open_dataset(both, "test"), open_splits(rows).test):
        assert source is not None and source.labels == ("a", "b", "c")
        assert source.label_ids().tolist() == [2, 1]
    turned = [texts([0, 1]).cast_column("label", ClassLabel(names=names)) for names in ("ab", "ba")]
    sentence = refused(lambda: open_splits(DatasetDict(train=turned[0], dev=turned[1])))
    assert "[dev] names its labels ('b', 'a'), but the given data set [train]" in sentence


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (["a", None, "b"], "row 1 of the given data set [train] has no label in column 'label'"),
        ([0.5, 1.0], "row 0 of the given data set [train] has the label 0.5 in column 'label'"),
        ([[1], [0, 1]], "row 0 of the given data set [train] has the label [1] in column 'label'"),
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
        f"row 3 of {tmp_path} [train] has the label 2 in column 'label'; expected one of 0 to 1 "
        "('no', 'yes')"
    )
    typed = texts([1, -1, 0]).cast_column("label", CLASS)
    assert "row 1 of the given data set [train] has the label -1" in refused(
        lambda: open_dataset(typed)
    )
    for content in ('["no", "no"]', '{"no": 0}', "[oops"):
        write({tmp_path / "labels.json": content})
        assert "labels.json cannot be opened" in refused(lambda: open_dataset(tmp_path))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_labels_that_train_lacks(split: str) -> None:
    rows = DatasetDict({"train": texts(["a", "b"] * 5), split: texts(["a", "c"])})
    assert refused(lambda: open_splits(rows)) == (
        f"row 1 of the given data set [{split}] has the label 'c' in column 'label'; expected one "
        "of 'a', 'b'"
    )
    names = ClassLabel(names=["a", "b", "c"])
    typed = rows.class_encode_column("label").cast_column("label", Value("int64"))
    typed = DatasetDict({"train": typed["train"], split: texts([0, 2])}).cast_column("label", names)
    assert "has the label 'c', of which the given data set [train] has no item" in refused(
        lambda: open_splits(typed)
    )


def test_a_train_split_of_one_class() -> None:
    rows = texts([1, 1]).cast_column("label", CLASS)
    assert open_dataset(rows).labels == ("no", "yes")
    assert "has items of one class only ('yes')" in refused(lambda: open_splits(rows))


def test_a_test_split_without_labels_is_left_out() -> None:
    rows = DatasetDict({"train": texts([0, 1] * 5), "test": texts([-1, -1])})
    with pytest.warns(UserWarning, match=r"\[test\] has no labels: it is left out"):
        assert open_splits(rows.cast_column("label", CLASS)).test is None


# Splits


def check_partition(splits: Splits, count: int) -> None:
    """Train and validation are all the rows, each once, and `held_out` says which."""
    numbers = [source.numbers for source in (splits.train, splits.validation)]
    assert numbers[0] is not None and numbers[1] is not None
    assert torch.cat([numbers[0], numbers[1]]).sort()[0].tolist() == list(range(count))
    assert splits.held_out == tuple(numbers[1].tolist()) == tuple(sorted(splits.held_out))
    assert splits.validation.dataset["text"][:] == [f"item {row}" for row in splits.held_out]
    every = range(len(splits.train.labels))
    for source in (splits.train, splits.validation):
        assert set(source.label_ids().tolist()) == set(every)


class_sizes = st.lists(st.integers(2, 60), min_size=2, max_size=6)


@settings(max_examples=40, deadline=None)
@given(class_sizes, st.randoms(use_true_random=False))
def test_validation_keeps_the_shares_of_classes(sizes: list[int], random: Any) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(labels)
    splits = open_splits(texts(labels))
    check_partition(splits, len(labels))
    held = Counter(splits.validation.label_ids().tolist())
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
        "the given data set [train] has one item of the class 'b' and no validation split"
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
        counts = torch.bincount(splits.train.label_ids()).tolist()
        assert sum(counts) == min(limit, len(whole.train)) and min(counts) >= 1
    assert torch.bincount(open_splits(rows, train_limit=100).train.label_ids())[1] == 25
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


# Reading


def shout(text: str) -> str:
    if text == "item 40":
        raise ValueError("too quiet\nto hear.")
    return text.upper()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_read_keeps_the_order(workers: int) -> None:
    source = open_dataset(texts([0, 1] * 100)).select(range(199, 99, -1))
    found = read(source, shout, workers=workers)
    assert found.items == [f"ITEM {i}" for i in range(199, 99, -1)]
    assert found.rows == list(range(100)) and found.skipped == []


def test_bad_items_are_named_or_skipped() -> None:
    rows = texts([0, 1] * 100)
    rows = Dataset.from_dict({**rows.to_dict(), "text": [*rows["text"][:199], None]})
    source = open_dataset(rows).select(range(20, 200))
    assert refused(lambda: read(source, shout)) == (
        "row 40 of the given data set [train] cannot be read (too quiet); repair or remove it, or "
        "skip bad items"
    )
    found = read(source, shout, on_bad="skip")
    assert found.skipped == [
        "row 40 of the given data set [train]: too quiet",
        "row 199 of the given data set [train]: it is empty",
    ]
    assert found.rows == [row for row in range(180) if row not in (20, 179)]
    assert found.items[20] == "ITEM 41"
    nothing = refused(lambda: read(source.select([20]), shout, on_bad="skip"))
    assert nothing.startswith("not one of the 1 items of the given data set [train] can be read")
    assert "did you mean 'skip'" in refused(lambda: read(source, shout, on_bad="skp"))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    files = {"a/0.wav": tone(), "a/1.wav": b"", "b/0.wav": tone()[:30], "b/1.wav": tone()}
    write({tmp_path / name: content for name, content in files.items()})
    source = open_dataset(tmp_path)
    assert refused(lambda: read(source, samples)).startswith(f"{tmp_path / 'a/1.wav'} cannot be re")
    found = read(source, samples, on_bad="skip")
    assert found.rows == [0, 3]
    assert [name.partition(": ")[0] for name in found.skipped] == [
        str(tmp_path / "a/1.wav"),
        str(tmp_path / "b/0.wav"),
    ]
    (tmp_path / "a" / "0.wav").unlink()
    assert str(tmp_path / "a/0.wav") in refused(lambda: read(source, samples))


def test_a_bar_shows_only_when_reading_takes_a_while(capfd: pytest.CaptureFixture[str]) -> None:
    source = open_dataset(texts([0, 1] * 80))
    read(source, shout, on_bad="skip")
    assert capfd.readouterr().err == ""
    read(source, lambda text: time.sleep(0.02), workers=1)
    assert "reading the given data set [train]" in capfd.readouterr().err


# Items and draws


class Noise(Items):
    def __len__(self) -> int:
        return 10

    def __getitems__(self, rows: Any) -> dict[str, torch.Tensor]:
        return {"x": self.draws(rows, 3), "labels": torch.as_tensor(rows)}


def test_items_make_batches_and_single_items() -> None:
    items = Noise(seed=3)
    batches = list(torch.utils.data.DataLoader(items, batch_size=4, collate_fn=dict))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    assert items[5]["x"].shape == (3,)
    assert torch.equal(items[5]["x"], batches[1]["x"][1])
    assert torch.equal(items[5]["x"], draws(3, 0, [5], 3)[0])
    items.set_epoch(1)
    assert torch.equal(items[5]["x"], draws(3, 1, [5], 3)[0])
    for method in (lambda: len(Items()), lambda: Items()[0]):
        with pytest.raises(NotImplementedError):
            method()


def test_draws_are_splitmix64() -> None:
    # The published generator's first outputs from seed 1234567.
    stream = _splitmix(np.array([1234567], np.uint64), np.arange(3, dtype=np.uint64))
    assert stream.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_depend_on_nothing_else() -> None:
    rows = torch.tensor([9, 2, 2**40, 0])
    whole = draws(-1, 5, rows, 6)
    assert whole.dtype == torch.float32 and whole.shape == (4, 6)
    assert torch.equal(whole[[2, 0]], draws(-1, 5, [2**40, 9], 6))
    assert torch.equal(whole[:, :2], draws(-1, 5, rows, 2))
    torch.manual_seed(1)
    assert torch.equal(whole, draws(-1, 5, rows, 6))
    assert draws(0, 0, [], 2).shape == (0, 2)
    assert draws(0, 0, [1], 0).shape == (1, 0)


def test_draws_are_uniform_and_unrelated() -> None:
    n = 100_000
    rows = torch.arange(n)
    here = draws(0, 0, rows, 2)
    others = [draws(0, 0, rows + 1, 1), draws(0, 1, rows, 1), draws(1, 0, rows, 1)]
    others += [draws(0, 2, rows, 1), draws(2, 0, rows, 1), draws(1, 1, rows, 1)]
    for column in (*here.T, *(other[:, 0] for other in others)):
        assert 0 <= column.min() and column.max() < 1
        counts = torch.histc(column, 100, 0, 1)
        chi2 = ((counts - n / 100) ** 2 / (n / 100)).sum()
        assert 50 < chi2 < 165  # 99 degrees of freedom: beyond 4 deviations on either side
    together = torch.stack([*here.T, *(other[:, 0] for other in others)])
    correlation = torch.corrcoef(together.double()) - torch.eye(len(together))
    assert correlation.abs().max() < 4.5 / n**0.5
    square = torch.histogramdd(here, [10, 10], range=[0.0, 1.0, 0.0, 1.0]).hist
    assert ((square - n / 100) ** 2 / (n / 100)).sum() < 165


def test_importing_sources_is_light() -> None:
    code = "import sys, resbackbones.data; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "torch" in loaded and not {"datasets", "pandas", "pyarrow"} & set(loaded)


# Real data


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
    assert all(part.columns == columns and len(part.labels) == labels for part in parts)
    if "group" in columns:
        assert splits.train.labels[:2] == ("yes", "no") and splits.train.labels[-1] == "_unknown_"
        assert speaker_leak(splits.train, splits.test) == 0.0
    if columns["input"] != "text":
        decode = pixels if columns["input"] == "image" else samples
        assert len(read(splits.train.select([0, 7]), decode).items) == 2
