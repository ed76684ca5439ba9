"""transformers' pipeline for clips of different lengths in one batch.

Its `pad_collate_fn` puts items together for every pipeline, asks the feature extractor for nothing
but a value to pad with, and pads axis 1 of a three-dimensional `input_features`, which it takes for
time. Ours is `(B, F, T)`: time is last, as convolutions have it. So between the two halves of the
pipeline, and nowhere else, the axes change places.
"""

from collections.abc import Iterator
from typing import Any

from transformers import AudioClassificationPipeline, AutomaticSpeechRecognitionPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from resbackbones.speech.frontend import ResidualFeatureExtractor


def _swapped(pipeline: Any, values: Any) -> Any:
    if isinstance(pipeline.feature_extractor, ResidualFeatureExtractor):
        values["input_features"] = values["input_features"].transpose(1, 2)
    return values


class ResidualAudioClassificationPipeline(AudioClassificationPipeline):
    """`transformers.pipeline("audio-classification", model=…)`; of models with another feature
    extractor it is transformers' own."""

    def preprocess(self, inputs: Any) -> Any:  # type: ignore[override]  # as in its own base
        return _swapped(self, super().preprocess(inputs))

    def _forward(self, model_inputs: Any) -> Any:  # type: ignore[override]
        return super()._forward(_swapped(self, model_inputs))


class ResidualSpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """`transformers.pipeline("automatic-speech-recognition", model=…)`, likewise."""

    def preprocess(self, inputs: Any, **options: Any) -> Iterator[Any]:  # type: ignore[override]
        for piece in super().preprocess(inputs, **options):
            yield _swapped(self, piece)

    def _forward(self, model_inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        return super()._forward(_swapped(self, model_inputs), **options)


def register() -> None:
    """Make them the pipelines of their tasks. (`register_pipeline` is for pipelines that are saved
    as code with a model, and warns.)"""
    for task, pipeline in (
        ("audio-classification", ResidualAudioClassificationPipeline),
        ("automatic-speech-recognition", ResidualSpeechRecognitionPipeline),
    ):
        PIPELINE_REGISTRY.supported_tasks[task]["impl"] = pipeline
