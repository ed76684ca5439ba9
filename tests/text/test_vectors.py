"""Word vectors from files, as the first embedding of a tokenizer's words."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from resbackbones.errors import InputError
from resbackbones.text import (
    Ngrams,
    ResidualForSequenceClassification,
    WordVectors,
    load_vectors,
    train_tokenizer,
)

WORDS = train_tokenizer(["the cat the Cat sat café Paris"], "word")
LOWER = train_tokenizer(["the cat the Cat sat café Paris"], "word", lowercase=True)
GLOVE = "the 1 2 3\ncat 4 5 -6e-1\ncafé .5 0 1\nunasked 7 8 9\ncat 0 0 0\nParis 2 2 2\n"


def written(folder: Path, content: str | bytes, name: str = "vectors.txt") -> Path:
    data = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def vector_of(vectors: WordVectors, word: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    number = tokenizer.convert_tokens_to_ids(word)
    return vectors.values[number].tolist() if vectors.found[number] else None


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.vec.gz"])
@pytest.mark.parametrize("form", ["{}", "6 3\n{}", "\n{}\n\n"])
def test_words_take_the_vectors_of_a_file(tmp_path: Path, name: str, form: str) -> None:
    found = load_vectors(written(tmp_path, form.format(GLOVE), name), WORDS)
    assert vector_of(found, "the", WORDS) == [1, 2, 3]
    assert vector_of(found, "café", WORDS) == [0.5, 0, 1]
    assert vector_of(found, "cat", WORDS) == pytest.approx([4, 5, -0.6])  # of two, the first
    assert vector_of(found, "sat", WORDS) is None
    assert found.values.shape == (len(WORDS), 3) and not found.values[~found.found].any()
    assert not found.found[WORDS.all_special_ids].any()
    assert str(found) == "83 % of 6 words have a vector" and found.coverage == 5 / 6


def test_a_word_in_another_case_is_second_best(tmp_path: Path) -> None:
    found = load_vectors(written(tmp_path, GLOVE), WORDS)
    assert vector_of(found, "Cat", WORDS) == vector_of(found, "cat", WORDS)
    assert vector_of(load_vectors(tmp_path / "vectors.txt", LOWER), "paris", LOWER) == [2, 2, 2]
    both = load_vectors(written(tmp_path, "cat 1\nCat 2\nCAT 3\nPARIS 4\n"), WORDS)
    assert [vector_of(both, word, WORDS) for word in ("cat", "Cat", "Paris")] == [[1], [2], [4]]


def test_words_with_blanks_and_odd_bytes_are_passed_over(tmp_path: Path) -> None:
    content = (
        b"the 1 2\n. . . 3 4\nat name@x.org 5 6\n\xff\xfe 7 8\nno\xc2\xa0break 9 9\ncat 1 1 \n"
    )
    found = load_vectors(written(tmp_path, content), WORDS)
    assert vector_of(found, "cat", WORDS) == [1, 1] and int(found.found.sum()) == 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("the 1 2\ncat 1\n", "line 2 of {} has 1 numbers behind its word b'cat 1.*; expected 2, "),
        ("the 1 2\ncat 1 2 3\n", "line 2 of {} has 3 numbers behind"),
        ("the\ncat\n", "line 1 of {} has 0 numbers .* expected some"),
        ("the 1 2\ncat 1 two\n", "line 2 of {} has 'two' among the numbers of 'cat'"),
        ("the 1 nan\n", "line 1 of {} has NaN or infinity among the numbers of 'the'"),
        ("2 2\nthe 1 2\ncat inf 1\n", "line 3 of {} has NaN or infinity"),
        ("9 2\nthe 1 2\n", "{} ends after 1 of the 9 words that its first line tells of"),
        ("der 1 2\ndie 2 3\n", r"{} has no vector for any of the tokenizer's 6 words \(such as "),
        ("", "has no vector for any"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, content: str, sentence: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=sentence.format(path)):
        load_vectors(path, WORDS)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, GLOVE * 99, "v.txt.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{path} cannot be opened"):
        load_vectors(path, WORDS)
    with pytest.raises(InputError, match="there is no file or folder"):
        load_vectors(tmp_path / "gone.txt", WORDS)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "byte", "character"])
def test_vectors_are_of_words(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="vectors are of words, but the tokenizer's tokens are"):
        load_vectors(written(tmp_path, GLOVE), train_tokenizer(["the cat"], kind))


@pytest.mark.parametrize("ngrams", [None, Ngrams(buckets=20, most=3)])
def test_a_model_starts_with_them(tmp_path: Path, ngrams: Ngrams | None) -> None:
    tokenizer = train_tokenizer(["the cat sat"], "word", ngrams=ngrams)
    found = load_vectors(written(tmp_path, GLOVE), tokenizer)

    def model(**changes: Any) -> ResidualForSequenceClassification:
        torch.manual_seed(0)
        return ResidualForSequenceClassification.build(
            "dpcnn", num_labels=2, processor=tokenizer, **changes
        )

    with pytest.raises(InputError, match=r"have 3 numbers, but the net takes 250 \(in_channels\)"):
        found.copy_into(model())
    fresh, own = model(in_channels=3), model(in_channels=3)
    found.copy_into(own)
    assert torch.equal(own.embedding.tokens.weight[found.found], found.values[found.found])
    rest = ~found.found
    assert torch.equal(own.embedding.tokens.weight[rest], fresh.embedding.tokens.weight[rest])
    assert own.embedding.tokens.weight.requires_grad and not own.embedding.tokens.weight[0].any()
    other = load_vectors(written(tmp_path, GLOVE), WORDS)
    with pytest.raises(InputError, match="of a tokenizer of 9 tokens, but the model's has 6"):
        other.copy_into(own)


def static_model(folder: Path, name: str = "embeddings", **tensors: torch.Tensor) -> Path:
    """As Model2Vec saves it: pieces of words, and a vector for each."""
    pieces = ["[UNK]", "cat", "ca", "##fe", "the", "par", "##is"]
    cut = Tokenizer(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    cut.normalizer, cut.pre_tokenizer = Lowercase(), Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    cut.save(str(folder / "tokenizer.json"))
    table = torch.arange(14.0).view(7, 2)
    save_file({name: table, **tensors}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["embeddings", "embedding.weight"])
@pytest.mark.parametrize("inside", ["", "0_StaticEmbedding"])
def test_a_static_model_speaks_of_every_word(tmp_path: Path, name: str, inside: str) -> None:
    static_model(tmp_path / inside, name)
    found = load_vectors(tmp_path, WORDS)
    assert vector_of(found, "the", WORDS) == [8, 9]
    assert vector_of(found, "Cat", WORDS) == vector_of(found, "cat", WORDS) == [2, 3]
    assert vector_of(found, "Paris", WORDS) == [11, 12]  # the mean of its two pieces
    assert vector_of(found, "sat", WORDS) is None and str(found).startswith("67 % of 6 words")


def test_a_static_model_with_weights_and_shared_rows(tmp_path: Path) -> None:
    weights = torch.tensor([0, 1, 1, 1, 0.5, 1, 3.0])
    mapping = torch.tensor([0, 1, 1, 1, 2, 3, 3])
    found = load_vectors(static_model(tmp_path, weights=weights, mapping=mapping), WORDS)
    assert vector_of(found, "the", WORDS) == [2, 2.5]
    assert vector_of(found, "Paris", WORDS) == [12, 14]  # (1 + 3) / 2 times row 3


def test_what_is_wrong_with_a_static_model_is_named(tmp_path: Path) -> None:
    def refused(sentence: str) -> None:
        with pytest.raises(InputError, match=sentence):
            load_vectors(tmp_path, WORDS)

    refused("holds no tokenizer.json, so it is no static embedding model")
    static_model(tmp_path)
    file = tmp_path / "model.safetensors"
    for content, sentence in (
        ({"x": torch.ones(2)}, r"holds no table of embeddings \(it has x\)"),
        ({"embeddings": torch.ones(6, 2)}, "has 7 tokens, but .* 6 vectors"),
        ({"embeddings": torch.full((7, 2), torch.nan)}, "holds NaN or infinity"),
        ({"embeddings": torch.ones(7, 2, dtype=torch.int8)}, "whole numbers"),
    ):
        save_file(content, file)
        refused(sentence)
    file.write_bytes(b"damaged")
    refused("cannot be opened")
    file.unlink()
    refused("holds no model.safetensors")
