"""Texts are tokenized once and come as batches as long as their longest."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from resbackbones.data import Labels, Source, open_dataset
from resbackbones.errors import InputError
from resbackbones.text import Ngrams, TextItems, train_tokenizer

TEXTS = ["who wrote the book", "", "what is it", "a much longer text than the others are", "who?"]


def source_of(texts: list[str | None]) -> Source:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    rows = {"text": texts, "label": [number % 2 for number in range(len(texts))]}
    return open_dataset(Dataset.from_dict(rows, features=features))


TOKENIZERS = {
    "word": train_tokenizer(TEXTS, "word"),
    "byte": train_tokenizer(TEXTS, "byte"),
    "ngrams": train_tokenizer(TEXTS[:2], "word", ngrams=Ngrams(most=7)),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("rows", [[0], [3, 1, 0], [1], [4, 4, 2, 0, 1]], ids=str)
def test_a_batch_is_what_the_tokenizer_gives(name: str, rows: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    items = TextItems(source_of([*TEXTS]), tokenizer)
    batch = items.__getitems__(rows)
    expected = tokenizer([TEXTS[row] for row in rows], padding=True, return_tensors="pt")
    assert set(batch) == {*expected, "labels"}
    for key, value in expected.items():
        assert torch.equal(batch[key], value) and batch[key].dtype == torch.int64
    assert batch["labels"].tolist() == [row % 2 for row in rows]


def test_one_item_has_no_batch_axis() -> None:
    items = TextItems(source_of([*TEXTS]), TOKENIZERS["ngrams"])
    assert items[0]["input_ids"].shape == (5,) and items[0]["ngram_ids"].shape == (5, 7)
    assert len(items) == 5 and items.lengths.tolist() == [5, 1, 4, 9, 3]


def test_long_texts_are_cut_and_counted() -> None:
    short, long = (
        train_tokenizer(TEXTS[:2], "word", ngrams=Ngrams(most=7), max_length=n) for n in (4, 9)
    )
    told = r"2 of 5 texts of .* are longer than 4 tokens and were cut; .*\(--max-length\)"
    with pytest.warns(UserWarning, match=told):
        items = TextItems(source_of([*TEXTS]), short)
    assert items.truncated == 2 and int(items.lengths.max()) == 4
    whole = TextItems(source_of([*TEXTS]), long)
    assert whole.truncated == 0
    for key in ("input_ids", "ngram_ids"):
        assert torch.equal(items[3][key], whole[3][key][:4])


def test_more_texts_than_are_tokenized_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TextItems(source_of([*TEXTS]), TOKENIZERS["ngrams"]).__getitems__(range(5))
    monkeypatch.setattr("resbackbones.text.data.CHUNK", 2)
    pieces = TextItems(source_of([*TEXTS]), TOKENIZERS["ngrams"]).__getitems__(range(5))
    assert all(torch.equal(whole[key], pieces[key]) for key in whole)


def test_a_row_without_a_text_is_named_or_left_out() -> None:
    texts = ["one", None, "two", "three"]
    with pytest.raises(InputError, match="row 2 of"):
        TextItems(source_of([*texts]), TOKENIZERS["byte"])
    items = TextItems(source_of([*texts]), TOKENIZERS["byte"], on_bad="skip")
    assert items.rows == [0, 2, 3] and items.labels.tolist() == [0, 0, 1]
    assert len(items.skipped) == 1 and items.skipped[0].startswith("row 2 of")


def test_other_tokens_are_another_fingerprint() -> None:
    print_ = TextItems(source_of([*TEXTS]), TOKENIZERS["word"]).fingerprint()
    assert print_ == TextItems(source_of([*TEXTS]), TOKENIZERS["word"]).fingerprint()
    few = train_tokenizer(TEXTS, "word", vocab_size=8)  # as many tokens, others unknown
    other = TextItems(source_of([*TEXTS]), few)
    assert torch.equal(other.lengths, TextItems(source_of([*TEXTS]), TOKENIZERS["word"]).lengths)
    assert other.fingerprint() != print_
    ngrams = [train_tokenizer(TEXTS, "word", ngrams=Ngrams(most=m)) for m in (3, 4)]
    assert len({TextItems(source_of([*TEXTS]), each).fingerprint() for each in ngrams}) == 2


def test_foreign_tokenizers_may_give_an_empty_text_no_token() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(TEXTS, "word")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    batch = TextItems(source_of([*TEXTS]), tokenizer).__getitems__([1])
    assert batch["input_ids"].tolist() == [[0]] and batch["attention_mask"].tolist() == [[0]]


def test_any_number_of_classes_per_text() -> None:
    rows = Dataset.from_dict({"text": TEXTS[2:], "tags": ["a|b", "[]", "b"]})
    items = TextItems(open_dataset(rows, target=Labels()), TOKENIZERS["word"])
    batch = items.__getitems__([2, 1, 0])
    assert batch["labels"].tolist() == [[0, 1], [0, 0], [1, 1]]
    assert batch["labels"].dtype == torch.float32
