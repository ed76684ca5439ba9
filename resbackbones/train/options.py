"""`Options`: how to train, checked before anything starts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch

from resbackbones.errors import InputError, nearest

Optimizer: TypeAlias = Literal["adamw", "sgd"]
Schedule: TypeAlias = Literal["cosine", "one_cycle", "linear", "constant"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
Keep: TypeAlias = Literal["best", "last"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
if TYPE_CHECKING:
    Kind: TypeAlias = str | type[torch.optim.Optimizer]
    Arguments: TypeAlias = Mapping[str, Any]
else:  # what a command line can say
    Kind = Optimizer
    Arguments = dict[str, float]

SMALLEST = 8  # items that a batch is never cut below for the sake of more updates


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to train.

    Raises:
        InputError: an unknown name, or a number out of range.
    """

    output: Path | None = None
    """Folder for log.jsonl, curve.png and the newest checkpoints (nothing is kept)."""
    epochs: int = 20
    """Passes over the training items."""
    batch_size: int = 64
    """Items per step, at most: an epoch is cut into updates of equal size, give or take one."""
    least_updates: int = 20
    """Updates that an epoch of few items has at least: its batches are smaller, down to 8."""
    budget: int | None = None
    """Positions (frames, tokens) per batch at most, padding included: items of like length share a
    batch (no limit, and any items do)."""
    accumulate: int = 1
    """Batches to an update, which is then that of one batch of all their items."""
    optimizer: Kind = "adamw"
    """"adamw", "sgd" (with Nesterov momentum 0.9), or from Python any class of optimizer."""
    optimizer_arguments: Arguments = field(default_factory=dict)
    """Further arguments of the optimizer, by name."""
    learning_rate: float = 1e-3
    """The schedule's peak."""
    layer_decay: float = 1.0
    """The rate of each residual block, as a share of that of the next deeper one (fine-tuning:
    0.7 to 0.9)."""
    unfreezing: float = 0.0
    """Share of the updates over which layers begin to learn, one after the other from the head to
    the embedding (fine-tuning: 0.2 to 0.5; 0: all from the start)."""
    weight_decay: float = 0.0
    """On weights; norms, biases and scales are left alone."""
    schedule: Schedule = "cosine"
    """What follows the rise to the peak: "cosine" and "linear" fall to 0, "constant" stays;
    "one_cycle" rises as a cosine, from 1/25 of the peak, and falls as one."""
    warmup: float | None = None
    """Share of the updates the rise takes (0.05; one_cycle 0.3; constant 0)."""
    clip: float = 0.0
    """Largest norm of the whole gradient (0: any)."""
    moving_average: float = 0.0
    """Evaluate and keep an average of the weights, of which each update leaves this share as it
    was, as 0.999 (0: the weights themselves)."""
    label_smoothing: float = 0.0
    """Share of every label that is spread over all classes in training."""
    precision: Precision = "auto"
    """"auto" computes in bfloat16 where the hardware does, else in float32; weights are float32."""
    channels_last: bool = True
    """Lay 4-D weights out channels last while training."""
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
    """Items per step in evaluation, at most."""
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
    """Show a progress bar and a line per epoch."""

    def __post_init__(self) -> None:
        named: dict[str, Any] = {"optimizer": Optimizer, "schedule": Schedule}
        named |= {"precision": Precision, "keep": Keep, "device": Device}
        for name, known in named.items():
            value = getattr(self, name)
            if isinstance(value, type) and issubclass(value, torch.optim.Optimizer):
                continue
            check_known(name, value, known)
        for name in ("epochs", "batch_size", "least_updates", "accumulate", "evaluate_every"):
            self._check(name, Integral, 1)
        for name in ("evaluation_batch_size", "checkpoint_every"):
            self._check(name, Integral, 1)
        for name in ("budget", "patience", "checkpoint_steps"):
            self._check(name, Integral, 1, optional=True)
        for name in ("workers", "seed"):
            self._check(name, Integral, 0)
        for name in ("learning_rate", "weight_decay", "clip"):
            self._check(name, Real, 0)
        shares = "layer_decay", "unfreezing", "moving_average", "label_smoothing", "chance_share"
        for name in shares:
            self._check(name, Real, 0, 1)
        self._check("warmup", Real, 0, 1, optional=True)

    def _check(
        self, name: str, kind: type, low: float, high: float = math.inf, optional: bool = False
    ) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if not isinstance(value, kind) or not low <= value <= high or value == math.inf:  # type: ignore[operator]
            what = "a whole number" if kind is Integral else "a number"
            until = f"{low} up" if high == math.inf else f"{low} to {high}"
            raise InputError(f"{name}={value!r} is out of range; give {what} from {until}")

    def fitting_batch(self, items: int, world: int = 1) -> int:
        """The items per step of a training on so many: `batch_size`, or fewer where an epoch would
        have less than `least_updates` updates.

        >>> options = Options(batch_size=128)
        >>> options.fitting_batch(50_000), options.fitting_batch(367), options.fitting_batch(12)
        (128, 18, 8)
        """
        per_update = items // (self.least_updates * self.accumulate * world)
        return min(self.batch_size, max(SMALLEST, per_update))


def check_known(name: str, value: object, known: Any) -> None:
    """Refuse what is none of a `Literal`'s values."""
    if value not in get_args(known):
        raise InputError(f"{name}={value!r} is not known; {nearest(str(value), get_args(known))}")


# What a run and its continuation need not share: none of it changes the result.
FREE = {"output", "resume", "progress", "workers", "chance_share"}
FREE |= {"evaluation_batch_size", "checkpoint_every", "checkpoint_steps", "device"}
