"""Image models: a 2-D backbone and what makes an answer of its features."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from resbackbones.classifier import ResidualClassifier, check_top_k, classifier_options
from resbackbones.core.backbone import modes_kept
from resbackbones.core.heads import Head
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError
from resbackbones.pretrained import ResidualConfig
from resbackbones.vision.images import one_value_refusal, read_image
from resbackbones.vision.processor import ResidualImageProcessor, check_channels


class ResidualVisionConfig(ResidualConfig):
    """Configuration of the image models."""

    model_type = "residual_vision"


class ResidualForImageClassification(ResidualClassifier):
    """A residual image classifier for images of any size and any number of channels.

    >>> import torch
    >>> model = ResidualForImageClassification.build("resnet20", num_labels=10, in_channels=1)
    >>> tuple(model(pixel_values=torch.zeros(2, 1, 28, 28)).logits.shape)
    (2, 10)
    """

    config_class = ResidualVisionConfig
    main_input_name = "pixel_values"
    processor_class = ResidualImageProcessor
    processor_file = "preprocessor_config.json"

    def __init__(self, config: ResidualVisionConfig) -> None:
        super().__init__(config)
        if self.backbone.spec.dims != 2:
            raise InputError(
                "an image classifier needs a spec with dims=2, but this one has dims=1; add dims=2"
            )
        self.post_init()

    @classmethod
    def build(
        cls,
        name_or_spec: str | BackboneSpec,
        *,
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        head: Head | Mapping[str, Any] | None = None,
        problem_type: str | None = None,
        processor: ResidualImageProcessor | None = None,
        **spec_changes: Any,
    ) -> Self:
        """Make an untrained classifier.

        Args:
            name_or_spec: a name in `rb.SPECS`, or a spec.
            num_labels, labels: how many classes, or their names.
            head: `Head` or its fields.
            problem_type: "multi_label_classification" where an item has any number of classes.
            processor: how images become pixels; by default they keep their size and go from
                0 … 255 to -1 … 1 in as many channels as the spec takes.
            spec_changes: fields of the spec to replace, as `in_channels=1`.

        Raises:
            InputError: no or contradicting classes, an unknown name or field, dims other than 2, a
                processor of another number of channels.
        """
        options = classifier_options(
            name_or_spec, num_labels, labels, head, spec_changes, problem_type
        )
        model = cls(ResidualVisionConfig(**options))
        channels = model.backbone.spec.in_channels
        model.processor = processor or ResidualImageProcessor(num_channels=channels)
        model.check_processor(model.processor)
        return model

    def check_processor(self, processor: Any) -> None:
        check_channels(processor, self.backbone.spec.in_channels)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None
    ) -> ImageClassifierOutputWithNoAttention:
        """Classify images.

        Args:
            pixel_values: `(B, C, H, W)`, as the processor makes them.
            labels: int64 `(B,)`, or shares of the classes, float `(B, K)`; as `loss` takes them.

        Returns:
            `.logits` `(B, K)`, and `.loss` when labels are given.

        Raises:
            InputError: labels that are none, or a batch too small for a batch norm to be trained
                on.
        """
        try:
            logits = self.classify(pixel_values)
        except ValueError as error:
            if (refusal := one_value_refusal(error, pixel_values)) is None:
                raise
            raise refusal from error
        return ImageClassifierOutputWithNoAttention(
            loss=self.loss(logits, labels),
            logits=logits,
        )

    def predict(
        self, images: Any, *, top_k: int | None = 5, batch_size: int = 32
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """The likeliest classes of images, in evaluation mode, on the model's device.

        Args:
            images: one, or a list of them: a PIL image, an array or tensor of pixels as the
                processor takes them, `(H, W)` to `(C, H, W)`, or a path. Without a size in the
                processor each keeps its own.
            top_k: how many classes; None for all.
            batch_size: images per step, at most.

        Returns:
            For each image `[{"label", "score"}, …]`, the highest score first, as a transformers
            pipeline gives it; of one image that list alone. Scores are probabilities, which sum to
            1 over all classes unless an image may have any number of them.

        Raises:
            InputError: what is no image, or cannot be read, named where it is a file.

        >>> import PIL.Image
        >>> model = ResidualForImageClassification.build("resnet20", labels=["cat", "dog"])
        >>> answers = model.predict(PIL.Image.new("RGB", (32, 32)))
        >>> sorted(answer["label"] for answer in answers)
        ['cat', 'dog']
        """
        check_top_k(top_k)
        features = self.features(images, batch_size=batch_size)
        with modes_kept(self), torch.no_grad():
            self.eval()
            answers = self.answers(self.head.logits(features.to(self.dtype)), top_k)
        return answers[0] if _is_one(images) else answers

    @torch.no_grad()
    def features(self, images: Any, *, batch_size: int = 32) -> Tensor:
        """What the classes are told by: the pooled feature of each image, float32 `(B, D)`, on the
        model's device, in evaluation mode; arguments and errors as of `predict`.

        >>> import PIL.Image
        >>> model = ResidualForImageClassification.build("resnet20", num_labels=10)
        >>> tuple(model.features([PIL.Image.new("RGB", (32, 32))] * 2).shape)
        (2, 64)
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} holds no image; give 1 or more")
        given: Sequence[Any] = [images] if _is_one(images) else images
        if not len(given):
            raise InputError("there are no images in the list; give one or more")
        result: dict[int, Tensor] = {}
        with modes_kept(self):
            self.eval()
            for start in range(0, len(given), batch_size):
                some = [self.pixel_values(image) for image in given[start : start + batch_size]]
                for rows in _by_shape(some):
                    batch = torch.cat([some[row] for row in rows])
                    pooled = self.pooled(batch.to(self.device, self.dtype)).float()
                    result |= {start + row: each for row, each in zip(rows, pooled, strict=True)}
        return torch.stack([result[row] for row in range(len(given))])

    def pixel_values(self, image: Any) -> Tensor:
        """What the model takes of one image, `(1, C, H, W)`, as `predict` makes it.

        Raises:
            InputError: the model has no processor, or this is no image or cannot be read.
        """
        image = read_image(image, self.processor)
        return self.processor(image, return_tensors="pt").pixel_values


def _is_one(images: Any) -> bool:
    """Whether this is one image, not a list or an array of several."""
    return not isinstance(images, list | tuple) and getattr(images, "ndim", 3) < 4


def _by_shape(images: Sequence[Tensor]) -> Iterator[list[int]]:
    """The numbers of the images of each shape."""

    def shape(number: int) -> tuple[int, ...]:
        return tuple(images[number].shape)

    for _, rows in itertools.groupby(sorted(range(len(images)), key=shape), key=shape):
        yield list(rows)
