"""Speaker models keep the padding promise, come back bit for bit with the voices they know, train
by a margin that rises, and compare voices."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import resbackbones as rb
from resbackbones.core.heads import margin_loss
from resbackbones.data import Items
from resbackbones.errors import InputError
from resbackbones.speech import (
    ResidualFeatureExtractor,
    ResidualForAudioClassification,
    ResidualForAudioXVector,
    ResidualSpeakerConfig,
    make_trials,
)
from resbackbones.train import Options, evaluate, fit
from tests.speech.helpers import as_if_trained, noise

SMALL = rb.BackboneSpec(
    (rb.Stage(8, 1), rb.Stage(12, 2, stride=2)), dims=1, in_channels=40, stem=rb.Stem(8, 5)
)
SPECTROGRAM = rb.BackboneSpec(
    (rb.Stage(8, 1), rb.Stage(12, 2, stride=2, dilation=(1, 2))),
    in_channels=1,
    stem=rb.Stem(8, 3, (2, 1), pool=2),
    attention="se",
)
ATTENTIVE = {"pooling": "attentive_statistics", "norm": "batch"}
NETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "1d": (SMALL, {}),
    "1d-attentive": (SMALL, {"head": ATTENTIVE}),
    "2d": (SPECTROGRAM, {}),
    "2d-attentive": (SPECTROGRAM, {"head": ATTENTIVE}),
    "2d-whole": (SPECTROGRAM, {"head": {"rows": 1}}),
}


def trained(name: str, **options: Any) -> ResidualForAudioXVector:
    """A model with the running statistics of one that has been trained."""
    torch.manual_seed(0)
    spec, changes = NETS[name]
    options = {"num_labels": 5, "embedding_size": 16, **changes, **options}
    model = ResidualForAudioXVector.build(spec, **options)
    return as_if_trained(model)


@pytest.mark.parametrize("name", NETS)
def test_a_batch_gives_the_embeddings_of_each_clip_alone(name: str) -> None:
    model = trained(name)

    @settings(max_examples=6, deadline=None)
    @given(lengths=st.lists(st.integers(1, 6000), min_size=2, max_size=4), seed=st.integers(0, 99))
    def check(lengths: list[int], seed: int) -> None:
        clips = noise(*lengths, seed=seed)
        batch = model.processor(clips, return_tensors="pt")
        padding = batch["attention_mask"].unsqueeze(1) == 0
        batch["input_features"] = batch["input_features"].masked_fill(padding, 1e3)
        with torch.no_grad():
            together = model(**batch).embeddings
            for row, clip in enumerate(clips):
                whole = model.processor(clip, return_tensors="pt")["input_features"]
                alone = model(whole).embeddings[0]
                bound = 1e-4 * max(1.0, float(alone.abs().max()))
                assert (together[row] - alone).abs().max() <= bound

    check()


def test_the_head_fits_the_net_and_the_features() -> None:
    model = trained("2d")
    # 40 bands, halved by the stem, its pooling and the second stage.
    assert model.head.rows == 5 and model.head.width == 2 * 12 * 5
    eighty = trained("2d", processor=ResidualFeatureExtractor(feature_size=80))
    assert eighty.head.rows == 10
    assert trained("1d").head.width == 24
    with pytest.raises(InputError, match="the head pools 5 rows, but a feature"):
        model(torch.randn(1, 80, 30))
    head = {"pooling": "statistics"}
    keywords = ResidualForAudioClassification.build(SPECTROGRAM, num_labels=2, head=head)
    assert keywords.head.rows == 5 and keywords(torch.randn(2, 40, 30)).logits.shape == (2, 2)
    whole = ResidualForAudioClassification.build(
        SPECTROGRAM, num_labels=2, head={**head, "rows": 1}
    )
    assert whole.head.width == 24


def test_building_draws_the_same_weights_whatever_the_head_asks() -> None:
    """To count the rows of a feature draws nothing."""
    first, second = (trained(name).backbone.named_parameters() for name in ("2d", "2d-whole"))
    for (name, value), (_, other) in zip(first, second, strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("name", NETS)
def test_saved_and_loaded_it_is_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = trained(name, labels=[*"abcde"], num_labels=None)
    clip, other = noise(5000, 700)
    model.enrol("ann", clip)
    model.enrol("bob", [other, clip])
    model.calibrate([0.1, 0.9, 0.4], [False, True, False])
    before = model(**model.processor(clip, return_tensors="pt"))
    model.save_pretrained(tmp_path)
    for loaded in (
        ResidualForAudioXVector.from_pretrained(tmp_path),
        transformers.AutoModelForAudioXVector.from_pretrained(tmp_path),
    ):
        assert isinstance(loaded, ResidualForAudioXVector)
        after = loaded(**loaded.processor(clip, return_tensors="pt"))
        assert torch.equal(after.embeddings, before.embeddings)
        assert torch.equal(after.logits, before.logits)
        assert loaded.identify(other) == model.identify(other)
        assert loaded.verify(clip, "bob") == model.verify(clip, "bob")
        assert loaded.config.calibration == {
            "for": "equal error rate",
            "value": 0.0,
            "trials": 3,
            "of the same speaker": 1,
        }
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, ResidualSpeakerConfig) and config.enrolled == ["ann", "bob"]
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(extractor, ResidualFeatureExtractor)


def test_of_other_speakers_only_the_directions_are_drawn_anew(tmp_path: Path) -> None:
    model = trained("1d-attentive")
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="pass ignore_mismatched_sizes=True"):
        ResidualForAudioXVector.from_pretrained(tmp_path, num_labels=7)
    other = ResidualForAudioXVector.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True
    )
    assert other.head.directions.shape == (7, 16) and other.head.directions.isfinite().all()
    for name, value in model.state_dict().items():
        if name != "head.directions":
            assert torch.equal(other.state_dict()[name], value)
    clip = noise(3000)
    assert torch.equal(other.embed(clip), model.embed(clip))


def test_voices_are_compared(tmp_path: Path) -> None:
    model = trained("2d").train()
    one, two, long = noise(3000, 5000, 40_000)
    units = model.embed([one, long, two])
    assert units.shape == (3, 16) and model.training
    torch.testing.assert_close(units.norm(dim=1), torch.ones(3))
    for row, clip in enumerate((one, long, two)):
        torch.testing.assert_close(model.embed(clip)[0], units[row], rtol=0, atol=1e-4)
    # The long one is heard whole, and whatever is computed at a time.
    torch.testing.assert_close(model.embed([one, long, two], frames=1), units, rtol=0, atol=1e-4)
    assert not torch.allclose(model.embed(long[:20_000])[0], units[1], atol=1e-4)
    score = model.score(one, two)
    assert score == pytest.approx(float(units[0] @ units[2]), abs=1e-4)
    assert model.score(two, one) == pytest.approx(score, abs=1e-6)
    assert model.score(one, one) == pytest.approx(1.0, abs=1e-6)

    with pytest.raises(InputError, match=r"calibrate it on trials of your own, model\.calibrate"):
        model.verify(one, two)
    assert model.calibrate([score - 0.1, score + 0.1], [False, True]) == pytest.approx(score)
    model.config.threshold = score + 1e-3
    assert model.verify(one, two) == (False, pytest.approx(score, abs=1e-6))
    model.config.threshold = score - 1e-3
    assert model.verify(one, two)[0] is True
    model.calibrate([0.1, 0.9, 0.5, 0.6], [False, True, False, True], prior=0.01)
    assert model.config.calibration["for"] == "minDCF 0.01"

    with pytest.raises(InputError, match="nobody is enrolled; enrol voices first"):
        model.identify(one)
    with pytest.raises(InputError, match="no voice is enrolled as 'ann'; enrol it first"):
        model.score("ann", one)
    model.enrol("ann", [one, long])
    expected = torch.nn.functional.normalize(units[:2].mean(0), dim=0)
    torch.testing.assert_close(model.voices[0], expected, rtol=0, atol=1e-4)
    model.enrol("bob", two)
    assert [name for name, _ in model.identify(two)] == ["bob", "ann"]
    assert model.identify(two)[0][1] == pytest.approx(1.0, abs=1e-6)
    assert model.score("ann", two) == pytest.approx(dict(model.identify(two))["ann"], abs=1e-6)
    model.enrol("ann", two)  # anew
    assert model.config.enrolled == ["ann", "bob"]
    assert model.score("ann", "bob") == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(InputError, match="did you mean 'ann'"):
        model.score("anne", one)
    with pytest.raises(InputError, match="'' is no name"):
        model.enrol("", one)
    with pytest.raises(InputError, match="at 8000 Hz, but"):
        model.embed(one, 8000)
    with pytest.raises(InputError, match="no clip"):
        model.embed([])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"margin": 2.0}, r"margin=2\.0 is out of range; give a number from 0 to 1\.571"),
        ({"scale": 0}, "scale=0 is out of range"),
        ({"margin_rise": 1.5}, r"margin_rise=1\.5"),
        ({"embedding_size": 0}, "embedding_size=0 is out of range; give a number from 1 up"),
        ({"num_labels": 1}, "1 class cannot be told apart"),
        ({"head": {"kind": "cosine"}}, "leave it out"),
        ({"in_channels": 3}, "this spec has in_channels=3; build with in_channels=1"),
    ],
    ids=str,
)
def test_build_refuses(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ResidualForAudioXVector.build(SPECTROGRAM, **{"num_labels": 3, **options})


class Voices(Items):
    """Two kinds of noise each of three speakers; in evaluation their rows."""

    def __init__(self, asked: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(24) % 3
        shapes = torch.randn(3, 40, 1, generator=generator)
        self.features = shapes[self.labels] + torch.randn(24, 40, 20, generator=generator)
        self.asked = asked

    def __len__(self) -> int:
        return 24

    def __getitems__(self, rows: Any) -> dict[str, torch.Tensor]:
        picked = torch.as_tensor(rows)
        batch = {"input_features": self.features[picked], "labels": self.labels[picked]}
        return {**batch, "rows": picked} if self.asked else batch


def options(folder: Path | None, **changes: Any) -> Options:
    return Options(
        **{
            "output": folder,
            "epochs": 3,
            "batch_size": 6,
            "learning_rate": 0.01,
            "device": "cpu",
            "progress": False,
            "metric": "eer",
            "higher_is_better": False,
            "keep": "last",
            "precision": "float32",
            "least_updates": 1,
            **changes,
        }
    )


def test_the_margin_rises_with_the_training_and_a_resumed_run_knows_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    margins: list[float] = []
    own = ResidualForAudioXVector.forward

    def watched(self: Any, *inputs: Any, **named: Any) -> Any:
        if self.training:
            margins.append(self.margin)
        return own(self, *inputs, **named)

    monkeypatch.setattr(ResidualForAudioXVector, "forward", watched)

    class Killed(Exception):
        pass

    class Until(Voices):
        def set_epoch(self, epoch: int) -> None:
            if epoch == 2:
                raise Killed

        def fingerprint(self) -> str:
            return ""

    class Whole(Until):
        def set_epoch(self, epoch: int) -> None:
            pass

    Until.__name__ = Whole.__name__ = "Voices"

    def run(items: Items, folder: Path, **changes: Any) -> ResidualForAudioXVector:
        model = trained("1d", num_labels=3, margin_rise=0.5)
        model.trials = make_trials((torch.arange(24) % 3).tolist())
        fit(model, items, Voices(asked=True), options(folder, **changes))
        return model

    whole = run(Whole(), tmp_path / "whole")
    assert margins == pytest.approx([0.2 * min(1, step / 6) for step in range(12)])
    assert whole.progress == 1.0 and whole.margin == 0.2  # for a loop that does not set it
    uninterrupted = list(margins)
    margins.clear()
    with pytest.raises(Killed):
        run(Until(), tmp_path / "killed")
    rest = run(Whole(), tmp_path / "killed", resume=True)
    assert margins == uninterrupted
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name


def test_it_learns_to_tell_voices_apart_and_evaluation_has_no_margin() -> None:
    model = trained("1d-attentive", num_labels=3)
    with pytest.raises(InputError, match=r"set model\.trials, to make_trials"):
        model.metric()
    model.trials = make_trials((torch.arange(24) % 3).tolist())
    before = evaluate(model, Voices(asked=True))
    fit(model, Voices(), Voices(asked=True), options(None, epochs=8))
    assert evaluate(model, Voices(asked=True))["eer"] < min(0.1, before["eer"])
    features, labels = Voices().features[:4], Voices().labels[:4]
    output = model(features, labels=labels)
    cosines = output.logits / 30
    assert cosines.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(output.loss, margin_loss(cosines, labels, 0.0, 30.0))
    model.train()
    for norm in (m for m in model.modules() if "BatchNorm" in type(m).__name__):
        norm.eval()
    torch.testing.assert_close(
        model(features, labels=labels).loss, margin_loss(cosines, labels, 0.2, 30.0)
    )
    model.progress = 0.15  # half of the rise
    assert model.margin == pytest.approx(0.1)
    torch.testing.assert_close(
        model(features, labels=labels).loss, margin_loss(cosines, labels, 0.1, 30.0)
    )
    with torch.no_grad():
        nobody = model(features, labels=torch.full((4,), -100))
    assert math.isnan(float(nobody.loss)) and nobody.embeddings.isfinite().all()
