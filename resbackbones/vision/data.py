"""`ImageItems`: from image files to batches.

Every image is decoded once before work starts, so that bad ones are known. The pixels of small sets
are kept, which makes a batch one gather; larger sets are decoded again batch by batch.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from resbackbones.data import Items, Rereader, Source, mixed_labels, read
from resbackbones.errors import InputError
from resbackbones.vision.augment import DRAWS, PARTNER, Augment, augmented, mixed
from resbackbones.vision.images import open_image
from resbackbones.vision.processor import ResidualImageProcessor


class ImageItems(Items):
    """Labelled images as `fit` takes them: a list of rows becomes a batch.

    Every image is decoded once as this is made; damaged ones are found then.

    Args:
        source: from `open_dataset` or `open_splits`.
        processor: the model's.
        augment: for training; None leaves images alone.
        on_bad: "error" names the first damaged image, "skip" leaves damaged ones out and lists
            them in `skipped`.
        seed: of the augmentation.
        device: where the pixels live and are augmented.
        memory: bytes up to which decoded pixels are kept.

    Attributes:
        source: the rows that are items, in their order.
        labels: int64 `(N,)`; of `Labels` float32 `(N, K)`.
        rows: each item's row in the source as given.
        skipped: the damaged ones, "name: reason".

    Raises:
        InputError: a damaged image, named, where they are not skipped; nothing but damaged ones;
            images of several sizes where the processor has none to bring them to.
    """

    def __init__(
        self,
        source: Source,
        processor: ResidualImageProcessor,
        augment: Augment | None = None,
        *,
        on_bad: Literal["error", "skip"] = "error",
        seed: int = 0,
        device: str | torch.device = "cpu",
        memory: int = 4 << 30,
    ) -> None:
        super().__init__(seed)
        self.processor, self.augment, self.device = processor, augment, torch.device(device)
        self.num_classes = len(source.target.names)
        first = self._first(source, on_bad)
        self.pixels: Tensor | None = None
        if first.nbytes * len(source) <= memory:
            self.pixels = torch.empty(len(source), *first.shape, dtype=first.dtype)
        places = itertools.count()

        def keep(value: Any) -> tuple[int, tuple[int, ...]]:
            """Where one image's pixels are kept, if they are, and its shape."""
            image = self._decode(value)
            if self.pixels is None or image.shape != first.shape:
                return -1, tuple(image.shape)
            # A place for each as it is decoded: a list of all to stack would be the pixels twice.
            place = next(places)
            self.pixels[place] = image
            return place, tuple(image.shape)

        found = read(source, keep, on_bad)
        self.rows, self.skipped = found.rows, found.skipped
        self.source = source.select(self.rows) if self.skipped else source
        for row, (_, shape) in enumerate(found.items):
            if shape != first.shape:
                raise InputError(
                    f"{self.source.row_name(row)} is {shape[2]}x{shape[1]} pixels where others are "
                    f"{first.shape[2]}x{first.shape[1]}; bring all to one size, as with "
                    '--image-size 64 or a processor of size={"height": 64, "width": 64}'
                )
        self.labels = self.source.targets().to(self.device)
        if self.pixels is not None:
            self.pixels = self.pixels.to(self.device)
            self._places = torch.tensor([place for place, _ in found.items], device=self.device)
        self.reread = Rereader(self.source, self._decode)

    def _parts(self) -> Iterator[bytes | str]:
        yield from super()._parts()
        yield self.processor.to_json_string()  # other pixels of the same files are other data

    def _decode(self, value: Any) -> Tensor:
        return self.processor.fit(self.processor.process_image(open_image(value)))

    def _first(self, source: Source, on_bad: str) -> Tensor:
        """The first image that can be read."""
        for row in range(len(source)):
            try:
                return read(source.select([row]), self._decode).items[0]
            except InputError:
                if on_bad != "skip":
                    raise
        raise InputError(f"no image of {source.name} can be read; check the files")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`pixel_values` `(B, C, H, W)` and `labels`, `(B,)` or, mixed or of
        `Labels`, `(B, K)`."""
        pixels, labels = self._load(rows)
        if self.augment is None:
            return {"pixel_values": self.processor.scale(pixels), "labels": labels}
        options = self.augment
        draws = self.draws(rows, 2 * DRAWS if options.mixes else DRAWS)
        x = self._augmented(pixels, draws[:, :DRAWS])
        if options.mixes:
            others, other_labels = self._load((draws[:, PARTNER] * len(self)).long())
            others = self._augmented(others, draws[:, DRAWS:])
            x, share = mixed(x, others, options, draws)
            labels = mixed_labels(labels, other_labels, share, self.num_classes)
        return {"pixel_values": x, "labels": labels}

    def _augmented(self, pixels: Tensor, draws: Tensor) -> Tensor:
        assert self.augment is not None
        scale, unit = self.processor.scale, self.processor.rescale_factor
        mean = [value / unit for value in self.processor.image_mean]
        return augmented(pixels, self.augment, draws, scale, mean, self.epoch)

    def _load(self, rows: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Pixels `(B, C, H, W)`, uint8, and labels of some rows."""
        index = torch.as_tensor(rows, device=self.device)
        labels = self.labels.index_select(0, index)
        if self.pixels is not None:
            # Whole images lie together, which this copies ten times as fast as an index does.
            return self.pixels.index_select(0, self._places.index_select(0, index)), labels
        return torch.stack(self.reread(index.tolist())).to(self.device), labels


__all__: Sequence[str] = ("ImageItems",)
