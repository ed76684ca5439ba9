"""Tokenizers of every kind: learned alike, saved and loaded alike, and nothing they cannot take."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resbackbones.errors import InputError
from resbackbones.text import Ngrams, NgramTokenizer, train_tokenizer
from resbackbones.text.tokenizer import KINDS, cuts

TEXTS = ["Who wrote it?", "what is a café", "How far is it to Zürich?", "who is it"] * 2
ODD = ["", " ", "\n\t", "[PAD] [BOS] it", "日本語 🙂", "who\u0301", "x" * 500, "it it it"]
WITH_NGRAMS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in KINDS},
    "word+ngrams": {"kind": "word", "ngrams": Ngrams(buckets=50, most=9)},
}


@pytest.mark.parametrize("name", WITH_NGRAMS)
def test_saved_and_loaded_it_says_the_same(name: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, **WITH_NGRAMS[name])
    tokenizer.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, NgramTokenizer) == (name == "word+ngrams")
    assert dict(loaded(ODD)) == dict(tokenizer(ODD))
    assert len(loaded) == len(tokenizer) and loaded.pad_token_id == tokenizer.pad_token_id == 0
    assert max(max(ids) for ids in tokenizer(ODD)["input_ids"]) < len(tokenizer)


@pytest.mark.parametrize("name", WITH_NGRAMS)
def test_the_same_texts_give_the_same_tokenizer(name: str) -> None:
    one, other = (train_tokenizer(iter(TEXTS), **WITH_NGRAMS[name]) for _ in range(2))
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()


@pytest.mark.parametrize("name", WITH_NGRAMS)
def test_an_empty_text_is_one_token_and_special_tokens_are_text(name: str) -> None:
    tokenizer = train_tokenizer(TEXTS, **WITH_NGRAMS[name])
    begin, padding = tokenizer.bos_token_id, tokenizer.pad_token_id
    assert tokenizer("")["input_ids"] == [begin]
    ids = tokenizer("[PAD] [BOS]")["input_ids"]
    assert ids[0] == begin and not {begin, padding} & set(ids[1:])
    batch = tokenizer(["", "who is"], padding=True, return_tensors="pt")
    assert batch["input_ids"].dtype == torch.int64
    assert batch["attention_mask"].sum(1).tolist() == [1, len(tokenizer("who is")["input_ids"])]


OF_BYTES = {kind: train_tokenizer(TEXTS, kind) for kind in ("byte", "bpe", "unigram")}


@pytest.mark.parametrize("kind", OF_BYTES)
@settings(max_examples=50, deadline=None)
@given(text=st.text())
@example(text="日本語 🙂\x00\n")
@example(text="  two  spaces ")
@example(text="[PAD] [BOS]")
def test_bytes_spell_any_text(kind: str, text: str) -> None:
    """To the byte; of the learned pieces, in the one spelling of what looks the same."""
    tokenizer = OF_BYTES[kind]
    ids = tokenizer(text)["input_ids"]
    written = tokenizer.decode(ids, skip_special_tokens=True)
    assert written == (text if kind == "byte" else unicodedata.normalize("NFC", text))
    assert kind != "byte" or len(ids) == 1 + len(text.encode())


def test_a_unigram_model_cuts_a_word_into_its_most_likely_pieces() -> None:
    texts = ["reading writing walking talking sing read write walk talk eat eating"] * 20
    tokenizer = train_tokenizer(texts, "unigram")
    scores = dict(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"])

    def best(word: str) -> float:
        cuts = range(1, len(word) + 1)
        return max((scores.get(word[:n], -1e9) + best(word[n:]) for n in cuts), default=0.0)

    for word in ("talking", "writing", "eats"):
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(f" {word}")["input_ids"])[1:]
        assert sum(scores[piece] for piece in pieces) == pytest.approx(best(f"Ġ{word}"))
        assert len(pieces) < len(word)
    assert scores["ÿ"] == scores["Z"] == min(scores.values())  # of bytes that no text held


def test_what_a_token_is() -> None:
    def tokens(kind: str, text: str, **options: Any) -> list[str]:
        tokenizer = train_tokenizer(TEXTS, kind, **options)
        return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[1:]

    assert tokens("character", "it\nis!") == ["i", "t", "[UNK]", "i", "s", "[UNK]"]
    assert tokens("byte", "it") == ["i", "t"]
    assert tokens("word", "who, is it??") == ["who", "[UNK]", "is", "it", "[UNK]"]
    assert tokens("word", "WHO is", lowercase=True) == ["who", "is"]
    assert tokens("word", "who café", min_frequency=3) == ["[UNK]", "[UNK]"]
    assert tokens("word", "cafe\u0301") == ["café"]  # one spelling of what looks the same
    assert tokens("bpe", " is it") == ["Ġis", "Ġit"]


def test_the_vocabulary_is_no_larger_than_asked() -> None:
    assert len(train_tokenizer(TEXTS, "word", vocab_size=6)) == 6
    assert len(train_tokenizer(TEXTS, "bpe", vocab_size=262)) == 262
    assert len(train_tokenizer(TEXTS, "unigram", vocab_size=259)) == 259
    assert len(train_tokenizer(TEXTS, "byte")) == 258


def test_ngrams_of_words_seen_and_unseen() -> None:
    options = Ngrams(buckets=1000, shortest=3, longest=4, most=6)
    tokenizer = train_tokenizer(TEXTS, "word", ngrams=options, lowercase=True)
    assert isinstance(tokenizer, NgramTokenizer)
    encoded = tokenizer("who WHOM")
    assert encoded["input_ids"][1:] == [tokenizer.convert_tokens_to_ids("who"), 1]
    nothing, who, whom = encoded["ngram_ids"]
    assert nothing == (0,) * 6
    assert who == options.of_word("who") and whom == options.of_word("whom")
    # <wh who ho> <who who>; then <wh who hom om> <who whom (hom> is one too many)
    assert who[-1] == 0 and who[:2] == whom[:2] and who[3] == whom[4] and 0 not in whom
    assert all(0 < number <= 1000 for number in who[:5])
    assert options.of_word("who") == (70, 666, 978, 503, 283, 0)  # on every machine


def test_ngrams_in_batches_of_any_form() -> None:
    tokenizer = train_tokenizer(TEXTS, "word", ngrams=Ngrams(most=5))
    single = [tokenizer(text) for text in ("who is it", "")]
    assert len(single[0]["ngram_ids"]) == 4 and len(single[0]["ngram_ids"][0]) == 5
    together = tokenizer(["who is it", ""], padding=True, return_tensors="pt")
    assert together["ngram_ids"].shape == (2, 4, 5)
    collate = transformers.DataCollatorWithPadding(tokenizer)
    for name, value in collate(single).items():
        assert torch.equal(value, together[name])
    one = tokenizer("who is it", return_tensors="pt")
    assert torch.equal(one["ngram_ids"], together["ngram_ids"][:1])
    cut = tokenizer("who is it", truncation=True, max_length=2)
    assert cut["ngram_ids"] == single[0]["ngram_ids"][:2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "words"}, "did you mean 'word'"),
        ({"kind": "byte", "vocab_size": 300}, "no option 'vocab_size'; leave it out"),
        ({"kind": "word", "vocabsize": 300}, "did you mean 'vocab_size'"),
        ({"kind": "word", "vocab_size": 0}, "vocab_size=0 is not a count"),
        ({"max_length": 1}, "max_length=1 leaves no room"),
        ({"max_length": "9"}, "max_length='9' leaves no room"),
        ({"kind": "bpe", "vocab_size": 257}, "vocab_size=257 cannot hold every byte; use 258 or"),
        ({"kind": "unigram", "vocab_size": 10}, "cannot hold every byte"),
        ({"kind": "unigram", "min_frequency": 2}, "no option 'min_frequency'"),
        ({"kind": "bpe", "ngrams": Ngrams()}, "use kind='word' with them, not 'bpe'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        train_tokenizer(TEXTS, **options)


def test_nothing_to_learn_from_is_refused() -> None:
    for texts in ([], ["", " "]):
        with pytest.raises(InputError, match="nothing to learn a vocabulary from"):
            train_tokenizer(texts, "word")
    with pytest.raises(InputError, match="or a lower min_frequency"):
        train_tokenizer(["no two alike"], "word", min_frequency=2)
    names = train_tokenizer(["no two alike"], "word", min_frequency=2, ngrams=Ngrams())
    assert names("two")["ngram_ids"] != names("no")["ngram_ids"]  # which still tell them apart


def test_one_text_is_no_list_of_texts() -> None:
    with pytest.raises(InputError, match="'who is it' is one text, whose letters would be learned"):
        train_tokenizer("who is it", "word")


@pytest.mark.parametrize("what", [None, 7, b"who", ["who"]], ids=str)
def test_what_is_no_text_is_named(what: Any) -> None:
    with pytest.raises(InputError, match=f"^text 2 is {re.escape(repr(what))}, no text"):
        train_tokenizer(["who", what, "is"], "word")


@pytest.mark.parametrize("name", WITH_NGRAMS)
def test_texts_are_cut_where_training_cut_them(name: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, max_length=3, **WITH_NGRAMS[name])
    whole = tokenizer("what is a café", truncation=False)["input_ids"]
    tokenizer.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(tokenizer) and loaded.model_max_length == 3
    for each in (tokenizer, loaded):
        assert each("what is a café")["input_ids"] == whole[:3]
        assert each("what is a café", truncation=False)["input_ids"] == whole
        assert each("what is a café", truncation=True, max_length=4)["input_ids"] == whole[:4]


@pytest.mark.parametrize("name", WITH_NGRAMS)
def test_texts_of_any_length_are_read_whole(name: str, tmp_path: Path) -> None:
    train_tokenizer(TEXTS, **WITH_NGRAMS[name]).save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert not cuts(loaded) and loaded.decode(loaded("it " * 3000)["input_ids"]).count("it") == 3000


@pytest.mark.parametrize("name", WITH_NGRAMS)
def test_a_pair_is_one_text_then_the_other(name: str) -> None:
    tokenizer = train_tokenizer(TEXTS, **WITH_NGRAMS[name])
    pair = tokenizer("who is it", "what is it?")
    for key, value in pair.items():
        assert value == tokenizer("who is it")[key] + tokenizer("what is it?")[key]
    batch = dict(tokenizer(["who is it", ""], ["what is it?", "it"]))
    assert batch == dict(tokenizer([("who is it", "what is it?"), ["", "it"]]))
    assert {key: value[0] for key, value in batch.items()} == dict(pair)
    one = tokenizer("who is it", "what is it?", return_tensors="pt")
    assert one["input_ids"].tolist() == [pair["input_ids"]]


def test_the_longer_of_a_pair_is_cut() -> None:
    tokenizer = train_tokenizer(TEXTS, "word", max_length=6, ngrams=Ngrams(most=3))
    pair = tokenizer("who is", "what is a who is it")
    assert pair["input_ids"] == tokenizer("who is")["input_ids"] + tokenizer("what is")["input_ids"]
    assert pair["ngram_ids"][-1] == tokenizer("is")["ngram_ids"][-1]


def test_wrong_ngrams_are_refused() -> None:
    with pytest.raises(InputError, match="buckets=0"):
        Ngrams(buckets=0)
    with pytest.raises(InputError, match="shortest=6 above longest=4"):
        Ngrams(shortest=6)


def test_ngrams_need_whole_texts() -> None:
    tokenizer = train_tokenizer(TEXTS, "word", ngrams=Ngrams())
    for option in ("is_split_into_words", "return_overflowing_tokens"):
        with pytest.raises(InputError, match="takes whole texts"):
            tokenizer("a", **{option: True})
