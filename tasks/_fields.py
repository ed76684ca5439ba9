"""The fields that every recipe has, and how its data are opened."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import torch
import tyro

from resbackbones import report
from resbackbones.core.spec import BackboneSpec
from resbackbones.data import Classes, Source, Splits, Target, open_dataset, open_splits
from resbackbones.errors import InputError
from resbackbones.train import Options, World

if TYPE_CHECKING:
    Spec: TypeAlias = str | BackboneSpec
else:  # what a command line can say
    Spec = str


@dataclass(frozen=True, kw_only=True)
class Recipe(Options):
    """The fields of every recipe; those of `train.Options` are among them."""

    data: str | None = None
    """Your data: a folder of class folders, a Parquet, CSV or JSON Lines file or a folder of such
    files, media beside a metadata.csv, a hub id, or a folder written by `save_to_disk`."""
    name: str | None = None
    """What to call the data in the table and the record (their folder's name)."""
    setting: Literal["cpu", "gpu"] = "cpu"
    """Whose defaults: those for minutes on two cores, or those for a GPU, a larger net trained for
    longer (--setting gpu --help shows them)."""
    spec: Spec = "resnet18"
    """A net in resbackbones.SPECS."""
    skip: Literal["identity", "none"] = "identity"
    """"none" trains the plain control: the same net without its skips."""
    weights: Path | None = None
    """Start from weights that are there: a saved model, or a file or folder of torchvision, timm or
    transformers; a head for other classes starts anew."""
    freeze: bool = False
    """Train the head alone: the backbone stays as --weights gives it, statistics of norms too."""
    input_column: str | None = None
    """The column of what the net sees (found by its type and name)."""
    label_column: str | None = None
    """The column of the labels: of classes, texts, boxes or masks (found by its type and name)."""
    group_column: str | None = None
    """The column of what must not stand in two splits, such as the speaker (found by its name;
    give "" to mix them)."""
    group_pattern: str | None = None
    """A regular expression that finds the group in the path of an item's file instead, as
    "([^/_]+)_" for anna_3.wav."""
    separator: str | None = None
    """What stands between the cells of a CSV file, as ";" or tab (found, and said)."""
    encoding: str | None = None
    """Of a CSV, JSON Lines or text file, as latin-1 (UTF-8)."""
    train_limit: int | None = None
    """Train on at most this many rows, chosen at random (all)."""
    on_bad: Literal["error", "skip"] = "error"
    """Whether a damaged or unlabelled item stops the run, or is left out and counted."""
    seeds: tuple[int, ...] = (0,)
    """One training per seed."""
    seed: Annotated[int, tyro.conf.Suppress] = 0
    folds: int | None = None
    """Without a test split, measure by cross-validation in so many parts, a training for each;
    0: on the validation split (5 where that has fewer than 30 rows and was held out of train). With
    as many parts as there are groups, as speakers, each is left out once."""
    join: bool = False
    """Add the test split to train, to cross-validate on all rows (--folds)."""
    fold: Annotated[tuple[int, int] | None, tyro.conf.Suppress] = None
    least_steps: int = 400
    """Updates that a training has at least: on few items it takes more epochs than --epochs."""
    output: Path | None = None
    """Folder for models, logs, curves and results.json (one of this recipe and time in runs/)."""
    resume: bool = False
    """Go on with --output, or with the newest run of this recipe."""
    evaluate: Path | None = None
    """Train nothing: measure this saved model (…/seed-0/model) on --data, on its test split where
    there are several."""
    predict: tuple[Path, ...] = ()
    """Train nothing: a saved model, and then files, or folders of them, for it to answer; of texts
    also - for standard input."""
    record: bool = False
    """Write the result to results/, for a README."""
    change: str = ""
    """What tells this training from the usual one, in the table and the record, as "no dropout"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds:
            raise InputError("--seeds is empty; give at least one, as --seeds 0")
        if self.folds is not None and (self.folds < 0 or self.folds == 1):
            raise InputError(f"--folds is {self.folds}; give 2 or more, or 0 for none")
        if self.join and not self.folds:
            raise InputError("--join leaves no test split; say in how many parts with --folds")
        if self.least_steps < 0:
            raise InputError(f"--least-steps is {self.least_steps}; give a number from 0 up")
        if self.freeze and self.weights is None:
            raise InputError("--freeze keeps what --weights gives; give both, or neither")
        if self.data is None and not self.predict:
            raise InputError("there is nothing to train on; name your data with --data")
        if len(self.predict) == 1 and not self.asks:
            raise InputError("--predict names a model and no file; give files behind the model")

    @property
    def asks(self) -> bool:
        """Whether a saved model is asked something that stands in no file."""
        return False

    @property
    def where(self) -> torch.device:
        """Where this process keeps its items and trains."""
        return World.join(self.device).device

    @property
    def arm(self) -> str:
        """What was trained, in a table."""
        name = self.spec if isinstance(self.spec, str) else "net"
        changed = f"{report.CHANGE}{self.change}" if self.change else ""
        return name + self.variant + ("-plain" if self.skip == "none" else "") + changed

    @property
    def variant(self) -> str:
        """What else tells its training from the usual one, for that name."""
        return ""

    @property
    def advice(self) -> str:
        """What to try where a baseline is better than the net."""
        return "give the net more data or more --epochs"

    def open(self, kind: str, target: Target | None = None) -> Splits:
        """The splits of the data; `kind` is "image", "audio" or "text", the target `Classes()`."""
        splits = open_splits(
            str(self.data), train_limit=self.train_limit, **self._opening(kind, target or Classes())
        )
        if self.join:
            splits = splits.together()
        return splits if self.fold is None else splits.fold(*self.fold)

    def open_alone(self, kind: str, target: Target) -> Source:
        """The split to measure a model on: the only one, else test, else validation."""
        splits = ("test", "validation", "train")
        return open_dataset(str(self.data), splits, **self._opening(kind, target))

    def columns(self, target: Target) -> dict[str, str | None]:
        """Role -> column, None to find it."""
        return {
            "input": self.input_column,
            target.role or "label": self.label_column,
            "group": self.group_column,
        }

    def _opening(self, kind: str, target: Target) -> dict[str, Any]:
        return {
            "columns": self.columns(target),
            "target": target,
            "kind": kind,
            "on_bad": self.on_bad,
            "group_pattern": self.group_pattern,
            "separator": self.separator,
            "encoding": self.encoding,
        }
