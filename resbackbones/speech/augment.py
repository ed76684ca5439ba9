"""What happens to training clips: the strengths, and the ways to change a spectrogram."""

import dataclasses
import math
import os
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from resbackbones.core.context import valid_mask
from resbackbones.errors import InputError

# Decibels by which the sound itself is above all that a room sends back, least and most.
DIRECT = (0.0, 12.0)
DRAWS = 24  # uniform numbers that a clip has; two are left over


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
        noise_from: a folder (or anything else `open_unlabelled` opens) of recordings of noise, of
            which random stretches then are the noise; a shorter one is repeated.
        speed: up to this share slower or faster, and lower or higher with it, as a tape is played
            (Ko et al. 2015): stretch and warp at once.
        reverb: share of the clips that are heard in a room: the powers of a band decay from frame
            to frame. That is an approximation, as sounds that overlap in a frame would interfere.
        reverb_time: seconds in which a room's sound falls by 60 decibels, least and most.
        reverb_from: a folder, likewise, of recorded impulse responses, instead of such decays. Of
            each the energy per frame is used, from its loudest sample on, alike in all bands.
        time_mask: longest blank, in seconds; two are put in (SpecAugment, Park et al. 2019).
        band_mask: most features blanked at a time; two times (likewise).
        mask_epochs: first epochs, in which both grow from nothing to that: CTC finds out late how
            symbols and sounds go together where many of either are missing.
        mixup: half-width of the share that another clip of the set may take, up to 0.5 (Zhang
            2018); labels are mixed alike.
        splice: share of the clips that go on, from the middle of what is said, with the second half
            of another one: they are of no word any more, and sound like what a detector hears
            between words and inside longer ones. It takes a class for that.
    """

    shift: float = 0.1
    stretch: float = 0.1
    warp: float = 0.1
    gain: float = 6.0
    noise: float = 0.8
    noise_level: tuple[float, float] = (0.0, 30.0)
    time_mask: float = 0.1
    band_mask: int = 6
    mask_epochs: int = 0
    mixup: float = 0.0
    splice: float = 0.0
    speed: float = 0.0
    reverb: float = 0.0
    reverb_time: tuple[float, float] = (0.1, 0.8)
    # Not in the repr, which tells what is heard from what wherever the files lie.
    noise_from: "str | os.PathLike[str] | None" = field(default=None, repr=False)
    reverb_from: "str | os.PathLike[str] | None" = field(default=None, repr=False)

    def __post_init__(self) -> None:
        most = dict.fromkeys(("stretch", "warp", "speed", "mixup"), 0.5)
        most |= dict.fromkeys(("noise", "reverb", "splice"), 1.0)
        for name in (each.name for each in dataclasses.fields(self)):
            value, high = getattr(self, name), most.get(name, math.inf)
            if not isinstance(value, float | int):
                continue
            if not 0 <= value <= high:
                raise InputError(f"Augment has {name}={value!r}; use a number from 0 to {high}")
        if not 0 < self.reverb_time[0] <= self.reverb_time[1] < math.inf:
            raise InputError(
                f"Augment has reverb_time={self.reverb_time!r}; use two times in seconds, the "
                "shorter first"
            )
        for name in ("noise", "reverb"):
            if getattr(self, f"{name}_from") is not None and not getattr(self, name):
                raise InputError(
                    f"Augment has {name}_from={str(getattr(self, f'{name}_from'))!r}, but "
                    f"{name}=0; give the share of the clips that hear it, as {name}=0.5"
                )


class Drawn(NamedTuple):
    """What is drawn for the clips of a batch: uniform numbers from 0 to 1, `(B,)` of each kind, and
    of blanks `(B, 2, 4)`, as `spec_augment` takes them."""

    shift: Tensor
    stretch: Tensor
    warp: Tensor
    gain: Tensor
    noise_level: Tensor
    noise_colour: Tensor
    noise_start: Tensor
    has_noise: Tensor
    blanks: Tensor
    speed: Tensor
    in_room: Tensor
    reverb_time: Tensor
    direct: Tensor
    which_room: Tensor
    which_noise: Tensor

    @classmethod
    def of(cls, draws: Tensor) -> "Drawn":
        """From `(B, DRAWS)`."""
        varied, blanks = draws[:, :8].unbind(1), draws[:, 8:16].unflatten(1, (2, 4))
        return cls._make([*varied, blanks, *draws[:, 16:22].unbind(1)])

    def to(self, device: torch.device) -> "Drawn":
        return Drawn._make(each.to(device) for each in self)


def tempo(options: Augment, drawn: Drawn) -> Tensor:
    """How many times as fast clips are, `(B,)`."""
    stretch, speed = 2 * drawn.stretch - 1, 2 * drawn.speed - 1
    return (1 + stretch * options.stretch) * (1 + speed * options.speed)


def warped(
    power: Tensor,
    pivot: Tensor,
    shift: Tensor,
    speed: Tensor,
    scale: Tensor,
    bands_read: Tensor | None = None,
    size: int | None = None,
) -> Tensor:
    """Spectrograms `(B, bands, T)` read at other places, bilinearly; outside them is silence.

    Args:
        pivot: `(B,)`, the frame of each that stays in place when the speed changes.
        shift: `(B,)`, frames by which it comes earlier.
        speed: `(B,)`, how many times as fast.
        scale: `(B,)`, by how much all bands move down.
        bands_read: `(B, bands)`, the band, from 0, that each one is then read at; None for itself.
        size: frames to read; None for T.
    """
    batch, bands, there = power.shape
    size = size or there
    # `affine_grid` counts from -1 to 1, over what is read and over what is written.
    half, half_written = max(there - 1, 1) / 2, max(size - 1, 1) / 2
    theta = torch.zeros(batch, 2, 3, device=power.device)
    theta[:, 0, 0] = speed * half_written / half
    theta[:, 0, 2] = (pivot * (1 - speed) + speed * half_written + shift) / half - 1
    theta[:, 1, 1], theta[:, 1, 2] = scale, scale - 1  # the lowest band stays in place
    grid = functional.affine_grid(theta, [batch, 1, bands, size], align_corners=True)
    if bands_read is not None:
        place = bands_read * scale.unsqueeze(1) * 2 / max(bands - 1, 1) - 1
        grid[..., 1] = place.unsqueeze(2)
    return functional.grid_sample(power.unsqueeze(1), grid, align_corners=True).squeeze(1)


def bands_at_speed(speed: Tensor, bands: int, f_min: float, f_max: float) -> Tensor:
    """The band, from 0, at which each mel band must be read for a sound played so many times as
    fast, `(B, bands)` of `(B,)`: a tone then is as many times as high.

    >>> bands_at_speed(torch.ones(1), 4, 0.0, 8000.0)
    tensor([[0., 1., 2., 3.]])
    """

    def mel(frequency: Tensor) -> Tensor:
        return 1127 * torch.log1p(frequency / 700)

    low, high = mel(torch.tensor([f_min, f_max], dtype=torch.float64, device=speed.device))
    width = (high - low) / (bands + 1)  # centres of bands lie so far apart
    centres = low + width * torch.arange(1, bands + 1, device=speed.device)
    heard = 700 * torch.expm1(centres / 1127) / speed.double().unsqueeze(1)
    return ((mel(heard) - low) / width - 1).to(speed.dtype)


def decays(seconds: Tensor, direct: Tensor, frame_rate: float, size: int) -> Tensor:
    """Energy of rooms per frame, `(B, size)`, which sums up to 1: the sound itself in the first,
    then an exponential decay (Polack 1988).

    Args:
        seconds: `(B,)`, in which it falls by 60 decibels.
        direct: `(B,)`, decibels by which the sound itself is above all the rest.
    """
    frame = torch.arange(size, device=seconds.device)
    tail = 10 ** (-6 * frame / (seconds.unsqueeze(1) * frame_rate))
    tail[:, 0] = 0
    tail = tail / tail.sum(1, keepdim=True).clamp(min=torch.finfo(tail.dtype).tiny)
    tail = tail * 10 ** (-direct.unsqueeze(1) / 10)
    tail[:, 0] = 1
    return tail / tail.sum(1, keepdim=True)


def reverberant(power: Tensor, rooms: Tensor) -> Tensor:
    """Powers `(B, bands, T)` as heard in rooms of so much energy per frame, `(B, size)`: a
    convolution along time, the same in every band, cut where the clip ends."""
    size = rooms.shape[1]
    before = functional.pad(power.transpose(0, 1), (size - 1, 0))  # (bands, B, T + size - 1)
    heard = functional.conv1d(before, rooms.flip(1).unsqueeze(1), groups=len(rooms))
    return heard.transpose(0, 1)


def spec_augment(features: Tensor, frames: Tensor, draws: Tensor, time: int, bands: int) -> Tensor:
    """Blank stretches of time and of features (SpecAugment, Park et al. 2019): there a feature is
    its mean over the clip, as in the paper. Silence instead, far below all that is said, would be
    the loudest thing in a spectrogram.

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
    real = valid_mask(frames, length).unsqueeze(1)
    mean = (features * real).sum(2, keepdim=True) / frames.clamp(min=1).view(-1, 1, 1)
    return torch.where((in_time.unsqueeze(1) | in_bands.unsqueeze(2)) & real, mean, features)
