"""Recordings are decoded or named; clips are heard as the extractor hears, and varied as told."""

import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from resbackbones.data import Source, open_dataset
from resbackbones.errors import InputError
from resbackbones.speech import (
    AudioItems,
    Augment,
    Clips,
    ResidualFeatureExtractor,
    decode,
    read_clips,
)
from resbackbones.speech.data import spec_augment, warped

OFF = Augment(0, 0, 0, 0, 0, (0, 0), 0, 0, 0)
FORMATS = [
    ("WAV", "PCM_16", 1e-4),
    ("WAV", "PCM_U8", 2e-2),
    ("WAV", "FLOAT", 1e-4),
    ("FLAC", "PCM_16", 1e-4),
    ("OGG", "VORBIS", 0.1),
    ("MP3", "MPEG_LAYER_III", 0.1),
]


def tone(samples: int, frequency: float = 440, rate: int = 16000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)).astype(np.float32)


def encoded(
    samples: np.ndarray, rate: int = 16000, form: str = "WAV", subtype: str = "PCM_16"
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def source(*recordings: bytes, labels: tuple[int, ...] | None = None) -> Source:
    rows: dict[str, Any] = {
        "audio": [{"bytes": content, "path": None} for content in recordings],
        "label": [("no", "yes")[i] for i in labels or [i % 2 for i in range(len(recordings))]],
    }
    return open_dataset(Dataset.from_dict(rows), kind="audio")


def clips(*lengths: int) -> Clips:
    generator = torch.Generator().manual_seed(0)
    waveforms = [
        (3000 * torch.randn(length, generator=generator)).to(torch.int16) for length in lengths
    ]
    count = len(lengths)
    labels = torch.arange(count) % 2
    return Clips(waveforms, 16000, labels, ("no", "yes"), list(range(count)), [])


# Decoding


@pytest.mark.parametrize(("form", "subtype", "tolerance"), FORMATS)
def test_decodes(form: str, subtype: str, tolerance: float, tmp_path: Path) -> None:
    content = encoded(tone(16000), form=form, subtype=subtype)
    samples = decode({"bytes": content, "path": "of/no/file.wav"}, 16000)
    assert samples.shape == (16000,) and samples.dtype == torch.int16
    assert np.abs(samples.numpy() / 32768 - tone(16000)).max() < tolerance
    path = tmp_path / "clip"
    path.write_bytes(content)
    for value in (str(path), {"bytes": None, "path": str(path)}):
        assert torch.equal(decode(value, 16000), samples)


def test_sixteen_bits_come_back_exactly() -> None:
    numbers = np.arange(-32768, 32768, 7).astype(np.int16)
    assert np.array_equal(decode({"bytes": encoded(numbers)}, 16000).numpy(), numbers)


def test_channels_are_averaged_and_loud_samples_clipped() -> None:
    stereo = np.stack([tone(800), 0 * tone(800)], 1)
    mono = decode({"bytes": encoded(stereo)}, 16000)
    assert np.abs(mono.numpy() / 32768 - tone(800) / 2).max() < 1e-4
    loud = decode({"bytes": encoded(4 * tone(800), subtype="FLOAT")}, 16000)
    assert loud.min() == -32768 and loud.max() == 32767


def test_resamples_to_the_rate_asked_for() -> None:
    samples = decode({"bytes": encoded(tone(44100, rate=44100), 44100)}, 16000)
    assert samples.shape == (16000,)
    middle = slice(500, -500)
    assert np.abs(samples.numpy() / 32768 - tone(16000))[middle].max() < 0.01


def test_a_stream_that_did_not_know_its_size_is_whole() -> None:
    content = bytearray(encoded(tone(100)))
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    assert decode({"bytes": bytes(content)}, 16000).shape == (100,)


def test_other_chunks_before_the_sound_are_skipped() -> None:
    content = encoded(tone(100))
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    content = content[:12] + odd + content[12:]
    assert decode({"bytes": content}, 16000).shape == (100,)
    with pytest.raises(InputError, match=r"cut short \(2 bytes of sound are missing\)"):
        decode({"bytes": content[:-2]}, 16000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (encoded(tone(0)), "the file holds no samples"),
        (encoded(tone(1000))[:1044], r"cut short \(1000 bytes of sound are missing\)"),
        (encoded(tone(1000))[:30], "soundfile cannot decode it"),
        (encoded(tone(9000), form="FLAC")[:900], r"cannot decode it \(flac decoder lost sync\)"),
        (encoded(tone(9000), form="OGG", subtype="VORBIS")[:-2000], "soundfile cannot decode it"),
        (encoded(tone(9000), form="MP3", subtype="MPEG_LAYER_III")[:-300], "the file is cut short"),
        (b"no sound at all" * 9, r"cannot decode it \(Format not recognised\)"),
        (encoded(tone(99) * np.nan, subtype="FLOAT"), "samples that are not finite"),
    ],
    ids=["0-bytes", "no-sample", "wav", "header", "flac", "ogg", "mp3", "text", "nan"],
)
def test_bad_recordings_are_named_or_skipped(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode({"bytes": content, "path": None}, 16000)
    given = source(encoded(tone(800)), content, encoded(tone(900)), labels=(1, 0, 1))
    with pytest.raises(InputError, match=rf"row 1 of .* cannot be read \(.*{message}"):
        read_clips(given, 16000)
    found = read_clips(given, 16000, on_bad="skip")
    assert [len(waveform) for waveform in found.waveforms] == [800, 900]
    assert found.rows == [0, 2] and found.labels.tolist() == [1, 1] and len(found) == 2
    assert len(found.skipped) == 1 and "row 1" in found.skipped[0]
    items = AudioItems(given, ResidualFeatureExtractor(), on_bad="skip")
    assert len(items) == 2 and items.rows == [0, 2] and items.skipped == found.skipped


# Items


@pytest.mark.parametrize(
    "options", [{}, {"kind": "mfcc", "feature_size": 13, "n_mels": 40}, {"normalize": "mean_std"}]
)
def test_items_hear_what_the_extractor_hears(options: dict[str, Any]) -> None:
    extractor = ResidualFeatureExtractor(**options)
    given = clips(*range(100, 7000, 97))  # more than are listened to at a time
    items = AudioItems(given, extractor)
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


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"clips are at 16000 Hz, but the extractor .* 8000 Hz"):
        AudioItems(clips(100), ResidualFeatureExtractor(sampling_rate=8000))
    for options in ({"mixup": 0.6}, {"shift": -1.0}, {"noise": 2.0}, {"warp": float("nan")}):
        name = next(iter(options))
        with pytest.raises(InputError, match=f"Augment has {name}=.*; use a number from 0"):
            Augment(**options)


def test_short_and_long_clips_are_kept_without_padding() -> None:
    given = clips(100, 160_000)
    items = AudioItems(given, ResidualFeatureExtractor())
    assert items.power.shape == (1 + 1001, 40)
    waves = pad_sequence([w / 32768 for w in given.waveforms], batch_first=True)
    expected, _ = items.front_end.power(waves, torch.tensor([100, 160_000]))
    torch.testing.assert_close(items.power[1:], expected[1].T, rtol=1e-4, atol=1e-4)
