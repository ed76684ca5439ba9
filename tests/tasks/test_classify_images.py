"""The image recipe trains, saves, records and resumes, and names bad input."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from safetensors.torch import load_file

from resbackbones.core.layers import Stage, Stem
from resbackbones.core.spec import BackboneSpec
from resbackbones.report import load_records
from resbackbones.vision import Augment, ImageItems
from tasks._running import Stopped
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


def test_a_training_starts_from_weights(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:
    classify("--data", pictures, "--output", tmp_path / "first", *SPEED)
    saved = tmp_path / "first" / "seed-0" / "model"
    shutil.rmtree(pictures / "train" / "blue")
    shutil.rmtree(pictures / "test" / "blue")
    capsys.readouterr()
    given = ["--data", pictures, *SPEED, "--learning-rate", "0", "--output"]
    classify(*given, tmp_path / "second", "--weights", saved)
    printed = capsys.readouterr().out
    assert "read in the layout of models of resbackbones; " in " ".join(printed.split())
    first, second = (
        load_file(tmp_path / run / "seed-0" / "model" / "model.safetensors")
        for run in ("first", "second")
    )
    for name in first:
        if name.endswith("conv.weight"):
            assert torch.equal(first[name], second[name])
    assert first["head.linear.weight"].shape != second["head.linear.weight"].shape
    error = refused(classify, *given, tmp_path / "third", "--weights", tmp_path / "none.pth")
    assert "none.pth" in error


def test_a_frozen_backbone_stays_what_the_weights_are(pictures: Path, tmp_path: Path) -> None:
    given = ["--data", pictures, *SPEED, "--output"]
    classify(*given, tmp_path / "first")
    saved = tmp_path / "first" / "seed-0" / "model"
    classify(*given, tmp_path / "second", "--weights", saved, "--freeze")
    first, second = (
        load_file(tmp_path / run / "seed-0" / "model" / "model.safetensors")
        for run in ("first", "second")
    )
    assert {name for name in first if not torch.equal(first[name], second[name])} == {
        "head.linear.weight",
        "head.linear.bias",
    }


def test_how_images_are_varied_can_be_told(
    pictures: Path, handed_to_fit: Callable[..., Any]
) -> None:
    def augment(*arguments: str) -> Augment | None:
        return handed_to_fit(classify, "--data", pictures, *SPEED, *arguments)[0].augment

    assert augment() == Augment(shift=1)  # 1/16 of 12 pixels
    told = ["--no-flip", "--shift", "0.25", "--zoom", "0.5", "--trivial", "--erase", "0.1"]
    told += ["--mixup", "0.2", "--cutmix", "0.3", "--start", "0.5", "--growth", "2"]
    assert augment(*told) == Augment(False, 3, 0.5, True, 0, 0.1, 0.2, 0.3, 0.5, 2)
    assert augment("--no-augment") is None


def test_the_first_convolution_is_whitened(pictures: Path) -> None:
    def stem(whiten: bool) -> torch.Tensor:
        torch.manual_seed(0)
        config = classify_images.Config(data=str(pictures), whiten=whiten, device="cpu")
        return (
            classify_images.experiment(config).build().backbone.stem[0].convolutions[0].conv.weight
        )

    drawn, whitened = stem(False), stem(True)
    assert torch.equal(whitened[:54:2], -whitened[1:54:2])
    assert torch.equal(whitened[54:], drawn[54:])


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


def test_any_number_of_classes_per_image(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("test", 12)):
        (tmp_path / "tagged" / split).mkdir(parents=True)
        lines = ["file_name,tags"]
        for index in range(count):
            pixels = random.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            given = [c for c in range(3) if index >> c & 1]
            pixels[..., given] += 100
            PIL.Image.fromarray(pixels).save(tmp_path / "tagged" / split / f"{index}.png")
            lines.append(f"{index}.png,{'|'.join(('red', 'green', 'blue')[c] for c in given)}")
        lines[1] += "[]"  # of no class
        lines[9:] = [line + "[]" * line.endswith(",") for line in lines[9:]]
        (tmp_path / "tagged" / split / "metadata.csv").write_text("\n".join(lines))
    given = ["--data", "tagged", "--multi-label", *SPEED]
    classify(*given, "--output", "out", "--epochs", "6", "--record")
    printed = capsys.readouterr().out
    assert "classes per item" in " ".join(printed.split()) and "cut at '|'" in printed
    table = next(line for line in printed.splitlines() if "macro F1" in line)
    assert [cell.strip() for cell in table.strip("|").split("|")] == [
        *("", "mean average precision", "macro F1", "micro F1"),
    ]
    results = json.loads(Path("out/results.json").read_text())
    net, simple = results["seed 0"], results["PCA + SVC"]
    assert set(net["metrics"]) == {"mean_average_precision", "macro_f1", "micro_f1", "loss"}
    assert "confusion" not in net and set(net["per_class"]) == {"red", "green", "blue"}
    assert simple["metrics"]["mean_average_precision"] > 0.9
    (record,) = load_records("results")
    assert record.metric == "mean_average_precision"
    assert record.values == [pytest.approx(net["metrics"]["mean_average_precision"])]
    assert record.baseline["value"] == pytest.approx(simple["metrics"]["mean_average_precision"])

    model = Path("out/seed-0/model")
    config = json.loads((model / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    classify("--evaluate", model, "--data", "tagged")  # the model knows that there are many
    printed = capsys.readouterr().out
    shown = f"{100 * net['metrics']['mean_average_precision']:.1f} %"
    assert "on 12 items of tagged [test]" in printed and shown in printed
    classify("--predict", model, "tagged/test/3.png")
    (answer,) = re.findall(r"tagged/test/3.png \|(.*)", capsys.readouterr().out)
    scores = [float(score) for score in re.findall(r"([\d.]+) %", answer)]
    assert len(scores) == 3 and abs(sum(scores) - 100) > 1  # each class stands for itself

    other = classify_images.Config(data="tagged", multi_label=True, metric="macro_f1")
    assert other.metric == "macro_f1"
    error = refused(classify, "--data", "tagged", "--label-separator", ";")
    assert "--label-separator is for --multi-label" in error


def test_images_grow_and_a_stopped_run_goes_on_exactly(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[int] = []
    load = ImageItems.__getitems__
    stop_at = 0

    def seen(items: ImageItems, rows: Any) -> Any:
        batch = load(items, rows)
        if items.augment is not None and len(rows) > 1:
            sides.append(batch["pixel_values"].shape[-1])
            if len(sides) == stop_at:
                raise Stopped(15)
        return batch

    monkeypatch.setattr(ImageItems, "__getitems__", seen)
    given = ["--data", pictures, *SPEED, "--epochs", "4", "--start", "0.5", "--growth", "2"]
    given += ["--image-size", "16", "--shift", "0.1"]
    classify(*given, "--output", tmp_path / "whole")
    whole = list(sides)
    per_epoch = len(whole) // 4
    assert [whole[epoch * per_epoch] for epoch in range(4)] == [8, 12, 16, 16]
    for epoch in range(4):
        assert len(set(whole[epoch * per_epoch : (epoch + 1) * per_epoch])) == 1

    sides.clear()
    stop_at = per_epoch + 1  # in the second epoch
    with pytest.raises(SystemExit):
        classify(*given, "--output", tmp_path / "cut")
    stop_at = 0
    sides.clear()
    classify(*given, "--output", tmp_path / "cut", "--resume")
    assert sides == whole[per_epoch:]
    weights = [
        tmp_path / run / "seed-0" / "model" / "model.safetensors" for run in ("whole", "cut")
    ]
    first, second = map(load_file, weights)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
