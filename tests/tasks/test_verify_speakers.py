"""The recipe of speakers trains, chooses, tests and saves on voices that are tones, and reads lists
of pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import soundfile
import torch

from resbackbones.data import NoTarget, open_splits
from resbackbones.report import load_records
from resbackbones.speech import (
    ResidualForAudioXVector,
    make_trials,
    read_clips,
    speakers_of,
    spoken,
)
from tasks._using import run
from tasks.speech._speakers import baseline, enough_speakers, trials_of
from tasks.speech.verify_speakers import TASK

SPEED = ["--spec", "tc_resnet8", "--epochs", "2", "--batch-size", "16", "--device", "cpu"]
SPEED += ["--least-steps", "0", "--embedding-size", "16", "--crop", "0.1", "0.2"]


def verify(*arguments: object) -> None:
    run(TASK, [str(argument) for argument in arguments])


def speak(folder: Path, pitches: dict[str, float], count: int, random: Any) -> None:
    """A voice is two tones; what it says is how loud each is."""
    folder.mkdir(parents=True)
    rows = []
    for speaker, pitch in pitches.items():
        for number in range(count):
            t = np.arange(2000 + 100 * number) / 8000
            loud = random.uniform(0.1, 0.3, 2)
            sound = loud[0] * np.sin(2 * np.pi * pitch * t)
            sound += loud[1] * np.sin(2 * np.pi * 2.3 * pitch * t)
            sound += 0.01 * random.standard_normal(len(t))
            name = f"{speaker}-{number}.wav"
            soundfile.write(folder / name, sound, 8000)
            rows.append({"file_name": name, "speaker": speaker})
    rows.append({"file_name": rows[0]["file_name"], "speaker": ""})  # by nobody
    pandas.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 10), ("test", 4)):
        names = {f"{split}{n}": float(random.uniform(150, 1500)) for n in range(count)}
        speak(tmp_path / "voices" / split, names, 3, random)
    return tmp_path / "voices"


def test_trains_saves_records_and_compares(
    voices: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    verify("--data", voices, "--output", tmp_path / "out", "--record", *SPEED)
    printed = capsys.readouterr().out
    assert "12 speakers to learn from" in printed and "minDCF 0.01" in printed
    assert "EER, AS-norm" in printed
    assert "to test on: 12 pairs of the same speaker and 54 of different ones" in printed
    assert "cosine" in printed  # the baseline
    (record,) = load_records(tmp_path / "results")
    assert (record.task, record.metric, record.split) == ("verify_speakers", "eer", "test")
    assert not record.higher_is_better and 0 <= record.values[0] <= 1
    assert record.baseline is not None and "MFCC" in record.baseline["name"]

    saved = tmp_path / "out" / "seed-0" / "model"
    model = ResidualForAudioXVector.from_pretrained(saved)
    assert model.config.id2label == dict(enumerate(sorted(f"train{n}" for n in range(12))))
    splits = open_splits(str(voices), target=NoTarget(), kind="audio")
    pairs = make_trials(speakers_of(splits.validation))
    assert model.config.calibration["trials"] == len(pairs)
    # What the record says is what the saved model does with the test split.
    verify("--data", voices, "--evaluate", saved)
    assert f"{100 * record.values[0]:.1f} %" in capsys.readouterr().out
    files = [voices / "test" / f"test{n}-0.wav" for n in (0, 1)]
    verify("--predict", saved, *files)
    said = capsys.readouterr().out
    assert f"beside {files[0]}" in said and "chosen for equal error rate" in said
    one, other = (soundfile.read(path, dtype="float32")[0] for path in files)
    from resbackbones.speech import resample

    same, score = model.verify(resample(one, 8000, 16000), resample(other, 8000, 16000))
    assert f"{score:.3f}" in said and ("the same" if same else "another") in said


def test_a_list_of_pairs_is_asked_instead(
    voices: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    splits = open_splits(str(voices), target=NoTarget(), kind="audio")
    assert splits.test is not None
    listed = tmp_path / "pairs.txt"
    listed.write_text("1 test0-0.wav test/test0-1.wav\n0 test0-0.wav test1-0.wav\n")
    pairs = trials_of(splits.test, listed)
    assert (pairs.left.tolist(), pairs.right.tolist()) == ([0, 0], [1, 3])
    listed.write_text("1 0 1\n0 0 3\n")
    assert trials_of(splits.test, listed).fingerprint() == pairs.fingerprint()
    listed.write_text("1 test0-0.wav nobody.wav\n")
    arguments = ["--data", voices, "--output", tmp_path / "out", "--trials", listed, *SPEED]
    assert "names 'nobody.wav', which is no recording" in refused(verify, *arguments)


def test_speakers_are_held_out_where_validation_has_too_few(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, names in (("train", range(30)), ("validation", range(28, 33))):
        pitches = {f"voice{n}": 200.0 + 30 * n for n in names}
        speak(tmp_path / "data" / split, pitches, 2, random)
    splits = enough_speakers(open_splits(str(tmp_path / "data"), target=NoTarget(), kind="audio"))
    known, own = (set(speakers_of(s)) - {None} for s in (splits.train, splits.validation))
    assert known and own and not known & own and len(known | own) == 33
    assert "of train and validation, by speaker" in splits.how
    again = enough_speakers(splits)
    assert (len(own) >= 10 and again is splits) or len(own) < 10


def test_the_baseline_tells_tones_apart(voices: Path) -> None:
    splits = open_splits(str(voices), target=NoTarget(), kind="audio")
    sources = [splits.train, splits.validation, splits.test]
    train, validation, test = (read_clips(spoken(s), 8000) for s in sources if s is not None)
    chosen_by, asked = (make_trials(speakers_of(s)) for s in sources[1:] if s is not None)
    name, metric = baseline(train, validation, test, chosen_by, asked)
    assert "MFCC" in name and metric.left_out == 0
    assert metric.compute()["eer"] < 0.1
    assert torch.equal(metric.trials.left, asked.left)


def test_bad_input_is_one_sentence(
    voices: Path, recordings: Path, tmp_path: Path, no_gpu: None, refused: Callable[..., str]
) -> None:
    def told(*arguments: object) -> str:
        return refused(verify, "--output", tmp_path / "out", *SPEED, *arguments)

    assert "names no speakers; name their column" in told("--data", recordings)
    assert "margin=3" in told("--data", voices, "--margin", "3")
    assert "nowhere" in told("--data", voices, "--trials", tmp_path / "nowhere")
    assert "nowhere" in told("--data", tmp_path / "nowhere")
