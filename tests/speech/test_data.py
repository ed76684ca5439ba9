"""Clips are heard as the extractor hears, and varied as told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from resbackbones.data import open_dataset
from resbackbones.errors import InputError
from resbackbones.speech import AudioItems, Augment, Clips, ResidualFeatureExtractor
from resbackbones.speech.augment import DRAWS

OFF = Augment(0, 0, 0, 0, 0, (0, 0), 0, 0, 0)
MORE = {"speed": 0.1, "reverb": 0.5}  # what is off unless asked for


def clips(*lengths: int) -> Clips:
    generator = torch.Generator().manual_seed(0)
    waveforms = [
        (3000 * torch.randn(length, generator=generator)).to(torch.int16) for length in lengths
    ]
    count = len(lengths)
    labels = torch.arange(count) % 2
    return Clips(waveforms, 16000, labels, ("no", "yes"), list(range(count)), [])


@pytest.mark.parametrize(
    "options", [{}, {"kind": "mfcc", "feature_size": 13, "n_mels": 40}, {"normalize": "mean_std"}]
)
def test_items_hear_what_the_extractor_hears(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = ResidualFeatureExtractor(**options)
    given = clips(*range(100, 7000, 97))
    monkeypatch.setattr("resbackbones.speech.recordings.AT_ONCE", 20_000)
    items = AudioItems(given, extractor)
    assert items.lengths.tolist() == [1 + samples // 160 for samples in range(100, 7000, 97)]
    assert items.lengths.device.type == "cpu" and items.lengths.dtype == torch.int64
    rows = [70, 3, 69, 0]
    batch = items.__getitems__(rows)
    waves = [given.waveforms[row] / 32768 for row in rows]
    expected = extractor(waves, return_tensors="pt")
    torch.testing.assert_close(
        batch["input_features"], expected["input_features"], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert batch["labels"].tolist() == [row % 2 for row in rows]
    alone = items[3]
    torch.testing.assert_close(
        alone["input_features"], batch["input_features"][1, :, : 1 + 391 // 160]
    )


def test_a_batch_without_padding_carries_no_mask() -> None:
    items = AudioItems(clips(1600, 1600, 1599), ResidualFeatureExtractor())
    assert "attention_mask" not in items.__getitems__([0, 1])
    assert items.__getitems__([0, 2])["attention_mask"].sum(1).tolist() == [11, 10]


def test_no_strength_changes_nothing() -> None:
    given, extractor = clips(3000, 1600, 5), ResidualFeatureExtractor()
    plain = AudioItems(given, extractor).__getitems__([0, 1, 2])
    off = AudioItems(given, extractor, OFF).__getitems__([0, 1, 2])
    frames = plain["attention_mask"].shape[1]
    assert off["attention_mask"].shape == (3, 32)  # few shapes: a multiple of 16
    for name in ("input_features", "attention_mask"):
        assert torch.equal(plain[name], off[name][..., :frames])
        assert not off[name][..., frames:].any()
    assert torch.equal(plain["labels"], off["labels"])


@pytest.mark.parametrize("options", [{}, {"mixup": 0.4}, {"mixup": 0.4, **MORE}])
def test_variation_depends_on_seed_epoch_and_row_alone(options: dict[str, float]) -> None:
    augment = Augment(**options)  # type: ignore[arg-type]
    items = AudioItems(clips(*[3000, 1600, 2000] * 3), ResidualFeatureExtractor(), augment)

    def heard(rows: list[int], epoch: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
        items.set_epoch(epoch)
        items.seed = seed
        return items.__getitems__(rows)

    first = heard([0, 1, 2, 3, 4])
    assert all(
        torch.equal(value, again)
        for value, again in zip(first.values(), heard([0, 1, 2, 3, 4]).values(), strict=True)
    )
    other = heard([7, 4, 1])  # other company, other order
    length = int(first["attention_mask"][4].sum())
    torch.testing.assert_close(
        other["input_features"][1, :, :length],
        first["input_features"][4, :, :length],
        rtol=1e-4,
        atol=1e-3,
    )
    torch.testing.assert_close(other["labels"][1], first["labels"][4])
    for changed in (heard([0], epoch=1), heard([0], seed=1)):
        assert (changed["input_features"] - heard([0])["input_features"]).abs().max() > 0.1


def test_a_long_neighbour_changes_nothing() -> None:
    augment = Augment(noise=1.0, reverb=1.0, speed=0.1)
    items = AudioItems(clips(1600, 16_000), ResidualFeatureExtractor(), augment)
    for epoch in range(10):
        items.set_epoch(epoch)
        alone = items[0]["input_features"]
        beside = items.__getitems__([0, 1])["input_features"][0, :, :11]
        torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-3)


def test_a_long_partner_takes_no_more_room_than_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    items = AudioItems(clips(1600, 2000, 160_000), ResidualFeatureExtractor(), Augment(mixup=0.5))
    shapes = []
    plain = items.front_end.features
    monkeypatch.setattr(
        items.front_end,
        "features",
        lambda power, frames: shapes.append(power.shape[-1]) or plain(power, frames),
    )
    for epoch in range(10):
        items.set_epoch(epoch)
        items.__getitems__([0, 1])
    assert len(shapes) == 20 and max(shapes) == 16


def test_varied_clips_stay_silent_past_their_end() -> None:
    augment = Augment(noise=1, mixup=0.5, **MORE)  # type: ignore[arg-type]
    items = AudioItems(clips(1600, 4800), ResidualFeatureExtractor(), augment)
    for epoch in range(4):
        items.set_epoch(epoch)
        batch = items.__getitems__([0, 1])
        assert batch["attention_mask"].sum(1).tolist() == [11, 31]
        assert not batch["input_features"][0, :, 11:].any()
        assert batch["input_features"].isfinite().all()


def powers(augment: Augment, given: Clips, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mel powers before and after variation (log-mel features undone)."""
    undo = [
        (
            AudioItems(given, ResidualFeatureExtractor(), a).__getitems__(rows)["input_features"]
        ).expm1()
        for a in (None, augment)
    ]
    return undo[0], undo[1]


def test_gain_is_up_to_the_decibels_told() -> None:
    before, after = powers(replace(OFF, gain=6.0), clips(*[1600] * 200), list(range(200)))
    decibels = 10 * (after.sum((1, 2)) / before.sum((1, 2))).log10()
    assert decibels.abs().max() <= 6.01
    assert decibels.min() < -5 and decibels.max() > 5


def test_noise_lies_below_the_clip_as_told_and_is_coloured() -> None:
    augment = replace(OFF, noise=0.7, noise_level=(10.0, 20.0))
    before, after = powers(augment, clips(*[1600] * 200), list(range(200)))
    added = (after - before).clamp(min=0)
    share = added.sum((1, 2)) / before.sum((1, 2))
    noisy = share > 1e-4
    assert 0.6 < noisy.float().mean() < 0.8
    below = -10 * share[noisy].log10()
    assert 9.99 <= below.min() and below.max() <= 20.01
    assert below.min() < 11 and below.max() > 19
    low = (added[noisy, :10].sum((1, 2)) / added[noisy].sum((1, 2))).sort().values
    assert low[0] < 0.3 and low[-1] > 0.9  # white to brown


def recordings(folder: Path, *waveforms: np.ndarray, rate: int = 16000) -> Path:
    folder.mkdir()
    for number, waveform in enumerate(waveforms):
        soundfile.write(folder / f"{number}.wav", waveform, rate)
    return folder


def tone(frequency: float, samples: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(samples) / 16000)


def test_noise_of_a_folder_is_heard_at_the_level_told(tmp_path: Path) -> None:
    # One is shorter than the clips and is repeated.
    folder = recordings(tmp_path / "noise", tone(500, 800), tone(3000, 40_000), 0 * tone(1, 99))
    augment = replace(OFF, noise=0.7, noise_level=(10.0, 20.0), noise_from=folder)
    before, after = powers(augment, clips(*[1600] * 200), list(range(200)))
    added = (after - before).clamp(min=0)
    share = added.sum((1, 2)) / before.sum((1, 2))
    noisy = share > 1e-4
    assert 0.6 < noisy.float().mean() < 0.8
    below = -10 * share[noisy].log10()
    assert 9.9 <= below.min() < 11 and 19 < below.max() <= 20.1
    loudest = added[noisy].sum(2).argmax(1)
    low, high = loudest.unique().tolist()
    assert 0.3 < (loudest == low).float().mean() < 0.7  # as often one as the other
    centres = AudioItems(clips(100), ResidualFeatureExtractor()).front_end.filters.argmax(0)
    assert centres[[low, high]].tolist() == pytest.approx([500 / 31.25, 3000 / 31.25], abs=2)


def test_noise_of_a_folder_begins_anywhere(tmp_path: Path) -> None:
    rising = np.linspace(0.01, 0.5, 64_000) * tone(1000, 64_000)
    augment = replace(OFF, noise=1.0, noise_from=recordings(tmp_path / "noise", rising))
    items = AudioItems(clips(*[1600] * 50), ResidualFeatureExtractor(), augment)
    assert items.noise.shape == (401, 40) and items.noise_lengths.tolist() == [401]
    before, after = powers(augment, clips(*[1600] * 50), list(range(50)))
    added = (after - before).sum(1)  # (50, 11)
    steep = (added[:, 10] / added[:, 5]).sort().values
    assert steep[0] < 1.1 and steep[-1] > 1.2


def test_a_silent_stretch_of_noise_changes_nothing(tmp_path: Path) -> None:
    late = np.concatenate([np.zeros(160_000), tone(1000, 160)])
    augment = replace(OFF, noise=1.0, noise_from=recordings(tmp_path / "noise", late))
    before, after = powers(augment, clips(*[1600] * 30), list(range(30)))
    assert after.isfinite().all() and (after - before).abs().amax((1, 2)).median() < 1e-3
    nothing = recordings(tmp_path / "nothing", np.zeros(900))
    with pytest.raises(InputError, match="holds nothing but silence; give recordings of noise"):
        AudioItems(clips(99), ResidualFeatureExtractor(), replace(augment, noise_from=nothing))


def click(samples: int = 16_000) -> Clips:
    """A click in each of many clips."""
    given = clips(*[samples] * 60)
    waveform = torch.zeros(samples, dtype=torch.int16)
    waveform[1600] = 32767
    return replace(given, waveforms=[waveform] * 60)


def test_a_room_makes_a_click_ring_for_the_time_told() -> None:
    augment = replace(OFF, reverb=0.6, reverb_time=(0.3, 0.3))
    before, after = powers(augment, click(), list(range(60)))
    before, after = before.sum(1), after.sum(1)  # (60, 101)
    rings = after[:, 30] > 1e-6
    assert 0.4 < rings.float().mean() < 0.8
    torch.testing.assert_close(after[~rings], before[~rings])
    fall = 10 * (after[rings, 20] / after[rings, 30]).log10()
    torch.testing.assert_close(fall, torch.full_like(fall, 20.0), rtol=0, atol=0.5)
    torch.testing.assert_close(after.sum(1), before.sum(1), rtol=0.01, atol=0)


def test_a_room_of_a_folder_is_heard(tmp_path: Path) -> None:
    response = np.zeros(4000)
    response[100], response[100 + 1600] = 0.8, 0.4  # an echo after 0.1 s
    folder = recordings(tmp_path / "rooms", response)
    augment = replace(OFF, reverb=1.0, reverb_from=folder)
    before, after = powers(augment, click(), list(range(60)))
    echo = after[0].sum(0)[18:23].sum() / after[0].sum(0)[8:13].sum()
    assert float(echo) == pytest.approx(0.25, rel=0.01)
    torch.testing.assert_close(after.sum((1, 2)), before.sum((1, 2)), rtol=0.01, atol=0)
    told = AudioItems(click(), ResidualFeatureExtractor(), augment)
    other = recordings(tmp_path / "others", response[:1000])
    augment = replace(augment, reverb_from=other)
    assert (
        told.fingerprint() != AudioItems(click(), ResidualFeatureExtractor(), augment).fingerprint()
    )


def test_at_another_speed_time_and_pitch_change_together() -> None:
    given = clips(*[16_000] * 40)
    sung = np.zeros(16_000)
    sung[4000:12_000] = tone(1000, 8000)
    waveform = torch.from_numpy(32767 * sung).to(torch.int16)
    given = replace(given, waveforms=[waveform] * 40)
    before, after = powers(replace(OFF, speed=0.2), given, list(range(40)))
    lasts = (after.sum(1) > 0.1 * before.sum(1).max()).sum(1)
    band = (after.sum(2) * torch.arange(40)).sum(1) / after.sum((1, 2))
    assert lasts.min() < 45 and lasts.max() > 58
    together = torch.corrcoef(torch.stack([1 / lasts, band]))[0, 1]
    assert together > 0.99


def test_a_spliced_clip_goes_on_as_another_one_and_is_no_word() -> None:
    """Clips of two tones each, the second twice as long as the first but half as loud in power."""
    rate, tones = 16000, ((500, 800), (1200, 1800), (2500, 3500))
    waveforms = []
    for early, late in tones:
        t = torch.arange(9600) / rate
        first, second = (torch.sin(2 * torch.pi * f * t) for f in (early, late))
        loudness = torch.where(t < 0.2, 1.0, 0.5**0.5)
        waveforms.append((9000 * loudness * torch.where(t < 0.2, first, second)).short())
    given = Clips(waveforms, rate, torch.tensor([0, 1, 2]), ("a", "b", "other"), [0, 1, 2], [])
    extractor = ResidualFeatureExtractor()
    plain = AudioItems(given, extractor).__getitems__([0, 1, 2])["input_features"]
    spliced = AudioItems(given, extractor, replace(OFF, splice=1.0), no_word=2)
    middles = spliced._middles(torch.arange(3))
    assert all(abs(int(middle) - 20) <= 1 for middle in middles)  # 0.2 s: half the energy
    seen = set()
    for epoch in range(20):
        spliced.set_epoch(epoch)
        batch = spliced.__getitems__([0, 1, 2])
        for row in range(3):
            heard, middle = batch["input_features"][row], int(middles[row])
            assert torch.equal(heard[:, :middle], plain[row, :, :middle])
            others = [n for n in range(3) if torch.equal(heard[:, 25:58], plain[n, :, 25:58])]
            assert len(others) == 1
            expected = row if others == [row] else 2
            assert batch["labels"][row] == expected
            seen.add((row, *others))
    assert len(seen) == 9  # with itself a clip stays what it is
    with pytest.raises(InputError, match=r"Augment has splice=1.0, .* give no_word"):
        AudioItems(given, extractor, replace(OFF, splice=1.0))


def test_mixup_takes_another_clip_and_its_label_in_one_share() -> None:
    given = clips(1600, 1600)
    items = AudioItems(given, ResidualFeatureExtractor(), replace(OFF, mixup=0.5))
    plain = AudioItems(given, ResidualFeatureExtractor()).__getitems__([0, 1])["input_features"]
    shares = []
    for epoch in range(20):
        items.set_epoch(epoch)
        batch = items.__getitems__([0, 1])
        assert batch["labels"].shape == (2, 2) and torch.allclose(
            batch["labels"].sum(1), torch.ones(2)
        )
        share = float(batch["labels"][0, 1])
        shares.append(share)
        expected = torch.lerp(plain[0], plain[1], share)
        torch.testing.assert_close(batch["input_features"][0], expected)
    assert 0 == min(shares) and 0.3 < max(shares) <= 0.5  # 0: mixed with itself


def test_clips_of_another_rate_are_refused() -> None:
    with pytest.raises(InputError, match=r"clips are at 16000 Hz, but the extractor .* 8000 Hz"):
        AudioItems(clips(100), ResidualFeatureExtractor(sampling_rate=8000))


def test_short_and_long_clips_are_kept_without_padding() -> None:
    given = clips(100, 160_000)
    items = AudioItems(given, ResidualFeatureExtractor())
    assert items.power.shape == (1 + 1001, 40)
    waves = pad_sequence([w / 32768 for w in given.waveforms], batch_first=True)
    expected, _ = items.front_end.power(waves, torch.tensor([100, 160_000]))
    torch.testing.assert_close(items.power[1:], expected[1].T, rtol=1e-4, atol=1e-4)


def test_the_fingerprint_tells_what_is_heard_from_what() -> None:
    given, extractor = clips(1600, 2000), ResidualFeatureExtractor()
    made = [
        AudioItems(given, extractor),
        AudioItems(given, ResidualFeatureExtractor(normalize="mean")),
        AudioItems(given, extractor, Augment()),
        AudioItems(given, extractor, seed=1),
        AudioItems(clips(1600, 2200), extractor),
    ]
    assert len({items.fingerprint() for items in made}) == len(made)
    assert AudioItems(given, extractor).fingerprint() == made[0].fingerprint()
    source = open_dataset(Dataset.from_dict({"text": ["a", "b"], "label": ["no", "yes"]}))
    of_source = AudioItems(replace(given, source=source), extractor)
    assert of_source.source is source and of_source.fingerprint() != made[0].fingerprint()


def test_any_number_of_classes_per_clip() -> None:
    labels = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    given = replace(clips(1600, 1600), labels=labels)
    items = AudioItems(given, ResidualFeatureExtractor())
    assert torch.equal(items.__getitems__([1, 0])["labels"], labels.flip(0))
    items = AudioItems(given, ResidualFeatureExtractor(), replace(OFF, mixup=0.5))
    share = items.draws(range(2), 2 * DRAWS + 2)[:, -2] * 0.5
    partners = (items.draws(range(2), 2 * DRAWS + 2)[:, -1] * 2).long()
    expected = torch.lerp(labels, labels[partners], share.unsqueeze(1))
    assert torch.equal(items.__getitems__([0, 1])["labels"], expected)
