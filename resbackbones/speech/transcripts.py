"""Recordings and what was said in them, as batches to learn from and to be measured on."""

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from resbackbones.data import Source
from resbackbones.errors import InputError
from resbackbones.speech.augment import DRAWS, Augment, Drawn, tempo
from resbackbones.speech.data import AudioItems
from resbackbones.speech.recognition import IGNORED, NO_CHARACTER, ResidualForCTC
from resbackbones.speech.recordings import Clips, read_clips

SHOWN = 3  # recordings that a sentence names


class TranscriptItems(AudioItems):
    """Recordings and their transcripts as `fit` takes them: a list of rows becomes a batch.

    What cannot be trained on is told before it begins: a recording of fewer frames than CTC needs
    for its symbols (one each, and one for the blank between two of a kind), of more frames than a
    batch holds, or of characters that the model has no symbol for. What is measured on may hold
    the first and the last of these: they count as errors, and are told in a warning.

    Args:
        clips: from `read_clips`, with texts as labels, or a source to read them from; none is cut.
        model: whose features and symbols they are for; it is not kept.
        augment: for training; None leaves the recordings alone. One that is slower or faster takes
            more or fewer frames, as many as CTC needs at least. Moved or mixed with another, it
            would be without a part of what was said: shift and mixup must be 0.
        evaluation: they are to be measured on, so `references` are in the batches.
        budget: frames that a batch holds, if there is such a limit, at their own speed.
        on_bad: "error" refuses bad recordings and those of too few frames by name, "skip" leaves
            them out and lists them.
        seed, device: as of `AudioItems`.

    Attributes:
        texts: the transcripts, normalised.
        empty: how many of them are.
        unknown: how often each character that is no symbol is in them.
        unaligned: the recordings of too few frames that are measured on, by name.

    Raises:
        InputError: as `AudioItems` and above, or no transcripts.
    """

    def __init__(
        self,
        clips: Source | Clips,
        model: ResidualForCTC,
        augment: Augment | None = None,
        *,
        evaluation: bool = False,
        budget: int | None = None,
        on_bad: Literal["error", "skip"] = "error",
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        for name in ("shift", "mixup"):
            if augment is not None and getattr(augment, name):
                raise InputError(
                    f"Augment has {name}={getattr(augment, name)}, which would leave a recording "
                    f"without a part of what was said; set {name}=0"
                )
        hear, self.tokenizer = model.processor.feature_extractor, model.processor.tokenizer
        if isinstance(clips, Source):
            clips = read_clips(clips, hear.sampling_rate, on_bad, math.inf)
        if not (isinstance(clips.labels, list) and all(isinstance(t, str) for t in clips.labels)):
            raise InputError(
                "the recordings have no texts, as a recogniser learns; open their source with "
                "target=Transcripts()"
            )
        samples = torch.tensor([len(waveform) for waveform in clips.waveforms])
        frames = hear.front_end.frames(samples)
        needed = torch.tensor([_needed(row) for row in self.tokenizer.encode_all(clips.labels)])
        room = model.output_lengths(frames)
        self.evaluation = evaluation
        self.unknown = self.tokenizer.unknown(clips.labels)
        self.unaligned: list[str] = []
        if budget is not None and int(frames.max()) > budget:
            raise _too_long(clips, frames, budget)
        if not evaluation and self.unknown:
            raise InputError(
                f"the transcripts to learn from hold {_characters(self.unknown)}, for which the "
                "model has no symbol; learn the vocabulary anew, or leave them out of the texts"
            )
        if (short := needed > room).any():
            told = [
                f"{_name(clips, row)}: {room[row]} frames for {needed[row]} symbols"
                for row in short.nonzero()[:, 0].tolist()
            ]
            if not evaluation and on_bad == "error":
                raise InputError(
                    f"{_some(told)} cannot be learned from, as each symbol takes a frame of the "
                    "net, and one more between two of a kind; use a net of a smaller stride or "
                    "pieces of words, or leave such recordings out (--on-bad skip)"
                )
            if evaluation:
                self.unaligned = told
            else:
                clips, needed = _without(clips, short, told), needed[~short]
        if evaluation and (self.unknown or self.unaligned):
            warnings.warn("; ".join(self._told()), stacklevel=2)
        super().__init__(clips, hear, augment, seed=seed, device=device)
        enough = model.output_lengths(torch.arange(1 + int(frames.max())))
        self.least = torch.searchsorted(enough, needed)  # frames, for CTC to find its symbols in

    def _told(self) -> Iterator[str]:
        if self.unknown:
            yield (
                f"the transcripts to be measured on hold {_characters(self.unknown)}, which the "
                "model never writes: each counts as an error"
            )
        if self.unaligned:
            yield (
                f"{_some(self.unaligned)} cannot be written whole, so that their loss is infinite"
            )

    def _labels(self, clips: Clips) -> Tensor:
        """The symbols of all texts one after the other."""
        self.texts = [self.tokenizer.normalized(text) for text in clips.labels]
        self.empty = sum(not text for text in self.texts)
        symbols = self.tokenizer.encode_all(clips.labels)
        self.counts = [len(row) for row in symbols]
        self.ends = list(itertools.accumulate(self.counts))
        return torch.tensor([number for row in symbols for number in row], dtype=torch.int64)

    def _parts(self) -> Iterator[bytes | str]:
        yield from super()._parts()
        yield repr((self.counts, self.evaluation, self.tokenizer.symbols))

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_features` `(B, F, T)`, padded to the longest recording, `attention_mask` `(B, T)`
        where they differ in length, `labels` `(B, L)`, padded with -100, and for evaluation
        `references` `(B, M)`, the code points of the texts, padded with -1."""
        index = torch.as_tensor(rows)
        whole = frames = self.lengths[index]
        labels = _padded([self._symbols(row) for row in rows], IGNORED).to(self.device)
        drawn = Drawn.of(self.draws(rows, DRAWS))
        if self.augment is not None:
            frames = (whole / tempo(self.augment, drawn)).round().long().maximum(self.least[index])
        features = self._heard(index, whole, drawn, played=frames)
        batch = self._batch(features, frames, labels)
        if self.evaluation:
            texts = [torch.tensor([ord(c) for c in self.texts[row]]) for row in rows]
            batch["references"] = _padded(texts, NO_CHARACTER).to(self.device)
        return batch

    def _symbols(self, row: int) -> Tensor:
        return self.labels[self.ends[row] - self.counts[row] : self.ends[row]]

    def found(self) -> str:
        """A sentence on how long the recordings are and what there is to read."""
        seconds = self.lengths / self.frame_rate
        texts = f"{self.empty:,} of {len(self):,} texts are empty" if self.empty else ""
        said = f"{len(self):,} recordings of {seconds.min():.3g} to {seconds.max():.3g} s"
        said += f", {seconds.sum() / 3600:.2f} hours together"
        return f"{said}; {texts}" if texts else said


def _needed(symbols: Sequence[int]) -> int:
    """Frames that CTC needs for some symbols.

    >>> _needed([1, 2, 2, 2]), _needed([])
    (6, 0)
    """
    return len(symbols) + sum(a == b for a, b in itertools.pairwise(symbols))


def _padded(rows: list[Tensor], value: int) -> Tensor:
    rows = [row.long() for row in rows]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def _name(clips: Clips, row: int) -> str:
    return f"recording {row}" if clips.source is None else clips.source.row_name(clips.rows[row])


def _some(told: Sequence[str]) -> str:
    more = f" and {len(told) - SHOWN:,} more" if len(told) > SHOWN else ""
    return f"{len(told):,} recording{'s' * (len(told) > 1)} ({', '.join(told[:SHOWN])}{more})"


def _characters(unknown: Any) -> str:
    names = ", ".join(f"{char!r} ({count:,} times)" for char, count in unknown.most_common(8))
    return f"{names}{', …' * (len(unknown) > 8)}"


def _too_long(clips: Clips, frames: Tensor, budget: int) -> InputError:
    row = int(frames.argmax())
    return InputError(
        f"{_name(clips, row)} has {int(frames[row]):,} frames, and a batch holds {budget:,}; raise "
        "the budget (--budget), cut the recording, or leave it out"
    )


def _without(clips: Clips, left_out: Tensor, told: list[str]) -> Clips:
    """The clips but for some."""
    keep = (~left_out).nonzero()[:, 0].tolist()
    if not keep:
        raise InputError(f"no recording is left: {_some(told)} have too few frames for their texts")
    return replace(
        clips,
        waveforms=[clips.waveforms[row] for row in keep],
        labels=[clips.labels[row] for row in keep],
        rows=[clips.rows[row] for row in keep],
        skipped=[*clips.skipped, *told],
    )
