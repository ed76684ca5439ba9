"""Means and deviations of features, learned once from training clips and saved with the model."""

from typing import Any

import torch

from resbackbones.core.context import valid_mask
from resbackbones.speech.frontend import ResidualFeatureExtractor, pad_clips
from resbackbones.speech.recordings import Clips, chunks


def learn_normalization(
    extractor: ResidualFeatureExtractor, clips: Clips
) -> ResidualFeatureExtractor:
    """The same extractor with `normalize="global"`: each feature without its mean over all frames
    of these clips, and divided by its deviation.

    Next to "mean_std" it keeps how loud a clip is and which sounds it is made of, and needs no
    whole clip; it does not take out what differs between microphones.

    Args:
        clips: the training clips, and no others: what is learned is saved with the model.

    >>> clips = Clips([torch.arange(8000).short()], 16000, torch.tensor([0]), ("no",), [0], [])
    >>> extractor = learn_normalization(ResidualFeatureExtractor(), clips)
    >>> extractor.options["normalize"], len(extractor.options["means"])
    ('global', 40)
    """
    options: dict[str, Any] = {
        **extractor.options,
        "normalize": "none",
        "means": None,
        "deviations": None,
    }
    plain = ResidualFeatureExtractor(**options)
    count = 0
    total, squares = (torch.zeros(extractor.feature_size, dtype=torch.float64) for _ in range(2))
    for first, last in chunks([len(waveform) for waveform in clips.waveforms]):
        features, frames = plain.front_end(*pad_clips(clips.waveforms[first:last]))
        real = features.transpose(1, 2)[valid_mask(frames, features.shape[-1])].double()
        count += len(real)
        total += real.sum(0)
        squares += real.square().sum(0)
    means = total / count
    variances = (squares / count - means.square()).clamp(min=0)
    learned = {"means": means.tolist(), "deviations": variances.sqrt().tolist()}
    return ResidualFeatureExtractor(
        **{**options, "normalize": "global", **learned}, pad_to=extractor.pad_to
    )
