"""The recipe of transcripts trains, saves, records and writes down a language of tones, goes on
from a saved model, and names bad input; its synthesised sentences share no voice and no text."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import soundfile
import torch
import transformers

import resbackbones as rb
from resbackbones.core import zoo
from resbackbones.report import load_records
from resbackbones.speech import ErrorRates, ResidualForCTC
from tasks._using import run
from tasks.speech import _sentences
from tasks.speech._transcription import baseline, remarks
from tasks.speech.transcribe import TASK, Config
from tests.speech import tones
from tests.speech.test_recognition import VOCABULARY

NET = rb.BackboneSpec(
    (rb.Stage(24, 2, 2, kernel=5),), dims=1, in_channels=24, stem=rb.Stem(24, 7, 2)
)
SPEED = ["--spec", "tones", "--epochs", "2", "--batch-size", "8", "--device", "cpu"]
SPEED += ["--least-steps", "0", "--sampling-rate", "8000"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.SPECS, "tones", NET)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tones.folder(tmp_path / "tones", {"train": 12, "validation": 4, "test": 6})


def transcribe(*arguments: object) -> None:
    run(TASK, [str(argument) for argument in arguments])


def test_trains_saves_records_and_writes(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out"
    transcribe("--data", data, "--output", output, "--record", *SPEED)
    captured = capsys.readouterr()
    printed = " ".join(captured.out.split())
    assert "12 recordings of " in printed and "6 symbols of the training texts; a text" in printed
    beams = "CER, beam | WER, beam | CER, beam + n-grams | WER, beam + n-grams"
    assert f"| CER | WER | {beams} | empty | loss |" in printed
    assert "recording most alike" in printed
    assert "of the positions in batches are padding" in captured.err
    (record,) = load_records(tmp_path / "results")
    assert (record.task, record.metric, record.split) == ("transcribe", "cer", "test")
    assert not record.higher_is_better and record.baseline is not None

    saved = output / "seed-0" / "model"
    assert (output / "seed-0" / "log.jsonl").is_file()
    write = transformers.pipeline("automatic-speech-recognition", model=str(saved))
    file = data / "test" / "1.wav"
    samples, rate = soundfile.read(file, dtype="float32")
    answer = write({"array": samples, "sampling_rate": rate})["text"]
    transcribe("--predict", saved, file)
    said = capsys.readouterr().out
    assert "transcript" in said and f"| {file} | {answer}".rstrip() in said
    # What the record says is what the saved model does with the test split.
    transcribe("--data", data, "--evaluate", saved)
    assert f"{100 * record.values[0]:.1f} %" in capsys.readouterr().out


def test_it_goes_on_from_a_saved_model(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", data, *SPEED]
    learned = tmp_path / "learned"
    transcribe(*options, "--output", learned)
    first = ResidualForCTC.from_pretrained(learned / "seed-0" / "model")
    capsys.readouterr()

    # The same letters go on; frozen, nothing but the head has changed.
    options += ["--weights", learned / "seed-0" / "model"]
    transcribe(*options, "--output", tmp_path / "on", "--freeze")
    assert "6 symbols of the saved model" in " ".join(capsys.readouterr().out.split())
    on = ResidualForCTC.from_pretrained(tmp_path / "on" / "seed-0" / "model")
    for name, value in first.backbone.state_dict().items():
        assert torch.equal(on.backbone.state_dict()[name], value), name
    assert not torch.equal(on.head.linear.weight, first.head.linear.weight)

    # Other letters, as many: the head starts anew, and says so.
    table = pandas.read_csv(data / "train" / "metadata.csv")
    table["text"] = table["text"].str.replace("a", "z")
    table.to_csv(data / "train" / "metadata.csv", index=False)
    with pytest.warns(UserWarning, match="hold 'a' .*, which the model never writes"):
        transcribe(*options, "--output", tmp_path / "other", "--freeze")
    printed = " ".join(capsys.readouterr().out.split())
    assert "of the training texts" in printed
    assert "the head starts anew, as its symbols are others" in printed
    other = ResidualForCTC.from_pretrained(tmp_path / "other" / "seed-0" / "model")
    assert "z" in other.processor.tokenizer.symbols


def test_pieces_of_words_and_the_plain_twin(data: Path, tmp_path: Path) -> None:
    arguments = ["--data", data, "--output", tmp_path / "out", *SPEED]
    transcribe(*arguments, "--symbols", "bpe", "--pieces", "12", "--skip", "none", "--no-augment")
    model = ResidualForCTC.from_pretrained(tmp_path / "out" / "seed-0" / "model")
    assert model.config.vocab_size == 13
    assert max(map(len, model.processor.tokenizer.symbols[1:])) > 1


def test_bad_input_is_one_sentence(
    data: Path, tmp_path: Path, no_gpu: None, refused: Callable[..., str]
) -> None:
    def told(*arguments: object) -> str:
        return refused(transcribe, "--output", tmp_path / "out", *SPEED, *arguments)

    assert "nowhere" in told("--data", tmp_path / "nowhere")
    assert "dims=1" in told("--data", data, "--spec", "mel_resnet14")
    assert "stretch=0.9; use a number" in told("--data", data, "--stretch", "0.9")
    assert "--pieces is 0" in told("--data", data, "--pieces", "0")
    assert "a batch holds 20" in told("--data", data, "--budget", "20")
    assert "--freeze keeps what --weights gives" in told("--data", data, "--freeze")


def test_bad_recordings_are_named_or_counted(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:
    arguments = ["--data", data, "--output", tmp_path / "out", *SPEED]
    table = pandas.read_csv(data / "train" / "metadata.csv")
    table.loc[3, "text"] = "abcde" * 20  # too much for so few frames
    table.to_csv(data / "train" / "metadata.csv", index=False)
    error = refused(transcribe, *arguments)
    assert "3.wav" in error and "frames for 100 symbols" in error
    whole = (data / "train" / "5.wav").read_bytes()
    (data / "train" / "5.wav").write_bytes(whole[:1000])
    error = refused(transcribe, *arguments)
    assert "5.wav" in error and "cut short" in error
    transcribe(*arguments, "--on-bad", "skip")
    printed = capsys.readouterr().out
    assert "10 recordings of" in printed and "left out 2 bad items" in printed


def test_the_baseline_writes_the_nearest_transcript() -> None:
    texts = ["abc de", "e", "dddd", "a b"]
    train, test = tones.clips(texts), tones.clips(["e", "dddd", "", "abc de"], seed=1)
    name, rates = baseline(VOCABULARY, train, test)
    assert "most alike" in name and rates.spoken == 3
    figures = rates.compute()
    assert 0 < figures["wer"] <= 1 and rates.characters["d", "d"] >= 4


def test_a_net_that_writes_nothing_is_told_so() -> None:
    (said,) = remarks(ErrorRates.of([("ab", ""), ("c", ""), ("", "")]))
    assert said.startswith("the net writes nothing of any of the 2 recordings")
    (said,) = remarks(ErrorRates.of([("ab", "b"), ("c", "")]))
    assert said == "most frequent errors: 'a' left out (1); 'c' left out (1)"
    assert not list(remarks(ErrorRates.of([("ab", "ab")])))


def test_synthesised_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("espeakng_loader")
    said = _sentences.utterances()
    assert {split: len(each) for split, each in said.items()} == _sentences.SENTENCES
    texts, voices = (
        [{getattr(u, name).partition("+")[2] or u.text for u in each} for each in said.values()]
        for name in ("text", "voice")
    )
    for kind in (texts, voices):
        assert not kind[0] & kind[1] and not (kind[0] | kind[1]) & kind[2]
    assert sum(map(len, texts)) == sum(_sentences.SENTENCES.values())
    assert Config().data == _sentences.NAME == "synthesised sentences"
    assert (Config().epochs, Config(data="mine").epochs, Config(epochs=3).epochs) == (16, 40, 3)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_sentences, "SENTENCES", {"train": 6, "validation": 2, "test": 3})
    with warnings.catch_warnings():  # so few hold not all letters
        warnings.simplefilter("ignore", UserWarning)
        transcribe("--output", tmp_path / "out", *SPEED, "--folds", "0")
    printed = capsys.readouterr().out
    assert "synthesised sentences, test split" in printed and "6 recordings of" in printed
    assert next(iter(tmp_path.glob("runs/spoken/sentences-*/train.parquet"))).is_file()


def test_the_default_net_is_made_for_it() -> None:
    config: Any = Config(data="x")
    assert (config.spec, config.metric, config.higher_is_better) == (
        "mel_resnet_ctc18", "cer", False,
    )  # fmt: skip
    assert rb.SPECS[config.spec].in_channels == 80
