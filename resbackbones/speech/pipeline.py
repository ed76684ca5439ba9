"""transformers' pipeline for clips of different lengths in one batch.

Its `pad_collate_fn` puts items together for every pipeline, asks the feature extractor for nothing
but a value to pad with, and pads axis 1 of a three-dimensional `input_features`, which it takes for
time. Ours is `(B, F, T)`: time is last, as convolutions have it. So between the two halves of the
pipeline, and nowhere else, the axes change places.
"""

from typing import Any

from transformers import AudioClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from resbackbones.speech.frontend import ResidualFeatureExtractor


class ResidualAudioClassificationPipeline(AudioClassificationPipeline):
    """`transformers.pipeline("audio-classification", model=…)`; of models with another feature
    extractor it is transformers' own."""

    def preprocess(self, inputs: Any) -> Any:  # type: ignore[override]  # as in its own base
        return self._swapped(super().preprocess(inputs))

    def _forward(self, model_inputs: Any) -> Any:  # type: ignore[override]
        return super()._forward(self._swapped(model_inputs))

    def _swapped(self, values: Any) -> Any:
        if isinstance(self.feature_extractor, ResidualFeatureExtractor):
            values["input_features"] = values["input_features"].transpose(1, 2)
        return values


def register() -> None:
    """Make it the pipeline of its task. (`register_pipeline` is for pipelines that are saved as
    code with a model, and warns.)"""
    task = PIPELINE_REGISTRY.supported_tasks["audio-classification"]
    task["impl"] = ResidualAudioClassificationPipeline
