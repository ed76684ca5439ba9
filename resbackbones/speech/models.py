"""Speech models: a backbone over features of sound, and what makes an answer of its features.

A 1-D backbone takes the features of a frame as channels, a 2-D one looks at the spectrogram as a
picture of one channel, frequency by time. Either way items of different lengths can share a batch:
what is padded changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from resbackbones.classifier import ResidualClassifier, classifier_options
from resbackbones.core.backbone import Backbone
from resbackbones.core.context import lengths_of
from resbackbones.core.heads import Head
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import resolve
from resbackbones.errors import InputError
from resbackbones.pretrained import ResidualConfig
from resbackbones.speech.frontend import ResidualFeatureExtractor


class ResidualSpeechConfig(ResidualConfig):
    """Configuration of the speech models."""

    model_type = "residual_speech"


def check_one_channel(spec: BackboneSpec) -> None:
    """Refuse a 2-D spec that sees a spectrogram as several channels."""
    if spec.dims == 2 and spec.in_channels != 1:
        raise InputError(
            f"a 2-D backbone sees a spectrogram as one channel, but this spec has in_channels="
            f"{spec.in_channels}; build with in_channels=1"
        )


def check_features(spec: BackboneSpec, processor: ResidualFeatureExtractor) -> None:
    """Refuse a processor of another number of features than a 1-D backbone has channels."""
    if spec.dims == 1 and processor.feature_size != spec.in_channels:
        raise InputError(
            f"the processor makes {processor.feature_size} features per frame, but the "
            f"backbone takes {spec.in_channels}; build with "
            f"in_channels={processor.feature_size}"
        )


def extractor_of(spec: BackboneSpec) -> ResidualFeatureExtractor:
    """Log-mel energies at 16 kHz: as many as a 1-D backbone has input channels, 40 for a 2-D
    one."""
    return ResidualFeatureExtractor(feature_size=spec.in_channels if spec.dims == 1 else 40)


def by_frequency(
    head: Head | Mapping[str, Any] | None, spec: BackboneSpec, features: int
) -> Head | Mapping[str, Any] | None:
    """The head, whose statistics are those of each frequency of the last feature where it does not
    say `rows` itself."""
    if isinstance(head, Head) or spec.dims == 1 or "rows" in (head or {}):
        return head
    if "statistics" not in str((head or {}).get("pooling")):
        return head
    check_one_channel(spec)
    with torch.device("meta"):  # shapes alone
        feature = Backbone(spec).eval()(torch.zeros(1, 1, features, 8))[-1]
    return {**(head or {}), "rows": feature.shape[2]}


def heard_by(
    backbone: Backbone, input_features: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Features `(B, F, T)` as a backbone takes them, and the real frames of each item, `(B,)`."""
    x = input_features.unsqueeze(1) if backbone.spec.dims == 2 else input_features
    return x, lengths_of(attention_mask)


class ResidualForAudioClassification(ResidualClassifier):
    """A residual classifier of sounds of any length: keywords, events, languages.

    >>> import torch
    >>> model = ResidualForAudioClassification.build("tc_resnet8", labels=["yes", "no"])
    >>> batch = model.processor([torch.zeros(16000), torch.zeros(9000)], return_tensors="pt")
    >>> tuple(model(**batch).logits.shape)
    (2, 2)
    """

    config_class = ResidualSpeechConfig
    main_input_name = "input_features"
    processor_class = ResidualFeatureExtractor
    processor_file = "preprocessor_config.json"

    def __init__(self, config: ResidualSpeechConfig) -> None:
        super().__init__(config)
        check_one_channel(self.backbone.spec)
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
        processor: ResidualFeatureExtractor | None = None,
        **spec_changes: Any,
    ) -> Self:
        """Make an untrained classifier.

        Args:
            name_or_spec: a name in `rb.SPECS`, or a spec.
            num_labels, labels: how many classes, or their names.
            head: `Head` or its fields; with "statistics" or "attentive_statistics" of a 2-D
                backbone, `rows` are by default the frequencies of its last feature.
            problem_type: "multi_label_classification" where an item has any number of classes.
            processor: how waveforms become features; by default log-mel energies at 16 kHz, as
                many bands as a 1-D backbone has input channels, 40 for a 2-D one.
            spec_changes: fields of the spec to replace, as `in_channels=64`.

        Raises:
            InputError: no or contradicting classes, an unknown name or field, a 2-D spec of more
                than one channel, or a processor of another number of features.
        """
        spec = resolve(name_or_spec, **spec_changes)
        processor = processor or extractor_of(spec)
        head = by_frequency(head, spec, processor.feature_size)
        options = classifier_options(spec, num_labels, labels, head, {}, problem_type)
        model = cls(ResidualSpeechConfig(**options))
        model.check_processor(processor)
        model.processor = processor
        return model

    def check_processor(self, processor: ResidualFeatureExtractor) -> None:
        """Refuse a processor of another number of features than a 1-D backbone has channels."""
        check_features(self.backbone.spec, processor)

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify sounds.

        Args:
            input_features: `(B, F, T)`, as the processor makes them.
            attention_mask: `(B, T)`, 1 where a frame is real; None means everywhere.
            labels: int64 `(B,)`, or shares of the classes, float `(B, K)`; as `loss` takes them.

        Returns:
            `.logits` `(B, K)`, and `.loss` when labels are given.
        """
        logits = self.classify(*heard_by(self.backbone, input_features, attention_mask))
        return SequenceClassifierOutput(loss=self.loss(logits, labels), logits=logits)
