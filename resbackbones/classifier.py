"""What the classifiers of images, audio and text share: the head, the loss and the metrics.

The loss is chosen here, by what an item may have: transformers would choose it by the class's name,
and read soft labels as many yes/no questions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical
from torch.nn import functional

from resbackbones.core.backbone import Backbone, modes_kept
from resbackbones.core.heads import Classifier, Head
from resbackbones.core.layers import Layer, per_axis
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
            section 7), over yes and no with many.
        class_weights: what an item of each class counts in the training loss, float `(K,)`, as
            `class_weights` makes them; None counts all alike. These two are part of the training,
            not of the model: not saved, and without effect in evaluation, whose loss so compares
            with that of any other training.

    Raises:
        InputError: a configuration of another problem type.
    """

    head: Classifier
    label_smoothing = 0.0

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__(config)
        check_problem(config.problem_type)
        self._class_weights: Tensor | None = None
        self.backbone = Backbone(config.backbone_spec)
        self.head = Classifier(
            self.backbone.channels[-1], len(config.id2label or {}), config.head_options
        )

    @property
    def is_multi_label(self) -> bool:
        """Whether an item has any number of classes."""
        return self.config.problem_type == MULTI_LABEL

    @property
    def class_weights(self) -> Tensor | None:
        """See the class; to be set to None or to `(K,)`.

        Raises:
            InputError: of another shape, negative or no finite numbers, or where an item has any
                number of classes.
        """
        return self._class_weights

    @class_weights.setter
    def class_weights(self, weights: Tensor | None) -> None:
        if weights is not None:
            if self.is_multi_label:
                raise InputError(
                    "class weights are for items of one class each, but here an item has any "
                    "number of them; leave the weights out"
                )
            check_weights(weights, len(self.config.id2label or {}))
            weights = weights.detach().float().cpu()
        self._class_weights = weights

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
        labels. With class weights it is a weighted mean, and `weight` the sum of the weights, so
        that an update is the same however its batch is split; smoothing spreads a label with the
        weight it has.

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
        if self.training and self.class_weights is not None:
            # torch's weight= would spread smoothed labels by the weights of the classes they go
            # to: an item of a common class would then say more for a rare one than for its own.
            counted = self._counted(labels).to(logits)
            spread = torch.lerp(counted, counted.mean(1, keepdim=True), smoothing)
            total = functional.cross_entropy(logits, spread, reduction="sum")
            return total / counted.sum().clamp(min=torch.finfo(counted.dtype).tiny)
        if not self.is_multi_label:
            return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        if labels.shape != logits.shape:
            raise InputError(
                f"labels have shape {tuple(labels.shape)}, but with any number of classes per item "
                f"they are {tuple(logits.shape)}; give 1 or 0 for each item and class"
            )
        answers = torch.lerp(labels.to(logits.dtype), logits.new_tensor(0.5), smoothing)
        return functional.binary_cross_entropy_with_logits(logits, answers)

    def class_number(self, label: str | int) -> int:
        """The number of a class, from its name or as it is.

        Raises:
            InputError: no such class.
        """
        names = list((self.config.id2label or {}).values())
        if isinstance(label, str):
            if label not in names:
                raise InputError(f"the model has no class {label!r}; {nearest(label, names)}")
            return names.index(label)
        if not 0 <= label < len(names):
            raise InputError(
                f"the model has no class {label}; give 0 to {len(names) - 1}, or a name"
            )
        return label

    def scores(self, logits: Tensor) -> Tensor:
        """Each class's probability: all of an item's sum to 1, or each stands for itself."""
        return logits.sigmoid() if self.is_multi_label else logits.softmax(-1)

    def doubt(self, logits: Tensor) -> Tensor:
        """How far from sure each item's scores are, `(B,)`: their entropy, as a share of that of a
        guess, from 0 to 1."""
        if self.is_multi_label:
            yes_or_no = Bernoulli(logits=logits, validate_args=False)  # it would wait for a GPU
            return yes_or_no.entropy().mean(-1) / math.log(2)
        classes = Categorical(logits=logits, validate_args=False)
        return classes.entropy() / math.log(logits.shape[1])

    def answers(self, logits: Tensor, top_k: int | None) -> list[list[dict[str, Any]]]:
        """The likeliest classes of each item of logits `(B, K)`, all of them where `top_k` is None:
        `[{"label", "score"}, …]`, the highest score first, as a transformers pipeline gives it."""
        scores, classes = self.scores(logits).cpu().sort(descending=True, stable=True)
        names = self.config.id2label or {}
        return [
            [
                {"label": names[number], "score": score}
                for number, score in zip(row.tolist()[:top_k], each.tolist()[:top_k], strict=True)
            ]
            for row, each in zip(classes, scores, strict=True)
        ]

    def metric(self) -> Confusion | MultiLabel:
        """What this model is evaluated by: a `Confusion`, or a `MultiLabel`."""
        names = list((self.config.id2label or {}).values())
        return (MultiLabel if self.is_multi_label else Confusion)(len(names), names)

    def weight(self, batch: Mapping[str, Any]) -> int | Tensor:
        """What the loss is a mean over: the batch's items, each as much as its class counts."""
        if self.training and self.class_weights is not None:
            return self._counted(batch["labels"]).sum()
        return items(batch)

    def _counted(self, labels: Tensor) -> Tensor:
        """Labels as what they count of each class, `(B, K)`, on their device."""
        assert self.class_weights is not None
        weights = self.class_weights.to(labels.device)
        shares = functional.one_hot(labels, len(weights)) if labels.ndim == 1 else labels
        return shares * weights


def class_heat(
    model: ResidualClassifier, x: Tensor, label: str | int | None = None, stage: int = -1
) -> tuple[Tensor, int]:
    """Grad-CAM (Selvaraju et al. 2017, section 3): a feature's channels, each weighed by the mean
    gradient of the class's logit, summed, what is negative left out.

    Args:
        model: in any mode; its modes, gradients and statistics stay as they are.
        x: the backbone's input of one item, `(1, C, *space)`.
        label: the class, by name or number; None for the likeliest.
        stage: whose feature; the last one is the deepest and coarsest.

    Returns:
        float32 `(*space)` on the CPU, 1 where most speaks for the class and 0 where nothing does,
        or nothing does anywhere; and the class's number.

    Raises:
        InputError: no such class or stage.
    """
    number = None if label is None else model.class_number(label)
    stages, spec = len(model.backbone.channels), model.backbone.spec
    if not -stages <= stage < stages:
        raise InputError(f"the backbone has no stage {stage}; give {-stages} to {stages - 1}")
    kept: list[Tensor] = []
    module = model.backbone.stages[stage]
    handle = module.register_forward_hook(lambda _, inputs, output: kept.append(output))
    with modes_kept(model), torch.enable_grad():
        model.eval()
        # The input asks for a gradient, as the parameters may be frozen.
        try:
            whole = model.backbone(x.detach().requires_grad_(), stages=(-1,))
        finally:
            handle.remove()
        # Of a sequence, what the last feature is made of is a stage's own output, one row high.
        feature = whole[-1] if stage % stages == stages - 1 else kept[0]
        logits = model.head(whole[-1])[0]
        number = int(logits.argmax()) if number is None else number
        (gradient,) = torch.autograd.grad(logits[number], feature)
    weights = gradient.flatten(2).mean(2).view(1, -1, *(1,) * (feature.ndim - 2))
    heat = functional.relu((weights * feature.detach()).sum(1, keepdim=True)).float().cpu()
    heat = heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)
    if heat.ndim == 3:
        heat = heat.unsqueeze(2)
    sides = [1] * (2 - spec.dims) + list(x.shape[2:])
    heat = over_the_input(heat, spec, stage % stages, sides)[0, 0]
    return (heat[0] if spec.dims == 1 else heat), number


def over_the_input(heat: Tensor, spec: BackboneSpec, stage: int, sides: Sequence[int]) -> Tensor:
    """A map of a stage's cells `(1, 1, h, w)` over the input, `(1, 1, H, W)`, bilinearly; of a
    sequence both are one row high.

    Cell i is where its window has its centre: on position i * stride, not in the middle of so many
    positions, as a window of odd size lies evenly around each; in that middle where patches are cut
    out. Stretching the map from rim to rim would shift it by half a cell.
    """
    parts = list(spec.plan.stem)
    for down, blocks in spec.plan.stages[: stage + 1]:
        parts += [*down, *(part for block in blocks for part in (*block.pre, *block.branch))]
    places = []
    for axis, (side, cells) in enumerate(zip(sides, heat.shape[2:], strict=True), spec.dims - 2):
        first, step = 0.0, 1  # the first cell's place, and how far the next one is
        for part in parts if axis >= 0 else ():  # the row of a sequence is its own
            if isinstance(part, Layer):
                kernel = per_axis(part.kernel, spec.dims)[axis]
                first += step * (kernel - 1) / 2 * (kernel % 2 == 0)
            step *= per_axis(part.stride, spec.dims)[axis]
        places.append((torch.arange(side) - first) / step / max(1, cells - 1) * 2 - 1)
    grid = torch.stack(torch.meshgrid(*places, indexing="ij"), -1).flip(-1)[None]
    return functional.grid_sample(heat, grid, padding_mode="border", align_corners=True)


def class_weights(counts: Tensor, power: float = 1.0) -> Tensor:
    """What an item (or pixel) of each class should count in the loss, float `(K,)`, 1 on average
    over items.

    Args:
        counts: items per class, `(K,)`; of a class that has none the weight is 1.
        power: of the inverse of a class's share; 1 has all classes count alike (scikit-learn's
            "balanced"; median frequency balancing, Eigen & Fergus 2015, section 6.3.2), 0 all
            items, 0.5 stands between.

    >>> class_weights(torch.tensor([900, 100]))
    tensor([0.5556, 5.0000])
    """
    share = counts.double() / counts.sum().clamp(min=1)
    weights = share.clamp(min=1e-12) ** -power
    weights = weights / (weights * share).sum()
    return weights.where(counts > 0, 1.0).float()


def check_weights(weights: Tensor, classes: int) -> None:
    """Refuse what are no weights of so many classes."""
    if weights.shape != (classes,):
        raise InputError(
            f"class_weights has shape {tuple(weights.shape)} for {classes} classes; give one "
            "number per class"
        )
    if not (weights.isfinite() & (weights >= 0)).all():
        raise InputError(
            f"class_weights are {weights.tolist()}; give finite numbers from 0 up, one per class"
        )


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


def check_top_k(top_k: int | None) -> None:
    """Refuse what is no number of classes to answer with."""
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise InputError(f"top_k={top_k!r} is no count of classes; give 1 or more, or None")


__all__: Sequence[str] = (
    "ResidualClassifier",
    "class_heat",
    "class_weights",
    "classifier_options",
)
