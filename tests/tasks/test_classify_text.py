"""The text recipe trains, saves and records on made-up questions, and names bad input."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import transformers

from resbackbones.report import load_records
from tasks._run import run
from tasks.text.classify_text import Config, main

# Two steps teach nothing, and fit says so.
pytestmark = pytest.mark.filterwarnings("ignore::resbackbones.train.StillAtChance")
SPEED = ["--epochs", "1", "--batch-size", "16", "--device", "cpu"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A folder of CSV files: questions about people and about places."""
    random = np.random.default_rng(0)
    folder = tmp_path / "questions"
    folder.mkdir()
    for split, count in (("train", 32), ("test", 8)):
        rows = [
            {"text": f"{'who' if row % 2 else 'where'} is {random.integers(1000)} ?", "label": kind}
            for row in range(count)
            for kind in [("place", "person")[row % 2]]
        ]
        pandas.DataFrame(rows).to_csv(folder / f"{split}.csv", index=False)
    return folder


def classify(*arguments: object) -> None:
    run(main, Config, [str(argument) for argument in arguments])


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
    assert "held out of train" in printed
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
    assert handed_to_fit(classify, *given)[1].device == "cpu"


@pytest.mark.gpu
def test_a_gpu_trains(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", questions, "--output", tmp_path / "out", *SPEED, "--device", "cuda"]
    classify(*given)
    assert "MACs an item" in capsys.readouterr().out


def test_bad_input_is_one_sentence(
    questions: Path, tmp_path: Path, no_gpu: None, refused: Callable[..., str]
) -> None:
    def told(*arguments: object) -> str:
        return refused(classify, "--output", tmp_path / "out", *SPEED, *arguments)

    assert "--device cuda needs a GPU" in told("--data", "nowhere", "--device", "cuda")
    assert not (tmp_path / "out").exists()
    assert "nowhere" in told("--data", tmp_path / "nowhere")
    assert "'sentiment'" in told("--data", questions, "--label-column", "sentiment")
    assert "'txt'" in told("--data", questions, "--text-column", "txt")
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
    assert "7" in error and "row 5" in error


def test_rows_without_a_text_are_named_or_counted(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    table = pandas.read_csv(questions / "test.csv")
    table.loc[3, "text"] = None
    table.to_csv(questions / "test.csv", index=False)
    arguments = ["--data", questions, "--output", tmp_path / "out", *SPEED]
    assert "row 3" in refused(classify, *arguments)
    classify(*arguments, "--on-bad", "skip")
    assert "left out 1 damaged items" in capsys.readouterr().out


def test_on_the_command_line_bad_input_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasks.text.classify_text", "--data", "no/such/folder"]
    command += ["--output", str(tmp_path / "out")]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


def test_all_rows_are_trained_on_when_asked(
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    classify("--data", questions, "--output", "out", "--all-rows", "--record", *SPEED)
    assert "trained on both" in capsys.readouterr().out
    (record,) = load_records("results")
    assert record.arm == "word_resnet6-all-rows" and record.held_out
    log = [json.loads(line) for line in Path("out/seed-0/log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 2 and "accuracy" not in log[-1]  # 32 rows in batches of 16
