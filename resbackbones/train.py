"""`fit`: one thin layer over `transformers.Trainer`, for every model of the house.

    result = fit(model, train, validation, Options(output=Path("runs/mine"), epochs=20))
    result.metrics["accuracy"], result.seconds

The Trainer runs the steps, on whatever devices there are (several under `torchrun`). This layer
feeds it, follows each epoch with an evaluation, a line of log and a checkpoint, and promises:

- A run that was killed and resumed ends with the weights of the uninterrupted run, bit for bit on a
  CPU. A checkpoint is whole or absent, and no stream of draws is cut by a kill: the order of the
  items comes from (seed, epoch), their augmentation from (seed, epoch, item).
- A run that diverges stops, and the checkpoint it leaves is good.
- A step costs what its arithmetic costs: nothing is counted, logged or waited for in between.
"""

import contextlib
import dataclasses
import json
import math
import os
import reprlib
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.utils import logging as transformers_logging

from resbackbones import report
from resbackbones.core.backbone import count_parameters
from resbackbones.errors import InputError, nearest

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
# Schedule -> the share of the updates its rise takes unless told otherwise.
WARMUP = {"cosine": 0.05, "one_cycle": 0.3, "linear": 0.05, "constant": 0.0}
FEW = 50  # updates after which no net need have learnt anything

Schedule: TypeAlias = Literal["cosine", "one_cycle", "linear", "constant"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
Keep: TypeAlias = Literal["best", "last"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
if TYPE_CHECKING:
    Kind: TypeAlias = str | type[torch.optim.Optimizer]
    Arguments: TypeAlias = Mapping[str, Any]
else:  # what a command line can say
    Kind = Literal["adamw", "sgd"]
    Arguments = dict[str, float]


class Diverged(InputError):
    """The training loss or a weight is no longer a finite number."""


class StillAtChance(UserWarning):
    """A classifier's training loss is still that of guessing."""


@dataclass(frozen=True)
class Options:
    """How to train.

    Raises:
        InputError: an unknown name, or a number out of range.
    """

    output: Path | None = None
    """Folder for log.jsonl, curve.png and the newest checkpoint (nothing is kept)."""
    epochs: int = 20
    """Passes over the training items."""
    batch_size: int = 64
    """Items a step, at most: an epoch is cut into batches of equal size, give or take one item."""
    accumulate: int = 1
    """Batches to an update, which is then that of one batch of all their items."""
    optimizer: Kind = "adamw"
    """"adamw", "sgd" (with Nesterov momentum 0.9), or from Python any class of optimizer."""
    optimizer_arguments: Arguments = field(default_factory=dict)
    """Further arguments of the optimizer, by name."""
    learning_rate: float = 1e-3
    """The schedule's peak."""
    weight_decay: float = 0.0
    """On weights; norms, biases and scales are left alone."""
    schedule: Schedule = "cosine"
    """What follows the rise to the peak: "cosine" and "linear" fall to 0, "constant" stays;
    "one_cycle" rises as a cosine, from 1/25 of the peak, and falls as one."""
    warmup: float | None = None
    """Share of the updates the rise takes (0.05; one_cycle 0.3; constant 0)."""
    clip: float = 0.0
    """Largest norm of the whole gradient (0: any)."""
    label_smoothing: float = 0.0
    """Share of every label that is spread over all classes in training."""
    precision: Precision = "auto"
    """"auto" computes in bfloat16 where the hardware does, else in float32; weights are float32."""
    channels_last: bool = True
    """Lay 4-D weights out channels last while training; 1-D nets have none."""
    metric: str = "accuracy"
    """The evaluation metric that names the best epoch."""
    higher_is_better: bool = True
    """Whether more of it is better."""
    keep: Keep = "best"
    """Whose weights the model ends with; without an evaluation set always the last epoch's."""
    patience: int | None = None
    """Stop after so many evaluations in a row without a new best (never)."""
    evaluate_every: int = 1
    """Evaluate after every so many epochs, and after the last."""
    evaluation_batch_size: int = 256
    """Items a step in evaluation."""
    checkpoint_every: int = 1
    """Write a checkpoint after every so many epochs, and after the last."""
    checkpoint_steps: int | None = None
    """And within an epoch, after every so many updates (never)."""
    seed: int = 0
    """Of the order of the items, and of all that the model draws in training."""
    resume: bool = False
    """Continue the run in the output folder; begin it if there is none."""
    device: Device = "auto"
    """"auto" takes the GPU if there is one."""
    workers: int = 0
    """Processes that fetch batches (0: items in memory need none)."""
    chance_share: float = 0.5
    """Warn if a classifier still guesses after this share of the updates (and 50 of them)."""
    progress: bool = True
    """Show a progress bar and a line an epoch."""

    def __post_init__(self) -> None:
        chosen: dict[str, Any] = {"optimizer": OPTIMIZERS, "schedule": get_args(Schedule)}
        chosen |= {"precision": get_args(Precision), "keep": get_args(Keep)}
        chosen |= {"device": get_args(Device)}
        for name, known in chosen.items():
            value = getattr(self, name)
            if isinstance(value, type) and issubclass(value, torch.optim.Optimizer):
                continue
            if value not in known:
                raise InputError(f"{name}={value!r} is not known; {nearest(value, known)}")
        for name in ("epochs", "batch_size", "accumulate", "patience", "evaluate_every"):
            self._check(name, Integral, 1)
        for name in ("evaluation_batch_size", "checkpoint_every", "checkpoint_steps"):
            self._check(name, Integral, 1)
        for name in ("workers", "seed"):
            self._check(name, Integral, 0)
        for name in ("learning_rate", "weight_decay", "clip"):
            self._check(name, Real, 0)
        for name in ("warmup", "label_smoothing", "chance_share"):
            self._check(name, Real, 0, 1)

    def _check(self, name: str, kind: type, low: float, high: float = math.inf) -> None:
        value = getattr(self, name)
        optional = name in ("patience", "checkpoint_steps", "warmup")
        if value is None and optional:
            return
        if not isinstance(value, kind) or not low <= value <= high or value == math.inf:  # type: ignore[operator]
            what = "a whole number" if kind is Integral else "a number"
            until = f"{low} up" if high == math.inf else f"{low} to {high}"
            raise InputError(f"{name}={value!r} is out of range; give {what} from {until}")


# What a run and its continuation need not share: none of it changes the result.
FREE = {"output", "resume", "progress", "workers", "chance_share", "evaluation_batch_size"}
FREE |= {"checkpoint_every", "checkpoint_steps"}


@dataclass(frozen=True)
class Result:
    """What a training came to.

    Attributes:
        metrics: evaluation of the weights the model now holds; empty without an evaluation set.
        best: the history's entry of the best evaluation; of the last epoch without evaluation.
        history: one entry an epoch: "epoch" (from 1), "step" (updates so far), "train_loss" (mean
            over the epoch's updates), "learning_rate" (of its last update), "seconds" (so far), and
            the evaluation's metrics if there was one.
        seconds: training time, without evaluation and saving, over all parts of a resumed run.
        parameters: trainable ones.
    """

    metrics: dict[str, float]
    best: dict[str, float]
    history: list[dict[str, float]]
    seconds: float
    parameters: int


def fit(
    model: PreTrainedModel,
    train: Dataset,
    evaluation: Dataset | None = None,
    options: Options | None = None,
) -> Result:
    """Train a model.

    The model ends in evaluation mode, on the device it was trained on, with the weights that
    `options.keep` names. The global random generators are seeded.

    Args:
        model: a transformers model whose output has `.loss`, a mean over the batch's items, and
            `.logits`; to be evaluated it needs `compute_metrics` (see `evaluate`).
        train: dictionaries of one item each, with "labels" and what the model's forward takes; or
            `__getitems__(rows)` giving a whole batch as one dictionary of tensors. Told the epoch
            by `set_epoch(epoch)` where it has that; a resumed run is exact if what it draws at
            random depends on seed, epoch and item alone.
        evaluation: the same; evaluated in float32.
        options: how; None for the defaults.

    Raises:
        InputError: what was given cannot be trained, or the output folder cannot be used.
        Diverged: the loss or a weight became infinite or not a number.

    Warns:
        StillAtChance: a classifier still guesses after `options.chance_share` of the updates.
    """
    options = options or Options()
    _check(model, train, evaluation, options)
    run = _Run(model, train, evaluation, options)
    with tempfile.TemporaryDirectory() as scratch, _borrowed(model, options):
        arguments = _arguments(options, run.folder or Path(scratch))
        checkpoint = run.open(PartialState())
        if run.progress.finished:
            # Nothing is left but to load the weights, also of a run that stopped early.
            arguments.num_train_epochs = run.progress.history[-1]["epoch"]
        try:
            _Trainer(run, arguments).train(resume_from_checkpoint=checkpoint)
        finally:
            run.close()
        if run.best_weights is not None:
            model.load_state_dict(run.best_weights)
    model.eval()
    return run.result()


def evaluate(
    model: PreTrainedModel,
    dataset: Dataset,
    batch_size: int = 256,
    precision: Precision = "float32",
    workers: int = 0,
) -> dict[str, float]:
    """The metrics of a model on a data set: its `compute_metrics` of all logits and labels.

    In float32 by default, so that a published number does not depend on what else a machine can do.

    Args:
        model: on any device, in any mode. `compute_metrics(logits, labels)` takes arrays `(N, …)`
            and returns numbers by name.
        dataset: as `fit` takes it.
        batch_size: items a step.
        precision: as in `Options`.
        workers: processes that fetch batches.

    Raises:
        InputError: no `compute_metrics`, no items, or no labels.
    """
    if precision not in get_args(Precision):
        known = get_args(Precision)
        raise InputError(f"precision={precision!r} is not known; {nearest(precision, known)}")
    if not hasattr(model, "compute_metrics"):
        raise InputError(
            f"{type(model).__name__} has no compute_metrics(logits, labels) to be evaluated by; "
            "give it one that returns numbers by name"
        )
    _count(dataset, "evaluate on")
    device = next(model.parameters()).device
    was_training = model.training
    logits, labels = [], []
    model.eval()
    try:
        with torch.no_grad(), _autocast(device.type, precision), _without_tf32():
            for batch in _loader(dataset, workers, batch_size=batch_size):
                if "labels" not in batch:
                    raise InputError(_no_labels("evaluation", batch))
                inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
                logits.append(model(**inputs).logits.float().cpu())
                labels.append(batch["labels"].cpu())
    finally:
        model.train(was_training)
    metrics: Any = model.compute_metrics
    return metrics(torch.cat(logits).numpy(), torch.cat(labels).numpy())


# The Trainer


def _arguments(options: Options, folder: Path) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        max_grad_norm=options.clip,
        seed=options.seed,
        use_cpu=options.device == "cpu",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        # `_Run` says when to evaluate and save, and does the logging.
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="passive",
        logging_nan_inf_filter=False,  # waits for the GPU in every step
    )
    # Several GPUs are for torchrun to use; the Trainer would take DataParallel unasked.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class _Trainer(Trainer):
    """The Trainer, less what its step does in vain, and with checkpoints that are whole."""

    def __init__(self, run: "_Run", arguments: TrainingArguments) -> None:
        self.run = run
        self.loss_sum = torch.zeros((), device=arguments.device)  # over the epoch's updates so far
        self.shares: Iterator[float] = iter(())
        optimizer = _optimizer(run.model, run.options)
        super().__init__(
            model=run.model,
            args=arguments,
            train_dataset=run.train,
            callbacks=[run],
            optimizers=(optimizer, _schedule(optimizer, run.options, run.steps)),
        )
        self.remove_callback(PrinterCallback)
        # By default any forward with **kwargs passes for one that divides by the update's items.
        self.model_accepts_loss_kwargs = getattr(run.model, "accepts_loss_kwargs", False)
        # There is nothing to free yet, and looking for garbage takes 0.3 s.
        self.accelerator.free_memory = lambda *_: []
        run.begin(self)

    def get_train_dataloader(self) -> DataLoader:
        return self.run.loader

    def get_batch_samples(self, *arguments: Any) -> Any:
        """The batches of one update, and the share of its items that each holds."""
        batches, count = super().get_batch_samples(*arguments)
        sizes = [len(next(iter(batch.values()))) for batch in batches]
        self.shares = iter([size / sum(sizes) for size in sizes])
        return batches, count

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """One batch, forward and back. (The Trainer's own first tells every module to train, and
        weighs the batches of an update alike.)"""
        inputs = self._prepare_inputs(inputs)
        with _autocast(self.args.device.type, self.run.options.precision):
            loss: Any = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        share = next(self.shares)
        if share != 1 and num_items_in_batch is None:
            loss = loss * share
        self.accelerator.backward(loss)
        self.loss_sum += loss.detach()
        return loss.detach()

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counts the model's parameters in every step

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return grad_norm  # one more pass over the gradients, for a log that nobody reads

    def _get_output_dir(self, trial: Any) -> str:
        return f"{self.args.output_dir}/.part"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside, then put it in the place of the one before."""
        run, step = self.run, self.state.global_step
        scratch = Path(self._get_output_dir(trial))
        folder = scratch.parent
        written = scratch / f"checkpoint-{step}"
        older = _checkpoints(folder)
        run.clock.stop()
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                torch.save(run.state(), written / "run.pt")
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                os.replace(written, folder / written.name)
        except (OSError, RuntimeError, SafetensorError, InputError) as error:
            cause = error.__cause__ or error
            # torch says it of a full disk; other runtime errors are no matter of writing.
            if isinstance(cause, RuntimeError) and "inline_container" not in str(cause):
                raise
            kept = f"{older[-1].name} is kept" if older else "there is none before it"
            raise InputError(
                f"cannot write the checkpoint of step {step} to {folder} ({_reason(cause)}); make "
                f"room there, then resume the run ({kept})"
            ) from error
        finally:
            if self.args.should_save:
                shutil.rmtree(scratch, ignore_errors=True)
        if self.args.should_save:
            for path in older:
                shutil.rmtree(path)
        self.accelerator.wait_for_everyone()
        run.clock.start()


class _Clock:
    """Seconds of training alone."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.since: float | None = None

    def start(self) -> None:
        self.since = time.perf_counter()

    def stop(self) -> float:
        if self.since is not None:
            self.seconds += time.perf_counter() - self.since
            self.since = None
        return self.seconds


@dataclass
class _Progress:
    """How far a run has come, as its checkpoints say it."""

    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None  # an entry of the history
    metrics: dict[str, float] = field(default_factory=dict)  # of the weights to be kept
    waited: int = 0  # evaluations since the best
    loss: float = 0.0  # sum over the updates so far of the epoch under way
    seconds: float = 0.0
    finished: bool = False  # also by stopping early


class _Run(TrainerCallback):
    """One training, from its folder to its result; the Trainer tells it where it stands."""

    def __init__(
        self, model: PreTrainedModel, train: Dataset, evaluation: Dataset | None, options: Options
    ) -> None:
        self.model, self.train, self.evaluation, self.options = model, train, evaluation, options
        self.folder = None if options.output is None else Path(options.output)
        self.progress = _Progress()
        self.clock = _Clock()
        self.best_weights: dict[str, Tensor] | None = None
        self.identity = _identity(model, train, options)
        self.learning_rate = options.learning_rate
        self.bar: Any = None
        self.drawn = time.perf_counter()

    # Folder and checkpoint

    def open(self, process: PartialState) -> str | None:
        """Make ready the output folder and the batches; return the checkpoint to go on from."""
        options, folder = self.options, self.folder
        checkpoint = None
        if folder is not None:
            if process.is_main_process:
                self._claim(folder)
            process.wait_for_everyone()
            checkpoint = next(reversed(_checkpoints(folder)), None)
        if checkpoint is not None:
            self._load(checkpoint)
        if folder is not None and process.is_main_process:
            # Lines of epochs that ended after the checkpoint will be written again.
            with _writing(folder):
                log = "".join(map(_line, self.progress.history))
                (folder / "log.jsonl").write_text(log, encoding="utf-8")
        self.batches = _Batches(
            _count(self.train, "train on"),
            options.batch_size,
            options.seed,
            process.process_index,
            process.num_processes,
        )
        self.loader = _loader(self.train, options.workers, batch_sampler=self.batches)
        self.epoch_steps = math.ceil(len(self.batches) / options.accumulate)
        self.steps = options.epochs * self.epoch_steps
        return None if checkpoint is None else str(checkpoint)

    def _claim(self, folder: Path) -> None:
        log = folder / "log.jsonl"
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if log.exists() and not self.options.resume:
                raise InputError(
                    f"{folder} holds a run already; resume it, or name another output folder"
                )
            log.touch()
            shutil.rmtree(folder / ".part", ignore_errors=True)  # cut off while it was written

    def state(self) -> dict[str, Any]:
        """This run's part of a checkpoint."""
        self.progress.seconds = self.clock.stop()
        return {
            "identity": self.identity,
            "progress": dataclasses.asdict(self.progress),
            "best_weights": self.best_weights,
        }

    def _load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint / "run.pt", map_location="cpu", weights_only=True)
        for name, now in self.identity.items():
            was = state["identity"].get(name)
            if was != now:
                raise InputError(
                    f"the run in {checkpoint.parent} has {name}={reprlib.repr(was)}, not "
                    f"{reprlib.repr(now)}; resume it with what it began with, or name another "
                    "output folder"
                )
        self.progress = _Progress(**state["progress"])
        self.best_weights = state["best_weights"]
        self.clock.seconds = self.progress.seconds

    # What the Trainer tells

    def begin(self, trainer: Any) -> None:
        """Try the evaluation on a few items, before anything long starts."""
        self.trainer = trainer
        if self.evaluation is not None:
            few = range(min(_count(self.evaluation, "evaluate on"), 8))
            metrics = evaluate(self.model, Subset(self.evaluation, few))
            if self.options.metric not in metrics:
                raise InputError(
                    f"{type(self.model).__name__} is not evaluated by {self.options.metric!r}; "
                    f"{nearest(self.options.metric, metrics)}"
                )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.model.train()
        # Accelerate's wrapper searches the disk for another package's optimizer in every step.
        self.trainer.optimizer = self.trainer.optimizer.optimizer
        self.trainer.loss_sum.fill_(self.progress.loss)
        self.seen = state.global_step, self.progress.loss
        self.began = state.global_step, time.perf_counter()
        if self.options.progress and state.is_world_process_zero:
            step = state.global_step
            self.bar = tqdm(total=self.steps, initial=step, unit="step", leave=False, disable=None)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        epoch = state.global_step // self.epoch_steps
        self.batches.set_epoch(epoch)
        # Accelerate forgets the data set where batches are skipped, as they are after a resume.
        _set_epoch(self.train, epoch)
        self.clock.start()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.learning_rate = self.trainer.optimizer.param_groups[0]["lr"]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, options = state.global_step, self.options
        if self.bar is not None:
            self.bar.update()
        if step % self.epoch_steps == 0:
            return  # `on_epoch_end` sees to it
        if step % min(50, max(10, self.steps // 100)) == 0:
            self.look(step)
        if self.folder and options.checkpoint_steps and step % options.checkpoint_steps == 0:
            self.progress.loss = self.loss(step)
            self.check_weights(step)
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        options, progress, step = self.options, self.progress, state.global_step
        self.look(step)
        seconds = self.clock.stop()
        self.check_weights(step)
        loss = self.trainer.accelerator.reduce(self.trainer.loss_sum, "mean").item()
        entry: dict[str, float] = {
            "epoch": step // self.epoch_steps,
            "step": step,
            "train_loss": loss / self.epoch_steps,
            "learning_rate": self.learning_rate,
            "seconds": seconds,
        }
        progress.history.append(entry)
        progress.loss = 0.0
        progress.finished = step >= self.steps
        self.trainer.loss_sum.zero_()
        self.seen = step, 0.0
        if self.evaluation is not None and self.due(options.evaluate_every):
            metrics = self.evaluated()
            entry |= metrics
            self.judge(entry, metrics)
        if state.is_world_process_zero:
            self.tell(entry)
        control.should_training_stop = progress.finished
        control.should_save = self.folder is not None and self.due(options.checkpoint_every)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    # What it makes of it

    def due(self, every: int) -> bool:
        """Whether what happens after every so many epochs, and after the last, happens now."""
        return self.progress.finished or self.progress.history[-1]["epoch"] % every == 0

    def loss(self, step: int) -> float:
        """Sum over the epoch's updates so far (a GPU is waited for); stop if it is no number."""
        total = self.trainer.loss_sum.item()
        if not math.isfinite(total):
            self.stop(f"the training loss became {total} between steps {self.seen[0]} and {step}")
        return total

    def look(self, step: int) -> None:
        """Compare the loss since the last look with that of guessing, when it is time to."""
        before, seen = self.seen
        self.seen = step, self.loss(step) if step > before else seen
        chance = _chance(self.model)
        late = max(FEW, math.ceil(self.options.chance_share * self.steps))
        if chance is not None and before < late <= step:
            loss = (self.seen[1] - seen) / (step - before)
            if loss > 0.99 * chance:
                warnings.warn(
                    f"after {step} of {self.steps} steps the training loss is {loss:.3f}, that of "
                    f"guessing ({chance:.3f}); try another learning rate than "
                    f"{self.options.learning_rate:g}, and see whether labels fit their inputs",
                    StillAtChance,
                    stacklevel=2,
                )

    def check_weights(self, step: int) -> None:
        """Stop if a weight is no number, as when only the last update was too large."""
        weights = self.model.state_dict().values()
        finite = [weight.isfinite().all() for weight in weights if weight.is_floating_point()]
        if not torch.stack(finite).all():
            self.stop(f"a weight was no finite number after step {step}")

    def stop(self, what: str) -> None:
        kept = _checkpoints(self.folder) if self.folder else []
        raise Diverged(
            f"{what}, at learning rate {self.learning_rate:.3g}; try a lower learning_rate, a "
            "longer warmup or clip=1, or look for inputs that are no finite numbers"
            + (f" ({kept[-1]} is good)" if kept else "")
        )

    def evaluated(self) -> dict[str, float]:
        """The metrics, from the first process alone: running statistics differ between them."""
        found: list[Any] = [None]
        if self.trainer.is_world_process_zero():
            size, workers = self.options.evaluation_batch_size, self.options.workers
            assert self.evaluation is not None
            found = [evaluate(self.model, self.evaluation, size, workers=workers)]
        if self.trainer.args.world_size > 1:
            torch.distributed.broadcast_object_list(found)
        return found[0]

    def judge(self, entry: dict[str, float], metrics: dict[str, float]) -> None:
        """Hold the weights if they are the best; stop after too long without a new best."""
        options, progress = self.options, self.progress

        def quality(found: Mapping[str, float]) -> float:
            value = found[options.metric] * (1 if options.higher_is_better else -1)
            return -math.inf if math.isnan(value) else value

        progress.waited += 1
        if progress.best is None or quality(metrics) > quality(progress.best):
            progress.best, progress.waited = entry, 0
            if options.keep == "best":
                weights = self.model.state_dict()
                self.best_weights = {k: v.detach().to("cpu", copy=True) for k, v in weights.items()}
        if options.keep == "last" or progress.waited == 0:
            progress.metrics = metrics
        if options.patience is not None and progress.waited >= options.patience:
            progress.finished = True

    def tell(self, entry: dict[str, float]) -> None:
        """One line to the log and one to the terminal, and now and then the curve."""
        options, now = self.options, time.perf_counter()
        if self.folder is not None:
            with _writing(self.folder):
                with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(_line(entry))
                if self.progress.finished or now - self.drawn > 30:
                    report.save_figure(self.curve(), self.folder / "curve.png")
                    self.drawn = now
        if self.bar is not None:
            step, since = self.began
            left = (now - since) / (entry["step"] - step) * (self.steps - entry["step"])
            parts = [
                f"epoch {entry['epoch']:>{len(str(options.epochs))}}/{options.epochs}",
                f"loss {entry['train_loss']:.4f}",
                f"rate {entry['learning_rate']:.2e}",
                f"{_duration(entry['seconds'])}, {_duration(left)} left",
            ]
            if options.metric in entry:
                value = report.format_metric(options.metric, entry[options.metric])
                parts.insert(2, f"{options.metric.replace('_', ' ')} {value}")
            self.bar.write("  ".join(parts), file=sys.stderr)

    def curve(self) -> Any:
        """Loss and metric over epochs."""

        def line(name: str, key: str, colour: str) -> report.Line:
            points = [(e["epoch"], e[key]) for e in self.progress.history if key in e]
            return report.Line(name, [x for x, _ in points], [y for _, y in points], colour=colour)

        metric, evaluated = self.options.metric, self.progress.best or {}
        name = metric.replace("_", " ")
        losses = [line("training", "train_loss", "#1d5fbf")]
        if "loss" in evaluated:
            losses.append(line("evaluation", "loss", "#d9622b"))
        panels = [report.Panel("Loss", "epoch", "loss", losses)]
        if evaluated and metric != "loss":
            lines = [line("evaluation", metric, "#d9622b")]
            panels.append(report.Panel(name.capitalize(), "epoch", name, lines))
        return report.draw(panels)

    def result(self) -> Result:
        progress = self.progress
        return Result(
            metrics=progress.metrics,
            best=progress.best or progress.history[-1],
            history=progress.history,
            seconds=progress.history[-1]["seconds"],
            parameters=count_parameters(self.model),
        )


def _identity(model: PreTrainedModel, train: Dataset, options: Options) -> dict[str, Any]:
    """What a run and its continuation must share, in plain values."""
    names = {entry.name for entry in dataclasses.fields(options)} - FREE
    # The first that differs is told, so what says most comes first.
    given: dict[str, Any] = {
        "model class": type(model).__name__,
        "parameters": count_parameters(model),
        "training items": _count(train, "train on"),
    }
    given |= {name: getattr(options, name) for name in sorted(names)}
    given["optimizer"] = str(options.optimizer)
    given["optimizer_arguments"] = dict(options.optimizer_arguments)
    config = model.config.to_dict()
    # The rest are transformers' own fields, some of which saving sets.
    for name in ("spec", "head", "id2label"):
        if name in config:
            given[name] = json.dumps(config[name], default=str)
    return given


# Data


class _Batches(Sampler[list[int]]):
    """An epoch's rows, in an order drawn from (seed, epoch), in batches of equal size.

    Equal, as a small last batch would weigh as much as a full one, and one of a single item breaks
    batch norm. Of several processes each gets as many rows, so that a few may come twice.
    """

    def __init__(self, items: int, size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.items, self.seed, self.rank, self.world = items, seed, rank, world
        self.share = math.ceil(items / world)
        self.count = math.ceil(self.share / size)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.items)
        own = np.resize(order, self.share * self.world)[self.rank :: self.world]
        for batch in np.array_split(own, self.count):
            yield batch.tolist()


def _loader(dataset: Dataset, workers: int, **batches: Any) -> DataLoader:
    return DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=workers > 0 and torch.cuda.is_available(),  # without, items may be on the GPU
        generator=torch.Generator(),  # a draw from the global one would move the model's
        **batches,
    )


def _collate(items: Any) -> Mapping[str, Any]:
    """A whole batch as it is, a list of items stacked."""
    return items if isinstance(items, Mapping) else default_data_collator(items)


def _set_epoch(dataset: Any, epoch: int) -> None:
    """Tell a data set the epoch, also through a `Subset` of it."""
    while dataset is not None:
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        dataset = getattr(dataset, "dataset", None)


def _count(dataset: Any, purpose: str) -> int:
    if not hasattr(dataset, "__len__"):
        raise InputError(
            f"a {type(dataset).__name__} has no length to {purpose}; give a data set with len()"
        )
    if len(dataset) == 0:
        raise InputError(f"there is nothing to {purpose}; give a data set with items")
    return len(dataset)


def _no_labels(kind: str, batch: Mapping[str, Any]) -> str:
    return f"{kind} items have no labels, only {', '.join(batch)}; give each item a label"


# Optimizer and schedule


def _optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Norms, biases and scales have at most one axis that is longer than 1.
    weights = [parameter for parameter in trained if parameter.squeeze().ndim > 1]
    others = [parameter for parameter in trained if parameter.squeeze().ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    kind: Any = options.optimizer
    given: dict[str, Any] = {"lr": options.learning_rate}
    if kind in OPTIMIZERS:
        kind, usual = OPTIMIZERS[kind]
        given |= usual
    given |= options.optimizer_arguments
    try:
        return kind([group for group in groups if group["params"]], **given)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{kind.__name__} refuses its arguments {given} ({_reason(error)}); correct "
            "optimizer_arguments"
        ) from error


def _schedule(optimizer: torch.optim.Optimizer, options: Options, steps: int) -> LambdaLR:
    """The learning rate as a function of the update alone. "one_cycle" after Smith & Topin 2018,
    with the shape of torch's OneCycleLR; momentum stays."""
    warmup = WARMUP[options.schedule] if options.warmup is None else options.warmup
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            if options.schedule == "one_cycle":
                return 1 - 0.96 * (1 + math.cos(math.pi * step / rise)) / 2
            return (step + 1) / (rise + 1)
        if options.schedule == "constant":
            return 1.0
        fallen = (step - rise) / max(1, steps - rise)
        return 1 - fallen if options.schedule == "linear" else (1 + math.cos(math.pi * fallen)) / 2

    return LambdaLR(optimizer, factor)


# Precision


def _autocast(device: str, precision: str) -> torch.autocast:
    low = precision == "bfloat16" or (precision == "auto" and _has_bfloat16(device))
    return torch.autocast(device, torch.bfloat16, enabled=low)


def _has_bfloat16(device: str) -> bool:
    """Whether the hardware multiplies in bfloat16, which then is faster than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Have CUDA compute float32 in float32, which its convolutions do not by default."""
    cudnn: Any = torch.backends.cudnn
    layers = [cudnn.conv, cudnn.rnn]
    before = [layer.fp32_precision for layer in layers]
    # Old and new switch: whoever reads the old one in between is refused if they disagree.
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before[0] == "tf32"
        for layer, precision in zip(layers, before, strict=True):
            layer.fp32_precision = precision


# Helpers


def _check(
    model: PreTrainedModel, train: Dataset, evaluation: Dataset | None, options: Options
) -> None:
    _count(train, "train on")
    (batch,) = _loader(Subset(train, [0]), 0)
    if "labels" not in batch:
        raise InputError(_no_labels("training", batch))
    if options.patience is not None and evaluation is None:
        raise InputError("patience counts evaluations; give an evaluation set, or no patience")
    if options.resume and options.output is None:
        raise InputError("there is nothing to resume without output; name the run's folder")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device='cuda' needs a GPU and there is none; use device='auto' or 'cpu'")
    if options.label_smoothing and not hasattr(model, "label_smoothing"):
        raise InputError(
            f"{type(model).__name__} has no label_smoothing to set; give it that attribute and use "
            "it in its loss, or leave label_smoothing=0"
        )


@contextlib.contextmanager
def _borrowed(model: Any, options: Options) -> Iterator[None]:
    """Set up the model for a training, and undo it afterwards."""
    smoothing = getattr(model, "label_smoothing", None)
    use_cache = vars(model.config).get("use_cache")
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # one for every file of every checkpoint
    if smoothing is not None:
        model.label_smoothing = options.label_smoothing
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        if smoothing is not None:
            model.label_smoothing = smoothing
        if options.channels_last:
            # As a loaded model is, so that both compute the same to the last bit.
            model.to(memory_format=torch.contiguous_format)
        vars(model.config).pop("use_cache", None)  # the Trainer's, on every model
        if use_cache is not None:
            model.config.use_cache = use_cache
        if bars:
            transformers_logging.enable_progress_bar()


def _chance(model: Any) -> float | None:
    """The loss of a classifier that guesses, log K; None for what is no such classifier."""
    kind = getattr(model.config, "problem_type", None) or "single_label_classification"
    if type(model).__name__.endswith("Classification") and kind == "single_label_classification":
        return math.log(model.config.num_labels)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """A folder's checkpoints, oldest first. They are whole: they get their name when they are."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def _line(entry: Mapping[str, float]) -> str:
    return json.dumps({k: v if math.isfinite(v) else None for k, v in entry.items()}) + "\n"


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({_reason(error)}); name an output folder that can be "
            "written, on a disk with room"
        ) from error


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0].replace(". ", ": ")


def _duration(seconds: float) -> str:
    """
    >>> _duration(5.2), _duration(130), _duration(7500)
    ('5 s', '2:10 min', '2:05 h')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


__all__: Sequence[str] = ("Diverged", "Options", "Result", "StillAtChance", "evaluate", "fit")
