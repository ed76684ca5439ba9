"""From files to waveforms: recordings are opened, cut, mixed to one channel and resampled.

soundfile alone decodes (WAV, FLAC, OGG, MP3); clips are kept as 16-bit numbers. How long recordings
are is read from their headers first, so that one of an hour among words costs what a word does.
"""

import contextlib
import functools
import io
import math
import os
import statistics
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import soundfile
import torch
from torch import Tensor

from resbackbones.data import Source, open_unlabelled, read
from resbackbones.errors import InputError
from resbackbones.speech.frontend import one_channel
from resbackbones.speech.resampling import resample, resampled

FULL_SCALE = 32768  # of 16-bit samples
BLOCK = 10.0  # seconds of a long recording that are decoded at a time
LEAST_LIMIT = 10.0  # seconds that are never too long
OUTLIER = 4.0  # times the median length, from which on a recording is too long
AT_ONCE = 1 << 20  # samples listened to at a time, padding included
SLACK = 0.01  # seconds by which an end may lie behind a recording's: tables round
CLIPPED = 0.01  # share of the samples at full scale from which on a recording is called clipped
LEAD_IN = (
    10 * 1152
)  # samples of an MP3 that are decoded before a part: its frames need earlier ones
NO_LENGTH = 1 << 62  # libsndfile's count of samples, or more, where the header has none


@dataclass(frozen=True)
class Clips:
    """Decoded recordings.

    Attributes:
        waveforms: int16 `(samples,)` each, one channel.
        sampling_rate: in Hz.
        labels: int64 `(N,)`; of `Labels` float32 `(N, K)`; of `Transcripts` N strings;
            of `NoTarget` None.
        names: of the labels; () of transcripts.
        rows: row of each clip in its source.
        skipped: the bad recordings left out, "name: reason".
        max_seconds: no clip is longer.
        cut: the recordings that were, "name: seconds".
        source: where they come from.
    """

    waveforms: list[Tensor]
    sampling_rate: int
    labels: Any
    names: tuple[str, ...]
    rows: list[int]
    skipped: list[str]
    max_seconds: float = math.inf
    cut: list[str] = field(default_factory=list)
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.waveforms)

    @classmethod
    def from_arrays(
        cls,
        waveforms: Sequence[Any],
        labels: Sequence[Any],
        rates: int | Sequence[int],
        sampling_rate: int | None = None,
    ) -> Self:
        """Recordings that are in memory already.

        Args:
            waveforms: one array or tensor each, as `ResidualFeatureExtractor` takes them: of one
                channel or several, of real numbers from -1 to 1 or of whole ones.
            labels: one class each, a name or a number; names are sorted.
            rates: their sampling rate in Hz, or one each.
            sampling_rate: what they are brought to; None means what `rates` says of all.

        Raises:
            InputError: not one label and rate per recording, rates that differ without a
                `sampling_rate`, or a waveform that the extractor would refuse.

        >>> sounds = [np.full(8000, 0.5), np.full((2, 4000), 99, np.int16)]
        >>> clips = Clips.from_arrays(sounds, ["yes", "no"], 8000, 16000)
        >>> clips.seconds, clips.names, clips.labels.tolist()
        ([1.0, 0.5], ('no', 'yes'), [1, 0])
        """
        each = [rates] * len(waveforms) if isinstance(rates, int) else list(rates)
        if not len(waveforms) == len(labels) == len(each) or not len(waveforms):
            raise InputError(
                f"{len(waveforms)} recordings, {len(labels)} labels and {len(each)} sampling rates "
                "do not fit together; give one of each per recording"
            )
        if sampling_rate is None and len(set(each)) > 1:
            raise InputError(
                f"the recordings are at {min(each)} to {max(each)} Hz; say by sampling_rate to "
                "what they are to be brought"
            )
        new_rate = each[0] if sampling_rate is None else sampling_rate
        heard = [
            as_int16(resample(one_channel(torch.as_tensor(waveform), row), rate, new_rate))
            for row, (waveform, rate) in enumerate(zip(waveforms, each, strict=True))
        ]
        cells = [cell.item() if hasattr(cell, "item") else cell for cell in labels]
        names = sorted(set(cells))
        numbers = torch.tensor([names.index(cell) for cell in cells])
        _warn_of_doubts(heard, "recording {}".format)
        return cls(heard, new_rate, numbers, tuple(map(str, names)), list(range(len(heard))), [])

    @property
    def seconds(self) -> list[float]:
        """How long each clip is."""
        return [len(waveform) / self.sampling_rate for waveform in self.waveforms]

    def found(self) -> str:
        """A sentence on how long the clips are, and which were cut.

        >>> waveforms = [torch.zeros(8000), torch.zeros(80000)]
        >>> cut = ["talk.flac: 3600 s"]
        >>> Clips(waveforms, 8000, torch.tensor([0, 1]), ("no", "yes"), [0, 1], [], 10, cut).found()
        'clips last 1 to 10 s; 1 recording is cut to the first 10 s (talk.flac: 3600 s)'
        """
        shortest, longest = f"{min(self.seconds):.3g}", f"{max(self.seconds):.3g}"
        found = f"clips last {shortest if shortest == longest else f'{shortest} to {longest}'} s"
        if not self.cut:
            return found
        some = ", ".join(self.cut[:3])
        more = f", and {len(self.cut) - 3} more" if len(self.cut) > 3 else ""
        count = "1 recording is" if len(self.cut) == 1 else f"{len(self.cut)} recordings are"
        return f"{found}; {count} cut to the first {self.max_seconds:g} s ({some}{more})"


def read_clips(
    source: Source,
    sampling_rate: int,
    on_bad: Literal["error", "skip"] = "error",
    max_seconds: float | None = None,
) -> Clips:
    """Decode every recording of a source, mixed to one channel, at `sampling_rate` Hz.

    Args:
        on_bad: "error" names the first bad recording, "skip" leaves bad ones out and lists them.
        max_seconds: of a longer recording only so much of its beginning is decoded, and it is
            listed in `cut`; None means four times the median length, but 10 s at least; `math.inf`
            that none is cut.

    Raises:
        InputError: a recording that cannot be read, is empty, cut short or has no such part as the
            table says, by name; or a `max_seconds` that is no time.

    Warns:
        UserWarning: recordings that were cut, or are silent, a single sample or clipped (more
            than 1 % of the samples at full scale): once, counted, up to three of a kind named.
    """
    _check_limit(max_seconds)
    # Where only one of a part's ends is told, it is not the first of two.
    part = functools.partial(_in_part, source.span)
    headers = read(source, part(duration), on_bad, optional=source.span)
    if max_seconds is None:
        max_seconds = max(LEAST_LIMIT, OUTLIER * statistics.median(headers.items))
    good = source.select(headers.rows) if headers.skipped else source
    heard = functools.partial(decode_audio, sampling_rate=sampling_rate, max_seconds=max_seconds)
    bodies = read(good, part(heard), on_bad, optional=source.span)
    rows = [headers.rows[row] for row in bodies.rows]
    lengths = [headers.items[row] for row in bodies.rows]
    cut = [
        f"{source.row_name(row)}: {seconds:.{0 if seconds >= 100 else 1}f} s"
        for row, seconds in zip(rows, lengths, strict=True)
        if seconds > max_seconds
    ]
    more = [(f"cut to the first {max_seconds:g} s", cut)]
    _warn_of_doubts(bodies.items, lambda item: source.row_name(rows[item]), more)
    labels = source.targets()
    if labels is not None:
        labels = [labels[row] for row in rows] if isinstance(labels, list) else labels[rows]
    skipped = headers.skipped + bodies.skipped
    return Clips(
        bodies.items,
        sampling_rate,
        labels,
        source.target.names,
        rows,
        skipped,
        max_seconds,
        cut,
        source,
    )


def _in_part(span: Sequence[str], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a value and the ends of its part, `span`, one argument each."""
    return lambda value, *ends: function(value, **dict(zip(span, ends, strict=True)))


def _warn_of_doubts(
    waveforms: Sequence[Tensor],
    name: Callable[[int], str],
    more: Sequence[tuple[str, list[str]]] = (),
) -> None:
    """Say once which of these int16 waveforms hold nothing, or not what was said."""
    found: dict[str, list[str]] = {what: names for what, names in more if names}
    for item, waveform in enumerate(waveforms):
        loud = int(((waveform == FULL_SCALE - 1) | (waveform == -FULL_SCALE)).sum())
        for what, so in (
            ("a single sample", len(waveform) == 1),
            ("silent", not waveform.any()),
            ("clipped", loud > max(1, CLIPPED * len(waveform))),
        ):
            if so:
                found.setdefault(what, []).append(name(item))
    if found:
        said = [
            f"{len(names):,} {'is' if len(names) == 1 else 'are'} {what} "
            f"({', '.join(names[:3])}{', …' * (len(names) > 3)})"
            for what, names in found.items()
        ]
        warnings.warn(
            f"of {len(waveforms):,} recordings {'; '.join(said)}", UserWarning, stacklevel=3
        )


def read_unlabelled(
    where: "str | os.PathLike[str]", sampling_rate: int, max_seconds: float
) -> list[Tensor]:
    """The first `max_seconds` of every recording in a folder, or in anything else that
    `open_unlabelled` opens, as int16 `(samples,)`.

    Raises:
        InputError: nothing there, or a recording that cannot be read, by name.
    """
    heard = functools.partial(decode_audio, sampling_rate=sampling_rate, max_seconds=max_seconds)
    sources = open_unlabelled(where, kind="audio")
    return [each for source in sources.values() for each in read(source, heard).items]


def duration(value: Any, start: Any = None, end: Any = None) -> float:
    """Seconds that a recording, or its part from `start` to `end`, lasts, by its header.

    Args:
        value: a path, or `{"bytes", "path"}` of which one may be None.
        start, end: in seconds; None means the recording's own.

    Raises:
        InputError: as `decode_audio`, for what the header tells.
    """
    with _opened(value) as file:
        first, last = _part(file, start, end)
        return (last - first) / file.samplerate


def decode_audio(
    value: Any,
    sampling_rate: int,
    max_seconds: float | None = None,
    start: Any = None,
    end: Any = None,
) -> Tensor:
    """One recording, or a part of it, as int16 `(samples,)`. Channels are averaged.

    Args:
        value: a path, or `{"bytes", "path"}` of which one may be None.
        sampling_rate: to resample to, in Hz.
        max_seconds: stop there; None means decode all.
        start, end: of the part, in seconds; None means the recording's own. What stands before and
            behind is not decoded.

    Raises:
        InputError: the file is empty, cut short, damaged, of an unknown format or of an unknown
            length; there is no such part; or a `max_seconds` that is not above 0.
    """
    _check_limit(max_seconds)
    samples, rate = _samples(value, max_seconds, start, end)
    return as_int16(resample(samples, rate, sampling_rate))


def audio_blocks(value: Any, sampling_rate: int, seconds: float = BLOCK) -> Iterator[Tensor]:
    """One recording of any length as int16 blocks `(samples,)`, so that no more than a few seconds
    of it are in memory: put together, what `decode_audio` gives.

    Args:
        value, sampling_rate: as in `decode_audio`.
        seconds: decoded at a time.

    Raises:
        InputError: as `decode_audio`, of damage where it stands.
    """
    with _opened(value) as file:
        size = max(1, round(seconds * file.samplerate))
        parts = (
            torch.from_numpy(_decoded(file, start, min(size, file.frames - start)))
            for start in range(0, file.frames, size)
        )
        for block in resampled(parts, file.samplerate, sampling_rate):
            yield as_int16(block)


def as_int16(sound: Tensor) -> Tensor:
    """Samples from -1 to 1 as clips hold them."""
    return (sound * FULL_SCALE).round_().clamp_(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16)


def _part(file: soundfile.SoundFile, start: Any, end: Any) -> tuple[int, int]:
    """First sample of a part, and the one behind its last."""
    whole = file.frames / file.samplerate
    told = {"start": 0.0 if start is None else start, "end": whole if end is None else end}
    try:
        first, last = (float(cell) for cell in told.values())
    except (TypeError, ValueError) as error:
        raise InputError(f"{told} are no two times in seconds") from error
    first = 0.0 if math.isnan(first) else first  # what an empty cell among numbers is read as
    last = whole if math.isnan(last) else last
    if not 0 <= first < last <= whole + SLACK:
        raise InputError(
            f"there is no part from {first:g} to {last:g} s in a recording of {whole:.5g} s"
        )
    samples = round(first * file.samplerate), min(file.frames, round(last * file.samplerate))
    if samples[0] >= samples[1]:
        raise InputError(f"the part from {first:g} to {last:g} s holds no sample")
    return samples


def _check_limit(max_seconds: float | None) -> None:
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"max_seconds={max_seconds!r} must be a time above 0, in seconds")


def _samples(value: Any, max_seconds: float | None, start: Any, end: Any) -> tuple[np.ndarray, int]:
    """One recording as float32 `(samples,)`, its channels averaged, and its sampling rate."""
    with _opened(value) as file:
        rate = file.samplerate
        first, last = _part(file, start, end)
        wanted = last - first
        if max_seconds is not None and max_seconds * rate < wanted:
            wanted = math.ceil(max_seconds * rate)
        return _decoded(file, first, wanted), rate


def _decoded(file: soundfile.SoundFile, first: int, wanted: int) -> np.ndarray:
    """So many samples of an open recording from the `first` one on, likewise."""
    before = min(first, LEAD_IN) if file.format == "MP3" else 0
    if file.tell() != first - before:
        file.seek(first - before)
    # In one call: soundfile seeks after each, and an MP3 then goes on a little otherwise.
    samples = file.read(before + wanted, dtype="float32", always_2d=True)
    if len(samples) < before + wanted:
        raise InputError(
            f"the file is cut short ({len(samples)} of {before + wanted} samples are there)"
        )
    if not np.isfinite(samples).all():
        raise InputError("the file holds samples that are not finite")
    return samples[before:].mean(1)


def chunks(samples: list[int]) -> Iterator[tuple[int, int]]:
    """Cut a list of clips of so many samples into runs `[first, last)` that, padded to their
    longest, hold 2^20 samples at most, about a minute of sound; a longer clip is alone.

    >>> list(chunks([600_000, 400_000, 600_000, 2_000_000, 1]))
    [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    >>> list(chunks([400_000, 500_000, 600_000]))
    [(0, 2), (2, 3)]
    """
    first, longest = 0, 0
    for index, count in enumerate(samples):
        longest = max(longest, count)
        if index > first and longest * (index + 1 - first) > AT_ONCE:
            yield first, index
            first, longest = index, count
    yield first, len(samples)


@contextlib.contextmanager
def _opened(value: Any) -> Iterator[soundfile.SoundFile]:
    """A recording whose header has been read; what soundfile cannot do becomes an InputError."""
    if not isinstance(value, dict):
        value = {"path": value}
    content = value.get("bytes")
    with io.BytesIO(content) if content is not None else open(value["path"], "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        if not size:
            raise InputError("the file is empty (0 bytes)")
        if missing := _missing_bytes(stream, size):
            raise InputError(f"the file is cut short ({missing} bytes of sound are missing)")
        stream.seek(0)
        try:
            with soundfile.SoundFile(stream) as file:
                if not file.frames:
                    raise InputError("the file holds no samples")
                if file.frames >= NO_LENGTH:
                    raise InputError("its header does not say how long it is")
                yield file
        except soundfile.LibsndfileError as error:
            reason = error.error_string.removeprefix("Error : ").rstrip(".")
            raise InputError(f"soundfile cannot decode it ({reason})") from error


def _missing_bytes(stream: BinaryIO, size: int) -> int:
    """Bytes a WAV file declares but does not have: libsndfile reads what is left without a word."""
    stream.seek(0)
    start = stream.read(12)
    if start[:4] != b"RIFF" or start[8:] != b"WAVE":
        return 0
    position = 12
    while position + 8 <= size:
        stream.seek(position)
        name, length = struct.unpack("<4sI", stream.read(8))
        if name == b"data":
            streamed = length >= 0xFFFFFF00  # a recorder that wrote to a pipe could not know it
            return 0 if streamed else max(0, position + 8 + length - size)
        position += 8 + length + length % 2
    return 0
