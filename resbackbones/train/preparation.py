"""What is made ready around the loop: refusals, the run's folder, the model's modes, the seeds."""

import contextlib
import math
import random
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resbackbones.core.backbone import modes_kept, rest_frozen
from resbackbones.data.batches import Batches
from resbackbones.errors import InputError
from resbackbones.train import checkpoint, feed
from resbackbones.train.distributed import World
from resbackbones.train.options import Options


def check(
    model: Any, train: Any, evaluation: Any, options: Options, batches: Batches | None
) -> None:
    """Refuse what cannot be trained before anything long starts."""
    feed.count(train, "train on")
    if not hasattr(train, "part"):
        feed.first_batch(train, "training")
    elif batches is not None or options.budget is not None:
        raise InputError(
            f"a {type(train).__name__} says itself which samples make a batch; leave batches and "
            "budget out"
        )
    if options.patience is not None and evaluation is None:
        raise InputError("patience counts evaluations; give an evaluation set, or no patience")
    if options.resume and options.output is None:
        raise InputError("there is nothing to resume without output; name the run's folder")
    if options.budget is not None and batches is None:
        feed.lengths(train, options.budget)
    if options.label_smoothing and not hasattr(model, "label_smoothing"):
        raise InputError(
            f"{type(model).__name__} has no label_smoothing to set; give it that attribute and use "
            "it in its loss, or leave label_smoothing=0"
        )


@contextlib.contextmanager
def claimed(options: Options, world: World) -> Iterator[None]:
    """Hold the run's folder alone, and only if it is this run's to use."""
    folder = options.output
    assert folder is not None
    stack = contextlib.ExitStack()

    def claim() -> None:
        stack.enter_context(checkpoint.locked(folder))
        log = folder / "log.jsonl"
        if not options.resume and (log.exists() or checkpoint.checkpoints(folder)):
            raise InputError(
                f"{folder} holds a run already; resume it, or name another output folder"
            )
        with checkpoint.writing(folder):
            log.touch()
            shutil.rmtree(folder / ".part", ignore_errors=True)  # cut off while it was written

    with stack:
        world.once(claim)
        yield


@contextlib.contextmanager
def borrowed(model: Any, options: Options) -> Iterator[None]:
    """Set up the model for a training, and undo it afterwards, however that ends."""
    smoothing = getattr(model, "label_smoothing", None)
    model.zero_grad()  # of whoever had it before
    if smoothing is not None:
        model.label_smoothing = options.label_smoothing
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    try:
        with modes_kept(model):
            yield
    finally:
        model.zero_grad()
        if smoothing is not None:
            model.label_smoothing = smoothing
        if hasattr(model, "progress"):
            model.progress = 1.0
        if options.channels_last:
            # As a loaded model is, so that both compute the same to the last bit.
            model.to(memory_format=torch.contiguous_format)


def train_mode(model: nn.Module) -> None:
    """Have a model train, but for modules whose parameters are all frozen: their dropout and their
    running statistics rest too."""
    model.train()
    rest_frozen(model)


def seed_of(*place: int) -> int:
    """A number that depends on these alone."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def seed_all(*place: int) -> None:
    """Have what is drawn from here on depend on these numbers alone."""
    seed = seed_of(*place)
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed formats a stack trace while no GPU is in use, 5 % of a small step.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}


def loss_of_guessing(model: Any) -> float | None:
    """The loss of a classifier that guesses, log K; None for what is no such classifier."""
    config = getattr(model, "config", None)
    kind = getattr(config, "problem_type", None) or "single_label_classification"
    if type(model).__name__.endswith("Classification") and kind == "single_label_classification":
        return math.log(config.num_labels)  # type: ignore[union-attr]
    return None
