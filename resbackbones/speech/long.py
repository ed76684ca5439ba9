"""Recordings of any length, written down utterance by utterance in bounded memory."""

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from resbackbones.core.backbone import modes_kept
from resbackbones.core.pieces import Approximate
from resbackbones.errors import InputError, nearest
from resbackbones.speech.endpoints import by_blanks, by_energy, frames_of
from resbackbones.speech.error_rates import ErrorRates
from resbackbones.speech.frontend import list_clips
from resbackbones.speech.hypotheses import Hypothesis, Span, separates
from resbackbones.speech.recognition import ResidualForCTC, Search
from resbackbones.speech.recordings import BLOCK, audio_blocks
from resbackbones.speech.streaming import CHUNK, ChunkedSpeech, SpeechStream, whole_only

Endpoints = Literal["model", "energy"]


@dataclass(frozen=True)
class Segment:
    """What was said between two pauses.

    Attributes:
        start, end: in seconds of the recording, from the beginning of the first word to the end of
            the last.
        text: as it is written.
        words: or, where the model's symbols have nothing between words, its symbols.
    """

    start: float
    end: float
    text: str
    words: tuple[Span, ...]


def transcribe_long(
    model: ResidualForCTC,
    source: Any,
    *,
    search: Search | None = None,
    endpoints: Endpoints | None = None,
    pause: float = 0.5,
    longest: float = 30.0,
    chunk: float | None = None,
    overlap: float | None = None,
) -> Iterator[Segment]:
    """Write down a recording of any length, of which no more than a few chunks are in memory.

    A net whose operators are all local reads it in chunks, or a causal one as a stream, with the
    logits of the whole recording, and ends utterances where it hears a pause. Any other net hears
    the sound between two pauses by itself, as it heard recordings in its training.

    Args:
        source: a file's path, or `{"bytes", "path"}`; or samples at the model's sampling rate, as
            the processor takes a clip, or an iterable of such pieces of one recording.
        search: how texts are found in the logits of an utterance, instead of the model's own way.
        endpoints: what ends utterances: a pause in what the "model" writes, or quiet in the sound
            ("energy"), of which each piece then is heard alone. None takes "model" where chunks
            give what the whole gives, or `overlap` is given, else "energy".
        pause: seconds that end an utterance.
        longest: seconds of an utterance, which is cut at its longest pause otherwise.
        chunk: seconds that are computed together; None takes 30 or, where the net reaches further
            around them, as many as it does.
        overlap: seconds that chunks read before and behind; None takes as many as the net reaches.

    Returns:
        The utterances in which something is written, one after another as they are found.

    Raises:
        InputError: a recording that cannot be read, an unknown way to find endpoints, times that
            are none, a model without a processor, or `endpoints="model"` without an `overlap` of a
            net that looks at the whole recording.

    Warns:
        Approximate: what is written may differ from what the model writes of the whole recording;
            `departure` measures it.

    >>> model = ResidualForCTC.build("mel_resnet_ctc18", vocabulary=list("abc "))
    >>> list(transcribe_long(model, torch.zeros(16000)))  # it is untrained
    [...]
    """
    for name, seconds in (("pause", pause), ("longest", longest), ("chunk", chunk)):
        if seconds is not None and not 0 < seconds < math.inf:
            raise InputError(f"{name}={seconds!r} is no time; give seconds, above 0")
    if endpoints not in (None, *get_args(Endpoints)):
        raise InputError(
            f"endpoints={endpoints!r} is not known; {nearest(str(endpoints), get_args(Endpoints))}"
        )
    symbols, search = model.symbols, search or model.search
    hear = model.processor.feature_extractor
    whole = whole_only(model.backbone, hear.front_end)
    if endpoints is None:
        endpoints = "energy" if whole and overlap is None else "model"
    blocks = _blocks(source, hear.sampling_rate)
    if endpoints == "energy":
        size = model.backbone.strides[-1][-1] * hear.front_end.hop
        frame = size / hear.sampling_rate
        pieces = by_energy(blocks, hear.sampling_rate, pause, longest)
        found = _alone(model, pieces, search, (chunk or CHUNK) * hear.sampling_rate, size)
        why = f", as {' and '.join(whole)} looks at the whole recording" if whole else ""
        why = f"what stands between two pauses is heard alone{why}"
    else:
        reader = _reader(model, chunk, overlap)
        frame, why = reader.seconds_per_frame, ""
        if isinstance(reader, ChunkedSpeech) and not reader.is_exact:
            why = f"chunks overlap by {overlap:g} s, which is less than the net reaches"
        times = [frames_of(seconds, frame) for seconds in (pause, longest)]
        found = _searched(model, by_blanks(_read(model, reader, blocks), symbols, *times), search)
    if why:
        warnings.warn(f"what is written is approximate: {why}", Approximate, stacklevel=2)
    return _segments(found, symbols, frame)


def joined(segments: Iterable[Segment], symbols: Sequence[str]) -> str:
    """The text of a recording, of its segments: `symbols` tell whether it has words."""
    return (" " if separates(symbols) else "").join(segment.text for segment in segments)


def departure(model: ResidualForCTC, samples: Any, **how: Any) -> ErrorRates:
    """How far what `transcribe_long` writes is from what the model writes of the whole recording,
    which has to fit into memory.

    Args:
        samples: at the model's sampling rate, as the processor takes a clip.
        how: as in `transcribe_long`.
    """
    given = {name: how[name] for name in ("search",) if name in how}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Approximate)
        written = joined(transcribe_long(model, samples, **how), model.symbols)
    return ErrorRates.of([(model.transcribe([samples], **given)[0], written)])


Found = Iterator[tuple[float, Hypothesis]]  # the first frame of each, and what was heard from there


def _segments(found: Found, symbols: Sequence[str], frame: float) -> Iterator[Segment]:
    for first, hypothesis in found:
        words = [
            Span(word.text, word.start + first * frame, word.end + first * frame, word.confidence)
            for word in hypothesis.units(symbols, frame)
        ]
        if text := hypothesis.text(symbols):
            yield Segment(words[0].start, words[-1].end, text, tuple(words))


def _blocks(source: Any, rate: int) -> Iterator[Tensor]:
    """The float samples of a recording, a few seconds at a time."""
    if isinstance(source, str | os.PathLike | dict):
        pieces: Iterable[Any] = audio_blocks(source, rate)
    else:
        alone = isinstance(source, np.ndarray | Tensor)
        alone |= isinstance(source, Sequence) and len(source) > 0 and np.ndim(source[0]) == 0
        pieces = [source] if alone else source
    for piece in pieces:
        if len(piece):
            (samples,) = list_clips([piece])
            yield from samples.split(max(1, round(BLOCK * rate)))


@contextmanager
def _listening(model: ResidualForCTC) -> Iterator[None]:
    with modes_kept(model), torch.no_grad():
        model.eval()
        yield


def _reader(
    model: ResidualForCTC, chunk: float | None, overlap: float | None
) -> SpeechStream | ChunkedSpeech:
    with _listening(model):
        if model.backbone.spec.causal and overlap is None:
            return model.stream()
        hear = model.processor.feature_extractor
        return ChunkedSpeech(hear, model.backbone, model.head, chunk, overlap)


def _read(
    model: ResidualForCTC, reader: SpeechStream | ChunkedSpeech, blocks: Iterator[Tensor]
) -> Iterator[Tensor]:
    """Logits `(1, T, V)`, one behind the other."""
    for block in blocks:
        with _listening(model):
            logits = reader.push(block)
        yield logits
    with _listening(model):
        logits = reader.finish()
    yield logits


def _searched(
    model: ResidualForCTC, utterances: Iterator[tuple[int, Tensor]], search: Search
) -> Found:
    for first, logits in utterances:
        yield first, search(logits, torch.tensor([logits.shape[1]]))[0]


def _alone(
    model: ResidualForCTC,
    pieces: Iterator[tuple[int, Tensor]],
    search: Search,
    most: float,
    size: int,
) -> Found:
    """What is heard in pieces, each by itself: in batches of `most` samples, padding included, of
    which a frame has `size`."""
    hear = model.processor.feature_extractor

    def heard(batched: list[tuple[int, Tensor]]) -> Found:
        with _listening(model):
            batch = hear([piece for _, piece in batched], return_tensors="pt", device=model.device)
            logits = model(**batch).logits
            lengths = model.output_lengths(batch["attention_mask"].sum(1))
        for (first, _), hypothesis in zip(batched, search(logits, lengths), strict=True):
            yield first / size, hypothesis

    held: list[tuple[int, Tensor]] = []
    for piece in pieces:
        longer = max(len(samples) for _, samples in [*held, piece])
        if held and longer * (len(held) + 1) > most:
            yield from heard(held)
            held = []
        held.append(piece)
    if held:
        yield from heard(held)


__all__: Sequence[str] = ("Segment", "departure", "joined", "transcribe_long")
