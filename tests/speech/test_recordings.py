"""Recordings are decoded, cut and counted, or named."""

import io
import itertools
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from resbackbones.data import NoTarget, Source, Transcripts, open_dataset, open_splits
from resbackbones.errors import InputError
from resbackbones.speech import (
    AudioItems,
    Clips,
    ResidualFeatureExtractor,
    audio_blocks,
    decode_audio,
    read_clips,
    resample,
    resampling,
)
from resbackbones.speech.recordings import AT_ONCE, chunks

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


def without_length(flac: bytes) -> bytes:
    """As an encoder writes it that could not go back to fill in the number of samples (the last 36
    of the 64 bits from byte 18 on)."""
    return flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:]


def source(*recordings: bytes, labels: tuple[int, ...] | None = None) -> Source:
    rows: dict[str, Any] = {
        "audio": [{"bytes": content, "path": None} for content in recordings],
        "label": [("no", "yes")[i] for i in labels or [i % 2 for i in range(len(recordings))]],
    }
    return open_dataset(Dataset.from_dict(rows), kind="audio")


@pytest.mark.parametrize(("form", "subtype", "tolerance"), FORMATS)
def test_decodes(form: str, subtype: str, tolerance: float, tmp_path: Path) -> None:
    content = encoded(tone(16000), form=form, subtype=subtype)
    samples = decode_audio({"bytes": content, "path": "of/no/file.wav"}, 16000)
    assert samples.shape == (16000,) and samples.dtype == torch.int16
    assert np.abs(samples.numpy() / 32768 - tone(16000)).max() < tolerance
    path = tmp_path / "clip"
    path.write_bytes(content)
    for value in (str(path), {"bytes": None, "path": str(path)}):
        assert torch.equal(decode_audio(value, 16000), samples)


def test_sixteen_bits_come_back_exactly() -> None:
    numbers = np.arange(-32768, 32768, 7).astype(np.int16)
    assert np.array_equal(decode_audio({"bytes": encoded(numbers)}, 16000).numpy(), numbers)


def test_channels_are_averaged_and_loud_samples_clipped() -> None:
    stereo = np.stack([tone(800), 0 * tone(800)], 1)
    mono = decode_audio({"bytes": encoded(stereo)}, 16000)
    assert np.abs(mono.numpy() / 32768 - tone(800) / 2).max() < 1e-4
    loud = decode_audio({"bytes": encoded(4 * tone(800), subtype="FLOAT")}, 16000)
    assert loud.min() == -32768 and loud.max() == 32767


def test_resamples_to_the_rate_asked_for() -> None:
    samples = decode_audio({"bytes": encoded(tone(44100, rate=44100), 44100)}, 16000)
    assert samples.shape == (16000,)
    middle = slice(500, -500)
    assert np.abs(samples.numpy() / 32768 - tone(16000))[middle].max() < 0.01


def test_a_stream_that_did_not_know_its_size_is_whole() -> None:
    content = bytearray(encoded(tone(100)))
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    assert decode_audio({"bytes": bytes(content)}, 16000).shape == (100,)


def test_other_chunks_before_the_sound_are_skipped() -> None:
    content = encoded(tone(100))
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    content = content[:12] + odd + content[12:]
    assert decode_audio({"bytes": content}, 16000).shape == (100,)
    with pytest.raises(InputError, match=r"cut short \(2 bytes of sound are missing\)"):
        decode_audio({"bytes": content[:-2]}, 16000)


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
        (without_length(encoded(tone(9000), form="FLAC")), "header does not say how long it is"),
    ],
    ids=["0-bytes", "no-sample", "wav", "header", "flac", "ogg", "mp3", "text", "nan", "no-length"],
)
def test_bad_recordings_are_named_or_skipped(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_audio({"bytes": content, "path": None}, 16000)
    with pytest.raises(InputError, match=message):
        decode_audio({"bytes": content, "path": None}, 16000, max_seconds=3600)
    recordings = source(encoded(tone(800)), content, encoded(tone(900)), labels=(1, 0, 1))
    with pytest.raises(InputError, match=rf"row 2 of .* cannot be read \(.*{message}"):
        read_clips(recordings, 16000)
    found = read_clips(recordings, 16000, on_bad="skip")
    assert [len(waveform) for waveform in found.waveforms] == [800, 900]
    assert found.rows == [0, 2] and found.labels.tolist() == [1, 1] and len(found) == 2
    assert len(found.skipped) == 1 and "row 2" in found.skipped[0]
    items = AudioItems(recordings, ResidualFeatureExtractor(), on_bad="skip")
    assert len(items) == 2 and items.rows == [0, 2] and items.skipped == found.skipped


def test_any_number_of_channels_and_eight_bits_are_read() -> None:
    five = np.stack([tone(800, 440 * (1 + i)) / (1 + i) for i in range(5)], 1)
    heard = decode_audio({"bytes": encoded(five)}, 16000)
    assert np.abs(heard.numpy() / 32768 - five.mean(1)).max() < 1e-4
    coarse = decode_audio({"bytes": encoded(five, 8000, subtype="PCM_U8")}, 16000)
    assert coarse.shape == (1600,)


def test_doubtful_recordings_are_taken_and_told_of_once() -> None:
    loud = np.clip(4 * tone(800), -1, 1)
    silent, good, one = np.zeros(900), tone(800), tone(2, 4000)[1:]
    given = source(*map(encoded, (silent, good, loud, silent, one, silent, silent, loud)))
    with pytest.warns(UserWarning) as told:
        found = read_clips(given, 16000)
    assert len(found) == 8 and len(told) == 1
    row = "row {} of the given data set [train]".format
    assert str(told[0].message) == (
        f"of 8 recordings 4 are silent ({row(1)}, {row(4)}, {row(6)}, …); 2 are clipped ({row(3)}, "
        f"{row(8)}); 1 is a single sample ({row(5)})"
    )
    assert told[0].filename == __file__
    items = AudioItems(found, ResidualFeatureExtractor())
    assert items.__getitems__(range(8))["input_features"].isfinite().all()
    read_clips(source(*[encoded(good)] * 4), 16000)  # of a set without doubts nothing is said


# Parts of recordings


def manifest(folder: Path, columns: str, *rows: str) -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join([columns, *rows]))
    return path


@pytest.mark.parametrize(("form", "subtype", "tolerance"), FORMATS)
def test_a_part_is_that_of_the_whole(form: str, subtype: str, tolerance: float) -> None:
    stereo = np.stack([tone(30000), tone(30000, 880)], 1)
    value = {"bytes": encoded(stereo, form=form, subtype=subtype), "path": None}
    whole = decode_audio(value, 16000).float() / 32768
    for start, end in ((0.5, 1.25), (1.5, 1.75)):
        part = decode_audio(value, 16000, start=start, end=end).float() / 32768
        expected = whole[int(start * 16000) : int(end * 16000)]
        assert part.shape == expected.shape
        difference = (part - expected).abs().max()
        assert difference <= (0 if form != "MP3" else tolerance / 100)
    assert decode_audio(value, 16000, start=1.5).shape == (6000,)
    assert decode_audio(value, 16000, end=0.25).shape == (4000,)
    assert decode_audio(value, 16000, 0.125, start=0.5, end=1.25).shape == (2000,)
    assert decode_audio(value, 8000, start=0.5, end=1.25).shape == (6000,)


@pytest.mark.parametrize(("form", "subtype", "tolerance"), FORMATS)
@pytest.mark.parametrize("new_rate", [44100, 16000])
def test_blocks_are_the_whole(form: str, subtype: str, tolerance: float, new_rate: int) -> None:
    random = np.random.default_rng(0)
    sound = (tone(200_001, rate=44100) + 0.1 * random.standard_normal(200_001)).astype(np.float32)
    value = {"bytes": encoded(sound, 44100, form, subtype), "path": None}
    whole = decode_audio(value, new_rate)
    for seconds in (0.5, 1.7, 100):
        blocks = list(audio_blocks(value, new_rate, seconds))
        assert all(block.dtype == torch.int16 and len(block) for block in blocks)
        together = torch.cat(blocks)
        assert together.shape == whole.shape
        difference = (together.int() - whole.int()).abs().max()
        # A bit of rounding; an MP3's frames come out a little otherwise after a jump.
        assert difference <= (1 if form != "MP3" else tolerance / 100 * 32768)


def test_a_recording_of_any_length_is_decoded_block_by_block() -> None:
    blocks = audio_blocks({"bytes": encoded(tone(160_000)), "path": None}, 16000, 0.5)
    assert [len(block) for block in blocks] == [8000] * 20
    (alone,) = audio_blocks({"bytes": encoded(tone(1)), "path": None}, 16000)
    assert len(alone) == 1
    broken = audio_blocks({"bytes": encoded(tone(9000), form="FLAC")[:-3000], "path": None}, 16000)
    with pytest.raises(InputError, match=r"soundfile cannot decode it|cut short"):
        list(broken)


@given(
    length=st.integers(1, 40_000),
    sizes=st.lists(st.integers(0, 9000), max_size=9),
    rates=st.sampled_from([(8000, 16000), (44100, 16000), (48000, 8000), (16000, 16000)]),
)
def test_resampled_blocks_are_the_resampled_whole(
    length: int, sizes: list[int], rates: tuple[int, int]
) -> None:
    samples = torch.randn(length, generator=torch.Generator().manual_seed(length))
    edges = np.minimum(np.cumsum([0, *sizes]), length).tolist()
    blocks = [samples[a:b] for a, b in itertools.pairwise([*edges, length])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "PIECE", 5000)
        together = torch.cat(list(resampling.resampled(blocks, *rates)))
        assert torch.allclose(together, resample(samples, *rates), atol=1e-6)


def test_no_more_than_a_part_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"bytes": encoded(tone(160_000), form="FLAC"), "path": None}
    asked = []
    plain = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames, **more: asked.append(frames) or plain(self, frames, **more),
    )
    decode_audio(value, 16000, start=5, end=5.5)
    assert asked == [8000]


def test_a_manifest_of_parts_is_read(tmp_path: Path) -> None:
    talk = np.concatenate([tone(16000, 440), tone(16000, 2000)])
    (tmp_path / "talk.wav").write_bytes(encoded(talk))
    (tmp_path / "word.wav").write_bytes(encoded(tone(4000)))
    rows = ["talk.wav,low,ann,0,1", "talk.wav,high,ann,1.0,2.0", "word.wav,low,bob,,"]
    path = manifest(tmp_path, "path,label,speaker,start,end", *rows)
    opened = open_dataset(path, kind="audio")
    assert opened.columns["start"] == "start" and opened.columns["group"] == "speaker"
    found = read_clips(opened, 16000)
    assert [len(each) for each in found.waveforms] == [16000, 16000, 4000]
    assert np.abs(found.waveforms[1].numpy() / 32768 - talk[16000:]).max() < 1e-4
    assert found.labels.tolist() == [1, 0, 1]
    assert opened.row_name(1) == f"{tmp_path / 'talk.wav'} from 1.0 to 2.0 s"
    assert opened.row_name(2) == str(tmp_path / "word.wav")
    whole = open_dataset(path, kind="audio", columns={"start": "", "end": ""})
    assert [len(each) for each in read_clips(whole, 16000).waveforms] == [32000, 32000, 4000]
    assert whole.fingerprint() != opened.fingerprint()
    moved = manifest(
        tmp_path, "path,label,speaker,start,end", *rows[::2], "talk.wav,high,ann,1,1.5"
    )
    assert opened.fingerprint() != open_dataset(moved, kind="audio").fingerprint()


def test_a_manifest_of_transcripts_is_read(tmp_path: Path) -> None:
    (tmp_path / "talk.flac").write_bytes(encoded(tone(32000), form="FLAC"))
    path = tmp_path / "manifest.jsonl"
    path.write_text(
        '{"path": "talk.flac", "text": "good morning", "from": 0.0, "end": 1.5}\n'
        '{"path": "talk.flac", "text": "bye", "from": 1.5, "end": 2.005}\n'  # rounded upwards
    )
    told = {"start": "from"}
    opened = open_dataset(path, target=Transcripts(), kind="audio", columns=told)
    found = read_clips(opened, 16000)
    assert [len(each) for each in found.waveforms] == [24000, 8000]
    assert found.labels == ["good morning", "bye"] and found.names == ()
    with pytest.raises(InputError, match="the clips have no classes, as a classifier learns"):
        AudioItems(found, ResidualFeatureExtractor())
    unlabelled = open_dataset(path, target=NoTarget(), kind="audio", columns=told)
    assert read_clips(unlabelled, 16000).labels is None


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("1.0", "0.5", r"there is no part from 1 to 0\.5 s in a recording of 2 s"),
        ("-1", "1", "there is no part from -1 to 1 s"),
        ("0", "2.5", r"there is no part from 0 to 2\.5 s in a recording of 2 s"),
        ("3", "", "there is no part from 3 to 2 s"),
        ("0.5", "0.50001", r"the part from 0\.5 to 0\.50001 s holds no sample"),
        ("early", "1", "{'start': 'early', 'end': 1} are no two times in seconds"),
    ],
)
def test_parts_that_are_not_there_are_named(
    start: str, end: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "talk.wav").write_bytes(encoded(tone(32000)))
    rows = "talk.wav,a,0,1", f"talk.wav,b,{start},{end}", "talk.wav,b,1,2"
    opened = open_dataset(manifest(tmp_path, "path,label,start,end", *rows), kind="audio")
    with pytest.raises(InputError, match=rf"talk\.wav from {start}.* cannot be read \(.*{message}"):
        read_clips(opened, 16000)
    found = read_clips(opened, 16000, on_bad="skip")
    assert found.rows == [0, 2] and len(found.skipped) == 1


def test_parts_are_of_recordings() -> None:
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1], "start": [0, 1]})
    assert "start" not in open_dataset(rows).columns
    with pytest.raises(InputError, match=r"'start' .* is named as the start of a recording, but"):
        open_dataset(rows, columns={"start": "start"})
    # Where a table holds the recordings themselves, times beside them may be anyone's.
    held = [{"bytes": encoded(tone(99)), "path": None}] * 2
    rows = Dataset.from_dict({"audio": held, "label": [0, 1], "start": [5.0, 6.0]})
    assert len(read_clips(open_dataset(rows, kind="audio"), 16000)) == 2


def test_splits_of_which_one_is_of_parts(tmp_path: Path) -> None:
    (tmp_path / "talk.wav").write_bytes(encoded(tone(32000)))
    rows = [f"talk.wav,{'ab'[i % 2]},{i / 10},{i / 10 + 0.1}" for i in range(20)]
    (tmp_path / "train.csv").write_text("\n".join(["path,label,start,end", *rows]))
    (tmp_path / "test.csv").write_text("path,label\ntalk.wav,a\ntalk.wav,b\n")
    splits = open_splits(tmp_path, kind="audio")
    assert {len(each) for each in read_clips(splits.train, 16000).waveforms} == {1600}
    assert {len(each) for each in read_clips(splits.validation, 16000).waveforms} == {1600}
    assert splits.test is not None
    assert [len(each) for each in read_clips(splits.test, 16000).waveforms] == [32000] * 2


# In memory


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.int32])
@pytest.mark.parametrize("beside", [False, True])
def test_a_column_of_arrays_is_read(kind: Any, beside: bool) -> None:
    waves = [tone(1600), tone(800, 880, 8000), tone(400)]
    scale = 1 if np.issubdtype(kind, np.floating) else np.iinfo(kind).max
    arrays, rates = [(wave * scale).astype(kind) for wave in waves], [16000, 8000, 16000]
    cells = [
        {"array": array, "sampling_rate": rate} for array, rate in zip(arrays, rates, strict=True)
    ]
    rows: dict[str, Any] = {"audio": arrays, "sampling_rate": rates} if beside else {"audio": cells}
    given = open_dataset(Dataset.from_dict({**rows, "label": ["no", "yes", "no"]}), kind="audio")
    found = read_clips(given, 16000)
    assert [len(each) for each in found.waveforms] == [1600, 1600, 400]
    assert np.abs(found.waveforms[0].numpy() / 32768 - waves[0]).max() < 1e-4
    listed = Clips.from_arrays(arrays, ["no", "yes", "no"], rates, 16000)
    for one, other in zip(found.waveforms, listed.waveforms, strict=True):
        assert (one.int() - other.int()).abs().max() <= 1
    assert listed.labels.tolist() == found.labels.tolist() and listed.names == found.names
    assert given.row_name(1) == "row 2 of the given data set [train]" and given.fingerprint()


def test_arrays_of_several_channels_are_averaged() -> None:
    left, right = tone(900), tone(900, 880)
    expected = (left + right) / 2
    for stereo in (np.stack([left, right]), np.stack([left, right], 1)):
        cells = [{"array": stereo.tolist(), "sampling_rate": 16000}] * 2
        given = open_dataset(Dataset.from_dict({"audio": cells, "label": [0, 1]}))
        for found in (read_clips(given, 16000), Clips.from_arrays([stereo] * 2, [0, 1], 16000)):
            assert np.abs(found.waveforms[0].numpy() / 32768 - expected).max() < 1e-4


def test_arrays_that_cannot_be_read_are_named() -> None:
    def column(*arrays: Any, **more: Any) -> Source:
        rows = {"audio": list(arrays), "label": [0, 1], **more}
        return open_dataset(Dataset.from_dict(rows), kind="audio")

    with pytest.raises(InputError, match=r"no column says at which sampling rate; add one called"):
        column([0.5], [0.25])
    with pytest.raises(InputError, match=r"whole numbers \(int64\) of an unknown range"):
        column([5], [6], sampling_rate=[8000, 8000])
    with pytest.raises(InputError, match=r"row 2 of column 'audio' is no recording"):
        column([[0.5, 0.5]], [[0.5], [0.25, 0.5]], sampling_rate=[8000, 8000])
    bad = column([0.5], [], sampling_rate=[8000, 8000])
    with pytest.raises(InputError, match=r"row 2 .* cannot be read \(the file holds no samples"):
        read_clips(bad, 16000)
    for rate in (0, None):
        bad = column([0.5], [0.5], sampling_rate=[8000, rate])
        with pytest.raises(InputError, match=r"row 2 .* cannot be read \(soundfile cannot decode"):
            read_clips(bad, 16000)
    with pytest.raises(InputError, match="2 recordings, 1 labels and 2 sampling rates do not fit"):
        Clips.from_arrays([tone(9), tone(9)], ["a"], 16000)
    with pytest.raises(InputError, match="the recordings are at 8000 to 16000 Hz; say by sampling"):
        Clips.from_arrays([tone(9), tone(9)], ["a", "b"], [8000, 16000])
    with pytest.raises(InputError, match="clip 1 is empty"):
        Clips.from_arrays([tone(9), tone(0)], ["a", "b"], 16000)


# Long ones


@pytest.mark.parametrize(("form", "subtype", "tolerance"), FORMATS)
def test_what_is_cut_is_the_beginning_of_the_whole(
    form: str, subtype: str, tolerance: float
) -> None:
    stereo = np.stack([tone(30000), tone(30000, 880)], 1)
    value = {"bytes": encoded(stereo, form=form, subtype=subtype), "path": None}
    whole = decode_audio(value, 16000)
    assert len(whole) == 30000
    assert torch.equal(decode_audio(value, 16000, max_seconds=1.25), whole[:20000])
    assert torch.equal(decode_audio(value, 16000, max_seconds=2), whole)
    assert len(decode_audio(value, 8000, max_seconds=1)) == 8000


@pytest.mark.filterwarnings("ignore:of . recordings")
def test_long_recordings_are_cut_counted_and_named() -> None:
    short, long = encoded(tone(4000, rate=8000), 8000), encoded(tone(96000, rate=8000), 8000)
    found = read_clips(source(short, b"", long, short, short), 16000, on_bad="skip")
    assert [len(waveform) for waveform in found.waveforms] == [8000, 160_000, 8000, 8000]
    assert found.rows == [0, 2, 3, 4] and found.labels.tolist() == [0, 0, 1, 0]
    assert found.max_seconds == 10 and len(found.skipped) == 1
    assert found.cut == ["row 3 of the given data set [train]: 12.0 s"]
    assert found.found() == (
        "clips last 0.5 to 10 s; 1 recording is cut to the first 10 s "
        "(row 3 of the given data set [train]: 12.0 s)"
    )
    told = read_clips(source(short, long), 16000, max_seconds=0.25)
    assert [len(waveform) for waveform in told.waveforms] == [4000, 4000]
    assert len(told.cut) == 2 and told.found().startswith("clips last 0.25 s; 2 recordings are cut")
    whole = read_clips(source(short, long), 16000, max_seconds=12)
    assert len(whole.waveforms[1]) == 192_000 and whole.cut == []


@pytest.mark.filterwarnings("ignore:of . recordings")
def test_what_is_long_depends_on_the_rest() -> None:
    usual, long = encoded(tone(1200, rate=400), 400), encoded(tone(4804, rate=400), 400)
    found = read_clips(source(usual, usual, long), 400)
    assert found.max_seconds == 12 and len(found.waveforms[2]) == 4800 and len(found.cut) == 1
    assert read_clips(source(usual, long, long), 400).cut == []


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_is_a_time(limit: float) -> None:
    with pytest.raises(InputError, match=r"^max_seconds=.* must be a time above 0"):
        read_clips(source(encoded(tone(99)), encoded(tone(99))), 16000, max_seconds=limit)
    with pytest.raises(InputError, match=r"^max_seconds=.* must be a time above 0"):
        decode_audio({"bytes": encoded(tone(99)), "path": None}, 16000, limit)


@given(samples=st.lists(st.integers(1, 3 * AT_ONCE), min_size=1, max_size=30))
def test_clips_are_listened_to_in_chunks_of_bounded_size(samples: list[int]) -> None:
    runs = list(chunks(samples))
    assert [row for first, last in runs for row in range(first, last)] == [*range(len(samples))]
    for first, last in runs:
        assert last - first == 1 or max(samples[first:last]) * (last - first) <= AT_ONCE


HOUR = """
import io, resource, sys
import numpy as np, soundfile
from datasets import Dataset
from resbackbones.data import open_dataset
from resbackbones.speech import AudioItems, Augment, ResidualFeatureExtractor

def silence(seconds):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(seconds * 8000, np.int16), 8000, format="FLAC")
    return {"bytes": file.getvalue(), "path": None}

recordings = [silence(1) for _ in range(24)] + [silence(3600)]
rows = {"audio": recordings, "label": ["no", "yes"] * 12 + ["no"]}
source = open_dataset(Dataset.from_dict(rows), kind="audio")
unit = 2**20 if sys.platform == "darwin" else 2**10
# What goes wrong ends here and not with the machine's memory.
resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
items = AudioItems(source, ResidualFeatureExtractor(), Augment(mixup=0.2))
batch = items.__getitems__(list(range(25)))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(items.cut), batch["input_features"].shape[2], (after - before) / unit)
"""


def test_an_hour_among_seconds_takes_little_memory() -> None:
    """Decoded whole and padded to the longest it would take 20,000."""
    pytest.importorskip("resource")
    ended = subprocess.run(
        [sys.executable, "-c", HOUR], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    cut, frames, megabytes = ended.stdout.split()
    assert (cut, frames) == ("1", "1008")  # ten seconds, in a multiple of 16
    assert float(megabytes) < 150
