"""The recipe of masks trains, saves, measures, answers, and names bad input."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from resbackbones.report import load_records
from resbackbones.vision import ResidualForSemanticSegmentation
from tasks._using import run
from tasks.vision.segment_images import TASK

SPEED = ["--spec", "resnet20", "--decoder", "unet", "--epochs", "2", "--batch-size", "4"]
SPEED += ["--device", "cpu", "--least-steps", "0", "--ignore", "9"]


def segment(*arguments: object) -> None:
    run(TASK, [str(argument) for argument in arguments])


def encoded(pixels: np.ndarray) -> dict[str, object]:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Parquet files of images whose colours are their classes, 0 to 2, and 9 for none."""
    random = np.random.default_rng(0)
    kind = datasets.Image(decode=False)
    for split, count in (("train", 10), ("validation", 2), ("test", 3)):
        columns: dict[str, list[object]] = {"image": [], "mask": []}
        for _ in range(count):
            mask = np.kron(random.choice([0, 1, 2, 9], (5, 6)), np.ones((8, 8), int))
            columns["image"].append(encoded(np.stack([25 * mask, 200 - 20 * mask, mask], -1)))
            columns["mask"].append(encoded(mask))
        features = datasets.Features(image=kind, mask=kind)
        folder = tmp_path / "scenes"
        folder.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns, features).to_parquet(folder / f"{split}.parquet")
    return tmp_path / "scenes"


def test_trains_saves_measures_and_answers(
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("--classes", "ground", "water", "tree")
    segment("--data", scenes, "--output", "out", "--record", *names, *SPEED)
    printed = capsys.readouterr().out
    assert "random forest on pixels" in printed and "mean iou" in printed
    assert "48x40 pixels; they stay so (--image-size sets another size)" in printed
    (record,) = load_records("results")
    assert (record.task, record.metric, record.split) == ("segment_images", "mean_iou", "test")
    assert record.baseline["value"] > 0.9  # colours tell the classes
    model = ResidualForSemanticSegmentation.from_pretrained("out/seed-0/model")
    assert list(model.config.id2label.values()) == ["ground", "water", "tree"]
    told = json.loads(Path("out/results.json").read_text())["seed 0"]
    assert set(told["per_class"]["water"]) >= {"iou", "f1", "support"}
    assert told["metrics"]["mean_iou"] == record.values[0]

    segment("--data", scenes, "--evaluate", "out/seed-0/model", "--ignore", "9", "--device", "cpu")
    printed = " ".join(capsys.readouterr().out.split())
    assert "on 3 items of" in printed and f"{100 * record.values[0]:.1f} %" in printed

    PIL.Image.new("RGB", (30, 20), (0, 200, 0)).save("green.png")
    segment("--predict", "out/seed-0/model", "green.png", "--device", "cpu")
    printed = capsys.readouterr().out
    assert "green.png" in printed and " %" in printed

    exec(TASK.use.format(model="out/seed-0/model").replace("image.png", "green.png"), {})
    with PIL.Image.open("classes.png") as drawn:
        assert drawn.width == 30 and drawn.height > 20  # the names stand below


def test_bad_input_is_named(scenes: Path, refused: Callable[..., str]) -> None:
    assert "--ignore" in refused(segment, "--data", scenes, "--classes", "a", "b", "c")
    assert "cannot be brought to 0 pixels" in refused(
        segment, "--data", scenes, "--image-size", "0", *SPEED
    )
    assert "no height and width" in refused(segment, "--data", scenes, "--crop", "0", "8", *SPEED)


def test_bad_images_and_masks_are_named_or_left_out(
    tmp_path: Path, refused: Callable[..., str], handed_to_fit: Callable
) -> None:
    random = np.random.default_rng(0)
    folder = tmp_path / "pairs"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(14):
        mask = np.kron(random.choice([0, 1], (5, 6)), np.ones((8, 8), int)).astype(np.uint8)
        PIL.Image.fromarray(mask).save(folder / f"masks/{number:02}.png")
        PIL.Image.fromarray(np.stack([90 * mask] * 3, -1)).save(folder / f"images/{number:02}.png")
    given = ("--data", folder, "--output", tmp_path / "out", *SPEED, "--classes", "a", "b")
    bad = folder / "images/03.png"
    bad.write_bytes(bad.read_bytes()[:90])
    said = refused(segment, *given)
    assert str(bad) in said and "truncated" in said and "--on-bad skip" in said
    PIL.Image.new("L", (48, 39)).save(folder / "masks/05.png")
    train, _ = handed_to_fit(segment, *given, "--on-bad", "skip")
    left = {Path(train.source.row_name(row)).stem for row in range(len(train))}
    # Some of the fourteen are held out for validation.
    assert len(left) + len(train.skipped) >= 10 and not left & {"03", "05"}

    bad.unlink()  # images of several sizes are trained on in crops, and measured one by one
    (folder / "masks/05.png").unlink()
    for kind in ("images", "masks"):
        for number in range(0, 14, 2):
            with PIL.Image.open(folder / f"{kind}/{number:02}.png") as image:
                image.resize((40, 32), 0).save(folder / f"{kind}/{number:02}.png")
    assert "of 2 sizes cannot be one batch; take them" in refused(segment, *given)
