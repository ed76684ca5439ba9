"""What all recipes share: their fields, longer training on few items, saved models, signals."""

import dataclasses
import functools
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pandas
import pytest
import torch

from resbackbones import train
from resbackbones.core.layers import Stage, Stem
from resbackbones.core.spec import BackboneSpec
from resbackbones.data import Column, open_splits
from resbackbones.errors import InputError
from resbackbones.speech import ResidualForAudioClassification
from tasks import _recipe, _using
from tasks._classes import KnownClasses
from tasks._fields import Recipe
from tasks._recipe import Task, fitting
from tasks._using import begin, run
from tasks.speech import spot_keywords
from tasks.text import analyze_sentiment, classify_text, model_language
from tasks.vision import classify_images, detect_objects, segment_images

ROOT = Path(__file__).parents[2]
RECIPES = [spot_keywords, classify_text, analyze_sentiment, classify_images, detect_objects]
RECIPES += [segment_images, model_language]
TASKS: list[Task] = [recipe.TASK for recipe in RECIPES]
# Two steps teach nothing, and fit says so.
pytestmark = pytest.mark.filterwarnings("ignore::resbackbones.train.StillAtChance")
SPEED = ["--epochs", "2", "--least-steps", "0", "--batch-size", "16", "--device", "cpu"]
SPEECH = ["--spec", "tc_resnet8", *SPEED]
TINY = BackboneSpec(
    (Stage(16, 1), Stage(32, 1, stride=2)), stem=Stem(16, 3), dims=1, in_channels=40
)


def spot(*arguments: object) -> None:
    run(spot_keywords.TASK, [str(argument) for argument in arguments])


def by_name(task: Task) -> str:
    return task.name


# Their fields and their command lines


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.TASK.name)
def test_a_recipe_is_short(recipe: Any) -> None:
    assert len(Path(recipe.__file__).read_text().splitlines()) <= 150


@pytest.mark.parametrize("task", TASKS, ids=by_name)
def test_every_recipe_trains_by_the_same_options(task: Task) -> None:
    assert issubclass(task.config, train.Options)
    fields = {field.name for field in dataclasses.fields(task.config)}
    assert {field.name for field in dataclasses.fields(train.Options)} <= fields
    assert isinstance(task.config(data="here"), Recipe)


@pytest.mark.parametrize("recipe", ["tasks.benchmark", *(r.__name__ for r in RECIPES)])
def test_every_recipe_takes_the_same_devices(recipe: str) -> None:
    fields = dataclasses.fields(importlib.import_module(recipe).Config)
    (device,) = (field for field in fields if field.name == "device")
    assert device.type == Literal["auto", "cpu", "cuda"] and device.default == "auto"


@pytest.mark.parametrize("task", TASKS, ids=by_name)
def test_help_says_what_comes_first_first(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(task, ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    titles = ["data options", f"{task.kind} options", "training options"]
    places = [shown.index(title) for title in titles]
    assert places == sorted(places)
    fields = dataclasses.fields(task.config)
    flags = {"--" + field.name.replace("_", "-") for field in fields} - {"--seed", "--fold"}
    missing = {flag for flag in flags if not re.search(rf"{flag}\b", shown)}
    assert not missing
    for unclear in ("{fixed}", "None", "(default: )"):
        assert unclear not in shown


@pytest.mark.parametrize("task", TASKS, ids=by_name)
def test_a_setting_for_a_gpu_is_other_defaults_of_the_same_fields(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Recipe] = []
    monkeypatch.setattr(_using, "train", lambda task, config: given.append(config))
    assert task.gpu
    run(task, ["--data", "x"])
    run(task, ["--data", "x", "--setting", "gpu"])
    run(task, ["--epochs", "3", "--setting=gpu", "--data", "x", "--batch-size", "7"])
    usual, gpu, told = given
    assert usual == task.config(data="x")
    assert gpu == task.config(data="x", setting="gpu", **task.gpu) != usual
    assert told == dataclasses.replace(gpu, epochs=3, batch_size=7)


def test_arguments_of_the_optimizer_add_to_those_of_the_recipe(
    questions: Path, tmp_path: Path, handed_to_fit: Callable[..., Any]
) -> None:
    given = ["--data", str(questions), "--output", str(tmp_path / "out"), "--device", "cpu"]
    recipe = functools.partial(run, classify_text.TASK)
    assert handed_to_fit(recipe, given)[1].optimizer_arguments == {"fused": True}
    given += ["--optimizer-arguments", "eps", "1e-6"]
    assert handed_to_fit(recipe, given)[1].optimizer_arguments == {"fused": True, "eps": 1e-6}


def test_fields_that_cannot_be(refused: Callable[..., str]) -> None:
    assert "name your data with --data" in refused(spot)
    assert "--seeds is empty" in refused(spot, "--data", "x", "--seeds")
    assert "give files behind the model" in refused(spot, "--predict", "model")
    assert "--freeze keeps what --weights gives" in refused(spot, "--data", "x", "--freeze")
    assert "--least-steps is -1" in refused(spot, "--data", "x", "--least-steps", "-1")
    assert "learning_rate=-1.0 is out of range" in refused(
        spot, "--data", "x", "--learning-rate=-1"
    )


# Few items


def test_a_training_is_as_long_as_its_items_take() -> None:
    said: list[str] = []
    world = train.World(0, 1, torch.device("cpu"))
    config = spot_keywords.Config(data="x", epochs=10, batch_size=64, least_steps=400)

    def fitted(items: int, most: int | None = None, world: train.World = world) -> Recipe:
        made: Any = SimpleNamespace(train=range(items), most_epochs=most)
        return fitting(config, made, world, said.append)

    few = fitted(12)
    assert few.epochs == 200  # two updates of an epoch
    assert (few.evaluate_every, few.checkpoint_every) == (20, 20)  # as often as before
    assert said == ["200 epochs: 10 of 12 items are too few updates (--least-steps)"]
    assert fitted(50_000) is config and fitted(50_000, 10) is config and len(said) == 1
    assert fitted(12, world=dataclasses.replace(world, size=2)).epochs == 400  # an update each
    assert fitted(12, 4).epochs == 200  # however long they are
    said.clear()
    assert fitted(50_000, 4).epochs == 4
    assert said == ["4 epochs: 10 of texts so long are not worth their time (--most-tokens)"]
    assert fitted(64 * 60, 4).epochs == 7  # for 400 updates


# Signals


def test_a_stopped_training_goes_on_as_it_says(
    recordings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--data", recordings, *SPEECH, "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "it", *map(str, given)])

    def fit(model: Any, training: Any, validation: Any, options: train.Options) -> train.Result:
        if options.seed == 1:
            signal.raise_signal(signal.SIGTERM)
        return train.fit(model, training, validation, options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(_recipe, "fit", fit)
        spot(*given)
    assert stop.value.code == 143
    said = capsys.readouterr().err.splitlines()
    assert (
        "stopped by SIGTERM: checkpoints and finished seeds are kept in runs/spot_key" in said[-2]
    )
    command = shlex.split(said[-1])[3:]
    (folder,) = Path("runs/spot_keywords").iterdir()
    assert command == [*map(str, given), "--resume", "--output", str(folder)]
    trained = (folder / "seed-0" / "log.jsonl").read_text()
    spot(*command)
    assert (folder / "seed-0" / "log.jsonl").read_text() == trained
    assert set(json.loads((folder / "results.json").read_text())) >= {"seed 0", "seed 1"}


def test_a_signal_while_training_ends_in_a_sentence(recordings: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasks.speech.spot_keywords", "--data", str(recordings)]
    command += [*SPEECH, "--epochs", "100000", "--output", str(tmp_path / "out")]
    with (tmp_path / "error").open("w+") as error:
        started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=error)
        try:
            until = time.monotonic() + 300
            while not list((tmp_path / "out").rglob("checkpoint*")):
                assert started.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            started.send_signal(signal.SIGHUP)
            assert started.wait(timeout=60) == 129
        finally:
            started.kill()
    lines = (tmp_path / "error").read_text().splitlines()
    assert lines[-2].startswith("stopped by SIGHUP: checkpoints and finished seeds are kept in")
    assert lines[-1].endswith("--resume") and "Traceback" not in " ".join(lines)


# Several processes


def test_only_the_first_process_prints_and_saves(
    recordings: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = train.World(1, 1, torch.device("cpu"))
    monkeypatch.setattr(train.World, "join", lambda device="auto": second)
    spot("--data", recordings, "--output", tmp_path / "out", *SPEECH)
    assert tuple(capfd.readouterr()) == ("", "")
    assert not list((tmp_path / "out").rglob("model.safetensors"))
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.slow
def test_two_processes_tell_one_result(recordings: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "29617", "-m", "tasks.speech.spot_keywords"]
    command += ["--data", str(recordings), "--output", str(tmp_path / "out"), *SPEECH]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("tones, test split") == ended.stdout.count("the baseline …") == 1
    assert ended.stderr.count("epoch 2/2") == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())["seed 0"]
    model = ResidualForAudioClassification.from_pretrained(tmp_path / "out" / "seed-0" / "model")
    config = spot_keywords.Config(data=str(recordings))
    splits = open_splits(str(recordings))
    assert splits.test is not None
    items = spot_keywords.items(config, splits.test, model.processor)
    assert train.evaluate(model, items) == results["metrics"]  # each row counted once
    assert sum(map(sum, results["confusion"])) == len(splits.test) == 8


# Saved models


def column(cells: list[Any], names: tuple[str, ...] | None = None, **more: Any) -> Column:
    return Column("label", cells, "pets", "row {}".format, names, **more)


@pytest.mark.parametrize(
    "given",
    [
        column(["dog", "cat", "dog"]),
        column([0, 1, 0], ("dog", "cat", "cow")),  # the column's type names its numbers
        column([0.0, 1.0, 0.0], listed=("dog", "cat")),  # a list beside the data does
    ],
)
def test_classes_are_found_by_their_names(given: Column) -> None:
    known = KnownClasses(("cat", "dog")).learn(given)
    assert known.values(given).tolist() == [1, 0, 1]


def test_a_number_without_a_name_is_its_own() -> None:
    given = column([7, 3])
    assert KnownClasses(("3", "5", "7")).learn(given).values(given).tolist() == [2, 0]


@pytest.mark.parametrize("cell", ["cow", None, 7])
def test_a_class_that_the_model_lacks_is_refused(cell: Any) -> None:
    given = column(["dog", cell])
    with pytest.raises(InputError, match=r"row 1 (is of the class '(cow|7)'|has no label)"):
        KnownClasses(("cat", "dog")).learn(given).values(given)


@pytest.fixture
def saved(recordings: Path, tmp_path: Path) -> Path:
    """A model that was trained on `recordings`: its classes are high and low."""
    config = spot_keywords.Config(
        data=str(recordings),
        output=tmp_path / "out",
        spec=TINY,
        epochs=8,
        least_steps=64,
        augment=False,
        device="cpu",
        progress=False,
    )
    begin(spot_keywords.TASK, config)
    return tmp_path / "out" / "seed-0" / "model"


def test_a_cross_validation_goes_on_where_it_was(
    recordings: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    alone = recordings / "train"
    given = ["--data", alone, *SPEECH, "--output", tmp_path / "out"]
    spot(*given, "--folds", "2")
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    parts = [tmp_path / "out" / "seed-0" / f"part-{number}" for number in (1, 2)]
    written = [(part / "log.jsonl").read_text() for part in parts]
    shutil.rmtree(parts[1])
    spot(*given, "--folds", "2", "--resume")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == first
    assert sum(map(sum, first["seed 0"]["confusion"])) == 16  # each row once
    again = [(part / "log.jsonl").read_text() for part in parts]
    assert again[0] == written[0] and again[1]
    assert "is for data without a test split" in refused(
        spot, "--data", recordings, *SPEECH, "--folds", "2", "--output", tmp_path / "other"
    )
    joined = tmp_path / "joined"
    spot("--data", recordings, *SPEECH, "--folds", "2", "--join", "--output", joined)
    every = json.loads((joined / "results.json").read_text())
    rows = len(list(recordings.rglob("*.*")))
    assert rows > 16 and sum(map(sum, every["seed 0"]["confusion"])) == rows
    assert "in how many parts" in refused(spot, "--data", recordings, "--join")
    assert "--folds is 1" in refused(spot, *given, "--folds", "1")
    assert "more than the rows" in refused(
        spot, "--data", alone, *SPEECH, "--folds", "17", "--output", tmp_path / "third"
    )


def test_a_saved_model_is_measured(
    recordings: Path,
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:
    results = json.loads((tmp_path / "out" / "results.json").read_text())["seed 0"]
    assert results["metrics"]["accuracy"] == 1.0  # two tones: else order would not show below
    capsys.readouterr()
    spot("--evaluate", saved, "--data", recordings)
    printed = capsys.readouterr().out
    assert "on 8 items of" in printed and "[test]" in printed  # not the others
    assert re.search(r"\| +100\.0 % \| +100\.0 % \|", printed)
    assert re.search(r"\| low +\| +100\.0 % \| +100\.0 % \| +100\.0 % \| +4 \|", printed)

    table = pandas.DataFrame(
        {"file_name": ["low/0.wav", "high/0.wav", "low/2.wav"], "label": [0, 1, 0]}
    )
    beside = recordings / "test"
    table.to_csv(beside / "metadata.csv", index=False)
    (beside / "labels.json").write_text('["low", "high"]')  # the other way round
    spot("--evaluate", saved, "--data", beside)
    printed = capsys.readouterr().out
    assert "on 3 items of" in printed and re.search(r"\| +100\.0 % \| +100\.0 % \|", printed)

    table["label"] = ["low", "high", "hum"]
    table.to_csv(beside / "metadata.csv", index=False)
    error = refused(spot, "--evaluate", saved, "--data", beside)
    assert "is of the class 'hum', which the model does not know, only 'high', 'low'" in error
    with pytest.warns(UserWarning, match="1 of the 3 rows .* they are left out"):
        spot("--evaluate", saved, "--data", beside, "--on-bad", "skip")
    assert "on 2 items of" in capsys.readouterr().out
    assert "nowhere" in refused(spot, "--evaluate", tmp_path / "nowhere", "--data", beside)
    other = functools.partial(run, classify_images.TASK)
    error = refused(other, ["--evaluate", str(saved), "--data", str(beside)])
    assert "is no model of classify_images" in error


def test_a_saved_model_names_the_classes_of_files(
    recordings: Path,
    saved: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:
    low, high = recordings / "test" / "low" / "0.wav", recordings / "test" / "high" / "1.flac"
    capsys.readouterr()
    spot("--predict", saved, low, high)
    lines = capsys.readouterr().out.splitlines()
    assert re.search(rf"{low} +\| low [\d.]+ % +\| high [\d.]+ %", lines[2])
    assert re.search(rf"{high} +\| high [\d.]+ %", lines[3])

    high.write_bytes(b"no sound")
    error = refused(spot, "--predict", saved, low, high)
    assert f"{high} cannot be read" in error and "--on-bad skip" in error
    spot("--predict", saved, low, high, "--on-bad", "skip")
    printed = capsys.readouterr().out
    assert "| low" in printed
    assert f"left out 1 bad item, the first: {high}" in " ".join(printed.split())
    assert "missing.wav cannot be read" in refused(spot, "--predict", saved, "missing.wav")

    spot("--predict", saved, low.parent)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 4 and all("low/" in line for line in lines[2:])
    (saved / "empty").mkdir()
    error = refused(spot, "--predict", saved, saved / "empty")
    assert "empty holds no file to answer; expected .wav" in error
