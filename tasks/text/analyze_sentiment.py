r"""Train a residual net to tell what texts think: negative or positive, or how many stars.

    python -m tasks.text.analyze_sentiment --data ../shared/data/sst2 --name SST-2 --seeds 0 1 2 \
        --record

reached 84.3 +- 0.4 % (TF-IDF without NB's weights 83.5), in a minute and a half of training per
seed on two cores of a Xeon with bfloat16; with --data ../shared/data/imdb --epochs 2 --weights, of
a language model of the same reviews, 91.3 % (NB-SVM on TF-IDF 91.2).

Labels are names, as "negative" and "positive", or whole numbers. 0 and 1 without names are called
so; of more numbers, as of stars, it is also told how far answers are off. All else is as in
tasks.text.classify_text: the net answers together with NB-SVM on TF-IDF, --predict answers a
file line by line, and --explain shows which words spoke for each answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from resbackbones.data import Classes, Column, Target
from resbackbones.metrics import Confusion, MultiLabel
from resbackbones.text import ResidualForSequenceClassification as Model
from tasks._classes import KnownClasses, known_target, names_of
from tasks._recipe import Experiment, Task
from tasks._using import run
from tasks.text._classification import GPU, TextClassification, items
from tasks.text._classification import experiment as of_texts
from tasks.text._lines import explain, read

POLES = ("negative", "positive")


@dataclass(frozen=True, kw_only=True)
class Config(TextClassification):
    """The fields of all recipes of text classifiers."""


@dataclass(frozen=True)
class Opinions(Classes):
    """Classes of opinions: 0 and 1 without names are "negative" and "positive"."""

    def learn(self, train: Column) -> Classes:
        return super().learn(with_poles(train))


@dataclass(frozen=True)
class KnownOpinions(KnownClasses):
    """The classes of a model in other data, where 0 and 1 are its poles."""

    def learn(self, train: Column) -> KnownClasses:
        return super().learn(with_poles(train) if self.names == POLES else train)


def known_opinions(model: Model) -> Target:
    return known_target(model) if model.is_multi_label else KnownOpinions(names_of(model))


def with_poles(column: Column) -> Column:
    """A column, with names for 0 and 1 where it has no other numbers and no names for them."""
    named = column.class_names is not None or column.listed is not None
    if named or any(cell not in (0, 1, None) for cell in column.cells):
        return column
    return replace(column, listed=POLES)


def how_far_off(metric: Confusion | MultiLabel) -> Iterator[str]:
    """By how many stars the answers are off, where classes are so many numbers."""
    if not isinstance(metric, Confusion) or len(metric.names) < 3:
        return
    try:
        stars = torch.tensor([float(name) for name in metric.names])
    except ValueError:
        return
    off = (stars.unsqueeze(1) - stars).abs()
    share = metric.counts / metric.counts.sum()
    within = float(share[off <= 1].sum())
    yield (
        f"answers are off by {float((share * off).sum()):.2f} on average; {100 * within:.1f} % by "
        "no more than 1"
    )


def experiment(config: Config) -> Experiment:
    return of_texts(config, None if config.multi_label else Opinions())


USE = """
import transformers
import resbackbones.text

analyze = transformers.pipeline("sentiment-analysis", model="{model}")
print(analyze(["I would see it again", "a waste of time"]))
"""
TASK = Task(
    *("analyze_sentiment", "text", Config, experiment, items, (Model,), read, USE, GPU),
    target=known_opinions,
    predicted=explain,
    remarks=how_far_off,
)

if __name__ == "__main__":
    run(TASK)
