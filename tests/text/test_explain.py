"""What each word says for a class: the values add up, words stay whole, no text is markup."""

import copy
import dataclasses
import html
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import resbackbones as rb
from resbackbones.text import (
    Attribution,
    ResidualForSequenceClassification,
    TfidfClassifier,
    attribute,
    attribution_page,
)
from tests.text.test_models import LABELS, SMALL, TEXTS, TOKENIZERS, trained

TEXT = "how far is  Zürich, the café's river?\n"
WORDS = ["how", "far", "is", "Zürich", ",", "the", "café", "'", "s", "river", "?"]


@pytest.mark.parametrize("net", ["pre", "dpcnn"])
@pytest.mark.parametrize("tokens", TOKENIZERS)
def test_the_values_add_up_to_the_difference_of_the_logits(tokens: str, net: str) -> None:
    model = trained(tokens, net)
    found = attribute(model, TEXT, "thing", steps=256)
    encoded = model.processor(TEXT, return_tensors="pt")
    del encoded["attention_mask"]
    with torch.no_grad():
        vectors = model.embedding(**encoded)
        blank = vectors * torch.tensor([1.0] + [0.0] * (vectors.shape[-1] - 1))  # [BOS] stays
        with_text, without = model.classify(torch.cat([vectors, blank]))[:, 1]
        score = model.classify(vectors).softmax(-1)[0, 1]
    change = float(with_text - without)
    # The midpoints' error on a line with kinks falls with the square of the steps between two.
    assert float(found.values.sum()) == pytest.approx(change, abs=0.02 * abs(change) + 0.01)
    assert found.score == pytest.approx(float(score), abs=1e-5)


@pytest.mark.parametrize("tokens", TOKENIZERS)
def test_words_stay_whole_whatever_a_token_is(tokens: str) -> None:
    found = attribute(trained(tokens), TEXT, steps=2)
    shown = [TEXT[start:end] for start, end in found.spans]
    words = [word for word in shown if not word.isspace()]
    joined = tokens == "bpe" and "'s" in words  # which is one token there
    assert words == ([*WORDS[:7], "'s", *WORDS[9:]] if joined else WORDS)
    assert len(found.values) == len(shown)
    assert all(a[1] <= b[0] for a, b in zip(found.spans, found.spans[1:], strict=False))


@settings(max_examples=40)
@given(text=st.text(max_size=40), tokens=st.sampled_from(sorted(TOKENIZERS)))
def test_any_text_is_shown_as_it_is(text: str, tokens: str) -> None:
    found = attribute(MODELS[tokens], text, steps=1)
    assert found.values.isfinite().all() and len(found.values) == len(found.spans)
    assert "".join(piece for piece, *_ in found._pieces()) == text
    read = Reader()
    read.feed(attribution_page([found]))
    assert "".join(read.quoted) == text


class Reader(HTMLParser):
    """The text inside of a page's quotations, and the tags it has there."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.quoted, self.tags = False, [], set[str]()  # type: ignore[var-annotated]

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if self.inside:
            self.tags.add(tag)
        self.inside |= tag == "blockquote"

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag != "blockquote"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.quoted.append(data)


MODELS = {tokens: trained(tokens) for tokens in TOKENIZERS}


def a_net_of_one_word(word: str, label: int, **options: Any) -> ResidualForSequenceClassification:
    """Whose logit of a class is larger by one for each time that a word occurs."""
    model = trained("word", "post", head={"pooling": "max"}, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embedding.tokens.weight[model.processor.vocab[word], 0] = 1.0

    def classify(x: torch.Tensor, lengths: Any = None) -> torch.Tensor:
        logits = torch.zeros(len(x), 3)
        logits[:, label] = x[:, 0].sum(-1)
        return logits

    model.classify = classify  # type: ignore[method-assign, assignment]
    return model


def test_the_word_that_counts_has_all_the_value() -> None:
    model = a_net_of_one_word("rivers", 2)
    found = attribute(model, "who wrote rivers on rivers")
    assert (found.label, found.score) == ("number", pytest.approx(0.787, abs=1e-3))
    assert found.values.tolist() == pytest.approx([0, 0, 1, 0, 1])
    assert attribute(model, "who wrote rivers", "person").values.tolist() == [0, 0, 0]


def test_words_are_blue_or_orange_by_what_they_say() -> None:
    text = 'a <b>&"\x1b[2J\u202e'
    found = Attribution(text, "<i>", 0.5, ((0, 1), (2, 5)), torch.tensor([-0.5, 1.0]))
    shown = found.html()
    assert '<span style="background: rgb(70, 130, 240)" title="+1.000">&lt;b&gt;</span>' in shown
    assert '<span style="background: rgb(248, 188, 152)" title="-0.500">a</span> ' in shown
    assert "<b>&lt;i&gt;</b> 50.0 %" in shown and html.escape('&"') in shown
    read = Reader()
    read.feed(attribution_page([found, found]))
    assert read.tags == {"span"} and "".join(read.quoted) == 2 * text
    terminal = found.ansi()
    assert "\x1b[30;48;2;70;130;240m<b>\x1b[0m" in terminal
    assert re.sub(r"\x1b\[(0|30;48;2;\d+;\d+;\d+)m", "", terminal) == 'a <b>&"�[2J�'


def test_a_cut_text_keeps_its_end_without_a_say() -> None:
    model = trained("word")
    model.processor = copy.deepcopy(model.processor)
    model.processor.model_max_length = 3
    found = attribute(model, "who wrote the book")
    assert found.spans == ((0, 3), (4, 9))
    assert found.html().endswith(" the book</blockquote>")


TFIDF = TfidfClassifier.fit(TEXTS * 5, torch.arange(3).repeat(5), 3)


def answering_with(
    share: float, tokens: str, max_length: int | None = None, **options: Any
) -> ResidualForSequenceClassification:
    """A model whose answer is the net's and, with this share, that of `TFIDF`."""
    tokenizer = copy.deepcopy(TOKENIZERS[tokens])
    tokenizer.tfidf = TFIDF
    tokenizer.model_max_length = max_length or tokenizer.model_max_length
    model = trained(tokens, processor=tokenizer, **options)
    model.config.tfidf = share
    return model


@pytest.mark.parametrize("max_length", [None, 5])
@pytest.mark.parametrize("tokens", TOKENIZERS)
def test_the_values_add_up_to_the_difference_of_the_logits_of_net_and_tfidf(
    tokens: str, max_length: int | None
) -> None:
    model = answering_with(0.4, tokens, max_length)
    found = attribute(model, TEXT, "thing", steps=256)
    encoded = model.processor(TEXT, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[0]
        vectors = model.embedding(encoded["input_ids"], encoded.get("ngram_ids"))
        vectors[:, :, 1:] = 0  # [BOS] stays
        without = torch.lerp(model.classify(vectors)[0], torch.from_numpy(TFIDF.bias), 0.4)
    change = float(logits[1] - without[1])
    assert float(found.values.sum()) == pytest.approx(change, abs=0.02 * abs(change) + 0.01)
    assert found.score == pytest.approx(float(logits.softmax(-1)[1]), abs=1e-5)


def test_the_likeliest_class_is_that_of_the_whole_answer() -> None:
    text, shares = "who wrote the book", (0.0, 0.5, 0.9, 1.0)
    model = answering_with(0.0, "word")
    model.processor.tfidf = dataclasses.replace(TFIDF, bias=np.float32([-99, 99, -99]))
    labels = []
    for model.config.tfidf in shares:
        found = attribute(model, text, steps=1)
        logits = model(**model.processor(text, return_tensors="pt")).logits[0].detach()
        assert found.label == LABELS[int(logits.argmax())]
        assert found.score == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
        labels.append(found.label)
    assert labels[0] != labels[-1] == "thing"


def test_words_beyond_the_cut_say_what_tfidf_makes_of_them() -> None:
    text = "who wrote the book on rivers"
    found = attribute(answering_with(0.4, "word", 3), text, "person")
    assert [text[start:end] for start, end in found.spans] == text.split()
    said = 0.4 * TFIDF.said(text, 0)
    expected = [float(said[start:end].sum()) for start, end in found.spans]
    assert found.values[2:].tolist() == pytest.approx(expected[2:], abs=1e-6)
    assert found.values[2:].all()
    net = attribute(trained("word"), text[:9], "person").values  # of what the cut leaves
    assert torch.allclose(found.values[:2], 0.6 * net + torch.tensor(expected[:2]), atol=1e-4)


@pytest.mark.parametrize("max_length", [None, 5])
@pytest.mark.parametrize("tokens", TOKENIZERS)
def test_tfidf_without_a_share_changes_nothing(tokens: str, max_length: int | None) -> None:
    model = answering_with(0.0, tokens, max_length)
    found = attribute(model, TEXT, steps=2)
    model.processor.tfidf = None
    alone = attribute(model, TEXT, steps=2)
    assert (found.spans, found.label, found.score) == (alone.spans, alone.label, alone.score)
    assert torch.equal(found.values, alone.values)


@settings(max_examples=40)
@given(text=st.text(max_size=40), tokens=st.sampled_from(sorted(TOKENIZERS)))
def test_tfidf_alone_says_of_any_text_what_its_words_do(text: str, tokens: str) -> None:
    found = attribute(BOTH[tokens], text, 1, steps=1)
    expected = float(TFIDF.logits([text])[0, 1]) - TFIDF.bias[1]
    assert float(found.values.sum()) == pytest.approx(expected, abs=1e-4)
    assert "".join(piece for piece, *_ in found._pieces()) == text


BOTH = {tokens: answering_with(1.0, tokens, 4) for tokens in TOKENIZERS}


def test_an_empty_text_has_no_words() -> None:
    found = attribute(trained("word"), "")
    assert found.spans == () and found.values.shape == (0,) and found.ansi() == ""


def test_any_number_of_classes_and_a_model_left_as_it_was() -> None:
    model = trained("ngrams", problem_type="multi_label_classification").train()
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = attribute(model, TEXTS[0], 1)
    encoded = model.processor(TEXTS[0], return_tensors="pt")
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.score == pytest.approx(
        float(model.eval()(**encoded).logits[0, 1].sigmoid()), abs=1e-5
    )
    assert found.label == LABELS[1] and found.values.any()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"text": ["a"]}, r"\['a'\] is no text; give one string"),
        ({"label": "thin"}, "the model has no class 'thin'; did you mean 'thing'"),
        ({"label": 3}, "the model has no class 3; give 0 to 2, or a name"),
        ({"steps": 0}, "steps=0 make no line"),
    ],
)
def test_wrong_questions_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        attribute(trained("word"), **{"text": "who", **given})
    model = ResidualForSequenceClassification.build(
        SMALL, labels=LABELS, processor=TOKENIZERS["word"]
    )
    model.processor = None
    with pytest.raises(rb.InputError, match="the model has no tokenizer"):
        attribute(model, "who")
