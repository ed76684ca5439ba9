"""`Options`: checked before anything starts."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from torch import nn

from resbackbones.errors import InputError
from resbackbones.train import Options, fit
from tests.train.helpers import (
    Blobs,
    Sentences,
    TinyConfig,
    TinyForImageClassification,
    WithoutLabels,
    language_model,
    one_sentence,
    options,
    tiny,
    weights,
)


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
        ("layer_decay", 1.1, "a number from 0 to 1"),
        ("moving_average", -0.5, "a number from 0 to 1"),
        ("epochs", 0, "a whole number from 1 up"),
        ("epochs", 1.5, "a whole number from 1 up"),
        ("batch_size", None, "a whole number from 1 up"),
        ("least_updates", 0, "a whole number from 1 up"),
        ("budget", 0, "a whole number from 1 up"),
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


def refused(*arguments: Any, batches: Any = None, **changes: Any) -> str:
    """The sentence; the model is as it was."""
    model = arguments[0] if isinstance(arguments[0], nn.Module) else tiny()
    before = weights(model)
    with pytest.raises(InputError) as error:
        fit(
            model,
            *arguments[isinstance(arguments[0], nn.Module) :],
            options(**changes),
            batches=batches,
        )
    assert all(torch.equal(weights(model)[name], before[name]) for name in before)
    return one_sentence(error)


def test_what_cannot_be_trained_is_refused_before_it_starts(tmp_path: Path) -> None:
    data = Blobs()
    assert "nothing to train on" in refused(Blobs(0), None)
    assert "nothing to evaluate on" in refused(data, Blobs(0))
    assert "has no length" in refused(iter(data), None)
    assert "training items have no labels" in refused(WithoutLabels(), None)
    assert "evaluation items have no labels" in refused(data, WithoutLabels())
    assert "patience" in refused(data, None, patience=1)
    assert "resume" in refused(data, None, resume=True)
    assert "did you mean 'accuracy'?" in refused(data, data, metric="acuracy")
    assert "no_such" in refused(data, None, optimizer_arguments={"no_such": 1})
    assert "use the option learning_rate" in refused(data, None, optimizer_arguments={"lr": 1})
    given = {"weight_decay": 1}
    assert "use the option weight_decay" in refused(data, None, optimizer_arguments=given)
    assert "per residual block, and Tiny" in refused(data, None, layer_decay=0.5)
    (tmp_path / "file").touch()
    assert "cannot write" in refused(data, None, output=tmp_path / "file" / "folder")
    frozen = tiny()
    frozen.requires_grad_(False)
    assert "every parameter of the model is frozen" in refused(frozen, data, None)

    class Plain(TinyForImageClassification):
        metric: Any = None

    assert "Plain has no metric" in refused(Plain(TinyConfig(num_labels=2)), data, data)


def test_a_budget_needs_lengths() -> None:
    assert "budget=9 needs the lengths of the items, which Blobs" in refused(
        Blobs(), None, budget=9
    )
    said = refused(language_model(), Sentences(), Blobs(), budget=90, metric="loss")
    assert "budget=90 needs the lengths of the items" in said


def test_batches_must_be_as_many_in_every_epoch() -> None:
    def growing(seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
        return [[0, 1]] * (2 + epoch)

    with pytest.raises(InputError, match="epoch 2 has 3 batches and the first 2;"):
        fit(tiny(), Blobs(), None, options(), batches=growing)
    assert "[0] batches per epoch" in refused(Blobs(), None, batches=lambda *place: [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told_before_any_work() -> None:
    assert "needs a GPU and there is none; use --device" in refused(iter([]), None, device="cuda")


def test_smoothing_needs_a_model_that_knows_it() -> None:
    class Unaware(TinyForImageClassification):
        label_smoothing: Any = property()

    with pytest.raises(InputError, match="has no label_smoothing to set"):
        fit(Unaware(TinyConfig(num_labels=2)), Blobs(), None, options(label_smoothing=0.1))
