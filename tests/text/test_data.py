"""Texts are tokenized once and come as batches as long as their longest."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from resbackbones.data import Bucketed, Labels, Source, open_dataset, open_splits
from resbackbones.errors import InputError
from resbackbones.text import (
    Ngrams,
    ResidualForSequenceClassification,
    TextItems,
    train_tokenizer,
)

TEXTS = ["who wrote the book", "?", "what is it", "a much longer text than the others are", "who?"]


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
    assert len(items) == 5 and items.lengths.tolist() == [5, 2, 4, 9, 3]


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


@pytest.mark.parametrize("nothing", [None, "", " \n\t\u00a0"], ids=repr)
def test_a_row_without_a_text_is_named_or_left_out(nothing: str | None) -> None:
    texts = ["one", nothing, "two", "three"]
    with pytest.raises(InputError, match=r"row 2 of .* cannot be read \(it is empty\)"):
        TextItems(source_of([*texts]), TOKENIZERS["byte"])
    items = TextItems(source_of([*texts]), TOKENIZERS["byte"], on_bad="skip")
    assert items.rows == [0, 2, 3] and items.labels.tolist() == [0, 0, 1]
    assert len(items.skipped) == 1 and items.skipped[0].startswith("row 2 of")


def test_other_tokens_are_another_fingerprint() -> None:
    print_ = TextItems(source_of([*TEXTS]), TOKENIZERS["word"]).fingerprint()
    assert print_ == TextItems(source_of([*TEXTS]), TOKENIZERS["word"]).fingerprint()
    few = train_tokenizer(TEXTS, "word", vocab_size=8)  # as many tokens, others unknown
    with pytest.warns(UserWarning, match="1 of 5 texts .* holds nothing that the tokenizer knows"):
        other = TextItems(source_of([*TEXTS]), few)
    assert torch.equal(other.lengths, TextItems(source_of([*TEXTS]), TOKENIZERS["word"]).lengths)
    assert other.fingerprint() != print_
    ngrams = [train_tokenizer(TEXTS, "word", ngrams=Ngrams(most=m)) for m in (3, 4)]
    assert len({TextItems(source_of([*TEXTS]), each).fingerprint() for each in ngrams}) == 2


def test_foreign_tokenizers_may_give_an_empty_text_no_token() -> None:
    from tokenizers.normalizers import Replace
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(TEXTS, "word")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.backend_tokenizer.normalizer = Replace("?", "")
    batch = TextItems(source_of([*TEXTS]), tokenizer).__getitems__([1])
    assert batch["input_ids"].tolist() == [[0]] and batch["attention_mask"].tolist() == [[0]]


def test_any_number_of_classes_per_text() -> None:
    rows = Dataset.from_dict({"text": TEXTS[2:], "tags": ["a|b", "[]", "b"]})
    items = TextItems(open_dataset(rows, target=Labels()), TOKENIZERS["word"])
    batch = items.__getitems__([2, 1, 0])
    assert batch["labels"].tolist() == [[0, 1], [0, 0], [1, 1]]
    assert batch["labels"].dtype == torch.float32


def pairs_of(first: list[Any], second: list[Any]) -> Source:
    columns = {"question": first, "answer": second, "label": [n % 2 for n in range(len(first))]}
    told = {"input": "question", "pair": "answer"}
    return open_dataset(Dataset.from_dict(columns), columns=told)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pairs_are_one_item_each(name: str) -> None:
    tokenizer, answers = TOKENIZERS[name], [*reversed(TEXTS)]
    batch = TextItems(pairs_of([*TEXTS], answers), tokenizer).__getitems__([1, 3, 0])
    rows = [[TEXTS[row] for row in (1, 3, 0)], [answers[row] for row in (1, 3, 0)]]
    expected = tokenizer(*rows, padding=True, return_tensors="pt")
    assert all(torch.equal(batch[key], value) for key, value in expected.items())
    assert (batch["input_ids"] == tokenizer.bos_token_id).sum(1).tolist() == [2, 2, 2]


def test_a_pair_without_its_second_text_is_named_and_counts_as_another() -> None:
    source = pairs_of(["a", "b", "c", "d"], ["x", None, " ", "y"])
    with pytest.raises(InputError, match="row 2 of"):
        TextItems(source, TOKENIZERS["byte"])
    assert TextItems(source, TOKENIZERS["byte"], on_bad="skip").rows == [0, 3]
    others = pairs_of(["a", "b", "c", "d"], ["x", None, " ", "z"])
    assert source.fingerprint() != others.fingerprint()


@pytest.mark.parametrize("name", ["word", "ngrams"])
def test_a_pipeline_reads_pairs_as_training_did(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]
    model = ResidualForSequenceClassification.build(
        "dpcnn", num_labels=2, processor=tokenizer, in_channels=8
    ).eval()
    items = TextItems(pairs_of(TEXTS[:2], TEXTS[2:4]), tokenizer)
    with torch.no_grad():
        expected = model(**items.__getitems__([0, 1])).logits.softmax(1)
    model.save_pretrained(tmp_path)
    classify = transformers.pipeline("text-classification", model=str(tmp_path), top_k=None)
    for batch_size in (1, 2):
        given = [{"text": TEXTS[row], "text_pair": TEXTS[row + 2]} for row in (0, 1)]
        for answer, shares in zip(classify(given, batch_size=batch_size), expected, strict=True):
            found = {int(each["label"][-1]): each["score"] for each in answer}
            assert found == pytest.approx(dict(enumerate(shares.tolist())))


def test_texts_of_nothing_but_unknown_tokens_are_told() -> None:
    strange = source_of(["who wrote it", "日本語", "是", "what"])
    told = r"2 of 4 texts of .* hold nothing that the tokenizer knows \(the first: row 2 of"
    with pytest.warns(UserWarning, match=told):
        items = TextItems(strange, TOKENIZERS["word"])
    assert items.unknown == [1, 2] and len(items) == 4
    for name in ("byte", "ngrams"):  # whose bytes, or characters, tell them apart
        assert TextItems(strange, TOKENIZERS[name]).unknown == []


def test_a_text_of_a_megabyte_is_read_whole_or_cut_and_told() -> None:
    source = source_of(["who " * 250_000, "what", "is", "it"])
    assert TextItems(source, TOKENIZERS["word"]).lengths.tolist() == [250_001, 2, 2, 2]
    with pytest.warns(UserWarning, match="1 of 4 texts .* longer than 100 tokens and were cut"):
        items = TextItems(source, train_tokenizer(TEXTS, "word", max_length=100))
    assert items.lengths.tolist() == [100, 2, 2, 2] and items.truncated == 1


def test_batches_are_of_like_length_and_within_a_budget() -> None:
    items = TextItems(
        source_of(["it " * n for n in [*range(1, 40), *range(1, 40)]]), TOKENIZERS["word"]
    )
    batches = Bucketed(items.lengths, 8, budget=120)(seed=0, epoch=0)
    assert sorted(row for batch in batches for row in batch) == list(range(78))
    for batch in batches:
        assert len(batch) == 1 or items.__getitems__(batch)["input_ids"].numel() <= 120


def test_labels_that_training_did_not_have_are_named() -> None:
    train = Dataset.from_dict({"text": [*"abcd"], "label": ["x", "y"] * 2})
    test = Dataset.from_dict({"text": ["e", "f"], "label": ["x", "z"]})
    with pytest.raises(
        InputError, match=r"row 2 of .*\[test\] has the label 'z' in .*, none of 'x'"
    ):
        open_splits(DatasetDict(train=train, test=test))
    with pytest.raises(InputError, match="'z' in column 'label', none of 'x', 'y'"):
        open_dataset(test, target=open_dataset(train).target)
