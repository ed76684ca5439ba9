"""What a run says while it goes: a bar, a line per epoch, log.jsonl, curve.png."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from resbackbones import report
from resbackbones.train.checkpoint import writing
from resbackbones.train.options import Options

Entry = Mapping[str, float]  # of a history
REDRAWN = 30.0  # seconds between two drawings of the curve
SAID = 1.0  # seconds between two lines (an epoch of few items takes less), …
SAID_LESS = 10.0  # … where the second one has no evaluation to tell


class Clock:
    """Seconds of training alone, without evaluation and saving."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.since: float | None = None

    def start(self) -> None:
        self.since = time.perf_counter()

    def stop(self) -> float:
        if self.since is not None:
            self.seconds += time.perf_counter() - self.since
            self.since = None
        return self.seconds


class Progress:
    """The bar on the terminal, the log and the curve in the folder; of the first process alone."""

    def __init__(self, options: Options, steps: int, step: int, *, first: bool) -> None:
        self.options, self.steps, self.began = options, steps, (step, time.perf_counter())
        self.folder = options.output if first else None
        self.shown = first and options.progress
        self.drawn = time.perf_counter()
        self.said = -math.inf
        self.bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            leave=False,
            disable=None if self.shown else True,
        )

    def say(self, text: str) -> None:
        """A line for the terminal."""
        if self.shown:
            self.bar.write(text, file=sys.stderr)

    def stepped(self) -> None:
        self.bar.update()

    def close(self) -> None:
        self.bar.close()

    def begin(self, history: Sequence[Entry]) -> None:
        """Have the log say what the history says: epochs after a checkpoint will end again."""
        if self.folder is not None:
            with writing(self.folder):
                text = "".join(map(_line, history))
                (self.folder / "log.jsonl").write_text(text, encoding="utf-8")

    def ended(self, history: Sequence[Entry], *, last: bool) -> None:
        """An epoch ended, whose entry is the history's last."""
        entry = history[-1]
        if self.folder is not None:
            with writing(self.folder):
                with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(_line(entry))
                if last or time.perf_counter() - self.drawn > REDRAWN:
                    figure = curve(history, self.options.metric)
                    report.save_figure(figure, self.folder / "curve.png")
                    self.drawn = time.perf_counter()
        pause = SAID if self.options.metric in entry else SAID_LESS
        if last or time.perf_counter() - self.said > pause:
            self.say(self._summary(entry))
            self.said = time.perf_counter()

    def _summary(self, entry: Entry) -> str:
        step, since = self.began
        passed = time.perf_counter() - since
        left = passed / max(1, entry["step"] - step) * (self.steps - entry["step"])
        width, metric = len(str(self.options.epochs)), self.options.metric
        parts = [
            f"epoch {entry['epoch']:>{width}}/{self.options.epochs}",
            f"loss {entry['train_loss']:.4f}",
            f"rate {entry['learning_rate']:.2e}",
            f"{duration(entry['seconds'])}, {duration(left)} left",
        ]
        if metric in entry:
            value = report.format_metric(metric, entry[metric])
            parts.insert(2, f"validation {metric.replace('_', ' ')} {value}")
        return "  ".join(parts)


def curve(history: Sequence[Entry], metric: str) -> Any:
    """Loss and metric over epochs. (Smoothed or mixed labels keep the training loss above that of
    the validation split, which has plain ones.)"""

    def line(name: str, key: str, colour: str) -> report.Line:
        points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
        return report.Line(name, [x for x, _ in points], [y for _, y in points], colour=colour)

    evaluated = {key for entry in history for key in entry}
    losses = [line("training", "train_loss", "#1d5fbf")]
    if "loss" in evaluated:
        losses.append(line("validation", "loss", "#d9622b"))
    panels = [report.Panel("Loss", "epoch", "loss", losses)]
    if metric in evaluated - {"loss"}:
        name = metric.replace("_", " ")
        lines = [line("validation", metric, "#d9622b")]
        panels.append(report.Panel(name.capitalize(), "epoch", name, lines))
    return report.draw(panels)


def _line(entry: Entry) -> str:
    return json.dumps({k: v if math.isfinite(v) else None for k, v in entry.items()}) + "\n"


def duration(seconds: float) -> str:
    """
    >>> duration(5.2), duration(130), duration(7500)
    ('5 s', '2:10 min', '2:05 h')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"
