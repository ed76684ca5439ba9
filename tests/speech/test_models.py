"""Speech models keep the padding promise from the waveform on, come back from disk bit for bit, and
run in a transformers pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import resbackbones as rb
from resbackbones.errors import InputError
from resbackbones.speech import (
    ResidualFeatureExtractor,
    ResidualForAudioClassification,
    ResidualSpeechConfig,
    resample,
)
from tests.speech.helpers import as_if_trained

LABELS = ["yes", "no", "silence"]
SMALL = rb.BackboneSpec(
    (rb.Stage(8, 1), rb.Stage(12, 2, stride=2)), dims=1, in_channels=40, stem=rb.Stem(8, 5)
)
SPECTROGRAM = rb.BackboneSpec(
    (rb.Stage(8, 1), rb.Stage(12, 2, stride=2, dilation=(1, 2))),
    in_channels=1,
    stem=rb.Stem(8, 3, (2, 1), pool=2),
)
NETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "1d": (SMALL, {}),
    "1d-se-max": (SMALL, {"attention": "se", "head": {"pooling": "mean_max"}}),
    "2d": (SPECTROGRAM, {}),
    "2d-group": (SPECTROGRAM, {"norm": "group"}),
    "tc_resnet8": ("tc_resnet8", {}),
    "matchboxnet_3x1": ("matchboxnet_3x1", {}),
}


def trained(name: str, **options: Any) -> ResidualForAudioClassification:
    """A model with the running statistics and biases of one that has been trained."""
    torch.manual_seed(0)
    spec, changes = NETS[name]
    model = ResidualForAudioClassification.build(spec, labels=LABELS, **{**changes, **options})
    return as_if_trained(model)


def same(batch: torch.Tensor, single: torch.Tensor) -> bool:
    return bool((batch - single).abs().max() <= 1e-4 * max(1.0, float(single.abs().max())))


@pytest.mark.parametrize("name", NETS)
def test_a_batch_gives_the_logits_of_each_waveform_alone(name: str) -> None:
    model = trained(name)

    @settings(max_examples=8, deadline=None)
    @given(lengths=st.lists(st.integers(1, 6000), min_size=2, max_size=4), seed=st.integers(0, 99))
    def check(lengths: list[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        clips = [0.3 * torch.randn(length, generator=generator) for length in lengths]
        batch = model.processor(clips, return_tensors="pt")
        # What stands in the padding must not matter to the model either.
        padding = batch["attention_mask"].unsqueeze(1) == 0
        batch["input_features"] = batch["input_features"].masked_fill(padding, 1e3)
        with torch.no_grad():
            together = model(**batch).logits
            for row, clip in enumerate(clips):
                assert same(
                    together[row], model(**model.processor(clip, return_tensors="pt")).logits[0]
                )
                whole = model(model.processor(clip, return_tensors="pt")["input_features"])
                assert same(together[row], whole.logits[0])

    check()


@pytest.mark.parametrize("normalize", ["mean", "mean_std"])
@pytest.mark.parametrize("name", ["1d", "2d"])
def test_normalised_features_keep_the_promise(name: str, normalize: str) -> None:
    model = trained(name, processor=ResidualFeatureExtractor(normalize=normalize))
    clips = [0.3 * torch.randn(length) for length in (5000, 1, 700, 161)]
    with torch.no_grad():
        together = model(**model.processor(clips, return_tensors="pt")).logits
        for row, clip in enumerate(clips):
            assert same(
                together[row], model(**model.processor(clip, return_tensors="pt")).logits[0]
            )


@pytest.mark.parametrize("name", NETS)
def test_saved_and_loaded_it_is_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = trained(name)
    model.processor = ResidualFeatureExtractor(
        feature_size=model.processor.feature_size, normalize="mean", hop=0.0125
    )
    clip = 0.3 * torch.randn(5000)
    before = model(**model.processor(clip, return_tensors="pt")).logits
    model.save_pretrained(tmp_path)
    for loaded in (
        ResidualForAudioClassification.from_pretrained(tmp_path),
        transformers.AutoModelForAudioClassification.from_pretrained(tmp_path),
    ):
        assert isinstance(loaded, ResidualForAudioClassification)
        assert loaded.config.id2label == dict(enumerate(LABELS))
        assert loaded.processor.to_dict() == model.processor.to_dict()
        # Weights that lie otherwise in memory are added up in another order.
        assert [p.stride() for p in loaded.parameters()] == [p.stride() for p in model.parameters()]
        assert not any(p.data_ptr() % 64 for p in loaded.parameters())
        after = loaded(**loaded.processor(clip, return_tensors="pt")).logits
        assert torch.equal(before, after)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(extractor, ResidualFeatureExtractor)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, ResidualSpeechConfig) and "resnet" not in config.model_type


@pytest.mark.parametrize("name", ["1d", "2d"])
def test_pipeline_takes_arrays_and_other_sampling_rates(name: str, tmp_path: Path) -> None:
    model = trained(name)
    with torch.no_grad():
        model.head.linear.weight.mul_(
            0.05
        )  # random nets are sure of themselves: leave room to differ
    model.save_pretrained(tmp_path)
    pipeline = transformers.pipeline("audio-classification", model=str(tmp_path), device="cpu")
    clip = (0.3 * torch.randn(8000)).numpy()

    def expected(waveform: Any) -> dict[str, float]:
        with torch.no_grad():
            logits = model(**model.processor(waveform, return_tensors="pt")).logits[0]
        return dict(zip(LABELS, logits.softmax(-1).tolist(), strict=True))

    def scores(answer: list[dict[str, Any]]) -> dict[str, float]:
        return {item["label"]: item["score"] for item in answer}

    assert scores(pipeline(clip)) == pytest.approx(expected(clip), abs=1e-5)
    at_8_khz = scores(pipeline({"array": clip, "sampling_rate": 8000}))
    assert at_8_khz == pytest.approx(expected(resample(clip, 8000, 16000)), abs=1e-5)
    assert at_8_khz != pytest.approx(expected(clip), abs=1e-3)
    batched = pipeline([clip, clip[::-1].copy()], batch_size=2)
    assert scores(batched[0]) == pytest.approx(expected(clip), abs=1e-5)
    numbers = (clip * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
    assert scores(pipeline(numbers)) == pytest.approx(expected(numbers), abs=1e-5)


@pytest.mark.parametrize("pad_to", [0.0, 0.5])
@pytest.mark.parametrize("name", NETS)
def test_pipeline_batches_clips_of_different_lengths(
    name: str, pad_to: float, tmp_path: Path
) -> None:
    model = trained(name)
    feature_size = model.processor.feature_size
    model.processor = ResidualFeatureExtractor(feature_size=feature_size, pad_to=pad_to)
    model.save_pretrained(tmp_path)
    pipeline = transformers.pipeline("audio-classification", model=str(tmp_path), device="cpu")
    clips = [(0.3 * torch.randn(length)).numpy() for length in (8000, 3000, 1, 9000, 3000)]
    plain = ResidualFeatureExtractor(feature_size=feature_size)
    for size in (1, 2, 5):
        for clip, answer in zip(clips, pipeline(clips, batch_size=size), strict=True):
            with torch.no_grad():
                logits = model(**plain(clip, return_tensors="pt")).logits[0]
            expected = dict(zip(LABELS, logits.softmax(-1).tolist(), strict=True))
            scores = {item["label"]: item["score"] for item in answer}
            assert scores == pytest.approx(expected, abs=1e-4)
    pipeline.save_pretrained(tmp_path / "again")
    assert "custom_pipelines" not in (tmp_path / "again" / "config.json").read_text()


def test_other_models_have_transformers_own_pipeline() -> None:
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,),
        conv_kernel=(10,),
        conv_stride=(160,),
        num_feat_extract_layers=1,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
    )
    model = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor()
    pipeline = transformers.pipeline(
        "audio-classification", model=model, feature_extractor=extractor, device="cpu"
    )
    clips = [(0.3 * torch.randn(8000)).numpy() for _ in range(2)]
    with torch.no_grad():
        expected = model(**extractor(clips[0], sampling_rate=16000, return_tensors="pt")).logits
    answer = {item["label"]: item["score"] for item in pipeline(clips, batch_size=2)[0]}
    for number, share in enumerate(expected[0].softmax(-1).tolist()):
        assert answer[model.config.id2label[number]] == pytest.approx(share, abs=1e-5)


def test_in_prediction_nothing_is_cut(tmp_path: Path) -> None:
    """What is far longer than any training clip is heard to its end."""
    model = trained("1d")
    model.save_pretrained(tmp_path)
    pipeline = transformers.pipeline("audio-classification", model=str(tmp_path), device="cpu")
    long = (0.3 * torch.randn(16000 * 45)).numpy()
    features = model.processor(long, return_tensors="pt")["input_features"]
    assert features.shape[2] == 4501
    with torch.no_grad():
        expected = dict(zip(LABELS, model(features).logits[0].softmax(-1).tolist(), strict=True))
    for answer in (pipeline(long), pipeline([long[:8000], long], batch_size=2)[1]):
        scores = {item["label"]: item["score"] for item in answer}
        assert scores == pytest.approx(expected, abs=1e-4)


def test_the_loss_takes_hard_and_soft_labels() -> None:
    model = trained("1d")
    features, hard = torch.randn(4, 40, 30), torch.tensor([0, 2, 1, 1])
    from_hard = model(features, labels=hard)
    expected = torch.nn.functional.cross_entropy(from_hard.logits, hard)
    torch.testing.assert_close(from_hard.loss, expected)
    soft = torch.nn.functional.one_hot(hard, 3).float()
    torch.testing.assert_close(model(features, labels=soft).loss, expected)
    assert model(features).loss is None
    from_hard.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_processor_fits_the_spec() -> None:
    build = ResidualForAudioClassification.build
    assert build("matchboxnet_3x1", num_labels=2).processor.feature_size == 64
    assert build("tc_resnet8", num_labels=2, in_channels=24).processor.feature_size == 24
    assert build("resnet20", num_labels=2, in_channels=1).processor.feature_size == 40
    mfcc = ResidualFeatureExtractor("mfcc", feature_size=40)
    assert build("tc_resnet8", num_labels=2, processor=mfcc).processor is mfcc


def test_loading_refuses_a_processor_that_does_not_fit(tmp_path: Path) -> None:
    trained("1d").save_pretrained(tmp_path)
    ResidualFeatureExtractor(feature_size=24).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="makes 24 features per frame, but the backbone takes 40"):
        ResidualForAudioClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("tc_resnet9", {}, "no spec is called 'tc_resnet9'; did you mean"),
        ("tc_resnet8", {"in_chanels": 40}, "no field 'in_chanels'; did you mean 'in_channels'"),
        ("resnet20", {}, "this spec has in_channels=3; build with in_channels=1"),
        (
            "tc_resnet8",
            {"processor": ResidualFeatureExtractor(feature_size=64)},
            "64 features per frame, but the backbone takes 40; build with in_channels=64",
        ),
        ("tc_resnet8", {"labels": ["yes"]}, "1 class cannot be told apart"),
    ],
)
def test_build_refuses(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ResidualForAudioClassification.build(spec, **{"labels": LABELS, **options})
