"""`Masks`: a class for every pixel, kept encoded; `open_mask`: the numbers in a mask's file."""

import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from resbackbones.data.targets import Column, Target, refuse_faults
from resbackbones.errors import InputError

IGNORED = 255  # what a pixel of no class becomes, as everywhere in the field
LOOKED_AT = 1000  # masks, evenly spread, from which the numbers of the classes are learned


@dataclass(frozen=True)
class Masks(Target):
    """A class for every pixel of the image, in a mask of the size the image has as it is viewed.

    A cell is a mask's file, `{"bytes", "path"}`, and stays encoded: `decode` gives a mask's pixels
    as classes. Which numbers stand for classes is learned from up to 1,000 masks of the train
    split, evenly spread: their positions in `names` where all numbers are such, else the numbers in
    the order of the names. 255 is no class, as in Pascal VOC, unless it stands beside 0 alone, or
    beside others that are no positions either, as many in all as there are names.

    Attributes:
        names: of the classes; a class's number is its position. () for those that a file beside the
            data lists (`labels.json`, `classes.txt`, `codes.txt`), else the numbers in the masks.
        ignore: the number in the masks of pixels of no class (void); None for 255 where it is that.
        numbers: the number in the masks of each class; () as long as nothing was learned.

    >>> def encoded(pixels):
    ...     file = io.BytesIO()
    ...     PIL.Image.fromarray(np.array(pixels, dtype=np.uint8)).save(file, "png")
    ...     return {"bytes": file.getvalue(), "path": None}
    >>> masks = Column("mask", [encoded([[0, 255], [255, 0]])], "roads", "row {}".format)
    >>> target = Masks(("ground", "road")).learn(masks)
    >>> target.numbers, target.decode(masks.cells[0]).tolist()
    ((0, 255), [[0, 1], [1, 0]])
    """

    names: tuple[str, ...] = ()
    ignore: int | None = None
    numbers: tuple[int, ...] = ()

    role: ClassVar[str] = "mask"
    usual: ClassVar[tuple[str, ...]] = (
        *("mask", "masks", "label", "labels", "annotation", "segmentation", "segmentation_mask"),
        *("label_mask", "semantic_mask", "mask_file_name", "label_file_name"),
    )
    encoded: ClassVar[bool] = True

    def typed(self, feature: Any) -> bool:
        return type(feature).__name__ == "Image"

    def learn(self, train: Column) -> "Masks":
        found, ignore = _numbers(train), self.ignore
        names = self.names or train.listed or ()
        is_binary = found == [0, IGNORED] and len(names) in (0, 2)
        if ignore is None and IGNORED in found and not is_binary:
            in_order = 1 < len(found) == len(names) and found[-2] >= len(names)  # 0, 128, 255
            ignore = None if in_order else IGNORED
        classes = [number for number in found if number != ignore]
        positions = [number for number in range(len(names)) if number != ignore]
        if not names:
            names, numbers = tuple(map(str, classes)), tuple(classes)
            names = ("background", "foreground") if is_binary else names
        elif len(classes) == len(names) and not set(classes) <= set(positions):
            numbers = tuple(classes)
        else:  # one of the names may be that of the pixels of no class
            names, numbers = tuple(names[number] for number in positions), tuple(positions)
        if len(names) < 2 or len(names) > IGNORED:
            raise InputError(
                f"the masks of {train.split} have {len(names):,} classes "
                f"({_listed(classes) or 'none'}); expected 2 to {IGNORED}, each a number in the "
                "masks of its own"
            )
        learned = replace(self, names=names, numbers=numbers, ignore=ignore)
        if unknown := set(classes) - set(numbers):
            raise InputError(
                f"the masks of {train.split} hold the numbers {_listed(classes)}, but "
                f"{len(names)} classes are named, of the numbers {_listed(numbers)}; name a class "
                f"for {min(unknown)} too, or say that it is none with ignore={min(unknown)} "
                "(--ignore)"
            )
        return learned

    def faults(self, column: Column) -> dict[int, str]:
        missing = f"has no mask in column {column.name!r}"
        return {
            row: missing
            for row, cell in enumerate(column.cells)
            if cell is None or (cell["bytes"] is None and not cell["path"])
        }

    def values(self, column: Column) -> Sequence[dict[str, Any]]:
        """Each row's mask as it is kept, `{"bytes", "path"}`, read when it is asked for."""
        refuse_faults(self, column)
        return column.cells

    def decode(self, value: Any, size: tuple[int, int] | None = None) -> np.ndarray:
        """A mask's pixels as classes, uint8 `(H, W)`; 255 where there is none.

        Args:
            value: as `values` gives it.
            size: width and height of its image, where they are known.

        Raises:
            ValueError: what `open_mask` raises; a number that is no class's; another size.
        """
        if not self.numbers:
            raise ValueError("these masks know no column yet: use what `learn` gives")
        pixels = open_mask(value)
        if size is not None and pixels.shape != (size[1], size[0]):
            raise ValueError(
                f"its mask is {pixels.shape[1]}x{pixels.shape[0]} pixels, but the image is "
                f"{size[0]}x{size[1]}; give masks of the images' size"
            )
        table = np.full(max(int(pixels.max(initial=0)), *self.numbers) + 2, IGNORED + 1, np.int16)
        table[list(self.numbers)] = np.arange(len(self.numbers))
        if self.ignore is not None and 0 <= self.ignore < len(table):
            table[self.ignore] = IGNORED
        classes = table[pixels]
        if (unknown := classes > IGNORED).any():
            raise ValueError(
                f"its mask has the number {int(pixels[unknown].min())}, none of "
                f"{_listed(self.numbers)} of the classes"
            )
        return classes.astype(np.uint8)

    def describe(self, values: Sequence[dict[str, Any]]) -> str:
        """
        >>> Masks(("ground", "road"), 11, (0, 255)).describe([])
        "2 classes of pixels ('ground', 'road'; 0, 255 in the masks), 11 is no class"
        """
        known = ", ".join(map(repr, self.names[:4])) + ", …" * (len(self.names) > 4)
        said = ""
        if self.numbers != tuple(range(len(self.names))):
            said = f"; {_listed(self.numbers)} in the masks"
        void = "" if self.ignore is None else f", {self.ignore} is no class"
        return f"{len(self.names)} classes of pixels ({known}{said}){void}"


def open_mask(value: Any) -> np.ndarray:
    """The numbers in a mask, `(H, W)`, uint8 or, of more than 8 bits, int64, turned as its EXIF
    orientation says: the indices of a palette, not its colours; 0 and 1 of a mask of one bit; of
    three equal channels one.

    Args:
        value: `{"bytes", "path"}` (bytes None: they are in the file).

    Raises:
        ValueError: colours, a class per channel, a JPEG, or numbers that are not whole.
        OSError: no image, or a damaged one.
    """
    place = value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])
    with PIL.Image.open(place) as image:
        if image.format in ("JPEG", "JPEG2000", "MPO"):
            raise ValueError(
                f"its mask is a {image.format}, which blurs the numbers of the classes; save masks "
                "as PNG"
            )
        pixels = np.asarray(PIL.ImageOps.exif_transpose(image))
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.ndim == 3:
        colours = pixels[..., : 1 if image.mode in ("LA", "La", "PA") else 3]
        if (colours != colours[..., :1]).any():
            raise ValueError(
                f"its mask is of mode {image.mode} with colours or a class per channel; expected "
                "one number per pixel, as in a PNG of mode L or P"
            )
        pixels = colours[..., 0]
    if pixels.dtype == np.uint8:
        return pixels
    numbers = pixels.astype(np.int64)
    if (numbers != pixels).any() or numbers.min(initial=0) < 0:
        raise ValueError("its mask holds numbers that are no whole ones from 0 up")
    return numbers


def _numbers(column: Column) -> list[int]:
    """The numbers in up to `LOOKED_AT` masks, ascending. Damaged ones are named when they are
    decoded.

    Raises:
        InputError: not one mask can be read.
    """
    rows = np.linspace(0, len(column.cells) - 1, min(LOOKED_AT, len(column.cells))).astype(int)
    errors: list[str] = []

    def look(row: int) -> set[int]:
        try:
            return set(np.unique(open_mask(column.cells[row])).tolist())
        except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
            errors.append(f"{column.row_name(row)}: {error}")
            return set()

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = Counter(number for numbers in pool.map(look, rows.tolist()) for number in numbers)
    if not found:
        raise InputError(
            f"not one of {len(rows)} masks of {column.split} can be read ({errors[0]}); check the "
            f"files and the column {column.name!r} (--label-column)"
        )
    return sorted(found)


def _listed(numbers: Sequence[int]) -> str:
    """
    >>> _listed([0, 1, 2, 3, 255]), _listed([1, 2])
    ('0 to 3, 255', '1, 2')
    """
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    said = [
        f"{part[0]} to {part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts
    ]
    return ", ".join(said[:8]) + ", …" * (len(said) > 8)
