"""Clips are heard as the extractor hears, and varied as told."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from resbackbones.data import open_dataset
from resbackbones.errors import InputError
from resbackbones.speech import AudioItems, Augment, Clips, ResidualFeatureExtractor

OFF = Augment(0, 0, 0, 0, 0, (0, 0), 0, 0, 0)


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
    for name, value in plain.items():
        assert torch.equal(value, off[name])


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_variation_depends_on_seed_epoch_and_row_alone(mixup: float) -> None:
    augment = Augment(mixup=mixup)
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
    assert len(shapes) == 20 and max(shapes) == 13


def test_varied_clips_stay_silent_past_their_end() -> None:
    items = AudioItems(clips(1600, 4800), ResidualFeatureExtractor(), Augment(noise=1, mixup=0.5))
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
    share = items.draws(range(2), 34)[:, -2] * 0.5
    partners = (items.draws(range(2), 34)[:, -1] * 2).long()
    expected = torch.lerp(labels, labels[partners], share.unsqueeze(1))
    assert torch.equal(items.__getitems__([0, 1])["labels"], expected)
