"""What every recipe shares: all that happens around a training.

A recipe is a `Config` of its own few fields and an `experiment` that says what is trained on what;
seeds, evaluation, saving, printing and recording happen here, once, also under `torchrun`. The
fields that all recipes have stand in `_fields.py`, what a saved model is used for in `_using.py`.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from resbackbones import report
from resbackbones.core.backbone import count_macs, count_parameters
from resbackbones.data import Items, Source, Splits, Target, speaker_leak
from resbackbones.errors import InputError
from resbackbones.metrics import Metric
from resbackbones.pretrained import ResidualPreTrainedModel
from resbackbones.train import Result, World, evaluate, fit
from resbackbones.weights import load_weights
from tasks import _running
from tasks._classes import known_target, name_classes
from tasks._fields import Recipe
from tasks._telling import Run, remarks, table, write_results

T = TypeVar("T")
FOLDS = 5
FIGURES = (  # of a classifier: of one class per item, or of any number of them
    *("accuracy", "mean_average_precision", "macro_f1", "micro_f1", "calibration_error"),
)
FEW = 30  # rows that say too little of an accuracy: its interval is 34 points wide at half


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, and what stands beside it.

    Attributes:
        splits: the rows.
        train, validation, test: the same as items. Without a test split `test` is `validation`;
            where train has the validation rows too, `validation` is None.
        build: a fresh model, drawn from torch's global generator; takes changes of its spec.
        baseline: the strongest cheap one on the same rows: its name, and a metric that has counted
            its answers.
        found: what there is to say of the items before training: sizes, durations, lengths.
        finish: what is still done to a trained model before it is measured and saved.
        most_epochs: what these items take at most; None for as many as the configuration has.
        protocol: what was trained on and chosen by, in a few words, where items are no rows of the
            splits (windows of a text); `found` then says all there is to say of the data.
        split: what is measured on, where it is neither "test" nor, without that, "validation".
        per: what the multiply-adds are counted for, and how many of these an item has.
        sample: what a trained model makes, as text, for the record.
        load: takes --weights into a model and says what came of it.
        calibrate: what is still chosen for the model of a seed, and written to its folder, before
            it is saved; and what there is to say of it, for the record.
    """

    splits: Splits
    train: Items
    validation: Items | None
    test: Items
    build: Callable[..., Any]
    baseline: Callable[[], tuple[str, Metric]]
    found: str
    finish: Callable[[Any], None] | None = None
    most_epochs: int | None = None
    protocol: str = ""
    split: str = ""
    per: tuple[str, int] = ("item", 1)
    sample: Callable[[Any], str] | None = None
    load: Callable[[Any, Path], list[str]] = load_weights
    calibrate: Callable[[Any, Path], str] | None = None

    @property
    def skipped(self) -> list[str]:
        """The rows and the damaged items left out, "name: reason"."""
        parts = (self.splits, self.train, self.validation, self.test)
        return list(dict.fromkeys(name for part in parts for name in getattr(part, "skipped", [])))


def each(splits: Splits, make: Callable[[Source], T]) -> tuple[T, T, T]:
    """Train, validation and test, made into something; test is validation where there is none."""
    train, validation = make(splits.train), make(splits.validation)
    return train, validation, validation if splits.test is None else make(splits.test)


@dataclass(frozen=True)
class Task:
    """A recipe, as `run` needs it.

    Attributes:
        name: of its folder and its records.
        kind: of its inputs: "image", "audio" or "text".
        config: its fields.
        experiment: what it trains.
        items: a source as the items, not augmented, of a model with this processor or, `by_model`,
            of this model.
        models: the classes of its models; the configuration of a saved one says which it is.
        read: a file as what `answer` takes, one input or more, for this processor.
        use: Python that loads `{model}`, of the class `{name}`, and calls it.
        gpu: the defaults of `--setting gpu` that differ.
        figures: as they stand in the table, those that the metric has; the first of these is the
            one recorded.
        target: what a model is measured on.
        answer: from a model to what it makes of an input, as cells of a table by their headings;
            None where `predicted` tells it.
        predicted: what else is made of a configuration, a model and the inputs that it answered.
        remarks: what else there is to say of a metric, in sentences.
        prepare: sets a saved model up as a configuration asks.
        by_model: whether more than a model's processor tells how its items are made.
        higher_is_better: of the figure that is recorded.
    """

    name: str
    kind: str
    config: type[Recipe]
    experiment: Callable[[Any], Experiment]
    items: Callable[[Any, Source, Any], Items]
    models: Sequence[type[ResidualPreTrainedModel]]
    read: Callable[[Path, Any], list[Any]]
    use: str
    gpu: Mapping[str, Any]
    figures: tuple[str, ...] = FIGURES
    target: Callable[[Any], Target] = known_target
    answer: Callable[[Any], Callable[[Any], Mapping[str, str]]] | None = name_classes
    predicted: Callable[[Any, Any, Sequence[Any]], None] | None = None
    remarks: Callable[[Any], Iterable[str]] = lambda metric: ()
    prepare: Callable[[Any, Any], None] | None = None
    by_model: bool = False
    higher_is_better: bool = True

    def figure(self, metrics: Mapping[str, float]) -> str:
        """The one of a metric's figures that is recorded."""
        return next(name for name in self.figures if name in metrics)


# Training


def train(task: Task, config: Recipe) -> None:
    """Train a model per seed, measure each once on the test split, and tell it all."""
    world = World.join(config.device)
    say = print if world.first else _silence
    folder = world.once(lambda: _running.run_folder(task.name, config.output, config.resume))
    try:
        made = task.experiment(config)
        found(made, say)
        config = fitting(config, made, world, say)
        parts = folds(task, config, made, say)
        say("the baseline …", flush=True)
        baseline = world.once(lambda: together([part.baseline() for part in parts or [made]]))
        simple = baseline[1].compute()
        figure = task.figure(simple)
        say(f"{baseline[0]}: {report.format_metric(figure, simple[figure])}", flush=True)
        runs = []
        for seed in config.seeds:
            if len(config.seeds) > 1:
                say(f"seed {seed}", flush=True)
            runs.append(one_seed(made, parts, config, folder / f"seed-{seed}", seed, world))
    except _running.Stopped as stopped:
        stopped.folder = folder
        stopped.further = [] if config.resume else ["--resume"]
        stopped.further += [] if config.output else ["--output", str(folder)]
        raise
    if world.first:
        conclude(task, config, made, len(parts), runs, baseline, folder)


def found(made: Experiment, say: Callable[..., None]) -> None:
    """Say what the data are, before anything is learned from them."""
    splits = made.splits
    other = splits.test or splits.validation
    said = [made.found] if made.protocol else [splits.found(), made.found]
    if (leak := speaker_leak(splits.train, other)) is not None:
        said.append(f"{leak:.0%} of the items of {other.name} are of groups seen in training.")
    for line in filter(None, said):
        say(_running.wrapped(line), flush=True)


def folds(
    task: Task, config: Recipe, made: Experiment, say: Callable[..., None]
) -> list[Experiment]:
    """The parts of a cross-validation; none where the data have a split that says enough."""
    splits, rows = made.splits, len(made.test)
    if splits.test is not None:
        if config.folds:
            raise InputError(
                f"--folds {config.folds} is for data without a test split; leave it out, or add "
                "the test split to the others with --join"
            )
        return []
    count = config.folds
    if count is None:
        count = FOLDS if splits.held_out and rows < FEW else 0
        if count:
            say(
                f"{rows} held out rows say too little, so {count} more trainings cross-validate "
                "(--folds 0: none)"
            )
    if count > len(made.train):
        raise InputError(f"--folds {count} is more than the rows there are; give fewer")
    return [task.experiment(replace(config, fold=(number, count))) for number in range(count)]


def together(found: Sequence[tuple[str, Any]]) -> tuple[str, Any]:
    """Baselines of several parts as one: the first one's name, all that they counted."""
    (name, metric), *others = found
    for _, other in others:
        metric.merge(other)
    return name, metric


def one_seed(
    made: Experiment,
    parts: Sequence[Experiment],
    config: Recipe,
    place: Path,
    seed: int,
    world: World,
) -> Run:
    """Train, measure and save the model of one seed; with parts of a cross-validation, what is
    measured are models trained on the rest of each, for as long, with nothing chosen on it."""

    def trained(part: Experiment, validation: Items | None, output: Path) -> tuple[Any, Result]:
        torch.manual_seed(seed)
        part.train.seed = seed
        model = part.build()
        if config.weights is not None:
            told = part.load(model, config.weights)
            if world.first and part is made:
                print(_running.wrapped("; ".join(told)), flush=True)
        if config.freeze:
            model.freeze_backbone()
        result = fit(model, part.train, validation, replace(config, output=output, seed=seed))
        if part.finish is not None:
            part.finish(model)
        return model, result

    measure = partial(evaluate, batch_size=config.evaluation_batch_size, budget=config.budget)
    model, result = trained(made, made.validation, place)
    told = ""
    if world.first:
        told = "" if made.calibrate is None else made.calibrate(model, place)
        model.save_pretrained(place / "model")
    metric = model.metric()
    if not parts:
        measure(model, made.test, metric)
    for number, part in enumerate(parts, 1):
        other, _ = trained(part, None, place / f"part-{number}")
        counted = other.metric()
        measure(other, part.test, counted)
        metric.merge(counted)
    sample = told if (write := made.sample) is None else world.once(lambda: write(model))
    return Run(seed, metric, result, sample)


def fitting(config: Recipe, made: Experiment, world: World, say: Callable[..., None]) -> Recipe:
    """As many epochs as the items take: no more than `most_epochs`, but what `least_steps` updates
    need; of more than the configuration has, as many evaluations and checkpoints as of those."""
    items, asked = len(made.train), config.epochs
    size = config.fitting_batch(items, world.size) * config.accumulate * world.size
    least = math.ceil(config.least_steps / math.ceil(items / size))
    if least > asked:
        say(f"{least} epochs: {asked} of {items} items are too few updates (--least-steps)")
        every = math.ceil(least / asked)
        return replace(
            config,
            epochs=least,
            evaluate_every=config.evaluate_every * every,
            checkpoint_every=config.checkpoint_every * every,
        )
    most = max(least, made.most_epochs or asked)
    if most < asked:
        say(f"{most} epochs: {asked} of texts so long are not worth their time (--most-tokens)")
        return replace(config, epochs=most)
    return config


def _silence(*_: object, **__: object) -> None:
    """What every process but the first prints."""


def conclude(
    task: Task,
    config: Recipe,
    made: Experiment,
    parts: int,
    runs: Sequence[Run],
    baseline: tuple[str, Metric],
    folder: Path,
) -> None:
    """Print the final table with the baseline beside the net, write results.json and, if asked, the
    record, and say what comes next."""
    splits, name = made.splits, config.name or Path(str(config.data)).name
    model = made.build()
    example = {n: x.unsqueeze(0) for n, x in made.test[0].items() if n != "labels"}
    parameters = count_parameters(model)
    unit, count = made.per
    macs = count_macs(model, {n: x.cpu() for n, x in example.items()}) // count
    split = f"{parts}-fold cross-validation"
    if parts and (column := splits.folded_by(parts)):
        split += f" by {column}"
    elif not parts:
        split = made.split or ("validation" if splits.test is None else "test")
    shown = split if parts or made.split else f"{split} split"
    print(f"\n{name}, {shown} ({protocol(made)})\n")
    simple = baseline[1].compute()
    figure = task.figure(simple)
    print(table(task.figures, config.arm, runs, baseline))
    seconds = sum(run.result.seconds for run in runs) / len(runs)
    print(
        f"\n{report.format_count(parameters)} parameters, {report.format_count(macs)} MACs per "
        f"{unit}; training {seconds:.0f} s per seed"
    )
    said = remarks(figure, runs, baseline, made.skipped, config.advice, task.higher_is_better)
    for line in [*task.remarks(runs[0].metric), *said]:
        print(_running.wrapped(line))
    write_results(folder / "results.json", runs, baseline)
    if config.record:
        made_record = report.result_record(
            task=task.name,
            dataset=name,
            protocol=protocol(made),
            split=split,
            arm=config.arm,
            metric=figure,
            higher_is_better=task.higher_is_better,
            seeds=[run.seed for run in runs],
            values=[run.metrics[figure] for run in runs],
            seconds=[run.result.seconds for run in runs],
            parameters=parameters,
            macs=macs,
            baseline=(baseline[0], simple[figure]),
            held_out=splits.held_out,
            skipped=len(made.skipped),
            sample=runs[0].sample,
            figures=further(task, runs),
        )
        print(f"recorded {report.save_record(made_record)}")
    print(f"\nModels, logs and curves are in {folder}; results.json has every figure. Use one:\n")
    place = folder / f"seed-{config.seeds[0]}" / "model"
    use = task.use.format(model=place, name=type(model).__name__)
    print(textwrap.indent(use.strip(), "    "))


def further(task: Task, runs: Sequence[Run]) -> dict[str, list[float]]:
    """What each seed came to in the other figures, but for those that are no finite number."""
    each = [run.metrics for run in runs]
    known = [name for name in task.figures if name in each[0] and name != task.figure(each[0])]
    found = {name: [metrics[name] for metrics in each] for name in known}
    return {name: values for name, values in found.items() if all(map(math.isfinite, values))}


def protocol(made: Experiment) -> str:
    """What was trained on and chosen by, in a few words."""
    if made.protocol:
        return made.protocol
    held = made.splits.how
    if made.validation is None:
        rows = f"{len(made.train):,} training rows, those for validation among them"
        return f"{rows} ({held})" if held else rows
    rows = f"{len(made.train):,} training and {len(made.validation):,} validation rows"
    return f"{rows}, the latter {held}" if held else rows
