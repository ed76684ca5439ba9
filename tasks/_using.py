"""The command line of a recipe, and what a saved model is used for: measured, or asked."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from resbackbones import report
from resbackbones.data.columns import MEDIA
from resbackbones.errors import InputError
from resbackbones.metrics import Confusion
from resbackbones.train import Options, World, evaluate
from tasks import _running
from tasks._classification import Classification
from tasks._fields import Recipe
from tasks._recipe import Task, train
from tasks._telling import cells, class_table, header, how_well_known, left_out, mistakes

ENDINGS: dict[str, Sequence[str]] = {**MEDIA, "text": (".txt",)}


def run(task: Task, arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says."""
    groups: dict[type, str] = {Recipe: "data", Classification: "data"}
    groups |= {base: task.kind for base in task.config.__mro__ if base not in (*groups, Options)}
    groups[Options] = "training"
    _running.run(partial(begin, task), task.config, arguments, groups, {"gpu": task.gpu})


def begin(task: Task, config: Recipe) -> None:
    """Train, measure or predict."""
    if config.predict:
        predict(task, config)
    elif config.evaluate is not None:
        measure(task, config, config.evaluate)
    else:
        train(task, config)


def load(task: Task, config: Recipe, saved: Path) -> Any:
    """A saved model of this recipe, set up as the configuration asks.

    Raises:
        InputError: there is none, or it is another recipe's.
    """
    told = saved / "config.json"
    text = told.read_text(encoding="utf-8") if told.is_file() else ""
    # transformers would make what it can of any configuration.
    fitting = [
        each for each in task.models if f'"model_type": "{each.config_class.model_type}"' in text
    ]
    if text and not fitting:
        raise InputError(f"{saved} is no model of {task.name}; use the recipe that trained it")
    model = (fitting or task.models)[0].from_pretrained(saved)
    if task.prepare is not None:
        task.prepare(config, model)
    return model


def measure(task: Task, config: Recipe, saved: Path) -> None:
    """Evaluate a saved model on the data."""
    world = World.join(config.device)
    model = load(task, config, saved).to(world.device)
    source = config.open_alone(task.kind, task.target(model))
    items = task.items(config, source, model if task.by_model else model.processor)
    metric = model.metric()
    size = config.evaluation_batch_size
    metrics = evaluate(model, items, metric, batch_size=size, budget=config.budget)
    if world.first:
        print(f"\n{saved} on {len(items):,} items of {source.name}\n")
        print(report.markdown_table(header(metrics), [cells(list(metrics), metrics)], left=0))
        print(f"\n{class_table(metric)}\n" if hasattr(metric, "per_class") else "")
        said = [*task.remarks(metric)]
        if isinstance(metric, Confusion):
            said += [*mistakes(metric), *how_well_known(metric)]
        for line in [*said, *left_out(getattr(items, "skipped", []))]:
            print(_running.wrapped(line))


def predict(task: Task, config: Recipe) -> None:
    """Have a saved model answer files."""
    saved, *files = config.predict
    model = load(task, config, saved).to(World.join(config.device).device).eval()
    answer = task.answer and task.answer(model)
    rows: list[Mapping[str, str]] = []
    inputs, skipped = [], []
    for path in [path for given in files for path in _files(given, task.kind)]:
        try:
            values = task.read(path, model.processor)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever a decoder makes of a broken file
            reason = str(error).partition("\n")[0].rstrip(". ") or type(error).__name__
            if config.on_bad == "error":
                raise InputError(
                    f"{path} cannot be read ({reason}); leave it out, or all such (--on-bad skip)"
                ) from error
            skipped.append(f"{path}: {reason}")
            continue
        for value in values:
            text = isinstance(value, str)
            shown = {"text": value[:60]} if text else {"file": str(path)}
            if answer is not None:
                rows.append({**shown, **answer(value)})
            if task.predicted is not None:
                inputs.append(value)
    if rows:
        print(report.markdown_table(list(rows[0]), [list(row.values()) for row in rows], left=4))
    if task.predicted is not None:
        task.predicted(config, model, inputs)
    for line in left_out(skipped):
        print(f"\n{_running.wrapped(line)}")


def _files(given: Path, kind: str) -> list[Path]:
    """A file, or those of a folder that could be read.

    Raises:
        InputError: a folder without one.
    """
    if not given.is_dir():
        return [given]
    found = sorted(path for path in given.rglob("*") if path.suffix.lower() in ENDINGS[kind])
    if not found:
        endings = ", ".join(ENDINGS[kind])
        raise InputError(f"the folder {given} holds no file to answer; expected {endings}")
    return found
