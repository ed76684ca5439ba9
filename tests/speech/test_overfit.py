"""Utterances are learned by heart, to an error rate of 0, by residual nets and by their plain twins
alike: labels, lengths, loss and search fit together."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import resbackbones as rb
from resbackbones.data import Transcripts, open_dataset
from resbackbones.speech import Clips, ResidualForCTC, TranscriptItems, learn_vocabulary, read_clips
from resbackbones.train import Options, evaluate, fit
from tasks.speech._sentences import utterances
from tasks.speech._voices import RATE, speak

MBOSHI = Path("../shared/data/mboshi")
SMALL = rb.BackboneSpec(
    (rb.Stage(96, 3, 2, kernel=5),), dims=1, in_channels=80, stem=rb.Stem(96, 11, 2)
)


def speech(count: int) -> Clips:
    """Sentences of many synthesised voices, or of people where nothing synthesises."""
    if importlib.util.find_spec("espeakng_loader") is not None:
        said = utterances()["train"][:count]
        waveforms = [(32767 * samples).to(torch.int16) for samples in speak(said)]
        return Clips(waveforms, RATE, [each.text for each in said], (), list(range(count)), [])
    if not MBOSHI.is_dir():
        pytest.skip("neither espeak-ng (the extra wakeword) nor the Mboshi recordings are there")
    source = open_dataset(str(MBOSHI), "train", target=Transcripts(), kind="audio")
    return read_clips(source.select(torch.arange(count)), RATE)


def learned_by_heart(net: Any, skip: Any, count: int, epochs: int) -> dict[str, float]:
    """The errors of a net on what it was trained on; nothing varies the recordings."""
    clips = speech(count)
    torch.manual_seed(0)
    model = ResidualForCTC.build(net, vocabulary=learn_vocabulary(clips.labels), skip=skip)
    options = Options(
        epochs=epochs, batch_size=8, learning_rate=2e-3, weight_decay=0.01, clip=5.0,
        schedule="one_cycle", least_updates=1, device="cpu", progress=False,
    )  # fmt: skip
    fit(model, TranscriptItems(clips, model), None, options)
    return evaluate(model, TranscriptItems(clips, model, evaluation=True))


@pytest.mark.parametrize("skip", ["identity", "none"])
def test_a_few_utterances_are_learned_by_heart(skip: str) -> None:
    found = learned_by_heart(SMALL, skip, count=4, epochs=80)
    assert found["cer"] == found["wer"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("skip", ["identity", "none"])
def test_twenty_utterances_are_learned_by_heart(skip: str) -> None:
    """By the net, the rate and the schedule of `tasks.speech.transcribe`."""
    found = learned_by_heart("mel_resnet_ctc18", skip, count=20, epochs=100)
    assert found["cer"] == found["wer"] == 0
