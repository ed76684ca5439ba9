"""`fit` and `evaluate`. Run as a program, this file is a training that kills itself."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from resbackbones import train as training
from resbackbones.data import Items
from resbackbones.errors import InputError
from resbackbones.train import Diverged, Options, StillAtChance, evaluate, fit


class TinyConfig(PreTrainedConfig):
    model_type = "tiny"


class TinyForImageClassification(PreTrainedModel):
    """A convolution, batch norm, dropout and a linear map, on `(B, 1, 4, 4)`."""

    config_class = TinyConfig
    label_smoothing = 0.0

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(64, config.num_labels or 2),
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    # **anything makes the Trainer take the loss for one that divides by the update's items.
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **anything: Any
    ) -> ImageClassifierOutputWithNoAttention:
        assert not anything
        logits = self.net(pixel_values).float()
        loss = None
        if labels is not None:
            smoothing = self.label_smoothing if self.training else 0.0
            loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    @staticmethod
    def compute_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        loss = functional.cross_entropy(torch.as_tensor(logits), torch.as_tensor(labels))
        return {"accuracy": float((logits.argmax(-1) == labels).mean()), "loss": loss.item()}


class Blobs(Items):
    """Two classes of 4x4 images that differ in their mean, with noise drawn anew each epoch."""

    def __init__(self, count: int = 50, noise: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed)
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 2
        self.images = 0.5 * torch.randn(count, 1, 4, 4, generator=generator)
        self.images += self.labels[:, None, None, None]
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        noise = self.draws(rows, 16).view(-1, 1, 4, 4) - 0.5
        picked = self.images[torch.as_tensor(rows)]
        return {
            "pixel_values": picked + self.noise * noise,
            "labels": self.labels[torch.as_tensor(rows)],
        }


def tiny(seed: int = 0, num_labels: int = 2) -> Any:
    torch.manual_seed(seed)
    return TinyForImageClassification(TinyConfig(num_labels=num_labels))


def without_chance(seed: int = 0) -> Any:
    """A model whose items do not depend on each other, in training too."""
    model = tiny(seed)
    model.net[1], model.net[3] = nn.Identity(), nn.Identity()
    return model


QUICK = Options(
    epochs=3, batch_size=8, learning_rate=0.01, precision="float32", progress=False, device="cpu"
)


def options(**changes: Any) -> Options:
    return dataclasses.replace(QUICK, **changes)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    """Bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def entries(result: training.Result) -> list[dict[str, float]]:
    """A history without what no two runs share."""
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in result.history]


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def one_sentence(error: pytest.ExceptionInfo[Any]) -> str:
    text = str(error.value)
    assert "\n" not in text and not text.endswith(".") and ". " not in text and ";" in text
    return text


# Options


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("learning_rate", -0.1, "a number from 0 up"),
        ("learning_rate", math.nan, "a number from 0 up"),
        ("learning_rate", "fast", "a number from 0 up"),
        ("weight_decay", -1, "a number from 0 up"),
        ("clip", math.inf, "a number from 0 up"),
        ("warmup", 1.5, "a number from 0 to 1"),
        ("label_smoothing", -0.1, "a number from 0 to 1"),
        ("chance_share", 2, "a number from 0 to 1"),
        ("epochs", 0, "a whole number from 1 up"),
        ("epochs", 1.5, "a whole number from 1 up"),
        ("batch_size", None, "a whole number from 1 up"),
        ("accumulate", 0, "a whole number from 1 up"),
        ("patience", 0, "a whole number from 1 up"),
        ("evaluate_every", 0, "a whole number from 1 up"),
        ("evaluation_batch_size", 0, "a whole number from 1 up"),
        ("checkpoint_every", 0, "a whole number from 1 up"),
        ("checkpoint_steps", 0, "a whole number from 1 up"),
        ("seed", -1, "a whole number from 0 up"),
        ("workers", -1, "a whole number from 0 up"),
        ("optimizer", "adamv", "did you mean 'adamw'?"),
        ("optimizer", nn.Linear, "known: 'adamw', 'sgd'"),
        ("schedule", "cosin", "did you mean 'cosine'?"),
        ("precision", "bf16", "did you mean 'bfloat16'?"),
        ("keep", "bets", "did you mean 'best'?"),
        ("device", "gpu", "did you mean 'cpu'?"),
    ],
)
def test_bad_options_are_refused_by_name(name: str, value: object, said: str) -> None:
    with pytest.raises(InputError) as error:
        options(**{name: value})
    assert one_sentence(error).startswith(f"{name}={value!r} is ")
    assert said in str(error.value)


def test_options_are_a_command_line() -> None:
    line = "--optimizer sgd --optimizer-arguments momentum 0.8 --schedule one_cycle --warmup 0.2"
    given = tyro.cli(Options, args=line.split())
    assert given == Options(
        optimizer="sgd", optimizer_arguments={"momentum": 0.8}, schedule="one_cycle", warmup=0.2
    )


def test_what_cannot_be_trained_is_refused_before_it_starts(tmp_path: Path) -> None:
    data = Blobs()
    untouched = weights(tiny())

    def refused(*arguments: Any, **changes: Any) -> str:
        model = arguments[0] if isinstance(arguments[0], nn.Module) else tiny()
        with pytest.raises(InputError) as error:
            fit(model, *arguments[isinstance(arguments[0], nn.Module) :], options(**changes))
        assert all(torch.equal(weights(model)[name], untouched[name]) for name in untouched)
        return one_sentence(error)

    assert "nothing to train on" in refused(Blobs(0), None)
    assert "nothing to evaluate on" in refused(data, Blobs(0))
    assert "has no length" in refused(iter(data), None)
    assert "training items have no labels" in refused(WithoutLabels(), None)
    assert "evaluation items have no labels" in refused(data, WithoutLabels())
    assert "patience" in refused(data, None, patience=1)
    assert "resume" in refused(data, None, resume=True)
    assert "did you mean 'accuracy'?" in refused(data, data, metric="acuracy")
    assert "no_such" in refused(data, None, optimizer_arguments={"no_such": 1})
    (tmp_path / "file").touch()
    assert "cannot write" in refused(data, None, output=tmp_path / "file" / "folder")

    class Plain(TinyForImageClassification):
        compute_metrics: Any = property()  # hasattr is False

    model = Plain(TinyConfig(num_labels=2))
    model.load_state_dict(untouched)
    assert "Plain has no compute_metrics" in refused(model, data, data)
    if not torch.cuda.is_available():
        assert "no" in refused(data, None, device="cuda")


class WithoutLabels(Blobs):
    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return {"pixel_values": super().__getitems__(rows)["pixel_values"]}


def test_smoothing_needs_a_model_that_knows_it() -> None:
    class Unaware(TinyForImageClassification):
        label_smoothing: Any = property()

    with pytest.raises(InputError, match="has no label_smoothing to set"):
        fit(Unaware(TinyConfig(num_labels=2)), Blobs(), None, options(label_smoothing=0.1))


# A whole run


def test_a_run_learns_and_tells_what_it_did(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, held_out = tiny(), Blobs(40, seed=1)
    before = evaluate(model, held_out)
    result = fit(model, Blobs(), held_out, options(output=tmp_path, epochs=4))
    assert result.metrics["accuracy"] > 0.9 > before["accuracy"]
    assert result.metrics == evaluate(model, held_out)
    assert not model.training and result.parameters == 178
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4]
    assert [entry["step"] for entry in result.history] == [7, 14, 21, 28]
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert result.best == max(result.history, key=lambda entry: entry["accuracy"])
    assert 0 < result.history[0]["seconds"] < result.seconds == result.history[-1]["seconds"]
    assert log(tmp_path) == result.history
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["checkpoint-28", "curve.png", "log.jsonl"]
    assert capfd.readouterr() == ("", "")


def test_progress_is_a_line_an_epoch(capfd: pytest.CaptureFixture[str]) -> None:
    fit(tiny(), Blobs(), Blobs(), options(epochs=2, progress=True))
    shown = capfd.readouterr()
    lines = shown.err.strip().splitlines()
    assert shown.out == "" and len(lines) == 2
    assert lines[1].startswith("epoch 2/2  loss 0.")
    assert "  accuracy " in lines[1] and lines[1].endswith(" 0 s left")


def test_without_output_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tiny(), Blobs(), Blobs(), options(epochs=1))
    assert list(tmp_path.iterdir()) == []


def test_the_seed_decides() -> None:
    def trained(seed: int) -> nn.Module:
        model = tiny()
        fit(model, Blobs(), None, options(epochs=1, seed=seed))
        return model

    assert_equal(trained(1), trained(1))
    assert not torch.equal(trained(1).net[0].weight, trained(2).net[0].weight)  # type: ignore


def test_without_evaluation_the_last_weights_stay() -> None:
    result = fit(tiny(), Blobs(), None, options())
    assert result.metrics == {} and result.best == result.history[-1]
    assert "accuracy" not in result.best


class Sliding(TinyForImageClassification):
    """Its accuracy is told by a script, one value an evaluation (the first is the trial)."""

    script: Iterator[float]

    def compute_metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:  # type: ignore[override]
        return {"accuracy": next(self.script), "count": float(len(labels))}


def sliding(*values: float) -> Any:
    torch.manual_seed(0)
    model = Sliding(TinyConfig(num_labels=2))
    model.script = iter([0.0, *values])
    return model


@pytest.mark.parametrize(
    ("keep", "higher_is_better", "epoch"),
    [("best", True, 2), ("best", False, 3), ("last", True, 4)],
)
def test_the_kept_weights_are_those_of_the_kept_epoch(
    keep: Any, higher_is_better: bool, epoch: int
) -> None:
    model, shorter = sliding(0.5, 0.7, 0.4, 0.7), sliding(0.5, 0.7, 0.4, 0.7)
    given = options(epochs=4, schedule="constant", keep=keep, higher_is_better=higher_is_better)
    result = fit(model, Blobs(), Blobs(), given)
    fit(shorter, Blobs(), Blobs(), dataclasses.replace(given, epochs=epoch, keep="last"))
    assert_equal(model, shorter)
    assert result.metrics["accuracy"] == result.history[epoch - 1]["accuracy"]
    assert result.best["epoch"] == (2 if higher_is_better else 3)


def test_evaluations_can_be_rarer() -> None:
    model = sliding(0.1, 0.2, 0.3)
    result = fit(model, Blobs(), Blobs(), options(epochs=5, evaluate_every=2))
    evaluated = [entry["epoch"] for entry in result.history if "accuracy" in entry]
    assert evaluated == [2, 4, 5]


def test_patience_ends_a_run(tmp_path: Path) -> None:
    given = options(output=tmp_path, epochs=9, patience=2)
    model = sliding(0.5, 0.7, 0.6, 0.7, 0.9)
    result = fit(model, Blobs(), Blobs(), given)
    assert [entry["accuracy"] for entry in result.history] == [0.5, 0.7, 0.6, 0.7]
    # A finished run is finished, and is told again as it was.
    again = sliding()
    assert fit(again, Blobs(), Blobs(), dataclasses.replace(given, resume=True)) == result
    assert_equal(model, again)
    assert len(log(tmp_path)) == 4 and checkpoints(tmp_path) == ["checkpoint-28"]


# Killed and resumed


RUN = options(
    epochs=4,
    accumulate=2,  # 25 batches of 2, so that an epoch's last update has one batch
    batch_size=2,
    checkpoint_steps=4,
    optimizer="sgd",
    learning_rate=0.05,
    schedule="one_cycle",
    weight_decay=0.01,
    clip=1.0,
    label_smoothing=0.1,
)


class Interrupted(Exception):
    pass


class Interrupting(Blobs):
    """Calls something as a batch of an epoch is fetched."""

    def __init__(self, at: tuple[int, int] | None, then: Callable[[], Any]) -> None:
        super().__init__()
        self.at, self.then, self.batches = at, then, -1

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.batches = -1

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        self.batches += 1
        if (self.epoch, self.batches) == self.at:
            self.then()
        return super().__getitems__(rows)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, where: str) -> None:
    """Train until the kill: fetching a batch ("1,17"), or writing the checkpoint of a step ("20").
    "two": be one of two processes that train to the end."""
    given = dataclasses.replace(RUN, output=folder, resume=True)
    if where == "two":
        fit(without_chance(), Blobs(48), Blobs(seed=1), two_processes(folder, batch_size=8))
    elif where.isdigit():
        save = torch.save

        def save_half(content: Any, path: Any) -> None:
            save(content, path)
            if f"checkpoint-{where}" in str(path) and Path(path).name == "optimizer.pt":
                kill()

        torch.save = save_half
        fit(tiny(), Blobs(), Blobs(seed=1), given)
    else:
        epoch, batch = map(int, where.split(","))
        fit(tiny(), Interrupting((epoch, batch), kill), Blobs(seed=1), given)


def two_processes(folder: Path, batch_size: int) -> Options:
    return sgd(epochs=3, batch_size=batch_size, keep="last", output=folder)


def start(folder: Path, where: str, *launcher: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, *launcher, __file__, str(folder), where]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def run_until_killed(folder: Path, where: str) -> None:
    done = start(folder, where, "-W", "error")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stderr == "" and done.stdout == ""


def test_a_run_killed_three_times_ends_like_the_one_that_was_not(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    # 13 updates an epoch. In epoch 0, after the checkpoint of update 8:
    run_until_killed(folder, "0,20")
    assert checkpoints(folder) == ["checkpoint-8"] and log(folder) == []
    # In epoch 1, while the checkpoint of update 20 is written: what is there is no checkpoint.
    run_until_killed(folder, "20")
    assert checkpoints(folder) == ["checkpoint-16"] and len(log(folder)) == 1
    assert list((folder / ".part").glob("*/optimizer.pt"))
    # In epoch 2, as it starts: the last checkpoint is that of an epoch's end.
    run_until_killed(folder, "2,1")
    assert checkpoints(folder) == ["checkpoint-26"] and len(log(folder)) == 2
    resumed, whole = tiny(seed=7), tiny()  # weights come from the checkpoint
    given = dataclasses.replace(RUN, output=folder, resume=True)
    result = fit(resumed, Blobs(), Blobs(seed=1), given)
    expected = fit(whole, Blobs(), Blobs(seed=1), RUN)
    assert_equal(resumed, whole)
    assert entries(result) == entries(expected)
    assert result.metrics == expected.metrics
    assert log(folder) == result.history
    assert not (folder / ".part").exists()


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        ((0, 2), {}),  # before any checkpoint
        ((1, 5), {"checkpoint_steps": 2, "optimizer": "adamw", "schedule": "cosine"}),
        ((2, 0), {"checkpoint_every": 2, "checkpoint_steps": None}),
        ((2, 4), {"checkpoint_steps": 3, "precision": "bfloat16", "accumulate": 1}),
        ((2, 3), {"keep": "last", "optimizer": torch.optim.NAdam, "clip": 0.0}),
    ],
)
def test_an_interrupted_run_resumes_exactly(
    tmp_path: Path, at: tuple[int, int], changes: dict[str, Any]
) -> None:
    def stop() -> None:
        raise Interrupted

    given = dataclasses.replace(RUN, batch_size=8, output=tmp_path / "cut", resume=True, **changes)
    with pytest.raises(Interrupted):
        fit(tiny(), Interrupting(at, stop), Blobs(seed=1), given)
    resumed, whole = tiny(), tiny()
    result = fit(resumed, Blobs(), Blobs(seed=1), given)
    expected = fit(
        whole, Blobs(), Blobs(seed=1), dataclasses.replace(given, output=tmp_path / "whole")
    )
    assert_equal(resumed, whole)
    assert entries(result) == entries(expected)
    assert log(tmp_path / "cut") == result.history


def test_the_best_epoch_and_the_patience_survive(tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted

    given = options(output=tmp_path, epochs=9, patience=3, resume=True)
    cut = sliding(0.5, 0.7, 0.6)
    with pytest.raises(Interrupted):
        fit(cut, Interrupting((3, 1), stop), Blobs(), given)
    resumed = sliding(0.6, 0.65)
    result = fit(resumed, Blobs(), Blobs(), given)
    assert [entry["accuracy"] for entry in result.history] == [0.5, 0.7, 0.6, 0.6, 0.65]
    assert result.best["epoch"] == 2 and result.metrics["accuracy"] == 0.7


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    given = options(output=tmp_path, epochs=1)
    fit(tiny(), Blobs(), None, given)
    with pytest.raises(InputError, match="holds a run already; resume it") as error:
        fit(tiny(), Blobs(), None, given)
    one_sentence(error)
    resume = dataclasses.replace(given, resume=True)
    for wrong, said in (
        (dataclasses.replace(resume, learning_rate=0.5), "learning_rate=0.01, not 0.5"),
        (dataclasses.replace(resume, optimizer=torch.optim.SGD), "optimizer='adamw', not"),
    ):
        with pytest.raises(InputError, match=said) as error:
            fit(tiny(), Blobs(), None, wrong)
        one_sentence(error)
    with pytest.raises(InputError, match="training items=50, not 40"):
        fit(tiny(), Blobs(40), None, resume)
    with pytest.raises(InputError, match="parameters="):
        fit(tiny(num_labels=3), Blobs(), None, resume)
    assert len(log(tmp_path)) == 1


# What goes wrong on the way


class Poisoned(Blobs):
    """From one epoch on, an input is infinite."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.from_epoch = epoch

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        batch = super().__getitems__(rows)
        if self.epoch >= self.from_epoch:
            batch["pixel_values"][0] = math.inf
        return batch


class LastUpdateTooLarge(torch.optim.SGD):
    """Spoils the weights in its last update, which no training loss sees."""

    updates = itertools.count(1)

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        if next(self.updates) == 21:
            with torch.no_grad():
                self.param_groups[0]["params"][0].mul_(math.nan)


def assert_good(folder: Path, name: str) -> None:
    assert checkpoints(folder) == [name]
    loaded = TinyForImageClassification.from_pretrained(folder / name)
    assert all(value.isfinite().all() for value in loaded.state_dict().values())


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged) as error:
        fit(tiny(), Poisoned(2), None, options(output=tmp_path, epochs=9, checkpoint_steps=5))
    said = one_sentence(error)
    assert "the training loss became nan between steps 14 and " in said
    assert "learning rate 0.00" in said and "lower learning_rate" in said
    assert "checkpoint-14 is good" in said
    assert_good(tmp_path, "checkpoint-14")
    assert len(log(tmp_path)) == 2


def test_a_learning_rate_far_too_high_is_told() -> None:
    with pytest.raises(Diverged, match=r"at learning rate 1e\+30; try a lower learning_rate"):
        fit(
            without_chance(),
            Blobs(),
            Blobs(),
            options(optimizer="sgd", learning_rate=1e30, schedule="constant"),
        )


def test_no_checkpoint_holds_a_weight_that_is_no_number(tmp_path: Path) -> None:
    given = options(output=tmp_path, optimizer=LastUpdateTooLarge)
    with pytest.raises(Diverged, match="a weight was no finite number after step 21") as error:
        fit(tiny(), Blobs(), None, given)
    one_sentence(error)
    assert_good(tmp_path, "checkpoint-14")


def test_a_metric_that_is_no_number_is_no_best(tmp_path: Path) -> None:
    result = fit(sliding(math.nan, 0.4, math.nan), Blobs(), Blobs(), options(output=tmp_path))
    assert result.best["epoch"] == 2 and result.metrics["accuracy"] == 0.4
    assert [entry["accuracy"] for entry in log(tmp_path)] == [None, 0.4, None]  # JSON has no NaN


def test_guessing_is_noticed() -> None:
    with pytest.warns(StillAtChance) as warned:
        fit(tiny(), Blobs(), None, options(epochs=10, learning_rate=0.0, chance_share=0.25))
    (warning,) = warned
    said = str(warning.message)
    assert said.startswith("after 50 of 70 steps the training loss is ") and "(0.693)" in said
    assert warning.category is StillAtChance and "\n" not in said


def test_a_single_epoch_that_only_guesses_is_noticed_within_it() -> None:
    with pytest.warns(StillAtChance, match="after 50 of 125 steps"):
        fit(tiny(), Blobs(1000), None, options(epochs=1, learning_rate=0.0, chance_share=0.4))


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: what a full disk does, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 2_000, 8_000])  # the log, the weights, the optimizer
def test_a_full_disk_is_told_and_the_checkpoint_before_it_stays(tmp_path: Path, size: int) -> None:
    stack = contextlib.ExitStack()
    data = Interrupting((1, 0), lambda: stack.enter_context(file_size_limit(size)))
    with stack, pytest.raises(InputError, match="cannot write") as error:
        fit(tiny(), data, Blobs(), options(output=tmp_path))
    one_sentence(error)
    assert checkpoints(tmp_path) == ["checkpoint-7"]
    assert not (tmp_path / ".part").exists()
    resumed, whole = tiny(), tiny()
    fit(resumed, Blobs(), Blobs(), options(output=tmp_path, resume=True))
    fit(whole, Blobs(), Blobs(), options())
    assert_equal(resumed, whole)
    assert len(log(tmp_path)) == 3


# Updates


def sgd(**changes: Any) -> Options:
    plain: dict[str, Any] = {"optimizer": torch.optim.SGD, "schedule": "constant"}
    return options(**(plain | {"epochs": 1, "learning_rate": 0.1} | changes))


@pytest.mark.parametrize("count", [32, 35, 41])
def test_accumulated_batches_make_the_update_of_one_large_batch(count: int) -> None:
    """41: batches of 7 and 6 items in one update; the last one has fewer batches."""
    small, large = without_chance(), without_chance()
    data = Blobs(count)
    result = fit(small, data, None, sgd(batch_size=7, accumulate=math.ceil(count / 7)))
    expected = fit(large, data, None, sgd(batch_size=count))
    assert [entry["step"] for entry in result.history] == [1]
    for name, value in large.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert result.history[0]["train_loss"] == pytest.approx(expected.history[0]["train_loss"])


def test_two_batches_of_8_are_one_of_16_in_every_update() -> None:
    small, large = without_chance(), without_chance()
    fit(small, Blobs(64), None, sgd(batch_size=8, accumulate=2))
    fit(large, Blobs(64), None, sgd(batch_size=16))
    for name, value in large.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_the_last_update_divides_by_its_own_items() -> None:
    model, data = without_chance(), Blobs(48)
    batches = training._Batches(48, 16, seed=0)
    fit(model, data, None, sgd(batch_size=16, accumulate=2))
    expected = without_chance()
    first, second, third = batches
    for rows in (first + second, third):
        expected(**data.__getitems__(rows)).loss.backward()
        with torch.no_grad():
            for parameter in expected.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_only_weights_decay() -> None:
    model = tiny()
    model.scale = nn.Parameter(torch.ones(4, 1, 1))
    before = weights(model)
    frozen = sgd(learning_rate=1e-20, weight_decay=1e19, batch_size=50)  # no gradient shows
    fit(model, Blobs(), None, frozen)
    decayed = [k for k, v in before.items() if not v.allclose(model.state_dict()[k], rtol=1e-3)]
    assert [k for k in decayed if "running" not in k and "tracked" not in k] == [
        "net.0.weight",
        "net.5.weight",
    ]
    torch.testing.assert_close(model.net[5].weight, 0.9 * before["net.5.weight"])


def test_the_norm_of_the_gradient_is_clipped() -> None:
    model = without_chance()
    before = weights(model)
    fit(model, Blobs(), None, sgd(batch_size=50, learning_rate=1.0, clip=0.01))
    moved = [model.state_dict()[name] - value for name, value in before.items()]
    length = torch.stack([each.square().sum() for each in moved]).sum().sqrt()
    assert length.item() == pytest.approx(0.01, rel=1e-3)


def rates(schedule: str, steps: int = 100, **changes: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    made = training._schedule(optimizer, options(schedule=schedule, **changes), steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


def test_the_schedules_have_their_shapes() -> None:
    cosine, linear = rates("cosine"), rates("linear", warmup=0.1)
    assert max(cosine) == cosine[5] == 2.0 and 0 < cosine[0] < cosine[4] < 2.0
    assert cosine[52] == pytest.approx(1.0, abs=0.03) and 0 < cosine[-1] < 0.01
    assert linear[10] == 2.0 and linear[55] == pytest.approx(1.0) and linear[0] == 2 / 11
    assert rates("constant") == [2.0] * 100
    assert rates("constant", warmup=0.02)[:3] == pytest.approx([2 / 3, 4 / 3, 2])
    for steps in range(1, 30):
        for schedule in training.WARMUP:
            for warmup in (None, 0.0, 0.1, 1.0):
                found = rates(schedule, steps, warmup=warmup)
                assert all(0 < rate <= 2.0 for rate in found)


def test_one_cycle_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2.0, total_steps=1000, cycle_momentum=False
    )
    expected = []
    for _ in range(1000):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates("one_cycle", 1000) == pytest.approx(expected, abs=0.01)


def test_the_history_tells_the_rate_of_each_epoch() -> None:
    result = fit(tiny(), Blobs(), None, options(epochs=2, schedule="linear", warmup=0.0))
    assert [e["learning_rate"] for e in result.history] == pytest.approx([0.01 * 8 / 14, 0.01 / 14])


# Data


def test_an_epoch_sees_every_row_once_in_batches_of_equal_size() -> None:
    batches = training._Batches(33, 16, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        epochs.append(list(batches))
        assert [len(batch) for batch in epochs[-1]] == [11, 11, 11] and len(batches) == 3
        assert sorted(itertools.chain(*epochs[-1])) == list(range(33))
    assert epochs[0] == epochs[2] != epochs[1]
    other = list(training._Batches(33, 16, seed=2))
    batches.set_epoch(1)
    assert other not in epochs and list(batches) != other  # nor is it another epoch of this seed
    # A last batch of one item, and a set smaller than a batch.
    assert [len(batch) for batch in training._Batches(17, 16, 0)] == [9, 8]
    assert [len(batch) for batch in training._Batches(1, 16, 0)] == [1]


def test_processes_share_an_epoch_evenly() -> None:
    shares = [list(training._Batches(13, 2, 0, rank, 4)) for rank in range(4)]
    assert all([len(batch) for batch in share] == [2, 2] for share in shares)
    assert set(itertools.chain(*itertools.chain(*shares))) == set(range(13))


def test_a_last_batch_of_one_item_does_not_break_batch_norm() -> None:
    model = tiny()
    model.net[0].stride, model.net[5] = (4, 4), nn.Linear(4, 2)  # one position a channel
    fit(model, Blobs(17), None, options(batch_size=16, epochs=1))


def test_every_epoch_is_told_to_the_data(tmp_path: Path) -> None:
    class Told(Blobs):
        def set_epoch(self, epoch: int) -> None:
            super().set_epoch(epoch)
            told.append(epoch)

    told: list[int] = []
    fit(tiny(), Subset(Told(), range(40)), None, options(epochs=3))
    assert told == [0, 1, 2]


class OneByOne(Dataset):
    """An ordinary data set of items."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> dict[str, Any]:
        item = self.items[row]
        return {"pixel_values": item["pixel_values"].numpy(), "label": int(item["labels"])}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_items_one_by_one_train_like_whole_batches(workers: int) -> None:
    one, other = tiny(), tiny()
    data = Blobs(noise=0.0)
    first = fit(one, OneByOne(data), OneByOne(data), options(epochs=1, workers=workers))
    second = fit(other, data, data, options(epochs=1))
    assert_equal(one, other)
    assert first.metrics == second.metrics


# The model, during and after


class Spy(TinyForImageClassification):
    """Remembers how it was called: training, type of its features, label smoothing."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.seen: list[tuple[bool, torch.dtype, float]] = []

    def forward(self, pixel_values: Tensor, *arguments: Any, **options: Any) -> Any:
        feature = self.net[0](pixel_values)
        self.seen.append((self.training, feature.dtype, self.label_smoothing))
        return super().forward(pixel_values, *arguments, **options)


def spy() -> Any:
    return Spy(TinyConfig(num_labels=2))


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_training_computes_in_its_precision_and_evaluation_in_float32(precision: Any) -> None:
    model = spy()
    fit(model, Blobs(), Blobs(), options(precision=precision, epochs=1))
    low = precision == "bfloat16" or (precision == "auto" and training._has_bfloat16("cpu"))
    expected = torch.bfloat16 if low else torch.float32
    assert {dtype for mode, dtype, _ in model.seen if mode} == {expected}
    assert {dtype for mode, dtype, _ in model.seen if not mode} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.seen.clear()
    evaluate(model, Blobs(), precision="bfloat16")
    assert {dtype for _, dtype, _ in model.seen} == {torch.bfloat16}


def test_t9_no_step_asks_whether_its_loss_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name in ("isnan", "isinf"):  # on a GPU each would be waited for
        monkeypatch.setattr(torch, name, lambda x, name=name: asked.append(name) or x != x)
    fit(tiny(), Blobs(), options=Options(epochs=2, batch_size=8, progress=False))
    assert not asked


def test_the_model_is_left_as_it_was_but_for_its_weights() -> None:
    model = spy()
    model.label_smoothing = 0.3
    config = model.config.to_dict()
    fit(model, Blobs(), Blobs(), options(label_smoothing=0.1, epochs=1))
    assert {smoothing for mode, _, smoothing in model.seen if mode} == {0.1}
    assert model.label_smoothing == 0.3
    assert model.config.to_dict() == config
    assert "forward" not in vars(model)  # nothing was wrapped around it


@pytest.mark.parametrize("channels_last", [True, False])
def test_weights_lie_channels_last_while_training(channels_last: bool) -> None:
    model = tiny()
    model.net.insert(1, nn.Conv2d(4, 4, 3, padding=1))
    contiguous = set()

    class Looking(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            contiguous.add(model.net[1].weight.is_contiguous())
            return super().step(closure)

    given = options(optimizer=Looking, epochs=1, channels_last=channels_last)
    fit(model, Blobs(), None, given)
    assert contiguous == {not channels_last}
    assert model.net[1].weight.is_contiguous()


def test_evaluate_computes_what_the_model_says(tmp_path: Path) -> None:
    model, data = tiny(), Blobs(37)
    model.train()
    before = weights(model)
    state = torch.get_rng_state()
    found = evaluate(model, data, batch_size=5)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    batch = data.__getitems__(range(37))
    expected = model.compute_metrics(
        model(batch["pixel_values"]).logits.detach().numpy(), batch["labels"].numpy()
    )
    assert found == pytest.approx(expected)
    switch: Any = torch.backends.cudnn
    inside = []
    model.net.register_forward_hook(
        lambda *_: inside.append((switch.allow_tf32, switch.conv.fp32_precision))
    )
    before = switch.allow_tf32, switch.conv.fp32_precision, switch.rnn.fp32_precision
    evaluate(model, data)
    assert {allowed for allowed, _ in inside} == {False}
    assert {precision for _, precision in inside} <= {"none", "ieee"}
    assert (switch.allow_tf32, switch.conv.fp32_precision, switch.rnn.fp32_precision) == before
    with pytest.raises(InputError, match="precision='float16' is not known"):
        evaluate(model, data, precision="float16")  # type: ignore[arg-type]


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    done = start(two, "two", "-m", "torch.distributed.run", "--nproc-per-node", "2")
    assert done.returncode == 0, done.stderr
    model = without_chance()
    result = fit(model, Blobs(48), Blobs(seed=1), two_processes(one, batch_size=16))
    assert checkpoints(two) == checkpoints(one) == ["checkpoint-9"]
    found = load_file(two / "checkpoint-9" / "model.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(log(two), result.history, strict=True):
        del ours["seconds"], theirs["seconds"]
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.gpu
def test_a_gpu_trains_and_resumes(tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted

    given = options(
        device="cuda", precision="auto", output=tmp_path, checkpoint_steps=2, resume=True
    )
    with pytest.raises(Interrupted):
        fit(tiny(), Interrupting((1, 3), stop), Blobs(), given)
    model = tiny()
    result = fit(model, Blobs(), Blobs(), given)
    assert next(model.parameters()).device.type == "cuda"
    assert result.metrics["accuracy"] > 0.8
    assert result.metrics == evaluate(model, Blobs())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
