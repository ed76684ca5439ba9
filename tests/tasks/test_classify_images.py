"""The image recipe trains, saves, records and resumes, and names bad input."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import transformers

from resbackbones.core.layers import Stage, Stem
from resbackbones.core.spec import BackboneSpec
from resbackbones.report import load_records
from tasks._using import begin, run
from tasks.vision import classify_images
from tasks.vision.classify_images import TASK

# Two steps teach nothing, and fit says so.
pytestmark = pytest.mark.filterwarnings("ignore::resbackbones.train.StillAtChance")
SPEED = ["--spec", "resnet20", "--epochs", "2", "--batch-size", "16", "--device", "cpu"]
SPEED += ["--least-steps", "0"]


def classify(*arguments: object) -> None:
    run(TASK, ["--image-size", "12", *(str(argument) for argument in arguments)])


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
    assert "| PCA + " in printed and "resnet20, mean ± sd" in printed
    assert 'transformers.pipeline("image-classification", model="out/seed-0/model")' in printed
    (record,) = load_records("results")
    assert (record.task, record.dataset, record.arm) == ("classify_images", "pictures", "resnet20")
    assert record.seeds == [0, 1] and record.split == "test" and record.held_out["rows"] == 3
    assert record.parameters == 269_267 and record.skipped == 0

    answer = transformers.pipeline("image-classification", model="out/seed-1/model")(
        PIL.Image.new("RGB", (30, 20))
    )
    assert {item["label"] for item in answer} == {"red", "green", "blue"}

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
    printed = " ".join(capsys.readouterr().out.split())
    assert f"left out 1 bad item, the first: {bad}" in printed


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_device_holds_the_images_and_trains(
    device: str, pictures: Path, tmp_path: Path, no_gpu: None, handed_to_fit: Callable[..., Any]
) -> None:
    given = ["--data", pictures, "--output", tmp_path / "out", *SPEED, "--device", device]
    training, options = handed_to_fit(classify, *given)
    assert options.device == device and training.device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "nowhere"], "there is no file or folder"),
        (["--data", "empty"], "expected one folder per class"),
        (["--data", "one"], "has one class only ('red'"),
        (["--data", "table.parquet", "--label-column", "colour"], "has no column 'colour'"),
        (
            ["--data", "table.parquet", "--input-column", "img"],
            "has no column 'img' to use as input",
        ),
        (["--data", "range"], "row 3 of range [test] has the label 7 in column 'label'"),
        (["--data", "pictures", "--spec", "resnett18"], "did you mean 'resnet18'?"),
        (["--data", "pictures", "--spec", "tc_resnet8"], "dims=2"),
        (["--data", "pictures", "--learning-rate", "-1"], "learning_rate=-1.0 is out of range"),
        (["--data", "pictures", "--output", "file/out"], "cannot write to file/out"),
        (["--data", "pictures", "--resume"], "there is no run in"),
        (["--data", "nowhere", "--device", "cuda"], "needs a GPU and there is none"),
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


def test_twelve_clearly_different_images_are_learned_and_cross_validated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for channel, label in ((0, "red"), (2, "blue")):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for index in range(6):
            pixels = random.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            PIL.Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{index}.png")
    config = classify_images.Config(
        data=str(tmp_path / "pictures"),
        output=tmp_path / "out",
        spec=BackboneSpec((Stage(8, 1), Stage(16, 1, stride=2)), stem=Stem(8, 3)),
        device="cpu",
        progress=False,
    )
    begin(TASK, config)  # all else by default
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["seed 0"]["metrics"]["loss"] < 0.3 < math.log(2)
    assert results["seed 0"]["metrics"]["accuracy"] == 1.0
    assert results["seed 0"]["confusion"] == results["PCA + SVC"]["confusion"] == [[6, 0], [0, 6]]
    printed = capsys.readouterr().out
    assert "2 held out rows say too little, so 5 more trainings cross-validate" in printed
    assert "pictures, 5-fold cross-validation (" in printed
    names = {path.name for path in (tmp_path / "out" / "seed-0").iterdir()}
    assert {"model", *(f"part-{number}" for number in range(1, 6))} <= names


def test_grey_images_have_one_channel(
    pictures: Path, tmp_path: Path, handed_to_fit: Callable[..., Any]
) -> None:
    given = ["--data", pictures, "--output", tmp_path / "out", *SPEED]
    assert handed_to_fit(classify, *given)[0][0]["pixel_values"].shape[0] == 3
    for path in pictures.rglob("*.png"):
        PIL.Image.open(path).convert("L").save(path)
    assert handed_to_fit(classify, *given)[0][0]["pixel_values"].shape[0] == 1
    colour = handed_to_fit(classify, *given, "--channels", "3")
    assert colour[0][0]["pixel_values"].shape[0] == 3


def test_images_are_named_and_measured(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    classify("--data", pictures, "--output", tmp_path / "out", *SPEED)
    accuracy = json.loads((tmp_path / "out" / "results.json").read_text())["seed 0"]["metrics"]
    model = tmp_path / "out" / "seed-0" / "model"
    capsys.readouterr()
    classify("--evaluate", model, "--data", pictures)
    printed = capsys.readouterr().out
    assert "on 9 items of" in printed and f"| {100 * accuracy['accuracy']:8.1f}"[:6] in printed
    image = pictures / "test" / "red" / "0.png"
    classify("--predict", model, image)
    assert re.search(rf"\| {image} \| \w+ [\d.]+ % +\|", capsys.readouterr().out)
    (tmp_path / "text.png").write_text("no image")
    error = refused(classify, "--predict", model, image, tmp_path / "text.png")
    assert f"{tmp_path / 'text.png'} cannot be read" in error
