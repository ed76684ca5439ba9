"""Two processes, as `torchrun` starts them: what one would do, and exactly so again when killed."""

import dataclasses
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import resbackbones as rb
from resbackbones.errors import InputError
from resbackbones.train import World, evaluate, fit
from resbackbones.vision import ResidualForImageClassification
from tests.train.helpers import (
    RUN,
    Blobs,
    Interrupted,
    Interrupting,
    Sentences,
    assert_equal,
    checkpoints,
    entries,
    kill,
    language_model,
    log,
    options,
    sgd,
    tiny,
    together,
    weights,
    without_chance,
)

TOKENS: dict[str, Any] = {"epochs": 2, "learning_rate": 1.0, "metric": "loss", "keep": "last"}
SHARED = dataclasses.replace(RUN, batch_size=5, moving_average=0.9)


class Watched(Blobs):
    """Knows which rows were asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(count, seed=1)
        self.rows: list[int] = []

    def __getitems__(self, rows: Any) -> dict[str, Tensor]:
        self.rows += rows
        return super().__getitems__(rows)


def classifier_with_weights() -> ResidualForImageClassification:
    """Its loss is a weighted mean, and each process's items weigh otherwise."""
    torch.manual_seed(0)
    spec = rb.BackboneSpec((rb.Stage(4, 1),), stem=rb.Stem(4), in_channels=1, norm="layer")
    model = ResidualForImageClassification.build(spec, num_labels=2)
    model.class_weights = torch.tensor([0.5, 3.0])
    return model


def work(folder: Path) -> dict[str, Any]:
    """All that two processes are asked to do in these tests, but for being killed."""
    found: dict[str, Any] = {}
    words, blobs = language_model(), without_chance()
    fit(words, Sentences(), Sentences(), sgd(batch_size=8, **TOKENS))
    world = World.now()
    found["world"] = world.rank, world.size, world.device.type, torch.distributed.get_backend()
    found["words"] = weights(words)
    fit(blobs, Blobs(48), Blobs(seed=1), sgd(epochs=3, keep="last", output=folder / "sgd"))
    found["blobs"] = weights(blobs)
    weighted = classifier_with_weights()
    fit(weighted, Blobs(48), None, sgd(batch_size=8))
    found["weighted"] = weights(weighted)
    # A model of which every process drew its own, with batch norm, dropout and an average.
    model = tiny(seed=world.rank)
    result = fit(model, Blobs(), Blobs(seed=1), dataclasses.replace(SHARED, output=folder / "run"))
    found["model"], found["entries"], found["metrics"] = weights(model), entries(result), result
    for budget in (None, 30):
        found[f"words evaluated, {budget}"] = evaluate(
            language_model(), Sentences(), batch_size=5, budget=budget
        )
    watched = Watched(37)
    found["evaluated"] = evaluate(tiny(), watched, batch_size=5)
    found["rows"] = watched.rows[1:]  # the first shows what an item holds
    said = []
    for trial in ({"output": folder / "run"}, {"output": folder / "run", "resume": True}):
        try:
            fit(tiny(), Blobs(), None, options(**trial))
        except InputError as error:
            said.append(str(error))
    found["refused"] = said
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, *together(work, folder)


def test_both_join(two: Any) -> None:
    assert [found["world"] for found in two[1:]] == [
        (0, 2, "cpu", "gloo"),
        (1, 2, "cpu", "gloo"),
    ]


def test_their_updates_are_those_of_one_process(two: Any, tmp_path: Path) -> None:
    """Means over tokens included: each process has other numbers of them."""
    folder, first, second = two
    words, blobs = language_model(), without_chance()
    fit(words, Sentences(), Sentences(), sgd(batch_size=16, **TOKENS))
    result = fit(blobs, Blobs(48), Blobs(seed=1), sgd(epochs=3, keep="last", batch_size=16))
    weighted = classifier_with_weights()
    fit(weighted, Blobs(48), None, sgd(batch_size=16))
    for name, model in (("words", words), ("blobs", blobs), ("weighted", weighted)):
        for key, value in model.state_dict().items():
            assert torch.equal(first[name][key], second[name][key])
            torch.testing.assert_close(first[name][key], value, rtol=1e-6, atol=1e-6)
    assert checkpoints(folder / "sgd") == ["checkpoint-9"]
    for ours, theirs in zip(log(folder / "sgd"), result.history, strict=True):
        ours["seconds"] = theirs["seconds"]
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_they_hold_the_same_model_whatever_each_drew(two: Any) -> None:
    _, first, second = two
    assert [n for n, w in first["model"].items() if not torch.equal(w, second["model"][n])] == []
    assert first["entries"] == second["entries"]
    assert first["metrics"].metrics == second["metrics"].metrics


def test_they_evaluate_each_row_once_and_to_the_last_bit(two: Any) -> None:
    _, first, second = two
    assert sorted(first["rows"] + second["rows"]) == list(range(37))
    assert first["rows"] and second["rows"]
    alone = evaluate(tiny(), Watched(37), batch_size=5)
    assert first["evaluated"] == second["evaluated"] == alone
    for budget in (None, 30):
        name = f"words evaluated, {budget}"
        alone = evaluate(language_model(), Sentences(), batch_size=5, budget=budget)
        assert first[name] == second[name] == alone


def test_both_say_what_is_wrong(two: Any) -> None:
    _, first, second = two
    assert first["refused"] == second["refused"]
    assert "holds a run already" in first["refused"][0] and "has " in first["refused"][1]


def be_killed(folder: Path) -> None:
    """In the second batch of the third update of epoch 1: after the checkpoint of update 6."""
    given = dataclasses.replace(SHARED, output=folder, resume=True)
    fit(tiny(), Interrupting((1, 3), kill), Blobs(seed=1), given)


def go_on(folder: Path) -> tuple[dict[str, Tensor], Any, Any]:
    model = tiny(seed=7)
    result = fit(
        model, Blobs(), Blobs(seed=1), dataclasses.replace(SHARED, output=folder, resume=True)
    )
    return weights(model), entries(result), result.metrics


def test_killed_and_resumed_they_end_the_same(two: Any, tmp_path: Path) -> None:
    _, whole, _ = two
    folder = tmp_path / "run"
    assert together(be_killed, folder) == [None, None]
    # 50 rows in updates of 20: 3 per epoch; and within epoch 1 none yet.
    assert checkpoints(folder) == ["checkpoint-3"]
    shutil.copytree(folder, tmp_path / "alone")
    for found, history, metrics in together(go_on, folder):
        assert_equal(found, _with(whole["model"]))
        assert history == whole["entries"] and metrics == whole["metrics"].metrics
    # One process alone goes on with the next epoch, and says so.
    given = dataclasses.replace(SHARED, output=tmp_path / "alone", resume=True)
    with pytest.warns(UserWarning, match=r"had 2 process\(es\) and now has 1: .* epoch 2$"):
        result = fit(tiny(), Blobs(), Blobs(seed=1), given)
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4]
    assert checkpoints(tmp_path / "alone") == [f"checkpoint-{result.history[-1]['step']:.0f}"]


def _with(found: dict[str, Tensor]) -> Any:
    model = tiny()
    model.load_state_dict(found)
    return model


def test_in_another_world_what_is_left_of_an_epoch_is_left_out(tmp_path: Path) -> None:
    """From one process to two, whose updates are fewer: a lower number is the newer checkpoint."""
    given = dataclasses.replace(RUN, output=tmp_path, checkpoint_steps=1)
    with pytest.raises(Interrupted):
        fit(tiny(), Interrupting((1, 5)), Blobs(seed=1), given)
    assert checkpoints(tmp_path)[-1] == "checkpoint-6"
    sentence = (
        "the run had 1 process(es) and now has 2: it goes on with epoch 3; what was left of epoch "
        "2 is left out"
    )
    for (said, history), expected in zip(
        together(cross_over, tmp_path), ([sentence], []), strict=True
    ):
        assert said == expected
        assert [entry["epoch"] for entry in history] == [1, 3, 4]
    assert checkpoints(tmp_path) == ["checkpoint-8"]


def cross_over(folder: Path) -> tuple[list[str], Any]:
    given = dataclasses.replace(RUN, output=folder, checkpoint_steps=1, resume=True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = fit(tiny(), Blobs(), Blobs(seed=1), given)
    return [str(warning.message) for warning in warned], entries(result)


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    program = Path(__file__)
    done = subprocess.run(
        [*command, str(program), str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert checkpoints(tmp_path / "run") == ["checkpoint-12"]


if __name__ == "__main__":
    go_on(Path(sys.argv[1]))
