"""transformers' pipeline for clips of different lengths in one batch.

Its `pad_collate_fn` puts items together for every pipeline, asks the feature extractor for nothing
but a value to pad with, and pads axis 1 of a three-dimensional `input_features`, which it takes for
time. Ours is `(B, F, T)`: time is last, as convolutions have it. So between the two halves of the
pipeline, and nowhere else, the axes change places. Files are decoded as in training.
"""

import os
from collections.abc import Iterator
from typing import Any

from transformers import AudioClassificationPipeline, AutomaticSpeechRecognitionPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from resbackbones.speech.frontend import ResidualFeatureExtractor
from resbackbones.speech.recordings import FULL_SCALE, decode_audio


def _decoded(pipeline: Any, inputs: Any) -> Any:
    """A file or its bytes as an array: transformers decodes them with a program, ffmpeg."""
    if not isinstance(pipeline.feature_extractor, ResidualFeatureExtractor):
        return inputs
    if isinstance(inputs, str | os.PathLike) and os.path.isfile(inputs):
        value: dict[str, Any] = {"path": inputs}
    elif isinstance(inputs, bytes):
        value = {"bytes": inputs}
    else:
        return inputs
    rate = pipeline.feature_extractor.sampling_rate
    samples = decode_audio(value, rate).float() / FULL_SCALE
    return {"raw": samples.numpy(), "sampling_rate": rate}


def _swapped(pipeline: Any, values: Any) -> Any:
    if isinstance(pipeline.feature_extractor, ResidualFeatureExtractor):
        values["input_features"] = values["input_features"].transpose(1, 2)
    return values


class ResidualAudioClassificationPipeline(AudioClassificationPipeline):
    """`transformers.pipeline("audio-classification", model=…)`; of models with another feature
    extractor it is transformers' own."""

    def preprocess(self, inputs: Any) -> Any:  # type: ignore[override]  # as in its own base
        return _swapped(self, super().preprocess(_decoded(self, inputs)))

    def _forward(self, model_inputs: Any) -> Any:  # type: ignore[override]
        return super()._forward(_swapped(self, model_inputs))


class ResidualSpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """`transformers.pipeline("automatic-speech-recognition", model=…)`, likewise. Chunks that read
    on to both sides (`stride_length_s`) by as much as the net reaches give what the whole gives, to
    its last frame."""

    def preprocess(self, inputs: Any, **options: Any) -> Iterator[Any]:  # type: ignore[override]
        for piece in super().preprocess(_decoded(self, inputs), **options):
            yield _swapped(self, piece)

    def _forward(self, model_inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        inputs = _swapped(self, model_inputs)
        strides, mask = inputs.get("stride"), inputs.get("attention_mask")
        told = super()._forward(inputs, **options)
        if strides is not None and isinstance(self.feature_extractor, ResidualFeatureExtractor):
            # transformers divides samples by those of a frame, and so has none for what is left
            # over, nor for the frame that is centred behind the last sample.
            model: Any = self.model
            lengths = model.output_lengths(mask.sum(1)).tolist()
            alone = isinstance(strides, tuple)
            whole = [
                _in_frames(each, length, self._align_to)
                for each, length in zip([strides] if alone else strides, lengths, strict=True)
            ]
            told["stride"] = whole[0] if alone else whole
        return told


def _in_frames(stride: tuple[int, int, int], frames: int, size: int) -> tuple[int, int, int]:
    """Of a chunk's samples, and those at its ends that are others', the same in frames of `size`
    samples: a chunk that is not the last begins and ends with a frame."""
    samples, left, right = stride
    own = frames if not right else (samples - right) // size
    return frames, left // size, frames - own


def register() -> None:
    """Make them the pipelines of their tasks. (`register_pipeline` is for pipelines that are saved
    as code with a model, and warns.)"""
    for task, pipeline in (
        ("audio-classification", ResidualAudioClassificationPipeline),
        ("automatic-speech-recognition", ResidualSpeechRecognitionPipeline),
    ):
        PIPELINE_REGISTRY.supported_tasks[task]["impl"] = pipeline
