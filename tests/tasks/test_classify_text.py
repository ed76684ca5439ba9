"""The text recipe trains, saves and records on made-up questions, and names bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import transformers

from resbackbones.report import load_records
from tasks._using import run
from tasks.text.classify_text import TASK

# Two steps teach nothing, and fit says so.
pytestmark = pytest.mark.filterwarnings("ignore::resbackbones.train.StillAtChance")
SPEED = ["--epochs", "1", "--batch-size", "16", "--device", "cpu", "--least-steps", "0"]
SPEED += ["--least-updates", "1"]


def classify(*arguments: object) -> None:
    run(TASK, [str(argument) for argument in arguments])


def test_trains_saves_records_and_says_how_to_go_on(
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out"
    classify("--data", questions, "--output", output, "--seeds", "0", "1", "--record", *SPEED)
    printed = capsys.readouterr().out
    assert "TF-IDF + linear SVC" in printed and "word_resnet6, mean ± sd" in printed
    assert "29 training and 3 validation rows, the latter 9.4 % of train, strat" in printed
    assert 'transformers.pipeline("text-classification", model="' in printed

    (record,) = load_records(tmp_path / "results")
    assert (record.task, record.dataset, record.arm) == (
        "classify_text",
        "questions",
        "word_resnet6",
    )
    assert record.seeds == [0, 1] and record.split == "test" and record.baseline is not None
    assert record.baseline["value"] == 1.0  # the first word tells

    for seed in (0, 1):
        log = (output / f"seed-{seed}" / "log.jsonl").read_text()
        assert json.loads(log.splitlines()[-1])["step"] == 2
        model = output / f"seed-{seed}" / "model"
        pipeline = transformers.pipeline("text-classification", model=str(model))
        answers = pipeline(["who is 12 ?", "where"], batch_size=2)
        assert {answer["label"] for answer in answers} <= {"person", "place"}


@pytest.mark.parametrize("tokenizer", ["character", "byte", "bpe"])
def test_other_tokenizers_and_nets_resume(
    tokenizer: str, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", questions, "--output", tmp_path / "out", "--spec", "vdcnn9", *SPEED]
    arguments += ["--tokenizer", tokenizer]
    classify(*arguments)
    first = capsys.readouterr().out
    classify(*arguments, "--resume")
    assert capsys.readouterr().out == first  # there was nothing left to do


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_device_is_where_the_net_trains(
    device: str, questions: Path, tmp_path: Path, no_gpu: None, handed_to_fit: Callable[..., Any]
) -> None:
    given = ["--data", questions, "--output", tmp_path / "out", *SPEED, "--device", device]
    assert handed_to_fit(classify, *given)[1].device == device


@pytest.mark.gpu
def test_a_gpu_trains(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", questions, "--output", tmp_path / "out", *SPEED, "--device", "cuda"]
    classify(*given)
    assert "MACs per item" in capsys.readouterr().out


def test_bad_input_is_one_sentence(
    questions: Path, tmp_path: Path, no_gpu: None, refused: Callable[..., str]
) -> None:
    def told(*arguments: object) -> str:
        return refused(classify, "--output", tmp_path / "out", *SPEED, *arguments)

    assert "needs a GPU and there is none" in told("--data", "nowhere", "--device", "cuda")
    assert not (tmp_path / "out").exists()
    assert "nowhere" in told("--data", tmp_path / "nowhere")
    assert "'sentiment'" in told("--data", questions, "--label-column", "sentiment")
    assert "'txt'" in told("--data", questions, "--input-column", "txt")
    assert "did you mean 'resnet5" in told("--data", questions, "--spec", "resnet5O")
    assert "dims=1" in told("--data", questions, "--spec", "resnet50")
    assert "epochs=0" in told("--data", questions, "--epochs", "0")
    (tmp_path / "file").write_text("no folder")
    assert "file" in told("--data", questions, "--output", tmp_path / "file")


def test_a_label_outside_the_range_is_named(
    questions: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (questions / "labels.json").write_text('["place", "person"]')
    table = pandas.read_csv(questions / "train.csv")
    table["label"] = table["label"].map({"place": 0, "person": 1})
    table.loc[5, "label"] = 7
    table.to_csv(questions / "train.csv", index=False)
    error = refused(classify, "--data", questions, "--output", tmp_path / "out", *SPEED)
    assert "7" in error and "row 6" in error


def test_rows_without_a_text_are_named_or_counted(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    table = pandas.read_csv(questions / "test.csv")
    table.loc[3, "text"] = None
    table.to_csv(questions / "test.csv", index=False)
    arguments = ["--data", questions, "--output", tmp_path / "out", *SPEED]
    assert "row 4" in refused(classify, *arguments)
    classify(*arguments, "--on-bad", "skip")
    assert "left out 1 bad item" in capsys.readouterr().out


def test_all_rows_are_trained_on_when_asked(
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    classify("--data", questions, "--output", "out", "--all-rows", "--record", *SPEED)
    assert "those for validation among them" in capsys.readouterr().out
    (record,) = load_records("results")
    assert record.arm == "word_resnet6-all-rows" and record.held_out
    log = [json.loads(line) for line in Path("out/seed-0/log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 2 and "accuracy" not in log[-1]  # 32 rows in batches of 16


def test_all_rows_without_a_test_split_are_refused(
    questions: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (questions / "test.csv").unlink()
    given = ["--data", questions, "--output", tmp_path / "out", *SPEED]
    assert "there is no test split to measure on" in refused(classify, *given, "--all-rows")


def test_texts_are_named_line_by_line_and_measured(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    classify("--data", questions, "--output", tmp_path / "out", "--no-ngrams", *SPEED)
    model = tmp_path / "out" / "seed-0" / "model"
    capsys.readouterr()
    classify("--evaluate", model, "--data", questions / "test.csv")
    assert "on 8 items of" in capsys.readouterr().out
    (tmp_path / "lines.txt").write_text("who is 12 ?\n\nwhere is it ?\n")
    classify("--predict", model, tmp_path / "lines.txt")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["who is 12 ?", "where is it ?"]
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    error = refused(classify, "--predict", model, tmp_path / "binary.txt")
    assert f"{tmp_path / 'binary.txt'} cannot be read" in error


def test_a_csv_file_of_semicolons_is_enough(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pandas.read_csv(questions / "train.csv").rename(columns={"label": "Sentiment"})
    table.to_csv(tmp_path / "reviews.csv", index=False, sep=";")
    classify(
        "--data", tmp_path / "reviews.csv", "--output", tmp_path / "out", "--folds", "0", *SPEED
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "29 items to train on, 3 for validation (held out: 9.4 % of train" in printed
    assert "reviews.csv, validation split (29 training and 3 validation rows" in printed
