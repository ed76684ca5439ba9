"""Configuration, saving, loading and the loss, shared by every model of the house.

The models are transformers models: `from_pretrained`, `save_pretrained`, pipelines and the Trainer
work on them. What transformers would quietly do to a residual net is met here, once: redraw its
initial weights, leave what a checkpoint lacks uninitialised, choose the loss by the class's name,
read soft labels as many yes/no questions.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from resbackbones.core.backbone import Backbone
from resbackbones.core.heads import Classifier, Head
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import resolve
from resbackbones.errors import InputError

if TYPE_CHECKING:
    import numpy as np


class ResidualConfig(PreTrainedConfig):
    """What a model is made from, as JSON. Each wing has its own subclass and `model_type`.

    Attributes:
        spec: `BackboneSpec.to_dict()`.
        head: `Head.to_dict()`.
    """

    # Never "resnet" in it: DETR and its kin freeze a backbone of that name by its layers' names.
    model_type = "residual"

    spec: dict[str, Any] | None = None  # None only in the empty configuration transformers makes
    head: dict[str, Any] | None = None

    @property
    def backbone_spec(self) -> BackboneSpec:
        """The backbone's spec.

        Raises:
            InputError: there is none, or it has a field no spec has.
        """
        if self.spec is None:
            raise InputError(
                "this configuration has no spec; build a model from a name or spec with .build()"
            )
        return BackboneSpec.from_dict(self.spec)

    @property
    def head_options(self) -> Head:
        """The head's options."""
        return Head.of(self.head)


class ResidualPreTrainedModel(PreTrainedModel):
    """A backbone and a head, saved and loaded together with the processor that feeds them.

    Attributes:
        backbone: the features.
        head: what makes the output of them; alone in being drawn anew when a checkpoint of other
            classes is loaded.
        processor: image processor, feature extractor or tokenizer, or None.
    """

    config_class = ResidualConfig
    base_model_prefix = "backbone"
    # The Trainer would otherwise take the loss for a sum it has to share out, and double it under
    # gradient accumulation and on several devices.
    accepts_loss_kwargs = False

    processor_class: ClassVar[Any] = None
    processor_file: ClassVar[str] = ""  # whose presence says that a folder holds a processor

    config: ResidualConfig
    backbone: Backbone
    head: nn.Module

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__(config)
        self.processor: Any = None

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: constructors draw the weights, as the spec's `init` says. transformers would put
        N(0, 0.02) over them, and calls this again for whatever a checkpoint lacks, which
        `from_pretrained` deals with."""

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **options: Any
    ) -> None:
        """Write configuration, weights (safetensors) and processor into a folder.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            super().save_pretrained(save_directory, is_main_process=is_main_process, **options)
            if self.processor is not None and is_main_process:
                self.processor.save_pretrained(save_directory)
        except OSError as error:
            raise InputError(
                f"cannot write the model to {save_directory} ({error.strerror or error}); name a "
                "folder that can be written, on a disk with room"
            ) from error

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *arguments: Any,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Any:
        """Load a model, bit for bit what was saved, and its processor.

        Args:
            pretrained_model_name_or_path: a folder, or an id on the hub.
            ignore_mismatched_sizes: accept a checkpoint whose head has another shape (other
                classes); the head is drawn anew. Together with `num_labels=` this starts a
                fine-tuning.
            output_loading_info, arguments, options: as in transformers.

        Raises:
            InputError: no such folder, a checkpoint of another shape or with weights missing, or
                one that is a pickle.
        """
        where = pretrained_model_name_or_path
        _check_folder(where)
        model: Any
        info: dict[str, Any]
        try:
            model, info = super().from_pretrained(  # type: ignore[misc]
                where,
                *arguments,
                ignore_mismatched_sizes=True,  # told apart below, by name
                output_loading_info=True,
                use_safetensors=True,  # a pickle can run code
                **options,
            )
        except (OSError, SafetensorError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(
                f"cannot load a model from {where} ({first}); give a folder written by "
                "save_pretrained, or the id of a model on the hub"
            ) from error
        drawn = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        refused = [key for key in drawn if not key.startswith("head.")]
        if not ignore_mismatched_sizes:
            refused = drawn
        if refused or info["unexpected_keys"]:
            raise InputError(_mismatch(where, info, refused))
        if drawn:
            model.head.reset_parameters()
        for parameter in model.parameters():
            # Inside the file addresses are not aligned, and by that the order changes in which a
            # processor adds up, and the last bits with it.
            parameter.data = parameter.data.clone()
        model.processor = cls._load_processor(where)
        return (model, info) if output_loading_info else model

    @classmethod
    def _load_processor(cls, where: str | os.PathLike[str]) -> Any:
        found = cls.processor_class is not None and cached_file(
            os.fspath(where), cls.processor_file, _raise_exceptions_for_missing_entries=False
        )
        return cls.processor_class.from_pretrained(where) if found else None


class ResidualClassifier(ResidualPreTrainedModel):
    """What the three classifiers share: the head, the loss and the metrics.

    Attributes:
        label_smoothing: share of every label spread over all classes in training (Szegedy 2016,
            section 7). Part of the training, not of the model: not saved.
    """

    head: Classifier
    label_smoothing = 0.0

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone_spec)
        self.head = Classifier(
            self.backbone.channels[-1], len(config.id2label or {}), config.head_options
        )

    def classify(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits `(B, K)` of the backbone's input `(B, C, *space)`."""
        feature = self.backbone(x, lengths)[-1]
        if lengths is not None:
            lengths = self.backbone.output_lengths(lengths)[-1]
        return self.head(feature, lengths)

    def loss(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """Mean cross-entropy; None without labels.

        Args:
            logits: `(B, K)`.
            labels: int64 `(B,)`, or a share of each class, float `(B, K)` (as mixup makes).
        """
        if labels is None:
            return None
        smoothing = self.label_smoothing if self.training else 0.0
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    @staticmethod
    def compute_metrics(logits: "np.ndarray", labels: "np.ndarray") -> dict[str, float]:
        """Accuracy and macro F1 (shares of one) and mean cross-entropy (nats).

        Args:
            logits: `(N, K)`.
            labels: `(N,)`.
        """
        loss = functional.cross_entropy(torch.as_tensor(logits), torch.as_tensor(labels))
        return {**class_scores(labels, logits.argmax(-1)), "loss": loss.item()}


def class_scores(expected: "np.ndarray", predicted: "np.ndarray") -> dict[str, float]:
    """Accuracy and macro F1 (shares of one) of predicted classes `(N,)`."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(expected, predicted)),
        "macro_f1": float(f1_score(expected, predicted, average="macro", zero_division=0)),
    }


def classifier_options(
    name_or_spec: str | BackboneSpec,
    num_labels: int | None,
    labels: Sequence[str] | None,
    head: Head | Mapping[str, Any] | None,
    spec_changes: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of a classifier's configuration, from what `build` is given.

    Raises:
        InputError: no or contradicting classes, an unknown spec, field or head option.
    """
    if labels is None:
        if num_labels is None:
            raise InputError("a classifier needs its classes; give num_labels=, or labels= by name")
        labels = [f"LABEL_{number}" for number in range(num_labels)]
    if num_labels is not None and num_labels != len(labels):
        raise InputError(
            f"num_labels={num_labels} contradicts labels, which are {len(labels)}; give one of them"
        )
    if len(labels) < 2:
        raise InputError(f"{len(labels)} class cannot be told apart; give two or more")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if list(labels).count(label) > 1)
        raise InputError(f"the label {twice!r} occurs twice; give each class a name of its own")
    return {
        "spec": resolve(name_or_spec, **spec_changes).to_dict(),
        "head": Head.of(head).to_dict(),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def _check_folder(where: str | os.PathLike[str]) -> None:
    """Refuse what cannot be a model before the hub is asked for it."""
    folder = Path(where)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{folder} holds no config.json, so it is no model; give a folder written by "
                "save_pretrained"
            )
        if not list(folder.glob("*.safetensors")):
            pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
            what = f"only a pickle ({pickles[0].name})" if pickles else "no weights"
            raise InputError(
                f"{folder} holds {what}; weights are read from safetensors only, save them with "
                "save_pretrained"
            )
    elif isinstance(where, Path) or str(where).count("/") != 1 or str(where)[0] in "./~":
        raise InputError(
            f"there is no folder {where}; give a folder written by save_pretrained, or the id of a "
            "model on the hub (owner/name)"
        )


def _mismatch(where: object, info: Mapping[str, Any], refused: Sequence[str]) -> str:
    """The sentence for a checkpoint that is not this model's."""
    shapes = {key: (given, expected) for key, given, expected in info["mismatched_keys"]}
    if refused and refused[0] in shapes:
        given, expected = shapes[refused[0]]
        what = f"{refused[0]} has shape {tuple(given)} where this model needs {tuple(expected)}"
    elif refused:
        what = f"it lacks {refused[0]}"
    else:
        what = f"it has {sorted(info['unexpected_keys'])[0]}, which this model does not"
    odd = len(refused) + len(info["unexpected_keys"])
    more = f" (and {odd - 1} more)" if odd > 1 else ""
    do = "load it with the configuration it was saved with"
    if refused and all(key.startswith("head.") for key in refused):
        do += ", or pass ignore_mismatched_sizes=True to draw a new head for other classes"
    return f"the checkpoint {where} is of another shape: {what}{more}; {do}"


__all__: Sequence[str] = (
    "ResidualClassifier",
    "ResidualConfig",
    "ResidualPreTrainedModel",
    "class_scores",
    "classifier_options",
)
