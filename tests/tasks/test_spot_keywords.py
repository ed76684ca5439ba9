"""The keyword recipe trains, saves and records on recordings of two tones, and names bad input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers

from resbackbones.errors import InputError
from resbackbones.report import load_records
from resbackbones.speech import ResidualForAudioClassification
from tasks._using import run
from tasks.speech import _listening
from tasks.speech._listening import varied
from tasks.speech.spot_keywords import TASK, Config

# Two steps teach nothing, and fit says so.
pytestmark = pytest.mark.filterwarnings("ignore::resbackbones.train.StillAtChance")
SPEED = ["--spec", "tc_resnet8", "--epochs", "2", "--batch-size", "16", "--device", "cpu"]
SPEED += ["--least-steps", "0"]


def spot(*arguments: object) -> None:
    run(TASK, [str(argument) for argument in arguments])


def test_trains_saves_records_and_says_how_to_go_on(
    recordings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out"
    spot("--data", recordings, "--output", output, "--seeds", "0", "1", "--record", *SPEED)
    printed = capsys.readouterr().out
    assert "MFCC by segments + SVC" in printed and "tc_resnet8, mean ± sd" in printed
    assert 'transformers.pipeline("audio-classification", model="' in printed

    (record,) = load_records(tmp_path / "results")
    assert (record.task, record.dataset, record.arm) == ("spot_keywords", "tones", "tc_resnet8")
    assert record.seeds == [0, 1] and record.split == "test" and record.baseline is not None
    assert record.baseline["value"] == 1.0  # two tones are not hard to tell apart

    for seed in (0, 1):
        assert (output / f"seed-{seed}" / "log.jsonl").is_file()
        model = output / f"seed-{seed}" / "model"
        recognise = transformers.pipeline("audio-classification", model=str(model))
        samples, rate = soundfile.read(recordings / "test" / "low" / "0.wav", dtype="float32")
        answer = recognise({"array": samples, "sampling_rate": rate})
        assert {item["label"] for item in answer} == {"low", "high"}


def test_the_default_net_takes_two_steps_and_resumes(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", recordings, "--output", tmp_path / "out", "--epochs", "1"]
    arguments += ["--batch-size", "8", "--device", "cpu", "--least-steps", "0"]
    spot(*arguments)
    first = capsys.readouterr().out
    log = (tmp_path / "out" / "seed-0" / "log.jsonl").read_text()
    assert json.loads(log.splitlines()[-1])["step"] == 2
    spot(*arguments, "--resume")
    assert capsys.readouterr().out == first  # there was nothing left to do
    assert (tmp_path / "out" / "seed-0" / "log.jsonl").read_text() == log


def test_without_validation_and_test_splits_some_rows_are_held_out(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spot("--data", recordings / "train", "--output", tmp_path / "out", "--folds", "0", *SPEED)
    printed = capsys.readouterr().out
    assert "train, validation split (own words, 2 classes; 14 training and 2 validat" in printed


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_device_holds_the_clips_and_trains(
    device: str, recordings: Path, tmp_path: Path, no_gpu: None, handed_to_fit: Callable[..., Any]
) -> None:
    given = ["--data", recordings, "--output", tmp_path / "out", *SPEED, "--device", device]
    training, options = handed_to_fit(spot, *given)
    assert options.device == device and training.device.type == "cpu"


def test_bad_input_is_one_sentence(
    recordings: Path, tmp_path: Path, no_gpu: None, refused: Callable[..., str]
) -> None:
    def told(*arguments: object) -> str:
        return refused(spot, "--output", tmp_path / "out", *SPEED, *arguments)

    assert "needs a GPU and there is none" in told("--data", "nowhere", "--device", "cuda")
    assert not (tmp_path / "out").exists()
    assert "nowhere" in told("--data", tmp_path / "nowhere")
    assert "'sound'" in told("--data", recordings, "--label-column", "sound")
    assert "tc_resnet8" in told("--data", recordings, "--spec", "tc_resnet9")
    assert "epochs=0" in told("--data", recordings, "--epochs", "0")
    (tmp_path / "empty" / "yes").mkdir(parents=True)
    assert "empty" in told("--data", tmp_path / "empty")
    (tmp_path / "file").write_text("no folder")
    assert "file" in told("--data", recordings, "--output", tmp_path / "file")


def test_bad_recordings_are_named_or_counted(
    recordings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:
    arguments = ["--data", recordings, "--output", tmp_path / "out", *SPEED]
    whole = (recordings / "train" / "low" / "0.wav").read_bytes()
    (recordings / "train" / "low" / "short.wav").write_bytes(whole[:1000])
    error = refused(spot, *arguments)
    assert "short.wav" in error and "cut short" in error
    (recordings / "test" / "high" / "empty.wav").write_bytes(b"")
    (recordings / "train" / "low" / "short.wav").rename(recordings / "train" / "high" / "short.wav")
    spot(*arguments, "--on-bad", "skip")
    assert "left out 2 bad items" in capsys.readouterr().out
    (recordings / "train" / "high" / "short.wav").unlink()
    error = refused(spot, *arguments)
    assert "empty.wav" in error and "0 bytes" in error


def test_without_a_test_split_a_bad_recording_counts_once(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(recordings / "test")
    (recordings / "validation" / "high" / "empty.wav").write_bytes(b"")
    spot("--data", recordings, "--output", tmp_path / "out", "--on-bad", "skip", *SPEED)
    assert "left out 1 bad item" in capsys.readouterr().out


def test_on_the_command_line_bad_input_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasks.speech.spot_keywords", "--data", "no/such/folder"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


def test_speakers_in_the_names_of_files_are_held_apart(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (recordings / "train").rglob("*.*"):
        path.rename(path.with_name(f"{path.parent.name}{path.stem}_1{path.suffix}"))
    given = ["--data", recordings / "train", "--output", tmp_path / "out", *SPEED]
    spot(*given, "--group-pattern", "([^/]+)_")
    assert "(held out: 12.5 % of train, by group)" in capsys.readouterr().out


def test_any_number_of_classes_per_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pitches, random = {"low": 300, "high": 2000}, np.random.default_rng(0)
    for split, count in (("train", 16), ("validation", 8), ("test", 8)):
        Path("tones", split).mkdir(parents=True)
        lines = ["file_name,tags"]
        for row in range(count):
            own = [name for bit, name in enumerate(pitches) if row >> bit & 1]
            time = np.arange(2000) / 8000
            sound = sum((0.3 * np.sin(2 * np.pi * pitches[name] * time) for name in own), 0 * time)
            sound = sound + 0.01 * random.standard_normal(2000)
            soundfile.write(f"tones/{split}/{row}.wav", sound, 8000)
            lines.append(f"{row}.wav,{'|'.join(own) or '[]'}")
        Path("tones", split, "metadata.csv").write_text("\n".join(lines))
    arguments = ["--data", "tones", "--multi-label", "--negatives", noises(Path("hum"))]
    with pytest.warns(UserWarning, match="cannot tell 0.5 false alarms"):
        spot(*arguments, "--output", "out", *SPEED)
    printed = capsys.readouterr().out
    assert "mean average precision" in printed and "of 8 keywords missed" in printed
    saved = json.loads(Path("out/seed-0/model/config.json").read_text())
    assert saved["detection"]["keywords"] == sorted(pitches)
    results = json.loads(Path("out/results.json").read_text())
    assert results["MFCC by segments + SVC"]["metrics"]["mean_average_precision"] > 0.9
    assert set(results["seed 0"]["per_class"]) == set(pitches)
    spot("--evaluate", "out/seed-0/model", "--data", "tones")
    assert "on 8 items of tones [test]" in capsys.readouterr().out


def noises(folder: Path, count: int = 4) -> Path:
    """Recordings of ten seconds without a keyword."""
    random = np.random.default_rng(1)
    folder.mkdir()
    for index in range(count):
        name = f"{index}.{'WAV' if index else 'wav'}"
        soundfile.write(folder / name, 0.1 * random.standard_normal(80_000), 8000)
    return folder


@pytest.fixture
def calibrated(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that knows a low tone from others, and how often it hears one in noise."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation", "test"):
        (recordings / split / "high").rename(recordings / split / "_unknown_")
    arguments = ["--data", recordings, "--negatives", noises(tmp_path / "noises"), *SPEED[:2]]
    arguments += ["--class-weights", "balanced"]
    arguments += ["--epochs", "30", "--batch-size", "16", "--device", "cpu", "--least-steps", "0"]
    with pytest.warns(UserWarning, match=r"hours without a keyword cannot tell 0.5 false alarms"):
        spot(*arguments, "--output", "out", "--record", "--mixup", "0")
    return Path("out/seed-0/model")


def test_negatives_choose_a_threshold_which_listening_uses(
    calibrated: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = load_records(Path("results"))
    assert record.protocol.startswith("own words, 2 classes; 16 training and 4 validation rows")
    half = "(0.0 % of 2 keywords missed, 0 false alarms in 0.00558 hours)"
    assert f"chosen by half of noises and validation clips {half}" in record.sample
    assert "of 4 keywords missed" in record.sample
    assert (calibrated.parent / "false-alarms.png").is_file()

    detection = json.loads((calibrated / "config.json").read_text())["detection"]
    assert detection["keywords"] == ["low"] and 0 < detection["threshold"] < 1.01
    # It is listened to as long at a time as the training clips last.
    processor = json.loads((calibrated / "preprocessor_config.json").read_text())
    assert 0.25 <= processor["pad_to"] < 0.27
    # A low tone among silence is heard where it is, once.
    random = np.random.default_rng(0)
    tone = 0.3 * np.sin(2 * np.pi * 300 * np.arange(2000) / 8000)
    sound = 0.001 * random.standard_normal(8 * 8000)
    sound[4 * 8000 : 4 * 8000 + 2000] += tone
    soundfile.write("long.wav", sound, 8000)
    saved = json.loads((calibrated / "config.json").read_text())
    saved["detection"]["threshold"] = 0.5  # of so short a training nothing is sure
    (calibrated / "config.json").write_text(json.dumps(saved))
    spot("--predict", calibrated, "--listen", "long.wav")
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()[2:]]
    moments = [float(row[0]) for row in rows if row[1].strip() == "low"]
    assert any(4 <= moment <= 5 for moment in moments), rows


def test_an_answer_is_explained_as_a_picture(
    calibrated: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = recordings / "test" / "low"
    spot("--predict", calibrated, low / "0.wav", "--explain", "why.png")
    assert "why.png shows where the answer comes from" in capsys.readouterr().out
    assert Path("why.png").stat().st_size > 10_000
    spot("--predict", calibrated, low, "--explain", "pictures")
    assert len(list(Path("pictures").glob("*.png"))) == 4


def test_what_cannot_be_listened_to_is_said(
    recordings: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def told(*arguments: object) -> str:
        return refused(spot, "--output", tmp_path / "out", *SPEED, *arguments)

    assert "--predict MODEL" in told("--data", recordings, "--listen", "a.wav")
    assert "--predict MODEL" in told("--data", recordings, "--explain", "a.png")
    assert "--phrase or --data" in told("--data", recordings, "--phrase", "hey robot")
    assert "number above 0" in told("--data", recordings, "--false-alarms", "0")
    one = noises(tmp_path / "one", 1)
    assert "need two or more" in told("--data", recordings, "--negatives", one)
    assert "nowhere" in told("--data", recordings, "--negatives", tmp_path / "nowhere")


def test_where_a_baseline_wins_a_gentler_training_is_advised(tmp_path: Path) -> None:
    assert "try --no-augment --mixup 0 where classes are voices" in Config(data=tmp_path).advice
    tried = Config(data=tmp_path, augment=False).advice
    assert tried == "give the net more data or more --epochs"


def test_who_listens_for_words_learns_what_is_none(tmp_path: Path) -> None:
    names = ["yes", "_unknown_"]
    listens = Config(data=tmp_path, negatives="noises")
    told = varied(listens, names)
    assert told["augment"].splice == 0.15 and told["no_word"] == 1
    assert varied(Config(data=tmp_path), names)["augment"].splice == 0
    assert (
        varied(Config(data=tmp_path, negatives="noises", splice=0.3), names)["augment"].splice
        == 0.3
    )
    assert varied(listens, ["yes", "no"])["augment"].splice == 0
    assert varied(replace(listens, augment=False), names) == {}
    asked = Config(data=tmp_path, splice=0.3)
    with pytest.raises(InputError, match=r"--splice 0.3 makes clips of no word: it takes a class"):
        varied(asked, ["yes", "no"])
    for other in ({"multi_label": True}, {"augment": False}):
        with pytest.raises(InputError, match=r"--splice 0.3"):
            varied(replace(asked, **other), names)


def test_the_smoothing_is_chosen_that_misses_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negatives of short, sure moments, and keywords of less sure, longer ones."""
    model = ResidualForAudioClassification.build("tc_resnet8", labels=["yes", "other"])
    track, spoken = torch.zeros(80_000, 1), torch.zeros(600, 2)
    track[::100], spoken.view(20, 30, 2)[:, 10:17, 0] = 0.9, 0.8
    bounds = [(row * 30, row * 30 + 30, 0) for row in range(20)]
    monkeypatch.setattr(_listening, "_track", lambda *_: track.double())
    monkeypatch.setattr(_listening, "_spoken", lambda *_: (spoken.double(), bounds))
    config = Config(data=tmp_path, negatives="noises")
    unused: Any = None
    speech = _listening.Negatives(lambda: [], lambda: [], "noises", (0, 0))
    told = _listening.calibrate(config, unused, unused, speech, model, tmp_path)
    detection = model.config.detection
    assert detection is not None and detection["smoothing"] == 2  # one hop would miss all of them
    assert 0.44 < detection["threshold"] <= 0.8
    assert "smoothed over 0.2 s" in told and "0.0 % of 20 keywords missed" in told


def test_a_threshold_needs_keywords_to_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ResidualForAudioClassification.build("tc_resnet8", labels=["yes", "other"])
    speech = _listening.Negatives(lambda: [], lambda: [], "noises", (0, 0))
    monkeypatch.setattr(_listening, "_track", lambda *_: torch.zeros(100, 1).double())
    monkeypatch.setattr(_listening, "_spoken", lambda *_: (torch.zeros(0, 2).double(), []))
    unused: Any = None
    config = Config(data=tmp_path, negatives="noises")
    with pytest.raises(InputError, match="there are 0 clips of keywords and 100 hops without"):
        _listening.calibrate(config, unused, unused, speech, model, tmp_path)
