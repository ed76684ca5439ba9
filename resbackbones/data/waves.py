"""Recordings that a table holds as numbers: they become WAV files, which everything else reads."""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow

from resbackbones.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

RATES = ("sampling_rate", "sample_rate", "rate")  # what a column of sampling rates is called
# Of a WAV file: the number of a format, PCM or floating point, and bits.
FORMATS = {"uint8": (1, 8), "int16": (1, 16), "int32": (1, 32), "float32": (3, 32)}


def holds_waves(feature: Any) -> bool:
    """Whether a column's type (of `datasets`) is `{"array", "sampling_rate"}` or lists of
    numbers."""
    if isinstance(feature, dict):
        return {"array", "sampling_rate"} <= set(feature) and _numbers(feature["array"]) is not None
    return _numbers(feature) is not None


def _numbers(feature: Any) -> str | None:
    """The type of the numbers in lists, or in lists of lists, as `datasets` calls it."""
    for _ in range(2):
        feature = getattr(feature, "feature", None)
        kind = getattr(feature, "dtype", None)
        if isinstance(kind, str) and kind.startswith(("int", "uint", "float")):
            return kind
    return None


def encode_waves(dataset: "Dataset", column: str) -> list[dict[str, Any] | None]:
    """A column of recordings as `{"bytes", "path"}`, in WAV, None where a row has none.

    Each is a list of samples of one channel, or a list of lists, the smaller axis of which is the
    channels; at the rate beside it, in Hz.

    Raises:
        InputError: no sampling rate, or whole numbers whose range nobody knows.
    """
    feature = dataset.features[column]
    together = isinstance(feature, dict)
    kind = _numbers(feature["array"] if together else feature)
    names = {name.strip().lower(): name for name in dataset.column_names}
    rate_column = next((names[name] for name in RATES if name in names), None)
    if not together and rate_column is None:
        raise InputError(
            f"column {column!r} holds samples, but no column says at which sampling rate; add one "
            f"called {RATES[0]!r}, in Hz"
        )
    if kind not in FORMATS and not str(kind).startswith("float"):
        raise InputError(
            f"column {column!r} holds whole numbers ({kind}) of an unknown range; give samples "
            "from -1 to 1, or of type int16 or int32"
        )
    columns = [column] if together else [column, str(rate_column)]
    table = dataset.select_columns(columns).with_format("arrow")
    return list(_encoded(table, columns, kind if kind in FORMATS else "float32"))


def _encoded(table: Any, columns: list[str], kind: str) -> Iterator[dict[str, Any] | None]:
    for row, cells in enumerate(_cells(table, columns)):
        array, rate = cells[0], cells[-1]
        if len(cells) == 1 and array.is_valid:
            array, rate = array["array"], array["sampling_rate"]
        if not array.is_valid:
            yield None
            continue
        nested = pyarrow.types.is_nested(array.values.type)
        try:
            samples = np.array(array.as_py() if nested else array.values.to_numpy(), kind)
        except ValueError as error:  # lists of different lengths, or numbers that are missing
            raise InputError(
                f"row {row + 1} of column {columns[0]!r} is no recording ({error}); give each "
                "channel as many samples"
            ) from error
        yield {"bytes": wav(samples, rate.as_py() or 0), "path": None}


def _cells(table: Any, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(table), 64):
        part = table[start : start + 64]
        yield from zip(*(part.column(name) for name in columns), strict=True)


def wav(samples: np.ndarray, rate: int) -> bytes:
    """Samples `(n,)` or, of several channels, `(n, c)` or `(c, n)`, as a WAV file.

    >>> len(wav(np.zeros((2, 100), np.float32), 16000))
    844
    """
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    channels = samples.shape[1] if samples.ndim == 2 else 1
    form, bits = FORMATS[samples.dtype.name]
    content = np.ascontiguousarray(samples).astype(samples.dtype.newbyteorder("<")).tobytes()
    size = channels * bits // 8
    head = struct.pack("<HHIIHH", form, channels, rate, rate * size, size, bits)
    body = b"fmt " + struct.pack("<I", len(head)) + head
    body += b"data" + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body
