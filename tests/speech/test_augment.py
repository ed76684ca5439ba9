"""Spectrograms are varied as told."""

import pytest
import torch

from resbackbones.errors import InputError
from resbackbones.speech import Augment
from resbackbones.speech.augment import spec_augment, warped


def test_warped_moves_stretches_and_scales() -> None:
    power = torch.rand(3, 8, 11)
    frames = torch.tensor([11, 7, 1])
    for row, count in enumerate(frames.tolist()):
        power[row, :, count:] = 0
    zero, one = torch.zeros(3), torch.ones(3)
    torch.testing.assert_close(warped(power, frames, zero, one, one), power)
    moved = warped(power, frames, torch.tensor([2.0, -3.0, 0.0]), one, one)
    torch.testing.assert_close(moved[0, :, :9], power[0, :, 2:])
    assert moved[0, :, 9:].abs().max() < 1e-5
    torch.testing.assert_close(moved[1, :, 3:10], power[1, :, :7])
    # Twice as fast: every other frame, the middle one in place.
    fast = warped(power, frames, zero, 2 * one, one)
    torch.testing.assert_close(fast[0, :, 3:8], power[0, :, 1:10:2])
    torch.testing.assert_close(fast[1, :, 2:5], power[1, :, 1:6:2])
    low = warped(power, frames, zero, one, 2 * one)
    torch.testing.assert_close(low[:, :4], power[:, ::2])
    assert low[:, 4:].abs().max() < 1e-5


def test_spec_augment_blanks_what_it_may() -> None:
    features = torch.ones(500, 12, 40)
    frames = torch.full((500,), 30)
    draws = torch.rand(500, 2, 4, generator=torch.Generator().manual_seed(0))
    blank = spec_augment(features, frames, draws, time=6, bands=3) == 0
    in_time, in_bands = blank.all(1), blank.all(2)  # (500, T), (500, F)
    assert torch.equal(blank, in_time.unsqueeze(1) | in_bands.unsqueeze(2))
    assert not in_time[:, 30:].any()
    assert in_time.sum(1).max() == 12 and in_bands.sum(1).max() == 6
    assert in_time.sum(1).min() == 0 and in_bands.sum(1).min() == 0
    edges = (in_time[:, 1:] != in_time[:, :-1]).sum(1)
    assert edges.max() <= 4  # two stretches
    assert in_time[:, [0, 29]].any(0).all() and in_bands[:, [0, 11]].any(0).all()
    assert torch.equal(spec_augment(features, frames, draws, 0, 0), features)
    short = spec_augment(features, torch.ones_like(frames), draws, time=6, bands=0)
    assert bool((short[:, :, 1:] == 1).all())


def test_strengths_out_of_range_are_refused() -> None:
    for options in ({"mixup": 0.6}, {"shift": -1.0}, {"noise": 2.0}, {"warp": float("nan")}):
        name = next(iter(options))
        with pytest.raises(InputError, match=f"Augment has {name}=.*; use a number from 0"):
            Augment(**options)
