"""What the recipes of classifiers share: a model's classes in other data, and its answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import transformers

from resbackbones.data import Classes, Column, Labels, Target


@dataclass(frozen=True)
class KnownClasses(Classes):
    """The classes of a model, found in data that may number them otherwise, or lack some.

    A number in the column stands for the name that the data give it, where they name it, else for
    itself.

    Attributes:
        listed: the names that stand in a list beside the data; None as long as nobody looked.
    """

    listed: tuple[str, ...] | None = None

    def learn(self, train: Column) -> "KnownClasses":
        return replace(self, listed=train.listed or ())

    def faults(self, column: Column) -> dict[int, str]:
        if self.listed is None:
            return {}
        known = ", ".join(map(repr, self.names[:12])) + ", …" * (len(self.names) > 12)
        return {
            row: f"has no label in column {column.name!r}"
            if name is None
            else f"is of the class {name!r}, which the model does not know, only {known}"
            for row, name in enumerate(self._named(column))
            if name not in self.names
        }

    def numbers(self, column: Column) -> list[int]:
        position = {name: number for number, name in enumerate(self.names)}
        return [position.get(name or "", -1) for name in self._named(column)]

    def _named(self, column: Column) -> list[str | None]:
        own: dict[Any, str] = dict(enumerate(column.class_names or self.listed or ()))
        cells = [int(c) if isinstance(c, float) and c.is_integer() else c for c in column.cells]
        return [None if cell in (None, "") else own.get(cell, str(cell)) for cell in cells]


@dataclass(frozen=True)
class KnownLabels(Labels):
    """As `KnownClasses`, of a model that gives an item any number of classes."""

    listed: tuple[str, ...] | None = None

    def learn(self, train: Column) -> "KnownLabels":
        return replace(self, separator=self.separator_of(train), listed=train.listed or ())

    def _one(self) -> Classes:
        return KnownClasses(self.names, listed=self.listed)


def names_of(model: Any) -> tuple[str, ...]:
    """A model's classes, in the order of their numbers."""
    return tuple(model.config.id2label[number] for number in range(model.config.num_labels))


def known_target(model: Any) -> Target:
    """What a classifier is measured on."""
    return (KnownLabels if model.is_multi_label else KnownClasses)(names_of(model))


def name_classes(model: Any) -> Callable[[Any], Mapping[str, str]]:
    """The likeliest three classes of an input, by transformers' pipeline."""
    kind = {"pixel_values": "image", "input_features": "audio", "input_ids": "text"}
    kind_of_input = kind[model.main_input_name]
    name = {"image": "image_processor", "audio": "feature_extractor", "text": "tokenizer"}
    classify = transformers.pipeline(
        f"{kind_of_input}-classification",  # type: ignore[call-overload]
        model=model,
        device=model.device,
        **{name[kind_of_input]: model.processor},
    )
    most = min(3, model.config.num_labels)

    def answer(value: Any) -> Mapping[str, str]:
        answers = classify(value, top_k=most)
        said = (f"{each['label']} {100 * each['score']:.1f} %" for each in answers)
        return dict(zip(("first", "second", "third"), said, strict=False))

    return answer
