"""What the recipes of classifiers share: how many classes an item has, and how much each counts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from resbackbones.classifier import MULTI_LABEL, class_weights
from resbackbones.data import Classes, Labels, Source, Splits, Target
from resbackbones.errors import InputError
from tasks._fields import Recipe


@dataclass(frozen=True, kw_only=True)
class Classification(Recipe):
    """The fields of a recipe of classifiers."""

    multi_label: bool = False
    """An item has any number of classes: a cell of --label-column is a list or a text of them."""
    label_separator: str | None = None
    """What stands between the classes in such a text, as "|" (found, and said)."""
    class_weights: Literal["none", "balanced"] = "none"
    """"balanced" has every class count as much as any other in the training loss, however few of
    the training items it has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_separator is not None and not (self.multi_label or self.evaluate):
            raise InputError("--label-separator is for --multi-label; give both, or neither")
        if self.multi_label and self.class_weights != "none":
            raise InputError(
                "--class-weights are for items of one class each; leave them or --multi-label out"
            )
        if self.multi_label and self.metric == "accuracy":  # which its metric does not have
            object.__setattr__(self, "metric", "mean_average_precision")

    @property
    def variant(self) -> str:
        return super().variant + ("-balanced" if self.class_weights == "balanced" else "")

    @property
    def problem_type(self) -> str | None:
        """What a model is told of it."""
        return MULTI_LABEL if self.multi_label else None

    def open(self, kind: str, target: Target | None = None) -> Splits:
        labels = Labels(separator=self.label_separator) if self.multi_label else Classes()
        return super().open(kind, target or labels)

    def open_alone(self, kind: str, target: Target) -> Source:
        if isinstance(target, Labels):
            target = replace(target, separator=self.label_separator)
        return super().open_alone(kind, target)

    def weighing(self, build: Callable[..., Any], train: Any) -> Callable[..., Any]:
        """`build`, of models whose training on these items counts classes as asked."""
        if self.class_weights == "none":
            return build
        counts = train.labels.cpu().bincount(minlength=len(train.source.target.names))

        def weighed(**changes: Any) -> Any:
            model = build(**changes)
            model.class_weights = class_weights(counts)
            return model

        return weighed
