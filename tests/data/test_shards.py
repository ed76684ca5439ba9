"""Streams: every sample once, the same whatever the workers, from any batch on, in flat memory."""

import io
import subprocess
import sys
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from resbackbones.data import BadSample, Stream, draws
from resbackbones.errors import InputError

GROUP = 20  # rows per row group


def parquet(path: Path, first: int, count: int, group: int = GROUP, width: int = 0) -> Path:
    numbers = range(first, first + count)
    table = pyarrow.table({"number": numbers, "content": [bytes(width)] * count})
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def numbered(path: Path, first: int, count: int) -> Path:
    files: dict[str, bytes] = {}
    for number in range(first, first + count):
        files |= {f"all/{number}.txt": str(number).encode(), f"all/{number}.Seg.PNG": b"image"}
    return tar(path, files)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """190 samples, numbered in the order of the files: a tar of 150 and two Parquet files."""
    folder = tmp_path_factory.mktemp("shards")
    numbered(folder / "a.tar", 0, 150)
    parquet(folder / "b.parquet", 150, 39)
    parquet(folder / "c.parquet", 189, 1)
    (folder / "notes.txt").write_text("no shard")
    return folder


def number(sample: dict[str, Any]) -> int:
    return int(sample["txt"]) if "txt" in sample else sample["number"]


def row(sample: dict[str, Any]) -> tuple[int, int]:
    return number(sample), sample["__row__"]


def collate(items: list[Any]) -> dict[str, torch.Tensor]:
    return {"number": torch.tensor(items)}


def stream(where: Any, decode: Callable[[Any], Any] = number, **options: Any) -> Stream:
    return Stream(where, decode, collate=collate, **options)


def batches(part: Any, workers: int = 0) -> list[list[int]]:
    loader = DataLoader(part, batch_size=None, num_workers=workers)
    return [batch["number"].tolist() for batch in loader]


@settings(max_examples=25)
@given(
    size=st.integers(1, 300),
    world=st.integers(1, 4),
    shuffle=st.sampled_from([0, 1, 70, 1000]),
    epoch=st.integers(0, 5),
)
def test_every_sample_comes_once(
    shards: Path, size: int, world: int, shuffle: int, epoch: int
) -> None:
    whole = stream(shards, shuffle=shuffle)
    assert len(whole) == 190
    steps = whole.steps(size, world)
    found = [batches(whole.part(size, 0, epoch, rank, world)) for rank in range(world)]
    assert {len(rank) for rank in found} == {steps}
    sizes = {len(batch) for rank in found for batch in rank}
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    counts = Counter(row for rank in found for batch in rank for row in batch)
    assert set(counts) == set(range(190))
    assert set(counts.values()) == {1} or steps * world > 190


def test_without_shuffling_all_keep_their_order(shards: Path) -> None:
    found = batches(stream(shards, shuffle=0).part(16, 0, 0))
    assert [number for batch in found for number in batch] == list(range(190))


def test_with_few_samples_no_batch_is_empty(tmp_path: Path) -> None:
    few = stream(parquet(tmp_path / "few.parquet", 0, 3))
    found = [batches(few.part(1, 0, 0, rank, 2)) for rank in range(2)]
    assert [len(batch) for rank in found for batch in rank] == [1, 1, 1, 1]
    assert {batch[0] for rank in found for batch in rank} == {0, 1, 2}


def test_samples_mix(shards: Path, tmp_path: Path) -> None:
    """Neighbours part, across groups too; each epoch and seed has an order of its own."""
    mixed = stream(parquet(tmp_path / "sorted.parquet", 0, 1000), shuffle=200)
    found = [batches(mixed.part(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    for epoch in found:
        order = np.array(epoch).ravel()
        assert (np.abs(np.diff(order)) == 1).mean() < 0.03
        groups = [len({number // GROUP for number in batch}) for batch in epoch]
        assert min(groups) >= 7  # of the ten in a block
    company = [{number // GROUP for batch in epoch[:4] for number in batch} for epoch in found]
    assert all(a != b for i, a in enumerate(company) for b in company[:i])
    one = stream(parquet(tmp_path / "one.parquet", 0, 20))
    assert (
        len({str(batches(one.part(20, seed, epoch))) for seed in (0, 1) for epoch in (0, 1)}) == 4
    )
    # However large the groups are, four of them mix.
    large = stream(parquet(tmp_path / "large.parquet", 0, 1200, group=100), shuffle=1)
    assert {len({n // 100 for n in batch}) for batch in batches(large.part(40, 0, 0))} == {4}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_any_workers_and_any_start_give_the_same(shards: Path, workers: int, world: int) -> None:
    whole = stream(shards, shuffle=60)
    for rank in range(world):
        uninterrupted = batches(whole.part(16, 3, 1, rank, world))
        for start in (0, 1, 4, whole.steps(16, world)):
            part = whole.part(16, 3, 1, rank, world, start)
            assert batches(part, workers) == uninterrupted[start:]


def test_what_is_skipped_is_not_decoded(shards: Path) -> None:
    decoded = []

    def decode(sample: Any) -> int:
        decoded.append(number(sample))
        return decoded[-1]

    last = batches(stream(shards, decode).part(16, 0, 0, start=10))
    assert decoded == [number for batch in last for number in batch]
    assert len(decoded) == 190 - 10 * 190 // 12


def test_a_sample_holds_its_content_place_and_seeds(shards: Path) -> None:
    samples: list[dict[str, Any]] = []
    part = stream(shards, lambda sample: samples.append(sample) or 0, shuffle=0).part(190, 7, 5)
    batches(part)
    name = f"row 3 of {shards / 'a.tar'} (all/2)"
    assert samples[2] == {
        "txt": b"2",
        "seg.png": b"image",
        "__key__": name,
        "__row__": 2,
        "__seed__": 7,
        "__epoch__": 5,
    }
    assert samples[189]["__key__"] == f"row 1 of {shards / 'c.parquet'}"
    assert [sample["__row__"] for sample in samples] == list(range(190))


def test_augmentation_depends_on_seed_epoch_and_sample_alone(shards: Path) -> None:
    def decode(sample: dict[str, Any]) -> list[float]:
        seed, epoch, row = (sample[f"__{name}__"] for name in ("seed", "epoch", "row"))
        return [number(sample), *draws(seed, epoch, [row], 1)[0].tolist()]

    def drawn(seed: int, epoch: int, **options: Any) -> dict[int, float]:
        found = batches(stream(shards, decode, **options).part(32, seed, epoch))
        return dict(item for batch in found for item in batch)  # type: ignore[misc]

    assert drawn(0, 1) == drawn(0, 1, shuffle=0)
    assert not set(drawn(0, 1).values()) & set(drawn(0, 2).values())


def test_tars_are_read_as_webdataset_lays_them_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in (
            "folder",
            "x.y/.hidden",
            "x.y/README",
            "x.y/a.b.c",
            "x.y/a.D",
            "ü" * 120 + ".d",
        ):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name == "folder" else tarfile.REGTYPE
            archive.addfile(member)
    keys: list[list[str]] = []
    part = stream(tmp_path / "a.tar", lambda s: keys.append(sorted(s)[4:]) or 0, shuffle=0)
    batches(part.part(9, 0, 0))
    assert keys == [["b.c", "d"], ["d"]]


def test_flac_in_a_tar(tmp_path: Path) -> None:
    def flac(hertz: int) -> bytes:
        file = io.BytesIO()
        tone = np.sin(np.arange(800) * 2 * np.pi * hertz / 8000)
        soundfile.write(file, tone, 8000, format="FLAC")
        return file.getvalue()

    def decode(sample: dict[str, Any]) -> int:
        waveform, rate = soundfile.read(io.BytesIO(sample["flac"]))
        assert rate == 8000 and int(sample["cls"]) == np.abs(np.fft.rfft(waveform)).argmax()
        return int(sample["cls"])

    tones = range(10, 200)  # in periods per clip
    files = {
        f"{n}.{key}": of for n in tones for key, of in (("flac", flac(n * 10)), ("cls", b"%d" % n))
    }
    found = batches(stream(tar(tmp_path / "tones.tar", files), decode).part(32, 0, 0))
    assert sorted(n for batch in found for n in batch) == list(tones)


def test_bad_samples_are_named_or_left_out(shards: Path) -> None:
    def decode(sample: dict[str, Any]) -> int:
        if number(sample) in (5, 160):
            raise ValueError("no picture\nsecond line")
        return number(sample)

    with pytest.raises(
        InputError, match=r"row 6 of .*a.tar \(all/5\) cannot be read \(no picture\)"
    ):
        batches(stream(shards, decode, shuffle=0).part(16, 0, 0))
    with pytest.warns(BadSample) as warned:
        found = batches(stream(shards, decode, on_bad="skip").part(16, 0, 0))
    assert sorted(n for batch in found for n in batch) == sorted({*range(190)} - {5, 160})
    said = sorted(str(warning.message) for warning in warned)
    assert len(said) == 2
    assert f"row 11 of {shards / 'b.parquet'} cannot be read (no picture)" in said[0]

    def refuse(sample: dict[str, Any]) -> int:
        raise ValueError("no picture")

    with pytest.warns(BadSample), pytest.raises(InputError, match="all samples of its batch"):
        batches(stream(shards, refuse, on_bad="skip").part(16, 0, 0))

    def exhaust(sample: dict[str, Any]) -> int:
        raise MemoryError

    with pytest.raises(MemoryError):
        batches(stream(shards, exhaust, on_bad="skip").part(16, 0, 0))


def test_a_fingerprint_tells_streams_apart(shards: Path, tmp_path: Path) -> None:
    def copy(name: str, changed: bytes = b"") -> Path:
        path = tmp_path / changed.hex() / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(
            (shards / "a.tar").read_bytes().replace(b"149\0", (changed or b"149") + b"\0")
        )
        return path

    first = stream(copy("a.tar")).fingerprint()
    assert first == stream(shards / "a.tar").fingerprint()
    others = [
        stream(copy("a.tar"), shuffle=1),
        stream(copy("b.tar")),
        stream(copy("a.tar", b"150")),
        stream(parquet(tmp_path / "c.parquet", 0, 150)),
        stream([copy("a.tar"), copy("b.tar")]),
    ]
    assert len({first, *(other.fingerprint() for other in others)}) == 6


def test_broken_shards_are_named(shards: Path, tmp_path: Path) -> None:
    content = (shards / "a.tar").read_bytes()
    header = content.index(b"all/100.txt")
    damaged = bytearray(content)
    damaged[header + 150] ^= 1  # its check sum
    for name, broken in {
        "cut": content[: header - 512 * 3 - 5],
        "cut_in_header": content[: header + 100],
        "damaged": bytes(damaged),
        "empty": b"",
        "other": b"no tar" * 1000,
    }.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(broken)
        with pytest.raises(InputError, match=rf"{name}.tar cannot be read \(.*write it again"):
            stream(path)
    bad = tmp_path / "bad.parquet"
    bad.write_bytes((shards / "b.parquet").read_bytes()[:-10])
    with pytest.raises(InputError, match=r"bad.parquet cannot be read"):
        stream(bad)
    late = stream(parquet(bad, 0, 100))
    parquet(bad, 0, 10)
    with pytest.raises(InputError, match=r"bad.parquet cannot be read"):
        batches(late.part(16, 0, 0))


def test_what_is_no_stream_is_refused(shards: Path, tmp_path: Path) -> None:
    apart = tar(tmp_path / "apart.tar", {"a.x": b"", "b.x": b"", "a.y": b""})
    twice = tar(tmp_path / "twice.tar", {"a.x": b"", "a.X": b""})
    empty = tar(tmp_path / "empty.tar", {"README": b""})
    (tmp_path / "none").mkdir()
    for where, says in [
        (apart, "sample 'a' lie apart in .*apart.tar"),
        (twice, "'a.X' is there twice"),
        ([empty, empty], "no samples"),
        (empty, "no samples"),
        (tmp_path / "none", "no shards in"),
        ([], "no shards in"),
        (tmp_path / "a.tar", "does not exist"),
        (tmp_path / "a.tar.gz", "is no shard"),
    ]:
        with pytest.raises(InputError, match=says):
            stream(where)
    with pytest.raises(InputError, match="did you mean 'skip'"):
        stream(shards, on_bad="skp")
    with pytest.raises(InputError, match="shuffle=-1"):
        stream(shards, shuffle=-1)
    for wrong in ({"size": 0}, {"size": 4, "start": -1}, {"size": 4, "rank": 2, "world": 2}):
        with pytest.raises(InputError, match="out of range"):
            stream(shards).part(**{"seed": 0, "epoch": 0, **wrong})


def test_memory_does_not_grow_with_the_stream(tmp_path: Path) -> None:
    """20 MB of samples, in blocks of 2.5 MB."""
    for index in range(10):
        numbered(tmp_path / f"{index}.tar", index * 50, 50)
        parquet(tmp_path / f"{index}.parquet", 500 + index * 200, 200, 50, width=10_000)
    whole = stream(tmp_path, shuffle=250)
    steps = whole.steps(50)
    peaks: list[int] = []

    def taken(some: Iterator[Any], count: int) -> None:
        tracemalloc.reset_peak()
        for _ in range(count):
            next(some)
        peaks.append(tracemalloc.get_traced_memory()[1])

    tracemalloc.start()
    try:
        running = iter(whole.part(50, 0, 0))
        taken(running, steps // 4)
        taken(running, steps - steps // 4)
    finally:
        tracemalloc.stop()
    assert peaks[0] < 5e6
    assert peaks[1] < peaks[0] + 1e6


def test_finding_samples_keeps_their_places_alone(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.tar", 0, 1000)
    tracemalloc.start()
    try:
        stream(path)
        assert tracemalloc.get_traced_memory()[1] < 5e5  # of 2,000 files
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_process_stays_small_over_a_hundred_thousand_samples(tmp_path: Path, kind: str) -> None:
    """All that the process holds, Arrow's memory too: 200 MB of samples."""
    for index in range(20):
        if kind == "parquet":
            parquet(tmp_path / f"{index:02}.parquet", index * 5000, 5000, 100, width=2000)
        else:
            files = {f"{n}.bin": bytes(2000) for n in range(index * 5000, index * 5000 + 5000)}
            tar(tmp_path / f"{index:02}.tar", files)
    code = f"""
from pathlib import Path
from resbackbones.data import Stream

def peak():  # of this program alone, which `getrusage` does not tell
    (line,) = (l for l in Path("/proc/self/status").open() if l.startswith("VmHWM"))
    return int(line.split()[1]) // 1024

stream = Stream({str(tmp_path)!r}, lambda sample: 1, collate=lambda items: {{"n": len(items)}})
steps = stream.steps(50)
count = 0
for step, batch in enumerate(stream.part(50, 0, 0)):
    count += batch["n"]
    if step in (0, steps // 4, steps - 1):
        print(peak())
print(count)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, quarter, last, count = map(int, run.stdout.split())
    print(f"{kind}: {first} MB at the first batch, {quarter} a quarter in, {last} at the end")
    assert count == 100_000
    assert last < quarter + 20
    assert last < first + 60
