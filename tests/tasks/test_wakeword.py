"""A wake word is learned from a phrase: speech that is made the same each time, by other voices in
each split, and a recipe that trains on it."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from resbackbones.data import open_splits
from resbackbones.errors import InputError
from resbackbones.report import load_records
from tasks._using import run
from tasks.speech import _voices, _wakeword
from tasks.speech._voices import ACCENTS, Utterance, phonemes, speak, split_voices, variants
from tasks.speech.spot_keywords import TASK

speaks = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None,
    reason="speech is synthesised by espeak-ng: pip install espeakng-loader",
)


@speaks
def test_the_same_list_is_said_the_same() -> None:
    some = [Utterance(f"{ACCENTS[0]}+{voice}", "hey") for voice in variants()[::6]]
    some += [Utterance(f"{accent}+f1", "hey robot", 120, 30, 80) for accent in ACCENTS]
    first, again = list(speak(some)), list(speak(some))
    assert len(first) == len(some)
    for each, one, other in zip(some, first, again, strict=True):
        assert torch.equal(one, other), each
        assert 2000 < len(one) < 40_000 and 0.05 < one.abs().max() <= 1, each
    # Voices, accents and speeds are heard.
    assert len({tuple(x[:4000].tolist()) for x in first}) > len(first) - 4


@speaks
def test_no_voice_nor_its_relative_is_in_two_splits() -> None:
    splits = split_voices()
    names = [name for voices in splits.values() for name in voices]
    assert sorted(names) == variants() and len(names) > 80
    assert len(splits["train"]) > len(splits["test"]) > 10 < len(splits["validation"])
    for kin in ("klatt", "iven", "robosoft", "andy"):
        holds = [split for split, of in splits.items() if any(kin in v.lower() for v in of)]
        assert len(holds) == 1, kin
    assert split_voices(1) != splits and split_voices(0) == splits


@speaks
def test_what_sounds_like_a_phrase_is_not_the_phrase() -> None:
    assert phonemes(["hey robot"]) == [[["h", "'eI"], ["r", "'oU", "b", "0", "t"]]]
    sounds, random = _wakeword.Sounds("hey robot"), np.random.default_rng(0)
    alike = [sounds.alike(random, (0, 1, 2)) for _ in range(200)]
    assert "[[h'eI]] [[r'oUb0t]]" not in alike and len(set(alike)) > 100
    assert {"[[h'eI]]", "[[r'oUb0t]]", "[[r'oUb0t]] [[h'eI]]"} & set(alike)
    held = {sounds.alike(random, (4,)) for _ in range(100)}
    assert len(held & set(alike)) < 10  # of few parts there are not enough to go around
    assert not any("hey robot" in sounds.sentence(random, (4,)) for _ in range(50))
    with pytest.raises(InputError, match="no word to say"):
        _wakeword.Sounds(" ")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few voices, each saying little."""
    monkeypatch.chdir(tmp_path)
    split = {"train": ["m1", "f1", "Alex"], "validation": ["m3"], "test": ["f4"]}
    monkeypatch.setattr(_wakeword, "split_voices", lambda: split)
    for name in ("SAID", "LIKE", "SENTENCES"):
        monkeypatch.setattr(_wakeword, name, {"train": 8, "validation": 6, "test": 6})


@speaks
def test_the_data_are_made_once_and_alike(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_splits(str(_wakeword.folder("hey robot")), kind="audio")
    assert first.train.target.names == ("hey robot", "other")
    assert len(first.train) == 24 + 24 + 72 + 3 and first.test is not None
    clips = first.train.dataset["audio"]
    monkeypatch.setattr(_wakeword, "CACHE", Path("another"))
    again = open_splits(str(_wakeword.folder("hey robot")), kind="audio")
    assert list(again.train.dataset["audio"]) == list(clips)
    monkeypatch.setattr(_wakeword, "speak", None)
    _wakeword.folder("hey robot")  # what is there is not made again


@speaks
def test_speech_without_the_phrase_lasts_as_long_as_asked(small: None) -> None:
    one, other = (torch.cat([*_wakeword.speech("hey robot", "test", 0.005)]) for _ in range(2))
    assert torch.equal(one, other) and len(one) == 18 * 16_000
    assert one.abs().max() <= 1 and one.square().mean() > 1e-5


@speaks
@pytest.mark.filterwarnings(
    "ignore:.*cannot tell 0.5 false alarms", "ignore::resbackbones.train.StillAtChance"
)
def test_a_phrase_becomes_a_wake_word(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--phrase", "hey robot", "--hours", "0.01", "--epochs", "2", "--device", "cpu"]
    run(TASK, [*arguments, "--least-steps", "0", "--output", "out", "--record"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "own words, 2 classes" in printed.lower() and "synthesised" in printed
    assert "chosen by half of 0.01 + 0.01 hours of synthesised speech" in printed
    (record,) = load_records(Path("results"))
    assert record.dataset == "synthesised hey robot" and record.arm == "tc_resnet8_2"
    saved = json.loads(Path("out/seed-0/model/config.json").read_text())["detection"]
    assert saved["keywords"] == ["hey robot"]


def test_without_espeak_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_voices.importlib.util, "find_spec", lambda name: None)
    said = refused(lambda *given: run(TASK, given), "--phrase", "hey robot", "--device", "cpu")
    assert "pip install espeakng-loader" in said
