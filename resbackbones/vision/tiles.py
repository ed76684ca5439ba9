"""An image larger than memory, predicted tile by tile with the outcome of the whole.

A pixel's class depends on the pixels around it as far as the net reaches. A tile that reads so much
more than its own, and begins where every map of the net has a position, gives its own pixels the
logits that the whole image gives them.
"""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError
from resbackbones.vision.decoders import Decoder, Reach, Stride, reach_enlarged

Part = tuple[slice, slice]


class Approximate(UserWarning):
    """An image was predicted in tiles that do not give what the whole image gives."""


def reach_of(
    spec: BackboneSpec, decoder: Decoder, strides: Sequence[Stride], stride: Stride
) -> tuple[Reach, Reach]:
    """Pixels before and after its own, down and across, that a pixel's logits depend on at most;
    infinite where something averages over the whole image, or nobody has counted.

    Args:
        strides: of the features.
        stride: of the decoder's map.
    """

    def along(spec: BackboneSpec, strides: Sequence[Stride], stride: Stride) -> Reach:
        return reach_enlarged(decoder.reach(spec, strides), stride, (1, 1))

    across = along(spec, strides, stride)
    if spec.causal:  # no spec is causal down, as its transpose would have to be
        return (math.inf, math.inf), across
    turned = [(wide, high) for high, wide in strides]
    return along(_transposed(spec), turned, stride[::-1]), across


def cut(
    size: Sequence[int], tile: int, margins: Sequence[Reach], step: Sequence[int]
) -> Iterator[tuple[Part, Part]]:
    """The tiles of an image: what each reads, and what of it is its own.

    Args:
        size: of the image, height and width.
        tile: side of what is each one's own, rounded up to a multiple of `step`.
        margins: pixels that are read before and after it, down and across.
        step: what tiles begin at multiples of: the coarsest stride.

    >>> for read, own in cut((1, 10), 4, ((0, 0), (1, 1)), (1, 2)):
    ...     print(read[1].start, read[1].stop, own[1].start, own[1].stop)
    0 6 0 4
    2 10 4 8
    6 10 8 10
    """
    axes = []
    for length, (before, after), unit in zip(size, margins, step, strict=True):
        side = _up(tile, unit)
        axes.append(
            [
                (
                    slice(
                        max(0, start - _up(before, unit)),
                        min(length, start + side + _up(after, unit)),
                    ),
                    slice(start, min(length, start + side)),
                )
                for start in range(0, length, side)
            ]
        )
    for (rows, own_rows), (columns, own_columns) in itertools.product(*axes):
        yield (rows, columns), (own_rows, own_columns)


class Tiles:
    """Predicts an image in tiles.

    Args:
        forward: pixels `(1, C, h, w)` to logits `(1, K, h, w)`.
        reach: `reach_of` the net.
        step: the coarsest stride, down and across.
        tile, overlap: as in `predict`.

    Raises:
        InputError: a tile of less than one pixel or a negative overlap; no overlap where the reach
            is infinite.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        reach: tuple[Reach, Reach],
        step: Stride,
        tile: int,
        overlap: int | None = None,
    ) -> None:
        for name, value, low in (("tile", tile, 1), ("overlap", overlap, 0)):
            if value is not None and (type(value) is not int or value < low):
                raise InputError(
                    f"{name}={value!r} is no number of pixels; give a whole one from {low} up"
                )
        is_local = all(math.isfinite(side) for axis in reach for side in axis)
        if overlap is None and not is_local:
            raise InputError(
                "this net averages over the whole image (attention, group norm, or the decoder's "
                "image_pooling), or its reach is not known (causal), so that no tile gives what "
                "the whole gives; build it without, or give overlap= in pixels for an approximation"
            )
        self.forward, self.step, self.tile = forward, step, tile
        self.margins = reach if overlap is None else ((overlap, overlap),) * 2
        self.is_exact = overlap is None or all(overlap >= side for axis in reach for side in axis)

    def logits(self, x: Tensor) -> Iterator[tuple[Part, Part, Tensor]]:
        """Per tile what it read, what of it is its own, and the logits `(K, h, w)` of what it
        read."""
        for read, own in cut(x.shape[2:], self.tile, self.margins, self.step):
            yield read, own, self.forward(x[..., read[0], read[1]])[0]

    def predict(self, x: Tensor) -> Tensor:
        """The class of every pixel of `(1, C, H, W)`, int64 `(H, W)` on the CPU.

        Warns:
            Approximate: and by how much tiles differ where two saw the same pixels.
        """
        classes = torch.full(x.shape[2:], -1, dtype=torch.int64)
        differing = seen = 0
        for read, own, logits in self.logits(x):
            found = logits.argmax(0).cpu()
            known = classes[read] >= 0
            seen += int(known.sum())
            differing += int((known & (classes[read] != found)).sum())
            inside = tuple(
                slice(o.start - r.start, o.stop - r.start) for r, o in zip(read, own, strict=True)
            )
            classes[own] = found[inside]
        if not self.is_exact:
            share = f"{differing / seen:.2%} of" if seen else "nobody knows how many of"
            warnings.warn(
                "the map is approximate: tiles overlap by less than the net reaches; where two saw "
                f"the same pixels, they gave {share} these another class",
                Approximate,
                stacklevel=4,
            )
        return classes


def _up(value: float, unit: int) -> int:
    """The next multiple of a unit."""
    return math.ceil(value / unit) * unit


def _transposed(spec: BackboneSpec) -> BackboneSpec:
    """The same net with its axes exchanged."""

    def turned(part: Any) -> Any:
        changes = {
            field.name: value[::-1]
            for field in dataclasses.fields(part)
            if isinstance(value := getattr(part, field.name), tuple)
        }
        return dataclasses.replace(part, **changes)

    return dataclasses.replace(
        spec,
        stages=tuple(turned(stage) for stage in spec.stages),
        tail=tuple(turned(layer) for layer in spec.tail),
        stem=None if spec.stem is None else turned(spec.stem),
    )


__all__: Sequence[str] = ("Approximate", "Tiles", "reach_of")
