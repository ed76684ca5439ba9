"""Recordings of named speakers, as batches to learn from and as batches to compare."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from resbackbones.data import Classes, Source
from resbackbones.data.columns import plain_values
from resbackbones.errors import InputError
from resbackbones.speech.augment import DRAWS, Augment, Drawn
from resbackbones.speech.data import AudioItems
from resbackbones.speech.frontend import ResidualFeatureExtractor
from resbackbones.speech.recordings import Clips

UNKNOWN = -100  # the label of a speaker who is none of the training


def speakers_of(source: Source) -> list[Any]:
    """Who speaks in each row; None where nobody is named.

    Raises:
        InputError: a source without a column of groups, which is where speakers stand.
    """
    if "group" not in source.columns:
        raise InputError(
            f"{source.name} names no speakers; name their column (--group-column), or how a path "
            'tells them (--group-pattern "([^/]+)/[^/]+$")'
        )
    cells = plain_values(source.dataset, source.columns["group"])
    return [None if cell in (None, "") or cell != cell else str(cell) for cell in cells]


def spoken(source: Source) -> Source:
    """The rows that name a speaker, which is what is to be told of them.

    Raises:
        InputError: fewer than two speakers.
    """
    speakers = speakers_of(source)
    named = [row for row, speaker in enumerate(speakers) if speaker is not None]
    if len({speakers[row] for row in named}) < 2:
        raise InputError(
            f"{source.name} has fewer than two speakers in column {source.columns['group']!r}; "
            "give recordings of two or more"
        )
    columns = {**source.columns, Classes.role: source.columns["group"]}
    found = replace(source.select(named), columns=columns, target=Classes())
    return replace(found, target=found.target.learn(found.column()))


class SpeakerItems(AudioItems):
    """Recordings to learn voices from; of each a stretch drawn anew in every epoch.

    Args:
        clips, extractor, augment, options: as of `AudioItems`. Mixing two voices makes a third:
            `augment.mixup` must be 0.
        crop: shortest and longest stretch, in seconds; a shorter recording is heard whole.

    Raises:
        InputError: as `AudioItems`; a mixup, or a crop that is no stretch of time.
    """

    def __init__(
        self,
        clips: Source | Clips,
        extractor: ResidualFeatureExtractor,
        augment: Augment | None = None,
        *,
        crop: tuple[float, float] = (1.0, 3.0),
        **options: Any,
    ) -> None:
        if augment is not None and augment.mixup:
            raise InputError(
                f"mixup={augment.mixup} would mix voices into one that nobody has; leave it out"
            )
        if not 0 < crop[0] <= crop[1]:
            raise InputError(f"crop={crop} is no shortest and longest time; give two, in seconds")
        super().__init__(clips, extractor, augment, **options)
        self.crop = crop
        self.whole = self.lengths
        self.least, self.most = (max(1, round(end * self.frame_rate)) for end in crop)
        self.lengths = self.whole.clamp(max=self.most)  # what a batch's size is told by

    def _parts(self) -> Iterator[bytes | str]:
        yield from super()._parts()
        yield repr(self.crop)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_features` `(B, F, T)`, `labels` `(B,)`, and `attention_mask` `(B, T)` where
        stretches differ in length."""
        index, draws = torch.as_tensor(rows), self.draws(rows, DRAWS + 2)
        length, place = draws[:, -2:].double().unbind(1)
        whole = self.whole[index]
        frames = self.least + (length * (self.most - self.least + 1)).long()
        frames = torch.minimum(frames, whole)
        first = (place * (whole - frames + 1)).long()
        features = self._heard(index, frames, Drawn.of(draws), first)
        return self._batch(features, frames, self.labels[index.to(self.device)])


class TrialItems(AudioItems):
    """Recordings to compare, each heard whole: with `rows` `(B,)`, their rows in the split as it
    was opened, and labels that say that their speakers are none of the training's."""

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """As of `AudioItems`, and `rows`."""
        batch = super().__getitems__(rows)
        numbers = None if self.source is None else self.source.numbers
        place = torch.as_tensor([self.rows[row] for row in rows])
        batch["rows"] = (place if numbers is None else numbers[place]).to(self.device)
        return {**batch, "labels": torch.full_like(batch["labels"], UNKNOWN)}
