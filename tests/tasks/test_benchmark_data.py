"""The default data: made offline, disjoint where they must be."""

import importlib.metadata
import io
import sys

import numpy as np
import pytest
import soundfile
from datasets import load_dataset

from resbackbones.errors import InputError
from tasks._benchmark import data


def opened(folder):
    files = {path.stem: str(path) for path in folder.glob("*.parquet")}
    return load_dataset("parquet", data_files=files, cache_dir=str(folder / "cache"))


def test_digits_are_made_once_and_reread(tmp_path, monkeypatch):
    folder = data.default_data("vision", tmp_path)
    sets = opened(folder)
    assert {name: len(rows) for name, rows in sets.items()} == {"train": 1300, "test": 497}
    assert sets["train"].features["label"].names == [str(digit) for digit in range(10)]
    image = sets["train"][0]["image"]
    assert image.size == (8, 8) and image.mode == "L" and max(image.getextrema()) > 200
    monkeypatch.setattr(data, "digits", lambda: pytest.fail("made a second time"))
    assert data.default_data("vision", tmp_path) == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]  # no scratch folder stays


def test_a_failed_build_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("half way")

    monkeypatch.setattr(data, "digits", broken)
    with pytest.raises(RuntimeError, match="half way"):
        data.default_data("vision", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_cache_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name another with --cache"):
        data.default_data("vision", tmp_path / "file" / "cache")


def test_a_missing_synthesiser_says_what_to_do(monkeypatch, tmp_path):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(InputError, match=r"pip install espeakng-loader, or .* --speech"):
        data.default_data("speech", tmp_path)


def test_new_versions_make_new_data(monkeypatch):
    before = data.default_folder("text", "cache")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99")
    assert data.default_folder("text", "cache") != before


def test_voices_are_disjoint_and_their_variants_stay_together():
    voices = [f"{name}{number}" for name in "abcdefghijklmnop" for number in ("", "2", "3")]
    splits = data._split_voices(voices)
    assert sorted(voice for split in splits.values() for voice in split) == sorted(voices)
    families = [{voice[0] for voice in split} for split in splits.values()]
    assert not families[0] & families[1] and not families[1] & families[2]
    assert not families[0] & families[2]
    assert all(len(split) > 2 for split in splits.values())
    assert splits == data._split_voices(voices[::-1])


def test_words_are_spoken_with_noise_by_the_voices_of_their_split(monkeypatch):
    pytest.importorskip("espeakng_loader", reason="the extra that speaks is not installed")
    monkeypatch.setattr(data, "WORDS", ("yes", "no"))
    monkeypatch.setattr(data, "RENDITIONS", 1)
    chosen = {"train": ["m1", "f2"], "validation": ["Andy"], "test": ["klatt"]}
    monkeypatch.setattr(data, "_split_voices", lambda voices: chosen)
    sets = data.spoken_words()
    assert {name: list(rows["speaker"]) for name, rows in sets.items()} == {
        name: [voice for voice in voices for _ in range(2)] for name, voices in chosen.items()
    }
    row = sets["train"][0]
    clip, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
    assert rate == 16_000 and len(clip) == 16_000 and 0.25 < np.abs(clip).max() < 0.95
    assert (clip != 0).mean() > 0.99  # noise everywhere
    loud = np.abs(clip).reshape(100, -1).max(axis=1)
    assert loud.max() > 1.5 * np.median(loud)  # and a word somewhere
    assert row["audio"]["path"] == "m1-yes-0.flac"


def test_voices_and_speeds_differ():
    pytest.importorskip("espeakng_loader", reason="the extra that speaks is not installed")
    espeak = data.Espeak()
    assert len(espeak.voices) > 50
    spoken = set()
    for name in espeak.voices[::5]:
        espeak.voice(name)
        spoken.add(espeak.say("seven", speed=180, pitch=50).tobytes())
    assert len(spoken) == len(espeak.voices[::5])
    slow, fast = (espeak.say("seven", speed=speed, pitch=50) for speed in (100, 220))
    assert len(slow) > len(fast) > 0.1 * espeak.rate


def test_repeats_are_removed_within_and_across_labels(monkeypatch):
    texts = {
        "a": ["Shape of the array 3", "shape of the ARRAY 42", "only here"],
        "b": ["only there", "Shared by both", "also there"],
        "c": ["shared by both", "the one", "the other"],
    }
    monkeypatch.setattr(data, "LIBRARIES", tuple("abc"))
    monkeypatch.setattr(data, "paragraphs", lambda name: iter(texts[name]))
    found = [(row["text"], row["label"]) for rows in data.docstrings().values() for row in rows]
    assert sorted(found) == [
        ("also there", 1),
        ("only here", 0),
        ("only there", 1),
        ("shape of the ARRAY 42", 0),
        ("the one", 2),
        ("the other", 2),
    ]


def test_paragraphs_come_from_docstrings_without_examples(tmp_path, monkeypatch):
    package = tmp_path / "somelibrary"
    (package / "tests").mkdir(parents=True)
    words = "one two three four five six seven eight"
    (package / "__init__.py").write_text(
        f'"""Module {words}.\n\nToo short."""\n\n'
        f'def f():\n    """Function {words}\n    over two lines.\n\n    >>> {words}\n    """\n'
        f'text = "String {words}"\n'
    )
    (package / "tests" / "test_it.py").write_text(f'"""Test {words}."""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(data.paragraphs("somelibrary")) == [
        f"Module {words}.",
        f"Function {words} over two lines.",
    ]
    assert "somelibrary" not in sys.modules  # read, not run
    monkeypatch.setattr(data, "FILES", 0)
    assert list(data.paragraphs("somelibrary")) == []
    with pytest.raises(InputError, match="nolibrary is not installed"):
        list(data.paragraphs("nolibrary"))


def test_docstrings_are_balanced_and_disjoint(monkeypatch):
    texts = {name: [f"{name} paragraph {'x' * i}" for i in range(60 + len(name))]
             for name in data.LIBRARIES}  # fmt: skip
    monkeypatch.setattr(data, "paragraphs", lambda name: iter(texts[name]))
    monkeypatch.setattr(data, "PARAGRAPHS", 50)
    sets = data.docstrings()
    train, test = set(sets["train"]["text"]), set(sets["test"]["text"])
    assert not train & test and len(train) + len(test) == 250 and len(test) > 25
    labels = [*sets["train"]["label"], *sets["test"]["label"]]
    assert [labels.count(i) for i in range(5)] == [50] * 5
