"""Image models: a 2-D backbone and what makes an answer of its features."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from resbackbones.classifier import ResidualClassifier, classifier_options
from resbackbones.core.heads import Head
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError
from resbackbones.pretrained import ResidualConfig
from resbackbones.vision.processor import ResidualImageProcessor


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
        if model.processor.num_channels != channels:
            raise InputError(
                f"the processor makes {model.processor.num_channels} channels, but the backbone "
                f"takes {channels}; build with in_channels={model.processor.num_channels}"
            )
        return model

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None
    ) -> ImageClassifierOutputWithNoAttention:
        """Classify images.

        Args:
            pixel_values: `(B, C, H, W)`, as the processor makes them.
            labels: int64 `(B,)`, or shares of the classes, float `(B, K)`; as `loss` takes them.

        Returns:
            `.logits` `(B, K)`, and `.loss` when labels are given.
        """
        logits = self.classify(pixel_values)
        return ImageClassifierOutputWithNoAttention(
            loss=self.loss(logits, labels),
            logits=logits,
        )
