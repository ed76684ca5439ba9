"""Recordings and their texts become batches; what cannot be learned from is named before."""

from dataclasses import replace
from typing import Any

import datasets
import pytest
import torch

from resbackbones.data import Transcripts, open_dataset
from resbackbones.errors import InputError
from resbackbones.speech import (
    Augment,
    Clips,
    ResidualForAudioClassification,
    TranscriptItems,
    learn_vocabulary,
    read_clips,
)
from tests.speech import tones
from tests.speech.test_recognition import VOCABULARY, made
from tests.speech.test_recordings import encoded

TEXTS = ["ab c", "", "Dd!", "a"]
VARIED = Augment(shift=0, stretch=0, time_mask=0.1, band_mask=4)


def test_a_batch_is_features_and_symbols() -> None:
    model = made()
    items = TranscriptItems(tones.clips(TEXTS), model)
    assert (items.texts, items.empty, len(items)) == (["ab c", "", "dd", "a"], 1, 4)
    batch = items.__getitems__([2, 0])
    assert batch["labels"].tolist() == [[5, 5, -100, -100], [2, 3, 1, 4]]
    assert set(batch) == {"input_features", "attention_mask", "labels"}
    waveforms = [items_clip.float() / 32768 for items_clip in tones.clips(TEXTS).waveforms]
    heard = model.processor([waveforms[2], waveforms[0]], return_tensors="pt")
    assert torch.allclose(batch["input_features"], heard["input_features"], atol=1e-5)
    assert torch.equal(batch["attention_mask"], heard["attention_mask"])
    (alone,) = [items.__getitems__([1])]
    assert alone["labels"].shape == (1, 0) and "attention_mask" not in alone
    assert model(**alone).loss.isfinite()  # nothing was said
    assert (
        "4 recordings of 0.11 to 0.73 s" in items.found()
        and "1 of 4 texts are empty" in items.found()
    )


def test_references_keep_what_no_symbol_writes() -> None:
    model = made()
    with pytest.warns(UserWarning, match=r"hold 'é' \(1 times\), 'z' \(1 times\), which the model"):
        items = TranscriptItems(tones.clips(["aéz", "b"]), model, evaluation=True)
    assert items.unknown == {"é": 1, "z": 1}
    batch = items.__getitems__([0, 1])
    assert batch["references"].tolist() == [[97, 233, 122], [98, -1, -1]]
    assert batch["labels"].tolist() == [[2], [3]]
    metric = model.metric()
    output = model.eval()(**batch)
    output.logits = torch.nn.functional.one_hot(torch.tensor([[2, 2, 0], [0, 3, 3]]), 8).float()
    metric.update(output, batch)
    figures = metric.compute()
    assert figures["cer"] == 2 / 4 and figures["wer"] == 1 / 2 and figures["loss"] > 0
    again = model.metric()  # without references the labels tell what was said
    again.update(output, {"labels": batch["labels"]})
    assert again.compute()["cer"] == 0
    with pytest.raises(InputError, match=r"hold 'é' .* for which the model has no symbol"):
        TranscriptItems(tones.clips(["aéz", "b"]), model)


@pytest.mark.parametrize("options", [{"stretch": 0.5}, {"stretch": 0, "speed": 0.5}])
def test_slower_and_faster_ones_are_whole(options: dict[str, float]) -> None:
    model, still = made(), Augment(0, 0, 0, gain=0, noise=0, time_mask=0, band_mask=0)
    clips = tones.clips(["e" + "ab" * 9 + "e"] * 50, seconds=0.08)
    own, other = (
        TranscriptItems(clips, model, augment).__getitems__(range(50))
        for augment in (still, replace(still, **options))
    )
    lengths, played = (batch["attention_mask"].sum(1) for batch in (own, other))
    assert played.min() < 0.8 * lengths.min() and played.max() > 1.5 * lengths.max()
    for row in range(50):  # it begins and ends with the same sound
        features, slower = own["input_features"][row], other["input_features"][row]
        first, last = lengths[row] // 20, lengths[row] - 1 - lengths[row] // 20
        rate = played[row] / lengths[row]
        for at in (first, last):
            loud, heard = features[:, at].sum(), slower[:, (at * rate).round().int()].sum()
            assert heard == pytest.approx(float(loud), rel=0.4)


def test_faster_ones_have_room_for_their_symbols() -> None:
    model = made()
    clips = tones.clips(["abcde" * 4] * 50, seconds=0.05)
    fast = Augment(0, stretch=0.5, time_mask=0, band_mask=0)
    batch = TranscriptItems(clips, model, fast).__getitems__(range(50))
    frames = batch["attention_mask"].sum(1)
    assert model.output_lengths(frames).min() == 20  # some would have had fewer
    assert torch.isfinite(model(**batch).loss)


def test_blanks_grow_from_nothing() -> None:
    model, none = made(), replace(VARIED, time_mask=0, band_mask=0)
    kinds = (none, replace(VARIED, mask_epochs=2), VARIED)
    items = [TranscriptItems(tones.clips(TEXTS), model, kind) for kind in kinds]

    def heard(epoch: int) -> list[Any]:
        for each in items:
            each.set_epoch(epoch)
        return [each.__getitems__([0, 2])["input_features"] for each in items]

    whole, growing, full = heard(0)
    assert torch.equal(growing, whole) and not torch.equal(full, whole)
    whole, growing, full = heard(1)
    assert 0 < (growing != whole).sum() < (full != whole).sum()
    _, growing, full = heard(2)
    assert torch.equal(growing, full)


def test_too_few_frames_are_named_before_training() -> None:
    model = made()
    # Four letters take one frame of 40 ms each, and three blanks go between those alike.
    clips = tones.clips(["abcd", "aaaa", "abc", "dddd"], seconds=0.03)
    with pytest.raises(InputError) as refused:
        TranscriptItems(clips, model)
    assert "2 recordings (recording 1: 6 frames for 7 symbols, recording 3: 6 frames" in str(
        refused.value
    )
    items = TranscriptItems(clips, model, on_bad="skip")
    assert items.texts == ["abcd", "abc"] and items.rows == [0, 2]
    assert [name.partition(":")[0] for name in items.skipped] == ["recording 1", "recording 3"]
    with pytest.warns(UserWarning, match=r"2 recordings \(recording 1.*\) cannot be written whole"):
        measured = TranscriptItems(clips, model, evaluation=True)
    assert len(measured) == 4 and len(measured.unaligned) == 2
    only = tones.clips(["aaaa"], seconds=0.03)
    with pytest.raises(InputError, match="no recording is left"):
        TranscriptItems(only, model, on_bad="skip")


def test_what_no_batch_holds_is_named() -> None:
    clips = tones.clips(["a", "abcd abcd"])
    with pytest.raises(InputError, match=r"recording 1 has 1.. frames, and a batch holds 100"):
        TranscriptItems(clips, made(), budget=100)
    assert len(TranscriptItems(clips, made(), budget=300)) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"augment": Augment()}, "shift=0.1, which would leave a recording without"),
        ({"augment": Augment(shift=0, mixup=0.1)}, "mixup=0.1"),
    ],
)
def test_bad_options_are_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TranscriptItems(tones.clips(TEXTS), made(), **options)


def test_recordings_with_classes_are_refused() -> None:
    clips = Clips.from_arrays([torch.full((800,), 0.1)] * 2, ["yes", "no"], tones.RATE)
    with pytest.raises(InputError, match="have no texts"):
        TranscriptItems(clips, made())
    model = ResidualForAudioClassification.build("tc_resnet8", num_labels=2)
    assert model.processor.feature_size == 40


def rows(*texts: str | None) -> datasets.Dataset:
    waveforms = [clip.numpy() / 32768 for clip in tones.clips([t or "a" for t in texts]).waveforms]
    audio = [{"bytes": encoded(w, tones.RATE), "path": None} for w in waveforms]
    return datasets.Dataset.from_dict({"audio": audio, "text": list(texts)})


def test_a_source_is_read_whole_and_empty_texts_are_texts() -> None:
    source = open_dataset(rows("ab", "", "c d"), target=Transcripts(), kind="audio")
    items = TranscriptItems(source, made(), evaluation=True)
    assert items.texts == ["ab", "", "c d"] and items.empty == 1
    long = tones.clips(["abcde " * 15])  # far more than 10 s beside short ones
    cells = [{"bytes": encoded(long.waveforms[0].numpy() / 32768, tones.RATE), "path": None}]
    more = datasets.concatenate_datasets(
        [rows("ab"), datasets.Dataset.from_dict({"audio": cells, "text": ["abcde " * 15]})]
    )
    source = open_dataset(more, target=Transcripts(), kind="audio")
    assert TranscriptItems(source, made()).lengths.max() > 1000
    with pytest.raises(InputError, match=r"row 2 of .* has no text in column 'text'"):
        open_dataset(rows("ab", None), target=Transcripts(), kind="audio")


def test_silence_and_a_single_sample_are_told() -> None:
    cells = [encoded(torch.zeros(4000).numpy(), 8000), encoded(torch.full((1,), 0.1).numpy(), 8000)]
    audio = [{"bytes": cell, "path": None} for cell in cells]
    source = open_dataset(
        datasets.Dataset.from_dict({"audio": audio, "text": ["", "ab"]}),
        target=Transcripts(),
        kind="audio",
    )
    with pytest.warns(UserWarning, match="1 is silent .*; 1 is a single sample"):
        clips = read_clips(source, tones.RATE)
    with pytest.raises(InputError, match=r"row 2 .*: 1 frames for 2 symbols"):
        TranscriptItems(clips, made())
    items = TranscriptItems(clips, made(), on_bad="skip")
    assert items.texts == [""] and made().eval()(**items.__getitems__([0])).loss.isfinite()


def test_other_texts_are_another_run() -> None:
    model = made()
    prints = {
        TranscriptItems(tones.clips(["ab", "c"]), model).fingerprint(),
        TranscriptItems(tones.clips(["ab", "c"]), model, evaluation=True).fingerprint(),
        TranscriptItems(tones.clips(["a", "bc"]), model).fingerprint(),
    }
    assert len(prints) == 3
    assert VOCABULARY.symbols == learn_vocabulary(["abcde x"]).symbols
