"""Recordings are decoded, cut and counted, or named."""

import io
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

from resbackbones.data import Source, open_dataset
from resbackbones.errors import InputError
from resbackbones.speech import AudioItems, ResidualFeatureExtractor, decode, read_clips
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
        (without_length(encoded(tone(9000), form="FLAC")), "header does not say how long it is"),
    ],
    ids=["0-bytes", "no-sample", "wav", "header", "flac", "ogg", "mp3", "text", "nan", "no-length"],
)
def test_bad_recordings_are_named_or_skipped(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode({"bytes": content, "path": None}, 16000)
    with pytest.raises(InputError, match=message):
        decode({"bytes": content, "path": None}, 16000, max_seconds=3600)
    recordings = source(encoded(tone(800)), content, encoded(tone(900)), labels=(1, 0, 1))
    with pytest.raises(InputError, match=rf"row 2 of .* cannot be read \(.*{message}"):
        read_clips(recordings, 16000)
    found = read_clips(recordings, 16000, on_bad="skip")
    assert [len(waveform) for waveform in found.waveforms] == [800, 900]
    assert found.rows == [0, 2] and found.labels.tolist() == [1, 1] and len(found) == 2
    assert len(found.skipped) == 1 and "row 2" in found.skipped[0]
    items = AudioItems(recordings, ResidualFeatureExtractor(), on_bad="skip")
    assert len(items) == 2 and items.rows == [0, 2] and items.skipped == found.skipped


# Long ones


@pytest.mark.parametrize(("form", "subtype", "tolerance"), FORMATS)
def test_what_is_cut_is_the_beginning_of_the_whole(
    form: str, subtype: str, tolerance: float
) -> None:
    stereo = np.stack([tone(30000), tone(30000, 880)], 1)
    value = {"bytes": encoded(stereo, form=form, subtype=subtype), "path": None}
    whole = decode(value, 16000)
    assert len(whole) == 30000
    assert torch.equal(decode(value, 16000, max_seconds=1.25), whole[:20000])
    assert torch.equal(decode(value, 16000, max_seconds=2), whole)
    assert len(decode(value, 8000, max_seconds=1)) == 8000


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
        decode({"bytes": encoded(tone(99)), "path": None}, 16000, limit)


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
    assert (cut, frames) == ("1", "1001")
    assert float(megabytes) < 150
