"""From recordings to batches: decoded once, heard once, varied anew in every epoch.

soundfile alone decodes (WAV, FLAC, OGG, MP3); clips are kept as 16-bit numbers. `AudioItems` keeps
the power in their mel bands and augments that: powers of independent sounds add up as the sounds do
in air, and a shifted, stretched, noisier copy costs a small part of what a Fourier transform does.
"""

import dataclasses
import functools
import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from torch.nn import functional

from resbackbones.core.context import valid_mask
from resbackbones.data import Items, Source, mixed_labels, read
from resbackbones.errors import InputError
from resbackbones.speech.frontend import FrontEnd, ResidualFeatureExtractor, resample

FULL_SCALE = 32768  # of 16-bit samples
CHUNK = 64  # clips listened to at a time


@dataclass(frozen=True)
class Clips:
    """Decoded recordings.

    Attributes:
        waveforms: int16 `(samples,)` each, one channel.
        sampling_rate: in Hz.
        labels: int64 `(N,)`.
        names: of the labels.
        rows: row of each clip in its source.
        skipped: the bad recordings left out, "name: reason".
    """

    waveforms: list[Tensor]
    sampling_rate: int
    labels: Tensor
    names: tuple[str, ...]
    rows: list[int]
    skipped: list[str]

    def __len__(self) -> int:
        return len(self.waveforms)


def read_clips(
    source: Source, sampling_rate: int, on_bad: Literal["error", "skip"] = "error"
) -> Clips:
    """Decode every recording of a source, mixed to one channel, at `sampling_rate` Hz.

    Raises:
        InputError: a recording that cannot be read, is empty or cut short, by name; with
            `on_bad="skip"` it is left out and listed instead.
    """
    found = read(source, functools.partial(decode, sampling_rate=sampling_rate), on_bad)
    labels = source.label_ids()[found.rows]
    return Clips(found.items, sampling_rate, labels, source.labels, found.rows, found.skipped)


def decode(value: Any, sampling_rate: int) -> Tensor:
    """One recording as int16 `(samples,)`.

    Args:
        value: a path, or `{"bytes", "path"}` of which one may be None.
        sampling_rate: to resample to, in Hz.

    Raises:
        InputError: the file is empty, cut short, damaged or of an unknown format.
    """
    if not isinstance(value, dict):
        value = {"path": value}
    content = value.get("bytes")
    if content is None:
        content = Path(value["path"]).read_bytes()
    if not content:
        raise InputError("the file is empty (0 bytes)")
    if missing := _missing_bytes(content):
        raise InputError(f"the file is cut short ({missing} bytes of sound are missing)")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            declared, rate = file.frames, file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise InputError(f"soundfile cannot decode it ({reason})") from error
    if len(samples) < declared:
        raise InputError(f"the file is cut short ({len(samples)} of {declared} samples are there)")
    if not len(samples):
        raise InputError("the file holds no samples")
    if not np.isfinite(samples).all():
        raise InputError("the file holds samples that are not finite")
    mono = resample(samples.mean(1), rate, sampling_rate)
    return (mono * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16)


def _missing_bytes(content: bytes) -> int:
    """Bytes a WAV file declares but does not have: libsndfile reads what is left without a word."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return 0
    position = 12
    while position + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        if name == b"data":
            streamed = size >= 0xFFFFFF00  # a recorder that wrote to a pipe could not know the size
            return 0 if streamed else max(0, position + 8 + size - len(content))
        position += 8 + size + size % 2
    return 0


@dataclass(frozen=True)
class Augment:
    """What happens to training clips, each by its own draws. A strength of 0 is off.

    Attributes:
        shift: up to so many seconds earlier or later; what enters is silence.
        stretch: up to this share slower or faster, at the same pitch.
        warp: formants up to this share higher or lower, as of another speaker (vocal tract length
            perturbation, Jaitly & Hinton 2013).
        gain: up to so many decibels softer or louder.
        noise: share of the clips that get noise, of any colour from white to brown.
        noise_level: decibels the noise lies below the clip, least and most.
        time_mask: longest blank, in seconds; two are put in (SpecAugment, Park et al. 2019).
        band_mask: most features blanked at a time; two times (likewise).
        mixup: half-width of the share that another clip of the set may take, up to 0.5 (Zhang
            2018); labels are mixed alike.
    """

    shift: float = 0.1
    stretch: float = 0.1
    warp: float = 0.1
    gain: float = 6.0
    noise: float = 0.8
    noise_level: tuple[float, float] = (0.0, 30.0)
    time_mask: float = 0.1
    band_mask: int = 6
    mixup: float = 0.0

    def __post_init__(self) -> None:
        most = {"stretch": 0.5, "warp": 0.5, "noise": 1.0, "mixup": 0.5}
        for field in dataclasses.fields(self):
            value, high = getattr(self, field.name), most.get(field.name, math.inf)
            if field.name != "noise_level" and not 0 <= value <= high:
                raise InputError(
                    f"Augment has {field.name}={value!r}; use a number from 0 to {high}"
                )


class AudioItems(Items):
    """Labelled clips as `fit` takes them: a list of rows becomes a batch.

    Args:
        clips: from `read_clips`, or a source to read them from.
        extractor: the model's; without `augment` the features are what it makes of the clips.
        augment: for training; None leaves the clips alone.
        on_bad: "error" names the first damaged recording, "skip" leaves damaged ones out and lists
            them in `skipped`.
        seed: of the augmentation.
        device: where the clips' powers live and are augmented.

    Attributes:
        labels: int64 `(N,)`.
        rows: row of each item in the source.
        skipped: the damaged ones, "name: reason".

    Raises:
        InputError: a damaged recording, or clips of another sampling rate than the extractor's.
    """

    def __init__(
        self,
        clips: Source | Clips,
        extractor: ResidualFeatureExtractor,
        augment: Augment | None = None,
        *,
        on_bad: Literal["error", "skip"] = "error",
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(seed)
        if isinstance(clips, Source):
            clips = read_clips(clips, extractor.sampling_rate, on_bad)
        if clips.sampling_rate != extractor.sampling_rate:
            raise InputError(
                f"the clips are at {clips.sampling_rate} Hz, but the extractor listens at "
                f"{extractor.sampling_rate} Hz; read them at that rate"
            )
        self.augment = augment
        self.num_classes = len(clips.names)
        self.rows, self.skipped = clips.rows, clips.skipped
        self.device = torch.device(device)
        self.labels = clips.labels.to(device)
        self.front_end = FrontEnd(**extractor.options).to(device)  # type: ignore[arg-type]
        self.frame_rate = extractor.sampling_rate / self.front_end.hop
        # All clips' frames one after the other, (total, n_mels): no clip is padded to the longest.
        # Their numbers stay on the CPU, where a batch's size is read without waiting for a GPU.
        self.power, self.frames = self._listen(clips.waveforms)
        self.starts = self.frames.cumsum(0) - self.frames
        self.noise = self._white_noise(10 * clips.sampling_rate)
        self.octaves = self._octaves()

    def _listen(self, waveforms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Power `(total, n_mels)` of all clips' frames, and the frames of each clip `(N,)`."""
        powers, counts = [], []
        for start in range(0, len(waveforms), CHUNK):
            chunk = waveforms[start : start + CHUNK]
            lengths = torch.tensor([len(waveform) for waveform in chunk])
            batch = nn.utils.rnn.pad_sequence(chunk, batch_first=True).to(self.device)
            power, frames = self.front_end.power(batch.float() / FULL_SCALE, lengths)
            powers.append(power.transpose(1, 2)[valid_mask(frames, power.shape[-1])])
            counts.append(frames.cpu())
        return torch.cat(powers), torch.cat(counts)

    def _white_noise(self, samples: int) -> Tensor:
        """Power `(frames, n_mels)` of white noise; clips get a stretch of it, coloured."""
        noise = torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
        return self.front_end.power(noise.to(self.device))[0][0].T.contiguous()

    def _octaves(self) -> Tensor:
        """How far each mel band lies above the lowest one, `(n_mels,)`."""
        filters = self.front_end.mel.mel_scale.fb  # (frequencies, n_mels)
        bins = torch.arange(len(filters), device=filters.device, dtype=filters.dtype)
        centres = bins @ filters / filters.sum(0)
        return (centres / centres[0]).log2()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_features` `(B, F, T)`, padded to the longest clip, `labels`, `(B,)` or, mixed,
        `(B, K)`; and `attention_mask` `(B, T)` where clips differ in length: without one the model
        is spared all masking."""
        index, options = torch.as_tensor(rows), self.augment
        labels, frames = self.labels[index.to(self.device)], self.frames[index]
        if options is None:
            features = self._heard(index)
        else:
            draws = self.draws(rows, 2 * DRAWS + 2)
            features = self._heard(index, options, draws[:, :DRAWS])
            if options.mixup:
                partners = (draws[:, -1] * len(self)).long()
                other = self._heard(partners, options, draws[:, DRAWS : 2 * DRAWS])
                other = functional.pad(other, (0, features.shape[-1] - other.shape[-1]))
                share = options.mixup * draws[:, -2].to(self.device)
                features = torch.lerp(features, other, share.view(-1, 1, 1))
                other_labels = self.labels[partners.to(self.device)]
                labels = mixed_labels(labels, other_labels, share, self.num_classes)
        if int(frames.min()) == features.shape[-1]:
            return {"input_features": features, "labels": labels}
        valid = valid_mask(frames.to(self.device), features.shape[-1])
        return {
            "input_features": features.masked_fill(~valid.unsqueeze(1), 0.0),
            "attention_mask": valid.to(torch.int64),
            "labels": labels,
        }

    def _heard(
        self, index: Tensor, options: Augment | None = None, draws: Tensor | None = None
    ) -> Tensor:
        """Features `(B, F, T)` of these rows, varied where there are options."""
        place = torch.arange(int(self.frames[index].max()))
        inside = place < self.frames[index].unsqueeze(1)
        place = (self.starts[index].unsqueeze(1) + place).where(inside, 0).to(self.device)
        power = (self.power[place] * inside.unsqueeze(2).to(self.device)).transpose(1, 2)
        frames = self.frames[index].to(self.device)
        if options is None or draws is None:
            return self.front_end.features(power, frames)
        draws = draws.to(self.device)
        power = self._varied(power, frames, options, draws)
        features = self.front_end.features(power, frames)
        time = round(options.time_mask * self.frame_rate)
        return spec_augment(
            features, frames, draws[:, 8:].unflatten(1, (2, 4)), time, options.band_mask
        )

    def _varied(self, power: Tensor, frames: Tensor, options: Augment, draws: Tensor) -> Tensor:
        """Other times, another speaker, noise and another loudness for powers `(B, n_mels, T)`."""
        shift, stretch, warp, gain = (2 * draws[:, :4] - 1).unbind(1)
        level, colour, start, whether = draws[:, 4:8].unbind(1)
        valid = valid_mask(frames, power.shape[-1]).unsqueeze(1)
        if options.shift or options.stretch or options.warp:
            power = warped(
                power,
                frames,
                shift * options.shift * self.frame_rate,
                1 + stretch * options.stretch,
                1 + warp * options.warp,
            )
            power = power * valid  # what was pushed past a clip's end is gone
        if options.noise:
            first = (start * len(self.noise)).long().unsqueeze(1)
            place = (first + torch.arange(power.shape[-1], device=power.device)) % len(self.noise)
            slope = torch.exp2(-2 * colour.unsqueeze(1) * self.octaves)  # brown: -6 dB an octave
            noise = self.noise[place].transpose(1, 2) * slope.unsqueeze(2) * valid
            least, most = options.noise_level
            below = least + level * (most - least)
            loud = (whether < options.noise) * 10 ** (-below / 10)
            ratio = loud * power.sum((1, 2)) / noise.sum((1, 2))
            power = power + noise * ratio.view(-1, 1, 1)
        return power * 10 ** (gain * options.gain / 10).view(-1, 1, 1)


DRAWS = 16  # eight for `_varied`, eight for `spec_augment`


def warped(power: Tensor, frames: Tensor, shift: Tensor, speed: Tensor, scale: Tensor) -> Tensor:
    """Spectrograms `(B, bands, T)` read at other places, bilinearly; outside them is silence.

    Args:
        frames: `(B,)`, real frames of each; its middle one stays in place when the speed changes.
        shift: `(B,)`, frames by which it comes earlier.
        speed: `(B,)`, how many times as fast.
        scale: `(B,)`, by how much all bands move down.
    """
    batch, bands, size = power.shape
    half = max(size - 1, 1) / 2  # `affine_grid` counts from -1 to 1 over the padded batch
    middle = (frames - 1) / (2 * half) - 1
    theta = torch.zeros(batch, 2, 3, device=power.device)
    theta[:, 0, 0], theta[:, 0, 2] = speed, middle * (1 - speed) + shift / half
    theta[:, 1, 1], theta[:, 1, 2] = scale, scale - 1  # the lowest band stays in place
    grid = functional.affine_grid(theta, [batch, 1, bands, size], align_corners=True)
    return functional.grid_sample(power.unsqueeze(1), grid, align_corners=True).squeeze(1)


def spec_augment(features: Tensor, frames: Tensor, draws: Tensor, time: int, bands: int) -> Tensor:
    """Blank stretches of time and of features (SpecAugment, Park et al. 2019).

    Args:
        features: `(B, F, T)`.
        frames: `(B,)`, real frames of each; stretches lie inside them.
        draws: uniform numbers in 0 to 1, `(B, times, 4)`.
        time, bands: longest stretch in frames, and most features, blanked at a time.
    """

    def stretches(extent: Tensor, most: int, width: Tensor, place: Tensor, size: int) -> Tensor:
        width = torch.minimum((width * (most + 1)).floor(), extent)
        first = (place * (extent - width + 1)).floor().unsqueeze(2)
        position = torch.arange(size, device=features.device)
        return ((position >= first) & (position < first + width.unsqueeze(2))).any(1)

    _, size, length = features.shape
    width, start, height, low = draws.unbind(2)  # each (B, times)
    in_time = stretches(frames.unsqueeze(1), time, width, start, length)
    in_bands = stretches(torch.full_like(frames, size).unsqueeze(1), bands, height, low, size)
    return features.masked_fill(in_time.unsqueeze(1) | in_bands.unsqueeze(2), 0.0)
