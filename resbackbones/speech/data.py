"""From clips to batches: heard once, varied anew in every epoch.

`AudioItems` keeps the power in the clips' mel bands and augments that: powers of independent sounds
add up as the sounds do in air, and a shifted, stretched, noisier copy costs a small part of what a
Fourier transform does.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from resbackbones.core.context import valid_mask
from resbackbones.data import Items, Source, mixed_labels
from resbackbones.errors import InputError
from resbackbones.speech.augment import (
    DIRECT,
    DRAWS,
    Augment,
    Drawn,
    bands_at_speed,
    decays,
    reverberant,
    spec_augment,
    tempo,
    warped,
)
from resbackbones.speech.frontend import FrontEnd, ResidualFeatureExtractor
from resbackbones.speech.powers import (
    listen,
    octaves,
    recorded_noise,
    recorded_rooms,
    white_noise,
)
from resbackbones.speech.recordings import Clips, read_clips
from resbackbones.speech.resampling import without_autocast

# Varied clips of several lengths make batches of a multiple of so many frames: of what prepares
# itself for each shape anew, and keeps only some of them (oneDNN, cuDNN), few are asked.
MULTIPLE = 16


class AudioItems(Items):
    """Labelled clips as `fit` takes them: a list of rows becomes a batch.

    Args:
        clips: from `read_clips`, or a source to read them from.
        extractor: the model's; without `augment` the features are what it makes of the clips.
        augment: for training; None leaves the clips alone.
        on_bad, max_seconds: of a source: what becomes of bad and of long recordings; see
            `read_clips`.
        no_word: the class of what is none of the others, for `Augment.splice`.
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
        InputError: a bad recording, clips of another sampling rate than the extractor's or
            without classes, or a folder of noise or rooms that cannot be read.
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
        no_word: int | None = None,
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
        self.augment, self.no_word = augment, no_word
        self.num_classes = len(clips.names)
        self.rows, self.skipped, self.cut = clips.rows, clips.skipped, clips.cut
        self.source = clips.source
        self.device = torch.device(device)
        self.labels = self._labels(clips).to(device)
        self.options = extractor.options
        self.front_end = FrontEnd(**extractor.options).to(device)  # type: ignore[arg-type]
        self.frame_rate = extractor.sampling_rate / self.front_end.hop
        # All clips' frames one after the other, (total, n_mels): no clip is padded to the longest.
        self.power, self.lengths = listen(self.front_end, clips.waveforms)
        self.starts = self.lengths.cumsum(0) - self.lengths
        if augment is not None and augment.splice:
            if no_word is None or self.labels.ndim != 1:
                raise InputError(
                    f"Augment has splice={augment.splice}, which makes clips of no word; give "
                    "no_word, their class, to clips of one class each, or set splice=0"
                )
            self.energy = self.power.sum(1, dtype=torch.float64).cumsum(0).cpu()
        noises, rooms = (augment.noise_from, augment.reverb_from) if augment else (None, None)
        if noises is None:
            self.noise, self.noise_lengths = white_noise(self.front_end, 10 * clips.sampling_rate)
        else:
            self.noise, self.noise_lengths = recorded_noise(
                self.front_end, noises, clips.sampling_rate
            )
        self.rooms = None
        if rooms is not None:
            self.rooms = recorded_rooms(self.front_end, rooms, clips.sampling_rate)
        self.octaves = octaves(self.front_end)

    def _labels(self, clips: Clips) -> Tensor:
        """What is learned of the clips.

        Raises:
            InputError: they have no such thing.
        """
        if not isinstance(clips.labels, Tensor):
            raise InputError(
                "the clips have no classes, as a classifier learns; open their source with "
                "target=Classes() or Labels()"
            )
        return clips.labels

    def _parts(self) -> Iterator[bytes | str]:
        yield from super()._parts()
        yield repr(self.options)
        if self.augment and self.augment.noise_from is not None:
            yield self.noise_lengths.numpy().tobytes()
        if self.rooms is not None:
            yield self.rooms.cpu().numpy().tobytes()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_features` `(B, F, T)`, padded to the longest clip, varied ones a little more;
        `labels`, `(B,)` or, mixed or of `Labels`, `(B, K)`; and `attention_mask` `(B, T)` where
        clips differ in length: without one the model is spared all masking."""
        index, options = torch.as_tensor(rows), self.augment
        labels, frames = self.labels[index.to(self.device)], self.lengths[index]
        if options is None:
            return self._batch(self._heard(index, frames), frames, labels)
        draws = self.draws(rows, 2 * DRAWS + 3)
        features = self._heard(index, frames, Drawn.of(draws))
        if options.mixup or options.splice:
            features, labels = self._joined(index, features, labels, options, draws[:, DRAWS:])
        return self._batch(features, frames, labels)

    def _joined(
        self, index: Tensor, features: Tensor, labels: Tensor, options: Augment, draws: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features `(B, F, T)` and labels of clips that are mixed with others of the set, or go on
        as these; draws of the others, and `(B, 3)` of how."""
        share, partner, whether = draws[:, DRAWS:].unbind(1)
        partners = (partner * len(self)).long()
        # Of a longer one what stands past the item's end would not be heard.
        common = torch.minimum(self.lengths[index], self.lengths[partners])
        other = self._heard(partners, common, Drawn.of(draws))
        other = functional.pad(other, (0, features.shape[-1] - other.shape[-1]))
        other_labels = self.labels[partners.to(self.device)]
        share = options.mixup * share.to(self.device)
        joined = torch.lerp(features, other, share.view(-1, 1, 1))
        if options.splice and self.no_word is not None:
            spliced = (whether < options.splice).to(self.device) & (labels != other_labels)
            chimeras = self._chimeras(features, index, other, partners, common)
            joined = torch.where(spliced.view(-1, 1, 1), chimeras, joined)
            labels, other_labels = (
                each.masked_fill(spliced, self.no_word) for each in (labels, other_labels)
            )
        if options.mixup:
            labels = mixed_labels(labels, other_labels, share, self.num_classes)
        return joined, labels

    def _chimeras(
        self, features: Tensor, index: Tensor, other: Tensor, partners: Tensor, frames: Tensor
    ) -> Tensor:
        """Features `(B, F, T)` of clips which from their middle on are others from theirs, of which
        `frames` `(B,)` are heard: the last one stays."""
        middle, others_middle = (self._middles(rows).unsqueeze(1) for rows in (index, partners))
        place = torch.arange(features.shape[-1])
        later = (place - middle + others_middle).clamp(min=0).minimum(frames.unsqueeze(1) - 1)
        other = other.gather(2, later.to(self.device).unsqueeze(1).expand_as(other))
        return torch.where((place < middle).to(self.device).unsqueeze(1), features, other)

    def _middles(self, index: Tensor) -> Tensor:
        """The frame of each of these rows by which half of its energy was heard, `(B,)`."""
        first, last = self.starts[index], self.starts[index] + self.lengths[index] - 1
        half = (self.energy[first] + self.energy[last]) / 2
        return (torch.searchsorted(self.energy, half) - first).clamp(min=0)  # 0 of a silent one

    def _batch(self, features: Tensor, frames: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Features `(B, F, T)` of which `frames` `(B,)` are real, as the model takes them."""
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
        drawn: Drawn | None = None,
        first: Tensor | int = 0,
        played: Tensor | None = None,
    ) -> Tensor:
        """Features `(B, F, T)` of `frames` `(B,)` of these rows, from `first` `(B,)` on, varied as
        it was drawn: in as many frames, or whole, played in `played` `(B,)`."""
        options = None if drawn is None else self.augment
        place = torch.arange(int(frames.max()) if options is None else _few(frames))
        inside = place < frames.unsqueeze(1)
        place = ((self.starts[index] + first).unsqueeze(1) + place).where(inside, 0).to(self.device)
        power = (self.power[place] * inside.unsqueeze(2).to(self.device)).transpose(1, 2)
        frames = frames.to(self.device)
        if options is None or drawn is None:
            return self.front_end.features(power, frames)
        drawn = drawn.to(self.device)
        with without_autocast(power):
            if options.shift or options.stretch or options.warp or options.speed:
                power = self._moved(power, frames, options, drawn, played)
            frames = frames if played is None else played.to(self.device)
            power = self._varied(power, frames, options, drawn)
        features = self.front_end.features(power, frames)
        grown = min(1.0, self.epoch / options.mask_epochs) if options.mask_epochs else 1.0
        time = round(grown * options.time_mask * self.frame_rate)
        return spec_augment(features, frames, drawn.blanks, time, round(grown * options.band_mask))

    def _moved(
        self, power: Tensor, frames: Tensor, options: Augment, drawn: Drawn, played: Tensor | None
    ) -> Tensor:
        """Powers `(B, n_mels, T)` of another speaker, at another time and speed. What is pushed
        past an end is gone, unless all of it is `played` in so many frames, `(B,)`."""
        shift, warp = 2 * drawn.shift - 1, 2 * drawn.warp - 1
        at_speed = None
        if options.speed:
            pitch, front_end = 1 + options.speed * (2 * drawn.speed - 1), self.front_end
            at_speed = bands_at_speed(pitch, front_end.n_mels, front_end.f_min, front_end.f_max)
        if played is None:
            pivot, earlier = (frames - 1) / 2, shift * options.shift * self.frame_rate
            speed, played = tempo(options, drawn), frames
            size = power.shape[-1]
        else:
            size, played = _few(played), played.to(power.device)
            pivot = earlier = torch.zeros_like(shift)
            speed = frames / played
        power = warped(power, pivot, earlier, speed, 1 + warp * options.warp, at_speed, size)
        return power * valid_mask(played, size).unsqueeze(1)

    def _varied(self, power: Tensor, frames: Tensor, options: Augment, drawn: Drawn) -> Tensor:
        """A room, noise and another loudness for powers `(B, n_mels, T)`."""
        gain = 2 * drawn.gain - 1
        size = power.shape[-1]
        valid = valid_mask(frames, size).unsqueeze(1)
        if options.reverb:
            if self.rooms is None:
                least, most = options.reverb_time
                longest = 1 + math.ceil(most * self.frame_rate)
                below = DIRECT[0] + drawn.direct * (DIRECT[1] - DIRECT[0])
                seconds = least + drawn.reverb_time * (most - least)
                rooms = decays(seconds, below, self.frame_rate, longest)
            else:
                rooms = self.rooms[(drawn.which_room * len(self.rooms)).long()]
            heard = reverberant(power, rooms[:, :size]) * valid
            power = torch.where((drawn.in_room < options.reverb).view(-1, 1, 1), heard, power)
        if options.noise:
            lengths = self.noise_lengths.to(power.device)
            which = (drawn.which_noise * len(lengths)).long()
            first, length = (drawn.noise_start * lengths[which]).long(), lengths[which].unsqueeze(1)
            place = (first.unsqueeze(1) + torch.arange(size, device=power.device)) % length
            noise = self.noise[place + (lengths.cumsum(0) - lengths)[which].unsqueeze(1)]
            noise = noise.transpose(1, 2) * valid
            if options.noise_from is None:
                slope = torch.exp2(
                    -2 * drawn.noise_colour.unsqueeze(1) * self.octaves
                )  # brown: -6 dB an octave
                noise = noise * slope.unsqueeze(2)
            least, most = options.noise_level
            below = least + drawn.noise_level * (most - least)
            loud = (drawn.has_noise < options.noise) * 10 ** (-below / 10)
            total = noise.sum((1, 2))  # of a silent stretch 0
            ratio = torch.where(total > 0, loud * power.sum((1, 2)) / total, 0.0)
            power = power + noise * ratio.view(-1, 1, 1)
        return power * 10 ** (gain * options.gain / 10).view(-1, 1, 1)


def _few(frames: Tensor) -> int:
    """Frames of a batch of varied clips of so many, `(B,)`."""
    longest = int(frames.max())
    return longest if int(frames.min()) == longest else -(-longest // MULTIPLE) * MULTIPLE
