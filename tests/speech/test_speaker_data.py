"""Rows without a speaker stay out; stretches of voices are drawn from (seed, epoch, row) alone."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch

from resbackbones.data import NoTarget, Source, open_dataset
from resbackbones.errors import InputError
from resbackbones.speech import (
    AudioItems,
    Augment,
    Clips,
    ResidualFeatureExtractor,
    SpeakerItems,
    TrialItems,
    speakers_of,
    spoken,
)
from tests.speech.test_recordings import encoded

EXTRACTOR = ResidualFeatureExtractor(feature_size=8, sampling_rate=8000)
SPEAKERS = ["ann", None, "bob", "ann", "", "bob", "cat"]


def source(speakers: list[Any] = SPEAKERS) -> Source:
    random = np.random.default_rng(0)
    rows = [
        {
            "audio": {
                "bytes": encoded(0.1 * random.standard_normal(1000 + 4000 * row), 8000),
                "path": None,
            }
        }
        for row in range(len(speakers))
    ]
    for row, speaker in zip(rows, speakers, strict=True):
        row["speaker"] = speaker
    return open_dataset(datasets.Dataset.from_list(rows), target=NoTarget(), kind="audio")


def test_rows_without_a_speaker_stay_out() -> None:
    found = spoken(source())
    assert speakers_of(source()) == ["ann", None, "bob", "ann", None, "bob", "cat"]
    assert found.target.names == ("ann", "bob", "cat")
    assert found.targets().tolist() == [0, 1, 0, 1, 2]
    assert found.numbers is not None and found.numbers.tolist() == [0, 2, 3, 5, 6]
    numbered = spoken(source([7, None, 12, 7, 7, 12, 12]))
    assert numbered.targets().tolist() == [0, 1, 0, 0, 1, 1]
    with pytest.raises(InputError, match="fewer than two speakers in column 'speaker'"):
        spoken(source(["ann", "ann", None]))
    nobody = open_dataset(source().dataset.remove_columns("speaker"), target=NoTarget())
    with pytest.raises(InputError, match="names no speakers; name their column"):
        spoken(nobody)


def test_what_is_compared_is_whole_and_known_by_its_row_as_opened() -> None:
    opened = spoken(source())
    items, plain = TrialItems(opened, EXTRACTOR), AudioItems(opened, EXTRACTOR)
    batch = items.__getitems__([3, 1])
    assert batch["rows"].tolist() == [5, 2]
    assert batch["labels"].tolist() == [-100, -100]
    expected = plain.__getitems__([3, 1])
    assert torch.equal(batch["input_features"], expected["input_features"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    waveforms = [torch.zeros(800, dtype=torch.int16)] * 3
    alone = Clips(waveforms, 8000, torch.arange(3), ("a", "b", "c"), [0, 4, 9], [])
    assert TrialItems(alone, EXTRACTOR).__getitems__([2, 1])["rows"].tolist() == [9, 4]


def test_stretches_lie_inside_and_are_drawn_anew_in_every_epoch() -> None:
    items = SpeakerItems(spoken(source()), EXTRACTOR, crop=(0.5, 1.0))
    whole = TrialItems(spoken(source()), EXTRACTOR)
    # 13 frames of the shortest are all there are; of the others 50 to 100 are taken.
    assert items.whole.tolist() == [13, 113, 163, 263, 313]
    assert items.lengths.tolist() == [13, 100, 100, 100, 100]
    seen = set()
    for epoch in range(20):
        items.set_epoch(epoch)
        batch = items.__getitems__(range(5))
        assert batch["labels"].tolist() == [0, 1, 0, 1, 2]
        frames = batch["attention_mask"].sum(1).tolist()
        assert frames[0] == 13 and all(50 <= count <= 100 for count in frames[1:])
        seen.add(frames[4])
        again = items.__getitems__([4, 2])
        for row, place in ((0, 4), (1, 2)):
            count = frames[place]
            stretch = batch["input_features"][place, :, :count]
            assert torch.equal(again["input_features"][row, :, :count], stretch)
            full = whole.__getitems__([place])["input_features"][0]
            windows = full.unfold(1, count, 1).movedim(1, 0)
            assert (windows == stretch).flatten(1).all(1).sum() == 1
    assert len(seen) > 5
    varied = SpeakerItems(spoken(source()), EXTRACTOR, Augment(), crop=(0.5, 1.0))
    assert varied.__getitems__([2])["input_features"].isfinite().all()
    assert varied.fingerprint() != items.fingerprint()
    other = SpeakerItems(spoken(source()), EXTRACTOR, crop=(0.5, 2.0))
    assert other.fingerprint() != items.fingerprint()


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(InputError, match=r"mixup=0\.2 would mix voices"):
        SpeakerItems(spoken(source()), EXTRACTOR, Augment(mixup=0.2))
    with pytest.raises(InputError, match="no shortest and longest time"):
        SpeakerItems(spoken(source()), EXTRACTOR, crop=(2.0, 1.0))
