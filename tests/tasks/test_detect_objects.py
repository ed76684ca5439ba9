"""The recipe of object detection trains, saves, records, measures and answers; its baseline."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import transformers

from resbackbones.data import Boxes, open_splits
from resbackbones.report import load_records
from resbackbones.vision import (
    BoxItems,
    ResidualDetectionProcessor,
    ResidualForTwoStageDetection,
    choose_resolution,
)
from tasks._using import run
from tasks.vision._box_baseline import baseline
from tasks.vision.detect_objects import TASK
from tests.vision.helpers import instances

SPEED = ["--spec", "resnet20", "--levels", "4", "8", "--width", "64", "--convolutions", "1"]
SPEED += ["--epochs", "2", "--batch-size", "8", "--device", "cpu", "--least-steps", "0"]
NAMES = ["square", "bar"]


def scene(number: int) -> tuple[PIL.Image.Image, dict]:
    """Noise with a light square and, mostly, a dark bar."""
    random = np.random.default_rng(number)
    pixels = random.integers(90, 150, (48, 64, 3), dtype=np.uint8)
    left, top = int(random.integers(2, 14)), int(random.integers(2, 30))
    boxes, kinds = [[left, top, left + 14, top + 14]], [0]
    pixels[top : top + 14, left : left + 14] = 240
    if number % 4:
        left, top = int(random.integers(34, 42)), int(random.integers(2, 36))
        boxes.append([left, top, left + 20, top + 8])
        kinds.append(1)
        pixels[top : top + 8, left : left + 20] = 10
    return PIL.Image.fromarray(pixels), {"bbox": boxes, "category": kinds}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    kinds = datasets.List(datasets.ClassLabel(names=NAMES))
    boxes = datasets.List(datasets.List(datasets.Value("float32")))
    features = datasets.Features(
        {"image": datasets.Image(), "objects": {"bbox": boxes, "category": kinds}}
    )
    for split, rows in (("train", range(24)), ("test", range(100, 108))):
        images, objects = zip(*map(scene, rows), strict=True)
        made = {"image": list(images), "objects": list(objects)}
        datasets.Dataset.from_dict(made, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def test_the_format_of_boxes_in_a_table_can_be_told(
    scenes: Path, handed_to_fit: Callable[..., Any]
) -> None:
    given = ["--data", scenes, *SPEED]
    corners = handed_to_fit(detect, *given)[0].source.target
    sizes = handed_to_fit(detect, *given, "--box-format", "xywh")[0].source.target
    assert (corners.box_format, sizes.box_format) == ("xyxy", "xywh")


def detect(*arguments: object) -> None:
    run(TASK, [str(argument) for argument in arguments])


def test_trains_saves_records_and_answers(
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    detect("--data", scenes, "--output", "out", "--record", *SPEED)
    printed = " ".join(capsys.readouterr().out.split())
    assert "all are brought to 64x48" in printed and "strides 4, 8" in printed
    assert "sliding windows + RBF features + ridge" in printed and "AP50" in printed
    assert "draw_boxes(image, model.predict(image))" in printed
    (record,) = load_records("results")
    assert (record.task, record.dataset, record.metric) == ("detect_objects", scenes.name, "ap50")
    assert record.split == "test" and 0 <= record.values[0] <= 1

    detector = transformers.pipeline("object-detection", "out/seed-0/model")
    answers = detector(scene(0)[0], threshold=0.0)
    assert {answer["label"] for answer in answers} <= set(NAMES)

    detect("--evaluate", "out/seed-0/model", "--data", scenes)
    printed = " ".join(capsys.readouterr().out.split())
    assert "on 8 items" in printed and "| square |" in printed and "| bar |" in printed
    scene(0)[0].save("one.png")
    detect("--predict", "out/seed-0/model", "one.png")
    assert re.search(r"\| one\.png \|", capsys.readouterr().out)


def test_faster_rcnn_trains_saves_measures_and_answers(
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    detect("--data", scenes, "--output", "out", "--detector", "faster_rcnn", *SPEED)
    printed = capsys.readouterr().out
    assert 'ResidualForTwoStageDetection.from_pretrained("out/seed-0/model")' in printed
    saved = transformers.AutoModelForObjectDetection.from_pretrained("out/seed-0/model")
    assert type(saved) is ResidualForTwoStageDetection and not saved.config.masks
    assert list(saved.config.id2label.values()) == NAMES

    detect("--evaluate", "out/seed-0/model", "--data", scenes)
    printed = capsys.readouterr().out
    assert "on 8 items" in printed and "| square |" in printed and "| bar " in printed
    scene(0)[0].save("one.png")
    detect("--predict", "out/seed-0/model", "one.png")
    assert "| one.png |" in capsys.readouterr().out
    told = Path("out/seed-0/model/config.json")
    told.write_text(told.read_text().replace("residual_two_stage_detection", "residual_vision"))
    assert "is no model of detect_objects" in refused(
        detect, "--predict", "out/seed-0/model", "one.png"
    )


def test_mask_rcnn_trains_saves_measures_and_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 8), ("val", 2), ("test", 4)):
        instances(Path("data", split), [(64, 48)] * count)
    detect("--data", "data", "--output", "out", "--detector", "mask_rcnn", *SPEED)
    printed = capsys.readouterr().out
    assert "mask AP50 |" in printed and "mask mAP |" in printed
    results = json.loads(Path("out/results.json").read_text())["seed 0"]
    assert 0 <= results["metrics"]["mask_map"] <= 1 and 0 <= results["metrics"]["mask_ap50"] <= 1
    model = transformers.AutoModelForObjectDetection.from_pretrained("out/seed-0/model")
    assert model.config.masks and model.config.id2label == {0: "red", 1: "blue"}
    (found,) = model.predict(["data/test/0.png"], threshold=0.0)
    assert found["masks"].shape == (len(found["labels"]), 48, 64)

    detect("--evaluate", "out/seed-0/model", "--data", "data")
    printed = capsys.readouterr().out
    assert "on 4 items" in printed and "mask mAP" in printed and "| mask AP50 |" in printed
    detect("--predict", "out/seed-0/model", "data/test/0.png")
    assert "| data/test/0.png |" in capsys.readouterr().out


def test_levels_of_two_stages_start_at_4(
    scenes: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    splits = open_splits(str(scenes), kind="image", target=Boxes())
    assert choose_resolution(splits.train)[1] == (8, 16)
    assert choose_resolution(splits.train, finest=4)[1] == (4, 8)
    given = ("--data", scenes, "--output", tmp_path / "out", "--detector", "faster_rcnn")
    assert "whose features have strides 2" in refused(
        detect, *given, "--spec", "resnet20", "--levels", "16", "32"
    )


def test_the_learning_rate_reaches_the_training(
    scenes: Path, tmp_path: Path, handed_to_fit: Callable
) -> None:
    given = ("--data", scenes, "--output", tmp_path / "out", *SPEED)
    train, options = handed_to_fit(detect, *given, "--learning-rate", "0.01", "--upside-down")
    assert options.learning_rate == 0.01 and options.metric == "ap50"
    assert train.augment.upside_down and train.augment.mosaic == 0.5
    train, _ = handed_to_fit(detect, *given[:3], tmp_path / "two", *SPEED, "--no-augment")
    assert train.augment is None


def test_levels_that_the_net_has_not_are_named(
    scenes: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    given = ("--data", scenes, "--output", tmp_path / "out", "--spec", "resnet20")
    assert "whose features have strides 2, 4" in refused(detect, *given, "--levels", "8", "16")


def test_bad_images_are_named_or_left_out(
    tmp_path: Path, refused: Callable[..., str], handed_to_fit: Callable
) -> None:
    folder = tmp_path / "yolo"
    folder.mkdir()
    for number in range(14):
        image, _ = scene(number)
        image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    given = ("--data", folder, "--output", tmp_path / "out", *SPEED)
    bad = folder / "03.png"
    bad.write_bytes(bad.read_bytes()[:90])
    said = refused(detect, *given)
    assert str(bad) in said and "truncated" in said and "--on-bad skip" in said
    train, _ = handed_to_fit(detect, *given, "--on-bad", "skip")
    left = {Path(train.source.row_name(row)).stem for row in range(len(train))}
    assert len(left) + len(train.skipped) >= 10 and "03" not in left


def test_the_baseline_finds_what_is_plain_to_see(scenes: Path) -> None:
    splits = open_splits(str(scenes), kind="image", target=Boxes())
    size, _, _ = choose_resolution(splits.train)
    make = partial(BoxItems, processor=ResidualDetectionProcessor(size=size))
    name, metric = baseline(make(splits.train), make(splits.test))
    assert name == "sliding windows + RBF features + ridge"
    assert metric.compute()["ap50"] > 0.8
