"""Spectrograms are varied as told."""

import numpy as np
import pytest
import torch

from resbackbones.errors import InputError
from resbackbones.speech import Augment, FrontEnd
from resbackbones.speech.augment import (
    DRAWS,
    Drawn,
    bands_at_speed,
    decays,
    reverberant,
    spec_augment,
    warped,
)


def test_warped_moves_stretches_and_scales() -> None:
    power = torch.rand(3, 8, 11)
    frames = torch.tensor([11, 7, 1])
    for row, count in enumerate(frames.tolist()):
        power[row, :, count:] = 0
    zero, one, middle = torch.zeros(3), torch.ones(3), (frames - 1) / 2
    torch.testing.assert_close(warped(power, middle, zero, one, one), power)
    moved = warped(power, middle, torch.tensor([2.0, -3.0, 0.0]), one, one)
    torch.testing.assert_close(moved[0, :, :9], power[0, :, 2:])
    assert moved[0, :, 9:].abs().max() < 1e-5
    torch.testing.assert_close(moved[1, :, 3:10], power[1, :, :7])
    # Twice as fast: every other frame, the middle one in place.
    fast = warped(power, middle, zero, 2 * one, one)
    torch.testing.assert_close(fast[0, :, 3:8], power[0, :, 1:10:2])
    torch.testing.assert_close(fast[1, :, 2:5], power[1, :, 1:6:2])
    # Half as fast, in as many frames as that takes: all of it, from the first frame on.
    slow = warped(power, zero, zero, one / 2, one, size=21)
    torch.testing.assert_close(slow[0, :, ::2], power[0])
    torch.testing.assert_close(slow[0, :, 1::2], (power[0, :, 1:] + power[0, :, :-1]) / 2)
    low = warped(power, middle, zero, one, 2 * one)
    torch.testing.assert_close(low[:, :4], power[:, ::2])
    assert low[:, 4:].abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["log_mel", "fbank"])
@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_at_another_speed_a_tone_has_another_height(kind: str, speed: float) -> None:
    front_end = FrontEnd(kind, 40)
    time = torch.arange(16000) / 16000
    middles = []
    for frequency in (400, 1000, 3000):
        sung, wanted = (
            front_end.power(torch.sin(2 * torch.pi * f * time)[None])[0]
            for f in (frequency, frequency * speed)
        )
        place = bands_at_speed(torch.tensor([speed]), 40, front_end.f_min, front_end.f_max)
        one = torch.ones(1)
        frames = torch.tensor([sung.shape[2]])
        heard = warped(sung, (frames - 1) / 2, 0 * one, one, one, place)
        for power in (heard, wanted):
            band = power[0, :, 20:80].mean(1)
            middles.append(float((band * torch.arange(40)).sum() / band.sum()))
    heard_at, wanted_at = middles[::2], middles[1::2]
    assert heard_at == pytest.approx(wanted_at, abs=0.4)


def test_a_room_is_the_sound_and_then_a_decay_of_sixty_decibels() -> None:
    rooms = decays(torch.tensor([0.2, 0.5]), torch.tensor([0.0, 6.0]), 100.0, 60)
    assert rooms.shape == (2, 60)
    torch.testing.assert_close(rooms.sum(1), torch.ones(2))
    direct = rooms[:, 0] / rooms[:, 1:].sum(1)
    torch.testing.assert_close(10 * direct.log10(), torch.tensor([0.0, 6.0]), rtol=0, atol=1e-4)
    fall = 10 * (rooms[0, 1] / rooms[0, 21]).log10(), 10 * (rooms[1, 1] / rooms[1, 51]).log10()
    assert fall == pytest.approx((60, 60), abs=0.01)
    only = decays(torch.tensor([0.5]), torch.tensor([0.0]), 100.0, 1)
    assert only.tolist() == [[1.0]]


def test_what_is_heard_in_a_room_is_the_convolution() -> None:
    power, rooms = torch.rand(3, 5, 20), torch.rand(3, 7)
    heard = reverberant(power, rooms)
    assert heard.shape == power.shape
    for row in range(3):
        for band in range(5):
            expected = np.convolve(power[row, band].numpy(), rooms[row].numpy())[:20]
            np.testing.assert_allclose(heard[row, band], expected, rtol=1e-5)


def test_no_number_is_drawn_for_two_things() -> None:
    drawn = Drawn.of(torch.arange(2.0 * DRAWS).view(2, DRAWS))
    numbers = torch.cat([each.flatten() for each in drawn])
    assert len(numbers.unique()) == len(numbers) == 2 * (14 + 8)
    assert all(each.shape == (2,) for each in drawn if each is not drawn.blanks)
    assert drawn.blanks.shape == (2, 2, 4)


def test_spec_augment_blanks_what_it_may() -> None:
    features = torch.arange(40.0).expand(500, 12, 40) + 5
    frames = torch.full((500,), 30)
    draws = torch.rand(500, 2, 4, generator=torch.Generator().manual_seed(0))
    blanked = spec_augment(features, frames, draws, time=6, bands=3)
    blank = blanked != features
    assert bool((blanked[blank] == 5 + 29 / 2).all())  # the mean of what is real
    assert not blank[:, :, 30:].any()
    in_time, in_bands = blank[:, :, :30].all(1), blank[:, :, :30].all(2)  # (500, 30), (500, F)
    assert torch.equal(blank[:, :, :30], in_time.unsqueeze(1) | in_bands.unsqueeze(2))
    assert in_time.sum(1).max() == 12 and in_bands.sum(1).max() == 6
    assert in_time.sum(1).min() == 0 and in_bands.sum(1).min() == 0
    edges = (in_time[:, 1:] != in_time[:, :-1]).sum(1)
    assert edges.max() <= 4  # two stretches
    assert in_time[:, [0, 29]].any(0).all() and in_bands[:, [0, 11]].any(0).all()
    assert torch.equal(spec_augment(features, frames, draws, 0, 0), features)
    short = spec_augment(features, torch.ones_like(frames), draws, time=6, bands=0)
    assert torch.equal(short, features)


def test_strengths_out_of_range_are_refused() -> None:
    for options in ({"mixup": 0.6}, {"shift": -1.0}, {"noise": 2.0}, {"warp": float("nan")}):
        name = next(iter(options))
        with pytest.raises(InputError, match=f"Augment has {name}=.*; use a number from 0"):
            Augment(**options)


def test_recordings_nobody_would_hear_are_refused() -> None:
    with pytest.raises(InputError, match=r"has noise_from='folder', but noise=0; .* as noise=0\.5"):
        Augment(noise=0, noise_from="folder")
    with pytest.raises(InputError, match="has reverb_from='folder', but reverb=0"):
        Augment(reverb_from="folder")
    with pytest.raises(InputError, match=r"reverb_time=.* use two times in seconds, the shorter"):
        Augment(reverb_time=(0.5, 0.1))
