"""What the classifiers of images, audio and text share: the head, the loss and the metrics.

The loss is chosen here, by what an item may have: transformers would choose it by the class's name,
and read soft labels as many yes/no questions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from resbackbones.core.backbone import Backbone
from resbackbones.core.heads import Classifier, Head
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import resolve
from resbackbones.errors import InputError, nearest
from resbackbones.metrics import Confusion, MultiLabel, items
from resbackbones.pretrained import ResidualConfig, ResidualPreTrainedModel, label_options

MULTI_LABEL = "multi_label_classification"  # what transformers calls problem types
PROBLEMS = ("single_label_classification", MULTI_LABEL)


class ResidualClassifier(ResidualPreTrainedModel):
    """A backbone and a `Classifier`.

    An item has one class or, where `config.problem_type` is "multi_label_classification", any
    number of them.

    Attributes:
        label_smoothing: share of every label spread over all classes in training (Szegedy 2016,
            section 7), over yes and no with many. Part of the training, not of the model: not
            saved.

    Raises:
        InputError: a configuration of another problem type.
    """

    head: Classifier
    label_smoothing = 0.0

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__(config)
        check_problem(config.problem_type)
        self.backbone = Backbone(config.backbone_spec)
        self.head = Classifier(
            self.backbone.channels[-1], len(config.id2label or {}), config.head_options
        )

    @property
    def is_multi_label(self) -> bool:
        """Whether an item has any number of classes."""
        return self.config.problem_type == MULTI_LABEL

    def pooled(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the classes are told by, `(B, D)`, of the backbone's input `(B, C, *space)`."""
        (feature,) = self.backbone(x, lengths, stages=(-1,))
        if lengths is not None:
            lengths = self.backbone.output_lengths(lengths)[-1]
        return self.head.pool(feature, lengths)

    def classify(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits `(B, K)` of the backbone's input `(B, C, *space)`."""
        return self.head.logits(self.pooled(x, lengths))

    def loss(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """Mean cross-entropy, of any number of classes that of all their yes and no; None without
        labels.

        Args:
            logits: `(B, K)`.
            labels: int64 `(B,)`, or a share of each class, float `(B, K)` (as mixup makes). Of any
                number of classes, 1 for yes and 0 for no, `(B, K)`.

        Raises:
            InputError: labels of another shape, where any number of classes is asked for.
        """
        if labels is None:
            return None
        smoothing = self.label_smoothing if self.training else 0.0
        if not self.is_multi_label:
            return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        if labels.shape != logits.shape:
            raise InputError(
                f"labels have shape {tuple(labels.shape)}, but with any number of classes per item "
                f"they are {tuple(logits.shape)}; give 1 or 0 for each item and class"
            )
        answers = torch.lerp(labels.to(logits.dtype), logits.new_tensor(0.5), smoothing)
        return functional.binary_cross_entropy_with_logits(logits, answers)

    def scores(self, logits: Tensor) -> Tensor:
        """Each class's probability: all of an item's sum to 1, or each stands for itself."""
        return logits.sigmoid() if self.is_multi_label else logits.softmax(-1)

    def metric(self) -> Confusion | MultiLabel:
        """What this model is evaluated by: a `Confusion`, or a `MultiLabel`."""
        names = list((self.config.id2label or {}).values())
        return (MultiLabel if self.is_multi_label else Confusion)(len(names), names)

    def weight(self, batch: Mapping[str, Any]) -> int:
        """What the loss is a mean over: the batch's items."""
        return items(batch)


def classifier_options(
    name_or_spec: str | BackboneSpec,
    num_labels: int | None,
    labels: Sequence[str] | None,
    head: Head | Mapping[str, Any] | None,
    spec_changes: Mapping[str, Any],
    problem_type: str | None = None,
) -> dict[str, Any]:
    """The fields of a classifier's configuration, from what `build` is given.

    Raises:
        InputError: no or contradicting classes, an unknown spec, field, head option or problem.
    """
    check_problem(problem_type)
    return {
        "spec": resolve(name_or_spec, **spec_changes).to_dict(),
        "head": Head.of(head).to_dict(),
        "problem_type": problem_type,
        **label_options(num_labels, labels, least=1 if problem_type == MULTI_LABEL else 2),
    }


def check_problem(problem_type: str | None) -> None:
    """Refuse what no classifier answers."""
    if problem_type not in (None, *PROBLEMS):
        raise InputError(
            f"problem_type={problem_type!r} is not known; {nearest(str(problem_type), PROBLEMS)}"
        )


__all__: Sequence[str] = ("ResidualClassifier", "classifier_options")
