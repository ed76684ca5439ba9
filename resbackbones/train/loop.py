"""`fit`: the loop itself, for every model of the house.

    result = fit(model, train, validation, Options(output=Path("runs/mine"), epochs=20))
    result.metrics["accuracy"], result.seconds

Three things hold it together:

- The update counter is the only position. The order of the items comes from (seed, epoch), their
  augmentation from (seed, epoch, item), what the model draws from (seed, update, process). So a run
  that was killed and resumed ends with the weights of the uninterrupted run, bit for bit on a CPU.
- An update's loss is the sum over its batches and processes divided by their whole weight (items,
  tokens or frames): however a batch is split, the update is the same.
- A step costs what its arithmetic costs: a GPU is waited for every few dozen updates, to see
  whether the loss is still a number, and not in between.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resbackbones.core.backbone import count_parameters
from resbackbones.data.batches import Batches
from resbackbones.errors import InputError
from resbackbones.metrics import items
from resbackbones.train import checkpoint, feed
from resbackbones.train.distributed import World
from resbackbones.train.evaluation import evaluate, try_out
from resbackbones.train.identity import compare, identity
from resbackbones.train.optimizers import MovingAverage, make_optimizer, schedule
from resbackbones.train.options import Options
from resbackbones.train.precision import autocast
from resbackbones.train.preparation import (
    borrowed,
    check,
    claimed,
    copied,
    loss_of_guessing,
    seed_all,
    seed_of,
    train_mode,
)
from resbackbones.train.progress import Clock, Progress

FEW = 50  # updates after which no net need have learnt anything


class Diverged(RuntimeError):
    """The training loss or a weight is no longer a finite number."""


class StillAtChance(UserWarning):
    """A classifier's training loss is still that of guessing."""


@dataclass(frozen=True)
class Result:
    """What a training came to.

    Attributes:
        metrics: evaluation of the weights the model now holds; empty without an evaluation set.
        best: the history's entry of the best evaluation; of the last epoch without evaluation.
        history: one entry per epoch: "epoch" (from 1), "step" (updates so far), "train_loss" (mean
            over the epoch's items, tokens or frames), "learning_rate" (of its last update),
            "seconds" (so far), and the evaluation's metrics if there was one.
        seconds: training time, without evaluation and saving, over all parts of a resumed run.
        parameters: trainable ones.
    """

    metrics: dict[str, float]
    best: dict[str, float]
    history: list[dict[str, float]]
    seconds: float
    parameters: int


def fit(
    model: nn.Module,
    train: Any,
    evaluation: Any = None,
    options: Options | None = None,
    *,
    batches: Batches | None = None,
) -> Result:
    """Train a model, in one process or in those of `torchrun`, each of which calls this.

    The model ends in evaluation mode, on the device it was trained on, with the weights that
    `options.keep` names. What is frozen (`requires_grad=False`) stays as it is, running statistics
    included. The global random generators are seeded. An error leaves each module in the mode it
    had, and the output folder free for the run to be resumed.

    Args:
        model: `model(**batch)` gives an output with `.loss`, a mean over the batch's items or over
            what `model.weight(batch)` counts. To be evaluated it needs `metric()`, a fresh
            `Metric`.
        train: dictionaries of one item each, with "labels" and what the model's forward takes; or
            `__getitems__(rows)` giving a whole batch as one dictionary of tensors; or a `Stream`.
            Told the epoch by `set_epoch(epoch)` where it has that; a resumed run is exact if what
            it draws at random depends on seed, epoch and item alone.
        evaluation: the same; evaluated in float32.
        options: how; None for the defaults.
        batches: which rows make a batch, instead of `Shuffled` or, with a budget, `Bucketed`; as
            many in every epoch and process.

    Raises:
        InputError: what was given cannot be trained, or the output folder cannot be used.
        Diverged: the loss or a weight became infinite or not a number. The model then has the
            weights of the best epoch or, where there is none, of the last good one.

    Warns:
        StillAtChance: a classifier still guesses after `options.chance_share` of the updates.
        DamagedCheckpoint: the newest checkpoint is damaged, and the one before it was taken.
    """
    options = options or Options()
    world = World.join(options.device)
    check(model, train, evaluation, options, batches)
    if evaluation is not None:
        try_out(model, evaluation, options)
    with contextlib.ExitStack() as stack:
        if options.output is not None:
            stack.enter_context(claimed(options, world))
        stack.enter_context(borrowed(model, options))
        run = _Run(model.to(world.device), train, evaluation, options, world, batches)
        run.begin()
        stack.callback(run.progress.close)
        try:
            run.train_on()
        except Diverged:
            run.put_back()
            raise
        run.put_back()
    model.eval()
    return run.result()


@dataclass
class _State:
    """How far a run has come, as its checkpoints say it."""

    step: int = 0  # updates so far
    loss: float = 0.0  # of the epoch under way: its sum over the items so far, …
    weight: float = 0.0  # … and how many
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None  # an entry of the history
    metrics: dict[str, float] = field(default_factory=dict)  # of the weights to be kept
    waited: int = 0  # evaluations since the best
    seconds: float = 0.0
    finished: bool = False  # also by stopping early


class _Run:
    """One training, from its first update to its last."""

    def __init__(
        self,
        model: Any,
        train: Any,
        evaluation: Any,
        options: Options,
        world: World,
        batches: Batches | None,
    ) -> None:
        self.model, self.train, self.evaluation = model, train, evaluation
        self.options, self.world, self.state = options, world, _State()
        world.share(model.state_dict().values())  # each may have drawn its own
        self.optimizer = make_optimizer(model, options)
        self.average: MovingAverage | None = None
        if options.moving_average:
            self.average = MovingAverage(model, options.moving_average)
        self.weight: Callable[[Mapping[str, Any]], Any] = items
        if callable(getattr(model, "weight", None)):
            self.weight = model.weight
        self.identity: dict[str, Any] = {}
        if options.output is not None:
            self.identity = identity(model, train, evaluation, options, world, batches)
        self.plan, self.said = feed.plan(train, options, world.size, batches)
        if self.plan is not None:
            self.count = len(self.plan(options.seed, 0, world.rank, world.size))
        else:  # a stream's
            self.count = train.steps(options.batch_size, world.size)
        counts = world.gather(self.count)  # batches per epoch
        if min(counts) != max(counts) or not self.count:
            raise InputError(
                f"the processes have {counts} batches per epoch; give each as many, one at least"
            )
        self.updates = math.ceil(self.count / options.accumulate)  # per epoch
        self.steps = options.epochs * self.updates
        self.sums = torch.zeros(2, dtype=torch.float64, device=world.device)  # loss and weight
        self.seen = (0, 0.0, 0.0)  # step, loss and weight at the last look
        self.rate = 0.0  # of the last update, as a share of the peak
        self.best_weights: dict[str, Tensor] | None = None
        self.good_weights = copied(model.state_dict())  # of the last epoch that ended well
        self.clock = Clock()

    # Where it begins, or goes on

    def begin(self) -> None:
        """Take up the newest good checkpoint, if there is one."""
        folder, world = self.options.output, self.world
        found = None if folder is None else world.once(lambda: checkpoint.load(folder))
        if found is not None and folder is not None:
            before, saved = found
            compare(before, self.identity, folder)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.average is not None:
                self.average.weights = feed.there(saved["average"], world.device)
            self.best_weights, self.good_weights = saved["best"], copied(self.weights())
            self.state = _State(**saved["state"])
            self.clock.seconds = self.state.seconds
            if before["processes"] != world.size:
                self._other_world(before["processes"], saved["updates"])
            else:
                self.sums.copy_(torch.tensor(saved["sums"][world.rank], dtype=torch.float64))
        state = self.state
        self.seen = (state.step, state.loss, state.weight)
        self.progress = Progress(self.options, self.steps, state.step, first=world.first)

    def _other_world(self, before: int, updates: int) -> None:
        """Another number of processes shares an epoch out otherwise: go on with the next one."""
        epoch, inside = divmod(self.state.step, updates)
        rest = ""
        if inside and epoch + 1 < self.options.epochs:
            epoch, rest = epoch + 1, f"; what was left of epoch {epoch + 1} is left out"
        elif inside:
            rest = " from its start"  # the last one
        self.state.step = epoch * self.updates
        self.state.loss = self.state.weight = 0.0
        if self.world.first and not self.state.finished:
            warnings.warn(
                f"the run had {before} process(es) and now has {self.world.size}: it goes on with "
                f"epoch {epoch + 1}{rest}",
                stacklevel=4,
            )

    # The loop

    def train_on(self) -> None:
        """All that is left of the epochs."""
        options, world, state = self.options, self.world, self.state
        world.once(lambda: self.progress.begin(state.history))
        for line in self.said if state.step == 0 else []:
            self.progress.say(line)
        net = self.model
        if world.size > 1:
            net = DistributedDataParallel(
                self.model, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        first, start = divmod(state.step, self.updates)
        for epoch in range(first, options.epochs):
            if state.finished:
                return
            feed.set_epoch(self.train, epoch)
            train_mode(self.model)
            self.clock.start()
            batches = self.batches_of(epoch, start)
            for update in range(start, self.updates):
                self.update(net, batches)
                self.progress.stepped()
                if update + 1 < self.updates:
                    self.look_and_save()
            start = 0
            self.end_epoch(epoch + 1)

    def batches_of(self, epoch: int, start: int) -> Iterator[Mapping[str, Any]]:
        """This process's batches of an epoch, from those of update `start` on."""
        options, world = self.options, self.world
        place = (options.seed, epoch, world.rank, world.size)
        skipped = start * options.accumulate
        seed = seed_of(options.seed, epoch, world.rank)
        if self.plan is None:
            part = self.train.part(options.batch_size, *place, start=skipped)
            return feed.load(part, options.workers, seed, batch_size=None)
        batches = self.plan(*place)
        if len(batches) != self.count:
            raise InputError(
                f"epoch {epoch + 1} has {len(batches)} batches and the first {self.count}; give "
                "batches that are as many in every epoch"
            )
        return feed.load(self.train, options.workers, seed, batch_sampler=batches[skipped:])

    def update(self, net: nn.Module, batches: Iterator[Mapping[str, Any]]) -> None:
        """One step of the optimizer, on `accumulate` batches of each process."""
        options, world, state = self.options, self.world, self.state
        seed_all(options.seed, state.step, world.rank)
        if hasattr(self.model, "progress"):  # its loss changes in the course of the training
            self.model.progress = state.step / self.steps
        window = list(itertools.islice(batches, options.accumulate))
        weights = [self.weight(batch) for batch in window]
        whole = torch.as_tensor(sum(weights), dtype=torch.float64)
        if world.size > 1:
            whole = world.sum(whole)
        whole = whole.masked_fill(whole == 0, 1)  # of pixels without a class alone, say
        for number, (batch, weight) in enumerate(zip(window, weights, strict=True)):
            last = number == len(window) - 1
            with contextlib.nullcontext() if world.size == 1 or last else net.no_sync():  # type: ignore[operator]
                with autocast(world.device.type, options.precision):
                    loss = net(**feed.there(batch, world.device)).loss
                # From the mean over this batch to its share of the mean over the whole update.
                # (DistributedDataParallel divides by the number of processes.)
                (loss * (world.size * weight / whole)).backward()
            self.sums[0] += loss.detach().double() * weight
            self.sums[1] += weight
        if options.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
        self.rate = schedule(state.step, self.steps, options)
        for group in self.optimizer.param_groups:
            is_open = state.step >= group["opens"] * self.steps
            group["lr"] = group["initial_lr"] * self.rate * is_open
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        if self.average is not None:
            self.average.update(self.model, state.step)

    def look_and_save(self) -> None:
        """Within an epoch, now and then: is the loss a number? A checkpoint, if it is due."""
        options, step = self.options, self.state.step
        every = options.checkpoint_steps
        due = options.output is not None and every is not None and step % every == 0
        if due or step % min(50, max(10, self.steps // 100)) == 0:
            self.look()
        if due:
            self.clock.stop()
            self.settle()
            self.save()
            self.clock.start()

    def look(self) -> None:
        """Wait for the losses so far. Stop if they are no numbers; tell if they are those of
        guessing when it is time to."""
        state, (before, loss, weight) = self.state, self.seen
        state.loss, state.weight = self.world.sum(self.sums).tolist()
        self.seen = (state.step, state.loss, state.weight)
        if not math.isfinite(state.loss):
            self.stop(
                f"the training loss became {state.loss} between steps {before} and {state.step}"
            )
        chance = loss_of_guessing(self.model)
        late = max(FEW, math.ceil(self.options.chance_share * self.steps))
        if chance is not None and before < late <= state.step and self.world.first:
            recent = (state.loss - loss) / (state.weight - weight)
            if recent > 0.99 * chance:
                warnings.warn(
                    f"after {state.step} of {self.steps} steps the training loss is {recent:.3f}, "
                    f"that of guessing ({chance:.3f}); try more epochs or another learning rate "
                    f"than {self.options.learning_rate:g}, and see whether labels fit their inputs",
                    StillAtChance,
                    stacklevel=2,
                )

    def settle(self) -> None:
        """Have all processes hold the same model; stop if a weight is no number, as when only the
        last update was too large."""
        buffers = dict(self.model.named_buffers())  # each process has seen other batches
        self.world.share(buffers.values())
        if self.average is not None:
            averaged = self.average.weights
            self.world.share(averaged[name] for name in buffers if name in averaged)
        weights = [w for w in self.model.state_dict().values() if w.is_floating_point()]
        if not torch.stack([weight.isfinite().all() for weight in weights]).all():
            self.stop(f"a weight was no finite number after step {self.state.step}")

    def end_epoch(self, epoch: int) -> None:
        """What follows an epoch: an evaluation, a line of log, a checkpoint."""
        options, state = self.options, self.state
        self.look()
        seconds = self.clock.stop()
        self.settle()
        self.good_weights = copied(self.weights())
        entry: dict[str, float] = {
            "epoch": epoch,
            "step": state.step,
            "train_loss": state.loss / state.weight,
            "learning_rate": options.learning_rate * self.rate,
            "seconds": seconds,
        }
        state.history.append(entry)
        state.finished = epoch == options.epochs
        state.loss = state.weight = 0.0
        self.sums.zero_()
        self.seen = (state.step, 0.0, 0.0)
        if self.evaluation is not None and self.due(options.evaluate_every):
            inside = contextlib.nullcontext()
            with self.average.inside(self.model) if self.average else inside:
                metrics = self.evaluated(self.evaluation)
            entry |= metrics
            self.judge(entry, metrics)
        self.world.once(lambda: self.progress.ended(state.history, last=state.finished))
        if options.output is not None and self.due(options.checkpoint_every):
            self.save()

    def due(self, every: int) -> bool:
        """Whether what happens after every so many epochs, and after the last, happens now."""
        return self.state.finished or self.state.history[-1]["epoch"] % every == 0

    def evaluated(self, dataset: Any) -> dict[str, float]:
        options = self.options
        return evaluate(
            self.model,
            dataset,
            batch_size=options.evaluation_batch_size,
            budget=options.budget,
            workers=options.workers,
        )

    def judge(self, entry: dict[str, float], metrics: dict[str, float]) -> None:
        """Hold the weights if they are the best; stop after too long without a new best."""
        options, state = self.options, self.state

        def quality(found: Mapping[str, float]) -> float:
            value = found[options.metric] * (1 if options.higher_is_better else -1)
            return -math.inf if math.isnan(value) else value

        state.waited += 1
        if state.best is None or quality(metrics) > quality(state.best):
            state.best, state.waited = entry, 0
            if options.keep == "best":
                self.best_weights = copied(self.weights())
        if options.keep == "last" or state.waited == 0:
            state.metrics = metrics
        if options.patience is not None and state.waited >= options.patience:
            state.finished = True

    # What is kept

    def weights(self) -> dict[str, Tensor]:
        """Those to be evaluated and kept: the average, where there is one."""
        return self.average.weights if self.average else self.model.state_dict()

    def save(self) -> None:
        """Write a checkpoint."""
        self.state.seconds = self.clock.stop()
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.weights if self.average else None,
            "best": self.best_weights,
            "state": asdict(self.state),
            "updates": self.updates,
            "sums": self.world.gather(self.sums.tolist()),
        }
        folder, step = self.options.output, self.state.step
        assert folder is not None
        kept = 1 if self.state.finished else checkpoint.KEPT
        self.world.once(lambda: checkpoint.save(folder, step, self.identity, content, kept))

    def stop(self, what: str) -> None:
        kept = checkpoint.checkpoints(self.options.output) if self.options.output else []
        raise Diverged(
            f"{what}, at learning rate {self.options.learning_rate * self.rate:.3g}; try a lower "
            "learning_rate, a longer warmup or clip=1, or look for inputs that are no finite "
            "numbers" + (f" ({kept[-1]} is good)" if kept else "")
        )

    def put_back(self) -> None:
        """Give the model the weights that are kept."""
        self.model.load_state_dict(self.best_weights or self.good_weights)

    def result(self) -> Result:
        state = self.state
        return Result(
            metrics=state.metrics,
            best=state.best or state.history[-1],
            history=state.history,
            seconds=state.history[-1]["seconds"],
            parameters=count_parameters(self.model),
        )
