"""The image recipe trains, saves, records and resumes, and names bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import transformers

from resbackbones.report import load_records
from tasks._run import run
from tasks.vision.classify_images import Config, main

# Two steps teach nothing, and fit says so.
pytestmark = pytest.mark.filterwarnings("ignore::resbackbones.train.StillAtChance")
SPEED = ["--spec", "resnet20", "--epochs", "2", "--batch-size", "16", "--device", "cpu"]
COLOURS = {"red": 0, "green": 1, "blue": 2}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folders of class folders: noise with one strong colour, of several sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 3)):
        for label, channel in COLOURS.items():
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 120, (12 + index % 3, 14, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def classify(*arguments: object) -> None:
    run(main, Config, ["--image-size", "12", *(str(argument) for argument in arguments)])


def test_trains_saves_records_and_resumes(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--data", pictures, "--output", "out", "--seeds", "0", "1", "--record", *SPEED)
    classify(*given)
    printed = capsys.readouterr().out
    assert "PCA + RBF features + ridge" in printed and "resnet20, mean ± sd" in printed
    assert 'transformers.pipeline("image-classification", model="out/seed-0/model")' in printed
    (record,) = load_records("results")
    assert (record.task, record.dataset, record.arm) == ("classify_images", "pictures", "resnet20")
    assert record.seeds == [0, 1] and record.split == "test" and len(record.held_out) == 3
    assert record.parameters == 269_267 and record.skipped == 0

    answer = transformers.pipeline("image-classification", model="out/seed-1/model")(
        PIL.Image.new("RGB", (30, 20))
    )
    assert {item["label"] for item in answer} == set(COLOURS)

    assert "holds a run already" in refused(classify, *given)
    trained = Path("out/seed-0/log.jsonl").read_text()
    classify(*given, "--resume")
    assert Path("out/seed-0/log.jsonl").read_text() == trained
    assert load_records("results")[0].values == record.values
    other = refused(classify, *given[: -len(SPEED)], "--spec", "resnet32", *SPEED[2:], "--resume")
    assert "has parameters=269267, not 463699" in other  # a checkpoint of another shape


def test_a_damaged_image_is_named_or_left_out(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    bad = pictures / "train" / "red" / "0.png"
    bad.write_bytes(bad.read_bytes()[:70])
    given = ("--data", pictures, "--output", tmp_path / "out", *SPEED)
    assert str(bad) in refused(classify, *given)
    classify(*given, "--on-bad", "skip")
    assert f"left out 1 damaged items, the first: {bad}" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_device_holds_the_images_and_trains(
    device: str, pictures: Path, tmp_path: Path, no_gpu: None, handed_to_fit: Callable[..., Any]
) -> None:
    given = ["--data", pictures, "--output", tmp_path / "out", *SPEED, "--device", device]
    training, options = handed_to_fit(classify, *given)
    assert options.device == training.device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "nowhere"], "there is no file or folder"),
        (["--data", "empty"], "expected one folder a class"),
        (["--data", "one"], "has one class only ('red'"),
        (["--data", "table.parquet", "--label-column", "colour"], "has no column 'colour'"),
        (
            ["--data", "table.parquet", "--image-column", "img"],
            "has no column 'img' to use as input",
        ),
        (["--data", "range"], "row 2 of range [test] has the label '7'"),
        (["--data", "pictures", "--spec", "resnett18"], "did you mean 'resnet18'?"),
        (["--data", "pictures", "--spec", "tc_resnet8"], "dims=2"),
        (["--data", "pictures", "--learning-rate", "-1"], "learning_rate=-1.0 is out of range"),
        (["--data", "pictures", "--output", "file/out"], "cannot write to file/out"),
        (["--data", "pictures", "--resume"], "there is no run in"),
        (["--data", "nowhere", "--device", "cuda"], "--device cuda needs a GPU"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    pictures: Path,
    tmp_path: Path,
    no_gpu: None,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").write_text("")
    Path("one").mkdir()
    os.symlink(pictures / "train" / "red", "one/red")
    image = {"bytes": (pictures / "train" / "red" / "0.png").read_bytes(), "path": None}
    rows = datasets.Dataset.from_dict({"image": [image] * 4, "label": [0, 1, 0, 1]})
    rows.to_parquet("table.parquet")
    Path("range").mkdir()
    rows.to_parquet("range/train.parquet")
    strange = datasets.Dataset.from_dict({"image": [image] * 4, "label": [0, 1, 7, 1]})
    strange.to_parquet("range/test.parquet")
    given = [] if "--resume" in arguments or "--output" in arguments else ["--output", "out"]
    assert sentence in refused(classify, "--epochs", "1", "--device", "cpu", *given, *arguments)
    assert "--device" not in arguments or not Path("out").exists()  # it is refused first


def test_the_command_line_shows_no_traceback(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tasks.vision.classify_images", "--data", str(tmp_path / "no")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: there is no file or folder")
    assert ended.stderr.count("\n") == 1
    assert json.dumps(ended.stdout) == '""'
