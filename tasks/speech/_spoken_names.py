"""The names of classes by synthesised voices, for training to hear beside recordings."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from resbackbones.errors import InputError
from resbackbones.speech import Clips, resample
from resbackbones.speech.recordings import as_int16
from tasks.speech._listening import NO_WORDS, plain_name
from tasks.speech._voices import RATE, any_manner, speak, variants
from tasks.speech._wakeword import trimmed

SPEEDS = (100, 240)  # words per minute


def with_names(clips: Clips, count: int, seed: int = 0) -> Clips:
    """Clips and, behind them, so many more of each class that is a word: its name, by any of
    espeak-ng's voices, at any speed and pitch. Everything follows from the names and the seed.

    Raises:
        InputError: clips of any number of classes each, no class that is a word, or espeak-ng is
            missing.
    """
    if not count:
        return clips
    if not isinstance(clips.labels, Tensor) or clips.labels.ndim != 1:
        raise InputError(
            "--synthesised says the one class of a clip, and with --multi-label clips have any "
            "number of them; leave one of the two out"
        )
    names = [plain_name(name) for name in clips.names]
    labels = [number for number, name in enumerate(names) if name not in NO_WORDS]
    labels = [number for number in labels for _ in range(count)]
    if not labels:
        raise InputError(
            f"--synthesised says the names of classes, and none of {', '.join(clips.names)} is a "
            "word; leave it out"
        )
    random, voices = np.random.default_rng(seed), variants()
    said = [any_manner(names[label], voices, SPEEDS, random) for label in labels]
    heard = tqdm(speak(said, seed), "synthesising", total=len(said), leave=False, disable=None)
    words = (torch.from_numpy(trimmed(samples.numpy())) for samples in heard)
    waveforms = [as_int16(resample(word, RATE, clips.sampling_rate)) for word in words]
    return replace(
        clips,
        waveforms=[*clips.waveforms, *waveforms],
        labels=torch.cat([clips.labels, torch.tensor(labels)]),
        rows=[*clips.rows, *range(len(clips), len(clips) + len(said))],
    )
