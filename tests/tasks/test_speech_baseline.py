"""The simple method hears every clip alone, chooses on validation and tells two tones apart."""

import pytest
import torch
from torch import Tensor

from resbackbones.speech import Clips
from tasks.speech import _baseline
from tasks.speech._baseline import REACH, SEGMENTS, baseline, by_segments


def test_segments_are_those_of_each_clip_alone() -> None:
    torch.manual_seed(0)
    lengths = [50, 23, 8, 3, 1]
    features = torch.randn(len(lengths), 4, 60)  # what stands past an end must not matter
    together = by_segments(features, torch.tensor(lengths))
    assert together.shape == (5, 4 * 4 * SEGMENTS) and together.isfinite().all()
    for row, length in enumerate(lengths):
        clip = features[row, :, :length].double()
        slope = torch.zeros_like(clip)
        for t in range(REACH, length - REACH):
            slope[:, t] = clip[:, t + REACH] - clip[:, t - REACH]
        both = torch.cat([clip, slope])
        parts = [
            both[:, i * length // SEGMENTS : -(-(i + 1) * length // SEGMENTS)]
            for i in range(SEGMENTS)
        ]
        means = torch.stack([part.mean(1) for part in parts], 1)
        deviations = torch.stack([part.std(1, correction=0) for part in parts], 1)
        expected = torch.cat([means, deviations]).flatten().float()
        torch.testing.assert_close(together[row], expected, rtol=1e-4, atol=1e-4)


def tones(count: int, seed: int, noise: float) -> Clips:
    """Tones that rise or fall: their spectra are alike but for the order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2

    def tone(label: int) -> Tensor:
        samples = 3000 + int(torch.randint(800, (), generator=generator))
        time = torch.linspace(-1, 1, samples) * (1 if label else -1)
        pitch = (0.3 + 0.2 * time).cumsum(0)
        sound = pitch.sin() + noise * torch.randn(samples, generator=generator)
        return (3000 * sound).to(torch.int16)

    waveforms = [tone(int(label)) for label in labels]
    return Clips(waveforms, 8000, labels, ("falls", "rises"), list(range(count)), [])


def test_it_hears_the_order_and_says_what_it_is() -> None:
    train, validation, test = tones(40, 0, 0.1), tones(10, 1, 0.1), tones(21, 2, 0.1)
    name, confusion = baseline(train, validation, test)
    assert name == "MFCC by segments + SVC"
    assert confusion.compute()["accuracy"] == 1.0
    assert confusion.names == ("falls", "rises") and confusion.counts.tolist() == [[11, 0], [0, 10]]


def test_the_labels_of_the_test_split_choose_nothing() -> None:
    train, validation, test = tones(40, 0, 3.0), tones(10, 1, 3.0), tones(40, 2, 3.0)
    turned = Clips(**{**vars(test), "labels": 1 - test.labels})
    answers = [baseline(train, validation, some)[1].counts for some in (test, turned)]
    assert torch.equal(answers[0], answers[1].flip(0))


def test_nothing_is_chosen_on_the_rows_it_is_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_baseline, "COSTS", (1e-4, 1.0, 100.0))  # the first names one class alone
    train, test = tones(41, 0, 5.0), tones(40, 2, 5.0)
    asked = []
    for seed in range(10):  # some of these labels another cost would come closer to
        labels = torch.randint(2, (40,), generator=torch.Generator().manual_seed(seed))
        some = Clips(**{**vars(test), "labels": labels})
        asked.append(baseline(train, some, some)[1].counts.sum(0).tolist())
    assert asked == [asked[0]] * 10
