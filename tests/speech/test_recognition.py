"""Recognisers keep the padding promise, lose what CTC says, come back bit for bit, are run by
transformers' pipeline, and learn a language of tones by heart."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoProcessor, pipeline

import resbackbones as rb
from resbackbones.errors import InputError
from resbackbones.speech import (
    Augment,
    ResidualCTCProcessor,
    ResidualFeatureExtractor,
    ResidualForAudioClassification,
    ResidualForCTC,
    TranscriptItems,
    decode,
    decode_audio,
    learn_vocabulary,
)
from resbackbones.speech.recognition import OnlyBlanks
from resbackbones.train import Options, evaluate, fit
from tests.speech import tones
from tests.speech.helpers import as_if_trained, noise

VOCABULARY = learn_vocabulary([f"{tones.LETTERS} x"])
DENSE = rb.BackboneSpec(
    (rb.Stage(24, 2, 2, kernel=5),), dims=1, in_channels=20, stem=rb.Stem(24, 7, 2)
)
# As Citrinet: squeeze and excitation everywhere, strides at the ends of blocks.
SQUEEZED = rb.BackboneSpec(
    (rb.Stage(16, 1, 2, kernel=5), rb.Stage(16, 1, 2, kernel=3)),
    dims=1,
    in_channels=20,
    branch=rb.Separable(2),
    shortcut="always",
    norm_eps=1e-3,
    attention="se",
    attention_reduction=4,
    attention_bias=False,
    attention_everywhere=True,
    stem=rb.Stem(16, 5, separable=True),
    tail=(rb.Layer(24, 7, separable=True),),
)
NETS = {"dense": (DENSE, {}), "squeezed": (SQUEEZED, {}), "normalised": (DENSE, {"mean_std": True})}


def made(spec: rb.BackboneSpec = DENSE, **options: Any) -> ResidualForCTC:
    hear = ResidualFeatureExtractor(
        feature_size=spec.in_channels, sampling_rate=tones.RATE, **options
    )
    return ResidualForCTC.build(spec, processor=ResidualCTCProcessor(hear, VOCABULARY))


def trained(name: str = "dense") -> ResidualForCTC:
    """With the running statistics of one that has been trained, and more than one answer."""
    torch.manual_seed(0)
    spec, options = NETS[name]
    model = made(spec, normalize="mean_std" if options else "none")
    as_if_trained(model)
    torch.nn.init.normal_(model.head.linear.weight)
    with torch.no_grad():
        model.head.linear.bias[2] += 1  # what is padded would be written, were it not for the mask
    return model


@pytest.mark.parametrize("name", NETS)
def test_a_batch_gives_the_answers_of_each_clip_alone(name: str) -> None:
    model = trained(name)

    @settings(max_examples=8, deadline=None)
    @given(lengths=st.lists(st.integers(1, 6000), min_size=2, max_size=4), seed=st.integers(0, 99))
    def check(lengths: list[int], seed: int) -> None:
        clips = noise(*lengths, seed=seed)
        batch = model.processor(clips, return_tensors="pt")
        padding = batch["attention_mask"].unsqueeze(1) == 0
        batch["input_features"] = batch["input_features"].masked_fill(padding, 1e3)
        frames = model.output_lengths(batch["attention_mask"].sum(1)).tolist()
        with torch.no_grad():
            together = model(**batch).logits
        for row, clip in enumerate(clips):
            features = model.processor(clip, return_tensors="pt")["input_features"]
            with torch.no_grad():
                alone = model(features).logits[0]
            assert len(alone) == frames[row]
            bound = 1e-4 * max(1.0, float(alone.abs().max()))
            assert (together[row, : len(alone)] - alone).abs().max() <= bound
            assert not together[row, len(alone) :].argmax(-1).any()  # blanks behind the end
        assert model.transcribe(clips) == [model.transcribe(clip)[0] for clip in clips]

    check()
    assert model.transcribe(noise(4000))[0]  # it does write


def test_a_beam_search_may_find_the_texts() -> None:
    model, clips = trained(), noise(3000, 5000)
    search = decode.BeamSearch(model.symbols, width=4, length_bonus=20.0)
    with torch.no_grad():
        model.head.linear.weight *= 0.01  # so that it is sure of little
        logits = [model(**model.processor([clip], return_tensors="pt")).logits for clip in clips]
    found = [search(each, torch.tensor([each.shape[1]]))[0] for each in logits]
    expected = [hypothesis.text(model.symbols) for hypothesis in found]
    assert model.transcribe(clips, search=search) == expected
    assert expected != model.transcribe(clips)  # of which the bonus makes longer ones


def surprise(log_probs: torch.Tensor, labels: list[int]) -> float:
    """Graves et al. 2006, equation 3: the sum over all ways to write a text in so many frames."""
    total = 0.0
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        written = [number for number, _ in itertools.groupby(path) if number]
        if written == labels:
            total += math.exp(sum(float(log_probs[t, n]) for t, n in enumerate(path)))
    return -math.log(total) if total else math.inf


def test_the_loss_is_that_of_all_alignments() -> None:
    model = made()
    torch.manual_seed(0)
    logits, lengths = torch.randn(3, 4, 3), [4, 3, 2]
    labels = torch.tensor([[1, 1, -100], [2, 1, -100], [-100] * 3])
    real = ([1, 1], [2, 1], [])
    alone = [
        surprise(row[:length].log_softmax(-1), numbers)
        for row, length, numbers in zip(logits, lengths, real, strict=True)
    ]
    loss = model.loss(logits, labels, torch.tensor(lengths))
    weight = model.weight({"labels": labels})
    assert int(weight) == 4 + 3  # symbols, and ends of recordings
    assert float(loss * weight) == pytest.approx(sum(alone), rel=1e-5)
    # Two frames cannot say a symbol twice, for want of a blank between: nothing hides that.
    short = model.loss(logits[:1, :2], labels[:1])
    assert surprise(logits[0, :2].log_softmax(-1), [1, 1]) == float(short) == math.inf


def test_saved_and_loaded_it_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    model = trained()
    batch = model.processor(noise(5000, 700), return_tensors="pt")
    before = model(**batch).logits
    model.save_pretrained(tmp_path)
    for loader in (ResidualForCTC, AutoModelForCTC):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, ResidualForCTC) and torch.equal(loaded(**batch).logits, before)
        assert loaded.processor.tokenizer.symbols == VOCABULARY.symbols
        assert loaded.transcribe(noise(5000)) == model.transcribe(noise(5000))
    assert loaded.config.inputs_to_logits_ratio == 4 * 80
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), ResidualCTCProcessor)
    hear = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(hear, ResidualFeatureExtractor) and hear.sampling_rate == tones.RATE
    with pytest.raises(InputError, match=r"is of another shape: head\.linear"):
        ResidualForCTC.from_pretrained(tmp_path, vocab_size=5)


def test_transformers_pipeline_writes_what_the_model_writes(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    write = pipeline("automatic-speech-recognition", model=str(tmp_path))
    clips = noise(5000, 700, 8000)
    expected = model.transcribe(clips)
    given = [{"array": clip.numpy(), "sampling_rate": tones.RATE} for clip in clips]
    assert [write(dict(each))["text"] for each in given] == expected
    assert [each["text"] for each in write([dict(g) for g in given], batch_size=3)] == expected
    for unit in ("char", "word"):
        told = write(dict(given[0]), return_timestamps=unit)
        texts = [piece["text"] for piece in told["chunks"]]
        assert "".join(texts).replace(" ", "") == expected[0].replace(" ", "")
        times = [time for piece in told["chunks"] for time in piece["timestamp"]]
        assert times == sorted(times) and 0 <= times[0] and times[-1] <= 5000 / 8000 + 0.04


@pytest.mark.parametrize("samples", [24000, 24001, 23850, 320, 1])
def test_chunks_of_the_pipeline_give_what_the_whole_gives(tmp_path: Path, samples: int) -> None:
    """Where they read on to both sides by as much as the net reaches, and to the last frame."""
    model = trained()
    model.save_pretrained(tmp_path)
    write = pipeline("automatic-speech-recognition", model=str(tmp_path))
    reach = 0.01 * (model.backbone.receptive_field // 2) + 0.03  # and the window's
    assert reach < 0.64
    for seed in range(3):
        (whole,) = noise(samples, seed=seed)
        for batch_size in (1, 3):
            for unit in (None, "char", "word"):
                given = {"array": whole.numpy(), "sampling_rate": tones.RATE}
                told = write(
                    dict(given), chunk_length_s=4 * 0.64, stride_length_s=0.64,
                    batch_size=batch_size, return_timestamps=unit,
                )  # fmt: skip
                assert told["text"] == model.transcribe(whole)[0]
                if unit is not None:
                    assert told == write(dict(given), return_timestamps=unit)
    several = [{"array": clip.numpy(), "sampling_rate": tones.RATE} for clip in noise(9000, 30000)]
    answers = write(several, chunk_length_s=2.56, stride_length_s=(0.64, 0.64), batch_size=4)
    assert [answer["text"] for answer in answers] == model.transcribe(noise(9000, 30000))


def test_the_pipeline_reads_files_and_arrays_of_any_kind(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    write = pipeline("automatic-speech-recognition", model=str(tmp_path))
    samples = (noise(6000)[0] * 9000).short()
    expected = model.transcribe(samples)[0]
    soundfile.write(tmp_path / "x.wav", samples.numpy(), tones.RATE)
    stereo = np.stack([samples, samples]) / np.float32(32768)
    for sound in (
        str(tmp_path / "x.wav"),
        tmp_path / "x.wav",
        (tmp_path / "x.wav").read_bytes(),
        samples.numpy(),
        {"raw": samples.numpy(), "sampling_rate": tones.RATE},
        {"array": stereo, "sampling_rate": tones.RATE},
    ):
        assert write(sound)["text"] == expected
    soundfile.write(tmp_path / "y.wav", samples.numpy(), 2 * tones.RATE)  # another rate
    there = decode_audio(tmp_path / "y.wav", tones.RATE)
    assert write(str(tmp_path / "y.wav"))["text"] == model.transcribe(there)[0]
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="soundfile cannot decode it"):
        write(str(tmp_path / "bad.wav"))
    classify = pipeline(
        "audio-classification",
        model=ResidualForAudioClassification.build("tc_resnet8", labels=["a", "b"]).eval(),
        feature_extractor=ResidualFeatureExtractor(),
    )
    heard = decode_audio(tmp_path / "x.wav", 16000).float().numpy() / 32768
    assert classify(str(tmp_path / "x.wav")) == classify({"raw": heard, "sampling_rate": 16000})


def test_nothing_written_half_way_is_told_once() -> None:
    model = made().train()
    with torch.no_grad():
        model.head.linear.weight.zero_()
        model.head.linear.bias[0] = 5
    x, labels = torch.randn(2, 20, 40), torch.tensor([[2], [3]])
    told = []
    for step in range(120):
        model.progress = step / 120
        if step == 60:
            with pytest.warns(OnlyBlanks, match="writes nothing"):
                model(x, labels=labels)
            told.append(step)
        else:
            model(x, labels=labels)  # a warning would be an error
    assert told == [60]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "one vocabulary"),
        ({"vocabulary": VOCABULARY, "processor": "both"}, "one vocabulary"),
        ({"vocabulary": VOCABULARY, "dims": 2, "in_channels": 1}, "needs a spec with dims=1"),
        ({"vocabulary": ["a", "a"]}, "no symbols to write with"),
        ({"vocabulary": VOCABULARY, "activation": "rely"}, "activation='rely'"),
    ],
)
def test_bad_input_is_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ResidualForCTC.build(DENSE, **options)


def test_another_models_processor_is_refused() -> None:
    processor = ResidualCTCProcessor(
        ResidualFeatureExtractor(feature_size=20), learn_vocabulary(["abc"])
    )
    with pytest.raises(InputError, match="writes with 5 symbols, but the model was built for 8"):
        made().check_processor(processor)
    with pytest.raises(InputError, match="makes 20 features per frame, but the backbone takes 80"):
        ResidualForCTC.build("mel_resnet_ctc18", processor=processor)
    model = made()
    model.processor = None
    with pytest.raises(InputError, match="has no processor"):
        model.transcribe(noise(400))


def test_it_learns_a_language_of_tones_by_heart() -> None:
    """Augmented, with an empty text among the others."""
    torch.manual_seed(0)
    random = np.random.default_rng(1)
    texts = ["", *(tones.sentence(random) for _ in range(15))]
    model = made()
    clips = tones.clips(texts)
    augment = Augment(shift=0, stretch=0, warp=0.02, noise=0.2, noise_level=(20, 40), band_mask=1)
    learned = TranscriptItems(clips, model, augment)
    told = TranscriptItems(clips, model, evaluation=True)
    options = Options(
        epochs=60, batch_size=8, least_updates=1, learning_rate=1e-2, metric="cer",
        higher_is_better=False, device="cpu", progress=False, evaluate_every=60,
        schedule="one_cycle", clip=5.0,
    )  # fmt: skip
    result = fit(model, learned, told, options)
    assert result.metrics["cer"] == 0 == result.metrics["empty"]
    assert model.transcribe([w.float() / 32768 for w in clips.waveforms]) == texts
    assert evaluate(model, told)["wer"] == 0
