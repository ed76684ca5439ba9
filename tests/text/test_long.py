"""A text of any length gives in chunks what it gives as a whole where every operator is local;
elsewhere the model says so."""

import math
import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

import resbackbones as rb
from resbackbones.text import (
    Approximate,
    Ngrams,
    ResidualForSequenceClassification,
    TfidfClassifier,
    train_tokenizer,
)

WORDS = "water light moon wall less tear tongue mountain lamp river house bread".split()
LABELS = ["person", "thing", "number"]
POOLINGS = ["mean", "max", "mean_max", "k_max", "attentive"]
MOST = 16  # tokens that the tokenizers leave of a text unless it is read in chunks


def narrow(spec: rb.BackboneSpec) -> rb.BackboneSpec:
    """As deep as it was, and as far reaching."""

    def width(channels: int) -> int:
        return max(4, channels // 64)

    def narrowed(part: Any) -> Any:
        return replace(part, channels=width(part.channels))

    return replace(
        spec,
        in_channels=5,
        stem=None if spec.stem is None else narrowed(spec.stem),
        stages=tuple(map(narrowed, spec.stages)),
        tail=tuple(map(narrowed, spec.tail)),
    )


# Every local sequence net of the zoo, those of speech too, and what none of them does.
LOCAL = {
    name: narrow(spec)
    for name, spec in rb.SPECS.items()
    if spec.dims == 1 and spec.receptive_field < math.inf
}
LOCAL |= {
    "patches": rb.BackboneSpec(
        (rb.Stage(8, 1), rb.Stage(12, 1, 2)), dims=1, in_channels=5, stem=rb.Stem(8, 4, 4),
        downsample="patch", norm="layer",
    ),
    "blur": rb.BackboneSpec(
        (rb.Stage(4, 1), rb.Stage(6, 1, 3)), dims=1, in_channels=5, stem=rb.Stem(4, 3, 2, pool=2),
        downsample="blur", shortcut="average",
    ),
    "causal": rb.BackboneSpec(
        (rb.Stage(4, 1, 2, kernel=4), rb.Stage(6, 1, 3, dilation=2)), dims=1, in_channels=5,
        causal=True,
    ),
}  # fmt: skip
TEXT = "vdcnn9 vdcnn17 vdcnn29 vdcnn49 dpcnn tcn tcn_char gcnn14"
TEXT += " word_resnet6 word_gcnn8 word_tcn13 word_convnext14"


def text_of(length: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, length))


def build(
    spec: str | rb.BackboneSpec = "word_resnet6", pooling: str = "mean", **options: Any
) -> ResidualForSequenceClassification:
    """A model with the embedding and the running statistics of one that has been trained."""
    torch.manual_seed(0)
    spec = LOCAL[spec] if isinstance(spec, str) else spec
    options = {"labels": LABELS, "processor": tokenizer(), **options}
    model = ResidualForSequenceClassification.build(
        spec, head={"pooling": pooling, "k": 3}, **options
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        for table in model.embedding.parameters():
            table.mul_(50)
        if model.head.attention is not None:
            torch.nn.init.normal_(model.head.attention.weight)
    return model.eval()


@cache
def tokenizer() -> Any:
    return train_tokenizer(WORDS, "word", max_length=MOST)


@torch.no_grad()
def whole(model: ResidualForSequenceClassification, text: Any) -> Tensor:
    inputs = model.processor([text], truncation=False, verbose=False, return_tensors="pt")
    return model(**inputs).logits


@torch.no_grad()
def in_pieces(
    model: ResidualForSequenceClassification, text: Any, chunk: int, overlap: int | None = None
) -> Tensor:
    pieces = model._pieces(chunk, overlap)
    assert pieces is not None and pieces.is_exact == (overlap is None)
    return model._in_pieces(text, pieces)


def scores(answers: list[dict[str, Any]]) -> list[float]:
    given = {answer["label"]: answer["score"] for answer in answers}
    return [given[label] for label in LABELS]


def check_same(found: Tensor, expected: Tensor) -> None:
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= bound


def test_every_net_of_the_zoo_for_texts_is_among_these() -> None:
    assert set(TEXT.split()) <= set(LOCAL)


@pytest.mark.parametrize("name", LOCAL)
@settings(max_examples=6)
@given(
    length=st.integers(0, 400),
    chunk=st.integers(1, 200),
    pooling=st.sampled_from(POOLINGS),
    seed=st.integers(0, 99),
)
def test_chunks_give_what_the_whole_gives(
    name: str, length: int, chunk: int, pooling: str, seed: int
) -> None:
    # In double precision, where nothing but another neighbour makes a difference.
    model = build(name, pooling).double()
    text = text_of(length, seed)
    chunk = max(chunk, length // 6)  # few enough to be quick
    check_same(in_pieces(model, text, chunk), whole(model, text))


@pytest.mark.parametrize("name", LOCAL)
def test_chunks_in_single_precision_and_what_they_need_beside_their_own(name: str) -> None:
    model = build(name)
    text = text_of(1500)
    expected = whole(model, text)
    check_same(in_pieces(model, text, 256), expected)
    difference = in_pieces(model, text, 256, overlap=0) - expected
    assert float(difference.abs().max()) > 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_of_many_chunks(pooling: str) -> None:
    model = build("vdcnn9", pooling)
    text = text_of(1000)
    check_same(in_pieces(model, text, 1), whole(model, text))


def test_no_more_than_a_chunk_and_its_reach_passes_the_net() -> None:
    model = build("dpcnn")
    sizes: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    model.predict(text_of(5000), chunk=640)
    (stride,) = model.backbone.strides[-1]
    assert len(sizes) == 8  # of 5,000 words and the token before them
    assert max(sizes) < 640 + model.backbone.receptive_field + 2 * stride


@pytest.mark.parametrize("kind", ["word", "ngrams", "byte"])
def test_a_text_longer_than_the_tokenizer_reads_is_read_whole(kind: str) -> None:
    options = {"word": {}, "ngrams": {"ngrams": Ngrams(buckets=50)}, "byte": {"kind": "byte"}}[kind]
    made = train_tokenizer(WORDS, max_length=MOST, **options)  # type: ignore[arg-type]
    model = build("word_resnet6", "max", processor=made)
    text = text_of(500)
    for long in (text, f"{text} unheard light"):
        found = model.predict(long, chunk=64)
        assert scores(found) == pytest.approx(whole(model, long).softmax(1)[0].tolist(), abs=1e-5)
    assert model.predict(text) == model.predict(f"{text} unheard light")  # cut at 16
    assert scores(model.predict(text)) != pytest.approx(scores(model.predict(text, chunk=64)))


def test_the_tfidf_classifier_has_its_share() -> None:
    texts = [text_of(12, seed) for seed in range(12)]
    made = train_tokenizer(WORDS, "word", max_length=MOST)
    made.tfidf = TfidfClassifier.fit(texts, torch.arange(12) % 3, 3)
    model = build(processor=made)
    assert model.config.tfidf == 0.5
    text = text_of(300)
    check_same(in_pieces(model, text, 64), whole(model, text))
    model.config.tfidf = 1.0
    check_same(in_pieces(model, text, 64), made.tfidf.logits([text]))


def test_a_pair_is_read_through_both_texts() -> None:
    model = build("word_tcn13", "max")
    pair = text_of(90), text_of(400, 1)
    found, alone = model.predict([pair, pair[0]], chunk=100)
    assert scores(found) == pytest.approx(whole(model, pair).softmax(1)[0].tolist(), abs=1e-5)
    assert scores(alone) != pytest.approx(scores(found))
    assert model.predict(pair, chunk=100) == found


@pytest.mark.parametrize("name", ["dpcnn", "word_tcn13", "causal"])
@pytest.mark.parametrize("text", ["", "water"])
def test_a_text_of_a_token_or_none_is_one_chunk(name: str, text: str) -> None:
    model = build(name)
    found = scores(model.predict(text, chunk=1))
    assert found == pytest.approx(whole(model, text).softmax(1)[0].tolist(), abs=1e-6)
    assert found == pytest.approx(scores(model.predict(text)), abs=1e-6)


@pytest.mark.parametrize(
    "changes", [{"norm": "group"}, {"attention": "se"}, {"attention": "eca"},
                {"downsample": "k_max"}], ids=str
)  # fmt: skip
def test_what_is_not_local_is_refused_or_called_approximate(changes: dict[str, Any]) -> None:
    model = build(replace(LOCAL["vdcnn9"], **changes))
    text = text_of(300)
    with pytest.raises(rb.InputError, match=r"looks at the whole text.*no chunk gives what"):
        model.predict(text, chunk=100)
    with pytest.warns(Approximate, match=r"more than 100 tokens.*overlap by 16") as told:
        found = model.predict(text, chunk=100, overlap=16)
    assert told[0].filename == __file__
    assert sum(scores(found)) == pytest.approx(1)


def test_an_overlap_of_the_whole_reach_is_exact() -> None:
    model = build("word_tcn13")
    text = text_of(700)
    expected = model.predict(text, chunk=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.predict(text, chunk=50, overlap=126)
    assert found == expected
    with pytest.warns(Approximate):
        model.predict(text, chunk=50, overlap=125)


def test_predictions_are_those_of_the_pipeline_and_leave_the_mode_alone() -> None:
    model = build("tcn")  # has dropout
    classify: Any = transformers.pipeline(
        "text-classification", model=model, tokenizer=model.processor
    )
    texts = [text_of(length) for length in (3, 0, 40, 7, 11)]
    model.train()
    found = model.predict(texts, top_k=2, batch_size=2)
    assert all(module.training for module in model.modules())
    model.eval()
    for text, answers in zip(texts, found, strict=True):
        expected = classify(text, top_k=2)
        assert [a["label"] for a in answers] == [e["label"] for e in expected]
        assert [a["score"] for a in answers] == pytest.approx([e["score"] for e in expected])
    assert len(model.predict(texts[0])) == len(model.predict(texts[0], top_k=None)) == 3
    assert [answers[:1] for answers in found] == model.predict(texts, top_k=1, batch_size=2)


def test_labels_that_stand_for_themselves() -> None:
    model = build(problem_type="multi_label_classification")
    found = scores(model.predict(text_of(300), chunk=64))
    assert found == pytest.approx(whole(model, text_of(300)).sigmoid()[0].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("texts", "options", "sentence"),
    [
        ("a", {"chunk": 0}, "chunk=0 is no number of tokens; give a whole one from 1 up"),
        ("a", {"chunk": 2.0}, "chunk=2.0 is no number of tokens"),
        ("a", {"chunk": 9, "overlap": -1}, "overlap=-1 is no number of tokens"),
        ("a", {"overlap": 4}, "overlap=4 is that of chunks.*give chunk= too"),
        ("a", {"top_k": 0}, "top_k=0 is no count of classes"),
        ("a", {"batch_size": 0}, "batch_size=0 holds no text"),
        ([], {}, "there are no texts in the list"),
        (7, {}, "7 is no text; give one, or a list of them"),
        ({"text": "a"}, {}, "is no text; give one, or a list of them"),
        (["a", None], {}, "text 2 is None, no text"),
        ([("a", "b", "c")], {}, r"text 1 is \('a', 'b', 'c'\), no text; give strings"),
    ],
)
def test_what_cannot_be_predicted(texts: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        build().predict(texts, **options)


@pytest.mark.parametrize("options", [{}, {"chunk": 4}])
def test_a_text_that_another_tokenizer_makes_nothing_of_is_named(options: dict[str, Any]) -> None:
    known = {"[PAD]": 0, "[UNK]": 1, "water": 2}
    other = Tokenizer(WordLevel(known, unk_token="[UNK]"))
    other.pre_tokenizer = WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=other, pad_token="[PAD]", unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    model = build(processor=made)
    (water,) = model.predict(["water"], **options)
    assert scores(water) == pytest.approx(whole(model, "water").softmax(1)[0].tolist(), abs=1e-6)
    with pytest.raises(rb.InputError, match="the text ' ' has no token to go by; leave it out"):
        model.predict(["water", " "], **options)


def test_a_model_without_a_tokenizer_says_so() -> None:
    model = build()
    model.processor = None
    with pytest.raises(rb.InputError, match=r"has no tokenizer; set model\.processor"):
        model.predict("water", chunk=4)
