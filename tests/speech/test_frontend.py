"""The front end hears a clip alone as in a batch, keeps silence silent and refuses the rest."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resbackbones.errors import InputError
from resbackbones.speech import Clips, learn_normalization, resample
from resbackbones.speech.frontend import STEADY, FrontEnd, ResidualFeatureExtractor, pad_clips

VARIANTS: list[dict[str, Any]] = [
    {},
    {"normalize": "mean"},
    {"normalize": "mean_std"},
    {"kind": "mfcc", "feature_size": 13, "n_mels": 40},
    {"kind": "mfcc", "normalize": "mean_std", "window": 0.03, "f_min": 0.0, "f_max": 7600.0},
    {"sampling_rate": 8000, "feature_size": 24, "hop": 0.0125},
    {"normalize": "global", "feature_size": 4, "means": [1, 2, 3.5, 4], "deviations": [3, 2, 1, 0]},
    {"kind": "fbank", "feature_size": 80},
    {"kind": "fbank", "window_shape": "hamming", "full_scale": 32768.0, "normalize": "mean"},
    {"kind": "fbank", "sampling_rate": 8000, "window_shape": "hann", "normalize": "mean_std"},
]


def tone(frequency: float, samples: int, rate: int = 16000) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * frequency * torch.arange(samples) / rate)


def expected_frames(options: dict[str, Any], samples: int) -> int:
    rate = options.get("sampling_rate", 16000)
    hop = round(rate * options.get("hop", 0.01))
    if options.get("kind") == "fbank":
        return max(1, 1 + (samples - rate // 40) // hop)
    return 1 + samples // hop


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())) or "-")
def test_batch_is_single(options: dict[str, Any]) -> None:
    front_end = FrontEnd(**options)
    scaled = options.get("normalize") == "mean_std"
    learned = {"means": None, "deviations": None}
    unscaled = FrontEnd(**options | learned | {"normalize": "none"})

    @settings(max_examples=12, deadline=None)
    @given(
        lengths=st.lists(st.integers(1, 4000), min_size=1, max_size=4),
        extra=st.integers(0, 900),
        seed=st.integers(0, 99),
    )
    def check(lengths: list[int], extra: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        # What stands in the padding must not matter.
        batch = torch.randn(len(lengths), max(lengths) + extra, generator=generator)
        together, frames = front_end(batch, torch.tensor(lengths))
        for row, length in enumerate(lengths):
            alone, (count,) = front_end(batch[row : row + 1, :length])
            assert count == frames[row] == alone.shape[-1] == expected_frames(options, length)
            difference = (together[row, :, :count] - alone[0]).abs().amax(1)
            size = alone.abs().max().clamp(min=1.0)
            if scaled:  # what was divided had its own rounding, and the division enlarged it
                before, _ = unscaled(batch[row : row + 1, :length])
                deviation = before[0].std(1, correction=0).clamp(min=STEADY)
                size = (before.abs().max() / deviation).clamp(min=size)
            assert (difference <= 1e-5 * size).all()
            assert not together[row, :, count:].any()

    check()


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())) or "-")
def test_autocast_changes_nothing(options: dict[str, Any]) -> None:
    front_end, clips = FrontEnd(**options), torch.randn(2, 4000)
    lengths = torch.tensor([4000, 2500])
    features, frames = front_end(clips, lengths)
    power, _ = front_end.power(clips, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(front_end(clips, lengths)[0], features)
        assert torch.equal(front_end.power(clips, lengths)[0], power)
        assert torch.equal(front_end.features(power, frames), features)
        # Of another type they are exact too, but for what the type itself has rounded away.
        assert torch.equal(front_end(clips.double(), lengths)[0], features)
        rounded = clips.bfloat16()
        assert torch.equal(front_end(rounded, lengths)[0], front_end(rounded.float(), lengths)[0])


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())) or "-")
def test_silence_is_zero_and_one_frame_is_finite(options: dict[str, Any]) -> None:
    front_end = FrontEnd(**options)
    features, _ = front_end(torch.zeros(1, 5000))
    if options.get("kind") == "fbank":
        level = np.log(np.finfo(np.float32).eps) if options.get("normalize") is None else 0.0
        torch.testing.assert_close(features, torch.full_like(features, level), rtol=0, atol=1e-5)
    elif options.get("normalize") != "global":
        assert not features.any()
    features, frames = front_end(torch.randn(3, 1))
    assert frames.tolist() == [1, 1, 1] and features.isfinite().all()


def test_a_tone_is_loudest_in_its_band_and_frame() -> None:
    clip = torch.zeros(16000)
    clip[8000:8800] = tone(1000, 800)
    features, _ = FrontEnd()(clip[None])
    band, frame = divmod(int(features[0].argmax()), features.shape[-1])
    filters = FrontEnd().filters  # (frequencies, bands)
    assert filters[:, band].argmax() * 16000 / 512 == pytest.approx(1000, abs=60)
    assert 50 <= frame <= 55
    # log(1 + power / 1e-6), of the stated power
    power, frames = FrontEnd().power(clip[None])
    torch.testing.assert_close(features, FrontEnd().features(power, frames), rtol=0, atol=0)
    torch.testing.assert_close(features, (power / 1e-6 + 1).log(), rtol=1e-5, atol=1e-5)


def test_normalisation_takes_out_the_channel() -> None:
    clips = torch.randn(2, 16000)
    loud, _ = FrontEnd(normalize="mean")(10 * clips)
    soft, _ = FrontEnd(normalize="mean")(clips)
    torch.testing.assert_close(loud, soft, rtol=0, atol=1e-3)
    assert soft.mean(-1).abs().max() < 1e-4
    features, _ = FrontEnd(normalize="mean_std")(clips)
    torch.testing.assert_close(features.std(-1, correction=0), torch.ones(2, 40))


def test_mfcc_is_the_orthonormal_dct_of_the_log_mel_energies() -> None:
    from scipy.fft import dct

    clip = torch.randn(1, 2000)
    energies, _ = FrontEnd(feature_size=40)(clip)
    cepstrum, _ = FrontEnd("mfcc", feature_size=13, n_mels=40)(clip)
    expected = dct(energies[0].numpy(), norm="ortho", axis=0)[:13]
    np.testing.assert_allclose(cepstrum[0], expected, atol=1e-4)


def sounds(samples: int) -> torch.Tensor:
    """A tone over noise, beside the middle: there is a mean to take off."""
    generator = torch.Generator().manual_seed(samples)
    return 0.1 * torch.randn(1, samples, generator=generator) + tone(440, samples) * 0.5 + 0.05


@pytest.mark.parametrize("full_scale", [1.0, 32768.0])
@pytest.mark.parametrize("bands", [40, 80])
@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("shape", ["povey", "hamming", "hann"])
def test_fbank_is_kaldis(rate: int, bands: int, shape: str, full_scale: float) -> None:
    from torchaudio.compliance import kaldi

    front_end = FrontEnd("fbank", bands, rate, window_shape=shape, full_scale=full_scale)
    named = "hanning" if shape == "hann" else shape
    for samples in (rate // 40, rate // 40 + rate // 100, 2 * rate + 7):
        clip = sounds(samples)
        expected = kaldi.fbank(
            clip * full_scale,
            dither=0.0,
            num_mel_bins=bands,
            sample_frequency=rate,
            window_type=named,
        )
        heard, frames = front_end(clip)
        assert frames.tolist() == [len(expected)]
        torch.testing.assert_close(heard[0].T, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_log_mel_power_is_torchaudios(rate: int) -> None:
    import torchaudio

    expected = torchaudio.transforms.MelSpectrogram(
        rate,
        n_fft=512 if rate == 16000 else 256,
        win_length=rate // 40,
        hop_length=rate // 100,
        f_min=20.0,
        n_mels=40,
        pad_mode="constant",
    )(clips := sounds(rate))
    power, frames = FrontEnd(sampling_rate=rate).power(clips)
    assert frames.tolist() == [expected.shape[-1]]
    torch.testing.assert_close(power, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["log_mel", "mfcc", "fbank"])
def test_what_was_learned_makes_the_training_clips_standard(kind: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    waveforms = [
        (3000 * (i + 1) * torch.randn(900 * (i + 1), generator=generator)).clamp(-32768, 32767)
        for i in range(4)
    ]
    clips = Clips([w.short() for w in waveforms], 16000, torch.arange(4) % 2, ("a", "b"), [], [])
    plain = ResidualFeatureExtractor(kind, 40, normalize="mean", pad_to=0.5)
    extractor = learn_normalization(plain, clips)
    assert extractor.options["kind"] == kind and extractor.pad_to == 0.5
    batch = extractor(clips.waveforms, return_tensors="pt")
    real = batch["input_features"].transpose(1, 2)[batch["attention_mask"].bool()]
    torch.testing.assert_close(real.mean(0), torch.zeros(40), rtol=0, atol=1e-4)
    torch.testing.assert_close(real.std(0, correction=0), torch.ones(40), rtol=1e-3, atol=0)
    extractor.save_pretrained(tmp_path)
    loaded = ResidualFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    again = loaded(clips.waveforms, return_tensors="pt")
    assert torch.equal(again["input_features"], batch["input_features"])


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())) or "-")
def test_a_captured_front_end_takes_any_batch_and_length(options: dict[str, Any]) -> None:
    from torch.export import Dim

    front_end = FrontEnd(**options)
    sizes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    example = (torch.randn(2, 8000), torch.tensor([8000, 5000]))
    program = torch.export.export(front_end, example, dynamic_shapes=sizes).module()
    for batch, samples in ((3, 9001), (1, 700)):
        given = torch.randn(batch, samples), torch.linspace(samples, 1, batch).long()
        for value, expected in zip(program(*given), front_end(*given), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "log-mel"}, "kind='log-mel' is not known; did you mean 'log_mel'"),
        ({"normalize": "std"}, "normalize='std' is not known"),
        ({"feature_size": 0}, "feature_size=0 must be a whole number"),
        ({"sampling_rate": 16e3}, r"sampling_rate=16000\.0 must be a whole number"),
        ({"kind": "mfcc", "n_mels": 0}, "n_mels=0 must be a whole number"),
        ({"kind": "fbank", "n_mels": 64}, "but fbank features are the mel bands"),
        ({"kind": "fbank", "feature_size": 3}, "feature_size=3 is too few for Kaldi's bank"),
        ({"kind": "fbank", "window_shape": "hanning"}, "window_shape='hanning' is not known; did"),
        ({"kind": "fbank", "full_scale": 0.0}, r"full_scale=0\.0 must be a number above 0"),
        ({"window_shape": "hann"}, "options of kind='fbank', not of 'log_mel'; leave them out"),
        ({"full_scale": 32768.0}, "options of kind='fbank', not of 'log_mel'"),
        ({"normalize": "global"}, "its means have not been learned; .*learn_normalization"),
        ({"means": [0.0] * 40}, "normalize='none' has no use for means; leave them out"),
        (
            {"normalize": "global", "means": [0.0] * 40, "deviations": [1.0] * 39},
            "deviations of normalize='global' must be 40 finite numbers, .*, none below 0",
        ),
        (
            {"normalize": "global", "means": [float("nan")] * 40, "deviations": [1.0] * 40},
            "means of normalize='global' must be 40 finite numbers",
        ),
        ({"n_mels": 64}, "log_mel features are the mel bands; leave n_mels out"),
        ({"kind": "mfcc", "feature_size": 40, "n_mels": 20}, "raise n_mels"),
        ({"window": 25, "hop": 0.00001}, "give both in seconds"),
        ({"window": 0.0}, "window two samples or more"),
        ({"f_min": 5000.0, "f_max": 4000.0}, "no range of frequencies"),
        ({"sampling_rate": 8000, "f_max": 7000.0}, "within 0 to 4000 Hz, half the sampling rate"),
        ({"feature_size": 200}, "use fewer bands or a longer window"),
    ],
)
def test_front_end_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FrontEnd(**options)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())) or "-")
def test_extractor_is_the_same_after_save_and_load(options: dict[str, Any], tmp_path: Path) -> None:
    extractor = ResidualFeatureExtractor(**options)
    extractor.save_pretrained(tmp_path)
    loaded = ResidualFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    clip = torch.randn(3000)
    before, after = (e(clip, return_tensors="pt") for e in (extractor, loaded))
    assert torch.equal(before["input_features"], after["input_features"])
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert set(saved) == {*extractor.options, "pad_to", "feature_extractor_type"}


def test_an_argument_changed_while_loading_reaches_the_front_end(tmp_path: Path) -> None:
    ResidualFeatureExtractor().save_pretrained(tmp_path)
    loaded = ResidualFeatureExtractor.from_pretrained(
        tmp_path, normalize="mean", feature_size=24, pad_to=0.5
    )
    assert loaded(torch.randn(4000))["input_features"].shape == (1, 24, 51)
    assert loaded.front_end.normalize == "mean"


def test_extractor_takes_one_clip_several_or_an_array() -> None:
    extractor = ResidualFeatureExtractor()
    clips = [tone(440, 3000), tone(880, 1600)]
    batch = extractor(clips, sampling_rate=16000, padding=True, return_tensors="pt")
    assert batch["input_features"].shape == (2, 40, 19)
    assert batch["attention_mask"].dtype == torch.int64
    assert batch["attention_mask"].sum(1).tolist() == [19, 11]
    alone = extractor(clips[1].numpy().astype(np.float64))  # numpy in and out
    np.testing.assert_allclose(
        alone["input_features"][0], batch["input_features"][1, :, :11], atol=1e-5
    )
    as_list = extractor(clips[1].tolist(), return_tensors="np")
    np.testing.assert_array_equal(as_list["input_features"], alone["input_features"])
    stacked = extractor(torch.stack([clips[1][None], clips[1][None]]), return_tensors="pt")
    assert stacked["input_features"].shape == (2, 40, 11)


def test_channels_are_averaged_whichever_axis_they_are() -> None:
    left, right = tone(440, 3000).numpy(), 0.3 * tone(880, 3000).numpy()
    extractor = ResidualFeatureExtractor()
    expected = extractor((left + right) / 2)["input_features"]
    for stereo in (np.stack([left, right]), np.stack([left, right], 1)):
        for clip in (stereo, [stereo], torch.from_numpy(stereo)[None]):
            np.testing.assert_allclose(extractor(clip)["input_features"], expected, atol=1e-4)
    both = extractor([np.stack([left, right], 1), left[:1600]], return_tensors="pt")
    assert both["attention_mask"].sum(1).tolist() == [19, 11]


@pytest.mark.parametrize(
    ("kind", "scale", "silence"),
    [(np.int16, 2**15, 0), (np.int32, 2**31, 0), (np.uint8, 2**7, 128)],
)
def test_whole_numbers_are_scaled_by_their_bits(kind: Any, scale: int, silence: int) -> None:
    wave = np.array([-1.0, -0.5, 0.0, 0.5, 0.75])
    numbers = (wave * scale + silence).astype(kind)
    assert pad_clips(numbers)[0].tolist() == [wave.tolist()]
    stereo = np.stack([numbers, np.full_like(numbers, silence)], 1)
    assert pad_clips(stereo)[0].tolist() == [(wave / 2).tolist()]


@pytest.mark.parametrize("normalize", ["none", "mean_std"])
def test_short_clips_are_padded_to_the_seconds_told(normalize: str) -> None:
    plain = ResidualFeatureExtractor(normalize=normalize)
    padded = ResidualFeatureExtractor(normalize=normalize, pad_to=0.25)
    clips = [tone(440, 3000), tone(880, 1600), tone(660, 6000)]
    for clip in clips:
        expected, heard = plain(clip), padded(clip)
        frames = expected["input_features"].shape[2]
        assert heard["input_features"].shape[2] == max(26, frames)
        assert heard["attention_mask"].sum() == frames
        np.testing.assert_allclose(
            heard["input_features"][..., :frames], expected["input_features"], atol=1e-5
        )
        assert not heard["input_features"][..., frames:].any()


def test_pad_collates_single_items_on_the_time_axis() -> None:
    extractor = ResidualFeatureExtractor()
    clips = [tone(440, 3000), tone(880, 1600)]
    items = [
        {"input_features": extractor(clip)["input_features"][0], "labels": label}
        for label, clip in enumerate(clips)
    ]
    batch, expected = extractor.pad(items), extractor(clips, return_tensors="pt")
    torch.testing.assert_close(batch["input_features"], expected["input_features"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert batch["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("clips", "options", "message"),
    [
        ([], {}, "there is no clip"),
        (np.zeros((9, 16000), np.float32), {}, r"clip 0 has shape \(9, 16000\).* as a list"),
        ([np.zeros(9), np.zeros((1, 1, 9))], {}, r"clip 1 has shape \(1, 1, 9\)"),
        (np.zeros((0, 2), np.float32), {}, "clip 0 is empty"),
        ([np.zeros(9, np.float32), np.zeros(0, np.float32)], {}, "clip 1 is empty"),
        ([1, 2, 3], {}, r"whole numbers \(torch.int64\) of an unknown range; .* an int16"),
        ([0.0, float("nan")], {}, "clip 0 holds samples that are not finite"),
        (np.zeros(9, np.float32), {"sampling_rate": 8000}, r"at 8000 Hz.*resample\(clip, 8000"),
        (np.zeros(9, np.float32), {"padding": "max_length"}, "padding='max_length' is not known"),
        (np.zeros(9, np.float32), {"return_tensors": "tf"}, "return_tensors='tf' is not known"),
    ],
)
def test_extractor_refuses(clips: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ResidualFeatureExtractor()(clips, **options)


def test_extractor_refuses_an_argument_nobody_reads() -> None:
    with pytest.raises(InputError, match=r"pad_to=-1 must be a number of seconds, 0 or more"):
        ResidualFeatureExtractor(pad_to=-1)
    with pytest.raises(
        InputError, match="no argument 'feature_sizes'; did you mean 'feature_size'"
    ):
        ResidualFeatureExtractor(feature_sizes=40)


def test_clips_are_padded_with_silence() -> None:
    batch, lengths = pad_clips([torch.ones(3), torch.ones(1, dtype=torch.float64)])
    assert batch.tolist() == [[1, 1, 1], [1, 0, 0]] and batch.dtype == torch.float32
    assert lengths.tolist() == [3, 1]


@pytest.mark.parametrize(("rate", "new_rate"), [(8000, 16000), (44100, 16000), (44101, 16000)])
def test_resampling_keeps_the_tone(rate: int, new_rate: int) -> None:
    new = resample(tone(440, rate, rate), rate, new_rate)
    assert len(new) == pytest.approx(new_rate, abs=1)
    middle = slice(1000, -1000)
    expected = tone(440, len(new), new_rate)
    assert (new[middle] - expected[middle]).abs().max() < 0.01


@pytest.mark.parametrize(("rate", "new_rate"), [(8000, 16000), (44100, 16000), (16000, 22050)])
def test_long_waveforms_are_resampled_in_pieces_of_the_whole(
    rate: int, new_rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = torch.randn(2, 9 * 1000 + 7)
    whole = resample(clips, rate, new_rate)
    assert whole.shape[-1] == math.ceil(clips.shape[-1] * new_rate / rate)
    monkeypatch.setattr("resbackbones.speech.resampling.PIECE", 1000)
    torch.testing.assert_close(resample(clips, rate, new_rate), whole, rtol=0, atol=1e-5)


def test_resampling_is_the_same_under_autocast() -> None:
    clip = torch.randn(2, 4000)
    expected = resample(clip, 8000, 16000)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resample(clip, 8000, 16000), expected)


def test_resampling_to_the_same_rate_changes_nothing() -> None:
    clip = torch.randn(2, 100)
    assert resample(clip, 16000, 16000) is clip
