"""An image larger than memory, predicted tile by tile with the outcome of the whole: `Pieces` along
two axes, of a net whose decoder reaches further than its backbone."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from resbackbones.core.pieces import Approximate, Part, Pieces, Reach
from resbackbones.core.spec import BackboneSpec
from resbackbones.vision.decoders import Decoder, Stride, reach_enlarged


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


class Tiles:
    """Predicts an image in tiles.

    Args:
        forward: pixels `(1, C, h, w)` to logits `(1, K, h, w)`.
        reach: `reach_of` the net.
        step: the coarsest stride, down and across.
        tile, overlap: as in `predict`; refused as by `Pieces`.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        reach: tuple[Reach, Reach],
        step: Stride,
        tile: int,
        overlap: int | None = None,
    ) -> None:
        self.forward = forward
        self.pieces = Pieces(
            reach,
            step,
            tile,
            overlap,
            name="tile",
            unit="pixels",
            why="averages over the whole image (attention, group norm, or the decoder's "
            "image_pooling), or its reach is not known (causal)",
        )

    def logits(self, x: Tensor) -> Iterator[tuple[Part, Part, Tensor]]:
        """Per tile what it read, what of it is its own, and the logits `(K, h, w)` of what it
        read."""
        for read, own in self.pieces.cut(x.shape[2:]):
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
        if not self.pieces.is_exact:
            share = f"{differing / seen:.2%} of" if seen else "nobody knows how many of"
            warnings.warn(
                "the map is approximate: tiles overlap by less than the net reaches; where two saw "
                f"the same pixels, they gave {share} these another class",
                Approximate,
                stacklevel=4,
            )
        return classes


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


__all__: Sequence[str] = ("Tiles", "reach_of")
