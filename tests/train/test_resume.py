"""A run that was cut off anywhere ends like the one that was not, and as no other."""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from resbackbones.data import Items, Shuffled
from resbackbones.errors import InputError
from resbackbones.train import Options, Result, checkpoint, fit
from tests.train.helpers import (
    RUN,
    Blobs,
    Interrupted,
    Interrupting,
    OneByOne,
    assert_equal,
    checkpoints,
    entries,
    kill,
    log,
    one_sentence,
    options,
    run_until_killed,
    tiny,
)

# Killed

AVERAGED = dataclasses.replace(RUN, moving_average=0.9)


def train_until_killed(folder: Path, where: str, workers: int = 0) -> None:
    """Where: fetching a batch ("1,5" is batch 5 of epoch 1), or what happens to a checkpoint and
    its step."""
    epoch, batch = map(int, where.split(",")) if "," in where else (-1, -1)
    what, _, step = where.partition(" ")
    save, write, replace, remove = (
        torch.save,
        Path.write_text,
        os.replace,
        checkpoint._remove,
    )
    steps: list[int] = []

    def due(of: str) -> bool:
        return what == of and steps[-1:] == [int(step)]

    def save_half(content: Any, file: Any) -> None:
        steps.append(content["state"]["step"])
        save(content, file)
        if due("state"):
            file.flush()
            os.truncate(file.name, file.tell() // 2)
            kill()

    def write_half(path: Path, text: str, **options: Any) -> int:
        if path.name == "manifest.json" and due("manifest"):
            write(path, text[: len(text) // 2], **options)
            kill()
        return write(path, text, **options)

    def replace_and_die(*paths: Any) -> None:
        replace(*paths)
        if due("rename"):
            kill()

    def remove_half(path: Path) -> None:
        if path.is_dir() and due("prune"):
            (path / "state.pt").unlink()
            kill()
        remove(path)

    torch.save, os.replace = save_half, replace_and_die
    Path.write_text = write_half  # type: ignore[method-assign,assignment]
    checkpoint._remove = remove_half
    given = dataclasses.replace(AVERAGED, output=folder, resume=True, workers=workers)
    fit(tiny(), Interrupting((epoch, batch), kill), Blobs(seed=1), given)


@pytest.fixture(scope="module")
def averaged() -> tuple[Any, Result]:
    """A run that nothing cut off."""
    model = tiny()
    return model, fit(model, Blobs(), Blobs(seed=1), AVERAGED)


def assert_ends_the_same(folder: Path, whole: tuple[Any, Result]) -> None:
    model = tiny(seed=7 if checkpoints(folder) else 0)  # weights come from the checkpoint
    given = dataclasses.replace(AVERAGED, output=folder, resume=True)
    result = fit(model, Blobs(), Blobs(seed=1), given)
    assert_equal(model, whole[0])
    assert entries(result) == entries(whole[1])
    assert result.metrics == whole[1].metrics and log(folder) == result.history
    assert not (folder / ".part").exists() and checkpoints(folder) == ["checkpoint-16"]


@pytest.mark.parametrize(
    ("where", "there"),
    [
        ("0,2", []),  # before any checkpoint
        ("1,5", [4, 6]),
        ("state 6", [3, 4]),
        ("manifest 6", [3, 4]),
        ("rename 6", [3, 4, 6]),
        ("prune 6", [3, 4, 6]),
    ],
)
def test_a_killed_run_ends_like_the_one_that_was_not(
    where: str, there: list[int], tmp_path: Path, averaged: tuple[Any, Result]
) -> None:
    run_until_killed(train_until_killed, tmp_path / "run", where)
    assert checkpoints(tmp_path / "run") == [f"checkpoint-{step}" for step in there]
    assert_ends_the_same(tmp_path / "run", averaged)


def test_so_does_one_killed_again_and_again(tmp_path: Path, averaged: tuple[Any, Result]) -> None:
    for where in ("1,3", "manifest 9", "2,3", "rename 12", "state 16"):
        run_until_killed(train_until_killed, tmp_path / "run", where)
    assert checkpoints(tmp_path / "run") == ["checkpoint-12", "checkpoint-15"]
    assert_ends_the_same(tmp_path / "run", averaged)


def test_so_does_one_with_workers(tmp_path: Path, averaged: tuple[Any, Result]) -> None:
    """They fetch ahead, and hold nothing of the folder when the run is killed."""
    run_until_killed(train_until_killed, tmp_path / "run", "rename 9", 2)
    assert checkpoints(tmp_path / "run") == ["checkpoint-6", "checkpoint-8", "checkpoint-9"]
    assert_ends_the_same(tmp_path / "run", averaged)


# Interrupted


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        ((1, 5), {"checkpoint_steps": 2, "optimizer": "adamw", "schedule": "cosine"}),
        ((2, 0), {"checkpoint_every": 2, "checkpoint_steps": None}),
        ((2, 4), {"checkpoint_steps": 3, "precision": "bfloat16", "accumulate": 1}),
        ((2, 3), {"keep": "last", "optimizer": torch.optim.NAdam, "clip": 0.0}),
        ((2, 3), {"workers": 1, "batch_size": 5, "accumulate": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_interrupted_run_resumes_exactly(
    tmp_path: Path, at: tuple[int, int], changes: dict[str, Any]
) -> None:
    given = dataclasses.replace(RUN, output=tmp_path / "cut", resume=True, **changes)
    with pytest.raises(Interrupted):
        alone = dataclasses.replace(given, workers=0)  # a batch's error is a worker's otherwise
        fit(tiny(), Interrupting(at), Blobs(seed=1), alone)
    resumed, whole = tiny(), tiny()
    result = fit(resumed, Blobs(), Blobs(seed=1), given)
    expected = fit(
        whole, Blobs(), Blobs(seed=1), dataclasses.replace(given, output=None, resume=False)
    )
    assert_equal(resumed, whole)
    assert entries(result) == entries(expected)
    assert log(tmp_path / "cut") == result.history


def test_a_data_set_may_draw_from_the_global_generators(tmp_path: Path) -> None:
    class Drawing(Interrupting):
        def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
            batch = super().__getitems__(rows)
            return batch | {"pixel_values": batch["pixel_values"] + torch.randn(1)}

    given = dataclasses.replace(RUN, output=tmp_path, resume=True)
    with pytest.raises(Interrupted):
        fit(tiny(), Drawing((1, 3)), None, given)
    resumed, whole = tiny(), tiny()
    fit(resumed, Drawing(None), None, given)
    fit(whole, Drawing(None), None, RUN)
    assert_equal(resumed, whole)


def test_gradients_from_before_take_no_part() -> None:
    model, clean = tiny(), tiny()
    batch = Blobs().__getitems__(range(8))
    model.eval()(**batch).loss.backward()
    fit(model, Blobs(), None, options(epochs=1))
    fit(clean, Blobs(), None, options(epochs=1))
    assert_equal(model, clean)


# What is no continuation


class Described(Items):
    """Items that say nothing of themselves but what every `Items` does."""

    def __init__(self, count: int = 50, seed: int = 0, augment: str = "flip") -> None:
        super().__init__(seed)
        self.augment, self.labels = augment, torch.arange(count) % 2

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return {"pixel_values": torch.ones(len(rows), 1, 4, 4), "labels": self.labels[list(rows)]}


class Wrapped:
    """Items changed on their way, by somebody who heard of no fingerprint."""

    def __init__(self, dataset: Any, factor: float) -> None:
        self.dataset, self.factor = dataset, factor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        item = self.dataset[row]
        return item | {"pixel_values": item["pixel_values"] * self.factor}


def relabelled() -> Described:
    data = Described()
    data.labels = data.labels.flip(0)
    return data


OTHERS: dict[str, tuple[str, Any, Any]] = {
    "seed of the items": ("training data", Described(), Described(seed=1)),
    "augmentation": ("training data", Described(), Described(augment="none")),
    "labels": ("training data", Described(), relabelled()),
    "content": ("training data", OneByOne(Blobs()), OneByOne(Blobs(seed=1))),
    "wrapper": ("training data", Wrapped(Blobs(), 1.0), Wrapped(Blobs(), 2.0)),
    "rows": (
        "training data",
        Subset(Blobs(2000), torch.arange(1500)),  # type: ignore[arg-type]
        Subset(Blobs(2000), torch.cat([torch.arange(700), 1 + torch.arange(700, 1500)])),  # type: ignore[arg-type]
    ),
    "a part of it": (
        "training data",
        ConcatDataset([Blobs(20), Blobs(30)]),
        ConcatDataset([Blobs(20), Blobs(30, seed=1)]),
    ),
    "number of items": ("training items=50, not 40", Blobs(), Blobs(40)),
}


def finished(folder: Path, data: Any = None, model: Any = None, **changes: Any) -> Options:
    given = options(output=folder, epochs=1, **changes)
    fit(model or tiny(), data or Blobs(), None, given)
    return dataclasses.replace(given, resume=True)


@pytest.mark.parametrize("name", OTHERS)
def test_other_data_are_no_continuation(name: str, tmp_path: Path) -> None:
    said, data, other = OTHERS[name]
    given = finished(tmp_path, data)
    with pytest.raises(InputError, match=f"has {said}") as error:
        fit(tiny(), other, None, given)
    assert "resume it with what it began with" in one_sentence(error)
    fit(tiny(), data, None, given)


def test_nor_is_another_evaluation(tmp_path: Path) -> None:
    given = finished(tmp_path)
    with pytest.raises(InputError, match="has evaluation data=None, not"):
        fit(tiny(), Blobs(), Blobs(), given)


@pytest.mark.parametrize(
    ("said", "other"),
    [
        ("parameters=178, not 243", lambda: tiny(num_labels=3)),
        ("the model's embedding_dropout=0.1, not 0.2", lambda: tiny(embedding_dropout=0.2)),
        ("the model's modules=", lambda: tiny(dropout=0.3, embedding_dropout=0.1)),
        ("model class='TinyForImageClassification', not 'Other'", lambda: other_class()),
    ],
)
def test_nor_is_another_model(said: str, other: Any, tmp_path: Path) -> None:
    given = finished(tmp_path, model=tiny(embedding_dropout=0.1))
    with pytest.raises(InputError, match=f"has {said}") as error:
        fit(other(), Blobs(), None, given)
    one_sentence(error)
    fit(tiny(embedding_dropout=0.1), Blobs(), None, given)


def test_what_differs_inside_is_named(tmp_path: Path) -> None:
    widths = [{"width": 8}, {"width": 16}], [{"width": 8}, {"width": 32}]
    given = finished(tmp_path, model=tiny(shape={"stages": widths[0]}))
    with pytest.raises(InputError, match=r"the model's shape.stages\[1\].width=16, not 32"):
        fit(tiny(shape={"stages": widths[1]}), Blobs(), None, given)


def other_class() -> nn.Module:
    class Other(type(tiny())):  # type: ignore[misc]
        pass

    return Other(tiny(embedding_dropout=0.1).config)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("learning_rate", 0.5, "learning_rate=0.01, not 0.5"),
        ("optimizer", torch.optim.SGD, "optimizer='adamw', not"),
        ("optimizer_arguments", {"eps": 1e-3}, "optimizer_arguments.eps=None, not 0.001"),
        ("moving_average", 0.5, "moving_average=0.0, not 0.5"),
        ("seed", 3, "seed=0, not 3"),
    ],
)
def test_nor_are_other_options(name: str, value: Any, said: str, tmp_path: Path) -> None:
    given = finished(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        fit(tiny(), Blobs(), None, dataclasses.replace(given, **{name: value}))
    one_sentence(error)


def test_nor_are_other_batches(tmp_path: Path) -> None:
    given = options(output=tmp_path, epochs=1)
    fit(tiny(), Blobs(), None, given, batches=Shuffled(50, 10))
    resume = dataclasses.replace(given, resume=True)
    fit(tiny(), Blobs(), None, resume, batches=Shuffled(50, 10))
    for batches in (Shuffled(50, 9), None):
        with pytest.raises(InputError, match="has batches='"):
            fit(tiny(), Blobs(), None, resume, batches=batches)


def test_what_changes_no_result_may_change(tmp_path: Path) -> None:
    given = finished(tmp_path)
    free: dict[str, Any] = {"evaluation_batch_size": 7, "checkpoint_steps": 3, "chance_share": 0.9}
    fit(tiny(), Blobs(), None, dataclasses.replace(given, **free))
    shutil.copytree(tmp_path, tmp_path / "moved")
    fit(tiny(), Blobs(), None, dataclasses.replace(given, output=tmp_path / "moved"))
