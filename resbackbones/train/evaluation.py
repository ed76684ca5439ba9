"""`evaluate`: the figures of a model on a data set, in one process or in several."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from resbackbones.data.batches import InOrder
from resbackbones.errors import InputError, nearest
from resbackbones.metrics import Metric
from resbackbones.train import feed
from resbackbones.train.distributed import World
from resbackbones.train.options import Options, Precision, check_known
from resbackbones.train.precision import autocast, without_tf32
from resbackbones.train.preparation import modes_kept

FEW = 8  # items that show whether a model can be evaluated at all


def evaluate(
    model: Any,
    dataset: Any,
    metric: Metric | None = None,
    *,
    batch_size: int = 256,
    budget: int | None = None,
    precision: Precision = "float32",
    workers: int = 0,
) -> dict[str, float]:
    """The figures of a model on a data set.

    In float32 by default, so that a published number does not depend on what else a machine can do.
    Under `torchrun` every process calls this; each evaluates its own batches of those that one
    process would have, none twice, and all get the merged figures, which are the same to the bit.

    Args:
        model: on any device, in any mode, which each of its modules keeps.
        dataset: as `fit` takes it.
        metric: what to count with; by default the model's `metric()`.
        batch_size: items per step, at most.
        budget: positions per batch at most, padding included, for items that have `lengths`.
        precision: as in `Options`.
        workers: processes that fetch batches.

    Raises:
        InputError: no metric, no items, no labels, or a budget for items without lengths.
    """
    check_known("precision", precision, Precision)
    if metric is None:
        if not callable(getattr(model, "metric", None)):
            raise InputError(
                f"{type(model).__name__} has no metric() to be evaluated by; give it one, or give "
                "evaluate a metric"
            )
        metric = model.metric()
    count = feed.count(dataset, "evaluate on")
    feed.first_batch(dataset, "evaluation")
    lengths = feed.positions(dataset) if budget is None else feed.lengths(dataset, budget)
    world, device = World.now(), next(model.parameters()).device
    batches = InOrder(count, batch_size, lengths, budget)(rank=world.rank, world=world.size)
    with modes_kept(model), torch.no_grad(), autocast(device.type, precision), without_tf32():
        model.eval()
        for batch in feed.load(dataset, workers, batch_sampler=batches):
            batch = feed.there(batch, device)
            metric.update(model(**batch), batch)
    for rank, other in enumerate(world.gather(metric)):
        if rank != world.rank:
            metric.merge(other)
    return metric.compute()


def try_out(model: nn.Module, evaluation: Any, options: Options) -> None:
    """Evaluate on a few items, before anything long starts.

    Raises:
        InputError: what `evaluate` refuses, or `options.metric` is no figure of the model's.
    """
    few = Subset(evaluation, range(min(feed.count(evaluation, "evaluate on"), FEW)))
    size = options.evaluation_batch_size
    metrics = evaluate(model, few, batch_size=size, budget=options.budget)
    if options.metric not in metrics:
        raise InputError(
            f"{type(model).__name__} is not evaluated by {options.metric!r}; "
            f"{nearest(options.metric, metrics)}"
        )
