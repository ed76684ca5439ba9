"""The TF-IDF classifier is as strong as scikit-learn's own, the same everywhere, comes back from
disk bit for bit, and has the share in a model's answers that it should have."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_union

import resbackbones as rb
from resbackbones.data import open_dataset
from resbackbones.errors import InputError
from resbackbones.text import (
    Ngrams,
    ResidualForSequenceClassification,
    TextItems,
    TfidfClassifier,
    choose_share,
    train_tokenizer,
)
from resbackbones.text import tfidf as tfidf_module
from resbackbones.text.tfidf import BUCKETS, FOLDS, STRENGTHS, _counts, _telling

TEXTS = ["who wrote it ?", "Where is it?", "who is it", "where's the sea", "how far is it", "how?"]
LABELS = torch.tensor([0, 1, 0, 1, 2, 2])
NAMES = ("person", "place", "number")
FITTED = TfidfClassifier.fit(TEXTS, LABELS, 3)
SPEC = rb.BackboneSpec((rb.Stage(8, 1),), dims=1, in_channels=8, norm="layer")


def model_of(tokenizer: Any, **options: Any) -> ResidualForSequenceClassification:
    torch.manual_seed(0)
    options = {"labels": NAMES, **options}
    return ResidualForSequenceClassification.build(SPEC, processor=tokenizer, **options).eval()


def tokenizer_with(tfidf: TfidfClassifier | None = FITTED, **options: Any) -> Any:
    tokenizer = train_tokenizer(TEXTS, **options)
    tokenizer.tfidf = tfidf
    return tokenizer


def test_the_features_are_those_of_scikit_learn() -> None:
    vectorizer = make_union(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]+", sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    expected = vectorizer.fit_transform(TEXTS)
    features = FITTED._weighed(_counts(TEXTS))
    assert features.shape == expected.shape  # no two n-grams fell together
    # Which column is whose does not matter to what texts have in common.
    assert (features @ features.T).toarray() == pytest.approx((expected @ expected.T).toarray())
    new = ["who is the person", "nothing of it: zzz"]
    found = FITTED._weighed(_counts(new)) @ features.T
    assert found.toarray() == pytest.approx((vectorizer.transform(new) @ expected.T).toarray())


def test_it_learns_and_the_same_again() -> None:
    assert torch.equal(FITTED.logits(TEXTS).argmax(1), LABELS)
    again = TfidfClassifier.fit(TEXTS, LABELS, 3)
    assert all((vars(again)[name] == value).all() for name, value in vars(FITTED).items())
    assert FITTED.classes == 3 and FITTED.columns.max() < 2 * BUCKETS


def test_features_count_by_how_they_tell_a_class_from_the_rest() -> None:
    """Wang & Manning 2012, equation 1, by hand: of features in 2 + 1 + 0 and 1 + 1 + 2 texts."""
    x = sparse.csr_matrix([[0.3, 0, 0], [0.1, 0.4, 0], [0.2, 0.5, 0.1], [0, 0, 0.7]])
    own, rest = np.array([3, 2, 1]), np.array([2, 2, 3])  # each once more than found
    ratio = np.abs(np.log((own / own.sum()) / (rest / rest.sum())))
    telling = _telling(x, np.array([1, 1, 0, 0]))
    assert telling / telling[0] == pytest.approx(ratio / ratio[0])
    assert np.square(x.toarray() * telling).sum() == pytest.approx(np.square(x.toarray()).sum())
    nothing = _telling(sparse.csr_matrix([[0.5], [0.2]]), np.array([1, 0]))
    assert nothing.tolist() == [1.0]  # what tells nothing stays as it is, where nothing else does


@settings(max_examples=20)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_a_text_gets_the_same_logits_alone(texts: list[str]) -> None:
    alone = torch.cat([FITTED.logits([text]) for text in texts])
    assert torch.equal(alone, FITTED.logits(texts)) and alone.dtype == torch.float32
    for text, logits in zip(texts, alone, strict=True):
        if not text.strip():
            assert torch.equal(logits, torch.from_numpy(FITTED.bias))


def test_two_classes_mirror_each_other_and_some_may_be_missing() -> None:
    two = TfidfClassifier.fit(TEXTS[:4], LABELS[:4], 2)
    logits = two.logits(TEXTS)
    torch.testing.assert_close(logits[:, 0], -logits[:, 1])
    assert torch.equal(logits[:4].argmax(1), LABELS[:4])
    four = TfidfClassifier.fit(TEXTS, LABELS, 4)
    assert (four.logits(TEXTS).argmax(1) == LABELS).all()
    one = TfidfClassifier.fit(TEXTS[:2], torch.zeros(2, dtype=torch.int64), 2)
    assert (one.logits(TEXTS).argmax(1) == 0).all()


def test_any_number_of_classes() -> None:
    several = torch.tensor([[0, 1.0], [1, 0], [0, 1], [1, 1], [0, 0], [0, 0]])
    logits = TfidfClassifier.fit(TEXTS, several, 2).logits(TEXTS)
    assert torch.equal((logits > 0).float(), several)


def test_the_scale_is_that_of_likely_answers() -> None:
    """Labels at random: whoever is sure of them is wrong half the time."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefgh", k=8)) for _ in range(200)]
    labels = torch.tensor([draw.randrange(2) for _ in texts])
    unsure = TfidfClassifier.fit(texts, labels, 2).logits(texts).softmax(1).max(1).values
    named = [
        f"{text} {'yes' if label else 'no'}" for text, label in zip(texts, labels, strict=True)
    ]
    sure = TfidfClassifier.fit(named, labels, 2).logits(named).softmax(1).max(1).values
    assert unsure.mean() < 0.6 and sure.mean() > 0.95


@pytest.mark.parametrize("many", [False, True])
def test_strengths_are_judged_on_texts_that_were_left_out(
    many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[tuple[float, int]] = []

    def linear(x: Any, y: Any, strength: float, *options: Any) -> Any:
        fits.append((strength, x.shape[0]))
        return plain(x, y, strength, *options)

    plain = tfidf_module._linear
    monkeypatch.setattr(tfidf_module, "_linear", linear)
    monkeypatch.setattr(tfidf_module, "MANY", 20 if many else 5000)
    texts, labels = [f"{word} {n}" for n in range(15) for word in "ab"], [0, 1] * 15
    TfidfClassifier.fit(texts, torch.tensor(labels), 2)
    folds = 1 if many else FOLDS
    assert fits.pop()[1] == 30
    assert fits == [(strength, 24) for strength in STRENGTHS for _ in range(folds)]


def test_classes_count_alike_when_asked() -> None:
    texts = ["it is a dog"] * 30 + ["it is a cat"] * 3
    labels = torch.tensor([0] * 30 + [1] * 3)
    odds = [
        float(TfidfClassifier.fit(texts, labels, 2, balanced=balanced).logits(["it is"])[0, 1])
        for balanced in (False, True)
    ]
    assert odds[0] < odds[1]


@pytest.mark.parametrize("options", [{"kind": "byte"}, {"ngrams": Ngrams(buckets=50)}], ids=str)
def test_a_model_answers_by_both_and_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tokenizer_with(max_length=4, **options)
    model = model_of(tokenizer)
    assert model.config.tfidf == 0.5
    model.config.tfidf = 0.3
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(batch["tfidf_logits"], FITTED.logits(TEXTS))  # whole, though cut at 4
    plain = {name: value for name, value in batch.items() if name != "tfidf_logits"}
    with torch.no_grad():
        mixed = model(**batch).logits
        net = model.train()(**plain).logits  # without dropout: by itself
        assert torch.equal(model(**batch).logits, net)
    model.eval()
    torch.testing.assert_close(mixed, 0.7 * net + 0.3 * batch["tfidf_logits"])
    model.save_pretrained(tmp_path)
    loaded = ResidualForSequenceClassification.from_pretrained(tmp_path)
    again = loaded.processor(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(loaded.eval()(**again).logits, mixed)
    classify = transformers.pipeline("text-classification", model=str(tmp_path))
    for batch_size in (1, 4):
        answers = classify(TEXTS, batch_size=batch_size, top_k=None)
        scores = [{each["label"]: each["score"] for each in answer} for answer in answers]
        found = torch.tensor([[score[name] for name in NAMES] for score in scores])
        torch.testing.assert_close(found, mixed.softmax(1), atol=1e-5, rtol=0)


def test_a_tokenizer_without_it_leaves_no_file_behind(tmp_path: Path) -> None:
    tokenizer = tokenizer_with()
    tokenizer.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.tfidf.logits(TEXTS), FITTED.logits(TEXTS))
    one, pair = loaded("who is it"), loaded("who is", "it")
    assert one["tfidf_logits"] == pair["tfidf_logits"] == FITTED.logits(["who is it"])[0].tolist()
    loaded.tfidf = None
    loaded.save_pretrained(tmp_path)
    assert not (tmp_path / TfidfClassifier.FILE).exists()
    assert "tfidf_logits" not in transformers.AutoTokenizer.from_pretrained(tmp_path)("who")


def test_items_hold_what_it_says() -> None:
    source = open_dataset(Dataset.from_dict({"text": TEXTS, "label": LABELS.tolist()}))
    items = TextItems(source, tokenizer_with())
    assert torch.equal(items.__getitems__([3, 1])["tfidf_logits"], FITTED.logits(TEXTS)[[3, 1]])
    without = TextItems(source, tokenizer_with(None))
    assert without.tfidf_logits is None and "tfidf_logits" not in without[0]
    assert items.fingerprint() != without.fingerprint()


def test_the_share_is_the_one_whose_answers_are_likeliest() -> None:
    torch.manual_seed(0)
    labels = torch.randint(3, (400,))
    right = torch.nn.functional.one_hot(labels, 3).float()
    noise = torch.randn(2, 400, 3)
    assert choose_share(noise[0], right + noise[1] / 4, labels) == 1.0
    assert choose_share(right + noise[1] / 4, noise[0], labels) == 0.05
    assert 0.3 <= choose_share(*(4 * right + noise), labels) <= 0.7
    assert 0.3 <= choose_share(*(4 * right - 2 + noise), right) <= 0.7  # of any number


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are 0 texts and 0 labels"):
        TfidfClassifier.fit([], torch.zeros(0, dtype=torch.int64), 2)
    with pytest.raises(InputError, match="all texts are blank"):
        TfidfClassifier.fit([" ", "\n"], LABELS[:2], 2)
    with pytest.raises(InputError, match="there are 6 texts and 2 labels"):
        TfidfClassifier.fit(TEXTS, LABELS[:2], 2)
    (tmp_path / "odd").write_bytes(b"no such thing")
    with pytest.raises(InputError, match="cannot read the TF-IDF classifier"):
        TfidfClassifier.load(tmp_path / "odd")
    model_of(tokenizer_with(None)).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="is no TF-IDF classifier"):
        TfidfClassifier.load(tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match="takes whole texts; leave out is_split_into_words"):
        tokenizer_with()(["who", "is"], is_split_into_words=True)
    with pytest.raises(InputError, match="classifier tells 3 classes, but the model has 2"):
        model_of(tokenizer_with(), labels=["a", "b"])
    model = model_of(tokenizer_with())
    with pytest.raises(InputError, match="needs tfidf_logits beside input_ids"):
        model(torch.tensor([[2, 3]]))


def test_a_fine_tuning_to_other_classes_says_what_to_do(tmp_path: Path) -> None:
    model_of(tokenizer_with()).save_pretrained(tmp_path)
    options = {"labels": ["a", "b"], "ignore_mismatched_sizes": True}
    load = ResidualForSequenceClassification.from_pretrained
    with pytest.raises(InputError, match="or load the model with tfidf=0"):
        load(tmp_path, **options)
    model = load(tmp_path, **options, tfidf=0.0)
    logits = model(**model.processor("who is it", return_tensors="pt")).logits
    assert logits.shape == (1, 2)
    model.processor.tfidf = TfidfClassifier.fit(TEXTS[:4], LABELS[:4], 2)
    model.config.tfidf = 0.5
    model.save_pretrained(tmp_path / "other")
    assert load(tmp_path / "other").processor.tfidf.classes == 2
