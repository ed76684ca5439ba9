"""`Stream`: samples in Parquet and tar files, more than memory holds.

    stream = Stream("shards/", decode, collate=collate)
    for batch in DataLoader(stream.part(64, seed=0, epoch=0), batch_size=None, num_workers=4):

Shards are groups of samples that can be read by themselves: the row groups of a Parquet file, runs
of neighbours in a tar. An epoch permutes the groups, cuts them into blocks of some, and permutes
the samples of each block. That fixes the whole order by (seed, epoch), with nothing read:
a rank takes its stretch of it, a worker its batches, and a resumed run the rest.
"""

import contextlib
import re
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from tqdm import tqdm

from resbackbones.data.items import fingerprint
from resbackbones.data.paths import reason
from resbackbones.data.reading import check_on_bad
from resbackbones.errors import InputError

RUN = 64  # samples of a tar that are found, and read, together
MIXED = 4  # groups to a block, at least: those of a shard sorted by class are each of one class
STEM = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # "a/b.c.d" is sample "a/b", key "c.d"

Sample = dict[str, Any]


class BadSample(UserWarning):
    """A sample that cannot be decoded and was left out."""


class Stream:
    """Samples in shards, as whole batches.

    A Parquet sample holds the columns of a row. A tar sample holds the bytes of the neighbouring
    files that share a stem, by what follows the first dot of their name, in lower case
    ("cat/12.jpg" and "cat/12.cls": "jpg" and "cls"), as webdataset lays them out. Both also hold
    "__key__" (shard, row from 1 and stem: for messages) and "__seed__", "__epoch__" and "__row__",
    from which `draws(seed, epoch, [row], count)` takes the randomness of an augmentation.

    At any time a process holds what it takes from one block, undecoded: `shuffle` samples or
    somewhat more, and 4 groups or more, divided over the workers; and one Parquet row group while
    that is read. So write Parquet in row groups of some hundred samples.

    Args:
        shards: a folder, all of whose .parquet and .tar files are taken, sorted by name; or files.
        decode: from a sample to an item. Whatever it raises makes the sample a bad one.
        collate: from a list of items to a batch, ready for `model(**batch)`.
        shuffle: samples that are mixed at a time, or more; 0 keeps all in order.
        on_bad: "error" stops at the first bad sample, "skip" leaves it out of its batch, with a
            warning.

    Raises:
        InputError: no shards, one that cannot be read, or a tar whose stems lie apart.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        decode: Callable[[Sample], Any],
        *,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        shuffle: int = 2000,
        on_bad: str = "error",
    ) -> None:
        check_on_bad(on_bad)
        if shuffle < 0:
            raise InputError(f"shuffle={shuffle} is no number of samples; give one from 0 up")
        self.shards = _files(shards)
        self.decode, self.collate = decode, collate
        self.shuffle, self.on_bad = shuffle, on_bad
        self.groups: list[_Group] = []
        self._before = [0]  # samples before each shard, and in all
        for shard, path in enumerate(tqdm(self.shards, "finding samples", unit="file", delay=2)):
            first = 0
            for place, count in _kind(path).groups(path):
                self.groups.append(_Group(shard, place, first, count))
                first += count
            self._before.append(self._before[-1] + first)
        if not len(self):
            named = ", ".join(path.name for path in self.shards[:3])
            raise InputError(f"there are no samples in {named}; name shards that have some")

    def __len__(self) -> int:
        """Samples in all shards."""
        return self._before[-1]

    def steps(self, size: int, world: int = 1) -> int:
        """Batches per epoch of each rank: all have as many."""
        return -(-len(self) // (size * world))

    def part(
        self, size: int, seed: int, epoch: int, rank: int = 0, world: int = 1, start: int = 0
    ) -> "Part":
        """The batches of one rank in one epoch, from number `start` on, for a
        `DataLoader(…, batch_size=None)` with any number of workers: the same in the same order.

        An epoch's samples are cut into `steps(size, world)` batches per rank, of equal size, give
        or take one sample: each comes exactly once. (With fewer samples than batches, some come
        twice: no batch is empty.) What comes before `start` is not decoded, and hardly read.
        """
        if size < 1 or start < 0 or not 0 <= rank < world:
            raise InputError(
                f"size={size}, start={start}, rank={rank} of world={world} is out of range; give "
                "sizes from 1 up, starts from 0 up, and ranks below the world"
            )
        return Part(self, size, seed, epoch, rank, world, start)

    def fingerprint(self) -> str:
        """What tells this stream from others, the same on every machine: the shards' names, sizes
        and ends, the groups, and how far they are mixed."""

        def parts() -> Iterator[bytes | str]:
            yield f"{type(self).__name__} {self.shuffle} {[tuple(group) for group in self.groups]}"
            for path in self.shards:
                size = path.stat().st_size
                yield f"{path.name} {size}"
                with path.open("rb") as file:
                    yield file.read(2**16)
                    file.seek(max(0, size - 2**16))
                    yield file.read()

        return fingerprint(parts())

    def _samples(self, positions: Iterable[int], seed: int, epoch: int) -> Iterator[Sample]:
        """The samples at these places, which never fall, of the epoch's order."""
        blocks = self._blocks(seed, epoch)
        ends = np.cumsum([sum(self.groups[g].size for g in block) for block in blocks])

        def block_of(position: int) -> int:
            return int(np.searchsorted(ends, position, side="right"))

        for number, inside in groupby(positions, block_of):
            groups = [self.groups[index] for index in blocks[number]]
            before = np.cumsum([0] + [group.size for group in groups])
            order = np.arange(before[-1])
            if self.shuffle:
                order = np.random.default_rng((seed, epoch, number)).permutation(order)
            wanted = order[np.fromiter(inside, np.int64) - (ends[number] - before[-1])]
            places = np.unique(wanted)
            by_group = np.split(places, np.searchsorted(places, before[1:-1]))
            held: dict[int, Sample] = {}  # the block before goes here, before this one is read
            for group, offset, there in zip(groups, before[:-1], by_group, strict=True):
                held.update(zip(there.tolist(), self._read(group, there - offset), strict=True))
            for place in wanted.tolist():
                yield {**held[place], "__seed__": seed, "__epoch__": epoch}

    def _blocks(self, seed: int, epoch: int) -> list[np.ndarray]:
        """The epoch's order of the groups, cut into what is in memory together."""
        count = len(self.groups)
        if not self.shuffle:
            return np.array_split(np.arange(count), count)
        order = np.random.default_rng((seed, epoch)).permutation(count)
        return np.array_split(order, max(1, min(len(self) // self.shuffle, count // MIXED)))

    def _read(self, group: "_Group", rows: np.ndarray) -> Iterator[Sample]:
        """These rows, which rise, of a group."""
        if not len(rows):
            return
        path = self.shards[group.shard]
        read = _kind(path).read(path, group.place, rows.tolist())
        for row, (stem, sample) in zip((group.first + rows).tolist(), read, strict=True):
            name = f"row {row + 1} of {path}"
            number = self._before[group.shard] + row
            yield {**sample, "__key__": f"{name} ({stem})" if stem else name, "__row__": number}

    def _decoded(self, samples: Iterable[Sample]) -> list[Any]:
        """The items of a batch; of a bad sample, see `on_bad`."""
        items = []
        for sample in samples:
            try:
                items.append(self.decode(sample))
            except MemoryError:
                raise
            except Exception as error:  # whatever a decoder makes of a broken sample
                said = f"{sample['__key__']} cannot be read ({reason(error)})"
                if self.on_bad == "error":
                    raise InputError(
                        f"{said}; repair or remove it, or leave bad samples out (--on-bad skip)"
                    ) from error
                warnings.warn(f"{said} and is left out", BadSample, stacklevel=1)
        if not items:
            raise InputError(f"{said}, as all samples of its batch; check what decodes them")
        return items


@dataclass(frozen=True)
class Part(torch.utils.data.IterableDataset):
    """Batches of a stream; see `Stream.part`."""

    stream: Stream
    size: int
    seed: int
    epoch: int
    rank: int
    world: int
    start: int

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        stream = self.stream
        steps = stream.steps(self.size, self.world)
        worker = torch.utils.data.get_worker_info()
        own, workers = (worker.id, worker.num_workers) if worker else (0, 1)

        def span(step: int) -> range:
            """Where in the epoch's order the samples of a batch are."""
            number, count = self.rank * steps + step, self.world * steps
            first = number * len(stream) // count
            return range(first, max(first + 1, (number + 1) * len(stream) // count))

        mine = range(self.start + own, steps, workers)
        samples = stream._samples(chain.from_iterable(map(span, mine)), self.seed, self.epoch)
        for step in mine:
            yield stream.collate(stream._decoded(islice(samples, len(span(step)))))


class _Group(NamedTuple):
    """Samples that are read together."""

    shard: int
    place: int  # the row group's number; where in the tar they begin, in bytes
    first: int  # the first one's row in the shard
    size: int


class _Parquet:
    @staticmethod
    def groups(path: Path) -> Iterator[tuple[int, int]]:
        with _readable(path):
            metadata = pyarrow.parquet.read_metadata(path)
        for place in range(metadata.num_row_groups):
            if count := metadata.row_group(place).num_rows:
                yield place, count

    @staticmethod
    def read(path: Path, place: int, rows: list[int]) -> Iterator[tuple[str, Sample]]:
        with _readable(path), pyarrow.parquet.ParquetFile(path) as file:
            # Workers are what runs side by side; threads started before them would not be there.
            table = file.read_row_group(place, use_threads=False).take(rows)
        for sample in table.to_pylist():
            yield "", sample


class _Tar:
    @staticmethod
    def groups(path: Path) -> Iterator[tuple[int, int]]:
        seen: set[str] = set()
        places: list[int] = []
        with _readable(path), path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for stem, members in _stems(tar):
                if stem in seen:
                    raise InputError(
                        f"the files of sample {stem!r} lie apart in {path}; write those that share "
                        "a stem next to one another"
                    )
                seen.add(stem)
                places.append(min(member.offset for member in members.values()))
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
        for index in range(0, len(places), RUN):
            yield places[index], min(RUN, len(places) - index)

    @staticmethod
    def read(path: Path, place: int, rows: list[int]) -> Iterator[tuple[str, Sample]]:
        with _readable(path), path.open("rb") as file:
            file.seek(place)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for row, (stem, members) in zip(range(rows[-1] + 1), _stems(tar), strict=False):
                    if row in rows:
                        yield stem, {key: _content(tar, of) for key, of in members.items()}


def _stems(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The samples of a tar: stem, and files by key."""

    def files() -> Iterator[tuple[str, str, tarfile.TarInfo]]:
        while (member := tar.next()) is not None:
            vars(tar)["members"].clear()  # it would keep them all
            if member.isfile() and (named := STEM.fullmatch(member.name)):
                yield named[1], named[2].lower(), member

    for stem, found in groupby(files(), lambda file: file[0]):
        members: dict[str, tarfile.TarInfo] = {}
        for _, key, member in found:
            if key in members:
                raise tarfile.ReadError(f"{member.name!r} is there twice")
            members[key] = member
        yield stem, members


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # `_stems` gives regular files
    return file.read()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the shard in what goes wrong with it."""
    try:
        yield
    except (tarfile.TarError, pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({reason(error)}); write it again, or leave it out"
        ) from error


def _kind(path: Path) -> type[_Parquet] | type[_Tar]:
    return _Parquet if path.suffix == ".parquet" else _Tar


def _files(shards: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(shards, str | Path) and Path(shards).is_dir():
        found = sorted(p for p in Path(shards).iterdir() if p.suffix in (".parquet", ".tar"))
    else:
        found = [Path(p) for p in ([shards] if isinstance(shards, str | Path) else shards)]
    if not found:
        raise InputError(f"there are no shards in {shards}; give .parquet or .tar files")
    for path in found:
        if path.suffix not in (".parquet", ".tar"):
            raise InputError(
                f"{path} is no shard; give .parquet or uncompressed .tar files, or a folder of them"
            )
        if not path.is_file():
            raise InputError(f"{path} does not exist; give .parquet or .tar files")
    return found
