"""Configuration, saving and loading, shared by every model of the house.

The models are transformers models: `from_pretrained`, `save_pretrained`, pipelines and the Trainer
work on them. What transformers would quietly do to a residual net is met here, once: redraw its
initial weights, leave what a checkpoint lacks uninitialised.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from resbackbones.core.backbone import Backbone, rest_frozen
from resbackbones.core.heads import Head
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError

# Options that say which files to load, and how and where to upload them.
LOADING = "revision token cache_dir subfolder local_files_only force_download proxies".split()
UPLOADING = "repo_id revision token private commit_message commit_description create_pr".split()
# The last are those of the library that speaks HTTP, as when there is no connection.
HUB_ERRORS: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)

CARD = """---
library_name: transformers
tags:
- resbackbones
---
# {repo_id}

```python
from {wing} import {name}

model = {name}.from_pretrained("{repo_id}")
model.processor  # makes the model's input
```

transformers' own pipelines and Auto classes open it as well, after `import {wing}`.
"""


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
    supports_gradient_checkpointing = True

    processor_class: ClassVar[Any] = None
    processor_file: ClassVar[str] = ""  # whose presence says that a folder holds a processor
    of_classes: ClassVar[str | tuple[str, ...]] = "head."  # parameters that other classes draw anew

    config: ResidualConfig
    backbone: Backbone
    head: nn.Module

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__(config)
        self.processor: Any = None

    def freeze_backbone(self) -> None:
        """Freeze all but the head, running statistics and dropout included, in whatever loop the
        model is trained."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
        rest_frozen(self)

    def unfreeze(self) -> None:
        """Have everything trained again."""
        self.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Into training mode, but for what is frozen, or into evaluation mode."""
        super().train(mode)
        rest_frozen(self)
        return self

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: constructors draw the weights, as the spec's `init` says. transformers would put
        N(0, 0.02) over them, and calls this again for whatever a checkpoint lacks, which
        `from_pretrained` deals with."""

    def gradient_checkpointing_enable(  # type: ignore[override]
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Train in less memory: keep what goes into every few blocks, and compute the rest anew on
        the way back (`Backbone.gradient_checkpointing`). Not saved with the model.

        Args:
            gradient_checkpointing_kwargs, every_n_layers, offload: transformers', whose Trainer
                gives them; only their defaults exist here.

        Raises:
            InputError: one of them asks for something else.
        """
        asked = {**(gradient_checkpointing_kwargs or {})}
        if asked not in ({}, {"use_reentrant": False}) or every_n_layers != 1 or offload:
            asked |= {"every_n_layers": every_n_layers, "offload": offload}
            raise InputError(
                f"gradient checkpointing has no choices here, but {asked} were asked for; the net "
                "recomputes groups of blocks, never re-entrantly; leave them out"
            )
        self.backbone.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything for the backward pass again."""
        self.backbone.gradient_checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the backward pass computes anew what was not kept."""
        return self.backbone.gradient_checkpointing

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write configuration, weights (safetensors) and processor into a folder.

        Args:
            save_directory: the folder.
            is_main_process: False in all processes but one.
            push_to_hub: upload what was written, in one commit; say where with `repo_id` (the
                folder's name unless given), `revision`, `private`, `token`, `commit_message`,
                `commit_description` and `create_pr`.
            options: as in transformers.

        Raises:
            InputError: the folder cannot be written, or the hub refuses the upload.
        """
        upload = {name: options.pop(name) for name in UPLOADING if name in options}
        try:
            os.makedirs(save_directory, exist_ok=True)
            before = self._get_files_timestamps(save_directory) if push_to_hub else {}
            super().save_pretrained(save_directory, is_main_process=is_main_process, **options)
            if self.processor is not None and is_main_process:
                self.processor.save_pretrained(save_directory)
        except (OSError, SafetensorError) as error:  # the latter, too, for a disk that is full
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot write the model to {save_directory} ({reason}); name a folder that can be "
                "written, on a disk with room"
            ) from error
        if push_to_hub and is_main_process:
            self._upload(Path(save_directory), before, **upload)

    def _upload(
        self,
        folder: Path,
        before: dict[str, float],
        repo_id: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        **commit: Any,
    ) -> None:
        """Upload what changed in a folder. transformers would do so before the processor is in."""
        repo_id = repo_id or folder.resolve().name
        try:
            repo_id = (
                HfApi().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
            )
            self._card(repo_id, token).save(folder / "README.md")
            self._upload_modified_files(folder, repo_id, before, token=token, **commit)
        except HUB_ERRORS as error:
            raise InputError(
                f"the model is saved in {folder}, but the hub did not take it for {repo_id} (its "
                f"answer: {_first_line(error)}); give a repo_id and a token that may write there"
            ) from error

    def _card(self, repo_id: str, token: str | bool | None) -> ModelCard:
        """The repository's own card, or a new one that says what opens the model."""
        try:
            card = ModelCard.load(repo_id, token=token)  # type: ignore[arg-type]
        except RemoteEntryNotFoundError:
            wing = type(self).config_class.__module__.rpartition(".")[0]
            card = ModelCard(CARD.format(name=type(self).__name__, repo_id=repo_id, wing=wing))
        tags = card.data.tags or []
        card.data.tags = list(dict.fromkeys([*tags, *(self.model_tags or ())]))
        return card

    def check_processor(self, processor: Any) -> None:
        """Refuse a processor that makes what this model does not take; each model knows what.

        Raises:
            InputError: say in a sentence what the processor makes and what the model takes.
        """

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *arguments: Any,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        use_safetensors: bool | None = None,
        labels: Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """Load a model, bit for bit what was saved, and its processor.

        Args:
            pretrained_model_name_or_path: a folder, or an id on the hub.
            ignore_mismatched_sizes: accept a checkpoint whose head has another shape (other
                classes); what tells classes apart is drawn anew. Together with `labels=` or
                `num_labels=` this starts a fine-tuning.
            use_safetensors: True or None, which are the same here: a pickle is never read.
            labels: the names of other classes; as many as before keep their weights.
            output_loading_info, arguments, options: as in transformers; those of the hub
                (`revision`, `subfolder`, …) count for the processor too.

        Raises:
            InputError: no such folder, a checkpoint of another shape, with weights missing or that
                are no numbers, one that is a pickle, or a processor that is damaged or another
                model's.
        """
        where = pretrained_model_name_or_path
        if use_safetensors is False:
            raise InputError(
                "use_safetensors=False asks for a pickle, which can run code; weights are read "
                "from safetensors only, leave it out"
            )
        _check_folder(where, options.get("subfolder") or "")
        if labels is not None:
            options |= label_options(options.pop("num_labels", None), labels, least=1)
        model: Any
        info: dict[str, Any]
        try:
            model, info = super().from_pretrained(  # type: ignore[misc]
                where,
                *arguments,
                ignore_mismatched_sizes=True,  # told apart below, by name
                output_loading_info=True,
                use_safetensors=True,
                **options,
            )
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"cannot load a model from {where} ({_first_line(error)}); give a folder written "
                "by save_pretrained, or the id of a model on the hub"
            ) from error
        drawn = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        refused = [key for key in drawn if not key.startswith(cls.of_classes)]
        if not ignore_mismatched_sizes:
            refused = drawn
        if refused or info["unexpected_keys"]:
            raise InputError(_mismatch(where, info, refused, cls.of_classes))
        if drawn:
            model.head.reset_parameters()
        broken = [name for name, value in model.state_dict().items() if not _is_finite(value)]
        if broken:
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            raise InputError(
                f"the checkpoint {where} holds NaN or infinity in {broken[0]}{more}; load one that "
                "was saved before its training went astray"
            )
        for parameter in model.parameters():
            # Inside the file addresses are not aligned, and by that the order changes in which a
            # processor adds up, and the last bits with it.
            parameter.data = parameter.data.clone()
        where_from = {name: options[name] for name in LOADING if name in options}
        model.processor = cls._load_processor(where, **where_from)
        if model.processor is not None:
            model.check_processor(model.processor)
        return (model, info) if output_loading_info else model

    @classmethod
    def _load_processor(cls, where: str | os.PathLike[str], **options: Any) -> Any:
        try:
            found = cls.processor_class is not None and cached_file(
                os.fspath(where),
                cls.processor_file,
                _raise_exceptions_for_missing_entries=False,
                **options,
            )
            return cls.processor_class.from_pretrained(where, **options) if found else None
        except MemoryError:
            raise
        except Exception as error:  # a damaged file raises anything, the bare class included
            raise InputError(
                f"cannot load the processor of {where} ({type(error).__name__}: "
                f"{_first_line(error)}); its files are damaged or incomplete, save the model anew"
            ) from error


def label_options(
    num_labels: int | None, labels: Sequence[str] | None, least: int = 2
) -> dict[str, Any]:
    """The fields of a configuration that name its classes, of which there are `least` or more.

    Raises:
        InputError: no, too few or contradicting classes, or names that are none.
    """
    if num_labels is not None and (not isinstance(num_labels, int) or isinstance(num_labels, bool)):
        raise InputError(f"num_labels={num_labels!r} is no count; give a whole number, as 10")
    if labels is None:
        if num_labels is None:
            raise InputError("the model needs its classes; give num_labels=, or labels= by name")
        labels = [f"LABEL_{number}" for number in range(num_labels)]
    elif isinstance(labels, str) or not isinstance(labels, Sequence):
        raise InputError(f"labels={labels!r} are no names; list them, or give num_labels= a number")
    for label in labels:
        if not isinstance(label, str):
            raise InputError(f"the label {label!r} is no name; give each class a string")
    if num_labels is not None and num_labels != len(labels):
        raise InputError(
            f"num_labels={num_labels} contradicts labels, which are {len(labels)}; give one of them"
        )
    if len(labels) < least:
        raise InputError(
            "there are no classes; give one or more"
            if least < 2
            else f"{len(labels)} class cannot be told apart; give two or more"
        )
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if list(labels).count(label) > 1)
        raise InputError(f"the label {twice!r} occurs twice; give each class a name of its own")
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _first_line(error: Exception) -> str:
    """What an error says, of several lines the first; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_folder(where: str | os.PathLike[str], subfolder: str = "") -> None:
    """Refuse what cannot be a model before the hub is asked for it."""
    folder = Path(where)
    if folder.is_dir():
        folder /= subfolder
        if not folder.is_dir():
            raise InputError(
                f"there is no folder {folder}; give a subfolder= written by save_pretrained, or "
                "leave it out"
            )
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


def _mismatch(
    where: object,
    info: Mapping[str, Any],
    refused: Sequence[str],
    of_classes: str | tuple[str, ...],
) -> str:
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
    if refused and all(key.startswith(of_classes) for key in refused):
        do += ", or pass ignore_mismatched_sizes=True to draw a new head for other classes"
    return f"the checkpoint {where} is of another shape: {what}{more}; {do}"


__all__: Sequence[str] = ("ResidualConfig", "ResidualPreTrainedModel", "label_options")
