"""What happens to training clips: the strengths, and the two ways to change a spectrogram."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from resbackbones.errors import InputError


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
