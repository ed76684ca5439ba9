"""What `transcribe` learns to write with, goes on from, and is compared with."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resbackbones.data import Source
from resbackbones.errors import InputError
from resbackbones.speech import (
    Augment,
    Clips,
    CTCTokenizer,
    ErrorRates,
    ResidualCTCProcessor,
    ResidualForCTC,
    TranscriptItems,
    decode_audio,
    learn_vocabulary,
)
from resbackbones.speech.recordings import FULL_SCALE
from resbackbones.speech.vocabulary import TEXTS
from resbackbones.weights import load_weights
from tasks.speech._baseline import by_segments, of_mfcc

COEFFICIENTS = 20


def varied(config: Any) -> Augment | None:
    """What happens to training recordings, if anything: nothing that moves one or mixes two, which
    would be without a part of what was said."""
    if not config.augment:
        return None
    return Augment(
        shift=0.0,
        stretch=config.stretch,
        noise=0.5,
        noise_level=(10.0, 40.0),
        time_mask=0.15,
        band_mask=12,
        mask_epochs=12,
    )


def vocabulary(config: Any, texts: Sequence[str]) -> tuple[CTCTokenizer, str]:
    """What texts are written with, and where it is from: the saved model that a training starts
    from, where it has a symbol for all of them and normalises alike, else the texts."""
    size = config.pieces if config.symbols == "bpe" else None
    learned = learn_vocabulary(texts, config.symbols, size, config.text)
    saved = saved_vocabulary(config.weights)
    if saved is not None and _kind(saved) == _kind(learned) and not saved.unknown(texts):
        return saved, "of the saved model"
    return learned, "of the training texts"


def found(config: Any, items: TranscriptItems, origin: str) -> str:
    """What there is to learn from, and what texts are written with."""
    symbols = len(items.tokenizer) - 1
    return f"{items.found()}. {symbols:,} symbols {origin}; a text is {TEXTS[config.text]}."


def saved_vocabulary(weights: Path | None) -> CTCTokenizer | None:
    """That of a saved recogniser; None of anything else."""
    if weights is None or not (weights / ResidualForCTC.processor_file).is_file():
        return None
    tokenizer = ResidualCTCProcessor.from_pretrained(weights).tokenizer
    return tokenizer if isinstance(tokenizer, CTCTokenizer) else None


def load(model: ResidualForCTC, weights: Path) -> list[str]:
    """Take weights into a model; the head starts anew where its symbols are others."""
    told = load_weights(model, weights)
    saved = saved_vocabulary(weights)
    if saved is not None and saved.symbols != model.processor.tokenizer.symbols:
        model.head.reset_parameters()
        told.append("the head starts anew, as its symbols are others")
    return told


def _kind(tokenizer: CTCTokenizer) -> Any:
    """How it normalises, and whether its symbols are characters."""
    normalizer = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"]
    return normalizer, all(len(symbol) == 1 for symbol in tokenizer.symbols[1:])


def baseline(tokenizer: CTCTokenizer, train: Clips, test: Clips) -> tuple[str, ErrorRates]:
    """Name and answers of the transcript of that training recording which is most alike: the
    nearest one by means and deviations of MFCC in segments, and by length."""
    known, heard = (_told(clips) for clips in (train, test))
    middle, spread = known.mean(0), known.std(0) + 1e-6
    known, heard = (known - middle) / spread, (heard - middle) / spread
    written = [tokenizer.normalized(text) for text in train.labels]
    pairs = []
    for row, text in zip(heard, test.labels, strict=True):
        nearest = int(np.square(known - row).sum(1).argmin())
        pairs.append((tokenizer.normalized(text), written[nearest]))
    return "the transcript of the recording most alike (MFCC by segments)", ErrorRates.of(pairs)


def _told(clips: Clips) -> Any:
    features = of_mfcc(clips.waveforms, clips.sampling_rate, COEFFICIENTS, by_segments)
    # How long it is tells more of a text than any other number.
    length = np.log(np.array(clips.seconds))[:, None].repeat(COEFFICIENTS, 1)
    return np.concatenate([features, length], 1)


def remarks(metric: ErrorRates) -> Iterator[str]:
    """What is most often mistaken, and whether anything is written at all."""
    if metric.spoken and metric.empty == metric.spoken:
        yield (
            f"the net writes nothing of any of the {metric.spoken:,} recordings, as all do in the "
            "first part of their training: train longer (--epochs, --least-steps), with another "
            "--learning-rate, or see whether the transcripts are those of the recordings"
        )
    elif confused := "; ".join(metric.confused()):
        yield f"most frequent errors: {confused}"


def items(config: Any, source: Source, model: ResidualForCTC) -> TranscriptItems:
    """What a saved model is measured on."""
    how: dict[str, Any] = {"on_bad": config.on_bad, "device": config.where}
    return TranscriptItems(source, model, evaluation=True, **how)


def read(path: Path, processor: ResidualCTCProcessor) -> list[Any]:
    """A recording, to be written down."""
    rate = processor.feature_extractor.sampling_rate
    return [decode_audio(path, rate).float() / FULL_SCALE]


def refuse(config: Any) -> None:
    """Refuse what cannot be trained so.

    Raises:
        InputError: say what.
    """
    if config.pieces < 1:
        raise InputError(f"--pieces is {config.pieces}; give a number from 1 up")
