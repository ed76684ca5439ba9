"""From clips to batches: heard once, varied anew in every epoch.

`AudioItems` keeps the power in the clips' mel bands and augments that: powers of independent sounds
add up as the sounds do in air, and a shifted, stretched, noisier copy costs a small part of what a
Fourier transform does.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from resbackbones.core.context import valid_mask
from resbackbones.data import Items, Source, mixed_labels
from resbackbones.errors import InputError
from resbackbones.speech.augment import Augment, spec_augment, warped
from resbackbones.speech.frontend import FrontEnd, ResidualFeatureExtractor
from resbackbones.speech.recordings import FULL_SCALE, Clips, chunks, read_clips

DRAWS = 16  # eight for `_varied`, eight for `spec_augment`


class AudioItems(Items):
    """Labelled clips as `fit` takes them: a list of rows becomes a batch.

    Args:
        clips: from `read_clips`, or a source to read them from.
        extractor: the model's; without `augment` the features are what it makes of the clips.
        augment: for training; None leaves the clips alone.
        on_bad, max_seconds: of a source: what becomes of bad and of long recordings; see
            `read_clips`.
        seed: of the augmentation.
        device: where the clips' powers live and are augmented.

    Attributes:
        labels: int64 `(N,)`; of `Labels` float32 `(N, K)`.
        lengths: frames of each clip, int64 `(N,)` on the CPU, where a batch's size is read without
            waiting for a GPU.
        rows: row of each item in the source.
        skipped: the bad recordings left out, "name: reason".
        cut: those that were longer than `max_seconds`, "name: seconds".
        source: where the clips come from, if they say so.

    Raises:
        InputError: a bad recording, or clips of another sampling rate than the extractor's.
    """

    lengths: Tensor

    def __init__(
        self,
        clips: Source | Clips,
        extractor: ResidualFeatureExtractor,
        augment: Augment | None = None,
        *,
        on_bad: Literal["error", "skip"] = "error",
        max_seconds: float | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(seed)
        if isinstance(clips, Source):
            clips = read_clips(clips, extractor.sampling_rate, on_bad, max_seconds)
        if clips.sampling_rate != extractor.sampling_rate:
            raise InputError(
                f"the clips are at {clips.sampling_rate} Hz, but the extractor listens at "
                f"{extractor.sampling_rate} Hz; read them at that rate"
            )
        self.augment = augment
        self.num_classes = len(clips.names)
        self.rows, self.skipped, self.cut = clips.rows, clips.skipped, clips.cut
        self.source = clips.source
        self.device = torch.device(device)
        self.labels = clips.labels.to(device)
        self.options = extractor.options
        self.front_end = FrontEnd(**extractor.options).to(device)  # type: ignore[arg-type]
        self.frame_rate = extractor.sampling_rate / self.front_end.hop
        # All clips' frames one after the other, (total, n_mels): no clip is padded to the longest.
        self.lengths = self.front_end.frames(torch.tensor([len(w) for w in clips.waveforms]))
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.power = self._listen(clips.waveforms)
        self.noise = self._white_noise(10 * clips.sampling_rate)
        self.octaves = self._octaves()

    def _listen(self, waveforms: list[Tensor]) -> Tensor:
        """Power `(total, n_mels)` of all clips' frames."""
        powers = self.front_end.filters.new_empty(int(self.lengths.sum()), self.front_end.n_mels)
        for first, last in chunks([len(waveform) for waveform in waveforms]):
            chunk = waveforms[first:last]
            samples = torch.tensor([len(waveform) for waveform in chunk])
            batch = nn.utils.rnn.pad_sequence(chunk, batch_first=True).to(self.device)
            power, frames = self.front_end.power(batch.float() / FULL_SCALE, samples)
            heard = power.transpose(1, 2)[valid_mask(frames, power.shape[-1])]
            start = int(self.starts[first])
            powers[start : start + len(heard)] = heard
        return powers

    def _white_noise(self, samples: int) -> Tensor:
        """Power `(frames, n_mels)` of white noise; clips get a stretch of it, coloured."""
        noise = torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
        return self.front_end.power(noise.to(self.device))[0][0].T.contiguous()

    def _octaves(self) -> Tensor:
        """How far each mel band lies above the lowest one, `(n_mels,)`."""
        filters = self.front_end.filters  # (frequencies, n_mels)
        bins = torch.arange(len(filters), device=filters.device, dtype=filters.dtype)
        centres = bins @ filters / filters.sum(0)
        return (centres / centres[0]).log2()

    def _parts(self) -> Iterator[bytes | str]:
        yield from super()._parts()
        yield repr(self.options)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_features` `(B, F, T)`, padded to the longest clip, `labels`, `(B,)` or, mixed
        or of `Labels`, `(B, K)`; and `attention_mask` `(B, T)` where clips differ in length:
        without one the model is spared all masking."""
        index, options = torch.as_tensor(rows), self.augment
        labels, frames = self.labels[index.to(self.device)], self.lengths[index]
        if options is None:
            features = self._heard(index, frames)
        else:
            draws = self.draws(rows, 2 * DRAWS + 2)
            features = self._heard(index, frames, options, draws[:, :DRAWS])
            if options.mixup:
                partners = (draws[:, -1] * len(self)).long()
                # Of a longer one what stands past the item's end would not be heard.
                common = torch.minimum(frames, self.lengths[partners])
                other = self._heard(partners, common, options, draws[:, DRAWS : 2 * DRAWS])
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
        self,
        index: Tensor,
        frames: Tensor,
        options: Augment | None = None,
        draws: Tensor | None = None,
    ) -> Tensor:
        """Features `(B, F, T)` of the first `frames` `(B,)` of these rows, varied where there are
        options."""
        place = torch.arange(int(frames.max()))
        inside = place < frames.unsqueeze(1)
        place = (self.starts[index].unsqueeze(1) + place).where(inside, 0).to(self.device)
        power = (self.power[place] * inside.unsqueeze(2).to(self.device)).transpose(1, 2)
        frames = frames.to(self.device)
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
